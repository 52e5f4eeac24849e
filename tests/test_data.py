"""Data sets are the published ones, and streams are what they say."""

import gzip
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from pushforward import data
from pushforward.data import CATALOGUE, DataError, File, Source
from pushforward.distributions import StandardNormal, ring

PAYLOAD = bytes(range(256)) * 2000
GOOD = File("blob.bin", len(PAYLOAD), hashlib.sha256(PAYLOAD).hexdigest())


class Handler(BaseHTTPRequestHandler):
    """A mirror with one folder for each thing that can go wrong."""

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        if kind == "missing":
            self.send_error(404)
            return
        body = PAYLOAD[::-1] if kind == "wrong" else PAYLOAD
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if kind == "truncated" else body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no folder of the user's."""
    monkeypatch.delenv("PUSHFORWARD_DATA", raising=False)
    monkeypatch.setattr(data, "cache", lambda: tmp_path)
    return tmp_path


def serve(monkeypatch: pytest.MonkeyPatch, *mirrors: str, file: File = GOOD) -> None:
    source = Source(mirrors, {"train": (file,)})
    monkeypatch.setitem(CATALOGUE, "blob", source)


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if p.is_file()]


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
    if any(data.find(folder, f) is None for f in CATALOGUE[folder].splits[split]):
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
    cache: Path, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    bits = torch.randint(2, (5, 784), generator=rng).numpy()
    text = "\n".join(" ".join(map(str, row)) for row in bits).encode() + b"\n"
    file = File("bits.amat", len(text), hashlib.sha256(text).hexdigest())
    source = Source((), {"train": (file,)})
    monkeypatch.setitem(CATALOGUE, "binarized-mnist", source)
    folder = cache / "binarized-mnist"
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


def test_a_good_file_is_fetched_once(
    server: str,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    serve(monkeypatch, f"{server}/good/")
    assert data.content("blob", GOOD) == PAYLOAD
    assert leftovers(cache) == ["blob.bin"]
    said = capfd.readouterr().err
    assert f"{server}/good/blob.bin" in said
    assert "0.5 MB" in said
    assert data.content("blob", GOOD) == PAYLOAD
    assert capfd.readouterr().err == ""
    assert [s.error for s in data.states("blob")] == [""]


@pytest.mark.parametrize("kind", ["truncated", "wrong", "missing"])
def test_a_bad_mirror_leaves_nothing_and_the_next_is_asked(
    kind: str, server: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, f"{server}/{kind}/")
    with pytest.raises(DataError) as caught:
        data.content("blob", GOOD)
    told = "404" if kind == "missing" else f"expected {GOOD.size} bytes"
    assert told in str(caught.value)
    if kind == "wrong":
        assert GOOD.sha256 in str(caught.value)
        assert hashlib.sha256(PAYLOAD[::-1]).hexdigest() in str(caught.value)
    assert leftovers(cache) == []
    serve(monkeypatch, f"{server}/{kind}/", f"{server}/good/")
    assert data.content("blob", GOOD) == PAYLOAD
    assert leftovers(cache) == ["blob.bin"]


def test_no_server_is_an_error_that_says_what_to_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, "http://127.0.0.1:9/")  # the discard port: nobody listens
    with pytest.raises(DataError, match="PUSHFORWARD_DATA"):
        data.content("blob", GOOD)
    assert leftovers(cache) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "disk full")])
def test_an_interruption_leaves_nothing(
    error: BaseException, server: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise error

    serve(monkeypatch, f"{server}/good/")
    monkeypatch.setattr(data, "verify", fail)
    with pytest.raises((KeyboardInterrupt, DataError)):
        data.content("blob", GOOD)
    assert leftovers(cache) == []


@pytest.mark.parametrize("damage", [PAYLOAD[:-1], PAYLOAD[:-1] + b"?", b""])
def test_a_damaged_file_is_named_and_never_used(
    damage: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch)
    (cache / "blob").mkdir()
    path = cache / "blob" / "blob.bin"
    path.write_bytes(damage)
    with pytest.raises(DataError) as caught:
        data.content("blob", GOOD)
    for part in (str(path), GOOD.sha256, hashlib.sha256(damage).hexdigest()):
        assert part in str(caught.value)
    assert path.read_bytes() == damage, "another's file is not ours to remove"
    assert GOOD.sha256 in data.states("blob")[0].error


def test_a_damaged_archive_is_named(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch)
    (cache / "blob").mkdir()
    (cache / "blob" / "blob.bin.gz").write_bytes(gzip.compress(PAYLOAD)[:-9])
    with pytest.raises(DataError, match=r"blob\.bin\.gz is damaged"):
        data.content("blob", GOOD)


def test_the_folder_of_the_user_comes_first(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch)
    own = tmp_path / "own"
    for root, body in ((own, PAYLOAD), (cache, b"damaged")):
        (root / "blob").mkdir(parents=True)
        (root / "blob" / "blob.bin").write_bytes(body)
    monkeypatch.setenv("PUSHFORWARD_DATA", str(own))
    assert data.content("blob", GOOD) == PAYLOAD


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"split must be one of .*'test'.*'dev'"):
        data.digits("dev")
    with pytest.raises(ValueError, match="name must be one of"):
        data.states("cifar")


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


def test_an_epoch_meets_every_row_once(rng: torch.Generator) -> None:
    x = torch.arange(12.0)[:, None]
    batches = data.stream(x, 4, rng=rng)
    epochs = [torch.cat([next(batches) for _ in range(3)])[:, 0] for _ in range(2)]
    assert all(torch.equal(e.sort().values, x[:, 0]) for e in epochs)
    assert not torch.equal(*epochs), "the order of an epoch is its own"


def test_every_batch_is_full(rng: torch.Generator) -> None:
    batches = data.stream(torch.rand(10, 2, generator=rng), 4, rng=rng)
    assert {len(next(batches)) for _ in range(20)} == {4}


def test_a_law_gives_fresh_draws(rng: torch.Generator) -> None:
    batches = data.stream(ring(), 5, rng=torch.Generator().manual_seed(3))
    again = torch.Generator().manual_seed(3)
    for _ in range(3):
        assert torch.equal(next(batches), ring().sample(5, rng=again))


@pytest.mark.parametrize(
    "source", [torch.arange(14.0).reshape(7, 2), StandardNormal(2)]
)
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_stream_is_taken_up_where_it_was_left(source: object, steps: int) -> None:
    def start(seed: int) -> data.Stream:
        return data.stream(source, 3, rng=torch.Generator().manual_seed(seed))

    one, other = start(0), start(1)
    for _ in range(steps):
        next(one)
    other.load_state_dict(one.state_dict())
    assert all(torch.equal(next(one), next(other)) for _ in range(6))


def test_a_changed_stream_is_taken_up_too() -> None:
    def start(seed: int) -> data.Stream:
        rng = torch.Generator().manual_seed(seed)
        x = torch.arange(8.0)[:, None] / 7
        spread = partial(data.dequantize, levels=8, rng=rng)
        return data.stream(x, 3, rng=rng).map(spread)

    one, other = start(0), start(1)
    next(one)
    other.load_state_dict(one.state_dict())
    batches = [next(one) for _ in range(4)]
    assert all(torch.equal(b, next(other)) for b in batches)
    assert torch.cat(batches).unique().numel() == 12, "fresh noise each time"


def test_the_state_of_other_data_is_refused(rng: torch.Generator) -> None:
    batches = data.stream(torch.zeros(5, 2), 2, rng=rng)
    next(batches)
    with pytest.raises(ValueError, match="5 rows"):
        data.stream(torch.zeros(6, 2), 2, rng=rng).load_state_dict(batches.state_dict())


@pytest.mark.parametrize(
    "source", [torch.arange(24.0).reshape(12, 2), StandardNormal(2)]
)
def test_ranks_share_the_batch_of_one_process(source: object) -> None:
    def start(rank: int, world: int) -> data.Stream:
        rng = torch.Generator().manual_seed(0)
        return data.stream(source, 6, rng=rng, rank=rank, world=world)

    alone, ranks = start(0, 1), [start(r, 3) for r in range(3)]
    for _ in range(5):
        assert torch.equal(next(alone), torch.cat([next(r) for r in ranks]))


GOOD_X = torch.zeros(8, 2)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (torch.zeros(8), {}, r"source must be \(n, \*shape\)"),
        (torch.zeros(0, 2), {"size": 1}, "not empty"),
        (torch.tensor([[1.0], [torch.nan]]), {"size": 1}, "finite"),
        (torch.tensor([[1.0], [torch.inf]]), {"size": 1}, "finite"),
        (GOOD_X, {"size": 9}, "size must be at most 8"),
        (GOOD_X, {"size": 0}, "size must be positive"),
        (GOOD_X, {"world": 3}, "multiple of 3"),
        (GOOD_X, {"rank": 2, "world": 2}, "rank must lie"),
        (data.Images(GOOD_X, None), {}, r"images\.x"),
        ([1, 2], {}, "tensor or a law"),
    ],
)
def test_bad_sources_are_refused(source: object, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.stream(source, **{"size": 4, **options})


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
