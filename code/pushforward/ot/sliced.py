"""The sliced Wasserstein distance (book/ot/sliced.md).

    SW_p(μ, ν)^p = E_θ W_p(θ_# μ, θ_# ν)^p,  θ uniform on the sphere    (eq:sliced)

Every direction asks for a distance on the line, which costs a sort; the mean
over L directions carries its standard error.

References:
    Rabin, Peyré, Delon and Bernot (2012), Wasserstein barycenter and its
    application to texture mixing.
    Bonneel, Rabin, Peyré and Pfister (2015), Sliced and Radon Wasserstein
    barycenters of measures.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from ..nn import randn
from .quantile import quantile, wasserstein_1d

__all__ = [
    "Sliced",
    "slice_constant",
    "sliced_flow",
    "sliced_wasserstein",
    "sphere",
]


class Sliced(NamedTuple):
    """A Monte Carlo value of the sliced distance, and its standard error.

    Attributes:
        distance: SW_p, the p-th root of ``power``; a scalar.
        power: Mean over the directions of W_p^p; unbiased for SW_p^p.
        se: Standard error of ``power``.
    """

    distance: Tensor
    power: Tensor
    se: float


def sphere(n: int, like: Tensor, *, rng: Generator | None = None) -> Tensor:
    """Draw n directions θ (n, d), uniform on the unit sphere of R^d.

    Args:
        n: How many.
        like: Points (..., d) that give dimension, dtype and device.
        rng: Source of the draw.
    """
    z = randn((n, like.shape[-1]), like, rng=rng)
    return z / z.norm(dim=-1, keepdim=True)


def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    *,
    directions: int = 128,
    p: float = 2.0,
    rng: Generator | None = None,
) -> Sliced:
    """Return SW_p between two clouds of points (eq:sliced), by Monte Carlo.

    Args:
        x: Points (n, d); the value is differentiable in them.
        y: Points (m, d), likewise.
        directions: How many, L ≥ 2; the error falls as L^(−1/2).
        p: Order, 1 ≤ p < ∞.
        rng: Source of the directions.

    Raises:
        ValueError: x and y are not points of one dimension, L < 2 or p < 1.
    """
    check_clouds(x, y)
    if directions < 2:
        raise ValueError(f"directions must be at least 2, got {directions}")
    theta = sphere(directions, x.detach(), rng=rng)
    w = wasserstein_1d(theta @ x.mT, theta @ y.mT, p) ** p  # (L,)
    power = w.mean()  # (eq:sliced)
    se = float(w.detach().std()) / math.sqrt(directions)
    return Sliced(power ** (1 / p), power, se)


def check_clouds(x: Tensor, y: Tensor) -> None:
    """Raise a ``ValueError`` unless x and y are points of one dimension."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"x and y must be (n, d), (m, d), got {tuple(x.shape)}, {tuple(y.shape)}"
        )


def slice_constant(d: int, p: float = 2.0) -> float:
    """Return E|θ₁|^p on the sphere of R^d (eq:slice-constant), 1/d for p = 2.

    SW_p^p ≤ E|θ₁|^p · W_p^p.
    """
    if d < 1 or p < 1:
        raise ValueError(f"d and p must be at least 1, got d = {d}, p = {p}")
    log = math.lgamma(d / 2) + math.lgamma((p + 1) / 2)
    return math.exp(log - math.lgamma((d + p) / 2)) / math.sqrt(math.pi)


def sliced_flow(
    x: Tensor,
    y: Tensor,
    *,
    directions: int = 32,
    step: float = 1.0,
    rng: Generator | None = None,
) -> Iterator[Tensor]:
    """Move points down the gradient of SW_2²; yield them after each step.

    Along θ the best displacement takes the point of rank r to the quantile of
    rank r; their mean over the directions, times d, is −(n d/2) ∇ SW_2²
    (eq:sliced-flow), exactly if m divides n.

    Args:
        x: Points that move (n, d); they are not changed.
        y: Points of the target (m, d).
        directions: Fresh directions in each step.
        step: Length τ in (0, 2); τ = 1 adds the mean displacement times d.
        rng: Source of the directions.

    Raises:
        ValueError: x and y are not points of one dimension.
    """
    check_clouds(x, y)
    levels = (torch.arange(len(x)).to(x) + 0.5) / len(x)
    while True:
        theta = sphere(directions, x, rng=rng)
        move = torch.zeros_like(x)
        for line in theta:
            t = x @ line
            best = quantile(levels, y @ line)  # (n,), in increasing order
            rank = t.argsort().argsort()
            move += (best[rank] - t)[:, None] * line
        x = x + step * x.shape[1] / directions * move  # (eq:sliced-flow)
        yield x
