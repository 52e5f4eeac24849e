"""A run is written whole or not at all, and read back as it was."""

import json
import math
import os
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from pushforward import data, runs
from pushforward.data import stream
from pushforward.runs import Writer
from pushforward.train import train

EXPERIMENT = '''
"""A line fitted by gradient descent, as an experiment."""
from dataclasses import dataclass, replace
import torch
from pushforward.data import stream
from pushforward.model import Model
from pushforward.train import train

class Line(Model):
    def __init__(self, d):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(d))
    def sample(self, n, *, rng=None):
        return self.w.expand(n, -1)
    def loss(self, x, *, rng=None):
        noise = torch.randn(x.shape, generator=rng, dtype=x.dtype)
        return (self.w - x - noise).square().mean()

@dataclass(frozen=True)
class Config:
    sizes: tuple[int, ...] = (3, 4)
    d: int = 2
    steps: int = 30
    data: str = "digits"
    seeds: tuple[int, ...] = (0, 1)
    hardware: str = "gpu"
    def small(self):
        return replace(self, steps=2, seeds=(0,), hardware="cpu")

RUNS = {"toy/line": Config(), "toy/line/long": Config(steps=40, hardware="cpu")}

def build(config):
    return Line(config.d)

def main(config, run):
    for seed in config.seeds:
        model = build(config)
        rng = torch.Generator().manual_seed(seed)
        x = torch.randn(20, config.d, generator=rng)
        batches = stream(x, 4, rng=rng)
        for step in train(model, batches, steps=config.steps, rng=rng, lr=0.1,
                          every=5, **run.training(seed)):
            run.log(seed=seed, step=step.number, loss=step.losses[0])
            hook(seed, step.number)
        run.metric(seed, "w", model.w.sum().item())
        run.weights(model.state_dict())

def hook(seed, step):
    pass
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A source folder with one experiment, without runs."""
    file = tmp_path / "experiments" / "toy" / "line.py"
    file.parent.mkdir(parents=True)
    file.write_text(EXPERIMENT)
    monkeypatch.setattr(runs, "CODE", tmp_path)
    monkeypatch.setenv("PUSHFORWARD_RUNS", str(tmp_path / "runs"))
    before = {k: v for k, v in sys.modules.items() if k.startswith("experiments")}
    for name in before:
        del sys.modules[name]
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "runs"
    for name in [k for k in sys.modules if k.startswith("experiments")]:
        del sys.modules[name]
    sys.modules.update(before)


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


def files(folder: Path) -> dict[str, bytes]:
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
    assert set(files(place)) == {f"toy/run/{f}" for f in (
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
    assert found["data"] == data.checksums("digits")
    assert len(found["source"]) == 64
    import platform

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
    before = files(place / "toy/run")
    crash()
    assert files(place / "toy/run") == before


def test_a_crash_while_writing_leaves_the_run_of_before(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written()
    before = files(place / "toy/run")
    inner = data.write_whole

    def full(path: Path, content: bytes) -> None:
        if path.name == "history.csv":
            raise OSError(28, "no space left on device")
        inner(path, content)

    monkeypatch.setattr(data, "write_whole", full)
    with pytest.raises(OSError, match="no space"):
        written(shift=1.0)
    assert files(place / "toy/run") == before
    monkeypatch.setattr(data, "write_whole", inner)
    written(shift=1.0)
    assert runs.load("toy/run").metrics == {"nll": [6.0, 4.0]}
    assert os.listdir(place / "toy") == ["run"]


def test_a_crash_between_two_renamings_is_undone(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written()
    before = files(place / "toy/run")
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
    assert files(place / "toy/run") == before


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


@pytest.mark.parametrize(
    "name", ["toy", "../x/y", "/toy/run", "toy//run", "toy/ru n", ""]
)
def test_names_stay_inside_the_folder(name: str) -> None:
    with pytest.raises(ValueError, match="name must be"):
        runs.exists(name)


def test_a_run_holds_no_other(place: Path) -> None:
    written("toy/run/deep")
    with pytest.raises(ValueError, match="no other run"):
        Writer("toy/run", Config())


def test_a_missing_run_says_how_to_make_it(place: Path) -> None:
    written()
    with pytest.raises(FileNotFoundError) as caught:
        runs.load("toy/rum")
    assert "pushforward train toy/rum" in str(caught.value)
    assert "Did you mean toy/run?" in str(caught.value)
    with pytest.raises(ValueError, match="did you mean toy/line"):
        runs.experiment("toy/lime")


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
    whole, part = files(place / "toy/whole"), files(place / "toy/part")
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


def test_pending_says_why(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs.pending() == [("toy/line", "missing")]
    assert {p.name for p in runs.pending(None)} == {"toy/line", "toy/line/long"}
    made = runs.experiment("toy/line")
    with Writer("toy/line", made.config.small(), path=place / "toy/line") as run:
        made.main(made.config.small(), run)
    assert runs.pending()[0].reason == "made with another configuration"
    with Writer("toy/line", made.config, device="cpu") as run:
        made.main(made.config, run)
    assert runs.pending()[0].reason.startswith("made on a CPU")
    path = place / "toy/line/provenance.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "accelerator": "cuda"}))
    assert runs.pending() == []


def test_the_newest_experiment_is_listed_first(place: Path) -> None:
    other = place.parent / "experiments" / "toy" / "other.py"
    other.write_text(EXPERIMENT.replace("toy/line", "toy/other"))
    os.utime(other, (2e9, 2e9))
    assert [p.name for p in runs.pending()] == ["toy/other", "toy/line"]
    os.utime(other, (1e9, 1e9))
    assert [p.name for p in runs.pending()] == ["toy/line", "toy/other"]


def test_an_experiment_keeps_to_its_chapter(place: Path) -> None:
    other = place.parent / "experiments" / "toy" / "other.py"
    other.write_text(EXPERIMENT)
    with pytest.raises(ValueError, match="must start with its chapter"):
        runs.experiments()


def test_a_model_is_built_with_its_weights(place: Path) -> None:
    made = runs.experiment("toy/line")
    with Writer("toy/line", made.config) as run:
        made.main(made.config, run)
    model = runs.build("toy/line")
    assert torch.equal(model.sample(2)[0], runs.load("toy/line").weights()["w"])
    assert not model.training


# Tables.


class Cells(HTMLParser):
    """The cells of a table, and whether every tag is closed."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[tuple[str, dict, str]] = []
        self.feed(markup)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag != "br":
            self.open.append(tag)
        if tag in ("th", "td", "caption"):
            self.cells.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self.open and self.open[-1] in ("th", "td", "caption"):
            tag, attrs, before = self.cells.pop()
            self.cells.append((tag, attrs, before + text))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict, str]]:
    seen: list[tuple[str, dict, str]] = []
    monkeypatch.setattr(
        runs,
        "emit",
        lambda text, record, *, markup: seen.append((text, record, markup)),
    )
    return seen


def test_a_table_shows_numbers_machines_and_what_is_pending(
    place: Path, shown: list
) -> None:
    written()
    runs.table(
        {"toy/run": "ours <b>", "toy/none": "later"},
        {"nll": "NLL, nats", "bits": "bits"},
        published={"toy/run": {"nll": 4.5}, "Others (2016)": {"nll": 86.1}},
        caption="A table",
    )
    (text, record, markup) = shown[0]
    assert record == {"kind": "runs", "names": ["toy/run", "toy/none"]}
    cells = Cells(markup).cells
    assert [c[2] for c in cells] == [
        "A table",
        *("run", "NLL, nats", "NLL, nats, published", "bits"),
        *("ours <b>", "4.0 ± 1.4", "4.5", "–"),
        *("later", "pending", "–", "pending"),
        *("Others (2016)", "–", "86.1", "–"),
    ]
    heads = [c[1].get("scope") for c in cells if c[0] == "th"]
    assert heads == ["col"] * 4 + ["row"] * 3
    made = runs.load("toy/run").provenance
    for part in ("(CPU)", made["device"], made["torch"], "2 seeds", "later: pending"):
        assert part in text
    assert "later: pending" in markup
    assert "4.0 ± 1.4" in text


def test_a_published_row_of_its_own_needs_no_column(place: Path, shown: list) -> None:
    written()
    quoted = {"Others (2016)": {"nll": 86.1}}
    runs.table(["toy/run"], ["nll", "bits"], published=quoted)
    cells = [c[2] for c in Cells(shown[0][2]).cells]
    assert cells[:3] == ["run", "nll", "bits"]
    assert cells[3:] == ["toy/run", "4.0 ± 1.4", "–", "Others (2016)", "86.1", "–"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([86.123, 86.125], "86.1240 ± 0.0014"),
        ([5.0], "5"),
        ([2.0, 2.0], "2"),
        ([1234.5, 1334.5], "1284 ± 71"),
        ([1e-4, 3e-4], "0.00020 ± 0.00014"),
    ],
)
def test_a_deviation_has_two_digits(
    place: Path, monkeypatch: pytest.MonkeyPatch, values: list[float], expected: str
) -> None:
    written()
    run = runs.load("toy/run")._replace(metrics={"m": values})
    monkeypatch.setattr(runs, "load", lambda name: run)
    assert runs.result("toy/run", "m") == expected


def test_a_published_number_is_of_a_metric_that_is_shown(place: Path) -> None:
    with pytest.raises(ValueError, match="nll"):
        runs.table(["toy/run"], ["bits"], published={"Others": {"nll": 1.0}})


def test_a_plain_table_is_printed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written()
    runs.table(["toy/run"], ["nll"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "nll"]
    assert lines[1].split() == ["toy/run", "4.0", "±", "1.4"]


def test_streams_in_experiments_are_saved(place: Path) -> None:
    """The wiring that resuming rests on: Writer.training fits train."""
    run = Writer("toy/run", Config())
    model = runs.experiment("toy/line").module.Line(2)
    batches = stream(torch.randn(8, 2), 4, rng=torch.Generator())
    list(train(model, batches, steps=1, **run.training(5)))
    assert (place / "toy/.run.partial/5.pt").is_file()
