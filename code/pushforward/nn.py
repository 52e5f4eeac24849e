"""Network blocks that know no model, and the one place that draws noise.

    noise_like(x)        standard normal noise in the shape of x
    MLP(2, 64, 64, 2)    a perceptron by its widths
    ResBlock(32)         two convolutions beside an identity
    TimeMLP(2, 64, 64)   a perceptron of a point and a time, v(x, t)
    ResMLP(64, 256, 2)   a residual one, for small images or points of many numbers
    UNet(1, width=32)    a convolutional field of an image and a time, v(x, t)

Points are (n, d), images (n, c, h, w).
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn

__all__ = ["MLP", "ResBlock", "ResMLP", "TimeMLP", "UNet", "noise_like", "randn"]


def randn(
    shape: tuple[int, ...], like: Tensor, *, rng: Generator | None = None
) -> Tensor:
    """Draw N(0, 1) entries with the dtype and device of ``like``.

    Args:
        shape: Shape of the draw.
        like: Where the result lives, and in which precision.
        rng: Source of the draw.  It may live on another device than ``like``.
    """
    device = like.device if rng is None else rng.device
    z = torch.randn(shape, generator=rng, dtype=like.dtype, device=device)
    return z.to(like.device)


def noise_like(x: Tensor, rng: Generator | None = None) -> Tensor:
    """Draw ε ~ N(0, I) in the shape, dtype and device of x."""
    return randn(tuple(x.shape), x, rng=rng)


class MLP(nn.Sequential):
    """A multilayer perceptron: linear maps with a nonlinearity in between.

    Args:
        widths: Sizes from input to output, at least two, each positive.
        activation: Makes the nonlinearity.

    Raises:
        ValueError: Fewer than two widths, or one that is not positive.
    """

    def __init__(
        self, *widths: int, activation: Callable[[], nn.Module] = nn.SiLU
    ) -> None:
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(
                f"widths must be at least two positive sizes, got {widths}"
            )
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), activation()]
        super().__init__(*layers[:-1])


class ResBlock(nn.Module):
    """x + F(x), where F is two normalised 3 × 3 convolutions on images.

    Args:
        channels: Of the input and of the output, a multiple of ``groups``.
        dropout: Probability before the second convolution.
        groups: Of the normalisation.

    Raises:
        ValueError: ``channels`` is not a positive multiple of ``groups``.
    """

    def __init__(self, channels: int, dropout: float = 0.0, *, groups: int = 8) -> None:
        super().__init__()
        if channels < 1 or channels % groups:
            raise ValueError(f"channels must be multiples of {groups}, got {channels}")
        self.net = nn.Sequential(
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return x + F(x), shape (n, channels, h, w)."""
        return x + self.net(x)


class TimeMLP(nn.Module):
    """A field v(x, t) on R^d: a perceptron that sees sines and cosines of the time.

    Args:
        d: Dimension of the points.
        hidden: Widths of the hidden layers.
        frequencies: The time enters as cos and sin of π t, 2π t, …

    Raises:
        ValueError: A size that is not positive.
    """

    octaves: Tensor

    def __init__(
        self, d: int, *hidden: int, frequencies: int = 4,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:  # fmt: skip
        super().__init__()
        if d < 1 or frequencies < 1:
            raise ValueError(f"d, frequencies must be ≥ 1, got {d}, {frequencies}")
        k = torch.arange(1, frequencies + 1, dtype=torch.get_default_dtype())
        self.register_buffer("octaves", torch.pi * k)
        self.net = MLP(d + 2 * frequencies, *hidden, d, activation=activation)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return v(x, t), shape (n, d).

        Args:
            x: Points, (n, d).
            t: Their times, () or (n, 1).

        Raises:
            ValueError: Times of another shape.
        """
        if t.ndim and t.shape != (len(x), 1):
            raise ValueError(f"t must be () or ({len(x)}, 1), got {tuple(t.shape)}")
        angle = t.expand(len(x), 1) * self.octaves
        return self.net(torch.cat([x, angle.cos(), angle.sin()], 1))


class TimeEmbedding(nn.Module):
    """A time, or the logarithm of a noise level, as a vector that blocks can read.

    The angles are ω t, with frequencies ω from 1 to a top in equal ratios; they are
    computed in single precision at least, whatever the weights are.

    Args:
        width: Of the vector, even.
        top: Largest frequency.
    """

    def __init__(self, width: int, *, top: float = 1000.0) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"width must be even and positive, got {width}")
        self.width, self.top = width, top
        self.net = MLP(width, width, width)

    def forward(self, t: Tensor) -> Tensor:
        """Return the vectors of the times t (n,), shape (n, width)."""
        precise = torch.promote_types(t.dtype, torch.float32)
        share = torch.linspace(0, 1, self.width // 2, dtype=precise, device=t.device)
        angle = t.to(precise)[:, None] * self.top**share
        waves = torch.cat([angle.cos(), angle.sin()], 1)
        return self.net(waves.to(next(self.net.parameters()).dtype))


class ResMLP(nn.Module):
    """A field v(x, t) that is a residual perceptron of all the numbers of x.

    The time may be any number of ordinary size, such as the logarithm of a noise
    level.  Its last layer is zero at first, so v = 0.

    Args:
        d: How many numbers a datum has, whatever its shape.
        width: Of the hidden layers, even.
        blocks: Residual blocks of two layers each.
        classes: How many classes the data may be conditioned on; 0 for none.

    Raises:
        ValueError: A size that is not positive, or an odd width.
    """

    def __init__(
        self, d: int, width: int = 256, blocks: int = 2, *, classes: int = 0
    ) -> None:
        super().__init__()
        if min(d, blocks) < 1:
            raise ValueError(f"d, blocks must be ≥ 1, got {d}, {blocks}")
        self.enter = nn.Linear(d, width)
        self.time, self.classes = TimeEmbedding(width, top=16.0), classes
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), MLP(width, width, width)) for _ in range(blocks)
        )
        self.leave = nn.Linear(width, d)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """Return v(x, t), or v(x, t | c), in the shape of x.

        Args:
            x: Data (n, *shape).
            t: Their times: (), (n,), or (n, 1, …, 1).
            c: Their classes (n,), integers in 0, …, classes; ``classes`` itself, like
                no c at all, stands for an unknown class.

        Raises:
            ValueError: Shapes that do not agree, or a c for a net without classes.
        """
        n = len(x)
        if t.numel() not in (1, n):
            raise ValueError(f"t must be () or ({n},), got {tuple(t.shape)}")
        h = self.enter(x.flatten(1)) + self.time(t.reshape(-1).expand(n))
        h = h + labelled(self.label, c, x, self.classes)
        for block in self.blocks:
            h = h + block(h)
        return self.leave(h).view_as(x)


def labelled(
    label: nn.Embedding | None, c: Tensor | None, x: Tensor, classes: int
) -> Tensor:
    """Return the vectors of the classes c of x, of the unknown one if c is None."""
    n = len(x)
    if label is None:
        if c is not None:
            raise ValueError("c must be None: the net was made without classes")
        return x.new_zeros(())
    if c is not None and c.shape != (n,):
        raise ValueError(f"c must have shape {(n,)}, got {tuple(c.shape)}")
    unknown = torch.full((n,), classes, device=x.device)
    return label(unknown if c is None else c)


class TimeBlock(nn.Module):
    """A residual block whose second normalisation is scaled and shifted by a vector.

    Args:
        channels: Of the input, a multiple of 8.
        out: Of the output, likewise.
        width: Of the vector.
        dropout: Probability before the second convolution.
    """

    def __init__(
        self, channels: int, out: int, width: int, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.enter = nn.Sequential(
            nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1)
        )
        self.norm = nn.GroupNorm(8, out)
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * out))
        self.leave = nn.Sequential(
            nn.SiLU(), nn.Dropout(dropout), silent(nn.Conv2d(out, out, 3, padding=1))
        )
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Return images (n, out, h, w) from x (n, channels, h, w) and e (n, width)."""
        scale, shift = self.modulate(e)[:, :, None, None].chunk(2, 1)
        h = self.norm(self.enter(x)) * (1 + scale) + shift
        return self.skip(x) + self.leave(h)


class Attention(nn.Module):
    """x + A(x), where every pixel looks at every other, with several heads.

    The softmax is written out: it can be differentiated twice and under ``vmap``.

    Args:
        channels: Of the images, a multiple of 8 and of ``heads``.
        heads: How many.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.read = nn.Conv2d(channels, 3 * channels, 1)
        self.write = silent(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return x + A(x), shape (n, channels, h, w)."""
        n, c, h, w = x.shape
        each = c // self.heads
        parts = self.read(self.norm(x)).reshape(n, 3, self.heads, each, h * w)
        q, k, v = parts.unbind(1)  # (n, heads, each, pixels)
        looks = (q.mT @ k / each**0.5).softmax(-1)
        return x + self.write((v @ looks.mT).reshape(n, c, h, w))


class UNet(nn.Module):
    """A field on images that sees the time: v(x, t), in the shape of x.

    It goes down to coarser sizes and up again; on the way up each size sees what
    was there on the way down.  Sides may be odd.  Its last layer is zero at first,
    so v = 0.  It runs in bfloat16, under autocast and in channels_last.

    Args:
        channels: Of the images.
        width: Channels at the finest size, a multiple of 8 (and of ``heads``).
        factors: Channels at each size, finest first, in units of ``width``; each
            size has half the sides of the one before.
        blocks: Residual blocks at each size, on each way.
        heads: Of the self-attention at the coarsest size; 0 for none.
        classes: How many classes the images may be conditioned on; 0 for none.
        dropout: Probability in each block.

    Raises:
        ValueError: Sizes that are not positive or do not divide as they must.
    """

    # More arguments than six: each is one decision and has a default.
    def __init__(
        self,
        channels: int = 1,
        *,
        width: int = 64,
        factors: tuple[int, ...] = (1, 2, 2),
        blocks: int = 2,
        heads: int = 4,
        classes: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not factors or min(channels, width, blocks, *factors) < 1:
            got = f"{channels}, {width}, {factors}, {blocks}"
            raise ValueError(f"channels, width, factors, blocks must be ≥ 1, got {got}")
        if width % 8 or (heads and width % heads):
            raise ValueError(f"width must be a multiple of 8 and heads, got {width}")
        sizes, e = [width * f for f in factors], 4 * width
        self.time, self.classes = TimeEmbedding(e), classes
        self.label = nn.Embedding(classes + 1, e) if classes else None
        self.enter = nn.Conv2d(channels, sizes[0], 3, padding=1)
        pairs = [(sizes[0], sizes[0]), *pairwise(sizes)]
        self.down = nn.ModuleList(Stage(a, b, e, blocks, dropout) for a, b in pairs)
        self.shrink = nn.ModuleList(
            nn.Conv2d(a, a, 3, stride=2, padding=1) for a in sizes[:-1]
        )
        self.middle = Attention(sizes[-1], heads) if heads else nn.Identity()
        self.up = nn.ModuleList(
            Stage(2 * b, a, e, blocks, dropout) for a, b in reversed(pairs)
        )
        norm = nn.GroupNorm(8, sizes[0])
        last = silent(nn.Conv2d(sizes[0], channels, 3, padding=1))
        self.leave = nn.Sequential(norm, nn.SiLU(), last)

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """Return v(x, t), or v(x, t | c), shape (n, channels, h, w).

        Args:
            x: Images (n, channels, h, w).
            t: Their times: (), (n,), or (n, 1, 1, 1).
            c: Their classes (n,), integers in 0, …, classes; ``classes`` itself, like
                no c at all, stands for an unknown class.

        Raises:
            ValueError: Shapes that do not agree, or a c for a net without classes.
        """
        e = self.embed(x, t, c)
        h, seen = self.enter(x), []
        for i, stage in enumerate(self.down):
            h = stage(self.shrink[i - 1](h) if i else h, e)
            seen.append(h)
        h = self.middle(h)
        for stage in self.up:
            skip = seen.pop()
            h = stage(torch.cat([resized(h, skip), skip], 1), e)
        return self.leave(h)

    def embed(self, x: Tensor, t: Tensor, c: Tensor | None) -> Tensor:
        """Return the vector of each row's time and class, shape (n, 4 width)."""
        n = len(x)
        if x.ndim != 4 or t.numel() not in (1, n):
            raise ValueError(f"x must be (n, c, h, w) and t () or (n,), got "
                             f"{tuple(x.shape)} and {tuple(t.shape)}")  # fmt: skip
        e = self.time(t.reshape(-1).expand(n))
        return e + labelled(self.label, c, x, self.classes)


class Stage(nn.Module):
    """Residual blocks at one size, the first of which changes the channels."""

    def __init__(
        self, channels: int, out: int, width: int, blocks: int, dropout: float
    ) -> None:
        super().__init__()
        ins = [channels] + [out] * (blocks - 1)
        self.blocks = nn.ModuleList(
            TimeBlock(a, out, width, dropout=dropout) for a in ins
        )

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Return the images (n, out, h, w)."""
        for block in self.blocks:
            x = block(x, e)
        return x


def silent(layer: nn.Conv2d) -> nn.Conv2d:
    """Return the layer with its weights at zero, so that at first it says nothing."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


def resized(x: Tensor, like: Tensor) -> Tensor:
    """Return the images x at the size of others, by the nearest pixel."""
    if x.shape[2:] == like.shape[2:]:
        return x
    return nn.functional.interpolate(x, size=like.shape[2:], mode="nearest")
