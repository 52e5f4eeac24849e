"""Optimal transport between Gaussian laws (book/ot/gaussian.md).

    W₂²(N(m₁, Σ₁), N(m₂, Σ₂)) = |m₁ − m₂|² + min_Q ‖R₁ − R₂Q‖²     (eq:bures-procrustes)
    T(x) = m₂ + A (x − m₁),  A = R₁⁻¹ (R₁ Σ₂ R₁)^½ R₁⁻¹           (eq:gaussian-map)

with R_i = Σ_i^½ and Q orthogonal.  The first form squares a difference and needs
no inverse: it is accurate for close laws and defined for singular ones.

References:
    Dowson and Landau (1982), The Fréchet distance between multivariate normals.
    Gelbrich (1990), On a formula for the L² Wasserstein metric.
    McCann (1997), A convexity principle for interacting gases.
    Takatsu (2011), Wasserstein geometry of Gaussian measures.
    Álvarez-Esteban et al. (2016), A fixed-point approach to barycenters.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Affine",
    "Barycenter",
    "Moments",
    "barycenter",
    "bures",
    "gaussian_map",
    "gelbrich",
    "geodesic",
    "moments",
    "sqrtm",
]


class Moments(NamedTuple):
    """A mean (d,) and a covariance (d, d)."""

    m: Tensor
    cov: Tensor


class Affine(NamedTuple):
    """The map x ↦ b + A x of points (n, d)."""

    A: Tensor
    b: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return b + A x for each row x of (n, d)."""
        return self.b + x @ self.A.mT


class Barycenter(NamedTuple):
    """A Gaussian barycentre and its certificate.

    Attributes:
        m: Mean (d,).
        cov: Covariance (d, d).
        error: ‖Σ_i w_i A_i − I‖, A_i the optimal maps to the laws; 0 at the optimum.
        steps: Iterations taken.
    """

    m: Tensor
    cov: Tensor
    error: float
    steps: int


class Root(torch.autograd.Function):
    """Σ ↦ Σ^½, with the derivative that solves Sylvester's equation.

    In the basis that diagonalises Σ^½ = diag(r) the equation dR R + R dR = dΣ
    reads dR_ij = dΣ_ij/(r_i + r_j) (eq:root-gradient).  The derivative of
    ``eigh`` would divide by r_i − r_j, and fail for equal eigenvalues.
    """

    @staticmethod
    def forward(ctx: Any, S: Tensor) -> Tensor:
        """Return the symmetric root of S (..., d, d)."""
        lam, V = torch.linalg.eigh(S)
        if lam.min() < -(torch.finfo(S.dtype).eps ** 0.5) * lam.abs().max():
            raise ValueError(f"S must be positive semidefinite, got {lam.min()}")
        r = lam.clamp(min=0).sqrt()  # rounding can leave −1e-17
        ctx.save_for_backward(r, V)
        return (V * r[..., None, :]) @ V.mT

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return the gradient in S, symmetric (eq:root-gradient)."""
        r, V = ctx.saved_tensors
        total = r[..., :, None] + r[..., None, :]
        inner = V.mT @ ((grad + grad.mT) / 2) @ V
        inner = inner / torch.where(total > 0, total, torch.inf)  # no slope at 0
        return V @ inner @ V.mT


def sqrtm(S: Tensor) -> Tensor:
    """Return the symmetric root of S (..., d, d), positive semidefinite.

    Differentiable also where eigenvalues coincide.

    Raises:
        ValueError: S is not square, not finite or not symmetric, or has an
            eigenvalue below −√ε times the largest one.
    """
    if S.ndim < 2 or S.shape[-1] != S.shape[-2]:
        raise ValueError(f"S must have shape (..., d, d), got {tuple(S.shape)}")
    slack = torch.finfo(S.dtype).eps ** 0.5 * S.detach().abs().max()
    if not (S - S.mT).abs().max() <= slack:  # false for NaN
        raise ValueError("S must be finite and symmetric")
    R: Tensor = Root.apply((S + S.mT) / 2)
    return R


def polar(M: Tensor) -> Tensor:
    """Return the orthogonal Q that maximises tr(QᵀM), from M = U diag(s) Vᵀ."""
    U, _, Vh = torch.linalg.svd(M.detach())
    return U @ Vh


def bures(m1: Tensor, S1: Tensor, m2: Tensor, S2: Tensor) -> Tensor:
    """Return W₂² between N(m₁, Σ₁) and N(m₂, Σ₂) (eq:bures-procrustes).

    Args:
        m1: Mean (d,).
        S1: Covariance (d, d), symmetric positive semidefinite.
        m2: Mean (d,).
        S2: Covariance (d, d), likewise.

    Returns:
        The squared distance, a scalar; differentiable in all four.

    Raises:
        ValueError: A covariance that is none (:func:`sqrtm`).
    """
    R1, R2 = sqrtm(S1), sqrtm(S2)
    Q = polar(R2 @ R1)  # best, so that its derivative does not enter
    return (m1 - m2).square().sum() + (R1 - R2 @ Q).square().sum()


def gaussian_map(m1: Tensor, S1: Tensor, m2: Tensor, S2: Tensor) -> Affine:
    """Return the optimal map from N(m₁, Σ₁) to N(m₂, Σ₂) (eq:gaussian-map).

    Args:
        m1: Mean (d,).
        S1: Covariance (d, d), positive definite.
        m2: Mean (d,).
        S2: Covariance (d, d), positive semidefinite.

    Raises:
        ValueError: S1 is singular: then there may be no map, only a coupling.
    """
    R1 = sqrtm(S1)
    lam = torch.linalg.eigvalsh(S1.detach())
    if lam[0] <= len(lam) * torch.finfo(S1.dtype).eps * lam[-1]:
        raise ValueError(f"S1 must be positive definite, got eigenvalue {lam[0]}")
    half = torch.linalg.solve(R1, sqrtm(R1 @ S2 @ R1))
    A = torch.linalg.solve(R1, half.mT)  # (eq:gaussian-map)
    A = (A + A.mT) / 2
    return Affine(A, m2 - A @ m1)


def geodesic(m1: Tensor, S1: Tensor, m2: Tensor, S2: Tensor, t: float) -> Moments:
    """Return the moments at time t of the path from N(m₁, Σ₁) to N(m₂, Σ₂).

    X_t = (1 − t) X + t Y for X = m₁ + R₁Z, Y = m₂ + R₂QZ (eq:gaussian-coupling):
    Σ_t = F_t F_tᵀ with F_t = (1 − t) R₁ + t R₂Q (eq:gaussian-geodesic).

    Args:
        m1: Mean (d,).
        S1: Covariance (d, d), positive semidefinite.
        m2: Mean (d,).
        S2: Covariance (d, d), likewise.
        t: Time in [0, 1].

    Raises:
        ValueError: t outside [0, 1].
    """
    if not 0 <= t <= 1:
        raise ValueError(f"t must lie in [0, 1], got {t}")
    R1, R2 = sqrtm(S1), sqrtm(S2)
    F = (1 - t) * R1 + t * (R2 @ polar(R2 @ R1))  # (eq:gaussian-geodesic)
    return Moments((1 - t) * m1 + t * m2, F @ F.mT)


def moments(x: Tensor) -> Moments:
    """Return mean and covariance (divided by n) of points x (n, d)."""
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"x must have shape (n, d), n ≥ 1, got {tuple(x.shape)}")
    m = x.mean(0)
    return Moments(m, (x - m).mT @ (x - m) / len(x))


def gelbrich(x: Tensor, y: Tensor) -> Tensor:
    """Return the Gaussian distance of two clouds, ≤ W₂² of them (eq:gelbrich).

    Args:
        x: Points (n, d).
        y: Points (m, d).
    """
    return bures(*moments(x), *moments(y))


def barycenter(
    m: Tensor,
    S: Tensor,
    w: Tensor,
    *,
    tol: float = 1e-10,
    steps: int = 1000,
) -> Barycenter:
    """Return argmin Σ_i w_i W₂²(·, N(m_i, Σ_i)), a Gaussian (eq:barycenter).

    Iterates Σ ← H Σ H with H = Σ_i w_i A_i the mean of the optimal maps from
    N(0, Σ) to N(0, Σ_i), until H = I.

    Args:
        m: Means (k, d).
        S: Covariances (k, d, d), positive definite.
        w: Weights (k,), positive, of sum 1.
        tol: Stop when ‖H − I‖ is below.
        steps: Stop then anyway; ``error`` tells.

    Raises:
        ValueError: Shapes that do not agree.
    """
    k, d = m.shape
    if S.shape != (k, d, d) or w.shape != (k,):
        raise ValueError(f"S, w must be {(k, d, d)}, {(k,)}, got {S.shape}, {w.shape}")
    cov, zero, eye = torch.einsum("k,kij->ij", w, S), m.new_zeros(d), torch.eye(d).to(S)
    error, step = torch.inf, 0
    while error >= tol and step < steps:
        maps = torch.stack([gaussian_map(zero, cov, zero, s).A for s in S])
        H = torch.einsum("k,kij->ij", w, maps)
        error, step = float((H - eye).norm()), step + 1
        cov = H @ cov @ H  # (eq:barycenter)
    return Barycenter(w @ m, cov, error, step)
