"""Image data sets (book/back/api.md).

    digits("train")                 8 × 8 images, shipped with the package
    mnist("train")                  28 × 28 images, fetched when first asked for
    stream(images.x, 128, rng=rng)  an endless iterator of batches

Where the files are, and how they are fetched and verified, is the business of
:mod:`.files`; streams are those of :mod:`.stream`.

References:
    Alpaydin, Kaynak (1998), Optical recognition of handwritten digits, UCI
        Machine Learning Repository (``digits``; licence CC BY 4.0).
    LeCun, Bottou, Bengio, Haffner (1998), Gradient-based learning applied to
        document recognition (``mnist``).
    Xiao, Rasul, Vollgraf (2017), Fashion-MNIST (``fashion_mnist``).
    Salakhutdinov, Murray (2008), On the quantitative analysis of deep belief
        networks; the files are those of Larochelle, Murray (2011), The neural
        autoregressive distribution estimator (``binarized_mnist``).
"""

import gzip
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from .files import CATALOGUE, DIGITS, DataError, content, known, shipped
from .stream import Stream, stream

__all__ = [
    "DataError",
    "Images",
    "Stream",
    "binarize",
    "binarized_mnist",
    "dequantize",
    "digits",
    "fashion_mnist",
    "mnist",
    "stream",
]


class Images(NamedTuple):
    """Images and what they show.

    Attributes:
        x: Grey levels in [0, 1], float32, shape (n, 1, h, w).
        y: Classes 0, …, 9, int64, shape (n,); None where none are published.
    """

    x: Tensor
    y: Tensor | None


def digits(split: str) -> Images:
    """Return the 8 × 8 digits of the UCI repository, x = level/16, 17 levels.

    Their 1797 images are permuted by NumPy's ``RandomState(0).permutation``, whose
    numbers are frozen for ever; the first 1437 are for training.

    Args:
        split: "train" (1437 images) or "test" (360).
    """
    parts = {"train": slice(None, 1437), "test": slice(1437, None)}
    known("split", split, parts)
    level, y = (idx(gzip.decompress(shipped(name))) for name in DIGITS)
    return images(level[parts[split]], 16, y[parts[split]])


def mnist(split: str) -> Images:
    """Return the 28 × 28 digits, "train" (60000) or "test" (10000), 256 levels."""
    return idx_images("mnist", split)


def fashion_mnist(split: str) -> Images:
    """Return the 28 × 28 garments, "train" (60000) or "test" (10000), 256 levels."""
    return idx_images("fashion-mnist", split)


def binarized_mnist(split: str) -> Images:
    """Return the digits binarised once for all, x ∈ {0, 1}, without labels.

    Args:
        split: "train" (50000 images), "valid" (10000) or "test" (10000).
    """
    source = CATALOGUE["binarized-mnist"]
    (file,) = source.splits[known("split", split, source.splits)]
    text = np.frombuffer(content("binarized-mnist", file), np.uint8)
    bits = text.reshape(-1, 2 * 28 * 28)[:, ::2] - ord("0")  # "0 1 … 0\n"
    return images(bits.reshape(-1, 28, 28), 1)


def idx_images(name: str, split: str) -> Images:
    """Return a split of a data set that is published in the IDX format."""
    source = CATALOGUE[name]
    files = source.splits[known("split", split, source.splits)]
    level, y = (idx(gzip.decompress(content(name, file))) for file in files)
    return images(level, 255, y)


def idx(data: bytes) -> np.ndarray:
    """Read an array of bytes: 0, 0, 8, its rank, its sizes, its entries."""
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"data must be IDX of unsigned bytes, got header {data[:4]!r}")
    rank = data[3]
    sizes = np.frombuffer(data, ">u4", rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(sizes)


def images(level: np.ndarray, top: int, y: np.ndarray | None = None) -> Images:
    """Return levels 0, …, top (n, h, w) and classes as tensors."""
    x = torch.from_numpy(level.astype(np.float32)).div_(top)[:, None]
    return Images(x, None if y is None else torch.from_numpy(y.astype(np.int64)))


# From levels to numbers and bits.


def uniform_like(x: Tensor, rng: Generator | None) -> Tensor:
    """Draw u ~ U[0, 1) in the shape, dtype and device of x."""
    device = x.device if rng is None else rng.device
    u = torch.rand(x.shape, generator=rng, dtype=x.dtype, device=device)
    return u.to(x.device)


def in_unit_interval(x: Tensor) -> None:
    """Raise a ``ValueError`` unless 0 ≤ x ≤ 1 everywhere."""
    if not ((x >= 0) & (x <= 1)).all():
        raise ValueError(f"x must lie in [0, 1], got [{x.min():.4g}, {x.max():.4g}]")


def dequantize(x: Tensor, levels: int, *, rng: Generator | None = None) -> Tensor:
    """Spread each grey level evenly over its cell, a draw from a density on [0, 1).

    With x = l/(levels − 1) and u ~ U[0, 1), return (l + u)/levels.

    Args:
        x: Grey levels in [0, 1], multiples of 1/(levels − 1).
        levels: How many there are: 17 for ``digits``, 256 for ``mnist``.
        rng: Source of the draw.

    Raises:
        ValueError: Fewer than two levels, or an x that is none of them.
    """
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    in_unit_interval(x)
    level = (x * (levels - 1)).round()
    if (x * (levels - 1) - level).abs().max() > 1e-3:
        raise ValueError(f"x must hold multiples of 1/{levels - 1}: are levels right?")
    top = 1 - torch.finfo(x.dtype).eps / 2  # the largest number below 1
    return ((level + uniform_like(x, rng)) / levels).clamp(max=top)


def binarize(x: Tensor, *, rng: Generator | None = None) -> Tensor:
    """Draw a bit for each pixel, 1 with probability x, in the dtype of x.

    Raises:
        ValueError: An x outside [0, 1].
    """
    in_unit_interval(x)
    return (uniform_like(x, rng) < x).to(x.dtype)
