"""Network blocks that know no model, and the one place that draws noise.

    noise_like(x)        standard normal noise in the shape of x
    MLP(2, 64, 64, 2)    a perceptron by its widths
    ResBlock(32)         two convolutions beside an identity

Points are (n, d), images (n, c, h, w).
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn

__all__ = ["MLP", "ResBlock", "noise_like", "randn"]


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
