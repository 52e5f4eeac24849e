"""The runs of all experiments: those that are made, and those to be made.

A page reads a run with :func:`load`, shows several with :func:`table`, and takes
up the shipped model with :func:`build`.  An experiment writes one through a
:class:`Writer`; :mod:`.record` says what is in its folder.  :func:`pending` tells
which runs are still to be made.
"""

import csv
import difflib
import html
import importlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from . import record
from .check import emit
from .model import Model
from .record import NAME, Run, Writer, as_json, folder, recovered, root

__all__ = [
    "Experiment",
    "Pending",
    "Run",
    "Writer",
    "build",
    "exists",
    "experiment",
    "experiments",
    "load",
    "names",
    "pending",
    "table",
]

CHANGED = "made by code that has changed since"


def names() -> list[str]:
    """Return the names of the runs that are made, sorted."""
    found = root().rglob("config.json")
    paths = [path.parent.relative_to(root()).as_posix() for path in found]
    return sorted(name for name in paths if NAME.fullmatch(name))


def exists(name: str) -> bool:
    """Tell whether a run is made."""
    return (recovered(name) / "config.json").is_file()


def load(name: str) -> Run:
    """Read a run.

    Raises:
        FileNotFoundError: It is not made; the message says how to make it.
    """
    if not exists(name):
        near = difflib.get_close_matches(name, names(), n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise FileNotFoundError(
            f"run {name} is not made; make it with: pushforward train {name}.{hint}"
        )
    path = folder(name)
    config, metrics, provenance = (
        json.loads((path / f"{part}.json").read_text())
        for part in ("config", "metrics", "provenance")
    )
    with (path / "history.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    numbers = [[float(cell or "nan") for cell in row] for row in rows]
    history = {key: [row[i] for row in numbers] for i, key in enumerate(header)}
    return Run(name, config, metrics, history, provenance, path)


def build(name: str) -> Model:
    """Return the model of a run with its weights, ready to sample.

    Raises:
        FileNotFoundError: The run is not made, or keeps no weights.
        ValueError: Its experiment has no ``build(config)``.
    """
    run, module = load(name), experiment(name).module
    if not hasattr(module, "build"):
        raise ValueError(f"experiment of {name} must define build(config) -> Model")
    config = module.Config(**{k: frozen(v) for k, v in run.config.items()})
    model: Model = module.build(config)
    model.load_state_dict(run.weights())
    return model.eval()


def frozen(value: Any) -> Any:
    """Return what JSON made a list as the tuple that it was."""
    return tuple(map(frozen, value)) if isinstance(value, list) else value


# Experiments, and the runs that they owe.


class Experiment(NamedTuple):
    """A run that can be made.

    Attributes:
        name: Name of the run.
        config: Its configuration.
        main: Makes it: ``main(config, writer)``.
        module: The file that it is in, imported.
    """

    name: str
    config: Any
    main: Callable[[Any, "Writer"], None]
    module: ModuleType


class Pending(NamedTuple):
    """A run to be made, and why."""

    name: str
    reason: str


def experiments() -> dict[str, Experiment]:
    """Return every run that code/experiments can make, by name."""
    files = sorted((record.CODE / "experiments").rglob("[!_.]*.py"))
    found: dict[str, Experiment] = {}
    for file in files:
        parts = file.relative_to(record.CODE).with_suffix("").parts
        module = importlib.import_module(".".join(parts))
        for name, config in module.RUNS.items():
            if not name.startswith("/".join(parts[1:])):
                raise ValueError(f"{file}: run {name!r} must start with its chapter")
            found[name] = Experiment(name, config, module.main, module)
    return found


def experiment(name: str) -> Experiment:
    """Return the experiment that makes a run.

    Raises:
        ValueError: There is none of this name; the message names the nearest.
    """
    found = experiments()
    if name not in found:
        near = difflib.get_close_matches(name, found, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"one of {list(found)}"
        raise ValueError(f"no experiment makes {name!r}: {hint}")
    return found[name]


def pending(hardware: str | None = "gpu") -> list[Pending]:
    """Return the runs to be made, those with the newest source first.

    A run is pending when its folder is missing, when it was made with another
    configuration, when it wants a GPU and was made on a CPU, or, and these come
    last, when the code that makes it has changed since.

    Args:
        hardware: "gpu", "cpu", or None for both.
    """
    wanted = [
        e for e in experiments().values() if hardware in (None, e.config.hardware)
    ]
    wanted.sort(
        key=lambda e: Path(str(e.module.__file__)).stat().st_mtime, reverse=True
    )
    found = [Pending(e.name, why) for e in wanted if (why := lacks(e))]
    return sorted(found, key=lambda p: p.reason == CHANGED)


def lacks(e: Experiment) -> str:
    """Return why a run is pending, or ""."""
    if not exists(e.name):
        return "missing"
    run = load(e.name)
    if run.config != as_json(e.config):
        return "made with another configuration"
    if e.config.hardware == "gpu" and run.provenance["accelerator"] == "cpu":
        return f"made on a CPU ({run.provenance['device']})"
    code = record.digest(Path(str(e.module.__file__)))
    return "" if run.provenance.get("code", code) == code else CHANGED


# Showing.


def table(
    names: Sequence[str] | dict[str, str],
    metrics: Sequence[str] | dict[str, str],
    *,
    published: dict[str, dict[str, float]] | None = None,
    caption: str = "",
) -> None:
    """Show runs in a page: mean ± standard deviation over the seeds, and machines.

    A run that is not made is "pending"; a number that a run has not is "–".

    Args:
        names: Names of the runs; or {name: how the page calls it}.
        metrics: Names of the metrics; or {name: heading with its unit}.
        published: {row: {metric: number}}.  A row that is one of the ``names``
            has the published numbers beside its own; another has its own line.
        caption: A line above the table.

    Raises:
        ValueError: A published number of a metric that is not shown.
    """
    rows = names if isinstance(names, dict) else {name: name for name in names}
    heads = metrics if isinstance(metrics, dict) else {m: m for m in metrics}
    published = published or {}
    if odd := {m for row in published.values() for m in row} - heads.keys():
        raise ValueError(f"published must be of {list(heads)}, got {sorted(odd)}")
    both = {m for name in rows for m in published.get(name, {})}
    header = ["run"]
    for metric, head in heads.items():
        header += [head, f"{head}, published"] if metric in both else [head]
    body = []
    for name, label in {**rows, **{p: p for p in published if p not in rows}}.items():
        ours = {m: result(name, m) for m in heads} if name in rows else {}
        theirs = published.get(name, {})
        cells = [pair(ours.get(m), theirs.get(m), m in both) for m in heads]
        body.append([label, *itertools.chain(*cells)])
    notes = [f"{label}: {machine(name)}" for name, label in rows.items()]
    shown = header, body, notes, caption
    emit(as_text(*shown), {"kind": "runs", "names": [*rows]}, markup=as_html(*shown))


def pair(ours: str | None, number: float | None, both: bool) -> list[str]:
    """Return the cells of a metric: ours and the published one, or one of them."""
    quoted = "–" if number is None else f"{number:g}"
    if both:
        return [ours or "–", quoted]
    return [quoted if ours is None else ours]


def result(name: str, metric: str) -> str:
    """Return mean ± standard deviation of a run, to two digits of the latter."""
    if not exists(name):
        return "pending"
    run = load(name)
    if metric not in run.metrics:
        return "–"
    mean, sd = run.mean(metric), run.sd(metric)
    if not sd > 0:  # one seed, or equal numbers
        return f"{mean:.5g}"
    digits = max(0, 1 - math.floor(math.log10(sd)))
    return f"{mean:.{digits}f} ± {sd:.{digits}f}"


def machine(name: str) -> str:
    """Return what made a run, in a few words."""
    if not exists(name):
        return "pending"
    run = load(name)
    made, seeds = run.provenance, len(run.config["seeds"])
    plural = "s" if seeds > 1 else ""
    kind = " (CPU)" if made["accelerator"] == "cpu" else ""
    return (
        f"{made['device']}{kind}, {made['seconds']:,.0f} s, {seeds} seed{plural}, "
        f"torch {made['torch']}, {made['date'][:10]}"
    )


def as_text(
    header: list[str], body: list[list[str]], notes: list[str], caption: str
) -> str:
    """Return the table in plain text, its columns aligned."""
    rows = [header, *body]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows
    ]
    return "\n".join([caption] * bool(caption) + [*lines, *notes])


def as_html(
    header: list[str], body: list[list[str]], notes: list[str], caption: str
) -> str:
    """Return the table as a screen reader wants it: scopes and a caption."""

    def cells(row: list[str]) -> str:
        first, *rest = map(html.escape, row)
        return f'<th scope="row">{first}</th>' + "".join(f"<td>{c}</td>" for c in rest)

    head = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in header)
    rows = "".join(f"<tr>{cells(row)}</tr>" for row in body)
    above = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    below = "<br>".join(map(html.escape, notes))
    return (
        f'<table class="pf-runs">{above}<thead><tr>{head}</tr></thead>'
        f'<tbody>{rows}</tbody></table><p class="pf-machines">{below}</p>'
    )
