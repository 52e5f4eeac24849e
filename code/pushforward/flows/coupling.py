"""Coupling flows: RealNVP (book/flows/coupling.md).

A coupling keeps some coordinates and moves the others by an elementwise map
whose parameters are computed from the kept ones.  The inverse costs what the
map costs, and the Jacobian is triangular.

    z_moved = x_moved ⊙ exp s(x_kept) + t(x_kept)              (eq:coupling)
    log |det ∂z/∂x| = Σ_j s_j(x_kept)                   (eq:coupling-logdet)

Coordinates are those of dimension 1: the entries of a point (n, d), or the
channels of an image (n, c, h, w).  Images x hold whole numbers l < L; a density
meets them through noise u ~ q(u | x) in [0, 1)^d,

    log P(x) ≥ E_q [log p((l + u)/L) − d log L − log q(u | x)].
                                                  (eq:coupling-dequantisation)

References:
    Dinh, Sohl-Dickstein, Bengio (2017), Density estimation using Real NVP.
    Ho, Chen, Srinivas, Duan, Abbeel (2019), Flow++.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..data import uniform_like
from ..distributions import StandardNormal
from ..model import Model
from ..nn import MLP, ResBlock
from .change import Affine, Bijection, Chain, Flow, Inverse, Logit

__all__ = [
    "AffineCoupling",
    "Conditioned",
    "Coupling",
    "Dequantized",
    "FirstChannels",
    "Sigmoid",
    "Squeeze",
    "dequantizer",
    "image_nvp",
    "real_nvp",
    "zero_last",
]


# One layer


class Coupling(Bijection):
    """Keep the coordinates where the mask is true, move the others.

    Args:
        mask: Shape (d,), true on the coordinates (or channels) that are kept.
        net: From the kept coordinates, with c behind them if there is one, to the
            parameters of the elementwise map, side by side along dimension 1.

    Raises:
        ValueError: A mask that keeps all or nothing; later, points that are no
            real numbers (n, d, …).
    """

    kept: Tensor
    moved: Tensor
    back: Tensor

    def __init__(self, mask: Tensor, net: nn.Module) -> None:
        super().__init__()
        if mask.ndim != 1 or mask.dtype != torch.bool or mask.all() or not mask.any():
            raise ValueError(f"mask must keep some of (d,) and move some, got {mask}")
        kept, moved = mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
        order = torch.cat([kept, moved])
        self.register_buffer("kept", kept, persistent=False)
        self.register_buffer("moved", moved, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)
        self.d, self.first = len(mask), bool(mask[0])
        # A mask of two blocks costs a view, any other a copy.
        blocks = int((mask[1:] != mask[:-1]).sum()) == 1
        self.cut = (len(kept) if self.first else len(moved)) if blocks else 0
        self.net = net

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z and log |det ∂z/∂x|."""
        kept, moved = self.split(x)
        moved, log_det = self.move(moved, self.parameters_at(kept, c))
        return self.join(kept, moved), log_det

    def inverse(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return x and log |det ∂x/∂z|; z and x agree where the mask is true."""
        kept, moved = self.split(z)
        moved, log_det = self.move_back(moved, self.parameters_at(kept, c))
        return self.join(kept, moved), log_det

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the kept and the moved coordinates of x (n, d, …)."""
        if x.ndim < 2 or x.shape[1] != self.d or not x.is_floating_point():
            want = f"x must be real numbers of shape (n, {self.d}, …)"
            raise ValueError(f"{want}, got {x.dtype} of {tuple(x.shape)}")
        if not self.cut:
            return x.index_select(1, self.kept), x.index_select(1, self.moved)
        a, b = x.tensor_split((self.cut,), 1)
        return (a, b) if self.first else (b, a)

    def join(self, kept: Tensor, moved: Tensor) -> Tensor:
        """Return the coordinates in their places, the inverse of ``split``."""
        if not self.cut:
            return torch.cat([kept, moved], 1).index_select(1, self.back)
        return torch.cat([kept, moved] if self.first else [moved, kept], 1)

    def parameters_at(self, kept: Tensor, c: Tensor | None) -> Tensor:
        """Return what the network makes of the kept coordinates and c.

        A network may run in half precision under autocast; the map does not.
        """
        seen = kept if c is None else torch.cat([kept, c.to(kept.dtype)], 1)
        return self.net(seen).to(kept.dtype)

    @abstractmethod
    def move(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the moved coordinates and log-determinant, from parameters h."""

    @abstractmethod
    def move_back(self, z: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inverse of ``move`` and its log-determinant."""


class AffineCoupling(Coupling):
    """The affine coupling (eq:coupling), with |s| below a bound.

    Args:
        mask: Shape (d,), true on the coordinates (or channels) that are kept.
        net: To h = (s, t), side by side along dimension 1.
        bound: Of |s|: one coupling stretches by at most its exponential.

    Raises:
        ValueError: A mask that keeps all or nothing, or a bound that is not
            positive.
    """

    def __init__(self, mask: Tensor, net: nn.Module, *, bound: float = 2.0) -> None:
        super().__init__(mask, net)
        if not 0 < bound < math.inf:
            raise ValueError(f"bound must be positive and finite, got {bound}")
        self.bound = bound

    def move(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return x ⊙ exp s + t and Σ s."""
        s, t = self.scale_shift(h)
        return torch.addcmul(t, x, s.exp()), s.flatten(1).sum(1)  # (eq:coupling)

    def move_back(self, z: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return (z − t) ⊙ exp(−s) and −Σ s."""
        s, t = self.scale_shift(h)
        return (z - t) * (-s).exp(), -s.flatten(1).sum(1)  # (eq:coupling-logdet)

    def scale_shift(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return s and t from the parameters h."""
        if h.shape[1] != 2 * len(self.moved):
            want = f"net must return (n, {2 * len(self.moved)}, …)"
            raise ValueError(f"{want}, got {tuple(h.shape)}")
        s, t = h.chunk(2, dim=1)
        return self.bound * s.tanh(), t


def zero_last(net: nn.Sequential) -> nn.Sequential:
    """Set the last layer of a network to zero, so that its coupling starts as x ↦ x."""
    nn.init.zeros_(net[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(net[-1].bias)  # type: ignore[arg-type]
    return net


def real_nvp(
    d: int,
    layers: int = 8,
    hidden: Sequence[int] = (64, 64),
    *,
    context: int = 0,
    activation: Callable[[], nn.Module] = nn.ReLU,
    bound: float = 2.0,
) -> Flow:
    """Return affine couplings of points over N(0, I), each half moved in turn.

    It starts as the identity.

    Args:
        d: Dimension of the points, at least 2.
        layers: How many couplings.
        hidden: Widths of the hidden layers of each network.
        context: Numbers that the flow is conditioned on, c (n, context).
        activation: Makes the nonlinearity.
        bound: Of the log-scales.

    Raises:
        ValueError: A line has no second coordinate; or no layers.
    """
    if d < 2 or layers < 1:
        raise ValueError(f"d ≥ 2 and layers ≥ 1 are needed, got {d} and {layers}")
    couplings = []
    for mask in alternating(d, layers):
        k = int(mask.sum())
        net = MLP(k + context, *hidden, 2 * (d - k), activation=activation)
        couplings.append(AffineCoupling(mask, zero_last(net), bound=bound))
    return Flow(Chain(couplings), StandardNormal(d))


def alternating(d: int, layers: int) -> list[Tensor]:
    """Return masks that keep in turn the first half and the second half."""
    first = torch.arange(d) < d // 2
    return [first if i % 2 == 0 else ~first for i in range(layers)]


# Images


class Squeeze(Bijection):
    """Each 2 × 2 block of pixels becomes four channels: (c, h, w) → (4c, h/2, w/2).

    The four are top left, top right, bottom left, bottom right.
    """

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the channels, and 0."""
        if x.ndim != 4 or x.shape[2] % 2 or x.shape[3] % 2:
            raise ValueError(f"x must be (n, c, even, even), got {(*x.shape,)}")
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the pixels, and 0."""
        return F.pixel_shuffle(z, 2), z.new_zeros(len(z))


class FirstChannels(Bijection):
    """f on the first k channels; the others are finished: factoring out.

    Args:
        k: How many channels go on.
        f: A bijection of them, onto the same shape.
    """

    def __init__(self, k: int, f: Bijection) -> None:
        super().__init__()
        self.k = k
        self.f = f

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (f(x₁, …, x_k), x_{k+1}, …) and the log-determinant of f."""
        z, log_det = self.f(x[:, : self.k], c)
        return torch.cat([z, x[:, self.k :]], 1), log_det

    def inverse(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (f⁻¹(z₁, …, z_k), z_{k+1}, …) and its log-determinant."""
        x, log_det = self.f.inverse(z[:, : self.k], c)
        return torch.cat([x, z[:, self.k :]], 1), log_det


class Conditioned(Bijection):
    """f given net(c) instead of c: what the couplings of f share about c.

    Args:
        f: A bijection with a use for a condition.
        net: From c (n, …) to what f takes.
    """

    def __init__(self, f: Bijection, net: nn.Module) -> None:
        super().__init__()
        self.f = f
        self.net = net

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return f(x) given net(c), and its log-determinant."""
        return self.f(x, self.net(c))

    def inverse(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return f⁻¹(z) given net(c), and its log-determinant."""
        return self.f.inverse(z, self.net(c))


class Sigmoid(Bijection):
    """z = 1/(1 + e^−x), from R^d onto the open cube (0, 1)^d."""

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return σ(x) and Σ log σ(x) σ(−x)."""
        log = F.logsigmoid(x) + F.logsigmoid(-x)
        return x.sigmoid(), log.flatten(1).sum(1)

    def inverse(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return log z/(1 − z) and −Σ log z(1 − z)."""
        log = z.log() + (-z).log1p()
        return torch.logit(z), -log.flatten(1).sum(1)


def image_couplings(
    channels: int, layers: int, *, width: int = 32, blocks: int = 1, context: int = 0
) -> list[Coupling]:
    """Return couplings of images whose channels are a multiple of four.

    Their masks are in turn a checkerboard, as it is after a squeeze, and a half
    of the channels; each is followed by its complement.

    Args:
        channels: Of the images, after a squeeze.
        layers: How many couplings.
        width: Channels inside each network, a multiple of 8.
        blocks: Residual blocks of each network.
        context: Channels of the condition.
    """
    board = torch.tensor([True, False, False, True]).repeat(channels // 4)
    half = torch.arange(channels) < channels // 2
    masks = [board, ~board, half, ~half]
    return [
        AffineCoupling(mask, image_net(k + context, 2 * (channels - k), width, blocks))
        for mask, k in ((masks[i % 4], channels // 2) for i in range(layers))
    ]


def image_net(inputs: int, outputs: int, width: int, blocks: int) -> nn.Sequential:
    """Return a convolutional network of images that starts at zero."""
    body = [ResBlock(width) for _ in range(blocks)]
    first = nn.Conv2d(inputs, width, 3, padding=1)
    return zero_last(
        nn.Sequential(first, *body, nn.SiLU(), nn.Conv2d(width, outputs, 3, padding=1))
    )


def image_nvp(
    shape: tuple[int, int, int],
    layers: int = 4,
    *,
    scales: int = 2,
    width: int = 32,
    blocks: int = 1,
    alpha: float = 0.05,
) -> Flow:
    """Return the multi-scale RealNVP, a density of images in [0, 1]^(c, h, w).

    Args:
        shape: (c, h, w), the sizes multiples of 2^scales.
        layers: Couplings at each scale.
        scales: How often pixels are squeezed; half of the channels go on each time.
        width: Channels inside each network, a multiple of 8.
        blocks: Residual blocks of each network.
        alpha: Of the logit, which takes the cube to all of space.

    Raises:
        ValueError: Sizes that cannot be halved so often.
    """
    c, h, w = shape
    if scales < 1 or h % 2**scales or w % 2**scales:
        raise ValueError(f"shape must be (c, h, w), multiples of 2^{scales}: {shape}")
    options = {"width": width, "blocks": blocks}
    f: list[Bijection] = []
    for k in reversed([4 * c * 2**i for i in range(scales)]):
        on = [FirstChannels(k // 2, Chain(f))] if f else []
        f = [Squeeze(), *image_couplings(k, layers, **options), *on, Inverse(Squeeze())]
    return Flow(Chain([Logit(alpha), *f]), StandardNormal(*shape))


# Grey levels


def dequantizer(
    shape: tuple[int, int, int], layers: int = 4, *, width: int = 32, blocks: int = 1
) -> Flow:
    """Return a law q(u | x) of noise in (0, 1)^(c, h, w), given an image x.

    It starts nearly uniform, whatever x.

    Args:
        shape: (c, h, w), even sizes.
        layers: Couplings.
        width: Channels inside each network, and of what they share about x.
        blocks: Residual blocks of each network.

    Raises:
        ValueError: Odd sizes.
    """
    if shape[1] % 2 or shape[2] % 2:
        raise ValueError(f"shape must be (c, even, even), got {shape}")
    c = 4 * shape[0]
    about = nn.Sequential(
        nn.PixelUnshuffle(2), nn.Conv2d(c, width, 3, padding=1), ResBlock(width)
    )
    options = {"width": width, "blocks": blocks, "context": width}
    couplings = image_couplings(c, layers, **options)
    scale = Affine(torch.zeros(1), torch.full((1,), 1.7))  # σ(1.7 ε) is nearly uniform
    f = Chain([Inverse(Sigmoid()), scale, Squeeze(), *couplings, Inverse(Squeeze())])
    return Flow(Conditioned(f, about), StandardNormal(*shape))


class Dequantized(Model):
    """A law of grey images: a density p on the cube, and noise to reach it.

    Args:
        flow: p, a density of images in [0, 1)^(c, h, w).
        noise: q(u | x), a law on (0, 1)^(c, h, w) given images x; None: uniform.
        levels: L, how many grey levels there are.

    Raises:
        ValueError: Fewer than two levels.
    """

    def __init__(self, flow: Flow, noise: Flow | None, levels: int) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        self.flow = flow
        self.noise = noise
        self.levels = levels

    def fill(self, x: Tensor, *, rng: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw u ~ q(u | x); return the point (l + u)/L and log q(u | x).

        Args:
            x: Grey images, multiples l/(L − 1) in [0, 1], shape (n, c, h, w).
            rng: Source of u.

        Raises:
            ValueError: x holds no such levels, or is no batch of images.
        """
        top = self.levels - 1
        level = (x * top).round()
        good = ((x * top - level).abs() < 1e-3) & (level >= 0) & (level <= top)
        if x.ndim != 4 or len(x) == 0 or not good.all():
            want = f"x must be images (n, c, h, w) of multiples of 1/{top} in [0, 1]"
            raise ValueError(f"{want}, got {tuple(x.shape)} of {x.dtype}")
        if self.noise is None:
            u, log_q = uniform_like(x, rng), x.new_zeros(len(x))
        else:
            u, log_q = self.noise.draw(len(x), x - 0.5, rng=rng)
        under_one = 1 - torch.finfo(x.dtype).eps / 2  # rounding may not cross a cell
        return ((level + u) / self.levels).clamp(max=under_one), log_q

    def bound(
        self, x: Tensor, *, samples: int = 1, rng: Generator | None = None
    ) -> Tensor:
        """Return a draw of the bound of log P(x), nats (eq:coupling-dequantisation).

        Args:
            x: Grey images, multiples of 1/(L − 1) in [0, 1], shape (n, c, h, w).
            samples: K; the mean over K draws under the logarithm tightens the bound.
            rng: Source of the noise.

        Returns:
            Shape (n,).

        Raises:
            ValueError: x holds no such levels, or no samples.
        """
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        y, log_q = self.fill(x.repeat(samples, *[1] * (x.ndim - 1)), rng=rng)
        nats = y[0].numel() * math.log(self.levels)
        log_w = self.flow.log_prob(y) - nats - log_q  # (eq:coupling-dequantisation)
        return log_w.view(samples, len(x)).logsumexp(0) - math.log(samples)

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return minus the mean of the bound over the batch, shape ()."""
        return -self.bound(x, rng=rng).mean()

    def bits_per_dim(
        self, x: Tensor, *, samples: int = 1, rng: Generator | None = None
    ) -> Tensor:
        """Return minus the bound in bits per dimension, shape (n,)."""
        nats = -self.bound(x, samples=samples, rng=rng)
        return nats / (x[0].numel() * math.log(2))

    @torch.no_grad()
    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw y ~ p and return its grey levels ⌊Ly⌋/(L − 1), shape (n, c, h, w)."""
        y = self.flow.sample(n, rng=rng)
        level = (self.levels * y).floor().clamp(0, self.levels - 1)
        return level / (self.levels - 1)
