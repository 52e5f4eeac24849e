"""What a variational autoencoder learns from n data (book/vae/estimation.md).

The loss of a datum compares the bound with the truth; its mean is what learning
has left to do, in the model and in the encoder:

    m(x) = log p_D(x)/p_θ(x) + KL(q_φ(· | x) ‖ p_θ(· | x))           (eq:est-loss)
    E m = KL(p_D ‖ p_θ) + E KL(q_φ(· | x) ‖ p_θ(· | x))              (eq:est-risk)

Where the model is linear, the minimiser of the empirical mean is known, so that
rates can be measured without an optimiser.  The prior may be learned, too.

References:
    Tang, Yang (2021), On empirical Bayes variational autoencoder.
    Tomczak, Welling (2018), VAE with a VampPrior.
    Tipping, Bishop (1999), Probabilistic principal component analysis.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.func import grad, jacrev, vmap

from ..distributions import LOG_2PI, Gaussian, positive
from ..objectives import normal_rule
from .gauss import Conditional, draw

__all__ = [
    "CurveGap",
    "VampPrior",
    "curve_constant",
    "curve_gap",
    "fixed_noise_risk",
    "flatten_spectrum",
    "linear_risks",
    "moment_factor",
    "normal_kl",
    "oracle_bound",
]


# The linear model: the minimiser in closed form.


def normal_kl(m0: Tensor, S0: Tensor, m1: Tensor, S1: Tensor) -> Tensor:
    """Return KL(N(m0, S0) ‖ N(m1, S1)) in nats, batched over leading sizes.

    Args:
        m0: Mean, (…, d).
        S0: Covariance, (…, d, d).
        m1: Mean of the other law.
        S1: Its covariance.
    """
    L0, L1 = torch.linalg.cholesky(S0), torch.linalg.cholesky(S1)
    A = torch.linalg.solve_triangular(L1, L0, upper=False)
    u = torch.linalg.solve_triangular(L1, (m1 - m0)[..., None], upper=False)
    log_ratio = diagonal(L1).log().sum(-1) - diagonal(L0).log().sum(-1)
    quadratic = A.square().sum((-2, -1)) + u.square().sum((-2, -1))
    return log_ratio + (quadratic - S0.shape[-1]) / 2  # (eq:est-normal-kl)


def diagonal(A: Tensor) -> Tensor:
    """Return the diagonals of matrices (…, d, d), shape (…, d)."""
    return A.diagonal(dim1=-2, dim2=-1)


def flatten_spectrum(S: Tensor, k: int, *, sigma: float | None = None) -> Tensor:
    """Return the covariance of the best linear model with k latents (eq:est-flatten).

    It keeps the k largest eigenvalues of S and replaces the others by the variance
    of the noise: their mean, or a given σ², below which no eigenvalue stays.

    Args:
        S: Covariances of data, (…, d, d).
        k: Latents, 1 ≤ k < d.
        sigma: Noise level; learned if absent.

    Raises:
        ValueError: A k outside [1, d), or a sigma that is not positive.
    """
    d = S.shape[-1]
    if not 1 <= k < d:
        raise ValueError(f"k must lie in [1, {d}), got {k}")
    values, vectors = torch.linalg.eigh(S)  # ascending
    if sigma is None:
        noise = values[..., : d - k].mean(-1, keepdim=True)
    else:
        positive("sigma", sigma)
        noise = torch.full_like(values[..., :1], sigma**2)
    kept = values[..., d - k :].maximum(noise)
    flat = torch.cat([noise.expand_as(values[..., : d - k]), kept], -1)
    return (vectors * flat[..., None, :]) @ vectors.mT  # (eq:est-flatten)


def linear_risks(
    law: Gaussian, k: int, n: int, repeats: int, *, rng: Generator | None = None
) -> Tensor:
    """Return KL(p_D ‖ p̂) of linear models fitted to ``repeats`` samples of size n.

    Args:
        law: p_D, a Gaussian on R^d.
        k: Latents of the fitted models.
        n: Size of each sample, more than d.
        repeats: How many samples.
        rng: Source of the samples.

    Returns:
        Nats, shape (repeats,): the whole excess risk, as the linear encoder is exact.

    Raises:
        ValueError: n ≤ d, for which the fitted noise may vanish.
    """
    m, S = law.mean(), law.cov()
    if n <= len(m):
        raise ValueError(f"n must exceed the dimension {len(m)}, got {n}")
    risks = []
    for rows in torch.arange(repeats).split(max(1, 2_000_000 // (n * len(m)))):
        x = law.sample(len(rows) * n, rng=rng).view(len(rows), n, -1)
        mean = x.mean(1)
        c = x - mean[:, None]
        fitted = flatten_spectrum(c.mT @ c / n, k)
        risks.append(normal_kl(m, S, mean, fitted))
    return torch.cat(risks)


def fixed_noise_risk(values: Tensor, k: int, sigma: float) -> Tensor:
    """Return the least KL(p_D ‖ p) of linear models with noise σ (eq:est-fixed-noise).

    Args:
        values: Eigenvalues of the covariance of the data, (d,).
        k: Latents.
        sigma: The noise level, not learned.
    """
    positive("sigma", sigma)
    ratio = values.sort().values / sigma**2
    lost = ratio.clone()
    lost[len(ratio) - k :] = lost[len(ratio) - k :].clamp(max=1)  # kept if above σ²
    return (lost - 1 - lost.log()).sum() / 2  # (eq:est-fixed-noise)


# Fast rates: a variance that is small where the risk is.


def moment_factor(D: float) -> float:
    """Return c(D) = D²/(e^(−D) − 1 + D), where E r² ≤ c(D) KL (eq:est-moment)."""
    positive("D", D)
    return D**2 / (math.expm1(-D) + D)


def oracle_bound(
    best: float, size: int, n: int, *, D: float, delta: float, gamma: float
) -> float:
    """Return what the risk of the empirical minimiser stays below (eq:est-oracle).

    Args:
        best: min E m over the class.
        size: N, how many members the class has.
        n: How many data.
        D: Bound of |log p_D/p| and of KL(q ‖ posterior).
        delta: Probability in (0, 1) with which the bound may fail.
        gamma: γ > 0, the price on ``best``.
    """
    B = 2 * moment_factor(D)  # (eq:est-bernstein)
    ell = math.log(2 * size / delta) / n
    slack = (2 + gamma) * (B * (2 + gamma) / (2 * gamma) + D) * ell
    return (1 + gamma) * best + slack  # (eq:est-oracle)


# The price of a Gaussian encoder.


class CurveGap(NamedTuple):
    """How far the best Gaussian is from a posterior, datum by datum.

    Attributes:
        gap: min KL(q ‖ p(· | x)) over q = N(m, s²), nats, (n,).
        gradient: Largest slope left in (m, log s), the certificate.
    """

    gap: Tensor
    gradient: float


def curve_gap(
    curve: Callable[[Tensor], Tensor], x: Tensor, z: Tensor, sigma: float,
    *, steps: int = 12,
) -> CurveGap:  # fmt: skip
    """Fit the best Gaussian to each posterior of x = G(z) + σε, z ~ N(0, 1).

    Args:
        curve: G, from latents (…, 1) to points (…, d).
        x: Data, (n, d).
        z: Where the posteriors peak, roughly: the latents of the data, (n,).  A
            second peak, more than 14 widths away, is not seen.
        sigma: σ > 0.
        steps: Of Newton's method.
    """
    positive("sigma", sigma)
    u, w = normal_rule(97, 8.0)

    def log_joint(z: Tensor, x: Tensor) -> Tensor:
        off = (x - curve(z[:, None])).square().sum(-1) / sigma**2
        return -(z.square() + off) / 2 - LOG_2PI / 2

    def free_energy(theta: Tensor, x: Tensor) -> Tensor:
        m, log_s = theta
        log_q = -log_s - (LOG_2PI + 1) / 2
        return log_q - w @ log_joint(m + log_s.exp() * u[:, 0], x)

    slope, bend = vmap(grad(free_energy)), vmap(jacrev(grad(free_energy)))
    rate = vmap(jacrev(lambda z: curve(z[None])))(z[:, None]).flatten(1)  # G′
    width = (1 + rate.square().sum(1) / sigma**2).rsqrt()
    theta = torch.stack([z, width.log()], 1)
    for _ in range(steps):
        move = torch.linalg.solve(bend(theta, x), slope(theta, x))
        theta = theta - move * (0.5 / move.abs().amax(1, keepdim=True)).clamp(max=1)
    value = vmap(free_energy)(theta, x)
    t = torch.linspace(-14, 14, 801, dtype=x.dtype)
    grid = theta[:, :1] + theta[:, 1:].exp() * t
    log_z = vmap(log_joint)(grid, x).logsumexp(1) + theta[:, 1] + (t[1] - t[0]).log()
    return CurveGap(value + log_z, slope(theta, x).abs().max().item())


def curve_constant(curve: Callable[[Tensor], Tensor]) -> Tensor:
    """Return lim E gap/σ² = ¾ E[⟨G′, G″⟩²/|G′|⁶], z ~ N(0, 1) (eq:est-curve).

    Args:
        curve: G, from latents (1,) to points (d,).
    """
    u, w = normal_rule(401, 9.0)
    first = vmap(jacrev(curve))(u).flatten(1)
    second = vmap(jacrev(jacrev(curve)))(u).flatten(1)
    skew = (first * second).sum(1).square() / first.square().sum(1) ** 3
    return 0.75 * w @ skew  # (eq:est-curve)


# A prior that is learned.


class VampPrior(nn.Module):
    """The mean of the encoder's laws at K pseudo-data (eq:est-vamp).

    With the data themselves as pseudo-data it is the aggregated posterior of the
    sample, which no prior beats on that sample.

    Args:
        encoder: From data to laws of latents; shared with the model.
        inputs: Where the pseudo-data start, (K, *shape).
        learn: Whether they are parameters.

    Raises:
        ValueError: No pseudo-data.
    """

    inputs: Tensor

    def __init__(
        self, encoder: Conditional, inputs: Tensor, *, learn: bool = True
    ) -> None:
        super().__init__()
        if inputs.ndim < 2 or not len(inputs):
            got = tuple(inputs.shape)
            raise ValueError(f"inputs must be (K, *shape) with K ≥ 1, got {got}")
        self.encoder = encoder
        if learn:
            self.inputs = nn.Parameter(inputs.clone())
        else:
            self.register_buffer("inputs", inputs)

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw n latents, shape (n, k)."""
        device = self.inputs.device if rng is None else rng.device
        j = torch.randint(len(self.inputs), (n,), generator=rng, device=device)
        return draw(self.encoder(self.inputs[j.to(self.inputs.device)]), rng=rng)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log 1/K Σⱼ q(z | uⱼ), shape (n,)."""
        law = self.encoder(self.inputs)  # K laws
        log_q = law.log_prob(z[:, None])  # (n, K)
        return log_q.logsumexp(1) - math.log(len(self.inputs))  # (eq:est-vamp)
