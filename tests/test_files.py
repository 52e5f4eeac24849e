"""Files are the published ones, or they are not used."""

import gzip
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pushforward import files
from pushforward.files import CATALOGUE, DataError, File, Source

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
    monkeypatch.setattr(files, "cache", lambda: tmp_path)
    return tmp_path


def serve(monkeypatch: pytest.MonkeyPatch, *mirrors: str, file: File = GOOD) -> None:
    source = Source(mirrors, {"train": (file,)})
    monkeypatch.setitem(CATALOGUE, "blob", source)


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if p.is_file()]


def test_a_good_file_is_fetched_once(
    server: str,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    serve(monkeypatch, f"{server}/good/")
    assert files.content("blob", GOOD) == PAYLOAD
    assert leftovers(cache) == ["blob.bin"]
    said = capfd.readouterr().err
    assert f"{server}/good/blob.bin" in said
    assert "0.5 MB" in said
    assert files.content("blob", GOOD) == PAYLOAD
    assert capfd.readouterr().err == ""
    assert [s.error for s in files.states("blob")] == [""]


@pytest.mark.parametrize("kind", ["truncated", "wrong", "missing"])
def test_a_bad_mirror_leaves_nothing_and_the_next_is_asked(
    kind: str, server: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, f"{server}/{kind}/")
    with pytest.raises(DataError) as caught:
        files.content("blob", GOOD)
    told = "404" if kind == "missing" else f"expected {GOOD.size} bytes"
    assert told in str(caught.value)
    if kind == "wrong":
        assert GOOD.sha256 in str(caught.value)
        assert hashlib.sha256(PAYLOAD[::-1]).hexdigest() in str(caught.value)
    assert leftovers(cache) == []
    serve(monkeypatch, f"{server}/{kind}/", f"{server}/good/")
    assert files.content("blob", GOOD) == PAYLOAD
    assert leftovers(cache) == ["blob.bin"]


def test_no_server_is_an_error_that_says_what_to_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, "http://127.0.0.1:9/")  # the discard port: nobody listens
    with pytest.raises(DataError, match="PUSHFORWARD_DATA"):
        files.content("blob", GOOD)
    assert leftovers(cache) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "disk full")])
def test_an_interruption_leaves_nothing(
    error: BaseException, server: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise error

    serve(monkeypatch, f"{server}/good/")
    monkeypatch.setattr(files, "verify", fail)
    with pytest.raises((KeyboardInterrupt, DataError)):
        files.content("blob", GOOD)
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
        files.content("blob", GOOD)
    for part in (str(path), GOOD.sha256, hashlib.sha256(damage).hexdigest()):
        assert part in str(caught.value)
    assert path.read_bytes() == damage, "another's file is not ours to remove"
    assert GOOD.sha256 in files.states("blob")[0].error


def test_a_damaged_archive_is_named(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch)
    (cache / "blob").mkdir()
    (cache / "blob" / "blob.bin.gz").write_bytes(gzip.compress(PAYLOAD)[:-9])
    with pytest.raises(DataError, match=r"blob\.bin\.gz is damaged"):
        files.content("blob", GOOD)


def test_the_folder_of_the_user_comes_first(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch)
    own = tmp_path / "own"
    for root, body in ((own, PAYLOAD), (cache, b"damaged")):
        (root / "blob").mkdir(parents=True)
        (root / "blob" / "blob.bin").write_bytes(body)
    monkeypatch.setenv("PUSHFORWARD_DATA", str(own))
    assert files.content("blob", GOOD) == PAYLOAD


def test_unknown_names_are_refused() -> None:
    for ask in (files.states, files.fetch, files.checksums):
        with pytest.raises(ValueError, match=r"name must be one of .*'mnist'.*'cifar'"):
            ask("cifar")


def test_checksums_are_those_of_the_bytes() -> None:
    here = Path(files.__file__).parent
    sums = {
        n: hashlib.sha256((here / n).read_bytes()).hexdigest() for n in files.DIGITS
    }
    assert files.checksums("digits") == sums


def test_every_shipped_file_is_named() -> None:
    here = {p.name for p in Path(files.__file__).parent.glob("*.gz")}
    assert here == set(files.DIGITS)


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "file"
    files.write_whole(path, b"first")
    assert leftovers(tmp_path) == ["file"]

    def full(part: int) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        files.write_whole(path, b"second")
    assert path.read_bytes() == b"first"
    assert leftovers(tmp_path) == ["file"]
