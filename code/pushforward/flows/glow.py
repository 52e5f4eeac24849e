"""Glow: flows of images whose channels mix (book/flows/glow.md).

One step is three bijections of an image x (n, c, h, w):

    actnorm      z = s ⊙ (x + b), one s and b for each channel     (eq:glow-actnorm)
    mixing       z_ij = W x_ij at every pixel, W = P L (U + diag s)  (eq:glow-plu)
    coupling     z_b = s(x_a) ⊙ (x_b + t(x_a)),  s in (δ, 1)     (eq:glow-coupling)

Steps follow a squeeze of the pixels; after them half of the channels is finished,
and the other half goes on to the next level.

References:
    Kingma, Dhariwal (2018), Glow: generative flow with invertible 1×1 convolutions.
    Dinh, Sohl-Dickstein, Bengio (2017), Density estimation using Real NVP.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..distributions import StandardNormal, positive
from ..model import Model
from ..nn import ResBlock
from .change import Affine, Bijection, Chain, Flow, Inverse
from .coupling import AffineCoupling, Coupling, FirstChannels, Squeeze

__all__ = [
    "ActNorm",
    "InvertibleConv",
    "Permute",
    "SigmoidCoupling",
    "conv_net",
    "glow",
    "initialize",
    "interpolate",
    "residual_net",
    "temper",
]

MakeNet = Callable[[int, int, int], nn.Module]  # of inputs, outputs and channels


# One step


class ActNorm(Bijection):
    """z = s ⊙ (x + b): a scale and a shift for each channel (eq:glow-actnorm).

    The first batch that comes forward in training sets them so that z has mean 0 and
    variance 1 in every channel (eq:glow-actnorm-init).  From then on they are
    parameters like any others; before, s = 1 and b = 0.  That a batch was seen is kept
    with the weights, so a run that is resumed does not start from its next batch again.

    Args:
        channels: How many.

    Attributes:
        seen: 1 after the first batch, 0 before.  In a moving average of the weights
            that began before the first batch it is the share of weights that came
            after it, by which the averages of log s and b are divided.
    """

    seen: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_s = nn.Parameter(torch.zeros(channels))
        self.b = nn.Parameter(torch.zeros(channels))
        self.register_buffer("seen", torch.zeros(()))
        self.settled = False  # spares a look at the device in each step
        self.register_load_state_dict_post_hook(unsettle)

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z and h·w·Σ log s, from the first batch if this is it.

        Raises:
            ValueError: Another number of channels; or a first batch that is constant
                in a channel.
        """
        if x.ndim < 2 or x.shape[1] != len(self.b):
            want = f"(n, {len(self.b)}, …)"
            raise ValueError(f"x must have shape {want}, got {tuple(x.shape)}")
        if not self.settled:
            self.settle(x if self.training else None)
        log_s, b = self.log_scale_shift(x)
        return (x + b) * log_s.exp(), log_det(x, log_s)  # (eq:glow-actnorm)

    def inverse(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z/s − b and −h·w·Σ log s."""
        if not self.settled:
            self.settle(None)
        log_s, b = self.log_scale_shift(z)
        return z * (-log_s).exp() - b, -log_det(z, log_s)

    def log_scale_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return log s and b, shape (c, 1, …)."""
        share = self.seen if self.settled else 1.0
        shape = (-1, *[1] * (x.ndim - 2))
        return (self.log_s / share).view(shape), (self.b / share).view(shape)

    def settle(self, x: Tensor | None) -> None:
        """Set scale and shift by the batch x, if there is one, as the first."""
        if self.seen == 0 and x is not None:
            self.start(x)
        self.settled = bool(self.seen > 0)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Give z = s ⊙ (x + b) mean 0 and variance 1 on x (eq:glow-actnorm-init)."""
        rows = x.transpose(0, 1).flatten(1)  # (c, n·h·w)
        mean, std = rows.mean(1), rows.std(1, correction=0)
        if not (std > 1e-6 * mean.abs()).all():
            k = int((std / mean.abs()).nan_to_num(0.0).argmin())
            raise ValueError(
                f"x must vary in every channel, channel {k} has deviation {std[k]:.3g}"
            )
        self.b.copy_(-mean)
        self.log_s.copy_(-std.log())
        self.seen.fill_(1.0)


def log_det(x: Tensor, log_s: Tensor) -> Tensor:
    """Return h·w·Σ log |s| for each row of x (n, c, …), (eq:glow-conv-logdet)."""
    return (x[0, 0].numel() * log_s.sum()).expand(len(x))  # (eq:glow-actnorm-logdet)


def unsettle(module: nn.Module, _: Any) -> None:
    """Let a module that has loaded weights look at them again."""
    module.settled = False  # type: ignore[assignment]


class InvertibleConv(Bijection):
    """z_ij = W x_ij, one matrix for the channels of every pixel (eq:glow-conv).

    W = P L (U + diag s), so that log |det W| = Σ log |s|         (eq:glow-conv-logdet)

    with a fixed permutation P, a unit lower triangular L and a strictly upper
    triangular U.  It starts as a random rotation or reflection.  The signs of s are
    fixed: W never becomes singular.

    Args:
        channels: c.
    """

    order: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        Q, _ = torch.linalg.qr(torch.randn(channels, channels))
        P, L, U = torch.linalg.lu(Q)
        s = U.diagonal()
        self.register_buffer("order", P.argmax(1))  # (P y)_i = y_order(i)
        self.register_buffer("sign", s.sign())
        self.log_s = nn.Parameter(s.abs().log())
        self.lu = nn.Parameter(L.tril(-1) + U.triu(1))  # packed as LAPACK does

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z and h·w·Σ log |s|.

        Raises:
            ValueError: x is no batch of images with c channels.
        """
        if x.ndim != 4 or x.shape[1] != len(self.sign):
            want = f"(n, {len(self.sign)}, h, w)"
            raise ValueError(f"x must have shape {want}, got {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):  # digits count here
            z = F.conv2d(x, self.weight()[..., None, None])  # (eq:glow-conv)
        return z, log_det(x, self.log_s)

    def inverse(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return W⁻¹z by two triangular solves, and −h·w·Σ log |s|."""
        L, U = self.factors()
        y = z[:, self.order.argsort()].transpose(0, 1)  # P⁻¹ z
        rows = y.flatten(1)  # (c, n·h·w)
        with torch.autocast(z.device.type, enabled=False):
            v = torch.linalg.solve_triangular(L, rows, upper=False, unitriangular=True)
            v = torch.linalg.solve_triangular(U, v, upper=True)
        return v.view(y.shape).transpose(0, 1), -log_det(z, self.log_s)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return L and U + diag s, shape (c, c)."""
        eye = torch.eye(len(self.sign), dtype=self.lu.dtype, device=self.lu.device)
        return self.lu.tril(-1) + eye, self.lu.triu(1) + eye * self.s

    @property
    def s(self) -> Tensor:
        """The diagonal, shape (c,)."""
        return self.sign * self.log_s.exp()

    def weight(self) -> Tensor:
        """Return W, shape (c, c)."""
        L, U = self.factors()
        return (L @ U)[self.order]  # (eq:glow-plu)


class Permute(Bijection):
    """Put the channels in another order: what Glow's convolution replaces.

    Args:
        order: Channel i of z is channel order[i] of x, shape (c,).

    Raises:
        ValueError: No permutation of 0, …, c − 1.
    """

    order: Tensor

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        if order.ndim != 1 or sorted(order.tolist()) != list(range(len(order))):
            raise ValueError(f"order must be a permutation of 0, 1, …, got {order}")
        self.register_buffer("order", order)

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the channels in the new order, and 0."""
        return x[:, self.order], x.new_zeros(len(x))

    def inverse(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the channels in the old order, and 0."""
        return z[:, self.order.argsort()], z.new_zeros(len(z))


class SigmoidCoupling(Coupling):
    """Glow's coupling: a scale between δ and 1 (eq:glow-coupling).

        z_b = s ⊙ (x_b + t),  s = δ + (1 − δ) σ(h + 2),  (h, t) = net(x_a)

    Args:
        mask: Shape (c,), true on the channels a that are kept.
        net: To h and t, side by side along dimension 1.
        floor: δ in [0, 1): the inverse stretches by at most 1/δ.

    Raises:
        ValueError: A mask that keeps all or nothing, or another δ.
    """

    def __init__(self, mask: Tensor, net: nn.Module, *, floor: float = 0.05) -> None:
        super().__init__(mask, net)
        if not 0 <= floor < 1:
            raise ValueError(f"floor must lie in [0, 1), got {floor}")
        self.floor = floor

    def move(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return s ⊙ (x + t) and Σ log s."""
        s, t = self.scale_shift(h)
        return (x + t) * s, s.log().flatten(1).sum(1)  # (eq:glow-coupling)

    def move_back(self, z: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return z/s − t and −Σ log s."""
        s, t = self.scale_shift(h)
        return z / s - t, -s.log().flatten(1).sum(1)

    def scale_shift(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return s and t from the parameters."""
        h, t = h.chunk(2, dim=1)
        return self.floor + (1 - self.floor) * (h + 2).sigmoid(), t


# Networks


class Full(nn.Sequential):
    """A network that answers in the precision in which it is asked.

    Inside an autocast its layers compute in bfloat16; the flow around it must not.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the output in the dtype of x."""
        return super().forward(x).to(x.dtype)


def zeroed(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a convolution with its weights set to zero."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def conv_net(inputs: int, outputs: int, channels: int) -> nn.Sequential:
    """Return Glow's network: convolutions of sides 3, 1, 3, the last one zero."""
    return Full(
        nn.Conv2d(inputs, channels, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(channels, channels, 1),
        nn.SiLU(),
        zeroed(nn.Conv2d(channels, outputs, 3, padding=1)),
    )


def residual_net(
    inputs: int, outputs: int, channels: int, *, blocks: int = 2, dropout: float = 0.0
) -> nn.Sequential:
    """Return a residual network between two convolutions, the last one zero.

    Args:
        inputs: Channels of what it sees.
        outputs: Channels of what it says.
        channels: In between, a multiple of 8.
        blocks: Residual blocks.
        dropout: Probability, inside the blocks.
    """
    return Full(
        nn.Conv2d(inputs, channels, 3, padding=1),
        *[ResBlock(channels, dropout) for _ in range(blocks)],
        nn.SiLU(),
        zeroed(nn.Conv2d(channels, outputs, 3, padding=1)),
    )


# The model


def glow(
    shape: tuple[int, int, int],
    *,
    levels: int = 2,
    steps: int = 4,
    channels: int = 48,
    mixing: str = "conv",
    net: MakeNet = conv_net,
) -> Flow:
    """Return Glow: a flow of images over N(0, I) in the same shape.

    Its actnorms wait for a batch: the first step of training shows them one, and so
    does :func:`initialize`.

    Args:
        shape: (c, h, w), the sides multiples of 2^levels.
        levels: How often pixels are squeezed; half of the channels go on each time.
        steps: Of flow in each level.
        channels: Inside each network.
        mixing: "conv" (learned), "shuffle" (a fixed random order) or "reverse".
        net: Makes the networks, from inputs, outputs and channels.

    Raises:
        ValueError: Sides that cannot be halved so often, or another unknown.
    """
    c, h, w = shape
    if min(c, levels, steps, channels) < 1:
        raise ValueError(
            f"shape, levels, steps, channels must be positive, got {shape}, {levels}, "
            f"{steps}, {channels}"
        )
    if min(h, w) < 1 or h % 2**levels or w % 2**levels:
        raise ValueError(f"shape must have sides multiples of {2**levels}, got {shape}")
    f: list[Bijection] = []
    for k in reversed([4 * c * 2**i for i in range(levels)]):
        half = torch.arange(k) < k // 2
        body = [m for _ in range(steps) for m in step(half, channels, mixing, net)]
        on = [split_prior(half), FirstChannels(k // 2, Chain(f))] if f else []
        f = [Squeeze(), *body, *on, Inverse(Squeeze())]  # (eq:glow-multiscale)
    return Flow(Chain(f), StandardNormal(*shape))


def step(half: Tensor, channels: int, mixing: str, net: MakeNet) -> list[Bijection]:
    """Return one step of flow: actnorm, mixing, coupling.

    Args:
        half: Which of the channels the coupling keeps, shape (k,).
        channels: Inside the network.
        mixing: "conv", "shuffle" or "reverse".
        net: Makes the network.

    Raises:
        ValueError: Another mixing.
    """
    k, kept = len(half), int(half.sum())
    mixings: dict[str, Callable[[], Bijection]] = {
        "conv": lambda: InvertibleConv(k),
        "shuffle": lambda: Permute(torch.randperm(k)),
        "reverse": lambda: Permute(torch.arange(k).flip(0)),
    }
    if mixing not in mixings:
        raise ValueError(f"mixing must be one of {[*mixings]}, got {mixing!r}")
    coupling = SigmoidCoupling(half, net(kept, 2 * (k - kept), channels))
    return [ActNorm(k), mixings[mixing](), coupling]


def split_prior(half: Tensor) -> AffineCoupling:
    """Return the law of the channels that end, given those that go on.

    It is N(m(a), s(a)²), and standardising by it is an affine coupling
    (eq:glow-split), with one convolution as its network.
    """
    k, kept = len(half), int(half.sum())
    conv = zeroed(nn.Conv2d(kept, 2 * (k - kept), 3, padding=1))
    return AffineCoupling(half, Full(conv))


@torch.no_grad()
def initialize(model: Model, x: Tensor, *, rng: Generator | None = None) -> None:
    """Show a batch to the actnorms of a model (eq:glow-actnorm-init).

    Those that have seen one do not change.

    Training does so by itself.  Call it first to choose the batch, or where several
    processes train, whose batches differ.

    Args:
        model: A flow, or a model around one.
        x: Data, shape (n, *shape), a few hundred.
        rng: Source of what the loss draws.
    """
    mode = model.training
    try:
        model.train()
        model.loss(x, rng=rng)
    finally:
        model.train(mode)


# What a trained flow is used for


def temper(flow: Flow, temperature: float) -> Flow:
    """Return the law of g(T z), z ~ π, at temperature T (eq:glow-temper).

    The new flow shares the weights of the old one.

    Args:
        flow: g and π.
        temperature: T, positive; below 1 it draws nearer to g(0).
    """
    positive("temperature", temperature)
    like = next(flow.parameters(), torch.zeros(()))
    scale = torch.full((1,), temperature, dtype=like.dtype, device=like.device)
    cool = Affine(torch.zeros_like(scale), scale)
    return Flow(Chain([flow.f, cool]), flow.base)


@torch.no_grad()
def interpolate(
    flow: Flow, x: Tensor, y: Tensor, n: int, *, straight: bool = False
) -> Tensor:
    """Return n images between each x and y, along an arc of noise (eq:glow-arc).

    Args:
        flow: Whose noise f(x) and f(y) are joined.
        x: Where the paths begin, shape (m, *shape).
        y: Where they end, in the shape of x.
        n: Images of a path, its ends included, at least 2.
        straight: Take the straight line of noise (eq:glow-line) instead.

    Returns:
        Shape (n, m, *shape).

    Raises:
        ValueError: Unlike shapes, or a path without two ends.
    """
    if x.shape != y.shape or n < 2:
        got = f"{tuple(x.shape)}, {tuple(y.shape)} and n = {n}"
        raise ValueError(f"x and y must have one shape and n ≥ 2, got {got}")
    start, end = flow.f(x)[0], flow.f(y)[0]
    t = torch.linspace(0, 1, n, dtype=x.dtype, device=x.device)
    angle = math.pi / 2 * t
    pairs = (1 - t, t) if straight else (angle.cos(), angle.sin())
    shape = (n, *[1] * x.ndim)
    a, b = (weight.view(shape) for weight in pairs)
    z = a * start + b * end  # (n, m, *shape), (eq:glow-arc) or (eq:glow-line)
    return flow.f.inverse(z.flatten(0, 1))[0].view(n, *x.shape)
