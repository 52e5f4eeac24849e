"""Maximum likelihood is the forward KL (book/objectives/likelihood.md).

    KL(p ‖ q) = E_p[log p(X) − log q(X)]                        (eq:forward-kl)
    m = E_p[X],  Σ = E_p[(X − m)(X − m)ᵀ]                (eq:gaussian-projection)
    V = A⁻¹ B A⁻¹,  A = −E ∇²log p_θ,  B = E ∇log p_θ ∇log p_θᵀ  (eq:sandwich)
    log p(g(z)) = log π(z) − log |det ∂g/∂z|         (eq:push-forward-density)
    bits/dim = (−log p(x) + d log L) / (d log 2)             (eq:bits-per-dim)

Expectations are sums over a :class:`Rule`, weighted points that stand for a
law: data, a Monte Carlo sample, or a quadrature that is exact to rounding.

References:
    Fisher (1922), On the mathematical foundations of theoretical statistics.
    White (1982), Maximum likelihood estimation of misspecified models.
    Dempster, Laird, Rubin (1977), Maximum likelihood via the EM algorithm.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.func import grad, jacrev, vmap

from ..distributions import Gaussian, Law, Mixture

__all__ = [
    "Information",
    "Pushed",
    "Rule",
    "bits_per_dim",
    "dequantise",
    "em_step",
    "empirical",
    "fit_gaussian",
    "information",
    "kl_divergence",
    "line_rule",
    "normal_rule",
    "push_forward",
]


class Rule(NamedTuple):
    """Weighted points that stand for a law: E f(X) = Σᵢ wᵢ f(xᵢ).

    Attributes:
        x: The points, shape (n, d).
        w: Their weights, shape (n,), positive, of sum 1.
    """

    x: Tensor
    w: Tensor

    def mean(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """Return E f(X), shape (...), for f from (n, d) to (n, ...)."""
        return torch.tensordot(self.w, f(self.x), dims=1)


def empirical(x: Tensor) -> Rule:
    """Return the law of the data x (n, d): weight 1/n at each point."""
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"x must have shape (n, d), n ≥ 1, got {tuple(x.shape)}")
    return Rule(x, x.new_full((len(x),), 1 / len(x)))


def normal_rule(nodes: int = 401, span: float = 10.0) -> Rule:
    """Return the trapezoidal rule of N(0, 1) on [−span, span], x (nodes, 1).

    With step h its error is of order exp(−2π c/h) for an f that is analytic in
    the strip |Im z| < c (Trefethen and Weideman, 2014): rounding, for h = 1/20
    and c ≥ 0.3.  Gauss–Hermite needs many more nodes where f has poles.

    Raises:
        ValueError: Fewer than two nodes, or a span that is not positive.
    """
    if nodes < 2 or not span > 0:
        raise ValueError(f"nodes ≥ 2 and span > 0 are needed, got {nodes}, {span}")
    z = torch.linspace(-span, span, nodes, dtype=torch.get_default_dtype())
    return Rule(z[:, None], (-z.square() / 2).softmax(0))


def line_rule(law: Mixture, noise: Rule | None = None) -> Rule:
    """Return the rule of a Gaussian mixture on the line.

    Args:
        law: A mixture of k Gaussians on R^1.
        noise: A rule of N(0, 1) with n points; by default :func:`normal_rule`.

    Returns:
        The points m_j + s_j z_i, shape (k·n, 1), and the products of weights.
    """
    if law.means.shape[1] != 1:
        raise ValueError(f"law must live on R^1, got R^{law.means.shape[1]}")
    z, w = normal_rule() if noise is None else noise
    x = law.means + law.covs[..., 0].sqrt() * z.T  # (k, n)
    return Rule(x.reshape(-1, 1), (law.log_weights.exp()[:, None] * w).flatten())


def kl_divergence(p: Law, q: Law, rule: Rule) -> Tensor:
    """Return KL(p ‖ q) in nats, a scalar; ``rule`` stands for p (eq:forward-kl)."""
    return rule.mean(lambda x: p.log_prob(x) - q.log_prob(x))


def fit_gaussian(data: Rule) -> Gaussian:
    """Return the Gaussian of greatest likelihood (eq:gaussian-projection).

    Args:
        data: The law to fit, on R^d; :func:`empirical` makes one from points.
    """
    m = data.w @ data.x
    c = data.x - m
    cov = (data.w * c.T) @ c
    return Gaussian(m, (cov + cov.T) / 2)


def em_step(law: Mixture, data: Rule) -> Mixture:
    """Return the mixture after one step of EM; the likelihood does not fall.

    Args:
        law: A mixture of k Gaussians on R^d.
        data: The law to fit, on R^d.
    """
    r = law.log_joint(data.x).softmax(-1) * data.w[:, None]  # (n, k)
    w = r.sum(0)
    m = r.T @ data.x / w[:, None]
    c = data.x[:, None] - m  # (n, k, d)
    covs = torch.einsum("nk,nki,nkj->kij", r, c, c) / w[:, None, None]
    return Mixture(m, (covs + covs.mT) / 2, w)


class Information(NamedTuple):
    """What a likelihood knows of its parameter (eq:sandwich).

    Attributes:
        A: Curvature −E ∇²log p_θ, shape (k, k).
        B: Covariance of the score E ∇log p_θ ∇log p_θᵀ, shape (k, k).
        V: Asymptotic covariance A⁻¹ B A⁻¹ of √n (θ̂ − θ), shape (k, k).
    """

    A: Tensor
    B: Tensor
    V: Tensor


def information(
    log_prob: Callable[[Tensor, Tensor], Tensor], theta: Tensor, rule: Rule
) -> Information:
    """Return A, B and the sandwich V at theta (eq:sandwich).

    Args:
        log_prob: Takes theta (k,) and x (n, d) to log p_θ(x), shape (n,).
        theta: The best parameter of the family, shape (k,).
        rule: Stands for the law of the data, whether in the family or not.
    """

    def one(t: Tensor, point: Tensor) -> Tensor:
        return log_prob(t, point[None])[0]

    def risk(t: Tensor) -> Tensor:
        return -(rule.w @ log_prob(t, rule.x))

    s = vmap(grad(one), in_dims=(None, 0))(theta, rule.x)  # (n, k)
    A = jacrev(grad(risk))(theta)
    B = (rule.w * s.T) @ s
    return Information(A, B, torch.linalg.solve(A, torch.linalg.solve(A, B).T))


class Pushed(NamedTuple):
    """Points of a push-forward and its log-density there.

    Attributes:
        x: x = g(z), shape (n, d).
        log_prob: log p(x), shape (n,), with respect to the volume of the image
            of g: Lebesgue measure when k = d, length or area when k < d.
    """

    x: Tensor
    log_prob: Tensor


def push_forward(g: Callable[[Tensor], Tensor], base: Law, z: Tensor) -> Pushed:
    """Return g(z) and the density of g#π there (eq:push-forward-density).

    Args:
        g: An injective map from (n, k) to (n, d), k ≤ d, row by row.
        base: The law π of the noise, on R^k.
        z: Points of R^k, shape (n, k).

    Raises:
        ValueError: g lowers the dimension, so that it is not injective.
    """
    x = g(z)
    if x.shape[1] < z.shape[1]:
        raise ValueError(f"g must not lower the dimension {z.shape[1]} to {x.shape[1]}")
    jacobian = vmap(jacrev(lambda point: g(point[None])[0]))(z)  # (n, d, k)
    log_volume = torch.linalg.svdvals(jacobian).log().sum(-1)
    return Pushed(x, base.log_prob(z) - log_volume)


def bits_per_dim(nats: Tensor, d: int, levels: int = 256) -> Tensor:
    """Return bits per dimension of data with ``levels`` grey values.

    Args:
        nats: −log p(x) for x = (k + u)/levels in [0, 1]^d, shape (...).
        d: The dimension of x.
        levels: The number L of grey values.

    Returns:
        (nats + d log L) / (d log 2), shape (...), by (eq:bits-per-dim).
    """
    if d < 1 or levels < 2:
        raise ValueError(f"d ≥ 1 and levels ≥ 2 are needed, got {d}, {levels}")
    return (nats / d + math.log(levels)) / math.log(2)


def dequantise(k: Tensor, levels: int = 256, *, rng: Generator | None = None) -> Tensor:
    """Return x = (k + u)/L with u uniform on [0, 1), in the shape of k.

    Args:
        k: Grey values 0, …, L − 1 as floating-point numbers.
        levels: The number L of grey values.
        rng: Source of u.
    """
    if not k.is_floating_point() or k.min() < 0 or k.max() > levels - 1:
        raise ValueError(f"k must be floats in [0, {levels - 1}], got {k.dtype}")
    device = k.device if rng is None else rng.device
    u = torch.rand(k.shape, generator=rng, dtype=k.dtype, device=device)
    return (k + u.to(k.device)) / levels
