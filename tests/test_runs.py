"""Runs are found, built and shown; those that are owed are named, with the reason."""

import json
import os
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from pushforward import runs
from pushforward.runs import Writer


@dataclass(frozen=True)
class Config:
    """Two seeds."""

    seeds: tuple[int, ...] = (5, 3)
    hardware: str = "cpu"


def written(name: str = "toy/run") -> None:
    with Writer(name, Config()) as run:
        for seed in (3, 5):
            run.metric(seed, "nll", seed)


@pytest.mark.parametrize(
    "name", ["toy", "../x/y", "/toy/run", "toy//run", "toy/ru n", ""]
)
def test_names_stay_inside_the_folder(name: str) -> None:
    with pytest.raises(ValueError, match="name must be"):
        runs.exists(name)


def test_a_missing_run_says_how_to_make_it(place: Path) -> None:
    written()
    with pytest.raises(FileNotFoundError) as caught:
        runs.load("toy/rum")
    assert "pushforward train toy/rum" in str(caught.value)
    assert "Did you mean toy/run?" in str(caught.value)
    with pytest.raises(ValueError, match="did you mean toy/line"):
        runs.experiment("toy/lime")


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
    file = Path(str(made.module.__file__))
    file.write_text(file.read_text() + "\n# a remark\n")
    assert runs.pending() == []
    file.write_text(file.read_text() + "\nmore = 1\n")
    assert runs.pending() == [("toy/line", "made by code that has changed since")]
    assert [p.name for p in runs.pending(None)] == ["toy/line/long", "toy/line"]


def test_the_newest_experiment_is_listed_first(place: Path) -> None:
    other = place.parent / "experiments" / "toy" / "other.py"
    text = other.with_name("line.py").read_text()
    other.write_text(text.replace("toy/line", "toy/other"))
    os.utime(other, (2e9, 2e9))
    assert [p.name for p in runs.pending()] == ["toy/other", "toy/line"]
    os.utime(other, (1e9, 1e9))
    assert [p.name for p in runs.pending()] == ["toy/line", "toy/other"]


def test_an_experiment_keeps_to_its_chapter(place: Path) -> None:
    other = place.parent / "experiments" / "toy" / "other.py"
    other.write_text(other.with_name("line.py").read_text())
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
