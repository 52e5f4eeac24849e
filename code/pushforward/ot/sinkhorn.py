"""Entropic optimal transport (book/ot/sinkhorn.md).

    min_P ⟨C, P⟩ + ε KL(P ‖ a ⊗ b)   with  P1 = a,  Pᵀ1 = b     (eq:entropic-ot)
    P_ij = a_i b_j exp((f_i + g_j − C_ij)/ε)                  (eq:entropic-plan)

Two algorithms, one truth.  ``sinkhorn`` multiplies by the kernel, the fast way:
its potentials absorb the scalings before they overflow, its ε comes down from
where the kernel has no zero, and its sweeps are over-relaxed.  ``sinkhorn_log``
is the plain iteration on the potentials, the short way.

References:
    Cuturi (2013), Sinkhorn distances.
    Franklin and Lorenz (1989), On the scaling of multidimensional matrices.
    Schmitzer (2019), Stabilized sparse scaling algorithms.
    Lehmann, von Renesse, Sambale and Uschmajew (2022), A note on overrelaxation
    in the Sinkhorn algorithm.
    Feydy et al. (2019), Interpolating between optimal transport and MMD.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .kantorovich import cost

__all__ = [
    "EntropicPlan",
    "birkhoff",
    "entropic_cost",
    "entropic_cost_gaussian",
    "hilbert",
    "rounded",
    "sinkhorn",
    "sinkhorn_divergence",
    "sinkhorn_log",
]

EVERY = 10  # sweeps between two estimates of the rate
LOOSE, WARM = 0.05, 100  # tolerance and sweeps at an ε that is passed through
LADDER = 4.0  # ratio of two successive ε


class EntropicPlan(NamedTuple):
    """A coupling and the potentials that certify it.

    Attributes:
        P: The coupling (n, m); its columns sum to b up to rounding.
        f: Potential of the first marginal (n,).
        g: Potential of the second marginal (m,).
        error: Σᵢ |(P1)ᵢ − aᵢ|, how far the rows are from a.
        gap: What (eq:entropic-ot) is at P, less the dual at (f, g).
        steps: Sweeps over the rows and the columns, all ε together.
    """

    P: Tensor
    f: Tensor
    g: Tensor
    error: float
    gap: float
    steps: int


class Scaling(NamedTuple):
    """u and v that give diag(u) K diag(v) its marginals, and how well."""

    u: Tensor
    v: Tensor
    error: float
    steps: int


def check_problem(C: Tensor, a: Tensor, b: Tensor, eps: float, steps: int) -> float:
    """Return max C − min C if (C, a, b, ε) is a problem, else raise."""
    if C.ndim != 2 or 0 in C.shape:
        raise ValueError(f"C must have shape (n, m), got {tuple(C.shape)}")
    low, high = C.detach().aminmax()  # NaN if C has one; cheaper than isfinite
    spread = float(high - low)
    if not spread < math.inf:
        raise ValueError(f"C must be finite, got entries from {low} to {high}")
    for name, w, size in (("a", a, C.shape[0]), ("b", b, C.shape[1])):
        if w.shape != (size,) or w.dtype != C.dtype:
            raise ValueError(
                f"{name} must have shape ({size},) and the dtype {C.dtype} of C, "
                f"got {tuple(w.shape)} and {w.dtype}"
            )
        if not (w > 0).all() or abs(float(w.sum()) - 1) > 1e-4:
            raise ValueError(f"{name} must be positive with sum 1, got {w}")
    if not 0 < eps < math.inf:
        raise ValueError(f"eps must be positive and finite, got {eps}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return spread


@torch.no_grad()
def sinkhorn(
    C: Tensor,
    a: Tensor,
    b: Tensor,
    eps: float,
    *,
    tol: float = 1e-6,
    steps: int = 10_000,
) -> EntropicPlan:
    """Solve (eq:entropic-ot) by scaling a stabilised kernel, over-relaxed.

    Args:
        C: Costs (n, m), finite, float32 or float64.
        a: First marginal (n,), positive, of sum 1.
        b: Second marginal (m,), likewise.
        eps: Strength of the entropy ε > 0, in the unit of C.
        tol: Stop when Σᵢ |(P1)ᵢ − aᵢ| is below; float32 reaches about 1e-6.
        steps: Stop after so many sweeps at ε; ``error`` tells what is missing.

    Raises:
        ValueError: Shapes or dtypes that do not agree, a C that is not finite,
            weights that are no probabilities, or ε ≤ 0.
    """
    spread = check_problem(C, a, b, eps, steps)
    f, g, K, total = torch.zeros_like(a), torch.zeros_like(b), torch.empty_like(C), 0
    for level in ladder(spread, eps, C.dtype):
        goal, left = (tol, steps) if level == eps else (LOOSE, WARM)
        while True:
            gibbs(C, f, g, level, out=K)
            u, v, error, used = scale(K, a, b, goal, left)
            f += level * (u / a).log()  # the potentials absorb the scalings
            g += level * (v / b).log()
            left, total = left - used, total + used
            if error < goal or left <= 0:
                break
    P = K.mul_(u[:, None]).mul_(v)
    gap = float(f @ (P.sum(1) - a))  # (eq:entropic-gap), for exact columns
    return EntropicPlan(P, f, g, error, gap, total)


def ladder(spread: float, eps: float, dtype: torch.dtype) -> list[float]:
    """Return the ε to pass through: from one whose kernel has no zero, down.

    The first is such that exp(−(max C − min C)/ε) is far from underflow.
    """
    least = spread / (-0.5 * math.log(torch.finfo(dtype).tiny))
    levels = [eps]
    while levels[0] < least:
        levels.insert(0, levels[0] * LADDER)
    return levels


def gibbs(C: Tensor, f: Tensor, g: Tensor, eps: float, *, out: Tensor) -> Tensor:
    """Return K_ij = exp((f_i + g_j − C_ij)/ε) (eq:gibbs-kernel), in place."""
    torch.add((f / eps)[:, None], C, alpha=-1 / eps, out=out).add_(g / eps).exp_()
    # Entries near underflow weigh nothing, and subnormal numbers are slow.
    return torch.threshold_(out, torch.finfo(C.dtype).tiny ** 0.75, 0.0)


def scale(K: Tensor, a: Tensor, b: Tensor, tol: float, steps: int) -> Scaling:
    """Scale K to the marginals (a, b), starting from u = a, v = b.

    Stops when the rows are within ``tol`` while the columns are exact, after
    ``steps`` sweeps, or when a scaling comes near overflow.
    """
    u, v, s, t = a.clone(), b.clone(), torch.empty_like(a), torch.empty_like(b)
    torch.mv(K, v, out=s).mul_(u)  # s = P1, the masses of the rows
    top, omega, past, plain, step = torch.finfo(K.dtype).max ** 0.25, 1.0, 0.0, True, 0
    for step in range(1, steps + 1):
        power = 1.0 if plain else omega
        u *= correction(a, s, power)  # (eq:sinkhorn-update)
        torch.mv(K.T, u, out=t).mul_(v)  # t = Pᵀ1, the masses of the columns
        v *= correction(b, t, power)
        torch.mv(K, v, out=s).mul_(u)
        error = float((s - a).abs_().sum())
        if (plain and error < tol) or max(float(u.max()), float(v.max())) > top:
            break
        if step % EVERY == 0:
            omega, past = relaxation(omega, error, past), error
        plain = omega == 1 or error < tol or step == steps - 1
    return Scaling(u, v, error, step)


def correction(target: Tensor, mass: Tensor, omega: float) -> Tensor:
    """Return (target/mass)^ω, or ^1 where so long a step could lose.

    Where mass/target ≥ (ω − 1)^(1/ω) the long step raises the dual by at least
    2 − ω times the rise of the exact one (eq:relaxation-guard).
    """
    if omega == 1:
        return target / mass
    x = mass / target
    return torch.where(x < (omega - 1) ** (1 / omega), 1 / x, x.pow(-omega))


def relaxation(omega: float, error: float, past: float) -> float:
    """Return the best ω for the rate ρ of the last sweeps (eq:young).

    Under ω the slowest mode decays as ρ with (ρ + ω − 1)² = ρ ω² λ; from its λ,
    ω = 2/(1 + √(1 − λ)).
    """
    if past == 0:  # no rate yet
        return omega
    rate = min(max((error / past) ** (1 / EVERY), omega - 1, 1e-3), 0.9999)
    lam = min((rate + omega - 1) ** 2 / (rate * omega**2), 0.9998)
    return 2 / (1 + math.sqrt(1 - lam))


def sinkhorn_log(
    C: Tensor,
    a: Tensor,
    b: Tensor,
    eps: float,
    *,
    tol: float = 1e-9,
    steps: int = 10_000,
) -> EntropicPlan:
    """Solve (eq:entropic-ot) by the soft c-transforms; differentiable.

    The plain iteration: for the page, and as a second opinion on ``sinkhorn``.
    Arguments, result and errors are those of :func:`sinkhorn`.
    """
    check_problem(C, a, b, eps, steps)
    log_a, log_b = a.log()[:, None], b.log()
    g, error, step = torch.zeros_like(b), math.inf, 0
    while error >= tol and step < steps:
        f = -eps * ((g - C) / eps + log_b).logsumexp(1)  # (eq:soft-c-transform)
        g = -eps * ((f[:, None] - C) / eps + log_a).logsumexp(0)
        P = ((f[:, None] + g - C) / eps + log_a + log_b).exp()  # (eq:entropic-plan)
        miss = P.detach().sum(1) - a.detach()
        error, step = float(miss.abs().sum()), step + 1
    return EntropicPlan(P, f, g, error, float(f.detach() @ miss), step)


def rounded(P: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return a coupling of (a, b) at L1 distance ≤ 2 error from P.

    Altschuler, Weed and Rigollet (2017), algorithm 2: shrink the rows and the
    columns that are too heavy, then spread what is missing as a product.

    Args:
        P: An almost coupling (n, m), entries ≥ 0, no row or column of zeros.
        a: First marginal (n,).
        b: Second marginal (m,).
    """
    P = P * (a / P.sum(1)).clamp(max=1)[:, None]
    P = P * (b / P.sum(0)).clamp(max=1)
    rows, cols = a - P.sum(1), b - P.sum(0)
    lost = rows.abs().sum()
    return P if lost == 0 else P + torch.outer(rows, cols) / lost


def entropic_cost(
    C: Tensor, a: Tensor, b: Tensor, eps: float, *, tol: float = 1e-6
) -> Tensor:
    """Return the value of (eq:entropic-ot), a scalar, differentiable in C.

    The value is the dual at the potentials that :func:`sinkhorn` found; its
    gradient in C is the plan (eq:entropic-gradient), at no further cost.
    """
    plan = sinkhorn(C.detach(), a, b, eps, tol=tol)
    value = plan.f @ a + plan.g @ b - eps * (plan.P.sum() - 1)  # (eq:entropic-dual)
    return value + (plan.P * (C - C.detach())).sum()


def sinkhorn_divergence(
    x: Tensor, y: Tensor, eps: float, *, tol: float = 1e-6
) -> Tensor:
    """Return S_ε between two clouds of points (eq:sinkhorn-divergence), ≥ 0.

    The cost is |x − y|², the weights are uniform; differentiable in x and y.

    Args:
        x: Points (n, d).
        y: Points (m, d).
        eps: Strength of the entropy, in the unit of |x − y|².
        tol: As in :func:`sinkhorn`.

    Raises:
        ValueError: x and y are not points of one dimension, or ε ≤ 0.
    """
    a, b = (p.new_full((len(p),), 1 / len(p)).detach() for p in (x, y))
    xy = entropic_cost(cost(x, y), a, b, eps, tol=tol)
    xx = entropic_cost(cost(x, x), a, a, eps, tol=tol)
    yy = entropic_cost(cost(y, y), b, b, eps, tol=tol)
    return xy - (xx + yy) / 2  # (eq:sinkhorn-divergence)


def hilbert(x: Tensor, y: Tensor) -> Tensor:
    """Return Hilbert's distance of two positive vectors (eq:hilbert), ≥ 0."""
    r = (x / y).log()
    return r.max() - r.min()


def birkhoff(K: Tensor) -> Tensor:
    """Return κ(K) = tanh(Δ(K)/4), the contraction (eq:birkhoff) of K > 0.

    Δ is the largest Hilbert distance between two rows of K (n, m).  Costs
    n² m operations.
    """
    r = K.log()
    spread = (r[:, None] - r).aminmax(dim=-1)  # (n, n)
    return ((spread.max - spread.min).max() / 4).tanh()


def entropic_cost_gaussian(
    m1: float, s1: float, m2: float, s2: float, eps: float
) -> float:
    """Return (eq:entropic-ot) between N(m₁, s₁²) and N(m₂, s₂²) on the line.

    The cost is (x − y)²; the best covariance solves a quadratic
    (eq:entropic-gaussian).

    Args:
        m1: First mean.
        s1: First deviation, > 0.
        m2: Second mean.
        s2: Second deviation, > 0.
        eps: Strength of the entropy, > 0.
    """
    s12 = 4 * (s1 * s2) ** 2 / (eps + math.sqrt(eps**2 + 16 * (s1 * s2) ** 2))
    information = -0.5 * math.log1p(-((s12 / (s1 * s2)) ** 2))
    return (m1 - m2) ** 2 + s1**2 + s2**2 - 2 * s12 + eps * information
