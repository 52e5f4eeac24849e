"""book/vae/gauss.md, on models whose marginal and posterior are known.

In the linear Gaussian model, z ~ N(0, I) and x | z ~ N(m + Wz, σ²I), so x is
Gaussian, z | x is Gaussian, and torch.distributions knows the divergences.
"""

import math

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Exponential,
    Independent,
    MultivariateNormal,
    Normal,
    kl_divergence,
)
from torch.nn import functional as F

from pushforward.data import digits
from pushforward.distributions import Gaussian, StandardNormal, line_mixture
from pushforward.nn import MLP, ResBlock
from pushforward.vae import (
    VAE,
    BernoulliNet,
    GaussianNet,
    LinearGaussian,
    NoisyNet,
    divergence,
    draw,
    gaussian_kl,
    linear_vae,
    pathwise_gradient,
    ppca,
    residual_decoder,
    residual_encoder,
    score_gradient,
)


def linear(rng: Generator, d: int = 5, k: int = 2) -> LinearGaussian:
    W = torch.randn(d, k, generator=rng)
    return LinearGaussian(torch.randn(d, generator=rng), W, torch.tensor(0.7))


def rough(x: Tensor) -> Distribution:
    """An encoder that ignores half of what it sees."""
    return Independent(Normal(0.3 * x[:, :2], 0.5 + 0.1 * x[:, :2].abs()), 1)


# Laws


def test_a_normal_draw_has_the_deviation_that_the_law_says(rng: Generator) -> None:
    """(eq:vae-reparameterization): z = μ + σε, with variance σ², not σ⁴."""
    mean, std = torch.tensor([0.4, -2.0]), torch.tensor([0.3, 3.0])
    z = draw(Normal(mean, std), (100_000,), rng=rng)
    se = std / 100_000**0.5
    assert ((z.mean(0) - mean).abs() < 4 * se).all()
    assert ((z.std(0) - std).abs() < 4 * se).all()


def test_a_normal_draw_is_differentiable_in_mean_and_deviation(rng: Generator) -> None:
    """The gradients of (eq:vae-reparameterization) are 1 and ε."""
    mean, std = torch.zeros(7, requires_grad=True), torch.ones(7, requires_grad=True)
    z = draw(Independent(Normal(mean, std), 1), rng=rng)
    to_mean, to_std = torch.autograd.grad(z.sum(), [mean, std])
    torch.testing.assert_close(to_mean, torch.ones(7))
    torch.testing.assert_close(to_std, z.detach())


def test_a_bernoulli_draw_has_its_mean(rng: Generator) -> None:
    p = torch.tensor([0.0, 0.1, 0.8, 1.0])
    x = draw(Independent(Bernoulli(probs=p), 1), (50_000,), rng=rng)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    se = (p * (1 - p) / 50_000).sqrt()
    assert ((x.mean(0) - p).abs() <= 4 * se).all()


def test_a_draw_is_a_function_of_its_rng() -> None:
    state = torch.get_rng_state()
    law = Normal(torch.zeros(5), 1.0)
    z, y = (draw(law, (3,), rng=torch.Generator().manual_seed(1)) for _ in "zy")
    assert z.shape == (3, 5)
    assert torch.equal(z, y)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_law_without_a_draw_is_named() -> None:
    with pytest.raises(ValueError, match="got Exponential"):
        draw(Exponential(torch.ones(3)))


def test_another_law_joins_by_registration(rng: Generator) -> None:
    class Point(Categorical):
        pass

    @draw.register
    def _(law: Point, shape: tuple[int, ...] = (), **_: object) -> Tensor:
        return torch.full(shape, 7.0)

    assert draw(Point(torch.ones(2)), (2,), rng=rng).tolist() == [7.0, 7.0]


def test_the_closed_divergence_is_that_of_torch(rng: Generator) -> None:
    """(eq:vae-gaussian-kl), coordinate by coordinate."""
    mean = 2 * torch.randn(50, 3, generator=rng)
    std = (mean / 2).exp()
    torch.testing.assert_close(
        gaussian_kl(mean, std), kl_divergence(Normal(mean, std), Normal(0.0, 1.0))
    )


def test_the_drawn_divergence_is_unbiased(rng: Generator) -> None:
    """A N(0, I) that hides its name is met by draws of log q − log π."""
    n, mean, std = 100_000, torch.tensor([0.5, -1.0]), torch.tensor([0.4, 1.5])
    q = Independent(Normal(mean.expand(n, 2), std), 1)
    draws = divergence(q, Gaussian(torch.zeros(2), torch.eye(2)), draw(q, rng=rng))
    exact = gaussian_kl(mean, std).sum()
    assert draws.std() > 0.1
    assert (draws.mean() - exact).abs() < 4 * draws.std() / n**0.5


def test_the_known_divergence_has_no_noise(rng: Generator) -> None:
    q = Independent(Normal(torch.full((9, 2), 0.5), 0.4), 1)
    assert divergence(q, StandardNormal(2), draw(q, rng=rng)).std() < 1e-14


# The bound


def test_the_weight_is_the_density_at_the_posterior(rng: Generator) -> None:
    """(eq:vae-elbo) is an equality, draw by draw, when q(z | x) = p(z | x)."""
    law = linear(rng, k=1)  # one latent: the posterior is diagonal

    def posterior(x: Tensor) -> Distribution:
        exact = law.posterior(x)
        return Independent(Normal(exact.mean, exact.stddev), 1)

    vae = VAE(posterior, law.decoder, StandardNormal(1))
    x = law.marginal().sample(40, rng=rng)
    w = vae.log_weights(x, 3, rng=rng)
    assert w.shape == (3, 40)
    torch.testing.assert_close(w, law.marginal().log_prob(x).expand(3, 40))


@pytest.mark.parametrize("which", ["elbo", "log_weights"])
def test_the_gap_is_the_divergence_to_the_posterior(which: str, rng: Generator) -> None:
    """log p(x) − (eq:vae-elbo) = KL(q ‖ p(z | x)), by simulation."""
    law, n = linear(rng), 200_000

    def near(x: Tensor) -> Independent:
        exact = law.posterior(x)
        return Independent(Normal(exact.mean + 0.2, 1.3 * exact.stddev), 1)

    x = law.marginal().sample(1, rng=rng)
    vae = VAE(near, law.decoder, StandardNormal(2))
    draws = getattr(vae, which)(x.expand(n, -1), rng=rng).flatten()
    q = MultivariateNormal(near(x).mean, near(x).variance.diag_embed())
    exact = law.marginal().log_prob(x) - kl_divergence(q, law.posterior(x))
    se = draws.std() / n**0.5
    assert (draws.mean() - exact).abs() < 4 * se
    assert se < 0.01


def test_the_loss_is_minus_the_mean_bound(rng: Generator) -> None:
    """(eq:vae-loss), with the same draws."""
    law = linear(rng)
    vae = VAE(rough, law.decoder, StandardNormal(2))
    x = law.marginal().sample(8, rng=rng)
    one, two = (torch.Generator().manual_seed(3) for _ in "12")
    torch.testing.assert_close(vae.loss(x, rng=one), -vae.elbo(x, rng=two).mean())
    vae.beta = 0.3
    fit, rate = vae.terms(x, rng=one)
    torch.testing.assert_close(vae.loss(x, rng=two), (0.3 * rate - fit).mean())


def test_a_prior_is_a_gift(rng: Generator) -> None:
    """With a mixture as prior, the mean weight is ∫ p(x | z) π(z) dz by quadrature."""
    prior, x, n = line_mixture((-1.5, 1.0), 0.5), torch.tensor([[0.7]]), 200_000

    def decoder(z: Tensor) -> Distribution:
        return Independent(Normal(z.sin(), 0.4), 1)

    def encoder(x: Tensor) -> Distribution:
        return Independent(Normal(0.5 * x, torch.full_like(x, 2.0)), 1)

    z = torch.linspace(-9, 9, 20_001)[:, None]
    values = (decoder(z).log_prob(x) + prior.log_prob(z)).exp()
    exact = torch.trapezoid(values, z[:, 0])
    w = VAE(encoder, decoder, prior).log_weights(x, n, rng=rng).exp()
    assert (w.mean() - exact).abs() < 4 * w.std() / n**0.5
    assert w.std() / n**0.5 < 0.01 * exact


def test_a_learned_prior_is_a_part_of_the_model(rng: Generator) -> None:
    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = nn.Parameter(torch.zeros(2))

        def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
            return self.m + torch.randn(n, 2, generator=rng)

        def log_prob(self, z: Tensor) -> Tensor:
            return Normal(self.m, 1.0).log_prob(z).sum(-1)

    prior = Shift()
    vae = VAE(rough, linear(rng).decoder, prior)
    assert any(p is prior.m for player in vae.players() for p in player.params)
    vae.loss(torch.randn(4, 5, generator=rng), rng=rng).backward()
    assert prior.m.grad is not None


def test_samples_have_the_law_of_the_model(rng: Generator) -> None:
    law, n = linear(rng), 100_000
    x = VAE(rough, law.decoder, StandardNormal(2)).sample(n, rng=rng)
    exact = law.marginal().cov()
    scale = exact.diagonal().sqrt()
    error = (torch.cov(x.mT) - exact) / scale / scale[:, None]
    assert error.abs().max() < 4 * (2 / n) ** 0.5
    assert ((x.mean(0) - law.m) / scale).abs().max() < 4 / n**0.5


# The estimate of log p(x)


@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
def test_the_estimate_is_exact_at_the_posterior(chunk: int, rng: Generator) -> None:
    """(eq:vae-iw) with equal weights is log p(x), however it is cut in chunks."""
    x = digits("test").x.flatten(1).double()[:150]
    law = ppca(x + 0.1 * torch.randn(x.shape, generator=rng), 3)
    found = linear_vae(law).log_prob_iw(x[:20], samples=23, chunk=chunk, rng=rng)
    torch.testing.assert_close(found, law.marginal().log_prob(x[:20]))


def test_the_estimate_approaches_the_density(rng: Generator) -> None:
    """(eq:vae-iw) is low by Var(w)/(2K) to first order, and noisy by its root."""
    law, K = linear(rng), 2000

    def wide(x: Tensor) -> Distribution:
        q = law.posterior(x)
        return Independent(Normal(q.mean, 1.7 * q.stddev), 1)

    vae = VAE(wide, law.decoder, StandardNormal(2))
    x = law.marginal().sample(1000, rng=rng)
    exact = law.marginal().log_prob(x)
    w = (vae.log_weights(x, 2000, rng=rng) - exact).exp()
    for k in (20, 100, K):
        error = vae.log_prob_iw(x, samples=k, rng=rng) - exact
        bias, se = -w.var() / (2 * k), error.std() / len(x) ** 0.5
        assert (error.mean() - bias).abs() < 4 * se + w.var() ** 2 / k**2
        assert error.std() == pytest.approx((w.var() / k).sqrt().item(), rel=0.15)


def test_the_estimate_never_decodes_more_than_a_chunk(rng: Generator) -> None:
    law, rows = linear(rng), []

    def decoder(z: Tensor) -> Distribution:
        rows.append(len(z))
        return law.decoder(z)

    vae = VAE(rough, decoder, StandardNormal(2))
    found = vae.log_prob_iw(torch.zeros(1500, 5), samples=50, chunk=1000, rng=rng)
    assert found.shape == (1500,)
    assert sum(rows) == 1500 * 50
    assert max(rows) <= 1000
    assert vae.log_prob_iw(torch.zeros(0, 5), rng=rng).shape == (0,)
    with pytest.raises(ValueError, match="samples must be positive"):
        vae.log_prob_iw(torch.zeros(1, 5), samples=0)


# The two gradients


@pytest.mark.parametrize(("k", "least"), [(1, 5), (10, 100), (50, 1000)])
def test_both_gradients_are_unbiased_and_one_is_quiet(
    k: int, least: float, rng: Generator
) -> None:
    """(eq:vae-pathwise) and (eq:vae-score-gradient) against Wᵀ(x − Wμ)/t²."""
    n, t2 = 20_000, 0.5
    W, x = torch.randn(64, k, generator=rng) / k**0.5, torch.randn(64, generator=rng)
    mean, std = 0.1 * torch.ones(k), 0.5 * torch.ones(k)
    exact = W.mT @ (x - W @ mean) / t2

    def f(z: Tensor) -> Tensor:
        return -(x - z @ W.mT).square().sum(-1) / (2 * t2)

    path = pathwise_gradient(f, mean, std, n, rng=rng)
    score = score_gradient(f, mean, std, n, rng=rng)
    for found in (path, score):
        se = found.std(0) / n**0.5
        assert ((found.mean(0) - exact).abs() < 4.5 * se).all()
    assert score.var(0).mean() / path.var(0).mean() > least


# Networks


def test_the_encoder_reads_half_the_logarithm_of_the_variance() -> None:
    """E3: exact E_q[−log p(x | z)] = 0.59479; with σ² in place of σ, 0.31797."""
    w, t2, x = 1.3, 0.25, 0.7
    head = nn.Linear(1, 2)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.4, math.log(0.09)]))
    q = GaussianNet(head)(torch.tensor([[x]]))
    torch.testing.assert_close(q.variance, torch.tensor([[0.09]]))
    error = (x - w * q.mean) ** 2 + w**2 * q.variance
    expected = (math.log(2 * math.pi * t2) + error / t2) / 2
    assert expected.item() == pytest.approx(0.59479, abs=1e-5)


def test_the_noise_starts_where_told_and_stays_above_its_floor() -> None:
    """(eq:vae-noise-floor)."""
    net = NoisyNet(nn.Identity(), sigma=0.3, floor=0.05)
    assert net.sigma.item() == pytest.approx(0.3, abs=1e-12)
    with torch.no_grad():
        net.rho.fill_(-40.0)
    assert net.sigma.item() == pytest.approx(0.05, abs=1e-12)
    law = net(torch.zeros(2, 3, 4))
    assert law.event_shape == (3, 4)
    torch.testing.assert_close(law.stddev, torch.full((2, 3, 4), 0.05))
    with pytest.raises(ValueError, match="sigma must exceed floor"):
        NoisyNet(nn.Identity(), sigma=0.1, floor=0.1)


def test_bits_cost_their_cross_entropy(rng: Generator) -> None:
    logits = torch.randn(6, 1, 3, 3, generator=rng)
    x = (torch.rand(logits.shape, generator=rng) < 0.5).double()
    entropy = F.binary_cross_entropy_with_logits(logits, x, reduction="none")
    torch.testing.assert_close(
        BernoulliNet(nn.Identity())(logits).log_prob(x), -entropy.sum((1, 2, 3))
    )


def test_a_residual_block_is_the_identity_and_a_correction(rng: Generator) -> None:
    block, x = ResBlock(4, groups=2), torch.randn(2, 4, 5, 5, generator=rng)
    norm, _, one, norm_two, _, _, two = block.net
    h = F.silu(F.group_norm(x, 2, norm.weight, norm.bias))
    h = F.silu(F.group_norm(one(h), 2, norm_two.weight, norm_two.bias))
    torch.testing.assert_close(block(x), x + two(h))
    with pytest.raises(ValueError, match="multiples of 8"):
        ResBlock(12)


def test_images_go_through_the_residual_pair(rng: Generator) -> None:
    encoder = GaussianNet(residual_encoder(6, channels=8, blocks=1))
    decoder = BernoulliNet(residual_decoder(3, channels=8, blocks=1))
    vae = VAE(encoder, decoder, StandardNormal(3))
    assert vae.sample(2, rng=rng).shape == (2, 1, 28, 28)
    x = torch.zeros(5, 1, 28, 28)
    vae.loss(x, rng=rng).backward()
    assert all(p.grad is not None for p in vae.parameters())
    assert vae.log_prob_iw(x, samples=4, chunk=8, rng=rng).shape == (5,)


def test_the_pieces_fit_points_as_well_as_images(rng: Generator) -> None:
    vae = VAE(GaussianNet(MLP(2, 8, 6)), NoisyNet(MLP(3, 8, 2)), StandardNormal(3))
    x = vae.sample(4, rng=rng)
    assert x.shape == (4, 2)
    assert not x.requires_grad
    assert vae.elbo(x, rng=rng).shape == (4,)


# The linear model


def test_the_linear_posterior_is_bayes_formula(rng: Generator) -> None:
    """(eq:vae-linear-posterior): p(z) p(x | z) = p(x) p(z | x) at every point."""
    law = linear(rng, d=5, k=3)
    z, x = torch.randn(20, 3, generator=rng), torch.randn(20, 5, generator=rng)
    left = StandardNormal(3).log_prob(z) + law.decoder(z).log_prob(x)
    right = law.marginal().log_prob(x) + law.posterior(x).log_prob(z)
    torch.testing.assert_close(left, right)


def likelihood(x: Tensor, W: Tensor, log_sigma: Tensor) -> Tensor:
    """Return the mean log-likelihood of the linear model, by its covariance."""
    cov = W @ W.mT + (2 * log_sigma).exp() * torch.eye(len(W))
    return MultivariateNormal(x.mean(0), cov).log_prob(x).mean()


@pytest.mark.parametrize("sigma", [None, 0.9])
def test_ppca_is_where_ascent_ends(sigma: float | None, rng: Generator) -> None:
    """(eq:vae-ppca) against a quasi-Newton ascent from a random start."""
    scales = torch.tensor([3.0, 2.0, 1.2, 0.8, 0.5, 0.3])
    x = torch.randn(400, 6, generator=rng) * scales
    x = x @ torch.linalg.qr(torch.randn(6, 6, generator=rng))[0]
    law = ppca(x, 4, sigma=sigma)
    W = torch.randn(6, 4, generator=rng).requires_grad_()
    s = torch.tensor(math.log(sigma or 1.0), requires_grad=sigma is None)
    free = [W] if sigma else [W, s]
    tight = {"tolerance_grad": 1e-9, "tolerance_change": 1e-14}
    best = torch.optim.LBFGS(
        free, max_iter=2000, line_search_fn="strong_wolfe", **tight
    )

    def closure() -> Tensor:
        best.zero_grad()
        loss = -likelihood(x, W, s)
        loss.backward()
        return loss

    best.step(closure)
    found = law.marginal().log_prob(x).mean()
    torch.testing.assert_close(found, likelihood(x, W, s).detach(), atol=1e-7, rtol=0)
    if sigma:
        assert (law.W.norm(dim=0) > 0).tolist() == [True, True, True, False]


def test_the_linear_vae_reaches_the_likelihood_of_ppca(rng: Generator) -> None:
    """At (eq:vae-ppca) the bound has no gap and no noise."""
    x = torch.randn(200, 6, generator=rng) @ torch.randn(6, 6, generator=rng)
    law = ppca(x, 2)
    bound = linear_vae(law).log_weights(x, rng=rng)[0]
    torch.testing.assert_close(bound, law.marginal().log_prob(x))


def test_a_rotated_latent_costs_what_the_posterior_correlation_costs(
    rng: Generator,
) -> None:
    """With WR the best diagonal encoder misses ½(Σ log Λⱼⱼ − log det Λ)."""
    x = torch.randn(300, 6, generator=rng) @ torch.randn(6, 6, generator=rng)
    law = ppca(x, 2)
    a = torch.tensor(0.6)
    R = torch.stack([a.cos(), -a.sin(), a.sin(), a.cos()]).view(2, 2)
    turned = law._replace(W=law.W @ R)
    L = turned.precision()
    gap = (L.diagonal().log().sum() - torch.logdet(L)) / 2
    draws = linear_vae(turned).elbo(x.repeat(400, 1), rng=rng)
    exact = law.marginal().log_prob(x)
    error = draws.view(400, -1).mean(0) - exact
    se = draws.view(400, -1).std(0).square().sum().sqrt() / 20 / len(x)
    assert gap > 0.05
    assert (error.mean() + gap).abs() < 4 * se


@pytest.mark.parametrize("k", [0, 6, 7])
def test_ppca_wants_fewer_latents_than_coordinates(k: int) -> None:
    with pytest.raises(ValueError, match="k must be in"):
        ppca(torch.zeros(10, 6), k)


def test_ppca_wants_noise() -> None:
    with pytest.raises(ValueError, match="sigma must be positive"):
        ppca(torch.ones(10, 6), 2)
