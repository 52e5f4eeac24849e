"""Noise that grows with time, and the way back (book/diffusion/sde.md)."""

import math

import pytest
import torch
from torch import Generator, Tensor

from pushforward import ode
from pushforward.diffusion import (
    SDE,
    VE,
    VP,
    SubVP,
    backward,
    denoiser_score,
    euler_maruyama,
    exact_denoiser,
    forward,
    marginal,
    marginal_score,
    ornstein_uhlenbeck,
    probability_flow,
    reverse_drift,
    time_grid,
)
from pushforward.distributions import Gaussian, Mixture, line_mixture

SDES = [VP(), VP(0.3, 2.0, 1.5), SubVP(), VE(0.1, 5.0), VE(0.02, 8.0, 2.0),
        ornstein_uhlenbeck(3.0)]  # fmt: skip
names = [f"{type(s).__name__}-{s.horizon}" for s in SDES]


@pytest.fixture(params=SDES, ids=names)
def sde(request: pytest.FixtureRequest) -> SDE:
    return request.param


def law() -> Mixture:
    cov = torch.tensor([[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.4]]])
    return Mixture(torch.tensor([[-1.0, 0.5], [1.2, -0.7]]), cov, torch.tensor([1, 2]))


def slope(f: object, t: Tensor) -> Tensor:
    """df/dt by automatic differentiation."""
    t = t.clone().requires_grad_()
    value = f(t)  # type: ignore[operator]
    if not value.requires_grad:
        return torch.zeros_like(t)
    return torch.autograd.grad(value.sum(), t)[0]


def test_the_five_functions_belong_together(sde: SDE) -> None:
    """α′ = f α and (σ²)′ = 2 f σ² + g², from α = 1 and σ = 0 (eq:sde-marginal)."""
    t = torch.linspace(0.01, 1, 50) * sde.horizon
    torch.testing.assert_close(slope(sde.alpha, t), sde.rate(t) * sde.alpha(t))
    v = lambda t: sde.sigma(t).square()
    right = 2 * sde.rate(t) * v(t) + sde.diffusion(t).square()
    torch.testing.assert_close(slope(v, t), right, rtol=1e-9, atol=1e-12)
    zero = torch.tensor(0.0)
    assert sde.alpha(zero) == 1
    assert sde.sigma(zero) == 0


def test_time_inverts_level(sde: SDE) -> None:
    t = torch.linspace(0.001, 1, 40) * sde.horizon
    torch.testing.assert_close(sde.time(sde.level(t)), t, rtol=1e-9, atol=1e-12)
    assert (sde.level(t).diff() > 0).all()


def test_spread_is_the_deviation_of_what_the_end_forgets() -> None:
    end = lambda sde: float(sde.sigma(torch.tensor(sde.horizon)))
    assert VE(0.1, 5.0).spread == pytest.approx(end(VE(0.1, 5.0)), rel=1e-12)
    assert VP().spread == 1.0 == pytest.approx(end(VP()), rel=1e-4)


def test_vp_is_half_of_song() -> None:
    """Song: dX = −½ b X dt + √b dB with b from 0.1 to 20, so α = e^{−½ ∫ b}."""
    t = torch.tensor(0.7)
    b = 0.1 + 19.9 * t
    integral = 0.1 * t + 19.9 * t**2 / 2
    torch.testing.assert_close(VP().rate(t), -b / 2)
    torch.testing.assert_close(VP().diffusion(t), b.sqrt())
    torch.testing.assert_close(VP().alpha(t), (-integral / 2).exp())
    torch.testing.assert_close(SubVP().sigma(t), 1 - (-integral).exp())
    g = (b * (1 - (-2 * integral).exp())).sqrt()
    torch.testing.assert_close(SubVP().diffusion(t), g)


def test_forward_walk_has_the_marginal_law(rng: Generator) -> None:
    sde = VP(0.5, 2.0)
    x = law().sample(40_000, rng=rng)
    *_, end = forward(sde, x, torch.linspace(0, 1, 101), rng=rng)
    truth = marginal(sde, law(), 1.0)
    se = (truth.cov().diagonal() / len(x)).sqrt()
    assert ((end.mean(0) - truth.mean()).abs() < 4 * se + 0.01).all()
    torch.testing.assert_close(end.T.cov(), truth.cov(), rtol=0.04, atol=0.02)


def test_marginal_score_is_the_gradient(sde: SDE, rng: Generator) -> None:
    for share in (0.0, 0.3, 1.0):
        t = share * sde.horizon
        x = marginal(sde, law(), t).sample(20, rng=rng).requires_grad_()
        truth = torch.autograd.grad(marginal(sde, law(), t).log_prob(x).sum(), x)[0]
        s = marginal_score(sde, law())(x.detach(), torch.tensor(t))
        torch.testing.assert_close(s, truth, rtol=1e-9, atol=1e-10)


def test_scores_take_a_time_for_each_row(sde: SDE, rng: Generator) -> None:
    x, t = torch.randn(6, 2, generator=rng), torch.linspace(0.1, 1, 6) * sde.horizon
    for s in (marginal_score(sde, law()), denoiser_score(sde, exact_denoiser(law()))):
        rows = torch.cat([s(x[i : i + 1], t[i]) for i in range(6)])
        torch.testing.assert_close(s(x, t[:, None]), rows, rtol=1e-9, atol=1e-9)


def test_a_denoiser_knows_the_score(sde: SDE, rng: Generator) -> None:
    x, t = torch.randn(30, 2, generator=rng), torch.tensor(0.4 * sde.horizon)
    s = denoiser_score(sde, exact_denoiser(law()))(x, t)
    torch.testing.assert_close(
        s, marginal_score(sde, law())(x, t), rtol=1e-8, atol=1e-9
    )


def densities(sde: SDE, x: Tensor, t: Tensor) -> Tensor:
    """p_t(x), differentiable in both."""
    p = line_mixture((-1.0, 2.0), 0.5, (1.0, 2.0))
    a, v = sde.alpha(t), sde.sigma(t).square()
    m, var = a * p.means[:, 0], a.square() * 0.25 + v
    n = (-(x[:, None] - m).square() / (2 * var)).exp() / (2 * math.pi * var).sqrt()
    return n @ p.log_weights.exp()


def test_fokker_planck(sde: SDE) -> None:
    """∂p/∂t = −∂(f x p)/∂x + ½ g² ∂²p/∂x² (eq:sde-fokker-planck)."""
    x = torch.linspace(-4, 4, 41).requires_grad_()
    t = torch.tensor(0.3 * sde.horizon, requires_grad=True)
    p = densities(sde, x, t)
    rate = torch.stack([torch.autograd.grad(q, t, retain_graph=True)[0] for q in p])
    diff = lambda y: torch.autograd.grad(y.sum(), x, create_graph=True)[0]
    right = -diff(sde.rate(t) * x * p) + sde.diffusion(t).square() / 2 * diff(diff(p))
    torch.testing.assert_close(rate, right, rtol=1e-9, atol=1e-11)


# The way back


def reversed_variance(
    sde: SDE, data: float, *, eta: float, pull: float | None = None
) -> float:
    """Variance at time 0 of the walk back from the law at T, by its own equation."""
    p = Gaussian(torch.zeros(1), torch.tensor([[data]]))
    drift = reverse_drift(sde, marginal_score(sde, p), eta=eta, pull=pull)

    def v(state: Tensor, t: Tensor) -> Tensor:  # forwards in time: minus the walk
        slope = drift(torch.ones(1, 1), t)[0, 0]  # the drift is linear
        return -(2 * slope * state + eta**2 * sde.diffusion(t).square())

    start = marginal(sde, p, sde.horizon).cov()
    return float(ode.adaptive(v, start, sde.horizon, 0.0, tol=1e-10).x)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
def test_every_eta_ends_in_the_data(sde: SDE, eta: float) -> None:
    """The law of the data for each η (eq:sde-family)."""
    assert reversed_variance(sde, 0.25, eta=eta) == pytest.approx(0.25, rel=1e-6)


def test_e6_the_drift_of_the_slides_is_too_weak() -> None:
    """β (x + score) with the noise √(2β): variance 1 + 2T instead of 1."""
    four = ornstein_uhlenbeck(4.0)
    assert reversed_variance(four, 1.0, eta=1, pull=0.5) == pytest.approx(9, rel=1e-6)
    wrong = reversed_variance(four, 0.25, eta=1, pull=0.5)
    assert wrong == pytest.approx(2.5965, abs=1e-3)
    assert reversed_variance(four, 0.25, eta=1) == pytest.approx(0.25, rel=1e-6)


def test_the_walk_back_ends_in_the_data(rng: Generator) -> None:
    """W₁ to the mixture of the slides; bands of the ledger."""
    p = line_mixture((-2.0, 2.0), 0.5)
    sde = ornstein_uhlenbeck(5.0)
    score, times = marginal_score(sde, p), time_grid(5.0, 0.01)
    z = torch.randn(20_000, 1, generator=rng)
    u = (torch.arange(20_000) + 0.5) / 20_000
    grid = torch.linspace(-6, 6, 20_001)
    cdf = (
        torch.special.erfc(-(grid[:, None] - p.means[:, 0]) / 0.5 / 2**0.5) / 2
    ).mean(1)
    exact = grid[torch.searchsorted(cdf, u).clamp(max=20_000)]
    for eta in (0.0, 1.0):
        *_, x = backward(sde, score, z, times, eta=eta, rng=rng)
        assert (x[:, 0].sort().values - exact).abs().mean() < 0.05


def test_only_anderson_has_the_joint_law(rng: Generator) -> None:
    """Two times, (eq:sde-two-times): the reversal has their joint law, the flow not.

    Cov(X_s, X_t) = (α_t / α_s) Var X_s for s < t.
    """
    sde, p = ornstein_uhlenbeck(2.0), Gaussian(torch.zeros(1), torch.tensor([[0.25]]))
    score, times = marginal_score(sde, p), torch.linspace(1.5, 0.5, 201)
    start = marginal(sde, p, 1.5).sample(40_000, rng=rng)
    v = float(marginal(sde, p, 0.5).cov())
    truth = math.exp(-1.0) * v
    covs = {}
    for eta in (0.0, 1.0):
        *_, end = backward(sde, score, start, times, eta=eta, rng=rng)
        covs[eta] = float((start * end).mean())
    assert covs[1.0] == pytest.approx(truth, abs=0.015)
    assert abs(covs[0.0] - truth) > 0.2


def test_density_along_the_probability_flow(sde: SDE, rng: Generator) -> None:
    """log p_0(x_0) = log p_T(x_T) + ∫ div v (eq:sde-change)."""
    v = probability_flow(sde, marginal_score(sde, law()))
    x = law().sample(5, rng=rng)

    def joint(state: Tensor, t: Tensor) -> Tensor:
        rate, div = ode.divergence(v, state[:, :2], t)
        return torch.cat([rate, div[:, None]], 1)

    start = torch.cat([x, torch.zeros(5, 1)], 1)
    end = ode.adaptive(joint, start, 0.0, sde.horizon, tol=1e-9).x.detach()
    p_T = marginal(sde, law(), sde.horizon)
    got = p_T.log_prob(end[:, :2]) + end[:, 2]
    torch.testing.assert_close(got, law().log_prob(x), rtol=1e-5, atol=1e-5)


def test_the_walk_of_a_known_equation() -> None:
    """x ← x + h b + √h c z, entry by entry."""
    rng = Generator().manual_seed(0)
    z = torch.randn(3, 2, generator=Generator().manual_seed(0))
    x = torch.arange(6.0).view(3, 2)
    walk = euler_maruyama(lambda x, t: t * x, lambda t: 3 * t, x,
                          torch.tensor([2.0, 1.75]), rng=rng)  # fmt: skip
    torch.testing.assert_close(next(walk), x + 0.25 * 2 * x + 0.5 * 6 * z)


def test_the_same_rng_walks_the_same_way() -> None:
    sde, x = VP(), torch.ones(4, 2)
    score, times = marginal_score(sde, law()), time_grid(1.0, 0.1)
    seed = lambda: Generator().manual_seed(3)
    walk = lambda: list(backward(sde, score, x, times, rng=seed()))[-1]
    state = torch.get_rng_state()
    assert walk().equal(walk())
    assert torch.get_rng_state().equal(state)


def test_single_precision(sde: SDE) -> None:
    t = torch.linspace(0, 1, 9, dtype=torch.float32) * sde.horizon
    for f in (sde.rate, sde.diffusion, sde.alpha, sde.sigma, sde.level, sde.time):
        assert f(t).dtype == torch.float32
        assert f(t).isfinite().all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: VP(beta_min=0.0), "beta_min must be positive"),
        (lambda: VP(horizon=-1.0), "horizon must be positive"),
        (lambda: VE(sigma_min=0.0), "sigma_min must be positive"),
        (lambda: VE(2.0, 1.0), "sigma_max must be above sigma_min"),
        (lambda: time_grid(1.0, 0.3), "must be an integer"),
        (lambda: time_grid(1.0, -0.1), "h must be positive"),
        (lambda: marginal(VP(), law(), 1.1), r"times must lie in \[0, 1.0\]"),
        (lambda: marginal_score(VP(), law())(torch.ones(1, 2), torch.tensor(-0.1)),
         r"times must lie in \[0, 1.0\]"),
        (lambda: next(forward(VP(), torch.ones(1, 2), torch.tensor([0.5, 0.2]))),
         "times must rise"),
        (lambda: next(backward(VP(), marginal_score(VP(), law()), torch.ones(1, 2),
                               torch.tensor([0.2, 0.5]))), "times must fall"),
        (lambda: next(backward(VP(), marginal_score(VP(), law()), torch.ones(1, 2),
                               torch.tensor([1.2, 0.5]))), "times must lie"),
        (lambda: next(backward(VP(), lambda x, t: x[:, :1], torch.ones(1, 2),
                               torch.tensor([1.0, 0.5]))), "score must return"),
        (lambda: probability_flow(VP(), lambda x, t: x.sum(1))(
            torch.ones(3, 2), torch.tensor(0.5)), "score must return"),
        (lambda: reverse_drift(VP(), marginal_score(VP(), law()), eta=-1.0),
         "eta must be at least 0"),
    ],
)  # fmt: skip
def test_bad_input(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]
