"""book/vae/estimation.md, equation by equation."""

import math

import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from pushforward.distributions import Gaussian, StandardNormal
from pushforward.nn import MLP
from pushforward.vae import (
    VAE,
    GaussianNet,
    NoisyNet,
    VampPrior,
    curve_constant,
    curve_gap,
    fixed_noise_risk,
    flatten_spectrum,
    linear_risks,
    moment_factor,
    normal_kl,
    oracle_bound,
    ppca,
)


def truth(rng: Generator, d: int = 5, k: int = 2, sigma: float = 0.5) -> Gaussian:
    W = torch.randn(d, k, generator=rng)
    cov = W @ W.mT + sigma**2 * torch.eye(d)
    return Gaussian(torch.randn(d, generator=rng), (cov + cov.mT) / 2)


def bend(z: Tensor) -> Tensor:
    """A parabola."""
    return torch.cat([z, z.square() / 2], -1)


def test_normal_kl_is_that_of_torch(rng: Generator) -> None:
    """(eq:est-normal-kl), a batch of three against the library."""
    m = torch.randn(2, 3, 4, generator=rng)
    A = torch.randn(2, 3, 4, 4, generator=rng)
    S = A @ A.mT + 0.1 * torch.eye(4)
    laws = [MultivariateNormal(m[i], S[i]) for i in (0, 1)]
    expected = kl_divergence(*laws)
    torch.testing.assert_close(normal_kl(m[0], S[0], m[1], S[1]), expected)


def test_flat_spectrum_is_the_fit_of_ppca(rng: Generator) -> None:
    """(eq:est-flatten), against the linear model fitted to data."""
    x = truth(rng).sample(300, rng=rng)
    S = torch.cov(x.mT, correction=0)
    for sigma in (None, 0.3, 1.5):
        expected = ppca(x, 2, sigma=sigma).marginal().cov()
        torch.testing.assert_close(flatten_spectrum(S, 2, sigma=sigma), expected)


def test_flat_spectrum_is_the_best_of_its_kind(rng: Generator) -> None:
    """No other linear model of the same size is nearer to the data."""
    S, m = truth(rng).cov(), torch.zeros(5)
    S = S + torch.diag(torch.arange(5.0))
    best = normal_kl(m, S, m, flatten_spectrum(S, 2))
    for _ in range(200):
        W = torch.randn(5, 2, generator=rng)
        other = W @ W.mT + torch.rand((), generator=rng) * 3 * torch.eye(5)
        assert normal_kl(m, S, m, other) >= best


def test_flat_spectrum_serves_batches(rng: Generator) -> None:
    S = torch.stack([truth(rng).cov() + i * torch.diag(torch.arange(5.0))
                     for i in range(3)])  # fmt: skip
    one = torch.stack([flatten_spectrum(s, 2) for s in S])
    torch.testing.assert_close(flatten_spectrum(S, 2), one)


@pytest.mark.parametrize("k", [0, 5])
def test_flat_spectrum_refuses_other_sizes(k: int) -> None:
    with pytest.raises(ValueError, match=r"k must lie in \[1, 5\)"):
        flatten_spectrum(torch.eye(5), k)


def test_flat_spectrum_refuses_no_noise() -> None:
    with pytest.raises(ValueError, match="sigma must be positive"):
        flatten_spectrum(torch.eye(3), 1, sigma=0.0)


def test_linear_risks_are_those_of_fits_one_by_one(rng: Generator) -> None:
    """Against ppca and torch's divergence, on the same draws."""
    law = truth(rng)
    risks = linear_risks(law, 2, 40, 3, rng=Generator().manual_seed(5))
    x = law.sample(120, rng=Generator().manual_seed(5)).view(3, 40, 5)
    p = MultivariateNormal(law.mean(), law.cov())
    for risk, rows in zip(risks, x, strict=True):
        fit = ppca(rows, 2).marginal()
        expected = kl_divergence(p, MultivariateNormal(fit.mean(), fit.cov()))
        torch.testing.assert_close(risk, expected)


def test_linear_risks_fall_like_half_the_parameters_over_n(rng: Generator) -> None:
    """15 parameters: n E KL is 7.5 in the limit, here within 5 s.e. and 4 %."""
    risks = 2000 * linear_risks(truth(rng), 2, 2000, 600, rng=rng)
    assert abs(risks.mean() - 7.5) < 5 * risks.std() / 600**0.5 + 0.3


def test_linear_risks_need_more_data_than_dimensions(rng: Generator) -> None:
    with pytest.raises(ValueError, match="n must exceed the dimension 5, got 5"):
        linear_risks(truth(rng), 2, 5, 2)


@pytest.mark.parametrize("sigma", [0.1, 0.25, 0.5, 1.0, 3.0])
def test_fixed_noise_risk_is_that_of_the_best_model(
    sigma: float, rng: Generator
) -> None:
    """(eq:est-fixed-noise)."""
    S, m = truth(rng).cov(), torch.zeros(5)
    expected = normal_kl(m, S, m, flatten_spectrum(S, 2, sigma=sigma))
    values = torch.linalg.eigvalsh(S).flip(0)  # in any order
    torch.testing.assert_close(fixed_noise_risk(values, 2, sigma), expected)


def test_fixed_noise_costs_nothing_where_it_is_right(rng: Generator) -> None:
    values = torch.linalg.eigvalsh(truth(rng).cov())
    zero = fixed_noise_risk(values, 2, 0.5)
    torch.testing.assert_close(zero, torch.tensor(0.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("D", [0.1, 1.0, 5.0])
def test_second_moment_is_bounded_by_the_divergence(D: float, rng: Generator) -> None:
    """(eq:est-moment): on random pairs of laws, and attained at two points."""
    for _ in range(300):
        p = torch.rand(6, generator=rng).softmax(0)
        r = (torch.rand(6, generator=rng) * 2 - 1) * D
        r = r + (p * (-r).exp()).sum().log()  # so that p e^(−r) sums to one
        if r.abs().max() <= D:
            assert p @ r.square() <= moment_factor(D) * (p @ r) + 1e-12
    # a rare point where the ratio is e^D
    p = torch.tensor([1e-9, 1 - 1e-9])
    q = p * torch.tensor([math.exp(-D), 1.0])
    r = (p / (q / q.sum())).log()
    share = (p @ r.square()) / (p @ r)
    assert share > 0.99 * moment_factor(D)


def test_oracle_bound_by_hand() -> None:
    """(eq:est-oracle) with γ = 2: factor 3, slack 4 (B + D) log(2N/δ)/n."""
    D, delta, size, n = 1.0, 0.1, 5, 100
    B = 2 * D**2 / (math.exp(-D) - 1 + D)
    slack = 4 * (B + D) * math.log(2 * size / delta) / n
    value = oracle_bound(0.7, size, n, D=D, delta=delta, gamma=2.0)
    assert value == pytest.approx(3 * 0.7 + slack)


def test_the_gap_of_a_straight_curve_is_zero(rng: Generator) -> None:
    """Its posteriors are Gaussian."""
    z = torch.randn(20, generator=rng)
    x = torch.stack([2 * z, -z], 1) + 0.3 * torch.randn(20, 2, generator=rng)
    gap = curve_gap(lambda z: torch.cat([2 * z, -z], -1), x, z, 0.3)
    torch.testing.assert_close(gap.gap, torch.zeros(20), rtol=0, atol=1e-10)
    assert gap.gradient < 1e-9


def test_the_gap_is_the_least_divergence_by_search(rng: Generator) -> None:
    """One datum, the divergence on a grid, minimised by SciPy."""
    from scipy.optimize import minimize

    sigma, x = 0.6, torch.tensor([[0.9, 0.1]])
    z = torch.linspace(-6, 6, 6001)
    post = -(z**2) / 2 - (x - bend(z[:, None])).square().sum(1) / (2 * sigma**2)
    post = post - post.logsumexp(0) - (z[1] - z[0]).log()

    def divergence(theta: list[float]) -> float:
        s = math.exp(theta[1])
        q = -(((z - theta[0]) / s) ** 2) / 2 - theta[1] - math.log(2 * math.pi) / 2
        return float((q.exp() * (q - post)).sum() * (z[1] - z[0]))

    found = minimize(divergence, [0.5, -0.7], method="Nelder-Mead",
                     options={"xatol": 1e-8, "fatol": 1e-12})  # fmt: skip
    gap = curve_gap(bend, x, torch.tensor([0.7]), sigma)
    assert gap.gradient < 1e-9
    assert gap.gap.item() == pytest.approx(found.fun, abs=1e-7)


def test_the_constant_of_a_curve_by_its_formula() -> None:
    """(eq:est-curve): G′ = (1, z), G″ = (0, 1), by quadrature with numpy's nodes."""
    z = torch.linspace(-9, 9, 4001)
    w = StandardNormal(1).log_prob(z[:, None]).exp() * (z[1] - z[0])
    expected = 0.75 * (w * z**2 / (1 + z**2) ** 3).sum()
    torch.testing.assert_close(curve_constant(bend), expected, rtol=1e-6, atol=0)


def test_the_gap_shrinks_like_its_constant(rng: Generator) -> None:
    sigma = 0.02
    z = torch.randn(3000, generator=rng)
    x = bend(z[:, None]) + sigma * torch.randn(3000, 2, generator=rng)
    ratio = curve_gap(bend, x, z, sigma).gap / sigma**2
    se = ratio.std() / 3000**0.5
    assert (ratio.mean() - curve_constant(bend)).abs() < 4 * se + 5e-4


@pytest.fixture
def encoder() -> GaussianNet:
    torch.manual_seed(0)
    return GaussianNet(MLP(3, 8, 4))


def test_vamp_prior_is_the_mixture_of_its_codes(
    encoder: GaussianNet, rng: Generator
) -> None:
    """(eq:est-vamp), against torch's mixture."""
    inputs = torch.randn(5, 3, generator=rng)
    prior, z = VampPrior(encoder, inputs), torch.randn(7, 2, generator=rng)
    law = encoder(inputs)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(5)), law
    )
    torch.testing.assert_close(prior.log_prob(z), mixture.log_prob(z))


def test_vamp_prior_samples_its_own_law(encoder: GaussianNet, rng: Generator) -> None:
    """Mean and covariance of 40,000 draws within 4 standard errors."""
    inputs = torch.randn(5, 3, generator=rng)
    law, z = encoder(inputs), VampPrior(encoder, inputs).sample(40_000, rng=rng)
    mean = law.mean.mean(0)
    cov = torch.diag(law.variance.mean(0)) + torch.cov(law.mean.mT, correction=0)
    assert ((z.mean(0) - mean).abs() < 4 * (cov.diagonal() / 40_000).sqrt()).all()
    torch.testing.assert_close(torch.cov(z.mT), cov, rtol=0, atol=0.05)


def test_vamp_prior_trains_its_inputs_and_the_encoder_once(
    encoder: GaussianNet, rng: Generator
) -> None:
    prior = VampPrior(encoder, torch.randn(4, 3, generator=rng))
    vae = VAE(encoder, NoisyNet(MLP(2, 8, 3)), prior)
    names = [id(p) for p in vae.parameters()]
    assert len(names) == len(set(names))
    vae.loss(torch.randn(6, 3, generator=rng), rng=rng).backward()
    assert isinstance(prior.inputs.grad, Tensor)
    assert (prior.inputs.grad != 0).any()
    assert vae.sample(3, rng=rng).shape == (3, 3)


def test_fixed_inputs_are_no_parameters(encoder: GaussianNet) -> None:
    prior = VampPrior(encoder, torch.zeros(4, 3), learn=False)
    assert not any(p.shape == (4, 3) for p in prior.parameters())
    assert "inputs" in prior.state_dict()


@pytest.mark.parametrize("shape", [(0, 3), (3,)])
def test_no_pseudo_data_is_refused(encoder: GaussianNet, shape: tuple) -> None:
    with pytest.raises(ValueError, match="inputs must be"):
        VampPrior(encoder, torch.zeros(shape))
