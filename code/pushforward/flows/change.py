"""Change of variables: the contract of every flow (book/flows/change.md).

A flow pushes noise z ~ π forward by an invertible map, x = g(z).  With the
inverse f = g⁻¹, which takes data to noise, its density is known:

    log p(x) = log π(f(x)) + log |det ∂f/∂x|             (eq:flow-log-prob)

Every bijection returns the pair (value, log|det|), in both directions, so that
maps are chained and their log-determinants add up (eq:flow-chain).

    forward(x)      z = f(x),     log |det ∂f/∂x|        data → noise
    inverse(z)      x = g(z),     log |det ∂g/∂z|        noise → data

References:
    Rudin (1987), Real and complex analysis, theorem 7.26.
    Papamakarios, Nalisnick, Rezende, Mohamed, Lakshminarayanan (2021), Normalizing
        flows for probabilistic modeling and inference.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.special import erfc, ndtri

from ..distributions import LOG_2PI, Law, Mixture, admit
from ..model import Density

__all__ = [
    "Affine",
    "Bijection",
    "Chain",
    "Draw",
    "Flow",
    "Inverse",
    "Knothe",
    "Logit",
]


class Bijection(nn.Module, ABC):
    """An invertible, differentiable map f, row by row.

    ``c`` is what the map may be conditioned on, (n, …): for each row of c it is
    another bijection.  A map that has no use for it does not look at it.
    """

    @abstractmethod
    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z = f(x) and log |det ∂f/∂x|, shape (n,)."""

    @abstractmethod
    def inverse(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return x = f⁻¹(z) and log |det ∂f⁻¹/∂z|, shape (n,)."""


class Chain(Bijection):
    """f = f_K ∘ … ∘ f_1: the first map listed is the first to touch the data.

    Args:
        maps: f_1, …, f_K.
    """

    def __init__(self, maps: Sequence[Bijection]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return f(x), and the sum of the log-determinants (eq:flow-chain)."""
        total = x.new_zeros(len(x))
        for f in self.maps:
            x, log_det = f(x, c)
            total = total + log_det  # (eq:flow-chain)
        return x, total

    def inverse(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return f_1⁻¹(… f_K⁻¹(z)), and the sum of the log-determinants."""
        total = z.new_zeros(len(z))
        for f in reversed(self.maps):
            z, log_det = f.inverse(z, c)  # type: ignore[operator]
            total = total + log_det
        return z, total


class Inverse(Bijection):
    """f⁻¹ as a map of its own: for maps that are explicit from noise to data.

    Args:
        f: The map to turn round.
    """

    def __init__(self, f: Bijection) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return f⁻¹(x) and its log-determinant."""
        return self.f.inverse(x, c)

    def inverse(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return f(z) and its log-determinant."""
        return self.f(z, c)


class Affine(Bijection):
    """z = (x − m)/s with fixed m and s > 0: data in their natural units.

    Args:
        m: Where the data are, a shape that broadcasts to that of a datum.
        s: How wide they are, positive, in the shape of m.

    Raises:
        ValueError: Shapes that differ, or an s that is not positive and finite.
    """

    m: Tensor
    s: Tensor

    def __init__(self, m: Tensor, s: Tensor) -> None:
        super().__init__()
        if m.shape != s.shape or not ((s > 0) & s.isfinite() & m.isfinite()).all():
            raise ValueError(f"s must be positive, in the shape of m, got {m}, {s}")
        self.register_buffer("m", m)
        self.register_buffer("s", s)

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (x − m)/s and −Σ log s."""
        return (x - self.m) / self.s, -self.log_det(x)

    def inverse(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return m + s ⊙ z and Σ log s."""
        return self.m + self.s * z, self.log_det(z)

    def log_det(self, x: Tensor) -> Tensor:
        """Return Σ log s over the coordinates of a datum, for each row of x."""
        return self.s.log().expand(x.shape[1:]).sum().expand(len(x))


class Logit(Bijection):
    """z = logit(α + (1 − 2α) x): from the cube [0, 1]^d to all of R^d (eq:flow-logit).

    Args:
        alpha: α ∈ (0, ½), how far the faces of the cube are kept from infinity.

    Raises:
        ValueError: Another α.
    """

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if not 0 < alpha < 0.5:
            raise ValueError(f"alpha must lie in (0, 1/2), got {alpha}")
        self.alpha = alpha

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z and its log-determinant at points x in the cube.

        Raises:
            ValueError: An x outside [0, 1], where the density of a sample is zero.
        """
        if not ((x >= 0) & (x <= 1)).all():
            raise ValueError(f"x must lie in [0, 1], got [{x.min()}, {x.max()}]")
        z = torch.logit(self.alpha + (1 - 2 * self.alpha) * x)  # (eq:flow-logit)
        return z, -self.slope(z)

    def inverse(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return x and its log-determinant; a z too large leaves the cube by α."""
        x = (z.sigmoid() - self.alpha) / (1 - 2 * self.alpha)
        return x, self.slope(z)

    def slope(self, z: Tensor) -> Tensor:
        """Return Σ log dx/dz, where dx/dz = σ(z) σ(−z)/(1 − 2α)."""
        log = F.logsigmoid(z) + F.logsigmoid(-z) - math.log(1 - 2 * self.alpha)
        return log.flatten(1).sum(1)


class Knothe(Bijection):
    """The increasing triangular map from a mixture of Gaussians to N(0, I).

        z_i = Φ⁻¹(F_i(x_i | x_1, …, x_i−1))                        (eq:flow-knothe)

    The conditional laws of a mixture are mixtures, so F_i is known; its inverse is
    found by bisection.

    Args:
        law: The mixture, on R^d.
        halvings: Of the bisection, from an interval that holds every component's
            mean with forty standard deviations to either side.
    """

    def __init__(self, law: Mixture, *, halvings: int = 80) -> None:
        super().__init__()
        self.law = law
        self.halvings = halvings

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z (n, d), and log p(x) − log N(z; 0, I)."""
        chol = torch.linalg.cholesky(self.law.covs)
        diff = (x[:, None] - self.law.means)[..., None]
        u = torch.linalg.solve_triangular(chol, diff, upper=False)[..., 0]  # (n, k, d)
        log_n = -u.square() / 2 - LOG_2PI / 2 - chol.diagonal(dim1=1, dim2=2).log()
        joint = self.law.log_weights[:, None] + log_n.cumsum(-1)  # with x_1, …, x_i
        seen = torch.cat([self.law.log_weights.expand(len(x), -1)[..., None], joint], 2)
        r = seen[..., :-1].softmax(1)  # of the components, given x_1, …, x_i−1
        z = normal_quantile((r * upper(-u)).sum(1), (r * upper(u)).sum(1))
        log_p = joint[..., -1].logsumexp(1)
        return z, log_p + (z.square() / 2 + LOG_2PI / 2).sum(1)  # (eq:flow-knothe)

    @torch.no_grad()
    def inverse(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return x (n, d) coordinate by coordinate; no gradient passes."""
        reach = 40 * self.law.covs.diagonal(dim1=1, dim2=2).sqrt()
        low = (self.law.means - reach).amin(0).expand_as(z).clone()
        high = (self.law.means + reach).amax(0).expand_as(z).clone()
        for i in range(z.shape[1]):
            for _ in range(self.halvings):
                mid = (low + high) / 2
                left = self(mid)[0][:, i] < z[:, i]
                low[:, i] = torch.where(left, mid[:, i], low[:, i])
                high[:, i] = torch.where(left, high[:, i], mid[:, i])
            low[:, i] = high[:, i] = (low[:, i] + high[:, i]) / 2
        return low, -self(low)[1]


def upper(u: Tensor) -> Tensor:
    """Return 1 − Φ(u) to full precision far out, where ``torch.special.ndtr`` is 0."""
    return erfc(u / math.sqrt(2)) / 2


def normal_quantile(p: Tensor, q: Tensor) -> Tensor:
    """Return Φ⁻¹(p) with q = 1 − p at hand, so that neither tail rounds to 0 or 1."""
    return torch.where(p < q, ndtri(p), -ndtri(q))


class Draw(NamedTuple):
    """Points and their log-density under the law that drew them.

    Attributes:
        x: Shape (n, *shape).
        log_prob: log p(x), shape (n,).
    """

    x: Tensor
    log_prob: Tensor


class Flow(Density):
    """The law of g(z), z ~ π, with g the inverse of a bijection f.

    Args:
        f: From data to noise.
        base: π, the law of the noise, on arrays of the shape of f(x).
    """

    def __init__(self, f: Bijection, base: Law) -> None:
        super().__init__()
        self.f = f
        self.base = base

    def log_prob(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Return log p(x), or log p(x | c), shape (n,).

        Raises:
            ValueError: An x that is no batch of finite real data of the model's
                dtype and device, or a c with another number of rows.
        """
        if c is not None and len(c) != len(x):
            raise ValueError(f"c must have {len(x)} rows like x, got {len(c)}")
        z, log_det = self.f(admit(x, self, self.base), c)
        return self.base.log_prob(z) + log_det  # (eq:flow-log-prob)

    @torch.no_grad()
    def sample(
        self, n: int, c: Tensor | None = None, *, rng: Generator | None = None
    ) -> Tensor:
        """Draw z ~ π and return g(z), shape (n, *shape); c, if any, has n rows."""
        return self.f.inverse(self.noise(n, c, rng=rng), c)[0]  # needs no density

    def draw(
        self, n: int, c: Tensor | None = None, *, rng: Generator | None = None
    ) -> Draw:
        """Draw n points with their log-density, differentiably (eq:flow-draw).

        Raises:
            ValueError: An n that is not positive, or a c with another number of rows.
        """
        z = self.noise(n, c, rng=rng)
        x, log_det = self.f.inverse(z, c)
        return Draw(x, self.base.log_prob(z) - log_det)  # (eq:flow-draw)

    def noise(
        self, n: int, c: Tensor | None = None, *, rng: Generator | None = None
    ) -> Tensor:
        """Draw z ~ π for n points, or refuse n and c."""
        if n < 1 or (c is not None and len(c) != n):
            rows = "no c" if c is None else f"{len(c)} rows of c"
            raise ValueError(f"n must be positive, and the rows of c: {n}, {rows}")
        return self.base.sample(n, rng=rng)
