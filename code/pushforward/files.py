"""Files of data: where they are, what they must hold, how they come and go.

A file is looked for in the folder that the environment variable PUSHFORWARD_DATA
names, then in a cache of the user; if it is in neither it is fetched into the
cache.  No byte is used before its SHA-256 is that of the published file.

This is the only module that downloads.  What it writes is on the disk whole or
not at all.
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
from collections.abc import Collection
from pathlib import Path
from typing import IO, NamedTuple

__all__ = [
    "CATALOGUE",
    "DIGITS",
    "NAMES",
    "DataError",
    "File",
    "Source",
    "State",
    "checksums",
    "content",
    "fetch",
    "find",
    "known",
    "shipped",
    "states",
    "write_whole",
]


class DataError(RuntimeError):
    """A data file is damaged, or cannot be fetched."""


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


DIGITS = ("digits-images-idx3-ubyte.gz", "digits-labels-idx1-ubyte.gz")  # shipped
NAMES = ("digits", *CATALOGUE)


def known(what: str, name: str, names: Collection[str]) -> str:
    """Return the name if it is among the names, else raise a ``ValueError``."""
    if name not in names:
        raise ValueError(f"{what} must be one of {sorted(names)}, got {name!r}")
    return name


def published(name: str) -> list[File]:
    """Return the files of all splits of a data set."""
    splits = CATALOGUE[known("name", name, CATALOGUE)].splits
    return [file for files in splits.values() for file in files]


def shipped(name: str) -> bytes:
    """Return a file that comes with the package."""
    return (importlib.resources.files(__package__) / name).read_bytes()


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
    for file in published(name):
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
    return [state(name, file) for file in published(name)]


def state(name: str, file: File) -> State:
    """Return the state of a file."""
    path = find(name, file)
    try:
        if path is not None:
            content(name, file)
    except DataError as cause:
        return State(file, path, str(cause))
    return State(file, path, "")


def checksums(name: str) -> dict[str, str]:
    """Return the SHA-256 of each file of a data set, for a run's provenance."""
    if known("name", name, NAMES) == "digits":
        return {p: hashlib.sha256(shipped(p)).hexdigest() for p in DIGITS}
    return {file.name: file.sha256 for file in published(name)}
