"""Neural spline flows: couplings that bend (book/flows/spline.md).

On each of K bins of the box [−B, B] the map is a quotient of two quadratics,
increasing, with chosen values and slopes at the knots; outside it is x ↦ x.
Let ξ and η be the relative positions in a bin and in its image, s the mean slope
of the bin, δ₀ and δ₁ the slopes at its ends.

    η = ξ (s ξ + δ₀ (1 − ξ)) / D                               (eq:spline)
    D = s + (δ₀ + δ₁ − 2s) ξ (1 − ξ) ≥ s/2
    slope = (s/D)² (δ₁ ξ² + 2 s ξ (1 − ξ) + δ₀ (1 − ξ)²)     (eq:spline-slope)
    ξ : 1 − ξ = 2 s η : r + p = r − p : 2 s (1 − η)        (eq:spline-inverse)
    p = δ₀ (1 − η) − δ₁ η,   r² = p² + 4 s² η (1 − η)

Of the two forms of the inverse the code takes, at each point, the one that adds
positive numbers: no digit is lost.

References:
    Gregory, Delbourgo (1982), Piecewise rational quadratic interpolation to
        monotonic data.
    Durkan, Bekasov, Murray, Papamakarios (2019), Neural spline flows.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..distributions import StandardNormal
from ..nn import MLP
from .change import Chain, Flow
from .coupling import Coupling, alternating, zero_last

__all__ = ["Bins", "Spline", "SplineCoupling", "spline", "spline_flow"]

THIN = 0.1  # the narrowest bin, as a part of the average one
STEEP = 3.0  # a logarithm is at most this: slopes at knots, ratios to the mean size


class Bins(NamedTuple):
    """For each of some points, its bin.

    Attributes:
        x: Left end of the bin.
        y: Image of the left end.
        w: Width, > 0.
        h: Height, > 0.
        d0: δ₀, slope at the left end, > 0.
        d1: δ₁, slope at the right end, > 0.
    """

    x: Tensor
    y: Tensor
    w: Tensor
    h: Tensor
    d0: Tensor
    d1: Tensor


class Spline(NamedTuple):
    """Increasing maps of the line, the identity outside [−B, B].

    Attributes:
        table: For each map the six numbers of its K bins, (…, 6, K), in the order
            of :class:`Bins`.
        box: B.
    """

    table: Tensor
    box: float

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log dy/dx at points x (…), one for each map."""
        at = x.clamp(-self.box, self.box)
        b = self.bins(at, 0)
        s, xi = b.h / b.w, (at - b.x) / b.w
        D, log = slope(b, s, xi)
        y = b.y + b.h * (xi * (s * xi + b.d0 * (1 - xi))) / D  # (eq:spline)
        return y + (x - at), log

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log dx/dy at points y (…), one for each map."""
        at = y.clamp(-self.box, self.box)
        b = self.bins(at, 1)
        s, eta = b.h / b.w, ((at - b.y) / b.h).clamp(max=1)
        p = b.d0 * (1 - eta) - b.d1 * eta
        r = (p.square() + 4 * s.square() * eta * (1 - eta)).sqrt()
        left = torch.where(p > 0, 2 * s * eta, r - p)  # (eq:spline-inverse)
        right = torch.where(p > 0, r + p, 2 * s * (1 - eta))
        xi = left / (left + right)
        return b.x + b.w * xi + (y - at), -slope(b, s, xi)[1]

    def bins(self, at: Tensor, side: int) -> Bins:
        """Return the bins of points in the box (side 0) or in its image (side 1)."""
        knots = self.table[..., side, 1:].detach()
        index = (at[..., None] >= knots).sum(-1)[..., None, None]
        six = self.table.gather(-1, index.expand(*at.shape, 6, 1))
        return Bins(*six[..., 0].unbind(-1))


def slope(b: Bins, s: Tensor, xi: Tensor) -> tuple[Tensor, Tensor]:
    """Return D ≥ s/2 and log dy/dx at relative positions ξ (eq:spline-slope)."""
    rest = 1 - xi
    bend = xi * rest
    D = torch.addcmul(s, b.d0 + b.d1 - 2 * s, bend)
    mean = b.d1 * xi.square() + 2 * s * bend + b.d0 * rest.square()
    return D, (mean * (s / D).square()).log()  # (eq:spline-slope)


def spline(u: Tensor, box: float) -> Spline:
    """Return splines from free parameters (eq:spline-knots); u = 0 is the identity.

    Args:
        u: Logarithms of K widths, of K heights and of K − 1 inner slopes, up to
            saturation and a common factor of the sizes, shape (…, 3K − 1).
        box: B > 0.

    Raises:
        ValueError: Another number of parameters, or a box that is not positive.
    """
    K = (u.shape[-1] + 1) // 3
    if u.shape[-1] != 3 * K - 1 or K < 2 or not 0 < box < math.inf:
        got = f"{tuple(u.shape)} and {box}"
        raise ValueError(f"u (…, 3K − 1), K ≥ 2, and box > 0 are needed, got {got}")
    e = (STEEP * (u / STEEP).tanh()).exp()
    part = e[..., : 2 * K].unflatten(-1, (2, K))
    part = part / part.sum(-1, keepdim=True)  # torch.softmax is 5 times slower here
    size = part * (2 * box * (1 - THIN)) + 2 * box * THIN / K  # (eq:spline-knots)
    left = size.cumsum(-1) - size - box
    d = F.pad(e[..., 2 * K :], (1, 1), value=1.0)[..., None, :]
    return Spline(torch.cat([left, size, d[..., :-1], d[..., 1:]], -2), box)


class SplineCoupling(Coupling):
    """A coupling that moves each coordinate by a spline of its own.

    Args:
        mask: Shape (d,), true on the coordinates (or channels) that are kept.
        net: To 3K − 1 numbers for each moved coordinate, coordinate by coordinate
            along dimension 1; see :func:`spline`.
        box: B, outside [−B, B] nothing moves.

    Raises:
        ValueError: A mask that keeps all or nothing, or a box that is not positive.
    """

    def __init__(self, mask: Tensor, net: nn.Module, *, box: float = 4.0) -> None:
        super().__init__(mask, net)
        if not 0 < box < math.inf:
            raise ValueError(f"box must be positive and finite, got {box}")
        self.box = box

    def move(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images of x and the sum of their log-slopes."""
        y, log = self.splines(h).forward(x)
        return y, log.flatten(1).sum(1)

    def move_back(self, z: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the points whose images are z, and the sum of their log-slopes."""
        x, log = self.splines(h).inverse(z)
        return x, log.flatten(1).sum(1)

    def splines(self, h: Tensor) -> Spline:
        """Return a spline for each moved coordinate (n, m, …) from h (n, m·p, …)."""
        m = len(self.moved)
        if h.shape[1] % m:
            raise ValueError(f"net must return (n, {m}·(3K − 1), …): {(*h.shape,)}")
        return spline(h.unflatten(1, (m, -1)).movedim(2, -1), self.box)


def spline_flow(
    d: int,
    layers: int = 4,
    hidden: Sequence[int] = (64, 64),
    *,
    bins: int = 8,
    box: float = 4.0,
    context: int = 0,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> Flow:
    """Return spline couplings of points over N(0, I), each half moved in turn.

    It starts as the identity.

    Args:
        d: Dimension of the points, at least 2.
        layers: How many couplings.
        hidden: Widths of the hidden layers of each network.
        bins: K, at least 2.
        box: B, which should hold the standardised data.
        context: Numbers that the flow is conditioned on, c (n, context).
        activation: Makes the nonlinearity.

    Raises:
        ValueError: A line has no second coordinate; or no layers, or one bin.
    """
    if d < 2 or layers < 1 or bins < 2:
        got = f"{d}, {layers}, {bins}"
        raise ValueError(f"d ≥ 2, layers ≥ 1, bins ≥ 2 are needed, got {got}")
    couplings = []
    for mask in alternating(d, layers):
        k = int(mask.sum())
        outputs = (3 * bins - 1) * (d - k)
        net = zero_last(MLP(k + context, *hidden, outputs, activation=activation))
        couplings.append(SplineCoupling(mask, net, box=box))
    return Flow(Chain(couplings), StandardNormal(d))
