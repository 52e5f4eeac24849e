"""The reverse KL, its entropy and its gradient (book/objectives/reverse.md).

    x = m + s z,  z ~ N(0, I)                                (eq:gaussian-push)
    F_τ(θ) = E[τ log p_θ(x) − log p̃(x)],  x = g_θ(z)           (eq:free-energy)
    s² (1 − a² + a² E tanh²(a s Z)) = τ                  (eq:symmetric-variance)
    ∇_θ E f(x) = E[∂_θ g ∇f(x)]                             (eq:path-gradient)
    ∇_θ E f(x) = E[f(x) ∇_θ log p_θ(x)]                    (eq:score-gradient)

At τ = 1 and a normalised p̃ = p the free energy F is KL(p_θ ‖ p); at τ = 0 the
entropy is gone and the minimiser is a point mass at a mode of p.

References:
    Williams (1992), Simple statistical gradient-following algorithms.
    Kingma, Welling (2014), Auto-encoding variational Bayes.
    Roeder, Wu, Duvenaud (2017), Sticking the landing.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.func import grad, jacrev

from ..distributions import LOG_2PI, Law, Mixture
from ..model import Density
from ..nn import randn
from .likelihood import Rule, normal_rule

__all__ = [
    "GaussianPush",
    "Gradients",
    "Stationary",
    "descend",
    "free_energy",
    "gradients",
    "reverse_kl",
    "stationary",
    "symmetric_variance",
]

LogDensity = Callable[[Tensor], Tensor]


class GaussianPush(Density):
    """The push-forward x = m + s ⊙ z of z ~ N(0, I) on R^d (eq:gaussian-push).

    Args:
        m: First mean, shape (d,).
        s: First standard deviations, shape (d,), positive.

    Raises:
        ValueError: Shapes that differ, or an s that is not positive.
    """

    def __init__(self, m: Tensor, s: Tensor) -> None:
        super().__init__()
        if m.ndim != 1 or m.shape != s.shape or not (s > 0).all():
            raise ValueError(f"m and s > 0 must have one shape (d,), got {m}, {s}")
        self.m = nn.Parameter(m.clone())
        self.log_s = nn.Parameter(s.log())

    def forward(self, z: Tensor) -> Tensor:
        """Return x = m + s ⊙ z, shape (n, d)."""
        return self.m + self.log_s.exp() * z

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw n points, shape (n, d); gradients pass through them."""
        return self(randn((n, len(self.m)), self.m, rng=rng))

    def log_prob(self, x: Tensor) -> Tensor:
        """Return Σ_j log N(x_j; m_j, s_j²), shape (n,)."""
        z = (x - self.m) / self.log_s.exp()
        return -(z.square() / 2 + self.log_s + LOG_2PI / 2).sum(-1)


def free_energy(
    model: GaussianPush, log_target: LogDensity, noise: Rule, *, tau: float = 1.0
) -> Tensor:
    """Return F_τ = E[τ log p_θ(x) − log p̃(x)], a scalar (eq:free-energy).

    Args:
        model: p_θ; the gradient goes through its samples x = g_θ(z).
        log_target: log p̃, normalised or not, from (n, d) to (n,).
        noise: Stands for N(0, I): a quadrature, or fresh draws.
        tau: The temperature τ ≥ 0.  1 is the reverse KL, 0 forgets the entropy.
    """
    x = model(noise.x)
    return noise.w @ (tau * model.log_prob(x) - log_target(x))


def reverse_kl(model: GaussianPush, target: Law, noise: Rule) -> Tensor:
    """Return KL(p_θ ‖ p) in nats, a scalar: (eq:free-energy) with τ = 1."""
    return free_energy(model, target.log_prob, noise)


def descend(
    model: nn.Module, objective: Callable[[], Tensor], *, steps: int, lr: float
) -> Iterator[float]:
    """Lower an objective by Adam; yield its value at each step, after the step.

    Args:
        model: Its parameters are changed in place.
        objective: Returns a scalar that depends on them; it may draw noise.
        steps: How many.
        lr: Learning rate.
    """
    adam = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        adam.zero_grad()
        value = objective()
        value.backward()
        adam.step()
        yield value.item()


def symmetric_variance(
    a: float, *, tau: float = 1.0, noise: Rule | None = None
) -> float:
    """Return the one s² > 0 that solves (eq:symmetric-variance), by bisection.

    Args:
        a: The target is ½N(−a, 1) + ½N(a, 1), a ≥ 0.
        tau: The temperature τ > 0.
        noise: A rule of N(0, 1); by default :func:`normal_rule`.
    """
    if a < 0 or not tau > 0:
        raise ValueError(f"a ≥ 0 and tau > 0 are needed, got {a}, {tau}")
    z, w = normal_rule() if noise is None else noise
    low, high = 0.0, a**2 + 2 * tau  # s² ≤ 2τ + 2a²/π, as E|Z| = √(2/π)
    for _ in range(200):
        v = (low + high) / 2
        tanh2 = w @ (a * math.sqrt(v) * z[:, 0]).tanh().square()
        left = v * (1 - a**2 + a**2 * tanh2)  # (eq:symmetric-variance)
        low, high = (v, high) if left < tau else (low, v)
    return (low + high) / 2


class Stationary(NamedTuple):
    """A Gaussian N(m, s²) where the gradient of KL(· ‖ p) vanishes.

    Attributes:
        m: Its mean.
        s: Its standard deviation.
        kl: KL(N(m, s²) ‖ p) in nats.
        gradient: Norm of the gradient in (m, log s), the certificate.
        curvature: Least eigenvalue of the Hessian in (m, log s): positive at a
            minimum, negative at a saddle.
    """

    m: float
    s: float
    kl: float
    gradient: float
    curvature: float


def stationary(
    target: Mixture, m: float, s: float, *, noise: Rule | None = None, steps: int = 20
) -> Stationary:
    """Find a stationary point of the reverse KL near N(m, s²), by Newton's method.

    Args:
        target: p, on R^1.
        m: Where to start.
        s: Where to start, positive.
        noise: A rule of N(0, 1); by default :func:`normal_rule`.
        steps: Newton steps; ``gradient`` tells whether they were enough.
    """
    z, w = normal_rule() if noise is None else noise

    def kl(theta: Tensor) -> Tensor:
        x = theta[0] + theta[1].exp() * z
        return -theta[1] - (LOG_2PI + 1) / 2 - w @ target.log_prob(x)

    slope, curvature = grad(kl), jacrev(grad(kl))
    theta = z.new_tensor([m, math.log(s)])
    for _ in range(steps):
        theta = theta - torch.linalg.solve(curvature(theta), slope(theta))
    least = torch.linalg.eigvalsh(curvature(theta))[0].item()
    size = slope(theta).norm().item()
    m, log_s = theta.tolist()
    return Stationary(m, math.exp(log_s), kl(theta).item(), size, least)


class Gradients(NamedTuple):
    """Unbiased estimates of ∇KL(p_θ ‖ p) in (m, log s), one per draw, (n, 2d).

    Attributes:
        path: Through the samples (eq:path-gradient).
        landing: The same without the term whose mean is zero.
        score: Through the density (eq:score-gradient).
    """

    path: Tensor
    landing: Tensor
    score: Tensor


def gradients(model: GaussianPush, target: Mixture, z: Tensor) -> Gradients:
    """Return three estimates of the gradient of the reverse KL from noise z (n, d)."""
    with torch.no_grad():
        s, x = model.log_s.exp(), model(z)
        pull = target.score(x)
        f = (model.log_prob(x) - target.log_prob(x))[:, None]
        own = torch.cat([z / s, z.square() - 1], dim=-1)  # ∇_θ log p_θ(x)
        through = torch.cat([-z / s - pull, -z.square() - s * z * pull], dim=-1)
    return Gradients(through + own, through, f * own)
