"""What experiments leave behind: numbers, curves, weights, and where they came from.

    code/runs/<part>/<chapter>/…/
        config.json          the configuration that was run
        metrics.json         {metric: [a value for each seed]}
        history.csv          seed, step, and what was logged
        provenance.json      machine, versions, time, memory, sources, data
        weights.safetensors  at most 4 MB, where the experiment keeps weights

A page reads a run with :func:`load`, shows several with :func:`table`, and takes
up the shipped model with :func:`build`.  An experiment writes one through a
:class:`Writer`, which replaces the folder as a whole when the experiment has
ended.  :func:`pending` tells which runs are still to be made.
"""

import csv
import dataclasses
import difflib
import hashlib
import html
import importlib
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from . import data
from .check import emit
from .model import Model

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

CODE = Path(__file__).parents[1]
LARGEST = 4_000_000  # bytes of weights
NAME = re.compile(r"[\w-]+(/[\w-]+)+")


def root() -> Path:
    """Return the folder of all runs; PUSHFORWARD_RUNS in the environment moves it."""
    return Path(os.environ.get("PUSHFORWARD_RUNS") or CODE / "runs")


def folder(name: str) -> Path:
    """Return the folder of a run, made or not.

    Raises:
        ValueError: A name that is not <part>/<chapter>, perhaps with more parts.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"name must be <part>/<chapter>/…, got {name!r}")
    return root() / name


# Reading.


class Run(NamedTuple):
    """What an experiment left.

    Attributes:
        name: Its name, <part>/<chapter>/….
        config: The configuration, as JSON holds it.
        metrics: Final numbers, one for each seed, in the order of the seeds.
        history: Columns of equal length: "seed", "step", and what was logged
            (NaN where it was not).
        provenance: Device, versions, seconds, memory, revision, data, date.
        path: The folder.
    """

    name: str
    config: dict[str, Any]
    metrics: dict[str, list[float]]
    history: dict[str, list[float]]
    provenance: dict[str, Any]
    path: Path

    def values(self, metric: str) -> list[float]:
        """Return a metric, one number for each seed."""
        if metric not in self.metrics:
            raise ValueError(
                f"metric must be one of {list(self.metrics)}, got {metric!r}"
            )
        return self.metrics[metric]

    def mean(self, metric: str) -> float:
        """Return the mean of a metric over the seeds."""
        return statistics.fmean(self.values(metric))

    def sd(self, metric: str) -> float:
        """Return the standard deviation over the seeds (n − 1); NaN for one seed."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else math.nan

    def curve(self, column: str, seed: int) -> tuple[list[float], list[float]]:
        """Return the steps at which a column was logged for a seed, and its values."""
        if column not in self.history:
            raise ValueError(
                f"column must be one of {list(self.history)}, got {column!r}"
            )
        h = self.history
        rows = zip(h["seed"], h["step"], h[column], strict=True)
        kept = [(k, v) for s, k, v in rows if s == seed and not math.isnan(v)]
        return [k for k, _ in kept], [v for _, v in kept]

    def weights(self) -> dict[str, Tensor]:
        """Return the weights that the run keeps, by name.

        Raises:
            FileNotFoundError: It keeps none.
        """
        return load_file(self.path / "weights.safetensors")


def names() -> list[str]:
    """Return the names of the runs that are made, sorted."""
    found = root().rglob("config.json")
    paths = [path.parent.relative_to(root()).as_posix() for path in found]
    return sorted(name for name in paths if NAME.fullmatch(name))


def exists(name: str) -> bool:
    """Tell whether a run is made."""
    return (recovered(name) / "config.json").is_file()


def recovered(name: str) -> Path:
    """Return a run's folder, put back if a crash came between two renamings."""
    path = folder(name)
    old = beside(path, "old")
    if old.is_dir() and not path.exists():
        old.rename(path)
    return path


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
    files = sorted((CODE / "experiments").rglob("[!_.]*.py"))
    found: dict[str, Experiment] = {}
    for file in files:
        parts = file.relative_to(CODE).with_suffix("").parts
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
    configuration, or when it wants a GPU and was made on a CPU.

    Args:
        hardware: "gpu", "cpu", or None for both.
    """
    wanted = [
        e for e in experiments().values() if hardware in (None, e.config.hardware)
    ]
    wanted.sort(
        key=lambda e: Path(str(e.module.__file__)).stat().st_mtime, reverse=True
    )
    return [Pending(e.name, why) for e in wanted if (why := lacks(e))]


def lacks(e: Experiment) -> str:
    """Return why a run is pending, or ""."""
    if not exists(e.name):
        return "missing"
    run = load(e.name)
    if run.config != as_json(e.config):
        return "made with another configuration"
    if e.config.hardware == "gpu" and run.provenance["accelerator"] == "cpu":
        return f"made on a CPU ({run.provenance['device']})"
    return ""


def as_json(config: Any) -> Any:
    """Return a configuration as JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


# Writing.


def beside(path: Path, what: str) -> Path:
    """Return the hidden neighbour of a run's folder."""
    return path.with_name(f".{path.name}.{what}")


class Writer:
    """Collects what an experiment reports, and replaces its run at the end.

        with Writer("vae/gauss/mlp", config) as run:
            main(config, run)

    Until the block ends well the run of before is left alone.  Meanwhile
    checkpoints and the log are in a hidden folder beside it, from which
    ``resume=True`` goes on.

    Args:
        name: Name of the run.
        config: A frozen dataclass with ``seeds``; with ``data``, the name of a
            data set, the checksums of that are noted.
        device: "auto" (CUDA if there is any), "cpu", "cuda" or "cuda:1".
        path: Where to write; by default the folder of the run.
        keep: Write at all.  Without, nothing touches the disk.
        resume: Go on with what was interrupted.
        progress: Show progress bars.
    """

    def __init__(
        self,
        name: str,
        config: Any,
        *,
        device: str = "auto",
        path: Path | None = None,
        keep: bool = True,
        resume: bool = False,
        progress: bool = False,
    ) -> None:
        self.name, self.config, self.progress = name, config, progress
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.path = (path or folder(name)) if keep else None
        self.rows: dict[tuple[int, int], dict[str, float]] = {}
        self.metrics: dict[str, dict[int, float]] = {}
        self.kept: bytes | None = None
        name_of_data = str(getattr(config, "data", "")).replace("_", "-")
        known = name_of_data in data.NAMES
        self.data = data.checksums(name_of_data) if known else {}
        self.before = 0.0  # seconds spent before an interruption
        if self.path is not None:
            if any(p.is_dir() for p in self.path.glob("*")):
                raise ValueError(f"path must hold no other run, got {self.path}")
            self.take_up(beside(self.path, "partial"), resume)
        self.start = time.monotonic()

    def take_up(self, partial: Path, resume: bool) -> None:
        """Read the log of an interrupted run, or begin a new one."""
        config, log = partial / "config.json", partial / "log.jsonl"
        if not resume:
            shutil.rmtree(partial, ignore_errors=True)
        elif config.exists() and json.loads(config.read_text()) != as_json(self.config):
            raise ValueError(
                f"config of {self.name} must be that of the interrupted run to resume "
                "it; start anew without resume"
            )
        data.write_whole(config, json.dumps(as_json(self.config)).encode())
        for line in log.read_text().splitlines() if log.exists() else []:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the line that was cut off: its step recurs
                continue
            self.before = entry["at"]
            row = self.rows.setdefault((entry["seed"], entry["step"]), {})
            row.update(entry["values"])

    def training(self, *key: object) -> dict[str, Any]:
        """Return options for :func:`.train.train` that make this training resumable.

        Args:
            key: What tells this training from the others: the seed, perhaps more.
        """
        options: dict[str, Any] = {"progress": self.progress}
        if self.path is not None:
            file = "-".join(map(str, key)) + ".pt"
            options["checkpoint"] = beside(self.path, "partial") / file
            options["resume"] = True
        return options

    def log(self, *, seed: int, step: int, **values: float | Tensor) -> None:
        """Add values to the row of a seed and a step of the history."""
        row = {key: float(value) for key, value in values.items()}
        self.rows.setdefault((seed, step), {}).update(row)
        if self.path is not None:
            entry = {"seed": seed, "step": step, "values": row, "at": self.seconds()}
            with (beside(self.path, "partial") / "log.jsonl").open("a") as file:
                file.write(json.dumps(entry) + "\n")

    def metric(self, seed: int, name: str, value: float | Tensor) -> None:
        """Set a final number of a seed.

        Raises:
            ValueError: It is not finite, or the seed is not in the configuration.
        """
        value = float(value)
        if seed not in self.config.seeds:
            raise ValueError(f"seed must be one of {self.config.seeds}, got {seed}")
        if not math.isfinite(value):
            raise ValueError(f"value of {name} must be finite, got {value}")
        self.metrics.setdefault(name, {})[seed] = value

    def weights(self, state: dict[str, Tensor]) -> None:
        """Keep weights with the run; a second call replaces the first.

        Raises:
            ValueError: They are more than 4 MB.
        """
        here = {key: w.detach().cpu().contiguous().clone() for key, w in state.items()}
        kept = to_bytes(here)
        if len(kept) > LARGEST:
            raise ValueError(
                f"weights must be at most {LARGEST} bytes, got {len(kept)}: "
                "keep fewer, or in half precision"
            )
        self.kept = kept

    def seconds(self) -> float:
        """Return how long the run has taken, interruptions not counted."""
        return self.before + time.monotonic() - self.start

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Replace the run, if the experiment has ended well."""
        if kind is None and self.path is not None:
            self.commit(self.path)

    def run(self) -> Run:
        """Return what has been collected, as :func:`load` will.

        Raises:
            ValueError: A metric lacks a seed.
        """
        seeds = list(self.config.seeds)
        for metric, values in self.metrics.items():
            if set(values) != set(seeds):
                raise ValueError(f"{metric} must have a value for each of the seeds "
                                 f"{seeds}, got {sorted(values)}")  # fmt: skip
        columns = list(dict.fromkeys(key for row in self.rows.values() for key in row))
        history: dict[str, list[float]] = {
            "seed": [seed for seed, _ in self.rows],
            "step": [step for _, step in self.rows],
        }
        for key in columns:
            history[key] = [row.get(key, math.nan) for row in self.rows.values()]
        metrics = {m: [v[seed] for seed in seeds] for m, v in self.metrics.items()}
        path = self.path or Path()
        return Run(self.name, as_json(self.config), metrics, history,
                   self.provenance(), path)  # fmt: skip

    def provenance(self) -> dict[str, Any]:
        """Return what made this run."""
        module = sys.modules[type(self.config).__module__]
        source = str(module.__file__)
        return {
            "device": device_name(self.device),
            "accelerator": self.device.type,
            "seconds": round(self.seconds(), 1),
            "memory_mb": round(peak_memory(self.device) / 1e6),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "revision": revision(),
            "source": hashlib.sha256(Path(source).read_bytes()).hexdigest(),
            "data": self.data,
        }

    def commit(self, path: Path) -> None:
        """Write all files to a new folder, and put it in the place of the old one."""
        run, new = self.run(), beside(path, "new")
        shutil.rmtree(new, ignore_errors=True)
        for part in ("config", "metrics", "provenance"):
            text = json.dumps(getattr(run, part), indent=2) + "\n"
            data.write_whole(new / f"{part}.json", text.encode())
        header = list(run.history)
        rows = zip(*run.history.values(), strict=True)
        lines = [",".join(header), *(",".join(map(cell, row)) for row in rows)]
        data.write_whole(new / "history.csv", ("\n".join(lines) + "\n").encode())
        if self.kept is not None:
            data.write_whole(new / "weights.safetensors", self.kept)
        swap(new, path)
        shutil.rmtree(beside(path, "partial"), ignore_errors=True)


def cell(value: float) -> str:
    """Return a number of the history, empty for NaN."""
    return "" if math.isnan(value) else f"{value:.7g}"


def swap(new: Path, path: Path) -> None:
    """Put a folder in the place of another; see :func:`recovered` for crashes."""
    old = beside(path, "old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def device_name(device: torch.device) -> str:
    """Return what a device is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    found = (
        re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    )
    return (found[1] if found else platform.processor()) or platform.machine()


def peak_memory(device: torch.device) -> int:
    """Return the most memory held so far, in bytes: of the device, or resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def revision() -> str | None:
    """Return the git revision of the code, marked if it was changed since."""
    git = ["git", "-C", str(CODE)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, check=True
        )
        status = [*git, "status", "--porcelain", "--", "pushforward", "experiments"]
        changed = subprocess.run(status, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.decode().strip() + ("+changes" if changed.strip() else "")


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
        line = [label]
        for metric in heads:
            ours = result(name, metric) if name in rows else None
            number = published.get(name, {}).get(metric)
            line += pair(ours, number, metric in both)
        body.append(line)
    notes = [f"{label}: {machine(name)}" for name, label in rows.items()]
    record = {"kind": "runs", "names": list(rows)}
    shown = header, body, notes, caption
    emit(as_text(*shown), record, markup=as_html(*shown))


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
