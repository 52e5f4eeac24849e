"""book/flows/matching.md, where the marginal field is known in closed form.

Mixtures of Gaussians are mixtures along every affine path, so that velocity,
score, denoiser and density have formulas; between Gaussians the whole flow has.
"""

import math
from functools import partial

import pytest
import torch
from torch import Generator, Tensor, nn

from pushforward import ode, ot
from pushforward.distributions import Gaussian, Mixture, StandardNormal, line_mixture
from pushforward.flows import (
    Coefficients,
    FlowMatching,
    flow_log_prob,
    flow_map,
    given,
    independent,
    linear_path,
    marginal_law,
    marginal_velocity,
    matching_loss,
    minibatch_ot,
    minibatch_sinkhorn,
    rectified_map,
    reflow,
    stability,
    straightness,
    trigonometric_path,
)
from pushforward.flows.matching import Path
from pushforward.metrics import two_sample
from pushforward.nn import MLP, TimeMLP, UNet

PATHS = [linear_path, trigonometric_path, partial(linear_path, sigma=0.1)]


def mixture() -> Mixture:
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [0.0, -2.0]])
    covs = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.5, 0.0], [0.0, 0.1]],
                         [[0.2, -0.1], [-0.1, 0.4]]])  # fmt: skip
    return Mixture(means, covs, torch.tensor([0.5, 0.3, 0.2]))


# Paths


@pytest.mark.parametrize("path", PATHS)
def test_slopes_are_the_derivatives_of_the_path(path: Path) -> None:
    """(eq:fm-path): ȧ and ḃ by automatic differentiation."""
    t = torch.linspace(0, 1, 7)
    for i in (0, 1):
        slope = torch.func.vmap(torch.func.grad(lambda s, i=i: path(s)[i]))(t)
        torch.testing.assert_close(path(t)[i + 2], slope)


@pytest.mark.parametrize("path", PATHS[:2])
def test_a_path_runs_from_noise_to_data(path: Path, rng: Generator) -> None:
    z, x = torch.randn(2, 5, 3, generator=rng)
    torch.testing.assert_close(path(torch.tensor(0.0)).point(z, x), z)
    torch.testing.assert_close(path(torch.tensor(1.0)).point(z, x), x)


def test_the_trigonometric_path_keeps_the_variance() -> None:
    at = trigonometric_path(torch.linspace(0, 1, 9))
    torch.testing.assert_close(at.a**2 + at.b**2, torch.ones(9))


def test_some_noise_may_be_left_at_the_end() -> None:
    at = linear_path(torch.tensor(1.0), sigma=0.2)
    assert [float(c) for c in at] == pytest.approx([1.0, 0.2, 1.0, -0.8])


# The marginal field


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("t", [0.05, 0.5, 0.9])
def test_score_denoiser_and_velocity_are_affine_in_each_other(
    path: Path, t: float, rng: Generator
) -> None:
    """(eq:fm-denoiser), (eq:fm-score) beside the mixture's own formulas."""
    law, time = mixture(), torch.tensor(t)
    at, x = path(time), torch.randn(50, 2, generator=rng)
    u = marginal_velocity(law, path)(x, time)
    mean = law.posterior_mean(x / at.a, float(at.b / at.a))  # x_t/a = x_1 + (b/a) z
    torch.testing.assert_close(at.denoised(u, x), mean)
    torch.testing.assert_close(at.from_denoised(mean, x), u)
    y = x.clone().requires_grad_()
    log_p = marginal_law(law, time, path).log_prob(y).sum()
    (score,) = torch.autograd.grad(log_p, y)
    torch.testing.assert_close(at.score(u, x), score)


def test_the_marginal_velocity_is_a_conditional_mean(rng: Generator) -> None:
    """(eq:fm-marginal): E ⟨f(x_t), ẋ_t − u(x_t, t)⟩ = 0 for any f."""
    law, n, t = mixture(), 200_000, torch.tensor(0.6)
    x, z = law.sample(n, rng=rng), torch.randn(n, 2, generator=rng)
    at = linear_path(t)
    y, rate = at.point(z, x), at.velocity(z, x)
    miss = rate - marginal_velocity(law)(y, t)
    for f in (torch.ones_like(y), y, y.sin(), (2 * y).cos(), y.square()):
        products = (f * miss).sum(1)
        assert products.mean().abs() < 4 * products.std() / n**0.5


def test_the_marginal_velocity_is_finite_at_both_ends(rng: Generator) -> None:
    """At t = 0 it is E[ẋ | z]; at t = 1 the velocity of the data's own end."""
    law, x = mixture(), torch.randn(20, 2, generator=rng)
    u = marginal_velocity(law)
    torch.testing.assert_close(u(x, torch.tensor(0.0)), law.mean() - x)
    torch.testing.assert_close(u(x, torch.tensor(1.0)), x)  # E[z | x] = 0


def test_times_may_differ_from_row_to_row(rng: Generator) -> None:
    law, x, t = mixture(), torch.randn(5, 2, generator=rng), torch.rand(5, 1)
    u = marginal_velocity(law)
    rows = torch.cat([u(x[i : i + 1], t[i, 0]) for i in range(5)])
    torch.testing.assert_close(u(x, t), rows)


@pytest.mark.parametrize("path", PATHS[:2])
def test_the_flow_of_the_marginal_field_ends_in_the_data(
    path: Path, rng: Generator
) -> None:
    """The density of the flow is that of the mixture, at t = 1 and before."""
    law, base = mixture(), StandardNormal(2)
    u, x = marginal_velocity(law, path), law.sample(20, rng=rng)
    found = flow_log_prob(u, x, base, steps=80)
    torch.testing.assert_close(found, law.log_prob(x), atol=1e-5, rtol=0)
    z = base.sample(400, rng=rng)
    half = flow_map(u, z, 0.0, 0.5, steps=20)
    at_half = marginal_law(law, torch.tensor(0.5), path).sample(400, rng=rng)
    assert two_sample(half, at_half, permutations=49, rng=rng).p > 0.02
    far = half + torch.tensor([0.4, 0.0])
    assert two_sample(far, at_half, permutations=49, rng=rng).p < 0.05


def test_all_affine_paths_have_one_end_map(rng: Generator) -> None:
    z = torch.randn(100, 2, generator=rng)
    ends = [flow_map(marginal_velocity(mixture(), p), z, 0, 1, steps=200)
            for p in PATHS[:2]]  # fmt: skip
    torch.testing.assert_close(*ends, atol=1e-6, rtol=0)


# The loss


def test_the_losses_differ_by_the_conditional_variance(rng: Generator) -> None:
    """For N(m, s²I) in R^d it is π s d / 2, whatever the field is."""
    n, d, s = 50_000, 3, 0.4
    law = Gaussian(torch.tensor([1.0, -1.0, 0.5]), s**2 * torch.eye(d))
    u, v = marginal_velocity(law), TimeMLP(d, 8)
    x, z = law.sample(n, rng=rng), torch.randn(n, d, generator=rng)
    t = torch.rand(n, 1, generator=rng)
    y, rate = linear_path(t).point(z, x), x - z
    with torch.no_grad():
        gap = (v(y, t) - rate).square().sum(1) - (v(y, t) - u(y, t)).square().sum(1)
    se = gap.std() / n**0.5
    assert abs(gap.mean() - math.pi * s * d / 2) < 4 * se
    assert se < 0.02


def test_the_loss_is_the_squared_miss_at_its_own_times(rng: Generator) -> None:
    """(eq:fm-loss), with the times drawn again from the same generator."""
    z, x = torch.randn(2, 6, 1, 2, 3, generator=rng)
    seen: list[Tensor] = []

    def v(y: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return y * t

    loss = matching_loss(v, z, x, trigonometric_path, rng=Generator().manual_seed(5))
    t = torch.rand(6, 1, 1, 1, generator=Generator().manual_seed(5))
    assert torch.equal(seen[0], t)
    a, b = (t * math.pi / 2).sin(), (t * math.pi / 2).cos()
    miss = t * (a * x + b * z) - math.pi / 2 * (b * x - a * z)
    torch.testing.assert_close(loss, miss.square().sum() / 6)


def test_noise_and_data_of_unlike_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"z must be \(3, 2\) like x, got \(3, 1\)"):
        matching_loss(lambda x, t: x, torch.zeros(3, 1), torch.zeros(3, 2))


def test_a_linear_field_is_learned(rng: Generator) -> None:
    """Between Gaussians u is linear in x at each time: least squares find it."""
    s, n = 0.5, 20_000
    law = Gaussian(torch.zeros(1), torch.full((1, 1), s**2))
    x, t = law.sample(n, rng=rng), torch.tensor(0.3)
    z = torch.randn(n, 1, generator=rng)
    k = torch.zeros((), requires_grad=True)

    def frozen(time: Tensor) -> Coefficients:
        return linear_path(torch.full_like(time, 0.3))

    loss = matching_loss(lambda y, _: k * y, z, x, frozen, rng=rng)
    (slope,) = torch.autograd.grad(loss, k, create_graph=True)
    (curve,) = torch.autograd.grad(slope, k)
    best = -float(slope.detach() / curve)  # the loss is a parabola in k
    exact = float(marginal_velocity(law)(torch.ones(1, 1), t))
    assert best == pytest.approx(exact, abs=0.03)


# Pairings


def mean_cost(z: Tensor, x: Tensor) -> Tensor:
    return (z - x).square().sum(1).mean()


@pytest.mark.parametrize(
    "pairing",
    [independent, minibatch_ot, partial(minibatch_sinkhorn, eps=0.05)],
    ids=["independent", "ot", "sinkhorn"],
)
def test_a_pairing_keeps_the_marginals(pairing: object, rng: Generator) -> None:
    law, base = mixture(), StandardNormal(2)
    drawn = [pairing(base, law.sample(40, rng=rng), rng=rng) for _ in range(10)]
    z, x = (torch.cat(part) for part in zip(*drawn, strict=True))
    for found, exact in ((z, base), (x, law)):
        fresh = exact.sample(400, rng=rng)
        assert two_sample(found, fresh, permutations=49, rng=rng).p > 0.02


def test_minibatch_ot_reorders_the_batch_at_the_least_cost(rng: Generator) -> None:
    """On the line the cheapest order is the increasing one."""
    x = torch.randn(50, 1, generator=rng)
    z, y = minibatch_ot(StandardNormal(1), x, rng=rng)
    assert torch.equal(y.sort(0).values, x.sort(0).values)
    order = z[:, 0].argsort()
    assert torch.equal(y[order], x.sort(0).values)


def test_minibatch_ot_works_on_images(rng: Generator) -> None:
    x = torch.rand(12, 1, 4, 4, generator=rng)
    z, y = minibatch_ot(StandardNormal(1, 4, 4), x, rng=rng)
    assert y.shape == x.shape
    least = ot.wasserstein(z.flatten(1), x.flatten(1)) ** 2
    torch.testing.assert_close(mean_cost(z.flatten(1), y.flatten(1)), least)


def test_the_cost_of_a_batch_falls_with_its_size_towards_the_least(
    rng: Generator,
) -> None:
    """C_1 = E‖z − x‖² ≥ C_4 ≥ C_32 ≥ W₂²."""
    base = StandardNormal(2)
    S = torch.tensor([[1.0, 0.6], [0.6, 0.8]])
    law = Gaussian(torch.tensor([1.0, 0.0]), S)
    costs, ses = [], []
    for n, times in ((1, 1000), (4, 300), (32, 50)):
        c = torch.stack([mean_cost(*minibatch_ot(base, law.sample(n, rng=rng), rng=rng))
                         for _ in range(times)])  # fmt: skip
        costs.append(float(c.mean()))
        ses.append(float(c.std()) / times**0.5)
    assert costs[0] == pytest.approx(1 + 2 + 1.8, abs=4 * ses[0])
    least = float(ot.bures(torch.zeros(2), torch.eye(2), law.mean(), S))
    assert costs[0] > costs[1] > costs[2] > least - 4 * ses[2]


def test_entropy_leads_from_the_optimal_to_the_independent_pairing(
    rng: Generator,
) -> None:
    base, x = StandardNormal(2), mixture().sample(200, rng=rng)
    costs = [
        mean_cost(*minibatch_sinkhorn(base, x, eps=e, rng=Generator().manual_seed(1)))
        for e in (0.01, 0.3, 100.0)
    ]
    best = mean_cost(*minibatch_ot(base, x, rng=Generator().manual_seed(1)))
    plain = mean_cost(*independent(base, x, rng=Generator().manual_seed(1)))
    assert best < costs[0] < costs[1] < costs[2]
    assert costs[0] < 1.1 * best
    assert costs[2] == pytest.approx(float(plain), rel=0.2)


def test_entropy_is_measured_in_units_of_the_cost(rng: Generator) -> None:
    """Ten times larger clouds are paired in the same way."""
    x, pairs = mixture().sample(50, rng=rng), []
    for k in (1.0, 10.0):
        base = Gaussian(torch.zeros(2), k**2 * torch.eye(2))
        again = Generator().manual_seed(3)
        pairs.append(minibatch_sinkhorn(base, k * x, eps=0.02, rng=again)[1] / k)
    torch.testing.assert_close(*pairs)


def test_given_pairs_are_left_alone(rng: Generator) -> None:
    pairs = torch.randn(5, 2, 1, 3, 3, generator=rng)
    z, x = given(StandardNormal(1, 3, 3), pairs)
    assert torch.equal(torch.stack([z, x], 1), pairs)
    with pytest.raises(ValueError, match=r"x must be pairs \(n, 2, \*shape\)"):
        given(StandardNormal(2), torch.zeros(5, 2))


# Rectification


def gaussians() -> tuple[Tensor, Tensor]:
    """A flat law, and the same one turned by 30 degrees."""
    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    S0, R = torch.diag(torch.tensor([1.0, 0.05])), torch.tensor([[c, -s], [s, c]])
    return S0, R @ S0 @ R.T


def gaussian_field(S0: Tensor, S1: Tensor) -> ode.Field:
    """E[x_1 − x_0 | x_t] of independent Gaussians."""

    def u(x: Tensor, t: Tensor) -> Tensor:
        joint = t * S1 - (1 - t) * S0
        return x @ torch.linalg.solve(t**2 * S1 + (1 - t) ** 2 * S0, joint.T)

    return u


def test_the_flow_between_gaussians_is_the_rectified_map(rng: Generator) -> None:
    """(eq:fm-gaussian-map), and it is dearer than the optimal map."""
    S0, S1 = gaussians()
    M, z = rectified_map(S0, S1), torch.randn(20, 2, generator=rng)
    end = flow_map(gaussian_field(S0, S1), z, 0, 1, steps=200)
    torch.testing.assert_close(end, z @ M.T, atol=1e-7, rtol=0)
    torch.testing.assert_close(M @ S0 @ M.T, S1)
    D = M - torch.eye(2)
    price = torch.trace(D @ S0 @ D.T)
    least = ot.bures(torch.zeros(2), S0, torch.zeros(2), S1)
    assert price > 2 * least


def test_from_white_noise_the_rectified_map_is_optimal() -> None:
    _, S1 = gaussians()
    zero, eye = torch.zeros(2), torch.eye(2)
    best = ot.gaussian_map(zero, eye, zero, S1)(eye)
    torch.testing.assert_close(rectified_map(eye, S1), best)


def test_on_the_line_the_rectified_flow_is_monotone() -> None:
    """F(x_1(z)) = Φ(z): the increasing map, which is optimal for convex costs."""
    law = line_mixture((-2.0, 0.5, 3.0), 0.4, (0.3, 0.5, 0.2))
    z = torch.linspace(-3, 3, 41)[:, None]
    x = flow_map(marginal_velocity(law), z, 0, 1, steps=400)
    parts = torch.special.ndtr((x - law.means[:, 0]) / 0.4)
    F = parts @ law.log_weights.exp()
    torch.testing.assert_close(F, torch.special.ndtr(z[:, 0]), atol=1e-6, rtol=0)


def test_straightness_between_a_normal_law_and_a_narrow_one(rng: Generator) -> None:
    """(eq:fm-straightness): s (4 − π)/2 in each dimension."""
    s, n = 0.3, 20_000
    law = Gaussian(torch.tensor([2.0, 0.0]), s**2 * torch.eye(2))
    z = torch.randn(n, 2, generator=rng)
    S = straightness(marginal_velocity(law), z, steps=50)
    assert abs(S.mean() - s * (4 - math.pi)) < 4 * S.std() / n**0.5


def test_straight_lines_have_straightness_zero(rng: Generator) -> None:
    """The field of pairs (z, Mz) moves on lines, so that one Euler step is exact."""
    M = rectified_map(*gaussians())

    def v(x: Tensor, t: Tensor) -> Tensor:
        back = torch.linalg.solve((1 - t) * torch.eye(2) + t * M, x.T)
        return (M @ back - back).T

    z = torch.randn(10, 2, generator=rng)
    torch.testing.assert_close(straightness(v, z), torch.zeros(10))
    one = ode.integrate(v, z, torch.tensor([0.0, 1.0]), ode.EULER)
    torch.testing.assert_close(one, z @ M.T)
    images = z.reshape(10, 1, 1, 2)
    rolled = straightness(lambda x, t: v(x.flatten(1), t).view_as(x), images)
    torch.testing.assert_close(rolled, torch.zeros(10))


def test_reflow_pairs_noise_with_its_image(rng: Generator) -> None:
    u, z = marginal_velocity(mixture()), torch.randn(6, 2, generator=rng)
    pairs = reflow(u, z, steps=30)
    assert pairs.shape == (6, 2, 2)
    assert torch.equal(pairs[:, 0], z)
    torch.testing.assert_close(pairs[:, 1], flow_map(u, z, 0, 1, steps=30))


@pytest.mark.parametrize("L", [-1.5, 0.0, 0.7])
def test_the_stability_bound_is_attained(L: float) -> None:
    """(eq:fm-w2): u = Lx, v = u + δe^{L(1−t)}: both ends are Gaussian."""
    delta = 0.3

    def v(x: Tensor, t: Tensor) -> Tensor:
        return L * x + delta * (L * (1 - t)).exp()

    start = torch.zeros(1, 1)
    shift = float(flow_map(v, start, 0, 1, steps=100))
    t = torch.linspace(0, 1, 20_001)
    error = (delta * (L * (1 - t)).exp()).square()
    l2 = math.sqrt(float(torch.trapezoid(error, t)))
    assert shift == pytest.approx(stability(L) * l2, rel=1e-6)


# The model


def test_the_model_learns_two_points_of_the_line(rng: Generator) -> None:
    """After some hundred steps the density is near that of the mixture."""
    torch.manual_seed(0)
    law = line_mixture((-1.5, 1.5), 0.5)
    model = FlowMatching(TimeMLP(1, 32, 32), StandardNormal(1))
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(800):
        adam.param_groups[0]["lr"] = 1e-2 * (1 - step / 800)
        loss = model.loss(law.sample(256, rng=rng), rng=rng)
        adam.zero_grad()
        loss.backward()
        adam.step()
    grid = torch.linspace(-6, 6, 201)[:, None]
    p, q = law.log_prob(grid).exp(), model.log_prob(grid).exp().detach()
    dx = 12 / 200
    assert q.sum() * dx == pytest.approx(1.0, abs=1e-3)
    assert (p - q).abs().sum() * dx / 2 < 0.08  # total variation


def test_sampling_is_a_function_of_rng_steps_and_method() -> None:
    torch.manual_seed(0)
    model = FlowMatching(UNet(1, width=8, factors=(1, 2), heads=2),
                         StandardNormal(1, 6, 6))  # fmt: skip
    for p in model.v.leave[2].parameters():
        nn.init.normal_(p, std=0.1)
    state = torch.get_rng_state()
    a, b, c, d = (
        model.sample(3, rng=Generator().manual_seed(2), **options)
        for options in ({}, {"steps": 20}, {"steps": 5}, {"method": ode.EULER})
    )
    assert a.shape == (3, 1, 6, 6)
    assert not a.requires_grad
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), state), "the global state was used"
    assert 0 < (a - c).abs().max() < (a - d).abs().max()


def test_the_order_of_likelihood_in_the_steps(rng: Generator) -> None:
    """Fourth order, by the slope over four step counts."""
    law = mixture()
    x, u = law.sample(20, rng=rng), marginal_velocity(law)
    counts = torch.tensor([20.0, 40.0, 80.0])
    errors = torch.stack(
        [(flow_log_prob(u, x, StandardNormal(2), steps=int(k)) - law.log_prob(x))
         .abs().mean() for k in counts]
    )  # fmt: skip
    slopes = errors.log().diff() / counts.log().diff()
    assert -4.6 < slopes[-1] < -3.5


def test_any_base_will_do(rng: Generator) -> None:
    """Its log_prob enters the likelihood; a field of zero leaves it as it is."""
    base = mixture()
    net = MLP(3, 2)
    for p in net.parameters():
        nn.init.zeros_(p)

    class Still(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return net(torch.cat([x, t.expand(len(x), 1)], 1))

    model = FlowMatching(Still(), base)
    x = torch.randn(4, 2, generator=rng)
    torch.testing.assert_close(model.log_prob(x), base.log_prob(x))
