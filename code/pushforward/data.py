"""Image data sets and streams of batches (book/back/api.md).

    digits("train")                 8 × 8 images, shipped with the package
    mnist("train")                  28 × 28 images, fetched when first asked for
    stream(images.x, 128, rng=rng)  an endless iterator of batches

This is the only module that downloads.  A file is looked for in the folder that
the environment variable PUSHFORWARD_DATA names, then in a cache of the user; if
it is in neither it is fetched into the cache.  No byte is used before its
SHA-256 is that of the published file.

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
import hashlib
import http.client
import importlib.resources
import os
import sys
import tempfile
import urllib.error
import urllib.request
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Generator, Tensor

__all__ = [
    "DataError",
    "Images",
    "Sampler",
    "Stream",
    "binarize",
    "binarized_mnist",
    "checksums",
    "dequantize",
    "digits",
    "fashion_mnist",
    "fetch",
    "mnist",
    "states",
    "stream",
    "write_whole",
]


class DataError(RuntimeError):
    """A data file is damaged, or cannot be fetched."""


class Images(NamedTuple):
    """Images and what they show.

    Attributes:
        x: Grey levels in [0, 1], float32, shape (n, 1, h, w).
        y: Classes 0, …, 9, int64, shape (n,); None where none are published.
    """

    x: Tensor
    y: Tensor | None


class File(NamedTuple):
    """A published file: what its bytes must be, and in how many."""

    name: str
    size: int
    sha256: str


class Source(NamedTuple):
    """A data set: the folders it is served from, and its files by split."""

    mirrors: tuple[str, ...]
    splits: dict[str, tuple[File, ...]]


# The checksum of a binarised split is that of its text, compressed or not.
# fmt: off
CATALOGUE = {
    "mnist": Source((
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ), {
        "train": (
            File("train-images-idx3-ubyte.gz", 9912422,
                 "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            File("train-labels-idx1-ubyte.gz", 28881,
                 "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        ),
        "test": (
            File("t10k-images-idx3-ubyte.gz", 1648877,
                 "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            File("t10k-labels-idx1-ubyte.gz", 4542,
                 "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
    }),
    "fashion-mnist": Source((
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ), {
        "train": (
            File("train-images-idx3-ubyte.gz", 26421880,
                 "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            File("train-labels-idx1-ubyte.gz", 29515,
                 "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        ),
        "test": (
            File("t10k-images-idx3-ubyte.gz", 4422102,
                 "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            File("t10k-labels-idx1-ubyte.gz", 5148,
                 "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
    }),
    "binarized-mnist": Source((
        "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
    ), {
        "train": (
            File("binarized_mnist_train.amat", 78400000,
                 "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"),
        ),
        "valid": (
            File("binarized_mnist_valid.amat", 15680000,
                 "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"),
        ),
        "test": (
            File("binarized_mnist_test.amat", 15680000,
                 "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c"),
        ),
    }),
}
# fmt: on


NAMES = ("digits", *CATALOGUE)


def digits(split: str) -> Images:
    """Return the 8 × 8 digits of the UCI repository, x = level/16, 17 levels.

    Their 1797 images are permuted by NumPy's ``RandomState(0).permutation``, whose
    numbers are frozen for ever; the first 1437 are for training.

    Args:
        split: "train" (1437 images) or "test" (360).
    """
    parts = {"train": slice(None, 1437), "test": slice(1437, None)}
    known("split", split, parts)
    level, y = (
        idx(gzip.decompress(shipped(f"digits-{part}-ubyte.gz")))
        for part in ("images-idx3", "labels-idx1")
    )
    return images(level[parts[split]], 16, y[parts[split]])


def shipped(name: str) -> bytes:
    """Return a file that comes with the package."""
    return (importlib.resources.files(__package__) / name).read_bytes()


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


def known(what: str, name: str, names: Any) -> str:
    """Return the name if it is among the names, else raise a ``ValueError``."""
    if name not in names:
        raise ValueError(f"{what} must be one of {sorted(names)}, got {name!r}")
    return name


# Files: where they are, what they hold, how they come.


def cache() -> Path:
    """Return the folder for fetched files, where the platform wants it."""
    home = Path.home()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or home / ".cache"
    return Path(base) / "pushforward"


def find(name: str, file: File) -> Path | None:
    """Return where a file is, plain or compressed, or None."""
    given = os.environ.get("PUSHFORWARD_DATA")
    roots = [Path(given), cache()] if given else [cache()]
    paths = [root / name / (file.name + end) for root in roots for end in ("", ".gz")]
    return next((path for path in paths if path.is_file()), None)


def content(name: str, file: File) -> bytes:
    """Return the bytes of a published file, fetched if need be, and verified.

    Raises:
        DataError: The file is damaged, or cannot be fetched.
    """
    path = find(name, file) or download(name, file)
    data = path.read_bytes()
    if path.name != file.name:  # the text, compressed by someone on the way
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as cause:
            raise DataError(f"{path} is damaged: {cause}") from cause
    verify(path, file, len(data), hashlib.sha256(data).hexdigest())
    return data


def verify(path: Path | str, file: File, size: int, found: str) -> None:
    """Raise a ``DataError`` unless size and checksum are the published ones."""
    if (size, found) != (file.size, file.sha256):
        raise DataError(
            f"{path} is damaged and was not used: expected {file.size} bytes with "
            f"SHA-256 {file.sha256}, found {size} bytes with {found}. "
            "Remove it to fetch it again."
        )


def download(name: str, file: File) -> Path:
    """Fetch a file into the cache from the first mirror that serves it whole.

    Raises:
        DataError: No mirror did; the message says what each answered.
    """
    path = cache() / name / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for mirror in CATALOGUE[name].mirrors:
        url = mirror + file.name
        sys.stderr.write(f"Fetching {url} ({file.size / 1e6:.1f} MB) into {path}\n")
        try:
            transfer(url, file, path)
        except (OSError, http.client.HTTPException, DataError) as cause:
            failures.append(f"  {url}: {cause}")
        else:
            return path
    raise DataError(
        f"{name}/{file.name} could not be fetched:\n" + "\n".join(failures) + "\n"
        f"If you have the file, put it into {path.parent}, or name the folder above "
        "by the environment variable PUSHFORWARD_DATA."
    )


def transfer(url: str, file: File, path: Path) -> None:
    """Write what ``url`` serves to ``path``, whole and verified or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                size, found = copy(response, part, file)
            verify(url, file, size, found)
            part.close()
            os.replace(part.name, path)
        except BaseException:  # an interruption too leaves nothing behind
            part.close()
            os.unlink(part.name)
            raise


def copy(source: IO[bytes], target: IO[bytes], file: File) -> tuple[int, str]:
    """Copy in blocks with a progress bar; return the size and the SHA-256."""
    from tqdm import tqdm

    digest, size = hashlib.sha256(), 0
    with tqdm(total=file.size, unit="B", unit_scale=True, desc=file.name) as bar:
        while block := source.read(1 << 16):
            target.write(block)
            digest.update(block)
            size += len(block)
            bar.update(len(block))
            if size > file.size:  # another file: no need to see its end
                break
    return size, digest.hexdigest()


def fetch(name: str) -> None:
    """Make sure that every file of a data set is here and whole.

    Args:
        name: "mnist", "fashion-mnist" or "binarized-mnist".

    Raises:
        DataError: A file is damaged, or cannot be fetched.
    """
    for files in CATALOGUE[known("name", name, CATALOGUE)].splits.values():
        for file in files:
            content(name, file)


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write a file to the disk, whole or not at all: what was there stays till then.

    Raises:
        OSError: It could not be written; nothing has changed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


class State(NamedTuple):
    """What is known of a file without fetching it.

    Attributes:
        file: Its published name, size in bytes and SHA-256.
        path: Where it is; None if it is not here.
        error: What is wrong with it; "" if nothing is.
    """

    file: File
    path: Path | None
    error: str


def states(name: str) -> list[State]:
    """Return the state of each file of a data set; nothing is fetched."""
    found = []
    for files in CATALOGUE[known("name", name, CATALOGUE)].splits.values():
        for file in files:
            path, error = find(name, file), ""
            try:
                if path is not None:
                    content(name, file)
            except DataError as cause:
                error = str(cause)
            found.append(State(file, path, error))
    return found


def checksums(name: str) -> dict[str, str]:
    """Return the SHA-256 of each file of a data set, for a run's provenance."""
    if name == "digits":
        parts = [f"digits-{part}-ubyte.gz" for part in ("images-idx3", "labels-idx1")]
        return {p: hashlib.sha256(shipped(p)).hexdigest() for p in parts}
    source = CATALOGUE[known("name", name, NAMES)]
    return {f.name: f.sha256 for files in source.splits.values() for f in files}


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


# Streams.


@runtime_checkable
class Sampler(Protocol):
    """Whatever can be sampled: a law, or a model."""

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw n points, shape (n, *shape)."""
        ...


class Stream(Iterator[Tensor], ABC):
    """An endless iterator of batches that can be saved and taken up again."""

    @abstractmethod
    def __next__(self) -> Tensor:
        """Return the next batch."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return what the next batches depend on, apart from the data."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the stream that gave this state would have gone on."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "Stream":
        """Return the stream of the changed batches.

        With it grey levels get fresh noise each time they are seen:
        ``stream(x, 128, rng=rng).map(partial(dequantize, levels=256, rng=rng))``.
        """
        return Mapped(self, change)


class Shared(Stream):
    """A stream whose batches may be shared by several processes.

    Every process of a distributed run has the same rng, so draws the same global
    batch, and keeps its own rows: together they see what one process would see.

    Args:
        size: Rows of the global batch.
        rng: Source of the draws; by default torch's own.
        rank: Number of this process, 0 ≤ rank < world.
        world: How many processes share each batch; it divides ``size``.
    """

    def __init__(self, size: int, rng: Generator | None, rank: int, world: int) -> None:
        if size < 1:
            raise ValueError(f"size must be positive, got {size}")
        if world < 1 or not 0 <= rank < world:
            raise ValueError(f"rank must lie in 0..world − 1, got {rank} of {world}")
        if size % world:
            raise ValueError(f"size must be a multiple of {world} ranks, got {size}")
        self.size = size
        self.rng = rng
        part = size // world
        self.rows = slice(rank * part, (rank + 1) * part)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator."""
        return {"rng": (self.rng or torch.default_generator).get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the generator into a state."""
        (self.rng or torch.default_generator).set_state(state["rng"].cpu())


class Mapped(Stream):
    """The batches of a stream, each changed; see :meth:`Stream.map`."""

    def __init__(self, source: Stream, change: Callable[[Tensor], Tensor]) -> None:
        self.source = source
        self.change = change

    def __next__(self) -> Tensor:
        """Return the next batch, changed."""
        return self.change(next(self.source))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the source."""
        return self.source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the source."""
        self.source.load_state_dict(state)


class Epochs(Shared):
    """The rows of a tensor, shuffled anew in each epoch; see :func:`stream`."""

    def __init__(self, x: Tensor, size: int, *args: Any) -> None:
        super().__init__(size, *args)
        self.x = x
        self.order = torch.empty(0, dtype=torch.long, device=x.device)
        self.at = 0

    def __next__(self) -> Tensor:
        """Return the rows of the next part of the epoch."""
        if self.at + self.size > len(self.order):
            device = "cpu" if self.rng is None else self.rng.device
            order = torch.randperm(len(self.x), generator=self.rng, device=device)
            self.order, self.at = order.to(self.x.device), 0
        batch = self.order[self.at : self.at + self.size]
        self.at += self.size
        return self.x.index_select(0, batch[self.rows])

    def state_dict(self) -> dict[str, Any]:
        """Return the order of this epoch and the place in it, too."""
        return {**super().state_dict(), "order": self.order.cpu(), "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the middle of the epoch."""
        order = state["order"]
        if len(order) not in (0, len(self.x)):
            raise ValueError(
                f"state is of {len(order)} rows, the data of {len(self.x)}"
            )
        super().load_state_dict(state)
        self.order, self.at = order.to(self.x.device), state["at"]


class Draws(Shared):
    """Fresh draws from a law; see :func:`stream`."""

    def __init__(self, law: Sampler, size: int, *args: Any) -> None:
        super().__init__(size, *args)
        self.law = law

    def __next__(self) -> Tensor:
        """Return this process's rows of a fresh sample."""
        with torch.no_grad():
            return self.law.sample(self.size, rng=self.rng)[self.rows]


def stream(
    source: Tensor | Sampler,
    size: int,
    *,
    rng: Generator | None = None,
    rank: int = 0,
    world: int = 1,
) -> Stream:
    """Return an endless iterator of batches, all of the same size.

    The rows of a tensor come in shuffled epochs; the n mod ``size`` rows that do
    not fill a batch are left out, other ones in each epoch.  A law is sampled
    anew for each batch.  The tensor may live on any device; its batches do too.

    Args:
        source: Data (n, *shape), or a law.
        size: Rows of a batch.
        rng: Source of the order, or of the sample.
        rank: Number of this process among ``world``.
        world: How many processes share each batch.

    Raises:
        ValueError: Data that are empty, not finite, without a row axis or fewer
            than ``size``; a source of another kind; a bad size or rank.
    """
    if isinstance(source, Tensor):
        if source.ndim < 2:
            raise ValueError(f"source must be (n, *shape), got {tuple(source.shape)}")
        if source.numel() == 0 or not source.isfinite().all():
            raise ValueError("source must be finite and not empty")
        if size > len(source):
            raise ValueError(f"size must be at most {len(source)} rows, got {size}")
        return Epochs(source, size, rng, rank, world)
    if isinstance(source, Sampler):
        return Draws(source, size, rng, rank, world)
    hint = ": did you mean images.x?" if isinstance(source, Images) else ""
    raise ValueError(f"source must be a tensor or a law, got {type(source)}{hint}")
