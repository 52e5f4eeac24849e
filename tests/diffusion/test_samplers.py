"""book/diffusion/samplers.md, with denoisers that are known exactly.

For one Gaussian the flow, and even the law that each sampler really draws, have
closed forms; for mixtures there are exact samples.  Every method is also written a
second time, as its paper writes it.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Generator, Tensor

from pushforward import ode
from pushforward.diffusion import (
    SDE,
    VE,
    VP,
    Counted,
    Denoiser,
    Sampler,
    SubVP,
    backward,
    churn,
    ddim,
    denoiser_score,
    euler,
    exact_denoiser,
    exponential,
    guided,
    heun,
    karras_grid,
    marginal_score,
    multistep,
    ornstein_uhlenbeck,
    probability_flow,
    time_grid,
)
from pushforward.distributions import Gaussian, Mixture, line_mixture, ring
from pushforward.metrics import two_sample

FLOWS = [euler, heun, exponential, multistep]
NOISY = {"ddim-1": partial(ddim, eta=1.0), "ddim-half": partial(ddim, eta=0.5),
         "churn": partial(churn, amount=20.0)}  # fmt: skip
EVERY: list[Callable[..., Tensor]] = [*FLOWS, ddim, partial(churn, amount=20.0)]


def law() -> Mixture:
    return ring(8, 0.65, 0.1)


def normal(c: float) -> Denoiser:
    """The denoiser of N(0, c² I), in one line."""
    return lambda x, sigma: c**2 / (c**2 + sigma.square()) * x


def starts(n: int, d: int, rng: Generator, sigma: float = 80.0) -> Tensor:
    return sigma * torch.randn(n, d, generator=rng)


def to_min(steps: int, rho: float = 7.0) -> Tensor:
    """The default grid down to σ_min, without the last step to 0."""
    return karras_grid(steps, rho=rho)[:-1]


# The equation


@pytest.mark.parametrize("sde", [VP(), VP(0.3, 4.0, 2.0), SubVP(), VE(0.01, 9.0)])
def test_every_probability_flow_is_the_same_equation(sde: SDE, rng: Generator) -> None:
    """(eq:edm-ode): x_t/α_t at level σ_t/α_t, by another integrator in time."""
    T, t = sde.horizon, 0.01 * sde.horizon
    v = probability_flow(sde, marginal_score(sde, law()))
    x = sde.spread * torch.randn(20, 2, generator=rng)
    end = ode.adaptive(v, x, T, t, tol=1e-8).x
    high, low, a, b = (
        f(torch.tensor(u)) for f in (sde.level, sde.alpha) for u in (T, t)
    )
    sigmas = torch.logspace(float(high.log10()), float(low.log10()), 600)
    found = exponential(exact_denoiser(law()), x / a, sigmas)
    torch.testing.assert_close(found, end / b, atol=3e-4, rtol=0)


def test_the_flow_of_a_gaussian_has_a_closed_form(rng: Generator) -> None:
    """(x − m)/√(c² + σ²) does not change."""
    m, c = torch.tensor([0.3, -0.2]), 0.4
    D = exact_denoiser(Gaussian(m, c**2 * torch.eye(2)))
    x, s = starts(30, 2, rng), to_min(1500)
    shrink = ((c**2 + s[-1] ** 2) / (c**2 + s[0] ** 2)).sqrt()
    found = exponential(D, x, s)
    torch.testing.assert_close(found, m + shrink * (x - m), atol=1e-5, rtol=0)


def test_a_step_slides_towards_a_mean_of_the_denoiser(rng: Generator) -> None:
    """(eq:sampler-average), D̄ by quadrature along the exact flow."""
    c, s, e = 0.7, 2.0, 0.3
    x = starts(10, 1, rng, s)
    u = torch.linspace(1 / s, 1 / e, 20_001)
    on_flow = x * ((c**2 + 1 / u**2) / (c**2 + s**2)).sqrt()  # (n, nodes)
    D = c**2 / (c**2 + 1 / u**2) * on_flow
    mean = torch.trapezoid(D, u, dim=1)[:, None] / (1 / e - 1 / s)
    exact = x * math.sqrt((c**2 + e**2) / (c**2 + s**2))
    torch.testing.assert_close(mean + e / s * (x - mean), exact, atol=1e-7, rtol=0)


# The grid


def test_the_grid_is_even_in_the_root(rng: Generator) -> None:
    """(eq:edm-grid) as the paper prints it."""
    N, low, top, rho = 18, 0.002, 80.0, 7.0
    paper = [(top ** (1 / rho) + i / (N - 1) * (low ** (1 / rho) - top ** (1 / rho)))
             ** rho for i in range(N)]  # fmt: skip
    torch.testing.assert_close(karras_grid(N), torch.tensor([*paper, 0.0]))
    assert karras_grid(3, rho=1.0)[1] == pytest.approx((80 + 0.002) / 2)
    geometric = karras_grid(3, rho=1e6)[1]
    assert geometric == pytest.approx(math.sqrt(80 * 0.002), rel=1e-4)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("a", [2.0, 3.0])
def test_the_rho_that_makes_all_steps_err_alike(p: int, a: float) -> None:
    """Spectrum k^{−a}, order p: ρ = (p + 1) a/(a − 1), and no other."""
    c2 = torch.arange(1, 200_001.0) ** -a
    method = {1: euler, 2: heun}[p]
    D: Denoiser = lambda x, s: c2 / (c2 + s.square()) * x

    def slope(rho: float) -> float:
        top = karras_grid(4001, sigma_max=1.0, sigma_min=1e-4, rho=rho)[:-1]
        s, errors = top[(top < 0.05) & (top > 1e-3)][::100], []
        for at in s:
            i = int((top == at).nonzero())
            x = (c2 + at**2).sqrt()[None]  # one deviation in each coordinate
            exact = (c2 + top[i + 1] ** 2).sqrt()[None]
            errors.append((method(D, x, top[i : i + 2]) - exact).norm())
        y, u = torch.stack(errors).log(), s.log()
        return float(
            ((y - y.mean()) * (u - u.mean())).sum() / (u - u.mean()).square().sum()
        )

    rho = (p + 1) * a / (a - 1)
    assert slope(rho) == pytest.approx(0.0, abs=0.06)
    other = 2 * rho
    predicted = (p + 1) * (1 - 1 / other) - p - 1 / a
    assert slope(other) == pytest.approx(predicted, abs=0.06)
    assert predicted > 0.2


# Each method, written a second time


@pytest.mark.parametrize(("ours", "tableau"), [(euler, ode.EULER), (heun, ode.HEUN)])
def test_steps_are_those_of_runge_and_kutta(
    ours: Sampler, tableau: ode.Tableau, rng: Generator
) -> None:
    """(eq:sampler-heun): two slides are a mean of two slopes."""
    D, x, s = exact_denoiser(law()), starts(40, 2, rng), to_min(9)
    plain = ode.integrate(lambda x, s: (x - D(x, s)) / s, x, s, tableau)
    torch.testing.assert_close(ours(D, x, s), plain, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_that_of_its_paper(eta: float) -> None:
    """(eq:sampler-ddim) as Song, Meng and Ermon write it, in ᾱ and ε."""
    D, s = exact_denoiser(law()), to_min(12)
    x = starts(30, 2, torch.Generator().manual_seed(1))
    found = ddim(D, x, s, eta=eta, rng=torch.Generator().manual_seed(2))
    rng, bar = torch.Generator().manual_seed(2), 1 / (1 + s.square())  # ᾱ
    y = bar[0].sqrt() * x
    for now, then, level in zip(bar[:-1], bar[1:], s, strict=False):
        eps = (y / now.sqrt() - D(y / now.sqrt(), level)) / level
        sd = eta * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
        mean = (y - (1 - now).sqrt() * eps) / now.sqrt()
        y = then.sqrt() * mean + (1 - then - sd**2).sqrt() * eps
        if eta:
            y = y + sd * torch.randn(y.shape, generator=rng)
    torch.testing.assert_close(found, y / bar[-1].sqrt(), atol=1e-9, rtol=1e-9)


def test_euler_is_ddim_without_noise(rng: Generator) -> None:
    D, x, s = exact_denoiser(law()), starts(30, 2, rng), karras_grid(9)
    torch.testing.assert_close(euler(D, x, s), ddim(D, x, s, eta=0.0))


def test_multistep_is_that_of_its_paper(rng: Generator) -> None:
    """(eq:sampler-2m) as Lu et al. write it, in α, σ, λ of a VP process."""
    D, s = exact_denoiser(law()), to_min(12)
    x = starts(30, 2, rng)
    alpha = (1 + s.square()).rsqrt()
    sigma, lam = alpha * s, -s.log()
    y, old = alpha[0] * x, x
    for i in range(len(s) - 1):
        d = D(y / alpha[i], s[i])
        h, mean = lam[i + 1] - lam[i], d
        if i:
            r = (lam[i] - lam[i - 1]) / h
            mean = (1 + 1 / (2 * r)) * d - 1 / (2 * r) * old
        y = sigma[i + 1] / sigma[i] * y - alpha[i + 1] * torch.expm1(-h) * mean
        old = d
    found = multistep(D, x, s)
    torch.testing.assert_close(found, y / alpha[-1], atol=1e-9, rtol=1e-9)


def test_exponential_is_exact_where_the_denoiser_is_linear_in_log_sigma() -> None:
    """(eq:sampler-exponential), for steps of any length."""
    D: Denoiser = lambda x, sigma: (0.3 - 0.8 * sigma.log()).expand_as(x)
    x, s = torch.tensor([[5.0], [-2.0]]), torch.tensor([50.0, 1.0, 0.9, 0.001])
    fine = torch.logspace(math.log10(50), -3, 4000)
    found, exact = exponential(D, x, s), heun(D, x, fine)
    torch.testing.assert_close(found, exact, atol=1e-4, rtol=0)
    assert (heun(D, x, s) - exact).abs().min() > 1.0


def test_churn_is_the_algorithm_of_its_paper() -> None:
    """(eq:sampler-churn): Algorithm 2 line by line."""
    D, s = exact_denoiser(law()), karras_grid(10)
    x = starts(30, 2, torch.Generator().manual_seed(1))
    amount, low, high, inflate = 3.0, 0.05, 20.0, 1.1
    found = churn(D, x, s, amount, window=(low, high), inflate=inflate,
                  rng=torch.Generator().manual_seed(2))  # fmt: skip
    rng = torch.Generator().manual_seed(2)
    for t, end in pairwise(s):
        gamma = min(amount / 10, math.sqrt(2) - 1) if low <= t <= high else 0.0
        hat = t + gamma * t
        if gamma:
            eps = inflate * torch.randn(x.shape, generator=rng)
            x = x + (hat**2 - t**2).sqrt() * eps
        d = (x - D(x, hat)) / hat
        y = x + (end - hat) * d
        if end > 0:
            y = x + (end - hat) * (d + (y - D(y, end)) / end) / 2
        x = y
    torch.testing.assert_close(found, x, atol=1e-9, rtol=1e-9)


def test_churn_without_noise_is_heun(rng: Generator) -> None:
    D, x, s = exact_denoiser(law()), starts(30, 2, rng), karras_grid(9)
    torch.testing.assert_close(churn(D, x, s, 0.0), heun(D, x, s))
    outside = churn(D, x, s, 30.0, window=(100.0, 200.0))
    torch.testing.assert_close(outside, heun(D, x, s))


# Orders


def order(method: Sampler, D: Denoiser, x: Tensor, end: Tensor, steps: int) -> float:
    """log₂ of the ratio of root mean square errors with N and 2N steps."""
    errors = [(method(D, x, to_min(N)) - end).square().mean().sqrt()
              for N in (steps, 2 * steps)]  # fmt: skip
    return float((errors[0] / errors[1]).log2())


@pytest.mark.parametrize(
    ("method", "claimed"), [(euler, 1), (heun, 2), (exponential, 2), (multistep, 2)]
)
def test_the_order_on_one_gaussian(
    method: Sampler, claimed: int, rng: Generator
) -> None:
    x, c = starts(20, 1, rng), 0.5
    end = x * math.sqrt((c**2 + 0.002**2) / (c**2 + 80.0**2))
    assert order(method, normal(c), x, end, 200) == pytest.approx(claimed, abs=0.15)


def test_the_order_on_eight_gaussians(rng: Generator) -> None:
    D, x = exact_denoiser(law()), starts(200, 2, rng)
    end = exponential(D, x, to_min(1000))
    found = {m.__name__: order(m, D, x, end, 100) for m in FLOWS}
    wanted = {"euler": 1.0, "heun": 2.0, "exponential": 2.0, "multistep": 2.0}
    assert found == pytest.approx(wanted, abs=0.15)


def test_the_weight_of_heun_is_what_its_order_needs(rng: Generator) -> None:
    """Break it: with D at the end of the step alone the order is one."""

    def wrong(D: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
        for s, e in pairwise(sigmas):
            y = torch.lerp(D(x, s), x, float(e / s))
            x = torch.lerp(D(y, e), x, float(e / s))
        return x

    x, c = starts(20, 1, rng), 0.5
    end = x * math.sqrt((c**2 + 0.002**2) / (c**2 + 80.0**2))
    assert order(wrong, normal(c), x, end, 200) == pytest.approx(1, abs=0.15)


def test_evaluations_are_counted(rng: Generator) -> None:
    x = starts(4, 2, rng)
    wanted = {euler: 18, multistep: 18, ddim: 18, heun: 35, exponential: 35}
    for method, n in wanted.items():
        D = Counted(exact_denoiser(law()))
        method(D, x, karras_grid(18))
        assert D.calls == n
    D = Counted(exact_denoiser(law()))
    churn(D, x, karras_grid(18), 10.0)
    assert D.calls == 35
    heun(D, x, to_min(18))
    assert D.calls == 35 + 2 * 17


# Laws


def shrinkage(method: str, c: float, sigmas: Tensor, amount: float = 0.0) -> float:
    """Variance of what a sampler draws from N(0, c²), by its own recursion."""
    v = float(sigmas[0]) ** 2
    for s, e in pairwise(sigmas.tolist()):
        keep = c**2 / (c**2 + s**2)
        if method == "heun":
            g = min(amount / (len(sigmas) - 1), math.sqrt(2) - 1)
            hat, lifted = s * (1 + g), v + s**2 * ((1 + g) ** 2 - 1)
            slope = hat / (c**2 + hat**2)
            a = 1 + (e - hat) * slope
            if e > 0:
                a = 1 + (e - hat) / 2 * (slope + a * e / (c**2 + e**2))
            v = a**2 * lifted
        else:  # DDIM with η = 1
            up2 = e**2 * (1 - e**2 / s**2)
            v = (keep + math.sqrt(e**2 - up2) / s * (1 - keep)) ** 2 * v + up2
    return v


@pytest.mark.parametrize("steps", [6, 18, 60])
def test_the_law_that_ancestral_sampling_draws(steps: int, rng: Generator) -> None:
    """Of one Gaussian: too narrow with few steps, by a known factor."""
    n, c, s = 40_000, 0.5, karras_grid(steps)
    x = ddim(normal(c), starts(n, 1, rng), s, eta=1.0, rng=rng)
    v = shrinkage("ddim", c, s)
    assert float(x.var()) == pytest.approx(v, abs=4 * v * math.sqrt(2 / n))
    assert abs(float(x.mean())) < 4 * math.sqrt(v / n)
    if steps == 6:
        assert v < 0.5 * c**2


@pytest.mark.parametrize("steps", [18, 60])
def test_the_law_that_churn_draws(steps: int, rng: Generator) -> None:
    n, c, s = 40_000, 0.5, karras_grid(steps)
    x = churn(normal(c), starts(n, 1, rng), s, 20.0, rng=rng)
    v = shrinkage("heun", c, s, 20.0)
    assert float(x.var()) == pytest.approx(v, abs=4 * v * math.sqrt(2 / n))
    if steps == 60:
        assert v == pytest.approx(c**2, rel=0.05)


@pytest.mark.parametrize(
    "method",
    [heun, exponential, multistep, *NOISY.values()],
    ids=["heun", "exponential", "multistep", *NOISY],
)
def test_the_law_of_every_sampler(
    method: Callable[..., Tensor], rng: Generator
) -> None:
    """Moments, W₁ and a permutation test against exact samples of a mixture."""
    truth, n = line_mixture((-1.0, 0.6), 0.25, (0.4, 0.6)), 10_000
    noise = {"rng": rng} if isinstance(method, partial) else {}
    grid = karras_grid(400 if noise and method.func is ddim else 80)  # order one
    x = method(exact_denoiser(truth), starts(n, 1, rng), grid, **noise)
    m, v = truth.mean(), truth.cov()[0, 0]
    assert abs(x.mean() - m) < 4 * math.sqrt(v / n) + 2e-3
    spread = (x - m).square()
    assert abs(spread.mean() - v) < 4 * spread.std() / n**0.5 + 1e-2 * v
    fresh = truth.sample(n, rng=rng)
    assert (x.sort(0).values - fresh.sort(0).values).abs().mean() < 0.045
    assert two_sample(x[:400], fresh[:400], permutations=99, rng=rng).p > 0.02


def test_eight_gaussians_pass_for_themselves(rng: Generator) -> None:
    x = exponential(exact_denoiser(law()), starts(400, 2, rng), karras_grid(30))
    fresh = law().sample(400, rng=rng)
    assert two_sample(x, fresh, permutations=99, rng=rng).p > 0.02


def test_a_test_of_the_law_sees_few_steps(rng: Generator) -> None:
    """N(0, ½²) by Euler in 16 steps is too narrow; the pictures look alike."""
    n = 4000
    x = euler(normal(0.5), starts(n, 1, rng), karras_grid(16))
    assert float(x.std()) < 0.5 - 4 * 0.5 / math.sqrt(2 * n)


def test_noise_put_anew_keeps_the_law_if_the_datum_is_known(rng: Generator) -> None:
    """(eq:sampler-ddim): x_e | x_0 ~ N(x_0, e² I) for every η."""
    n, x0 = 40_000, torch.tensor([[0.7]])
    x = x0 + 2.0 * torch.randn(n, 1, generator=rng)
    for eta in (0.0, 0.5, 1.0):
        y = ddim(lambda x, s: x0.expand_as(x), x, torch.tensor([2.0, 0.8]), eta=eta,
                 rng=rng)  # fmt: skip
        assert float(y.mean()) == pytest.approx(0.7, abs=4 * 0.8 / n**0.5)
        assert float(y.var()) == pytest.approx(0.64, abs=4 * 0.64 * math.sqrt(2 / n))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_euler_maruyama_in_time_draws_the_same_law(eta: float, rng: Generator) -> None:
    """The walk back of a VE process, driven by the same denoiser."""
    truth = line_mixture((-1.0, 0.6), 0.25, (0.4, 0.6))
    sde, n = VE(0.01, 20.0), 4000
    times = torch.linspace(1, 0.1, 300)
    s = denoiser_score(sde, exact_denoiser(truth))
    *_, x = backward(sde, s, sde.spread * torch.randn(n, 1, generator=rng), times,
                     eta=eta, rng=rng)  # fmt: skip
    fresh = truth.sample(n, rng=rng)
    assert (x.sort(0).values - fresh.sort(0).values).abs().mean() < 0.06
    assert two_sample(x[:400], fresh[:400], permutations=99, rng=rng).p > 0.02


# The slides' loop


def loop(
    h: float,
    rng: Generator,
    *,
    kept: float = 1.0,
    pull: float = 2.0,
    noise: float = 1.0,
    n: int = 4000,
) -> Tensor:
    """x ← kept·x + h (x + pull·score) + noise √(2h) z, from T = 5 to 0."""
    sde = ornstein_uhlenbeck(5.0)
    truth = line_mixture((-2.0, 2.0), 0.5)
    s, x = marginal_score(sde, truth), torch.randn(n, 1, generator=rng)
    for t in time_grid(5.0, h)[:-1]:
        z = torch.randn(n, 1, generator=rng)
        x = kept * x + h * (x + pull * s(x, t)) + noise * math.sqrt(2 * h) * z
    return x


def w1(x: Tensor, rng: Generator) -> float:
    fresh = line_mixture((-2.0, 2.0), 0.5).sample(len(x), rng=rng)
    return float((x.sort(0).values - fresh.sort(0).values).abs().mean())


def test_erratum_E7_the_right_loop_draws_the_law(rng: Generator) -> None:
    """It is the walk back of the package, and its law is that of the data."""
    x = loop(0.02, torch.Generator().manual_seed(3))
    again = torch.Generator().manual_seed(3)
    sde, truth = ornstein_uhlenbeck(5.0), line_mixture((-2.0, 2.0), 0.5)
    start = torch.randn(len(x), 1, generator=again)
    *_, y = backward(sde, marginal_score(sde, truth), start, time_grid(5.0, 0.02),
                     rng=again)  # fmt: skip
    torch.testing.assert_close(x, y, atol=1e-9, rtol=1e-9)
    assert w1(x, rng) < 0.15
    assert float(x.std()) == pytest.approx(math.sqrt(4.25), abs=0.05)


@pytest.mark.parametrize("h", [0.04, 0.01])
def test_erratum_E7_as_printed_it_collapses(h: float, rng: Generator) -> None:
    """X is forgotten, so only the last noise is left: deviation √(2h), nearly."""
    x = loop(h, rng, kept=0.0, pull=1.0)
    assert float(x.std()) == pytest.approx(math.sqrt(2 * h), rel=0.2)
    assert w1(x, rng) > 1.5


def test_erratum_E7_with_the_factor_alone_it_collapses(rng: Generator) -> None:
    x = loop(0.01, rng, kept=0.0, pull=2.0)
    assert float(x.std()) == pytest.approx(0.169, abs=0.01)
    assert w1(x, rng) > 1.5


def test_erratum_E7_with_the_increment_alone_it_is_too_wide(rng: Generator) -> None:
    x = loop(0.02, rng, pull=1.0)
    assert float(x.std()) == pytest.approx(3.30, abs=0.15)
    assert w1(x, rng) > 0.9


def test_erratum_E7_without_noise_the_printed_factor_is_right(rng: Generator) -> None:
    """One times the score is the probability flow."""
    x = loop(0.02, rng, pull=1.0, noise=0.0)
    assert w1(x, rng) < 0.15


def test_erratum_E7_a_walk_needs_a_whole_number_of_steps() -> None:
    with pytest.raises(ValueError, match=r"horizon / h must be an integer"):
        time_grid(5.0, 0.03)
    assert len(time_grid(5.0, 0.0025)) == 2001


# Guidance


def conditional(free: Mixture, one: Mixture) -> Callable[..., Tensor]:
    D, E = exact_denoiser(free), exact_denoiser(one)
    return lambda x, sigma, *c: E(x, sigma) if c else D(x, sigma)


class Conditional(Counted):
    """Counts, and passes conditions on."""

    def __call__(self, x: Tensor, sigma: Tensor, *c: Tensor) -> Tensor:
        self.calls += 1
        both: Callable[..., Tensor] = self.D
        return both(x, sigma, *c)


def test_guidance_is_a_line_through_two_denoisers(rng: Generator) -> None:
    """(eq:sampler-guidance), and what it costs."""
    both = Conditional(conditional(law(), ring(1, 0.65, 0.1)))
    x, sigma = torch.randn(20, 2, generator=rng), torch.tensor(0.4)
    c = torch.zeros(20, dtype=torch.long)
    D, E = exact_denoiser(law())(x, sigma), exact_denoiser(ring(1, 0.65, 0.1))(x, sigma)
    for w, calls in ((0.0, 1), (1.0, 1), (0.5, 2), (3.0, 2)):
        both.calls = 0
        found = guided(both, c, w)(x, sigma)
        torch.testing.assert_close(found, D + w * (E - D))
        assert both.calls == calls


def test_guidance_adds_the_score_of_a_classifier(rng: Generator) -> None:
    """D_w = x + σ² (∇log p_σ(x) + w ∇log p_σ(c | x)), by automatic differentiation."""
    free = line_mixture((-1.0, 1.0), 0.5, (0.3, 0.7))
    one, w, sigma = line_mixture((1.0,), 0.5), 2.5, 0.7
    x = torch.randn(30, 1, generator=rng).requires_grad_()
    log_c = math.log(0.7) + one.log_prob(x, sigma) - free.log_prob(x, sigma)
    total = (free.log_prob(x, sigma) + w * log_c).sum()
    (score,) = torch.autograd.grad(total, x)
    D = guided(conditional(free, one), torch.zeros(30), w)
    found = D(x.detach(), torch.tensor(sigma))
    torch.testing.assert_close(found, x.detach() + sigma**2 * score)


@pytest.mark.parametrize("w", [0.5, 1.0, 2.0, 4.0])
def test_guidance_between_gaussians_draws_the_geometric_mean(
    w: float, rng: Generator
) -> None:
    """Deviation b^{1−w} c^w; the tilted law would have a harmonic mean of squares."""
    b, c = 1.0, 0.6
    free, one = line_mixture((0.0,), b), line_mixture((0.5,), c)
    D = guided(conditional(free, one), torch.zeros(2), w)
    top = 1000.0
    x = torch.tensor([[top], [-top]])
    y = exponential(D, x, karras_grid(400, sigma_max=top))
    found = float(y[0] - y[1]) / 2
    assert found == pytest.approx(b ** (1 - w) * c**w, rel=2e-3)
    if w > 1:
        tilted = ((1 - w) / b**2 + w / c**2) ** -0.5
        assert abs(found - tilted) > 0.02


# Doors


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize(
    ("sigmas", "words"),
    [
        (torch.tensor([1.0, 2.0, 0.0]), "sigmas must fall"),
        (torch.tensor([2.0, 2.0, 0.0]), "sigmas must fall"),
        (torch.tensor([2.0, -1.0]), "sigmas must fall"),
        (torch.tensor([2.0, 0.0, 0.0]), "sigmas must fall"),
        (torch.tensor([2.0, 0.0, -1.0]), "sigmas must fall"),
        (torch.tensor([math.inf, 1.0]), "sigmas must fall"),
        (torch.tensor([math.nan, 1.0]), "sigmas must fall"),
        (torch.tensor([1.0]), "sigmas must be"),
        (torch.tensor(1.0), "sigmas must be"),
        (torch.ones(2, 2), "sigmas must be"),
    ],
)
def test_levels_that_do_not_fall_are_refused(
    method: Callable[..., Tensor], sigmas: Tensor, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        method(normal(0.5), torch.ones(3, 1), sigmas)


@pytest.mark.parametrize("method", EVERY)
def test_a_denoiser_of_another_shape_or_dtype_is_named(
    method: Callable[..., Tensor],
) -> None:
    x, s = torch.ones(3, 2), karras_grid(4)
    with pytest.raises(ValueError, match=r"D must return \(3, 2\)"):
        method(lambda x, sigma: x[:, :1], x, s)
    with pytest.raises(ValueError, match=r"D must return .* torch.float64"):
        method(lambda x, sigma: x.float(), x, s)


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.ones(3), "real points"),
        (torch.ones(0, 2), "real points"),
        (torch.ones(3, 2, dtype=torch.long), "real points"),
        (torch.tensor([[math.nan]]), "finite"),
    ],
)
def test_points_that_are_none_are_refused(
    method: Callable[..., Tensor], x: Tensor, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        method(normal(0.5), x, karras_grid(4))


def test_numbers_out_of_their_ranges_are_refused() -> None:
    D, x, s = normal(0.5), torch.ones(3, 1), karras_grid(4)
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="eta"):
            ddim(D, x, s, eta=eta)
    for amount, window, inflate in (
        (-1.0, (0.0, 1.0), 1.0), (1.0, (2.0, 1.0), 1.0), (1.0, (0.0, 1.0), 0.0),
        (math.nan, (0.0, 1.0), 1.0), (1.0, (-1.0, 1.0), 1.0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="amount"):
            churn(D, x, s, amount, window=window, inflate=inflate)
    with pytest.raises(ValueError, match="weight"):
        guided(lambda x, s, *c: x, x, math.inf)
    for steps, low, top, rho in (
        (1, 0.1, 1.0, 7.0), (5, 0.0, 1.0, 7.0), (5, 1.0, 1.0, 7.0),
        (5, 0.1, math.inf, 7.0), (5, 0.1, 1.0, 0.0), (5, 0.1, 1.0, math.nan),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="steps"):
            karras_grid(steps, sigma_min=low, sigma_max=top, rho=rho)


@pytest.mark.parametrize("method", EVERY)
def test_images_in_single_precision_stay_what_they_are(
    method: Callable[..., Tensor], rng: Generator
) -> None:
    """Levels may come in double precision; the first and a last one need no 0."""
    x = 80 * torch.randn(4, 1, 3, 3, generator=rng)
    seen: list[Tensor] = []

    def D(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(sigma)
        return 0.25 / (0.25 + sigma.square()) * x

    found = method(D, x.float(), karras_grid(12).double())
    assert found.dtype == torch.float32
    assert {(s.dtype, s.shape) for s in seen} == {(torch.float32, ())}
    if method in FLOWS:
        exact = method(D, x, karras_grid(12))
        torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", list(NOISY.values()), ids=list(NOISY))
def test_the_same_generator_gives_the_same_sample(
    method: Callable[..., Tensor], rng: Generator
) -> None:
    D, x, s = exact_denoiser(law()), starts(5, 2, rng), karras_grid(6)
    before = torch.get_rng_state()
    runs = [method(D, x, s, rng=torch.Generator().manual_seed(1)) for _ in "ab"]
    assert torch.equal(*runs)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_gradient_goes_through_a_sampler(rng: Generator) -> None:
    """Of the end by the start, for one Gaussian: √(c² + e²)/√(c² + s²), nearly."""
    x = starts(5, 1, rng).requires_grad_()
    y = exponential(normal(0.5), x, to_min(400))
    (grad,) = torch.autograd.grad(y.sum(), x)
    exact = math.sqrt((0.25 + 0.002**2) / (0.25 + 80.0**2))
    torch.testing.assert_close(grad, torch.full_like(grad, exact), rtol=1e-3, atol=0)
