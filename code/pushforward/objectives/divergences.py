"""Divergences between laws (book/objectives/divergences.md).

    ψ(a, b) = b f(a/b) = sup_u { a u − b f*(u) }                 (eq:perspective)
    D_f(p ‖ q) = Σᵢ ψ(pᵢ, qᵢ)                                   (eq:f-divergence)
    D_f(p ‖ q) = sup_T { E_p T − E_q f*(T) },  T = f′(p/q)     (eq:f-variational)
    log dq/dp = Σ_k ⟨b_k, Δx_k⟩ − h/2 Σ_k ‖b_k‖²                    (eq:girsanov)

A law on a finite set is a vector of weights (..., n); leading dimensions are a
batch.  A law on the line becomes one by :func:`masses`, its weights on a grid.

References:
    Csiszár (1967), Information-type measures of difference.
    Nguyen, Wainwright, Jordan (2010), Estimating divergence functionals.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..distributions import Law

__all__ = [
    "CHI2",
    "DIVERGENCES",
    "HELLINGER",
    "JS",
    "KL",
    "REVERSE_KL",
    "TV",
    "Coupling",
    "Divergence",
    "chi2",
    "energy_distance",
    "entropy",
    "f_divergence",
    "fisher",
    "fisher_divergence",
    "hellinger",
    "js",
    "kl",
    "masses",
    "maximal_coupling",
    "path_log_ratio",
    "perspective",
    "tv",
    "variational_bound",
    "witness",
]

LOG_2 = math.log(2)


class Divergence(NamedTuple):
    """A convex f on [0, ∞) with f(1) = 0, and what the page's table says of it.

    Attributes:
        name: For figures.
        f: t ↦ f(t), for t > 0.
        slope: t ↦ f′(t), the best witness where t = p/q.
        conjugate: u ↦ f*(u) = sup_{t ≥ 0} (ut − f(t)), which may be ∞.
        at_zero: f(0), which may be ∞.
        at_infinity: lim f(t)/t as t → ∞, which may be ∞.
    """

    name: str
    f: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    conjugate: Callable[[Tensor], Tensor]
    at_zero: float
    at_infinity: float


def until(u: Tensor, top: float, value: Tensor) -> Tensor:
    """Return the value where u < top, and ∞ beyond: a conjugate with an end."""
    return torch.where(u < top, value, torch.inf)


KL = Divergence(
    "KL",
    f=lambda t: t * t.log() - t + 1,
    slope=lambda t: t.log(),
    conjugate=lambda u: u.expm1(),
    at_zero=1.0,
    at_infinity=math.inf,
)
REVERSE_KL = Divergence(
    "reverse KL",
    f=lambda t: t - 1 - t.log(),
    slope=lambda t: 1 - 1 / t,
    conjugate=lambda u: until(u, 1, -torch.log1p(-u)),
    at_zero=math.inf,
    at_infinity=1.0,
)
CHI2 = Divergence(
    "χ²",
    f=lambda t: (t - 1) ** 2,
    slope=lambda t: 2 * (t - 1),
    conjugate=lambda u: u.clamp(min=-2) + u.clamp(min=-2) ** 2 / 4,
    at_zero=1.0,
    at_infinity=math.inf,
)
HELLINGER = Divergence(
    "squared Hellinger",
    f=lambda t: (t.sqrt() - 1) ** 2 / 2,
    slope=lambda t: (1 - t.rsqrt()) / 2,
    conjugate=lambda u: until(u, 0.5, (1 / (1 - 2 * u) - 1) / 2),
    at_zero=0.5,
    at_infinity=0.5,
)
JS = Divergence(
    "JS",
    f=lambda t: (t * t.log() - (1 + t) * ((1 + t) / 2).log()) / 2,
    slope=lambda t: (LOG_2 - torch.log1p(1 / t)) / 2,
    conjugate=lambda u: until(u, LOG_2 / 2, -torch.log1p(-torch.expm1(2 * u)) / 2),
    at_zero=LOG_2 / 2,
    at_infinity=LOG_2 / 2,
)
TV = Divergence(
    "TV",
    f=lambda t: (t - 1).abs() / 2,
    slope=lambda t: (t - 1).sign() / 2,
    conjugate=lambda u: torch.where(u > 0.5, torch.inf, u.clamp(min=-0.5)),
    at_zero=0.5,
    at_infinity=0.5,
)
DIVERGENCES = (KL, REVERSE_KL, CHI2, HELLINGER, JS, TV)


def law(name: str, p: Tensor) -> Tensor:
    """Return p (..., n) if it holds weights of sum 1, else raise."""
    if p.ndim == 0 or not p.is_floating_point():
        raise ValueError(f"{name} must be real weights (..., n), got {p}")
    if not (p >= 0).all():  # NaN is not ≥ 0
        raise ValueError(f"{name} must be non-negative, got {p.min():.6g}")
    off = (p.detach().sum(-1) - 1).abs().max()
    if not off < 1e-5:
        raise ValueError(f"{name} must sum to 1, got a sum that is off by {off:.3g}")
    return p


def laws(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Return two laws on the same set, or raise."""
    if p.shape[-1:] != q.shape[-1:]:
        shapes = f"{tuple(p.shape)} and {tuple(q.shape)}"
        raise ValueError(f"p and q must be laws on the same set, got {shapes}")
    return law("p", p), law("q", q)


def perspective(a: Tensor, b: Tensor, divergence: Divergence) -> Tensor:
    """Return ψ(a, b) = b f(a/b), with its limits at zero (eq:perspective).

    ψ(0, b) = b f(0),  ψ(a, 0) = a lim f(t)/t,  ψ(0, 0) = 0.

    Args:
        a: Numbers ≥ 0.
        b: Numbers ≥ 0, of a shape that broadcasts against a.
        divergence: Gives f and its limits.
    """
    inside = (a > 0) & (b > 0)
    ratio = torch.where(inside, a, 1) / torch.where(inside, b, 1)
    at_zero = torch.where((a == 0) & (b > 0), divergence.at_zero, 0.0)
    at_infinity = torch.where((a > 0) & (b == 0), divergence.at_infinity, 0.0)
    return b * divergence.f(ratio) + b * at_zero + a * at_infinity  # f(1) = 0


def f_divergence(p: Tensor, q: Tensor, divergence: Divergence) -> Tensor:
    """Return D_f(p ‖ q) = Σᵢ ψ(pᵢ, qᵢ) in [0, ∞], shape (...) (eq:f-divergence).

    Args:
        p: Weights (..., n).
        q: Weights (..., n).
        divergence: One of :data:`DIVERGENCES`, or the reader's own.

    Raises:
        ValueError: Weights that are negative, do not sum to 1 or do not match.
    """
    p, q = laws(p, q)
    return perspective(p, q, divergence).sum(-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p ‖ q) = Σ p log(p/q) in nats, in [0, ∞], shape (...)."""
    return f_divergence(p, q, KL)


def js(p: Tensor, q: Tensor) -> Tensor:
    """Return JS(p, q) = ½ KL(p ‖ m) + ½ KL(q ‖ m), m = (p + q)/2, in [0, log 2]."""
    return f_divergence(p, q, JS)


def tv(p: Tensor, q: Tensor) -> Tensor:
    """Return TV(p, q) = ½ Σ |p − q| in [0, 1], shape (...) (eq:tv-forms)."""
    return f_divergence(p, q, TV)


def hellinger(p: Tensor, q: Tensor) -> Tensor:
    """Return the *squared* distance H²(p, q) = ½ Σ (√p − √q)² in [0, 1]."""
    return f_divergence(p, q, HELLINGER)


def chi2(p: Tensor, q: Tensor) -> Tensor:
    """Return χ²(p ‖ q) = Σ (p − q)²/q in [0, ∞], shape (...)."""
    return f_divergence(p, q, CHI2)


def witness(p: Tensor, q: Tensor, divergence: Divergence) -> Tensor:
    """Return T = f′(p/q), where (eq:f-variational) is an equality, (..., n).

    It may be ±∞ where p or q is 0, and is f′(1) where both are.
    """
    p, q = laws(p, q)
    null = (p == 0) & (q == 0)
    return divergence.slope(torch.where(null, 1, p) / torch.where(null, 1, q))


def variational_bound(
    T: Tensor, p: Tensor, q: Tensor, divergence: Divergence
) -> Tensor:
    """Return E_p T − E_q f*(T) ≤ D_f(p ‖ q), shape (...) (eq:f-variational).

    Args:
        T: Any witness (..., n); the bound is −∞ where f*(T) = ∞ and q > 0, or
            where T > lim f(t)/t and p > 0.
        p: Weights (..., n).
        q: Weights (..., n).
        divergence: Gives f*.
    """
    p, q = laws(p, q)
    allowed = torch.where(divergence.at_infinity < T, -torch.inf, T)
    gain = p * torch.where(p > 0, allowed, 0)  # 0 · ∞ = 0
    cost = q * torch.where(q > 0, divergence.conjugate(T), 0)
    return gain.sum(-1) - cost.sum(-1)


class Coupling(NamedTuple):
    """A joint law of two points, and how often it moves one.

    Attributes:
        P: P(X = i, Y = j), shape (n, n), of marginals p and q.
        moved: P(X ≠ Y).
    """

    P: Tensor
    moved: Tensor


def maximal_coupling(p: Tensor, q: Tensor) -> Coupling:
    """Return a coupling with P(X ≠ Y) = TV(p, q), the least (eq:maximal-coupling).

    Args:
        p: Weights (n,).
        q: Weights (n,).
    """
    p, q = laws(p, q)
    excess, deficit = (p - q).clamp(min=0), (q - p).clamp(min=0)
    mass = excess.sum()  # TV(p, q), the mass that must move
    rest = torch.outer(excess, deficit) / torch.where(mass > 0, mass, 1)
    P = torch.diag(torch.minimum(p, q)) + rest  # (eq:maximal-coupling)
    return Coupling(P, P.sum() - P.trace())


def energy_distance(p: Tensor, q: Tensor, C: Tensor) -> Tensor:
    """Return 2 E‖X − Y‖ − E‖X − X′‖ − E‖Y − Y′‖ ≥ 0 (eq:div-energy).

    Args:
        p: Law of X and X′, weights (..., n).
        q: Law of Y and Y′, weights (..., n).
        C: Euclidean distances between the n points, shape (n, n).
    """
    p, q = laws(p, q)
    return -torch.einsum("...i,ij,...j->...", p - q, C, p - q)


def masses(p: Law, x: Tensor) -> Tensor:
    """Return p(xᵢ)(x₂ − x₁), the weights of a law on the line on a grid.

    For a smooth density that vanishes at both ends this rule converges faster
    than any power of the step.

    Args:
        p: A law on R¹.
        x: Evenly spaced points (n,), wide enough to hold the law.

    Raises:
        ValueError: A grid that is uneven or does not hold the law.
    """
    if x.ndim != 1 or len(x) < 2 or not torch.allclose(x.diff(), x[1] - x[0]):
        raise ValueError(f"x must be an even grid (n,), got shape {tuple(x.shape)}")
    mass = p.log_prob(x[:, None]).exp() * (x[1] - x[0])
    return law("p on the grid x", mass)


def entropy(p: Law, x: Tensor) -> Tensor:
    """Return h(p) = −∫ p log p in nats, by :func:`masses` on the grid x (n,)."""
    log_p = p.log_prob(x[:, None])
    return -(masses(p, x) * torch.where(log_p > -torch.inf, log_p, 0)).sum()


def slope(p: Law, x: Tensor) -> Tensor:
    """Return (log p)′ on the grid x (n,), by automatic differentiation."""
    x = x.detach()[:, None].requires_grad_()
    with torch.enable_grad():
        total = p.log_prob(x).sum()
    return torch.autograd.grad(total, x)[0][:, 0]


def fisher(p: Law, x: Tensor) -> Tensor:
    """Return the Fisher information ∫ p |(log p)′|², by the grid x (n,)."""
    return (masses(p, x) * slope(p, x) ** 2).sum()


def fisher_divergence(p: Law, q: Law, x: Tensor) -> Tensor:
    """Return ∫ p |(log p/q)′|², by the grid x (n,) (eq:fisher-divergence)."""
    return (masses(p, x) * (slope(p, x) - slope(q, x)) ** 2).sum()


def path_log_ratio(dx: Tensor, b: Tensor, h: float) -> Tensor:
    """Return log dq/dp of paths, shape (n,) (eq:girsanov).

    Under p the increments are N(0, hI), under q they are N(h b_k, hI).

    Args:
        dx: Increments Δx_k, shape (n, steps, d).
        b: Drift b_k along each path, of a shape that broadcasts against dx.
        h: Time between two points, > 0.

    Raises:
        ValueError: Increments that are not (n, steps, d), or h ≤ 0.
    """
    if dx.ndim != 3:
        raise ValueError(f"dx must have shape (n, steps, d), got {tuple(dx.shape)}")
    if not h > 0:
        raise ValueError(f"h must be positive, got {h}")
    return (b * dx - h / 2 * b**2).sum((1, 2))
