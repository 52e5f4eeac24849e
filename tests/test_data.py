"""Data sets are the published ones, and their levels become numbers and bits."""

import gzip
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pushforward import data, stream
from pushforward.files import CATALOGUE, File, Source, find


def test_digits_are_those_of_the_repository() -> None:
    """Against scikit-learn's copy, in the order that is documented."""
    published = pytest.importorskip("sklearn.datasets").load_digits()
    order = np.random.RandomState(0).permutation(1797)
    train, test = data.digits("train"), data.digits("test")
    assert (len(train.x), len(test.x)) == (1437, 360)
    x = torch.cat([train.x, test.x])[:, 0]
    y = torch.cat([train.y, test.y])
    assert x.dtype == torch.float32
    assert torch.equal(x * 16, torch.tensor(published.images[order]).float())
    assert torch.equal(y, torch.tensor(published.target[order]))


SIZES = {
    "mnist": {"train": 60000, "test": 10000},
    "fashion_mnist": {"train": 60000, "test": 10000},
    "binarized_mnist": {"train": 50000, "valid": 10000, "test": 10000},
}
PARTS = [(name, split) for name, sizes in SIZES.items() for split in sizes]


@pytest.mark.parametrize(("name", "split"), PARTS)
def test_the_published_files_are_read(name: str, split: str) -> None:
    """Sizes, ranges and the number of images of each class, where known."""
    folder = name.replace("_", "-")
    if any(find(folder, f) is None for f in CATALOGUE[folder].splits[split]):
        pytest.skip(f"{folder} is not on this machine: pushforward data --fetch")
    x, y = getattr(data, name)(split)
    assert x.shape == (SIZES[name][split], 1, 28, 28)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (0, 1)
    if name == "mnist" and split == "test":
        counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        assert y.bincount().tolist() == counts
    if name == "fashion_mnist":
        assert y.bincount().tolist() == [len(x) // 10] * 10
    if name == "binarized_mnist":
        assert y is None
        assert x.unique().tolist() == [0, 1]


def test_binarised_text_is_parsed_as_numpy_parses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    bits = torch.randint(2, (5, 784), generator=rng).numpy()
    text = "\n".join(" ".join(map(str, row)) for row in bits).encode() + b"\n"
    file = File("bits.amat", len(text), hashlib.sha256(text).hexdigest())
    source = Source((), {"train": (file,)})
    monkeypatch.setitem(CATALOGUE, "binarized-mnist", source)
    monkeypatch.setenv("PUSHFORWARD_DATA", str(tmp_path))
    folder = tmp_path / "binarized-mnist"
    folder.mkdir()
    for name, body in (("bits.amat.gz", gzip.compress(text)), ("bits.amat", text)):
        (folder / name).write_bytes(body)
        x = data.binarized_mnist("train").x
        expected = np.loadtxt(folder / name).reshape(-1, 1, 28, 28)
        assert np.array_equal(x.numpy(), expected)


def test_idx_is_read_in_its_order() -> None:
    sizes = b"".join(n.to_bytes(4, "big") for n in (2, 3, 4))
    array = data.idx(b"\0\0\x08\x03" + sizes + bytes(range(24)))
    assert array.tolist() == np.arange(24).reshape(2, 3, 4).tolist()
    with pytest.raises(ValueError, match="IDX"):
        data.idx(b"\x89PNG" + bytes(20))


def test_unknown_splits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"split must be one of .*'test'.*'dev'"):
        data.digits("dev")
    for read in (data.mnist, data.fashion_mnist, data.binarized_mnist):
        with pytest.raises(ValueError, match="split must be one of"):
            read("dev")


def test_streams_are_at_hand_where_the_data_are() -> None:
    assert data.stream is stream.stream


def test_dequantising_keeps_the_level_and_fills_its_cell(rng: torch.Generator) -> None:
    levels, n = 17, 200_000
    level = torch.randint(levels, (n, 1), generator=rng)
    x = level.to(torch.float64) / (levels - 1)
    u = data.dequantize(x, levels, rng=rng) * levels
    assert torch.equal(u.floor().long(), level)
    inside = u - level  # uniform: mean 1/2, variance 1/12, E u⁴ = 1/5
    assert abs(inside.mean() - 1 / 2) < 4 * (1 / 12 / n) ** 0.5
    assert abs(inside.var() - 1 / 12) < 4 * (1 / 180 / n) ** 0.5


def test_dequantising_stays_below_one_in_single_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """(l + u)/levels rounds to 1 when u is the largest number below 1."""
    monkeypatch.setattr(data, "uniform_like", lambda x, rng: x.clamp(max=1 - 2**-24))
    x = torch.ones(1, 1, dtype=torch.float32)
    assert data.dequantize(x, 256) < 1


@pytest.mark.parametrize("x", [-0.1, 1.1, torch.nan, 0.3])
def test_what_is_no_level_is_refused(x: float) -> None:
    with pytest.raises(ValueError, match="x must"):
        data.dequantize(torch.tensor([x]), 17)


def test_bits_have_the_grey_level_as_mean(rng: torch.Generator) -> None:
    n = 100_000
    x = torch.tensor([0.0, 0.2, 0.5, 1.0]).expand(n, 4)
    bits = data.binarize(x, rng=rng)
    assert bits.unique().tolist() == [0, 1]
    se = (x[0] * (1 - x[0]) / n).sqrt()
    assert ((bits.mean(0) - x[0]).abs() <= 4 * se).all()


def test_draws_depend_on_the_generator_alone() -> None:
    x = torch.full((3, 4), 0.5)
    state = torch.get_rng_state()
    for draw in (data.binarize, lambda x, rng: data.dequantize(x, 3, rng=rng)):
        a, b = (draw(x, rng=torch.Generator().manual_seed(1)) for _ in "ab")
        assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"


def test_importing_touches_neither_network_nor_randomness(tmp_path: Path) -> None:
    code = (
        "import socket, torch\n"
        "socket.socket = None\n"
        "state = torch.get_rng_state()\n"
        "import pushforward.data as d\n"
        "d.digits('train')\n"
        "assert torch.equal(state, torch.get_rng_state())\n"
    )
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
    assert list(tmp_path.iterdir()) == []
