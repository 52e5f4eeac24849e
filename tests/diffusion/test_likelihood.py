"""book/diffusion/likelihood.md, where densities, scores and path laws are known.

Mixtures stay mixtures under the noise, so the flow's density has a truth; a score
that is affine in x makes every law Gaussian, so the bound and its slack have one.
"""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from torch import Generator, Tensor, nn

from pushforward.diffusion import (
    SDE,
    VE,
    VP,
    Score,
    SubVP,
    backward,
    exact_denoiser,
    marginal,
    marginal_score,
    ornstein_uhlenbeck,
    probability_flow,
)
from pushforward.diffusion.likelihood import (
    GreyDenoiser,
    LevelSteps,
    ScoreFlow,
    TimeLaw,
    UniformLogLevel,
    UniformTime,
    Whitened,
    euler_density,
    gaussian_law,
    girsanov,
    likelihood_weight,
    ode_log_prob,
    prior_log_prob,
    score_bound,
)
from pushforward.distributions import Gaussian, Mixture, StandardNormal
from pushforward.metrics import two_sample
from pushforward.nn import ResMLP
from pushforward.objectives import empirical, line_rule
from pushforward.ode import adaptive, signs_like

SDES = [VP(), SubVP(), VE(), ornstein_uhlenbeck(3.0)]
TIGHT = partial(adaptive, tol=1e-9)


evaluated = torch.no_grad()(ode_log_prob)


def line() -> Mixture:
    """Two unequal Gaussians on the line."""
    covs = torch.tensor([0.25, 0.09])[:, None, None]
    return Mixture(torch.tensor([[-2.0], [1.0]]), covs, torch.tensor([0.4, 0.6]))


def plane() -> Mixture:
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
    covs = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.2, -0.1], [-0.1, 0.4]]])
    return Mixture(means, covs)


def normal(m: float, v: float) -> Gaussian:
    return Gaussian(torch.tensor([m]), torch.tensor([[v]]))


def kl(p: Gaussian, q: Gaussian) -> Tensor:
    """KL of Gaussians on the line."""
    (a,), ((v,),) = p.means[0], p.covs[0]
    (b,), ((w,),) = q.means[0], q.covs[0]
    return ((w / v).log() + (v + (a - b) ** 2) / w - 1) / 2


def std_normal() -> Gaussian:
    return normal(0.0, 1.0)


# The density of the flow


@pytest.mark.parametrize(
    ("T", "low", "high"), [(3, 0.05, 0.09), (5, 5e-3, 1e-2), (8, 3e-4, 1e-3)]
)
def test_the_flow_has_the_density_of_a_mixture(
    T: float, low: float, high: float
) -> None:
    """Up to the mismatch of the prior, which is of the order e^−T."""
    sde, x = ornstein_uhlenbeck(float(T)), torch.linspace(-4, 3, 101)[:, None]
    found = evaluated(sde, marginal_score(sde, line()), x, solver=TIGHT)
    gap = (found.log_prob - line().log_prob(x)).abs().max()
    assert low < gap < high


@pytest.mark.parametrize("sde", SDES[:3], ids=["VP", "sub-VP", "VE"])
def test_prior_at_the_marginal_makes_the_density_exact(
    sde: SDE, rng: Generator
) -> None:
    """(eq:lik-ode), with p_T for π; at start > 0 it is the density of p_start."""
    law, start = plane(), 0.1
    x = marginal(sde, law, start).sample(30, rng=rng)
    found = evaluated(sde, marginal_score(sde, law), x, start=start, solver=TIGHT)
    last = marginal(sde, law, sde.horizon).log_prob(found.z)
    log_q = found.log_prob - prior_log_prob(sde, found.z) + last
    truth = marginal(sde, law, start).log_prob(x)
    torch.testing.assert_close(log_q, truth, atol=1e-6, rtol=0)


def test_the_flow_of_a_gaussian_score_has_a_gaussian_density() -> None:
    """The prior is wrong, the integrator is not: both have the same moments."""
    sde, x = ornstein_uhlenbeck(1.0), torch.linspace(-2, 4, 40)[:, None]
    score = marginal_score(sde, normal(1.2, 0.25))
    found = evaluated(sde, score, x, solver=TIGHT).log_prob
    exact = gaussian_law(sde, score, eta=0.0).log_prob(x)
    torch.testing.assert_close(found, exact, atol=1e-6, rtol=0)


def test_another_library_integrates_to_the_same_density() -> None:
    """SciPy's RK45, with a divergence by hand."""
    sde, law = VP(), line()
    score, x = marginal_score(sde, law), torch.linspace(-3, 2, 9)[:, None]

    def field(t: float, state: np.ndarray) -> np.ndarray:
        y, time = torch.tensor(state[:9])[:, None].requires_grad_(), torch.tensor(t)
        v = sde.rate(time) * y - sde.diffusion(time) ** 2 / 2 * score(y, time)
        (div,) = torch.autograd.grad(v.sum(), y)
        return np.concatenate([v.detach().numpy()[:, 0], div.numpy()[:, 0]])

    start = np.concatenate([x.numpy()[:, 0], np.zeros(9)])
    end = solve_ivp(field, (0.0, 1.0), start, rtol=1e-9, atol=1e-9).y[:, -1]
    theirs = -(end[:9] ** 2) / 2 - math.log(2 * math.pi) / 2 + end[9:]
    ours = evaluated(sde, score, x, solver=TIGHT).log_prob
    assert ours.numpy() == pytest.approx(theirs, abs=1e-6)


def test_hutchinson_is_right_in_the_mean(rng: Generator) -> None:
    sde, law = VP(), plane()
    score, x = marginal_score(sde, law), law.sample(1, rng=rng)
    many = x.expand(4000, 2)
    solver = LevelSteps(sde, 20)
    exact = evaluated(sde, score, x, solver=solver).log_prob
    eps = signs_like(many, rng=rng)
    found = evaluated(sde, score, many, solver=solver, eps=eps).log_prob
    assert abs(found.mean() - exact[0]) < 4 * found.std() / 4000**0.5
    assert found.std() > 0.01  # it is an estimate


def test_hutchinson_with_signs_is_exact_on_the_line(rng: Generator) -> None:
    sde, x = VP(), torch.randn(5, 1, generator=rng)
    score, solver = marginal_score(sde, line()), LevelSteps(sde, 10)
    eps = signs_like(x, rng=rng)
    a = evaluated(sde, score, x, solver=solver, eps=eps).log_prob
    b = evaluated(sde, score, x, solver=solver).log_prob
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("sde", SDES, ids=["VP", "sub-VP", "VE", "OU"])
def test_level_steps_have_order_four(sde: SDE) -> None:
    x, score = torch.linspace(-3, 2, 30)[:, None], marginal_score(sde, line())
    truth = evaluated(sde, score, x, start=1e-3, solver=TIGHT).log_prob
    gaps = []
    for n in (40, 80):
        solver = LevelSteps(sde, n)
        found = evaluated(sde, score, x, start=1e-3, solver=solver)
        assert found.evaluations == 4 * n
        gaps.append((found.log_prob - truth).abs().mean())
    assert gaps[1] < 1e-4
    assert 3.3 < math.log2(gaps[0] / gaps[1]) < 5.2


@pytest.mark.parametrize("sde", SDES, ids=["VP", "sub-VP", "VE", "OU"])
def test_level_steps_are_even_in_arsinh_and_end_where_they_should(sde: SDE) -> None:
    like = torch.zeros(())
    up = LevelSteps(sde, 12, bend=0.2).times(0.01, sde.horizon, like)
    down = LevelSteps(sde, 12, bend=0.2).times(sde.horizon, 0.01, like)
    torch.testing.assert_close(up, down.flip(0))
    assert (up[0], up[-1]) == (0.01, sde.horizon)
    gaps = torch.asinh(sde.level(up) / 0.2).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(12))


def test_a_row_does_not_depend_on_the_others(rng: Generator) -> None:
    sde, x = VP(), torch.randn(6, 2, generator=rng)
    score, solver = marginal_score(sde, plane()), LevelSteps(sde, 8)
    whole = evaluated(sde, score, x, solver=solver).log_prob
    alone = evaluated(sde, score, x[2:3], solver=solver).log_prob
    torch.testing.assert_close(whole[2:3], alone)


def test_one_flow_for_all_equations(rng: Generator) -> None:
    """In x/α, by levels, VP, sub-VP and VE have one flow for one denoiser."""
    law, x, top, low = plane(), torch.randn(8, 2, generator=rng), 20.0, 0.05
    ends, volumes = [], []
    ve = VE(0.01, math.hypot(0.01, top))
    for sde in (VP(beta_max=6.0), SubVP(beta_max=6.0), ve):
        reach = sde.time(torch.tensor(top)).item()
        start = sde.time(torch.tensor(low))
        D = exact_denoiser(law)

        def score(y: Tensor, t: Tensor, sde: SDE = sde, D: Score = D) -> Tensor:
            a, s = sde.alpha(t), sde.sigma(t)
            return (a * D(y / a, s / a) - y) / s**2

        state = evaluated(
            sde, score, sde.alpha(start) * x, start=start.item(),
            solver=lambda v, y, a, b, r=reach: adaptive(v, y, a, r, tol=1e-10),
        )  # fmt: skip
        shrink = sde.alpha(torch.tensor(reach)) / sde.alpha(start)
        ends.append(state.z / sde.alpha(torch.tensor(reach)))
        log_det = state.log_prob - prior_log_prob(sde, state.z)
        volumes.append(log_det - 2 * shrink.log())
    for other in (1, 2):
        torch.testing.assert_close(ends[0], ends[other], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(volumes[0], volumes[other], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(0, 1)}, r"^x must be finite real points"),
        ({"x": torch.zeros(3)}, r"^x must be finite real points"),
        ({"x": torch.full((2, 1), math.nan)}, r"^x must be finite"),
        ({"x": torch.zeros(2, 1, dtype=torch.long)}, r"^x must be finite real"),
        ({"start": 1.0}, r"^start must lie in \[0, 1.0\), got 1.0"),
        ({"start": -0.1}, r"^start must lie in"),
        ({"start": math.nan}, r"^start must lie in"),
        ({"eps": torch.zeros(2, 2)}, r"^eps must be \(2, 1\), got \(2, 2\)"),
    ],
)
def test_bad_questions_are_refused(change: dict, message: str) -> None:
    sde = VP()
    asked = {"x": torch.zeros(2, 1)} | change
    with pytest.raises(ValueError, match=message):
        evaluated(sde, marginal_score(sde, line()), **asked)


def test_bad_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^steps ≥ 1 and bend > 0 are needed, got 0"):
        LevelSteps(VP(), 0)
    with pytest.raises(ValueError, match=r"bend > 0 are needed, got 4 and -1"):
        LevelSteps(VP(), 4, bend=-1)


# Paths


def test_the_ratio_of_path_laws_is_that_of_gaussian_vectors(rng: Generator) -> None:
    """(eq:path-ratio): linear drifts make the path a Gaussian vector, known exactly."""
    a, b, g, h, n = -1.0, -0.4, 0.7, 0.1, 8
    times = torch.linspace(0, n * h, n + 1)

    def covariance(rate: float) -> Tensor:
        back = torch.eye(n) - (1 + h * rate) * torch.diag(torch.ones(n - 1), -1)
        return torch.linalg.inv(back.T @ back) * g**2 * h

    def mean(rate: float) -> Tensor:
        return torch.tensor([(1 + h * rate) ** (k + 1) for k in range(n)])

    P, Q = (torch.distributions.MultivariateNormal(mean(r), covariance(r))
            for r in (a, b))  # fmt: skip
    exact = torch.distributions.kl_divergence(P, Q)
    start = torch.ones(100_000, 1)
    drifts = (lambda x, t: a * x, lambda x, t: b * x)
    found = girsanov(drifts, lambda t: torch.tensor(g), start, times, rng=rng)
    for x, truth in (
        (found.energy, exact), (-found.log_ratio, exact),
        (found.log_ratio.exp(), torch.tensor(1.0)),
    ):  # fmt: skip
        assert abs(x.mean() - truth) < 4 * x.std() / len(x) ** 0.5
    again = Generator().manual_seed(3)
    few = girsanov(drifts, lambda t: torch.tensor(g), start[:50], times, rng=again)
    path, x, again = [], start[:50], Generator().manual_seed(3)
    for _ in range(n):
        x = x + h * a * x + h**0.5 * g * torch.randn(50, 1, generator=again)
        path.append(x)
    whole = torch.cat(path, 1)
    torch.testing.assert_close(few.log_ratio, Q.log_prob(whole) - P.log_prob(whole))
    torch.testing.assert_close(few.x, path[-1])


def test_paths_run_backwards_too(rng: Generator) -> None:
    """A constant u: energy T‖u‖²/2 for each path, whatever the order of times."""
    drifts = (lambda x, t: torch.zeros_like(x), lambda x, t: torch.ones_like(x))
    times = torch.tensor([2.0, 1.5, 0.0])
    found = girsanov(drifts, lambda t: torch.tensor(2.0), torch.zeros(5, 3), times,
                     rng=rng)  # fmt: skip
    torch.testing.assert_close(found.energy, torch.full((5,), 2 * 3 / 4 / 2))


# The bound


def pair() -> tuple[Gaussian, Gaussian]:
    """The law of the data, and the law whose score is used instead."""
    return normal(1.5, 0.25), normal(1.2, 0.25)


def test_the_bound_of_two_gaussians_by_another_quadrature() -> None:
    sde, (p, q) = ornstein_uhlenbeck(3.0), pair()
    found = score_bound(sde, marginal_score(sde, q), p)

    def gap(t: float) -> float:
        a, v = math.exp(-t), 0.25 * math.exp(-2 * t) + 1 - math.exp(-2 * t)
        return ((1.5 - 1.2) * a / v) ** 2  # ½ g² = 1, equal variances

    assert found.fit.item() == pytest.approx(quad(gap, 0, 3)[0], abs=1e-9)
    assert found.prior == pytest.approx(kl(marginal(sde, p, 3.0), std_normal()))
    assert found.total.item() == pytest.approx(0.18268, abs=5e-6)


def test_the_bound_holds_for_the_walk_and_fails_for_the_flow() -> None:
    """The two models of one score: .18089 ≤ .18268 < .21726."""
    sde, (p, q) = ornstein_uhlenbeck(3.0), pair()
    score = marginal_score(sde, q)
    bound = score_bound(sde, score, p).total
    walk, flow = (kl(p, gaussian_law(sde, score, eta=e)) for e in (1.0, 0.0))
    assert walk < bound < flow
    assert [walk.item(), flow.item()] == pytest.approx([0.18089, 0.21726], abs=5e-6)


def test_with_the_exact_score_the_flow_keeps_the_mismatch_of_the_prior() -> None:
    sde, p = ornstein_uhlenbeck(3.0), pair()[0]
    score = marginal_score(sde, p)
    walk, flow = (kl(p, gaussian_law(sde, score, eta=e)) for e in (1.0, 0.0))
    prior = kl(marginal(sde, p, 3.0), std_normal())
    assert flow.item() == pytest.approx(prior.item(), abs=1e-8)
    assert walk < 1e-5 < prior


@pytest.mark.parametrize(
    "sde", [ornstein_uhlenbeck(2.0), SubVP(0.5, 1.5, 2.0)], ids=["OU", "sub-VP"]
)
def test_what_the_bound_gives_away(sde: SDE) -> None:
    """KL = bound − ½∫g² E‖s − ∇log q_t‖² dt, with q_t from the moments' equation."""
    start, p = 0.1, normal(0.7, 0.3)
    other = marginal_score(sde, normal(1.2, 0.4))

    def score(x: Tensor, t: Tensor) -> Tensor:
        return 0.7 * other(x, t)  # no law has this score at all times

    bound = score_bound(sde, score, p, start=start, nodes=24)
    slack, nodes = torch.zeros(()), np.polynomial.legendre.leggauss(12)
    for u, w in zip(*nodes, strict=True):
        t = start + (sde.horizon - start) * (u + 1) / 2
        model = gaussian_law(sde, score, start=t, tol=1e-7)
        rule, time = line_rule(marginal(sde, p, t)), torch.tensor(t)
        gap = (score(rule.x, time) - model.score(rule.x)).square()[:, 0]
        weight = w * (sde.horizon - start) / 2 * sde.diffusion(time) ** 2 / 2
        slack = slack + weight * (rule.w @ gap)
    exact = kl(marginal(sde, p, start), gaussian_law(sde, score, start=start))
    assert (bound.total - slack).item() == pytest.approx(exact.item(), abs=2e-5)
    assert slack > 1e-3


def test_a_score_of_the_same_equation_makes_it_an_equality() -> None:
    """With π = q_T: KL(p_0‖q_0) = ½∫g² Fisher(p_t‖q_t) dt + KL(p_T‖q_T)."""
    sde, p = ornstein_uhlenbeck(2.0), line()
    q = Mixture(torch.tensor([[-1.5], [1.2]]), torch.full((2, 1, 1), 0.3))
    fit = score_bound(sde, marginal_score(sde, q), p).fit

    def divergence(t: float) -> Tensor:
        a, b = marginal(sde, p, t), marginal(sde, q, t)
        rule = line_rule(a)
        return rule.w @ (a.log_prob(rule.x) - b.log_prob(rule.x))

    torch.testing.assert_close(
        fit, divergence(0.0) - divergence(2.0), atol=1e-7, rtol=0
    )


def test_the_bound_in_the_plane_by_monte_carlo(rng: Generator) -> None:
    """At a shifted score the fit is ½∫g² ‖c‖² dt, by any rule."""
    sde, law = VP(), plane()
    exact, c = marginal_score(sde, law), torch.tensor([0.3, -0.4])
    found = score_bound(sde, lambda x, t: exact(x, t) + c, law, nodes=12,
                        rule=lambda p: empirical(p.sample(50, rng=rng)))  # fmt: skip
    total = float(sde.integral(torch.tensor(1.0)))  # ∫ ½ g² = ∫ β
    assert found.fit.item() == pytest.approx(total * 0.25, rel=1e-9)


def test_bad_bounds_are_refused() -> None:
    sde = VP()
    with pytest.raises(ValueError, match=r"^start in \[0, 1.0\) and nodes ≥ 1"):
        score_bound(sde, marginal_score(sde, line()), line(), start=1.0)
    with pytest.raises(ValueError, match=r"got 0\.0 and 0"):
        score_bound(sde, marginal_score(sde, line()), line(), nodes=0)


def test_the_moments_of_a_walk_by_simulation(rng: Generator) -> None:
    sde = ornstein_uhlenbeck(2.0)
    score = marginal_score(sde, pair()[1])
    law = gaussian_law(sde, score, eta=0.7)
    times = torch.linspace(2.0, 0.0, 401)
    *_, x = backward(sde, score, torch.randn(20_000, 1, generator=rng), times, eta=0.7,
                     rng=rng)  # fmt: skip
    assert abs(x.mean() - law.mean()) < 4 * x.std() / len(x) ** 0.5 + 2e-3
    assert float(x.var()) == pytest.approx(float(law.cov()), rel=0.05)


def test_the_density_of_an_euler_walk_is_that_of_its_moments() -> None:
    """For an affine score the Euler walk is Gaussian, with moments by recursion."""
    sde = ornstein_uhlenbeck(2.0)
    score = marginal_score(sde, pair()[1])
    grid, times = torch.linspace(-8, 8, 801)[:, None], torch.linspace(2.0, 0.0, 41)
    m, v = 0.0, 1.0
    for t, end in pairwise(times):
        h = t - end
        at0, at1 = score(torch.tensor([[0.0], [1.0]]), t)[:, 0]
        slope = 1 + h * (1 + 2 * (at1 - at0))
        m, v = slope * m + h * 2 * at0, slope**2 * v + 2 * h
    exact = normal(float(m), float(v)).log_prob(grid).exp()
    found = euler_density(sde, score, grid, times)
    torch.testing.assert_close(found, exact, atol=1e-9, rtol=0)


# Weights and times


@pytest.mark.parametrize("sde", SDES, ids=["VP", "sub-VP", "VE", "OU"])
def test_the_weight_is_the_rate_of_the_log_level(sde: SDE) -> None:
    """(eq:lik-rate): g²/σ² = d/dt log(σ²/α²), by automatic differentiation."""
    t = torch.linspace(0.01, 1, 20) * sde.horizon
    rate = torch.func.vmap(torch.func.grad(lambda s: 2 * sde.level(s).log()))(t)
    torch.testing.assert_close(likelihood_weight(sde, t), rate)


@pytest.mark.parametrize("sde", SDES, ids=["VP", "sub-VP", "VE", "OU"])
@pytest.mark.parametrize("law", [UniformTime, UniformLogLevel])
def test_a_law_of_times_is_its_density(sde: SDE, law: type[TimeLaw]) -> None:
    """The density is one over the slope of the quantile, and has mass one."""
    times, u = law(sde, 0.01), torch.linspace(0.02, 0.98, 15)
    slope = torch.func.vmap(torch.func.grad(times.quantile))(u)
    torch.testing.assert_close(times.density(times.quantile(u)), 1 / slope)
    ends = times.quantile(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(ends, torch.tensor([0.01, sde.horizon]))
    mass = quad(lambda t: float(times.density(torch.tensor(t))), 0.01, sde.horizon,
                limit=200)[0]  # fmt: skip
    assert mass == pytest.approx(1, abs=1e-6)


def test_times_of_importance_sampling_on_vp_by_hand() -> None:
    """On VP ∫ g²/σ² = log(e^{2B} − 1), whose inverse is a root of a quadratic."""
    sde, u = VP(), torch.linspace(0, 1, 7)

    def antiderivative(t: Tensor) -> Tensor:
        return (torch.expm1(2 * sde.integral(t))).log()

    t = UniformLogLevel(sde, 0.02).quantile(u)
    low, high = antiderivative(torch.tensor([0.02, 1.0]))
    torch.testing.assert_close(antiderivative(t), low + (high - low) * u)


def test_a_batch_spreads_its_times(rng: Generator) -> None:
    times, x = UniformTime(VP(), 0.1), torch.zeros(10, 1, 2, 2)
    t = times.sample(x, rng=rng)
    assert t.shape == (10, 1, 1, 1)
    assert torch.equal(((t.flatten() - 0.1) / 0.9 * 10).floor().sort().values,
                       torch.arange(10.0))  # fmt: skip
    first = torch.stack([times.sample(x, rng=rng)[0, 0, 0, 0] for _ in range(2000)])
    assert abs(first.mean() - 0.55) < 4 * 0.9 / 12**0.5 / 2000**0.5  # each is uniform


def test_bad_times_are_refused() -> None:
    for t in (0.0, -1.0, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"^t must lie in \(0, 1.0\], got"):
            likelihood_weight(VP(), torch.tensor([0.5, t]))
        with pytest.raises(ValueError, match=r"^t must lie in"):
            UniformTime(VP(), 0.1).density(torch.tensor(t))
        with pytest.raises(ValueError, match=r"^start must lie in \(0, 1.0\), got"):
            UniformLogLevel(VP(), t)


# The model


def gauss_model(d: int = 2, **options: object) -> tuple[ScoreFlow, Gaussian]:
    """A model that knows a Gaussian law exactly: its network is still."""
    cov = torch.tensor([[0.5, 0.2], [0.2, 0.3]])[:d, :d]
    law = Gaussian(torch.tensor([0.4, -0.3])[:d], cov)
    net = ResMLP(d, 16, 1)
    return ScoreFlow(Whitened(net, law), StandardNormal(d), VP(), **options), law


def shaken(model: ScoreFlow, scale: float = 0.15) -> ScoreFlow:
    rng = Generator().manual_seed(1)
    with torch.no_grad():
        for w in model.denoiser.parameters():
            w.add_(scale * torch.randn(w.shape, generator=rng))
    return model


def test_a_still_network_leaves_the_exact_gaussian_denoiser(rng: Generator) -> None:
    """(eq:lik-whitened) beside the regression of a Gaussian."""
    model, law = gauss_model()
    x, s = torch.randn(6, 2, generator=rng), 0.1 + torch.rand(6, 1, generator=rng)
    torch.testing.assert_close(model.denoiser(x, s), exact_denoiser(law)(x, s))


def test_what_the_network_sees_and_owes_has_variance_one(rng: Generator) -> None:
    """At x = x₀ + σz its input is white, and so is the answer it should give."""
    model, law = gauss_model()
    white = model.denoiser
    n, s = 100_000, torch.tensor(0.6)
    clean = law.sample(n, rng=rng)
    x = clean + s * torch.randn(n, 2, generator=rng)
    seen: list[Tensor] = []

    class Ear(nn.Module):
        def forward(self, y: Tensor, t: Tensor) -> Tensor:
            seen.append(y)
            assert torch.equal(t, s.log().view(1, 1) / 4)
            return torch.ones_like(y)

    plain = white(x, s)
    white.net = Ear()
    unit = (white(x, s) - plain) @ white.U  # what an answer of one adds
    owed = (clean - plain) @ white.U / unit
    for y in (seen[0], owed):
        torch.testing.assert_close(torch.cov(y.T), torch.eye(2), atol=0.02, rtol=0)


def test_the_model_of_a_gaussian_is_that_gaussian_with_the_first_noise(
    rng: Generator,
) -> None:
    """Density and samples: N(m, Σ + level² I), up to the prior's mismatch."""
    model, law = gauss_model(level=0.3)
    exact = Gaussian(law.means[0], law.covs[0] + 0.3**2 * torch.eye(2))
    x = exact.sample(400, rng=rng)
    torch.testing.assert_close(model.log_prob(x), exact.log_prob(x), atol=0.02, rtol=0)
    assert two_sample(model.sample(400, rng=rng), x, permutations=99, rng=rng).p > 0.01
    blunt = (law.log_prob(x) - exact.log_prob(x)).abs().mean()
    assert blunt > 0.1  # that the noise counts is seen


@pytest.mark.parametrize("sde", SDES[:3], ids=["VP", "sub-VP", "VE"])
@pytest.mark.parametrize("level", [0.01, 0.4])
def test_the_density_has_mass_one_and_is_that_of_the_samples(
    sde: SDE, level: float
) -> None:
    """Whatever the network and the first level: one law, on a grid of the line."""
    torch.manual_seed(0)
    one = Whitened(ResMLP(1, 16, 1), normal(0.4, 0.5))
    model = shaken(ScoreFlow(one, StandardNormal(1), sde, level=level))
    x = torch.linspace(-8, 8, 801)[:, None]
    with torch.no_grad():
        p = model.log_prob(x).exp()
    assert p.sum() * 0.02 == pytest.approx(1, abs=1e-4)
    drawn = model.sample(4000, rng=Generator().manual_seed(0))
    for f in (lambda y: y, torch.square, torch.tanh, lambda y: (3 * y).sin()):
        values = f(drawn)[:, 0]
        exact = (p * f(x)[:, 0]).sum() * 0.02
        assert abs(values.mean() - exact) < 4 * values.std() / 4000**0.5


def test_the_loss_at_its_own_times_and_noise(rng: Generator) -> None:
    """(eq:lik-loss) by hand; under g² and log-levels its share is constant."""
    model, x = shaken(gauss_model()[0]), torch.randn(8, 2, generator=rng)
    loss = model.loss(x, rng=Generator().manual_seed(5))
    again = Generator().manual_seed(5)
    t = model.times.sample(x, rng=again)
    eps = torch.randn(8, 2, generator=again)
    noisy = model.sde.perturb(x, t, eps)
    guess = -model.sde.sigma(t) * model.score(noisy, t)
    each = (guess - eps).square().sum(1) * math.log(model.top / model.level)
    torch.testing.assert_close(loss, each.mean())


def test_any_law_of_times_gives_the_same_mean_loss(rng: Generator) -> None:
    model, x = shaken(gauss_model(level=0.2)[0]), torch.zeros(60_000, 2)
    x = x + torch.tensor([0.5, 0.1])
    found = []
    for times in (UniformLogLevel, UniformTime):
        model.times = times(model.sde, model.start)
        with torch.no_grad():
            parts = [model.loss(p, rng=rng) for p in x.split(3000)]
        found.append(torch.stack(parts))
    gap, se = found[0].mean() - found[1].mean(), (found[0].var() + found[1].var()) / 20
    assert abs(gap) < 4 * se.sqrt()


def test_the_bound_is_exact_in_the_mean_where_the_score_is(rng: Generator) -> None:
    """E bound = entropy of the noised law + KL(p_T‖π) (eq:lik-datum)."""
    model, law = gauss_model(level=0.3)
    noised = Gaussian(law.means[0], law.covs[0] + 0.3**2 * torch.eye(2))
    last = marginal(model.sde, law, 1.0)
    sd = last.covs[0]
    prior = (sd.trace() + last.means[0].square().sum() - 2 - torch.logdet(sd)) / 2
    entropy = torch.logdet(2 * math.pi * math.e * noised.covs[0]) / 2
    with torch.no_grad():
        found = model.bound(law.sample(100_000, rng=rng), rng=rng)
    se = found.std() / len(found) ** 0.5
    assert abs(found.mean() - entropy - prior) < 4 * se
    assert se < 0.03


@pytest.mark.parametrize("sde", [VP(beta_max=1.0), SubVP(beta_max=1.0), VE()])
def test_the_price_of_the_start_is_that_of_two_gaussians(
    sde: SDE, rng: Generator
) -> None:
    model = ScoreFlow(ResMLP(3, 8, 1), StandardNormal(3), sde)
    x, end = torch.randn(4, 3, generator=rng), torch.tensor(sde.horizon)
    a, s = sde.alpha(end), sde.sigma(end).expand(3)
    normal_law = torch.distributions.Normal
    exact = torch.distributions.kl_divergence(
        normal_law(a * x, s), normal_law(torch.zeros(3), sde.spread)
    )
    torch.testing.assert_close(model.prior_kl(x), exact.sum(1))


def test_the_bound_of_each_datum_holds(rng: Generator) -> None:
    """A wrong Gaussian score: −E log q(x + level Z) of the walk is known."""
    sde, level = VP(), 0.2
    wrong = Whitened(ResMLP(1, 16, 1), normal(0.9, 0.2))
    model = ScoreFlow(wrong, StandardNormal(1), sde, level=level)
    with torch.no_grad():
        q = gaussian_law(sde, model.score, start=model.start)
    a = model.level_scale()
    m, v = float(q.mean()) / a, float(q.cov()) / a**2
    for x in (-1.0, 0.5, 2.0):
        nll = (math.log(2 * math.pi * v) + ((x - m) ** 2 + level**2) / v) / 2
        with torch.no_grad():
            found = model.bound(torch.full((20_000, 1), x), rng=rng)
        se = found.std() / len(found) ** 0.5
        assert nll < found.mean() + 4 * se
        assert found.mean() - nll < 0.5 + 4 * se  # and it is no bound of straw


def test_images_are_data_too(rng: Generator) -> None:
    law = Gaussian(torch.zeros(8), 0.2 * torch.eye(8))
    model = shaken(ScoreFlow(Whitened(ResMLP(8, 16, 1), law),
                             StandardNormal(2, 2, 2), VP()))  # fmt: skip
    x = model.sample(3, rng=rng)
    assert x.shape == (3, 2, 2, 2)
    eps = signs_like(x, rng=rng)
    with torch.no_grad():
        exact, guess = model.log_prob(x), model.log_prob(x, eps=eps)
    assert exact.shape == guess.shape == model.bound(x, rng=rng).shape == (3,)
    assert (exact - guess).abs().max() < 20


def test_samples_come_from_the_flow_of_the_score(rng: Generator) -> None:
    model = shaken(gauss_model(level=0.1)[0])
    state = torch.get_rng_state()
    x = model.sample(5, rng=Generator().manual_seed(2))
    assert torch.equal(torch.get_rng_state(), state)
    z = torch.randn(5, 2, generator=Generator().manual_seed(2))
    v = probability_flow(model.sde, model.score)
    with torch.no_grad():
        end = adaptive(v, z, 1.0, model.start, tol=1e-9).x
    torch.testing.assert_close(x, end / model.level_scale(), atol=1e-4, rtol=0)


def test_bad_models_are_refused() -> None:
    for level in (0.0, -1.0, 1e6, math.nan):
        with pytest.raises(ValueError, match=r"^level must lie in \(0, 152"):
            gauss_model(level=level)
    with pytest.raises(ValueError, match=r"^times must start at .* or later"):
        gauss_model(level=0.3, times=UniformTime(VP(), 1e-4))


def test_bad_data_are_refused() -> None:
    model = gauss_model()[0]
    for x in (torch.zeros(0, 2), torch.zeros(3, 5), torch.zeros(3, 2).float()):
        with pytest.raises(ValueError, match=r"^x must"):
            model.log_prob(x)
        with pytest.raises(ValueError, match=r"^x must"):
            model.bound(x)


# Grey levels


def grey(**options: object) -> tuple[ScoreFlow, Tensor]:
    """Two independent pixels of three levels, whose frequencies are known."""
    prior = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]])
    denoiser = GreyDenoiser(ResMLP(6, 16, 1), prior.log())
    return ScoreFlow(denoiser, StandardNormal(2), VP(), **options), prior


def lattice(prior: Tensor, variance: float) -> Mixture:
    """The law of these pixels with Gaussian noise, as nine Gaussians."""
    levels = torch.tensor([0.0, 0.5, 1.0])
    weights = torch.cartesian_prod(*prior).prod(1)
    means = torch.cartesian_prod(levels, levels)
    return Mixture(means, (variance * torch.eye(2)).expand(9, 2, 2), weights)


@pytest.mark.parametrize("sigma", [0.01, 0.2, 1.0, 30.0])
def test_a_still_network_leaves_the_exact_denoiser_of_the_pixels(
    sigma: float, rng: Generator
) -> None:
    """(eq:lik-grey), beside x + σ² ∇log p_σ of the nine Gaussians."""
    model, prior = grey()
    x = torch.cat([torch.rand(20, 2, generator=rng) * (1 + sigma)])
    exact = x + sigma**2 * lattice(prior, sigma**2).score(x)
    found = model.denoiser(x, torch.tensor(sigma))
    torch.testing.assert_close(found, exact, atol=1e-9, rtol=1e-9)


def test_the_network_tilts_the_odds(rng: Generator) -> None:
    model, prior = grey()
    x, s = torch.rand(4, 2, generator=rng), torch.tensor(0.4)
    before = model.denoiser.log_posterior(x, s)
    seen: list[Tensor] = []

    class Tilt(nn.Module):
        def forward(self, told: Tensor, t: Tensor) -> Tensor:
            seen.extend([told, t])
            return torch.tensor([0.0, 1.0, 0.0]).repeat(len(told), 2)

    model.denoiser.net = Tilt()
    after = model.denoiser.log_posterior(x, s)
    gained = (after - before)[..., 1] - (after - before)[..., 0]
    torch.testing.assert_close(gained, torch.ones(4, 2))
    told = (before.exp() - prior).flatten(1) * 3**0.5
    torch.testing.assert_close(seen[0], told)
    torch.testing.assert_close(seen[1], s.log().view(1) / 4)


def test_noise_with_a_decoder_gives_the_mass_of_a_grey_image(rng: Generator) -> None:
    """(eq:lik-decoder): with exact pieces it is log P(x), draw by draw."""
    model, prior = grey()
    x = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 2)
    truth = torch.cartesian_prod(*prior).prod(1).log()
    for level in (0.05, 0.3):
        y, log_fill = model.denoiser.fill(x, level, rng=rng)
        assert 0 < (y - x).abs().max() < 5 * level
        log_q = lattice(prior, level**2).log_prob(y)
        torch.testing.assert_close(log_q - log_fill, truth)


def test_the_masses_of_all_grey_images_sum_to_one(rng: Generator) -> None:
    """By the flow of the model, up to the mismatch of the prior."""
    model, _ = grey(level=0.1, solver=LevelSteps(VP(), 60))
    x = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 2)
    y, log_fill = model.denoiser.fill(x, model.level, rng=rng)
    with torch.no_grad():
        mass = (model.log_prob(y) - log_fill).exp().sum()
    assert mass == pytest.approx(1, abs=0.03)


def test_values_that_are_no_grey_levels_are_refused() -> None:
    model, _ = grey()
    for x in (0.4, -0.5, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"^x must hold multiples of 1/2 in"):
            model.denoiser.fill(torch.full((2, 2), x), 0.1)
