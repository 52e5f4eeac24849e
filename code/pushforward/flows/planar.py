"""Planar flows, fitted to an energy (book/flows/planar.md).

One layer pushes points along a vector u, by an amount that depends on their
distance to a hyperplane:

    g(z) = z + u tanh(a),   a = wᵀz + b                           (eq:planar)
    |det ∂g/∂z| = 1 + wᵀu tanh′(a),   if wᵀu ≥ −1          (eq:planar-log-det)

It is explicit from noise to data; from data to noise it asks for the root of one
scalar equation.  So it is made for fitting a law p ∝ e^(−U) that can be evaluated
but not sampled:

    F_β = E[log q(x) + β U(x)],   x ~ q                   (eq:planar-free-energy)

References:
    Rezende, Mohamed (2015), Variational inference with normalizing flows.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import softplus

from ..distributions import StandardNormal
from ..model import Model
from .change import Bijection, Chain, Flow

__all__ = [
    "ENERGIES",
    "Boltzmann",
    "Planar",
    "Stretch",
    "anneal",
    "bend",
    "invertible",
    "log_partition",
    "planar_flow",
    "unbend",
]

Energy = Callable[[Tensor], Tensor]  # U: (n, 2) ↦ (n,)

HALVINGS = 64  # of an interval of width 2|wᵀu|: as narrow as rounding allows


class Push(NamedTuple):
    """The parameters of one layer, for all rows or for each.

    Attributes:
        u: Along what the points move, (d,) or (n, d), with wᵀu = m − 1.
        w: Normal of the hyperplane, (d,) or (n, d).
        b: Its offset, () or (n,).
        m: 1 + wᵀu > 0, () or (n,), kept apart as it may be tiny.
    """

    u: Tensor
    w: Tensor
    b: Tensor
    m: Tensor


def invertible(u: Tensor, w: Tensor, b: Tensor) -> Push:
    """Return the layer with u moved along w until wᵀu > −1 (eq:planar-invertible).

    Args:
        u: Any vectors (…, d).
        w: Normals (…, d), not zero.
        b: Offsets (…).
    """
    wu = (w * u).sum(-1)
    m = softplus(wu, threshold=40.0)  # (eq:planar-invertible): wᵀû = m − 1
    shift = (m - 1 - wu) / w.square().sum(-1)
    return Push(u + shift[..., None] * w, w, b, m)


def bend(z: Tensor, layer: Push) -> tuple[Tensor, Tensor]:
    """Return g(z) and log |det ∂g/∂z| at points z (n, d)."""
    t = ((z * layer.w).sum(-1) + layer.b).tanh()
    return z + t[:, None] * layer.u, log_det(t, layer.m)  # (eq:planar)


def log_det(t: Tensor, m: Tensor) -> Tensor:
    """Return log(1 + wᵀu(1 − t²)) as log(t² + m(1 − t²)), where nothing cancels."""
    return (t.square() + m * (1 - t.square())).log()  # (eq:planar-log-det)


def unbend(x: Tensor, layer: Push) -> tuple[Tensor, Tensor]:
    """Return z = g⁻¹(x) and log |det ∂z/∂x|: bisection, then one step of Newton.

    The step carries the gradient: that of the root is that of the step, by the
    implicit function theorem.
    """
    y, wu = (x * layer.w).sum(-1), layer.m - 1
    with torch.no_grad():
        a = root(y + layer.b, wu)  # of a + wᵀu tanh a = wᵀx + b
        t = a.tanh()
        slope = t.square() + layer.m * (1 - t.square())
    residual = a + wu * t - y - layer.b  # (eq:planar-inverse), zero but for rounding
    t = (a - residual / slope).tanh()
    return x - t[:, None] * layer.u, -log_det(t, layer.m)


def root(y: Tensor, wu: Tensor) -> Tensor:
    """Return the a with a + wᵀu tanh a = y, by bisection, in the shape of y."""
    low, high = y - wu.abs(), y + wu.abs()
    for _ in range(HALVINGS):
        mid = (low + high) / 2
        left = mid + wu * mid.tanh() < y
        low, high = torch.where(left, mid, low), torch.where(left, high, mid)
    return (low + high) / 2


class Planar(Bijection):
    """K planar layers, the first next to the noise.

    As every bijection it maps data to noise; its cheap direction is the inverse.
    With a context c of shape (n, K(2d + 1)) each row has its own layers: u, w and b
    are then those of the module plus those of c, which an encoder may give.

    Args:
        d: The dimension.
        layers: K ≥ 0.

    Raises:
        ValueError: A dimension that is not positive, or K < 0.
    """

    def __init__(self, d: int, layers: int) -> None:
        super().__init__()
        if d < 1 or layers < 0:
            raise ValueError(f"d must be ≥ 1 and layers ≥ 0, got {d} and {layers}")
        self.u = nn.Parameter(0.1 * torch.randn(layers, d))
        self.w = nn.Parameter(0.5 * torch.randn(layers, d))
        self.b = nn.Parameter(torch.zeros(layers))

    def layers(self, c: Tensor | None = None) -> Iterator[Push]:
        """Yield the layers, the one next to the noise first."""
        u, w, b = self.u, self.w, self.b
        if c is not None:
            k, d = u.shape
            if c.ndim != 2 or c.shape[1] != k * (2 * d + 1):
                raise ValueError(f"c must be (n, {k * (2 * d + 1)}), got {c.shape}")
            rows = c.view(len(c), k, 2 * d + 1).movedim(0, 1)  # (K, n, …)
            du, dw, db = rows.split([d, d, 1], dim=2)
            u, w = u[:, None] + du, w[:, None] + dw
            b = b[:, None] + db[..., 0]
        stack = invertible(u, w, b)
        for i in range(len(u)):
            yield Push(*(part[i] for part in stack))

    def inverse(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return x = g(z) and log |det ∂g/∂z|: the cheap direction."""
        total = z.new_zeros(len(z))
        for layer in self.layers(c):
            z, term = bend(z, layer)
            total = total + term
        return z, total

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z = g⁻¹(x) and its log-determinant, a root for each layer."""
        total = x.new_zeros(len(x))
        for layer in reversed(list(self.layers(c))):
            x, term = unbend(x, layer)
            total = total + term
        return x, total


class Stretch(Bijection):
    """x = m + s ⊙ z with learned m and s: a diagonal Gaussian.

    Args:
        d: The dimension.
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(d))
        self.log_s = nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (x − m)/s."""
        z = (x - self.m) * (-self.log_s).exp()
        return z, -self.log_s.sum().expand(len(x))

    def inverse(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return m + s ⊙ z."""
        return self.m + self.log_s.exp() * z, self.log_s.sum().expand(len(z))


def planar_flow(d: int, layers: int) -> Flow:
    """Return K planar layers over a learned diagonal Gaussian on R^d."""
    return Flow(Chain([Planar(d, layers), Stretch(d)]), StandardNormal(d))


class Boltzmann(Model):
    """A flow q fitted to p ∝ e^(−U); the batches of its training are noise.

    Args:
        flow: q.
        energy: U, from points (n, *shape) to (n,).

    Attributes:
        beta: Inverse temperature in the loss; raised to 1 during training.
    """

    def __init__(self, flow: Flow, energy: Energy) -> None:
        super().__init__()
        self.flow = flow
        self.energy = energy
        self.beta = 1.0

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw n points x ~ q."""
        return self.flow.sample(n, rng=rng)

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return F_β, the points being pushed forward from a batch x of *noise*."""
        points, term = self.flow.f.inverse(x)
        log_q = self.flow.base.log_prob(x) - term
        # (eq:planar-free-energy)
        return (log_q + self.beta * self.energy(points)).mean()

    @torch.no_grad()
    def log_weights(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Return −U(x) − log q(x) at n draws x ~ q, whose mean exponential is Z."""
        draw = self.flow.draw(n, rng=rng)
        return -self.energy(draw.x) - draw.log_prob


def anneal(number: int, steps: int) -> float:
    """Return β_t = min(1, 0.01 + t/steps), the schedule of the paper."""
    return min(1.0, 0.01 + number / steps)


# The four energies of the paper.  U₂, U₃ and U₄ do not grow along the first axis,
# so that e^(−U) has no integral; walls at ±3.5 make it a law.


def wave(x: Tensor) -> Tensor:
    """Return sin(2π x₁/4), shape (n,)."""
    return (math.pi / 2 * x[:, 0]).sin()


def walls(x: Tensor) -> Tensor:
    """Return what it costs to leave the square |x_i| ≤ 3.5, shape (n,)."""
    return ((x.abs() - 3.5).clamp(min=0) / 0.2).square().sum(-1) / 2


def pit(r: Tensor, s: float) -> Tensor:
    """Return −r²/(2s²), the logarithm of a Gaussian ridge."""
    return -(r / s).square() / 2


def two_moons(x: Tensor) -> Tensor:
    """Return U₁, a ring of radius 2 that is deep on the left and on the right."""
    sides = torch.logaddexp(pit(x[:, 0] - 2, 0.6), pit(x[:, 0] + 2, 0.6))
    return -pit(x.norm(dim=-1) - 2, 0.4) - sides


def sine(x: Tensor) -> Tensor:
    """Return U₂, a band along a wave."""
    return -pit(x[:, 1] - wave(x), 0.4) + walls(x)


def split_sine(x: Tensor) -> Tensor:
    """Return U₃, a band that parts into two and joins again."""
    bump = 3 * pit(x[:, 0] - 1, 0.6).exp()
    y = x[:, 1] - wave(x)
    return -torch.logaddexp(pit(y, 0.35), pit(y + bump, 0.35)) + walls(x)


def forked_sine(x: Tensor) -> Tensor:
    """Return U₄, a band that parts into two for good."""
    step = 3 * ((x[:, 0] - 1) / 0.3).sigmoid()
    y = x[:, 1] - wave(x)
    return -torch.logaddexp(pit(y, 0.4), pit(y + step, 0.35)) + walls(x)


ENERGIES: dict[str, Energy] = {
    "U1": two_moons,
    "U2": sine,
    "U3": split_sine,
    "U4": forked_sine,
}


def log_partition(energy: Energy, *, side: float = 6.0, nodes: int = 1201) -> Tensor:
    """Return log Z = log ∫ e^(−U) over a square, by the trapezoidal rule, float64.

    Args:
        energy: U, negligible e^(−U) at the border.
        side: Half the side of the square.
        nodes: On each axis.
    """
    axis = torch.linspace(-side, side, nodes, dtype=torch.float64)
    values = -energy(torch.cartesian_prod(axis, axis))
    return values.logsumexp(0) + 2 * torch.log(axis[1] - axis[0])
