"""How wrong are the samples? (book/diffusion/convergence.md)

On the line the law of the samples is known to twelve digits: densities are moved
by matrices, Gaussian laws by recursions, and one-step chains by quadrature in the
plane.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Generator, Tensor

from pushforward import ode
from pushforward.diffusion import (
    Score,
    backward,
    marginal,
    marginal_score,
    ornstein_uhlenbeck,
    time_grid,
)
from pushforward.diffusion.convergence import (
    Bound,
    Move,
    chain_kl,
    early_bound,
    euler_step,
    exponential_integrator,
    frozen_gain,
    frozen_step,
    grid_kl,
    kl_bound,
    noised_fisher,
    noised_kl,
    posterior_gain,
    posterior_step,
    propagate,
    relative_fisher,
    relative_score,
    shrinking_steps,
    tent_score,
)
from pushforward.distributions import Gaussian, Mixture, StandardNormal, line_mixture

MOVES = [frozen_step, posterior_step, euler_step]
T = 3.0


def law() -> Mixture:
    covs = torch.tensor([[[0.25]], [[0.09]]])
    return Mixture(torch.tensor([[-2.0], [1.0]]), covs, torch.tensor([0.4, 0.6]))


def grid(m: int = 321) -> Tensor:
    return torch.linspace(-8, 8, m)


def normal(x: Tensor, m: Tensor | float = 0.0, v: Tensor | float = 1.0) -> Tensor:
    v = torch.as_tensor(v)
    return (-((x - m) ** 2) / (2 * v)).exp() / (2 * math.pi * v).sqrt()


def exact(data: Mixture) -> Score:
    return marginal_score(ornstein_uhlenbeck(10.0), data)


def tilted(data: Mixture, size: float = 0.4) -> Score:
    """The true score, disturbed."""
    s = exact(data)
    return lambda x, t: s(x, t) + size * torch.sin(2 * x - t)


# Steps


def test_a_frozen_step_solves_its_equation(rng: Generator) -> None:
    """Mean and variance of dX = (−X + 2y) dr + √2 dB, y fixed (eq:cds-step)."""
    s, x = exact(law()), torch.randn(5, 1, generator=rng)
    t, end = torch.tensor(0.8), torch.tensor(0.5)
    y = relative_score(s, x, t)
    mean, sigma = frozen_step(s, x, t, end)
    r = torch.linspace(0, 0.3, 41)
    torch.testing.assert_close(mean, ode.integrate(lambda m, r: 2 * y - m, x, r))
    v = ode.integrate(lambda v, r: 2 - 2 * v, torch.zeros(1), r)[0]
    torch.testing.assert_close(sigma.square(), v)


def test_a_posterior_step_goes_to_the_mean_of_the_posterior() -> None:
    """E[X_end | X_t = x] by quadrature (eq:cds-posterior)."""
    x, y = torch.linspace(-2, 2, 9)[:, None], grid(1601)
    t, end = torch.tensor(0.8), torch.tensor(0.5)
    sde, h = ornstein_uhlenbeck(1.0), t - end
    joint = marginal(sde, law(), 0.5).log_prob(y[:, None]).exp() * normal(
        x, (-h).exp() * y, 1 - (-2 * h).exp()
    )
    found = posterior_step(exact(law()), x, t, end).mean[:, 0]
    torch.testing.assert_close(found, joint @ y / joint.sum(1))


def test_the_euler_step_is_that_of_the_walk_back() -> None:
    s, times = exact(law()), time_grid(2.0, 0.25)
    x = torch.randn(50, 1, generator=torch.Generator().manual_seed(1))
    seeded = [torch.Generator().manual_seed(2) for _ in range(2)]
    ours = exponential_integrator(s, x, times, move=euler_step, rng=seeded[0])
    theirs = backward(ornstein_uhlenbeck(2.0), s, x, times, rng=seeded[1])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_images_walk_too_and_the_generator_decides(rng: Generator) -> None:
    x, times = torch.randn(3, 1, 4, 4, generator=rng), time_grid(1.0, 0.5)
    s: Score = lambda x, t: -x
    runs = [list(exponential_integrator(s, x, times, rng=torch.Generator()))
            for _ in range(2)]  # fmt: skip
    assert [y.shape for y in runs[0]] == [x.shape] * 2
    assert torch.equal(runs[0][-1], runs[1][-1])


# Laws of the samples


@pytest.mark.parametrize("move", MOVES)
def test_between_gaussians_the_chain_is_a_recursion(move: Move) -> None:
    """The score is linear: mean and variance follow a recursion of two numbers."""
    s = exact(Gaussian(torch.tensor([1.5]), torch.tensor([[0.25]])))
    times = time_grid(T, 0.1)
    m, v = 0.0, 1.0
    for t, end in pairwise(times):
        (zero, one), sigma = move(s, torch.tensor([[0.0], [1.0]]), t, end)
        slope = (one - zero).item()
        m, v = slope * m + zero.item(), slope**2 * v + sigma.item() ** 2
    found = propagate(s, grid(), times, move=move)
    torch.testing.assert_close(found.density, normal(grid(), m, v), atol=1e-11, rtol=0)
    assert found.mass == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("move", MOVES)
def test_the_grid_and_the_samples_have_one_law(move: Move, rng: Generator) -> None:
    s, times, n = exact(law()), time_grid(T, 0.25), 20_000
    *_, x = exponential_integrator(
        s, torch.randn(n, 1, generator=rng), times, move=move, rng=rng
    )
    q = propagate(s, grid(), times, move=move).density
    dx = grid()[1] - grid()[0]
    for f in (torch.sin, torch.cos, torch.tanh, torch.square):
        mean, se = f(x).mean(), f(x).std() / n**0.5
        assert (mean - (f(grid()) * q).sum() * dx).abs() < 4 * se


def test_a_refined_grid_changes_nothing() -> None:
    s, times = exact(law()), time_grid(T, 0.1)
    kl = [grid_kl(law(), propagate(s, x, times).density, x) for x in
          (grid(), torch.linspace(-9, 9, 900))]  # fmt: skip
    torch.testing.assert_close(*kl, atol=1e-10, rtol=0)


def test_kl_on_a_grid_is_that_of_gaussians() -> None:
    p = Gaussian(torch.tensor([0.4]), torch.tensor([[0.5]]))
    right = (0.5 + 0.16 - 1 - math.log(0.5)) / 2
    assert grid_kl(p, normal(grid()), grid()).item() == pytest.approx(right, abs=1e-12)


@pytest.mark.parametrize(
    ("h", "frozen", "euler"),
    [(0.2, 0.3085, 0.333), (0.1, 0.1375, 0.146), (0.05, 0.0484, 0.0503),
     (0.025, 0.0143, 0.0146)],
)  # fmt: skip
def test_the_error_falls_with_the_step(h: float, frozen: float, euler: float) -> None:
    """Numbers of a first, independent computation, to 1 %."""
    s, x, times = exact(law()), grid(), time_grid(T, h)
    for move, right in ((frozen_step, frozen), (euler_step, euler)):
        kl = grid_kl(law(), propagate(s, x, times, move=move).density, x)
        assert kl.item() == pytest.approx(right, rel=0.01)


# The exact price


@pytest.mark.parametrize("move", [frozen_step, posterior_step])
@pytest.mark.parametrize("score", [exact, tilted])
def test_the_price_of_one_step_by_quadrature_in_the_plane(
    score: Callable[[Mixture], Score], move: Move
) -> None:
    """(eq:cds-exact): KL of the laws of (X_h, X_0) and (Z_0, Z_1), point by point."""
    s, x, times = score(law()), torch.linspace(-8, 8, 801), torch.tensor([0.4, 0.0])
    a, v = math.exp(-0.4), 1 - math.exp(-0.8)
    mean, sigma = move(s, x[:, None], *times)
    Q = law().log_prob(x[:, None]).exp()[:, None] * normal(x, a * x[:, None], v)
    P = normal(x)[None] * normal(x[:, None], mean[:, 0], sigma**2)  # (y, x)
    kl = torch.special.xlogy(Q, Q / P.clamp(min=1e-300)).sum() * (x[1] - x[0]) ** 2
    found = chain_kl(law(), s, x, times, move=move)
    torch.testing.assert_close(found, kl, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("move", "gain"), [(frozen_step, frozen_gain), (posterior_step, posterior_gain)]
)
def test_with_the_true_score_steps_gain_information(
    move: Move, gain: Callable[[Tensor], Tensor]
) -> None:
    """KL(p_0 ‖ γ) − Σ gain(h_k) I_k (eq:cds-frozen), on uneven times."""
    x, times = grid(), torch.tensor([2.0, 1.1, 0.6, 0.25, 0.0])
    fisher = relative_fisher(law(), times[:-1], x)
    kl = grid_kl(law(), normal(x), x)
    right = kl - (gain(-times.diff()) * fisher).sum()
    found = chain_kl(law(), exact(law()), x, times, move=move)
    torch.testing.assert_close(found, right)


def test_posterior_steps_gain_most() -> None:
    """h ≤ frozen ≤ posterior, and the frozen gain has the slope 1 and curvature 2."""
    h = torch.linspace(0.001, 3, 50)
    assert (h <= frozen_gain(h)).all()
    assert (frozen_gain(h) < posterior_gain(h)).all()
    small = torch.tensor(1e-3)
    for gain in (frozen_gain, posterior_gain):
        assert gain(small).item() == pytest.approx(1e-3 + 1e-6, abs=2e-9)


# What is known of the noised law


def test_information_is_that_of_gaussians() -> None:
    """For N(m, v): m_t² + (1/v_t − 1)² v_t at time t."""
    p = Gaussian(torch.tensor([0.7]), torch.tensor([[0.3]]))
    t = torch.tensor([0.0, 0.4, 1.3])
    a2 = (-2 * t).exp()
    v = 1 + a2 * (0.3 - 1)
    found = relative_fisher(p, t, grid(641))
    torch.testing.assert_close(found, 0.49 * a2 + (1 / v - 1) ** 2 * v)


def test_a_point_mass_attains_the_bounds() -> None:
    """X_t ~ N(a m, σ² I): I and KL in closed form (eq:cds-noised-fisher)."""
    t, m, d = torch.tensor([0.01, 0.3, 2.0]), 1.5, 3
    a2 = (-2 * t).exp()
    v = 1 - a2
    fisher = a2 * m**2 + d * (1 / v - 1) ** 2 * v
    torch.testing.assert_close(noised_fisher(m**2, d, t), fisher)
    kl = (a2 * m**2 + d * (v - 1 - v.log())) / 2  # (eq:cds-noised-kl)
    torch.testing.assert_close(noised_kl(m**2, d, t), kl)


def test_other_laws_stay_below_the_bounds() -> None:
    t, x = torch.tensor([0.05, 0.3, 1.0]), grid(641)
    second = (law().cov() + law().mean() ** 2).item()
    found = relative_fisher(law(), t, x)
    assert (found < noised_fisher(second, 1, t)).all()
    for time in t:
        p = marginal(ornstein_uhlenbeck(1.0), law(), time.item())
        assert grid_kl(p, normal(x), x) < noised_kl(second, 1, time)


@pytest.mark.parametrize("lam", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("t", [0.02, 0.5])
def test_the_score_of_a_tent(lam: float, t: float) -> None:
    """log of ∫ e^{−λ|y|} N(x; e^{−t} y, σ²) γ(y) dy, differentiated (eq:cds-tent)."""
    y = torch.linspace(-9, 9, 18_001)
    x = torch.linspace(-3, 3, 13).requires_grad_()
    v = 1 - math.exp(-2 * t)
    p = normal(x[:, None], math.exp(-t) * y, v) @ ((-lam * y.abs()).exp() * normal(y))
    (score,) = torch.autograd.grad(p.log().sum(), x)
    found = tent_score(lam)(x.detach()[:, None], torch.tensor(t))[:, 0]
    torch.testing.assert_close(found, score, atol=1e-5, rtol=1e-5)


# Bounds


@pytest.mark.parametrize("h", [0.5, 0.1])
@pytest.mark.parametrize("size", [0.0, 0.3])
def test_the_bound_holds_with_room(h: float, size: float) -> None:
    """KL of the samples ≤ KL of the chain ≤ (eq:cds-bound)."""
    s, x, times = tilted(law(), size), grid(), time_grid(T, h)
    kl, fisher = grid_kl(law(), normal(x), x), relative_fisher(law(), times[-1:], x)[0]
    sde = ornstein_uhlenbeck(T)
    errors = []
    for t in times[:-1]:
        p = marginal(sde, law(), t.item()).log_prob(x[:, None]).exp() * 0.05
        errors.append(p @ (size * torch.sin(2 * x - t)) ** 2)
    bound = kl_bound(times, kl, fisher, torch.stack(errors))
    chain = chain_kl(law(), s, x, times)
    samples = grid_kl(law(), propagate(s, x, times).density, x)
    assert samples < chain < bound.total <= bound.plain


def test_a_bound_is_made_of_three_parts() -> None:
    times = torch.tensor([2.0, 1.2, 0.5, 0.0])
    kl, fisher, errors = torch.tensor(3.0), torch.tensor(5.0), torch.tensor([1, 2, 4.0])
    bound = kl_bound(times, kl, fisher, errors)
    right = (3 * math.exp(-4), 0.8 + 1.4 + 2.0, 0.8 * 5)
    assert [b.item() for b in bound] == pytest.approx(right)
    total = right[0] + (math.sqrt(right[1]) + math.sqrt(right[2])) ** 2
    assert bound.total.item() == pytest.approx(total)
    assert bound.plain.item() == pytest.approx(right[0] + 2 * right[1] + 2 * right[2])
    assert kl_bound(times, kl, fisher).score == 0


def test_equal_errors_make_both_forms_equal() -> None:
    bound = Bound(*torch.tensor([0.1, 0.7, 0.7]))
    torch.testing.assert_close(bound.total, bound.plain)


@pytest.mark.parametrize(("c", "stop"), [(0.5, 0.01), (0.1, 0.3), (2.0, 1e-4)])
def test_steps_shrink_with_the_time(c: float, stop: float) -> None:
    """(eq:cds-steps), and no more steps than promised."""
    times = shrinking_steps(4.0, c, stop=stop)
    h = -times.diff()
    assert (h <= c * times[1:].clamp(max=1) * (1 + 1e-12)).all()
    assert (times[0].item(), times[-1].item()) == pytest.approx((4.0, stop))
    assert len(h) <= 3 / c + math.log(1 / stop) / math.log1p(c) + 2


def test_summation_by_parts_is_exact_for_a_point_mass() -> None:
    """Σ h_k (I_{k+1} − I_k) + h_0 I_0 for falling steps (eq:cds-early)."""
    times = shrinking_steps(3.0, 0.4, stop=0.02)
    h, fisher = -times.diff(), noised_fisher(2.0, 5, times)
    right = (h * fisher.diff()).sum() + h[0] * fisher[0]
    assert (h.diff() <= 1e-12).all()
    torch.testing.assert_close(early_bound(times, 2.0, 5).step, right)


def test_growing_steps_are_bounded_too() -> None:
    times = torch.tensor([2.0, 1.9, 1.2, 1.0, 0.3])
    h, fisher = -times.diff(), noised_fisher(2.0, 5, times)
    bound = early_bound(times, 2.0, 5, torch.ones(4))
    assert bound.step >= (h * fisher.diff()).sum()
    assert bound.score.item() == pytest.approx(1.7)
    assert bound.start == noised_kl(2.0, 5, times[0])


@pytest.mark.parametrize("steps", ["equal", "shrinking"])
def test_two_points_are_found_early(steps: str) -> None:
    """The data have no density; p_δ has, and the bound is on it (eq:cds-early)."""
    stop = 0.02
    times = shrinking_steps(3.0, 0.5, stop=stop)
    if steps == "equal":
        times = torch.linspace(3, stop, len(times))
    noised = line_mixture((-math.exp(-stop), math.exp(-stop)),
                          math.sqrt(1 - math.exp(-2 * stop)))  # fmt: skip
    true = exact(noised)
    x = torch.linspace(-7, 7, 701)
    q = propagate(lambda x, t: true(x, t - stop), x, times).density
    kl = grid_kl(noised, q, x)
    assert kl < early_bound(times, 1.0, 1).total
    assert (kl < 0.1) == (steps == "shrinking")


# Doors


def test_bad_times_are_named() -> None:
    s, x, one = exact(law()), grid(), torch.tensor(1.0)
    bad = [[1.0], [0.0, 1.0], [1.0, 1.0, 0.0], [1.0, -0.1], [math.inf, 0.0],
           [[1.0, 0.0]]]  # fmt: skip
    for times in (torch.tensor(b) for b in bad):
        for call in (
            lambda t: list(exponential_integrator(s, torch.zeros(2, 1), t)),
            lambda t: propagate(s, x, t),
            lambda t: chain_kl(law(), s, x, t),
            lambda t: kl_bound(t, one, one),
            lambda t: early_bound(t, 1.0, 1),
        ):
            with pytest.raises(ValueError, match="times must"):
                call(times)
    with pytest.raises(ValueError, match="times must be real"):
        kl_bound(torch.tensor([2, 1, 0]), one, one)


@pytest.mark.parametrize(("T", "c", "stop"), [(1, 0.1, 0.1), (-2, 0.1, 0.1),
    (3, 0.1, 0), (3, 0.1, 1), (math.inf, 0.1, 0.1)])  # fmt: skip
def test_bad_ends_are_named(T: float, c: float, stop: float) -> None:
    with pytest.raises(ValueError, match="stop"):
        shrinking_steps(T, c, stop=stop)


def test_bad_sizes_are_named() -> None:
    for c in (0.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="c must be positive"):
            shrinking_steps(3.0, c, stop=0.1)


def test_bad_grids_are_named() -> None:
    s, times = exact(law()), time_grid(1.0, 0.5)
    uneven = torch.cat([grid()[:100], grid()[101:]])
    for x in (uneven, grid()[None], grid()[:2]):
        with pytest.raises(ValueError, match="x must be an even grid"):
            propagate(s, x, times)
    with pytest.raises(ValueError, match="x must rise"):
        propagate(s, grid().flip(0), times)
    with pytest.raises(ValueError, match="x must be finer"):
        propagate(s, torch.linspace(-8, 8, 20), times)
    with pytest.raises(ValueError, match="q must be"):
        grid_kl(law(), torch.ones(5), grid())


def test_a_score_of_the_wrong_shape_is_named() -> None:
    s: Score = lambda x, t: x[:, 0]
    for call in (
        lambda: list(exponential_integrator(s, torch.zeros(2, 1), time_grid(1.0, 0.5))),
        lambda: propagate(s, grid(), time_grid(1.0, 0.5)),
    ):
        with pytest.raises(ValueError, match="s must return the shape"):
            call()


def test_bad_numbers_are_named() -> None:
    one, times = torch.tensor(1.0), torch.tensor([1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match="kl and fisher"):
        kl_bound(times, -one, one)
    for errors in torch.ones(3), torch.tensor([1, -1.0]), torch.full((2,), math.nan):
        with pytest.raises(ValueError, match="errors must be"):
            kl_bound(times, one, one, errors)
    with pytest.raises(ValueError, match="end at 0"):
        kl_bound(times + 0.1, one, one)
    with pytest.raises(ValueError, match="end above 0"):
        early_bound(times, 1.0, 1)
    for second, d in ((-1.0, 1), (1.0, 0)):
        with pytest.raises(ValueError, match="second ≥ 0"):
            early_bound(times + 0.1, second, d)
    with pytest.raises(ValueError, match="move must have deviation"):
        chain_kl(law(), exact(law()), grid(), times, move=euler_step)


def test_gamma_itself_costs_nothing() -> None:
    """Data N(0, 1): no information, no error, at any step."""
    data, x, times = Gaussian(torch.zeros(1), torch.eye(1)), grid(), time_grid(1.0, 0.5)
    assert chain_kl(data, exact(data), x, times).abs() < 1e-12
    q = propagate(exact(data), x, times).density
    log_q = StandardNormal(1).log_prob(x[:, None])
    torch.testing.assert_close(q, log_q.exp(), atol=1e-12, rtol=0)
