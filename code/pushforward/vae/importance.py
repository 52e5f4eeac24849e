"""Importance-weighted bounds and richer guesses (book/vae/importance.md).

Of K draws z₁, …, z_K ~ q(· | x) the weights w = p(x, z)/q(z | x) have mean p(x),
and the logarithm of their average is a bound that rises with K:

    L_K(x) = E log 1/K Σₖ wₖ,    L_1 = ELBO ≤ L_2 ≤ … ≤ log p(x)     (eq:iw-bound)

The gap closes with more draws, or with a richer q: a full covariance, or a flow
that the encoder steers.  A flow is a gift, like a prior: any map that answers
``f(z, c)`` and ``f.inverse(ζ, c)`` with the pair (value, log|det|).

References:
    Burda, Grosse, Salakhutdinov (2016), Importance weighted autoencoders.
    Rezende, Mohamed (2015), Variational inference with normalizing flows.
    Tucker, Lawson, Gu, Maddison (2019), Doubly reparameterized gradient
        estimators for Monte Carlo objectives.
    Kingma, Welling (2019), An introduction to variational autoencoders.
"""

import math
from typing import ClassVar, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal

from ..distributions import positive
from ..model import Model, Player
from ..nn import randn
from .gauss import VAE, draw, normal

__all__ = [
    "IWAE",
    "Bijective",
    "EncoderOnly",
    "FlowLaw",
    "FlowNet",
    "FullGaussianNet",
    "Table",
    "doubly_log_weights",
    "effective_size",
    "gaussian_chi2",
    "importance_bound",
    "mean_field_gap",
    "resample",
]


# The bounds


def importance_bound(log_w: Tensor, samples: int | None = None) -> Tensor:
    """Estimate L_K of each datum from a table of log-weights (eq:iw-bound).

    The rows are cut into groups of K, each group gives one unbiased draw of L_K,
    and the groups are averaged.  On one table the values rise when K is multiplied,
    as the bounds do.

    Args:
        log_w: Shape (rows, n), from ``VAE.log_weights``.
        samples: K, a divisor of the number of rows; by default all of them.

    Returns:
        Shape (n,), in nats.

    Raises:
        ValueError: A table without rows, or a K that does not divide their number.
    """
    if log_w.ndim != 2 or len(log_w) == 0:
        raise ValueError(f"log_w must have shape (rows, n), got {tuple(log_w.shape)}")
    K = len(log_w) if samples is None else samples
    if K < 1 or len(log_w) % K:
        raise ValueError(f"samples must divide the {len(log_w)} rows, got {K}")
    groups = log_w.unflatten(0, (-1, K)).logsumexp(1) - math.log(K)
    return groups.mean(0)  # (eq:iw-bound)


def effective_size(log_w: Tensor) -> Tensor:
    """Return (Σ w)²/Σ w², between 1 and K, for each datum (eq:iw-ess).

    Args:
        log_w: Shape (K, n).
    """
    return (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()  # (eq:iw-ess)


def gaussian_chi2(p: MultivariateNormal, q: MultivariateNormal) -> Tensor:
    """Return χ²(p ‖ q) = ∫ p²/q − 1 of Gaussian laws, (n,) (eq:iw-gaussian-chi2).

    With p the posterior and q the guess it is Var(w)/p(x)²; infinite where q has
    in some direction at most half the variance of p.
    """
    P, Q = p.precision_matrix, q.precision_matrix
    M = 2 * P - Q
    delta = (p.mean - q.mean)[..., None]
    chol, failed = torch.linalg.cholesky_ex(M)
    pull = Q @ delta
    square = pull.mT @ delta + pull.mT @ torch.cholesky_solve(pull, chol)
    logs = P.logdet() - Q.logdet() / 2 - log_det(chol) + square[..., 0, 0] / 2
    return torch.where(failed > 0, math.inf, logs.expm1())  # (eq:iw-gaussian-chi2)


def log_det(chol: Tensor) -> Tensor:
    """Return Σ log Lⱼⱼ of triangular matrices, half the log-determinant of LLᵀ."""
    return chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)


@torch.no_grad()
def resample(
    vae: VAE, x: Tensor, samples: int, *, rng: Generator | None = None
) -> Tensor:
    """Draw K latents from the encoder, keep one with probability ∝ w (eq:iw-resample).

    Its law is nearer to the posterior than the encoder's, by L_K − L_1 or more.

    Args:
        vae: The model.
        x: Data, shape (n, *shape).
        samples: K.
        rng: Source of the draws.

    Returns:
        One latent for each datum, shape (n, k).

    Raises:
        ValueError: ``samples`` is not positive.
    """
    positive("samples", samples)
    q = vae.encoder(x)
    z = draw(q, (samples,), rng=rng)
    share = (vae.log_joint(x, z) - q.log_prob(z)).softmax(0).mT  # (n, K)
    device = share.device if rng is None else rng.device
    kept = torch.multinomial(share.to(device), 1, generator=rng)[:, 0]
    return z[kept.to(z.device), torch.arange(len(x), device=z.device)]


# The gradients


class IWAE(Model):
    """A VAE that is trained on L_K in the place of the ELBO.

    Args:
        vae: Encoder, decoder and prior.
        samples: K, draws for each datum.
        doubly: Whether the encoder follows (eq:iw-doubly), whose signal outgrows
            its noise as K grows, or the plain gradient, whose signal drowns.

    Raises:
        ValueError: ``samples`` is not positive.
    """

    def __init__(self, vae: VAE, samples: int, *, doubly: bool = False) -> None:
        super().__init__()
        positive("samples", samples)
        self.vae = vae
        self.samples = samples
        self.doubly = doubly

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw z ~ π, then x ~ p(· | z), shape (n, *shape)."""
        return self.vae.sample(n, rng=rng)

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return minus the mean over the batch of one draw of L_K, shape ()."""
        weigh = doubly_log_weights if self.doubly else VAE.log_weights
        return -importance_bound(weigh(self.vae, x, self.samples, rng=rng)).mean()


def doubly_log_weights(
    vae: VAE, x: Tensor, samples: int, *, rng: Generator | None = None
) -> Tensor:
    """Return log-weights (K, n) that carry another gradient to the encoder.

    Their values are those of ``VAE.log_weights``.  The gradient of their
    ``importance_bound`` is the usual one in decoder and prior, and (eq:iw-doubly)
    in the encoder.
    """
    q = vae.encoder(x)
    z = draw(q, (samples,), rng=rng)
    log_w = vae.log_joint(x, z) - log_prob_at(q, z)
    if z.requires_grad:
        share = log_w.detach().softmax(0)[..., None]  # w̃, (K, n, 1)
        z.register_hook(lambda slope: share * slope)  # w̃ again: (eq:iw-doubly)
    return log_w


def log_prob_at(q: Distribution, z: Tensor) -> Tensor:
    """Return log q(z) with its slope in z, and none in the parameters of q."""
    point = z.detach().requires_grad_()
    with torch.enable_grad():
        value = q.log_prob(point)
        (slope,) = torch.autograd.grad(value.sum(), point)
    return value.detach() + (slope * (z - z.detach())).sum(-1)


# The gap, taken apart


class Table(nn.Module):
    """An encoder network without a network: a row of parameters for each datum.

    Args:
        rows: Where the parameters start, shape (n, …).
    """

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return the rows, whatever the n data x are.

        Raises:
            ValueError: There are not as many data as rows.
        """
        if len(x) != len(self.rows):
            raise ValueError(f"x must have {len(self.rows)} rows, got {len(x)}")
        return self.rows


class EncoderOnly(Model):
    """A game in which the encoder plays alone: the model of the data stays.

    Args:
        vae: Whose encoder is to be trained.
    """

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw z ~ π, then x ~ p(· | z), shape (n, *shape)."""
        return self.vae.sample(n, rng=rng)

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return minus the mean of the ELBO over the batch, shape ()."""
        return self.vae.loss(x, rng=rng)

    def players(self) -> list[Player]:
        """Return the one player that may change the encoder, and nothing else."""
        if not isinstance(self.vae.encoder, nn.Module):
            raise ValueError(f"encoder must be a Module, got {self.vae.encoder!r}")
        return [Player(list(self.vae.encoder.parameters()), self.loss)]


# Richer guesses


def mean_field_gap(precision: Tensor) -> Tensor:
    """Return ½(Σⱼ log Λⱼⱼ − log det Λ), the gap of the best diagonal Gaussian.

    Args:
        precision: Λ of a Gaussian posterior, shape (…, k, k).
    """
    diagonal = precision.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return (diagonal - precision.logdet()) / 2  # (eq:iw-mean-field)


class FullGaussianNet(nn.Module):
    """x ↦ N(μ(x), L(x) L(x)ᵀ): a guess with correlations (eq:iw-full).

    Args:
        net: Maps x (n, …) to μ, ln L²ⱼⱼ and the entries of L below its diagonal,
            side by side, (n, 2k + k(k − 1)/2).
        k: Dimension of z.
    """

    def __init__(self, net: nn.Module, k: int) -> None:
        super().__init__()
        positive("k", k)
        self.net = net
        self.k = k

    def forward(self, x: Tensor) -> MultivariateNormal:
        """Return the laws at the rows of x."""
        k, h = self.k, self.net(x)
        if h.ndim != 2 or h.shape[1] != k * (k + 3) // 2:
            want = f"(n, {k * (k + 3) // 2})"
            raise ValueError(f"net must return {want}, got {tuple(h.shape)}")
        mu, log_var, below = h.split((k, k, k * (k - 1) // 2), 1)
        i, j = torch.tril_indices(k, k, -1, device=h.device)
        L = (log_var / 2).exp().diag_embed()
        L[:, i, j] = below  # (eq:iw-full)
        return MultivariateNormal(mu, scale_tril=L, validate_args=False)


@draw.register
def draw_full(
    law: MultivariateNormal,
    shape: tuple[int, ...] = (),
    *,
    rng: Generator | None = None,
) -> Tensor:
    """Return z = μ + Lε, differentiable in μ and L."""
    eps = randn((*shape, *law.loc.shape), law.loc, rng=rng)
    return law.loc + (law.scale_tril @ eps[..., None])[..., 0]  # (eq:iw-full)


class Bijective(Protocol):
    """What is asked of a flow: the contract of the book's flows, and no more."""

    def __call__(self, z: Tensor, c: Tensor | None, /) -> tuple[Tensor, Tensor]:
        """Return ζ = f(z), and log |det ∂ζ/∂z|, shape (n,)."""
        ...

    def inverse(self, z: Tensor, c: Tensor | None, /) -> tuple[Tensor, Tensor]:
        """Return z = f⁻¹(ζ), and log |det ∂z/∂ζ|, shape (n,)."""
        ...


class FlowLaw(Distribution):
    """The laws of z = f⁻¹(ζ; c), ζ ~ N(μ, diag σ²), one for each row (eq:iw-flow).

    It remembers its last draw.  The density at that very tensor is known from how
    it was made, so a bound asks for one direction of f only.

    Args:
        base: N(μ, diag σ²) for n rows.
        f: The bijection, from z to ζ.
        c: What steers it, shape (n, …), or None.
    """

    arg_constraints: ClassVar = {}
    has_rsample = False  # the draws of this package have a generator: ``draw``

    def __init__(self, base: Independent, f: Bijective, c: Tensor | None) -> None:
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)
        self.base = base
        self.f = f
        self.c = c
        self.last: tuple[Tensor, Tensor] | None = None

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log q(z) at z (…, n, k), shape (…, n)."""
        if self.last is not None and self.last[0] is value:
            return self.last[1]
        zeta, log_det = self.f(*self.rows(value))
        base = self.base.log_prob(zeta.view_as(value))
        return base + log_det.view_as(base)  # (eq:iw-flow)

    def push(self, zeta: Tensor) -> Tensor:
        """Return z = f⁻¹(ζ) at ζ (…, n, k), and remember log q(z)."""
        z, log_det = self.f.inverse(*self.rows(zeta))
        base = self.base.log_prob(zeta)
        z = z.view_as(zeta)
        self.last = z, base - log_det.view_as(base)  # (eq:iw-flow)
        return z

    def rows(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return z (…, n, k) as rows, and for each row its c."""
        flat = z.reshape(-1, z.shape[-1])
        if self.c is None:
            return flat, None
        repeats = len(flat) // len(self.c) if len(self.c) else 1
        return flat, self.c.repeat(repeats, *[1] * (self.c.ndim - 1))


@draw.register
def draw_flow(
    law: FlowLaw, shape: tuple[int, ...] = (), *, rng: Generator | None = None
) -> Tensor:
    """Return z = f⁻¹(μ + σ ⊙ ε; c), differentiable in all that it is made of."""
    return law.push(draw(law.base, shape, rng=rng))


class FlowNet(nn.Module):
    """x ↦ the law of f⁻¹(ζ; c(x)), ζ ~ N(μ(x), diag σ²(x)): a guess with a shape.

    Args:
        net: Maps x (n, …) to μ, ln σ² and c side by side, (n, 2k + m), m ≥ 0.
        f: A bijection of R^k, from z to ζ, that reads c (n, m): a Module, whose
            parameters are the encoder's.
        k: Dimension of z.
    """

    f: nn.Module

    def __init__(self, net: nn.Module, f: Bijective, k: int) -> None:
        super().__init__()
        positive("k", k)
        if not isinstance(f, nn.Module):
            raise ValueError(f"f must be a Module, got {type(f).__name__}")
        self.net = net
        self.f = f
        self.k = k

    def forward(self, x: Tensor) -> FlowLaw:
        """Return the laws at the rows of x."""
        h = self.net(x)
        if h.ndim != 2 or h.shape[1] < 2 * self.k:
            want = f"(n, {2 * self.k} or more)"
            raise ValueError(f"net must return {want}, got {tuple(h.shape)}")
        mu, log_var, c = h.tensor_split((self.k, 2 * self.k), 1)
        base = normal(mu, (log_var / 2).exp())
        return FlowLaw(base, self.f, c if c.shape[1] else None)  # type: ignore[arg-type]
