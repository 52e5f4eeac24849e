"""Kantorovich's problem between discrete laws, solved and certified.

Chapter: book/ot/kantorovich.md.

    C_ij = ‖x_i − y_j‖^p                                        (eq:ot-cost)
    T_C(a, b) = min ⟨C, P⟩   over  P ≥ 0,  P1 = a,  Pᵀ1 = b     (eq:ot-primal)
    ⟨C, P⟩ − ⟨a, f⟩ − ⟨b, g⟩ ≥ 0   whenever  f_i + g_j ≤ C_ij   (eq:ot-gap)

The linear program is solved by the network simplex of POT, and the answer is
believed because of its certificate: a feasible P, feasible f and g, no gap.

References:
    Villani (2003), Topics in Optimal Transportation, chapter 1.
    Peyré and Cuturi (2019), Computational Optimal Transport, chapters 2 and 3.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ExactPlan", "cost", "glue", "interpolate", "plan", "product", "wasserstein"]


class ExactPlan(NamedTuple):
    """An optimal coupling with the potentials that certify it.

    Attributes:
        P: The coupling (n, m).
        f: Potential of the rows (n,).
        g: Potential of the columns (m,); f_i + g_j ≤ C_ij.
        value: ⟨C, P⟩, a scalar; its gradient in C is P.
        gap: ⟨C, P⟩ − ⟨a, f⟩ − ⟨b, g⟩ (eq:ot-gap), at least the distance of
            ``value`` from the optimum.
        error: Σ_i |(P1)_i − a_i| + Σ_j |(Pᵀ1)_j − b_j|.
    """

    P: Tensor
    f: Tensor
    g: Tensor
    value: Tensor
    gap: float
    error: float


def cost(x: Tensor, y: Tensor, p: float = 2.0) -> Tensor:
    """Return C_ij = ‖x_i − y_j‖^p (eq:ot-cost), shape (n, m).

    The differences are formed before they are squared: ‖x‖² + ‖y‖² − 2⟨x, y⟩ is
    faster and wrong in float32 for points that are far from the origin.

    Args:
        x: Points (n, d), or (n,) on the line.
        y: Points (m, d), or (m,).
        p: Exponent, 1 ≤ p < ∞.

    Raises:
        ValueError: Shapes that do not agree, points not finite, or p < 1.
    """
    x, y = cloud("x", x), cloud("y", y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"x and y must have one dimension, got {x.shape[1]} and {y.shape[1]}"
        )
    distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return distance if exponent(p) == 1 else distance.pow(p)  # (eq:ot-cost)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return the independent coupling a bᵀ, shape (n, m)."""
    return a[:, None] * b


def plan(C: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> ExactPlan:
    """Solve (eq:ot-primal) exactly.

    Args:
        C: Costs (n, m), finite.
        a: Weights of the rows (n,), ≥ 0, of sum 1; uniform if left out.
        b: Weights of the columns (m,), likewise.

    Returns:
        The plan, in the dtype and on the device of C; the work is in float64.

    Raises:
        ValueError: Shapes that do not agree, costs not finite, weights that are
            negative or do not sum to 1.
        RuntimeError: The network simplex stopped before the optimum.
    """
    if C.ndim != 2 or not C.isfinite().all():
        raise ValueError(f"C must be a finite (n, m) array, got {tuple(C.shape)}")
    a = weights("a", a, C.shape[0], C).detach()
    b = weights("b", b, C.shape[1], C).detach()
    costs = C.detach().double()
    P, f, g = network_simplex(costs, a, b)
    value = (C.double() * P).sum()  # (eq:ot-primal)
    gap = float(value.detach() - a @ f - b @ g)  # (eq:ot-gap)
    error = float((P.sum(1) - a).abs().sum() + (P.sum(0) - b).abs().sum())
    P, f, g, value = (t.to(C.dtype) for t in (P, f, g, value))
    return ExactPlan(P, f, g, value, gap, error)


def network_simplex(C: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return P, f, g from POT; f and g are made feasible (eq:ot-feasible)."""
    import ot  # 1 s of imports that only this solver needs

    scale = C.abs().max().clamp(min=torch.finfo(C.dtype).tiny)
    arrays = (t.cpu().numpy() for t in (a, b, C / scale))
    P, log = ot.emd(*arrays, numItermax=100_000_000, log=True)
    if log["warning"] is not None:
        raise RuntimeError(f"the network simplex failed: {log['warning']}")
    f = torch.from_numpy(log["u"]).to(C) * scale
    g = (C - f[:, None]).amin(0)  # (eq:ot-feasible)
    f = (C - g).amin(1)
    return torch.from_numpy(P).to(C), f, g


def wasserstein(
    x: Tensor,
    y: Tensor,
    p: float = 2.0,
    a: Tensor | None = None,
    b: Tensor | None = None,
) -> Tensor:
    """Return W_p between Σ_i a_i δ(x_i) and Σ_j b_j δ(y_j) (eq:wasserstein).

    It can be differentiated in x and y.  At distance zero, where W_p has a
    corner, the gradient is taken to be zero.

    Args:
        x: Points (n, d), or (n,) on the line.
        y: Points (m, d), or (m,).
        p: Order, 1 ≤ p < ∞.
        a: Weights of x (n,), of sum 1; uniform if left out.
        b: Weights of y (m,), likewise.

    Returns:
        A scalar, in the unit of x.

    Raises:
        ValueError: As in :func:`cost` and :func:`plan`.
    """
    value = plan(cost(x, y, p), a, b).value
    apart = value > 0
    return torch.where(apart, torch.where(apart, value, 1.0) ** (1 / p), 0.0)


def glue(P: Tensor, Q: Tensor) -> Tensor:
    """Return R_ik = Σ_j P_ij Q_jk / b_j (eq:gluing), shape (n, k).

    P couples a to b and Q couples b to c; R couples a to c through b.

    Args:
        P: A coupling (n, m).
        Q: A coupling (m, k) whose rows have the sums of the columns of P.

    Raises:
        ValueError: The middle marginals of P and Q differ.
    """
    b, other = P.sum(0), Q.sum(1)
    close = 10 * torch.finfo(P.dtype).eps ** 0.5 / max(len(b), 1)
    if b.shape != other.shape or (b - other).abs().max() > close:
        raise ValueError("P and Q must share the middle marginal: P.sum(0), Q.sum(1)")
    share = torch.where(b > 0, 1 / torch.where(b > 0, b, 1.0), 0.0)
    return P @ (share[:, None] * Q)  # (eq:gluing)


def interpolate(x: Tensor, y: Tensor, P: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Return the points (1 − t) x_i + t y_j and their mass P_ij > 0.

    With an optimal P for p > 1 this is McCann's displacement interpolation
    (eq:displacement) at time t.

    Args:
        x: Points (n, d).
        y: Points (m, d).
        P: A coupling (n, m).
        t: Time in [0, 1].

    Returns:
        Points (k, d) and their weights (k,), where k counts the entries P_ij > 0.

    Raises:
        ValueError: t outside [0, 1], or shapes that do not agree.
    """
    if not 0 <= t <= 1:
        raise ValueError(f"t must lie in [0, 1], got {t}")
    if P.shape != (len(x), len(y)):
        raise ValueError(f"P must be {(len(x), len(y))}, got {tuple(P.shape)}")
    i, j = P.nonzero(as_tuple=True)
    return (1 - t) * x[i] + t * y[j], P[i, j]  # (eq:displacement)


def weights(name: str, a: Tensor | None, n: int, like: Tensor) -> Tensor:
    """Return a law on n points in float64, uniform by default, of sum 1.

    Args:
        name: What to call it in a message.
        a: Weights (n,), ≥ 0, whose sum is 1 up to √ε of their precision.
        n: How many.
        like: Where the result lives.
    """
    if a is None:
        return torch.full((n,), 1 / n, dtype=torch.float64, device=like.device)
    if a.shape != (n,) or not a.is_floating_point():
        raise ValueError(
            f"{name} must be {n} floating-point weights, got {tuple(a.shape)} {a.dtype}"
        )
    total = float(a.detach().sum(dtype=torch.float64))
    if not math.isfinite(total) or a.min() < 0:
        raise ValueError(f"{name} must be finite and not negative, got {a}")
    if abs(total - 1) > torch.finfo(a.dtype).eps ** 0.5:
        raise ValueError(f"{name} must sum to 1, got {total}")
    wide = a.to(like.device, torch.float64)
    return wide / wide.sum()


def cloud(name: str, x: Tensor) -> Tensor:
    """Return x as finite points (n, d), where (n,) means d = 1."""
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or 0 in x.shape or not x.is_floating_point():
        raise ValueError(
            f"{name} must be floating-point points (n, d), "
            f"got {tuple(x.shape)} {x.dtype}"
        )
    if not x.isfinite().all():
        raise ValueError(f"{name} must be finite")
    return x


def exponent(p: float) -> float:
    """Return p if 1 ≤ p < ∞, else raise a ``ValueError``."""
    if not 1 <= p < math.inf:
        raise ValueError(f"p must satisfy 1 ≤ p < ∞, got {p}")
    return p
