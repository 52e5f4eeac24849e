"""Laws known exactly: bases, targets and test beds (book/back/api.md).

They answer ``sample`` and ``log_prob`` like any model, so that a figure or a
test can put the truth in the place of a trained network.  Under Gaussian
noise, x_σ = x_0 + σ z, a mixture stays a mixture: its score and its posterior
mean are known at every noise level.

    ∇ log p_σ(x) = Σ_j r_j(x) (Σ_j + σ²I)⁻¹ (m_j − x)
    E[x_0 | x_σ = x] = x + σ² ∇ log p_σ(x)
"""

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor, nn

from .nn import noise_like, randn

__all__ = [
    "Checkerboard",
    "Gaussian",
    "Law",
    "Mixture",
    "StandardNormal",
    "TwoMoons",
    "line_mixture",
    "ring",
]

LOG_2PI = math.log(2 * math.pi)


@runtime_checkable
class Law(Protocol):
    """Whatever can be sampled and has a density: exact, or learned."""

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw n points, shape (n, *shape)."""
        ...

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x), shape (n,)."""
        ...


def positive(name: str, value: float) -> None:
    """Raise a ``ValueError`` that names the argument unless 0 < value < ∞."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def points(x: Tensor, d: int) -> Tensor:
    """Return x if its shape is (n, d), else raise a ``ValueError``."""
    if x.ndim != 2 or x.shape[1] != d:
        raise ValueError(f"x must have shape (n, {d}), got {tuple(x.shape)}")
    return x


def admit(x: Tensor, model: nn.Module, base: Law) -> Tensor:
    """Return x if it can be data of a model whose noise has the law ``base``.

    Args:
        x: What came.
        model: Says in which dtype and on which device data must be.
        base: Says how many numbers a datum has, if it is a standard normal law.

    Raises:
        ValueError: x is no batch of finite real data of that kind.
    """
    if x.ndim < 2 or not len(x):
        raise ValueError(f"x must be a batch (n, *shape), got {tuple(x.shape)}")
    d = base.zero.numel() if isinstance(base, StandardNormal) else x[0].numel()
    if x[0].numel() != d:
        raise ValueError(f"x must have {d} numbers a row, got {tuple(x.shape)}")
    own = next(model.parameters(), next(model.buffers(), x))
    if (x.dtype, x.device) != (own.dtype, own.device):
        want, got = f"{own.dtype} on {own.device}", f"{x.dtype} on {x.device}"
        raise ValueError(f"x must be {want} like the model, got {got}")
    if not x.isfinite().all():
        raise ValueError("x must be finite, got infinities or NaN")
    return x


class StandardNormal(nn.Module):
    """N(0, I) on arrays of one shape.

    Args:
        shape: The dimension d, or the sizes (c, h, w) of an image.
    """

    zero: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        if not shape or min(shape) < 1:
            raise ValueError(f"shape must be positive sizes, got {shape}")
        self.register_buffer("zero", torch.zeros(shape))

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw n points, shape (n, *shape)."""
        return randn((n, *self.zero.shape), self.zero, rng=rng)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return −‖z‖²/2 − d/2 log 2π, shape (n,)."""
        if z.shape[1:] != self.zero.shape:
            want = ("n", *self.zero.shape)
            raise ValueError(f"z must have shape {want}, got {tuple(z.shape)}")
        return -z.flatten(1).square().sum(-1) / 2 - self.zero.numel() / 2 * LOG_2PI


class Mixture(nn.Module):
    """Σ_j w_j N(m_j, Σ_j) on R^d, with its exact score at every noise level.

    Args:
        means: m_j, shape (k, d).
        covs: Σ_j, shape (k, d, d), symmetric positive definite.
        weights: w_j, shape (k,), positive; they are divided by their sum.

    Raises:
        ValueError: Shapes that do not agree, or a bad covariance or weight.
    """

    means: Tensor
    covs: Tensor
    log_weights: Tensor

    def __init__(
        self, means: Tensor, covs: Tensor, weights: Tensor | None = None
    ) -> None:
        super().__init__()
        if means.ndim != 2 or not means.is_floating_point():
            got = f"{tuple(means.shape)} of {means.dtype}"
            raise ValueError(f"means must be real numbers (k, d), got {got}")
        k, d = means.shape
        if covs.shape != (k, d, d):
            raise ValueError(f"covs must be {(k, d, d)}, got {tuple(covs.shape)}")
        weights = means.new_ones(k) if weights is None else weights
        if weights.shape != (k,) or not ((weights > 0) & weights.isfinite()).all():
            raise ValueError(f"weights must be {k} positive numbers, got {weights}")
        if not torch.allclose(covs, covs.mT) or torch.linalg.eigvalsh(covs).min() <= 0:
            raise ValueError("covs must be symmetric positive definite")
        self.register_buffer("means", means)
        self.register_buffer("covs", (covs + covs.mT) / 2)  # V diag(λ) Vᵀ rounds
        self.register_buffer("log_weights", (weights / weights.sum()).log())

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw n points, shape (n, d)."""
        device = self.means.device if rng is None else rng.device
        w = self.log_weights.exp().to(device)
        j = torch.multinomial(w, n, replacement=True, generator=rng)
        j = j.to(self.means.device)
        z = noise_like(self.means[j], rng)
        chol = torch.linalg.cholesky(self.covs)[j]  # (n, d, d)
        return self.means[j] + (chol @ z[..., None])[..., 0]

    def log_prob(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """Return log p_σ(x), the law after noise of deviation σ, shape (n,)."""
        return self.log_joint(x, sigma).logsumexp(-1)

    def score(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """Return ∇ log p_σ(x), shape (n, d)."""
        r = self.log_joint(x, sigma).softmax(-1)  # (n, k)
        return torch.einsum("nk,nkd->nd", r, self.pull(x, sigma))

    def posterior_mean(self, x: Tensor, sigma: float) -> Tensor:
        """Return E[x_0 | x_σ = x] = x + σ² ∇ log p_σ(x), shape (n, d)."""
        return x + sigma**2 * self.score(x, sigma)

    def mean(self) -> Tensor:
        """Return E[x], shape (d,)."""
        return self.log_weights.exp() @ self.means

    def cov(self) -> Tensor:
        """Return Cov[x], shape (d, d)."""
        w, c = self.log_weights.exp(), self.means - self.mean()
        return torch.einsum("k,kij->ij", w, self.covs) + (w * c.T) @ c

    def log_joint(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """Return log w_j + log N(x; m_j, Σ_j + σ²I), shape (n, k)."""
        d = self.means.shape[1]
        diff = points(x, d)[:, None] - self.means  # (n, k, d)
        chol = torch.linalg.cholesky(self.noised(sigma))
        sq = torch.linalg.solve_triangular(chol, diff[..., None], upper=False)
        log_det = chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_n = -sq[..., 0].square().sum(-1) / 2 - log_det - d / 2 * LOG_2PI
        return self.log_weights + log_n

    def pull(self, x: Tensor, sigma: float) -> Tensor:
        """Return (Σ_j + σ²I)⁻¹ (m_j − x), each component's score, (n, k, d)."""
        diff = self.means - points(x, self.means.shape[1])[:, None]
        return torch.linalg.solve(self.noised(sigma), diff[..., None])[..., 0]

    def noised(self, sigma: float) -> Tensor:
        """Return Σ_j + σ²I, shape (k, d, d)."""
        d = self.means.shape[1]
        eye = torch.eye(d, dtype=self.covs.dtype, device=self.covs.device)
        return self.covs + sigma**2 * eye


class Gaussian(Mixture):
    """N(m, Σ) on R^d: a mixture of one.

    Args:
        m: Mean, shape (d,).
        cov: Covariance Σ, shape (d, d), symmetric positive definite.
    """

    def __init__(self, m: Tensor, cov: Tensor) -> None:
        super().__init__(m[None], cov[None])


def ring(k: int = 8, r: float = 2.0, s: float = 0.2) -> Mixture:
    """Return k equal Gaussians N(c_j, s²I) on a circle of radius r in R²."""
    positive("r", r)
    positive("s", s)
    angle = 2 * math.pi * torch.arange(k, dtype=torch.get_default_dtype()) / k
    c = r * torch.stack([angle.cos(), angle.sin()], dim=-1)  # (k, 2)
    return Mixture(c, s**2 * torch.eye(2, dtype=c.dtype).expand(k, 2, 2))


def line_mixture(
    means: tuple[float, ...], s: float = 1.0, weights: tuple[float, ...] | None = None
) -> Mixture:
    """Return Σ_j w_j N(m_j, s²) on the real line, as a law on R^1."""
    positive("s", s)
    m = torch.tensor(means, dtype=torch.get_default_dtype())[:, None]
    w = None if weights is None else torch.tensor(weights, dtype=m.dtype)
    return Mixture(m, torch.full((len(means), 1, 1), s**2, dtype=m.dtype), w)


class Checkerboard(nn.Module):
    """The uniform law on the 8 black squares of a board of side 2r.

    Args:
        r: Half the side of the board, which has 4 × 4 squares.
    """

    side: Tensor

    def __init__(self, r: float = 2.0) -> None:
        super().__init__()
        positive("r", r)
        self.register_buffer("side", torch.tensor(r / 2))

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw n points, shape (n, 2)."""
        device = self.side.device if rng is None else rng.device
        u = torch.rand((n, 2), generator=rng, dtype=self.side.dtype, device=device)
        square = torch.randint(8, (n,), generator=rng, device=device)
        row, half = square // 2, square % 2
        corner = torch.stack([2 * half + row % 2, row], dim=-1)  # (n, 2)
        return self.side * ((corner + u).to(self.side.device) - 2)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return −log(8 side²) on the black squares, −∞ elsewhere, (n,)."""
        cell = (points(x, 2) / self.side + 2).floor()  # (n, 2), column and row
        black = (cell.sum(-1) % 2 == 0) & (cell >= 0).all(-1) & (cell < 4).all(-1)
        inside = -(8 * self.side**2).log()
        return torch.where(black, inside, -torch.inf)


class TwoMoons(nn.Module):
    """Two half circles, thickened by Gaussian noise N(0, s²I), in R².

    The density integrates the noise along each arc by Gauss–Legendre
    quadrature; it is exact to rounding for s ≥ 0.05.

    Args:
        s: Standard deviation of the noise.
    """

    arc: Tensor
    log_mass: Tensor

    def __init__(self, s: float = 0.1, nodes: int = 400) -> None:
        super().__init__()
        positive("s", s)
        dtype = torch.get_default_dtype()
        t, w = gauss_legendre(nodes)
        upper = self.curve((t + 1) * math.pi / 2)
        self.register_buffer("arc", torch.cat([upper, -upper]).to(dtype))
        self.register_buffer("log_mass", (w / 4).log().repeat(2).to(dtype))
        self.s = s

    @staticmethod
    def curve(angle: Tensor) -> Tensor:
        """Return the upper moon at angles in [0, π], shape (n, 2)."""
        return torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=-1)

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw n points, shape (n, 2)."""
        device = self.arc.device if rng is None else rng.device
        u = torch.rand(n, generator=rng, dtype=self.arc.dtype, device=device)
        lower = torch.rand(n, generator=rng, device=device) < 0.5
        x = self.curve(math.pi * u) * torch.where(lower, -1, 1)[:, None]
        return x.to(self.arc) + self.s * noise_like(x.to(self.arc), rng)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log ½ ∫ N(x; arc(u), s²I) du over both moons, shape (n,)."""
        sq = (points(x, 2)[:, None] - self.arc).square().sum(-1)  # (n, 2·nodes)
        log_n = -sq / (2 * self.s**2) - LOG_2PI - 2 * math.log(self.s)
        return (self.log_mass + log_n).logsumexp(-1)


def gauss_legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights on [−1, 1], float64, by Golub and Welsch (1969)."""
    i = torch.arange(1, nodes, dtype=torch.float64)
    off = i / (4 * i**2 - 1).sqrt()
    t, v = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return t, 2 * v[0].square()
