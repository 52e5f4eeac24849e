"""A run is written whole or not at all, and says where it comes from."""

import json
import math
import os
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pushforward import files, record, runs
from pushforward.record import Writer
from pushforward.stream import stream
from pushforward.train import train


@dataclass(frozen=True)
class Config:
    """Tuples, so that JSON's lists are met."""

    sizes: tuple[int, ...] = (1, 2)
    seeds: tuple[int, ...] = (5, 3)
    hardware: str = "cpu"


def written(name: str = "toy/run", shift: float = 0.0) -> Writer:
    with Writer(name, Config()) as run:
        for seed in (3, 5):
            run.log(seed=seed, step=1, loss=1 / 3)
            run.log(seed=seed, step=2, loss=torch.tensor(0.25), bound=seed)
            run.metric(seed, "nll", seed + shift)
        run.weights({"w": torch.arange(6.0).reshape(2, 3).T, "n": torch.tensor(4)})
    return run


def contents(folder: Path) -> dict[str, bytes]:
    found = [p for p in folder.rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def test_a_run_is_read_as_it_was_written(place: Path) -> None:
    written()
    run = runs.load("toy/run")
    assert run.config == {"sizes": [1, 2], "seeds": [5, 3], "hardware": "cpu"}
    assert run.metrics == {"nll": [5.0, 3.0]}, "in the order of the seeds"
    assert run.history["seed"] == [3, 3, 5, 5]
    assert run.history["loss"] == pytest.approx([1 / 3, 0.25] * 2, rel=1e-6)
    assert math.isnan(run.history["bound"][0])
    assert run.curve("bound", 5) == ([2], [5])
    assert run.curve("loss", 3)[0] == [1, 2]
    weights = run.weights()
    assert torch.equal(weights["w"], torch.arange(6.0).reshape(2, 3).T)
    assert weights["n"].item() == 4
    assert runs.names() == ["toy/run"]
    assert set(contents(place)) == {f"toy/run/{f}" for f in (
        "config.json", "metrics.json", "history.csv", "provenance.json",
        "weights.safetensors")}  # fmt: skip


def test_mean_and_deviation_are_over_the_seeds(place: Path) -> None:
    written()
    run = runs.load("toy/run")
    assert run.mean("nll") == 4
    assert run.sd("nll") == pytest.approx(statistics.stdev([5, 3]))
    one = run._replace(metrics={"nll": [5.0]})
    assert math.isnan(one.sd("nll"))
    with pytest.raises(ValueError, match=r"'nll'.*'bits'"):
        run.mean("bits")


def test_the_memory_holds_what_the_disk_does(place: Path) -> None:
    run = written().run()
    read = runs.load("toy/run")
    assert (run.config, run.metrics) == (read.config, read.metrics)
    assert run.history["step"] == read.history["step"]


def test_provenance_names_the_machine_and_the_sources(place: Path) -> None:
    made = runs.experiment("toy/line")
    with Writer("toy/line", made.config.small(), device="cpu") as run:
        made.main(made.config.small(), run)
    found = runs.load("toy/line").provenance
    assert found["accelerator"] == "cpu"
    assert found["device"]
    assert found["torch"] == torch.__version__
    assert found["seconds"] >= 0
    assert found["memory_mb"] > 10
    assert found["data"] == files.checksums("digits")
    assert found["code"] == record.digest(Path(str(made.module.__file__)))
    assert platform.node() not in json.dumps(found), "the host is nobody's business"


def test_without_keeping_nothing_touches_the_disk(place: Path) -> None:
    made = runs.experiment("toy/line")
    with Writer("toy/line", made.config, keep=False) as run:
        made.main(made.config, run)
    assert not place.exists()
    assert len(run.run().metrics["w"]) == 2


class Stop(Exception):
    """An interruption."""


def crash() -> None:
    """Begin a run that does not end."""
    run = Writer("toy/run", Config())
    with pytest.raises(Stop), run:
        run.log(seed=5, step=99, loss=7.0) or stop()


def stop() -> None:
    raise Stop


def test_a_crash_leaves_the_run_of_before(place: Path) -> None:
    written()
    before = contents(place / "toy/run")
    crash()
    assert contents(place / "toy/run") == before


def test_a_crash_while_writing_leaves_the_run_of_before(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written()
    before = contents(place / "toy/run")
    inner = files.write_whole

    def full(path: Path, content: bytes) -> None:
        if path.name == "history.csv":
            raise OSError(28, "no space left on device")
        inner(path, content)

    monkeypatch.setattr(files, "write_whole", full)
    with pytest.raises(OSError, match="no space"):
        written(shift=1.0)
    assert contents(place / "toy/run") == before
    monkeypatch.setattr(files, "write_whole", inner)
    written(shift=1.0)
    assert runs.load("toy/run").metrics == {"nll": [6.0, 4.0]}
    assert os.listdir(place / "toy") == ["run"]


def test_a_crash_between_two_renamings_is_undone(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written()
    before = contents(place / "toy/run")
    inner = Path.rename

    def rename(path: Path, target: Path) -> None:
        if path.name.endswith(".new"):
            raise KeyboardInterrupt
        inner(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        written(shift=1.0)
    assert not (place / "toy/run").exists()
    assert runs.exists("toy/run")
    assert contents(place / "toy/run") == before


def test_large_weights_are_refused(place: Path) -> None:
    run = Writer("toy/run", Config())
    run.weights({"w": torch.zeros(999_000, dtype=torch.float32)})
    with pytest.raises(ValueError, match="at most 4000000 bytes, got 4000"):
        run.weights({"w": torch.zeros(1_000_000, dtype=torch.float32)})


def test_what_is_incomplete_is_refused(place: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"nll must have .*\[5, 3\], got \[5\]"),
        Writer("toy/run", Config()) as run,
    ):
        run.metric(5, "nll", 1.0)
    assert not runs.exists("toy/run")
    with pytest.raises(ValueError, match="finite"):
        run.metric(5, "nll", math.nan)
    with pytest.raises(ValueError, match="seed"):
        run.metric(4, "nll", 1.0)


def test_a_run_holds_no_other(place: Path) -> None:
    written("toy/run/deep")
    with pytest.raises(ValueError, match="no other run"):
        Writer("toy/run", Config())


@pytest.mark.parametrize(("seed", "step"), [(0, 3), (0, 17), (1, 1), (1, 30)])
def test_an_interrupted_experiment_ends_as_if_it_had_not_been(
    place: Path, monkeypatch: pytest.MonkeyPatch, seed: int, step: int
) -> None:
    """History, metrics and weights, number by number."""
    made = runs.experiment("toy/line")

    def run(resume: bool, path: Path) -> None:
        with Writer("toy/line", made.config, path=path, resume=resume) as writer:
            made.main(made.config, writer)

    run(False, place / "toy/whole")

    def stop(*now: int) -> None:
        if now == (seed, step):
            raise Stop

    monkeypatch.setattr(made.module, "hook", stop)
    with pytest.raises(Stop):
        run(False, place / "toy/part")
    log = place / "toy/.part.partial/log.jsonl"
    log.write_text(log.read_text() + '{"seed": 1, "st')  # a line cut off by a kill
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(made.module, "hook", lambda *now: seen.append(now))
    run(True, place / "toy/part")
    saved = (step - 1) // 5 * 5  # the checkpoint before the interruption
    rest = [(seed, k) for k in range(saved + 1, 31)]
    assert seen == rest + [(s, k) for s in range(seed + 1, 2) for k in range(1, 31)]
    whole, part = contents(place / "toy/whole"), contents(place / "toy/part")
    for file in ("history.csv", "metrics.json", "weights.safetensors", "config.json"):
        assert part[file] == whole[file]
    assert sorted(os.listdir(place / "toy")) == ["part", "whole"]


def test_a_new_start_forgets_the_interrupted_one(place: Path) -> None:
    crash()
    written()
    assert 99 not in runs.load("toy/run").history["step"]


def test_another_configuration_is_not_resumed(place: Path) -> None:
    crash()
    with pytest.raises(ValueError, match="must be that of the interrupted run"):
        Writer("toy/run", Config(sizes=(9,)), resume=True)
    assert (5, 99) in Writer("toy/run", Config(), resume=True).rows


def test_the_training_of_each_seed_has_a_checkpoint_of_its_own(place: Path) -> None:
    run = Writer("toy/run", Config())
    paths = {run.training(*key)["checkpoint"] for key in [(0,), (1,), (0, "critic")]}
    assert len(paths) == 3
    assert "checkpoint" not in Writer("toy/run", Config(), keep=False).training(0)


def test_streams_in_experiments_are_saved(place: Path) -> None:
    """The wiring that resuming rests on: Writer.training fits train."""
    run = Writer("toy/run", Config())
    model = runs.experiment("toy/line").module.Line(2)
    batches = stream(torch.randn(8, 2), 4, rng=torch.Generator())
    list(train(model, batches, steps=1, **run.training(5)))
    assert (place / "toy/.run.partial/5.pt").is_file()


PARTS = {
    "experiments/ot/a.py": "from pushforward.ot.a import f\nimport pushforward.nn\n",
    "pushforward/__init__.py": "",
    "pushforward/nn.py": "import torch\nx = 1\n",
    "pushforward/files.py": "",
    "pushforward/plot.py": "",
    "pushforward/ot/__init__.py": "from .b import g\n",
    "pushforward/ot/a.py": "def f():\n    from ..files import x\n    from . import b\n",
    "pushforward/ot/b.py": "import pushforward.metrics\n",
    "pushforward/ot/c.py": "",
    "pushforward/metrics.py": "from . import nn as n\n",
}
REACHED = {"nn", "files", "ot/a", "ot/b", "metrics"}


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package, and an experiment."""
    for name, text in PARTS.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(record, "CODE", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", PARTS)
def test_the_digest_is_of_all_that_is_imported(name: str, code: Path) -> None:
    experiment = code / "experiments/ot/a.py"
    before = record.digest(experiment)
    path = code / name
    path.write_text(PARTS[name] + "y = 2\n")
    short = name.removeprefix("pushforward/").removesuffix(".py")
    reached = path == experiment or short in REACHED
    assert (record.digest(experiment) != before) == reached
    path.write_text(PARTS[name])
    assert record.digest(experiment) == before


def test_words_about_the_code_are_not_in_the_digest(code: Path) -> None:
    path = code / "pushforward/nn.py"

    def digest(text: str) -> str:
        path.write_text(text)
        return record.digest(code / "experiments/ot/a.py")

    before = digest("def f():\n    return 1\n")
    about = '"""What\n\nthis is."""\n\n# how\ndef f():\n    """Why."""\n    return 1\n'
    assert digest(about) == before
    assert digest(about.replace("1", "2")) != before


def test_what_keeps_the_runs_is_not_in_the_digest(
    code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(path.is_file() for path in record.KEEPERS)
    keeper = code / "pushforward/nn.py"
    monkeypatch.setattr(record, "KEEPERS", {keeper})
    before = record.digest(code / "experiments/ot/a.py")
    keeper.write_text("x = 3\n")
    assert record.digest(code / "experiments/ot/a.py") == before


def test_an_experiment_reaches_the_package() -> None:
    experiment = record.CODE / "experiments/metrics.py"
    (train,) = record.found(experiment, 0, "pushforward.train.train")
    assert train == record.CODE / "pushforward/train.py"
    assert record.found(experiment, 0, "torch.nn") == []
