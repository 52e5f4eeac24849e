"""The Gaussian variational autoencoder (book/vae/gauss.md).

A latent z ~ π, a decoder p(x | z), and an encoder q(z | x) that guesses which
z made x.  The bound that training raises is one line:

    ELBO(x) = E_q[log p(x | z)] − KL(q(· | x) ‖ π)            (eq:vae-elbo)

Encoder, decoder and prior are gifts.  The first two are functions that return
a law (``Conditional``); the third is whatever answers ``sample`` and
``log_prob``, such as a standard normal or a flow.

References:
    Kingma, Welling (2014), Auto-encoding variational Bayes.
    Tipping, Bishop (1999), Probabilistic principal component analysis.
    Burda, Grosse, Salakhutdinov (2016), Importance weighted autoencoders.
"""

import math
from collections.abc import Callable
from functools import singledispatch
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.distributions import (
    Bernoulli,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
)

from ..distributions import Gaussian, Law, StandardNormal, positive
from ..model import Model
from ..nn import ResBlock, randn

__all__ = [
    "VAE",
    "BernoulliNet",
    "Conditional",
    "GaussianNet",
    "LinearGaussian",
    "NoisyNet",
    "divergence",
    "draw",
    "gaussian_kl",
    "linear_vae",
    "pathwise_gradient",
    "ppca",
    "residual_decoder",
    "residual_encoder",
    "score_gradient",
]

Conditional = Callable[[Tensor], Distribution]  # c ↦ a law for each row of c


# Laws: how to draw from them, how far they are from the prior


@singledispatch
def draw(
    law: Distribution, shape: tuple[int, ...] = (), *, rng: Generator | None = None
) -> Tensor:
    """Draw from a law that a network returned, differentiably where one can.

    Another law joins with ``@draw.register``.

    Args:
        law: A Normal or Bernoulli, or an Independent of one of them.
        shape: Leading sizes of the result, before those of the law.
        rng: Source of the draw.

    Raises:
        ValueError: A law without a registered draw.
    """
    raise ValueError(f"law must have a registered draw, got {type(law).__name__}")


@draw.register
def draw_independent(
    law: Independent, shape: tuple[int, ...] = (), *, rng: Generator | None = None
) -> Tensor:
    """Draw every coordinate by itself."""
    return draw(law.base_dist, shape, rng=rng)


@draw.register
def draw_normal(
    law: Normal, shape: tuple[int, ...] = (), *, rng: Generator | None = None
) -> Tensor:
    """Return z = μ + σ ⊙ ε, differentiable in μ and σ."""
    eps = randn((*shape, *law.loc.shape), law.loc, rng=rng)
    return law.loc + law.scale * eps  # (eq:vae-reparameterization)


@draw.register
def draw_bernoulli(
    law: Bernoulli, shape: tuple[int, ...] = (), *, rng: Generator | None = None
) -> Tensor:
    """Return bits, 1 with probability p; no gradient passes."""
    p = law.probs.detach()
    device = p.device if rng is None else rng.device
    u = torch.rand((*shape, *p.shape), generator=rng, dtype=p.dtype, device=device)
    return (u.to(p.device) < p).to(p.dtype)


def gaussian_kl(mean: Tensor, std: Tensor) -> Tensor:
    """Return KL(N(μ, diag σ²) ‖ N(0, I)) coordinate by coordinate, in nats.

    Args:
        mean: μ, shape (n, k).
        std: σ > 0, shape (n, k).
    """
    return (mean**2 + std**2 - 2 * std.log() - 1) / 2  # (eq:vae-gaussian-kl)


def divergence(q: Distribution, prior: Law, z: Tensor) -> Tensor:
    """Return KL(q ‖ π), shape (n,): exact for two Gaussians, else a draw of it.

    Args:
        q: Laws of n latents.
        prior: π.
        z: One draw from each q, shape (n, k); its log q(z) − log π(z) is an
            unbiased estimate where no closed form is known.
    """
    if isinstance(prior, StandardNormal) and is_diagonal(q):
        return gaussian_kl(q.mean, q.stddev).sum(-1)
    return q.log_prob(z) - prior.log_prob(z)


def is_diagonal(q: Distribution) -> bool:
    """Return whether q is a normal law with a diagonal covariance."""
    return isinstance(q, Independent) and isinstance(q.base_dist, Normal)


def normal(mean: Tensor, std: Tensor) -> Independent:
    """Return N(mean, diag std²) on each row of ``mean`` (n, *shape)."""
    law = Normal(mean, std.expand_as(mean), validate_args=False)
    return Independent(law, mean.ndim - 1, validate_args=False)


# Networks that return laws


class GaussianNet(nn.Module):
    """c ↦ N(μ(c), diag σ²(c)): the usual encoder.

    Args:
        net: Maps c (n, …) to μ and ln σ² side by side, (n, 2k).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, c: Tensor) -> Independent:
        """Return the laws at the rows of c."""
        mu, log_var = self.net(c).chunk(2, dim=1)
        return normal(mu, (log_var / 2).exp())  # half: σ, not σ²


class NoisyNet(nn.Module):
    """z ↦ N(g(z), σ²I): a decoder with one learned noise level.

    Args:
        net: The map g, from (n, k) to (n, *shape).
        sigma: Where σ starts, above the floor.
        floor: σ_min ≥ 0; without a floor the likelihood is unbounded.

    Raises:
        ValueError: ``sigma`` is not above ``floor``, or ``floor`` is negative.
    """

    def __init__(
        self, net: nn.Module, *, sigma: float = 0.25, floor: float = 1e-2
    ) -> None:
        super().__init__()
        if not 0 <= floor < sigma < math.inf:
            raise ValueError(f"sigma must exceed floor ≥ 0, got {sigma} and {floor}")
        self.net = net
        self.floor = floor
        self.rho = nn.Parameter(torch.tensor(math.log(sigma**2 - floor**2) / 2))

    @property
    def sigma(self) -> Tensor:
        """σ = (σ_min² + e^(2ρ))^½, shape ()."""
        return (self.floor**2 + (2 * self.rho).exp()).sqrt()  # (eq:vae-noise-floor)

    def forward(self, z: Tensor) -> Independent:
        """Return the laws at the rows of z."""
        return normal(self.net(z), self.sigma)


class BernoulliNet(nn.Module):
    """z ↦ independent bits: a decoder for binary images.

    Args:
        net: Maps z (n, k) to log-odds (n, *shape).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor) -> Independent:
        """Return the laws at the rows of z."""
        logits = self.net(z)
        bits = Bernoulli(logits=logits, validate_args=False)
        return Independent(bits, logits.ndim - 1, validate_args=False)


def residual_encoder(
    outputs: int, *, channels: int = 32, blocks: int = 2, dropout: float = 0.0
) -> nn.Sequential:
    """Return a residual network from images (n, 1, 28, 28) to (n, outputs).

    Args:
        outputs: 2k for a Gaussian code of k numbers.
        channels: At full size; doubled at each halving, 28 → 14 → 7.
        blocks: Residual blocks at each size.
        dropout: Probability, inside the blocks.
    """
    c = channels
    sizes = [ResBlock(c, dropout) for _ in range(blocks)]
    layers: list[nn.Module] = [nn.Conv2d(1, c, 3, padding=1), *sizes]
    for c in (2 * channels, 4 * channels):
        layers.append(nn.Conv2d(c // 2, c, 4, stride=2, padding=1))
        layers += [ResBlock(c, dropout) for _ in range(blocks)]
    head = [nn.SiLU(), nn.Flatten(), nn.Linear(49 * c, outputs)]
    return nn.Sequential(*layers, *head)


def residual_decoder(
    k: int, *, channels: int = 32, blocks: int = 2, dropout: float = 0.0
) -> nn.Sequential:
    """Return the mirror image: from codes (n, k) to images (n, 1, 28, 28).

    Args:
        k: Dimension of the code.
        channels: At full size; four times as many at 7 × 7.
        blocks: Residual blocks at each size.
        dropout: Probability, inside the blocks.
    """
    c = 4 * channels
    layers: list[nn.Module] = [nn.Linear(k, 49 * c), nn.Unflatten(1, (c, 7, 7))]
    layers += [ResBlock(c, dropout) for _ in range(blocks)]
    for c in (2 * channels, channels):
        layers.append(nn.ConvTranspose2d(2 * c, c, 4, stride=2, padding=1))
        layers += [ResBlock(c, dropout) for _ in range(blocks)]
    return nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(c, 1, 3, padding=1))


# The model


class VAE(Model):
    """A latent z ~ π, a decoder p(x | z) and an encoder q(z | x).

    It has a density, log p(x) = log ∫ p(x | z) π(dz), but no formula for it:
    ``elbo`` and ``log_prob_iw`` bound it from below.

    Args:
        encoder: x (n, *shape) ↦ q(· | x), laws of n latents.
        decoder: z (n, k) ↦ p(· | z), laws of n data.
        prior: π, a law on R^k that answers ``sample`` and ``log_prob``.

    Attributes:
        beta: Price of the rate in the loss: 1 for the bound.  A run may raise it
            from 0 in its first steps, so that latents are taken up before they
            are charged for.
    """

    def __init__(self, encoder: Conditional, decoder: Conditional, prior: Law) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior
        self.beta = 1.0

    def terms(
        self, x: Tensor, *, rng: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return log p(x | z) at a draw z ~ q(· | x), and KL(q ‖ π), both (n,)."""
        q = self.encoder(x)
        z = draw(q, rng=rng)
        return self.decoder(z).log_prob(x), divergence(q, self.prior, z)

    def elbo(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return one draw of the bound at each point of x, in nats, shape (n,)."""
        fit, rate = self.terms(x, rng=rng)
        return fit - rate  # (eq:vae-elbo)

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return minus the mean of the bound over the batch, shape ()."""
        fit, rate = self.terms(x, rng=rng)
        return -(fit - self.beta * rate).mean()  # (eq:vae-loss)

    @torch.no_grad()
    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw z ~ π, then x ~ p(· | z), shape (n, *shape)."""
        return draw(self.decoder(self.prior.sample(n, rng=rng)), rng=rng)

    def log_weights(
        self, x: Tensor, samples: int = 1, *, rng: Generator | None = None
    ) -> Tensor:
        """Return log p(x, z) − log q(z | x) at draws z ~ q(· | x).

        Each entry is an unbiased draw of the bound, with no closed form inside.

        Args:
            x: Data, shape (n, *shape).
            samples: K, how many z for each x.
            rng: Source of the draws.

        Returns:
            Shape (K, n).
        """
        return self.weigh(x, self.encoder(x), samples, rng=rng)

    def weigh(
        self, x: Tensor, q: Distribution, samples: int, *, rng: Generator | None = None
    ) -> Tensor:
        """Return ``log_weights`` for an encoding q = q(· | x) that is at hand."""
        z = draw(q, (samples,), rng=rng)
        return self.log_joint(x, z) - q.log_prob(z)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x, z), shape (K, n), at latents z (K, n, k) of x (n, *shape)."""
        rows = z.flatten(0, 1)
        fit = self.decoder(rows).log_prob(x.repeat(len(z), *[1] * (x.ndim - 1)))
        return (fit + self.prior.log_prob(rows)).view(z.shape[:2])

    @torch.no_grad()
    def log_prob_iw(
        self,
        x: Tensor,
        *,
        samples: int = 1000,
        chunk: int = 16384,
        rng: Generator | None = None,
    ) -> Tensor:
        """Estimate log p(x) by importance sampling; low on average (eq:vae-iw).

        Args:
            x: Data, shape (n, *shape).
            samples: K, how many z for each x.
            chunk: How many z are decoded at once, which bounds the memory.
            rng: Source of the draws.

        Returns:
            log 1/K Σₖ p(x, zₖ)/q(zₖ | x) in nats, shape (n,).

        Raises:
            ValueError: ``samples`` or ``chunk`` is not positive.
        """
        positive("samples", samples)
        positive("chunk", chunk)
        size = min(len(x), 128, chunk)
        blocks = x.split(size) if len(x) else ()
        per = chunk // max(size, 1)
        sums = [self.log_sum(b, samples, per, rng=rng) for b in blocks]
        return torch.cat([x.new_empty(0), *sums]) - math.log(samples)

    def log_sum(
        self, x: Tensor, samples: int, per: int, *, rng: Generator | None = None
    ) -> Tensor:
        """Return log Σₖ of ``samples`` weights, ``per`` at a time, shape (n,)."""
        q = self.encoder(x)
        total = x.new_full((len(x),), -math.inf)
        for start in range(0, samples, per):
            w = self.weigh(x, q, min(per, samples - start), rng=rng)
            total = total.logaddexp(w.logsumexp(0))
        return total


# Two gradients of E_q f


def pathwise_gradient(
    f: Callable[[Tensor], Tensor],
    mean: Tensor,
    std: Tensor,
    n: int,
    *,
    rng: Generator | None = None,
) -> Tensor:
    """Draw n values of ∇f(z), each unbiased for ∇_μ E f (eq:vae-pathwise).

    Args:
        f: From points (n, k) to values (n,), differentiable.
        mean: μ, shape (k,).
        std: σ, shape (k,).
        n: How many draws.
        rng: Source of the draws.

    Returns:
        Shape (n, k).
    """
    z = draw(normal(mean[None], std), (n,), rng=rng)[:, 0]
    z = z.detach().requires_grad_()
    return torch.autograd.grad(f(z).sum(), z)[0]


def score_gradient(
    f: Callable[[Tensor], Tensor],
    mean: Tensor,
    std: Tensor,
    n: int,
    *,
    rng: Generator | None = None,
) -> Tensor:
    """Draw n values of f(z) ∇_μ log q(z), also unbiased (eq:vae-score-gradient).

    Args:
        f: From points (n, k) to values (n,); its gradient is not used.
        mean: μ, shape (k,).
        std: σ, shape (k,).
        n: How many draws.
        rng: Source of the draws.

    Returns:
        Shape (n, k).
    """
    z = draw(normal(mean[None], std), (n,), rng=rng)[:, 0]
    return f(z)[:, None] * (z - mean) / std**2


# The linear model, where all is known


class LinearGaussian(NamedTuple):
    """z ~ N(0, I), x | z ~ N(m + Wz, σ²I) (eq:vae-linear).

    Attributes:
        m: Mean, shape (d,).
        W: Loadings, shape (d, k).
        sigma: σ > 0, shape ().
    """

    m: Tensor
    W: Tensor
    sigma: Tensor

    def decoder(self, z: Tensor) -> Independent:
        """Return p(· | z) at the rows of z (n, k)."""
        return normal(self.m + z @ self.W.mT, self.sigma)

    def marginal(self) -> Gaussian:
        """Return the law of x, N(m, WWᵀ + σ²I)."""
        eye = torch.eye(len(self.m), dtype=self.W.dtype, device=self.W.device)
        cov = self.W @ self.W.mT + self.sigma**2 * eye
        return Gaussian(self.m, (cov + cov.mT) / 2)

    def precision(self) -> Tensor:
        """Return Λ = I + WᵀW/σ², the precision of z given x, shape (k, k)."""
        eye = torch.eye(self.W.shape[1], dtype=self.W.dtype, device=self.W.device)
        return eye + self.W.mT @ self.W / self.sigma**2

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """Return p(z | x) = N(Λ⁻¹Wᵀ(x − m)/σ², Λ⁻¹) at the rows of x (n, d)."""
        cov = self.precision().inverse()  # (eq:vae-linear-posterior)
        mean = (x - self.m) @ self.W @ cov / self.sigma**2
        return MultivariateNormal(mean, cov)


def ppca(x: Tensor, k: int, *, sigma: float | None = None) -> LinearGaussian:
    """Fit the linear model by maximum likelihood, in closed form (eq:vae-ppca).

    Args:
        x: Data, shape (n, d), n > 1.
        k: Dimension of z, 1 ≤ k < d.
        sigma: Noise level; learned if absent.  Directions of the data with less
            variance than a given σ² get no latent: their columns of W are zero.

    Raises:
        ValueError: A bad shape or k, or data without noise to fit.
    """
    if x.ndim != 2 or not 1 <= k < x.shape[1]:
        raise ValueError(f"k must be in [1, d) for x (n, d), got {k}, {tuple(x.shape)}")
    values, vectors = torch.linalg.eigh(torch.cov(x.mT, correction=0))
    values, vectors = values.flip(0), vectors.flip(1)
    var = values[k:].mean() if sigma is None else x.new_tensor(sigma**2)
    positive("sigma", float(var))
    W = vectors[:, :k] * (values[:k] - var).clamp(min=0).sqrt()
    return LinearGaussian(x.mean(0), W, var.sqrt())


def linear_vae(law: LinearGaussian) -> VAE:
    """Return the VAE with this decoder and the best linear diagonal encoder.

    Its encoder has the exact posterior mean and the variances 1/Λⱼⱼ.
    """
    d, k = law.W.shape
    decoder = nn.Linear(k, d, dtype=law.W.dtype, device=law.W.device)
    encoder = nn.Linear(d, 2 * k, dtype=law.W.dtype, device=law.W.device)
    noise = NoisyNet(decoder, sigma=float(law.sigma), floor=0.0).to(law.W)
    Lambda = law.precision()
    gain = torch.linalg.solve(Lambda, law.W.mT) / law.sigma**2  # (k, d)
    with torch.no_grad():
        decoder.weight.copy_(law.W)
        decoder.bias.copy_(law.m)
        encoder.weight.copy_(torch.cat([gain, torch.zeros_like(gain)]))
        encoder.bias.copy_(torch.cat([-gain @ law.m, -Lambda.diagonal().log()]))
    return VAE(GaussianNet(encoder), noise, StandardNormal(k).to(law.W))
