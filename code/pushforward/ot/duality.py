"""Kantorovich's duality: prices that prove a plan optimal.

Chapter: book/ot/duality.md.

    max ⟨a, f⟩ + ⟨b, g⟩   over   f_i + g_j ≤ C_ij               (eq:ot-dual)
    f^c_j = min_i C_ij − f_i                                   (eq:c-transform)
    W_1(μ, ν) = max E_μ f − E_ν f   over 1-Lipschitz f         (eq:kr)

References:
    Kantorovich (1942), On the translocation of masses.
    Villani (2003), Topics in Optimal Transportation, chapter 1.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .kantorovich import cloud, cost, plan, weights

__all__ = [
    "Certificate",
    "Critic",
    "c_transform",
    "certificate",
    "kantorovich_rubinstein",
    "potentials",
]


class Certificate(NamedTuple):
    """What P, f and g prove about the cheapest coupling of a and b.

    If ``marginals`` and ``infeasible`` vanish, then dual ≤ optimum ≤ primal.

    Attributes:
        primal: ⟨C, P⟩.
        dual: ⟨a, f⟩ + ⟨b, g⟩.
        gap: primal − dual; if ``marginals`` and ``infeasible`` vanish, it is zero
            exactly where P, f and g are optimal.
        slack: ⟨P, C − f − g⟩, equal to the gap when the marginals are right.
        infeasible: max(f_i + g_j − C_ij)₊, by how much the prices cheat.
        marginals: Σ_i |(P1)_i − a_i| + Σ_j |(Pᵀ1)_j − b_j|, or ∞ if P has a
            negative entry.
    """

    primal: float
    dual: float
    gap: float
    slack: float
    infeasible: float
    marginals: float


class Critic(NamedTuple):
    """An optimal critic: f(t) = min_j ‖t − y_j‖ + h_j (eq:critic).

    Attributes:
        value: E_μ f − E_ν f = W_1(μ, ν), a scalar.
        gap: Cost of the best plan minus ``value``.
        y: The points y_j (m, d).
        h: The heights h_j (m,).
    """

    value: Tensor
    gap: float
    y: Tensor
    h: Tensor

    def __call__(self, t: Tensor) -> Tensor:
        """Return f at the points t (k, d), shape (k,); f is 1-Lipschitz."""
        return (cost(t, self.y, 1) + self.h).amin(1)  # (eq:critic)


def c_transform(f: Tensor, C: Tensor) -> Tensor:
    """Return f^c_j = min_i C_ij − f_i (eq:c-transform), shape (m,).

    The transform of a g over the columns is ``c_transform(g, C.T)``.

    Args:
        f: Potential of the rows (n,).
        C: Costs (n, m).

    Raises:
        ValueError: f does not have an entry for each row of C.
    """
    if f.shape != C.shape[:1]:
        raise ValueError(f"f must be {tuple(C.shape[:1])}, got {tuple(f.shape)}")
    return (C - f[:, None]).amin(0)  # (eq:c-transform)


def certificate(
    C: Tensor,
    P: Tensor,
    f: Tensor,
    g: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
) -> Certificate:
    """Judge a plan and a pair of potentials, wherever they come from.

    Args:
        C: Costs (n, m).
        P: A would-be coupling (n, m).
        f: Potential of the rows (n,).
        g: Potential of the columns (m,).
        a: Weights of the rows (n,); uniform if left out.
        b: Weights of the columns (m,); uniform if left out.

    Raises:
        ValueError: Shapes that do not agree, or bad weights.
    """
    if P.shape != C.shape or (*f.shape, *g.shape) != C.shape:
        shapes = [tuple(t.shape) for t in (P, f, g)]
        raise ValueError(f"P, f, g must fit C {tuple(C.shape)}, got {shapes}")
    C, P, f, g = (t.detach().double() for t in (C, P, f, g))
    a, b = weights("a", a, len(f), C), weights("b", b, len(g), C)
    primal, dual = (C * P).sum(), a @ f + b @ g  # (eq:ot-dual)
    spare = C - f[:, None] - g
    slack, infeasible = (P * spare).sum(), (-spare).amax().clamp(min=0) + 0.0
    error = (P.sum(1) - a).abs().sum() + (P.sum(0) - b).abs().sum()
    marginals = torch.where((P < 0).any(), torch.inf, error)
    parts = (primal, dual, primal - dual, slack, infeasible, marginals)
    return Certificate(*(float(t) for t in parts))


def potentials(C: Tensor, P: Tensor) -> tuple[Tensor, Tensor]:
    """Return optimal f (n,) and g (m,) from the support of an optimal plan.

    f_k is the length of the shortest path to k where going from i to k costs
    w_ik = min {C_kj − C_ij : P_ij > 0} (eq:ot-shortest-path), by the algorithm
    of Bellman and Ford.  Only the support of P is used.

    Args:
        C: Costs (n, m).
        P: An optimal coupling (n, m).

    Raises:
        ValueError: There is a cycle of negative length, so P is not optimal.
    """
    rows = [(C - C[i])[:, P[i] > 0] for i in range(len(C))]
    w = torch.stack([r.amin(1) if r.shape[1] else C[:, 0] + torch.inf for r in rows])
    f, rounding = C.new_zeros(len(C)), 64 * torch.finfo(C.dtype).eps * C.abs().max()
    for _ in range(len(C) + 1):
        shorter = torch.minimum(f, (f[:, None] + w).amin(0))  # (eq:ot-shortest-path)
        if (f - shorter).max() <= rounding:
            return f, c_transform(f, C)
        f = shorter
    raise ValueError("P must be optimal for C: its support has a cycle of lower cost")


def kantorovich_rubinstein(
    x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None
) -> Critic:
    """Return the best 1-Lipschitz critic of μ = Σ a_i δ(x_i) and ν = Σ b_j δ(y_j).

    Args:
        x: Points (n, d), or (n,) on the line.
        y: Points (m, d), or (m,).
        a: Weights of x (n,), of sum 1; uniform if left out.
        b: Weights of y (m,), likewise.

    Returns:
        f, high on μ and low on ν, with E_μ f − E_ν f = W_1 (eq:kr).

    Raises:
        ValueError: As in :func:`~pushforward.ot.cost` and
            :func:`~pushforward.ot.plan`.
    """
    x, y = cloud("x", x.detach()), cloud("y", y.detach())
    best = plan(cost(x, y, 1), a, b)
    f = Critic(best.value, 0.0, y, -best.g)
    a, b = weights("a", a, len(x), x), weights("b", b, len(y), y)
    value = a @ f(x).double() - b @ f(y).double()  # (eq:kr)
    return Critic(value.to(x.dtype), float(best.value - value), y, -best.g)
