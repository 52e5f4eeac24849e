"""What a run leaves on the disk, and how it comes there: whole, with its origin.

    code/runs/<part>/<chapter>/…/
        config.json          the configuration that was run
        metrics.json         {metric: [a value for each seed]}
        history.csv          seed, step, and what was logged
        provenance.json      machine, versions, time, memory, sources, data
        weights.safetensors  at most 4 MB, where the experiment keeps weights

An experiment writes its run through a :class:`Writer`, which replaces the folder
as a whole when the experiment has ended.
"""

import ast
import contextlib
import dataclasses
import functools
import hashlib
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
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from . import files

__all__ = ["Run", "Writer", "device_name", "digest", "folder", "root"]

CODE = Path(__file__).parents[1]
KEEPERS = {Path(__file__), Path(__file__).with_name("runs.py")}  # change no number
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


def as_json(config: Any) -> Any:
    """Return a configuration as JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def beside(path: Path, what: str) -> Path:
    """Return the hidden neighbour of a run's folder."""
    return path.with_name(f".{path.name}.{what}")


def recovered(name: str) -> Path:
    """Return a run's folder, put back if a crash came between two renamings."""
    path = folder(name)
    old = beside(path, "old")
    if old.is_dir() and not path.exists():
        old.rename(path)
    return path


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
        best = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(best if device == "auto" else device)
        self.path = (path or folder(name)) if keep else None
        self.rows: dict[tuple[int, int], dict[str, float]] = {}
        self.metrics: dict[str, dict[int, float]] = {}
        self.kept: bytes | None = None
        self.origin = origin(config)  # now: the code may change meanwhile
        self.before = 0.0  # seconds spent before an interruption
        if self.path is not None:
            self.take_up(self.path, resume)
        self.start = time.monotonic()

    def take_up(self, path: Path, resume: bool) -> None:
        """Read the log of an interrupted run, or begin a new one."""
        if any(p.is_dir() for p in path.glob("*")):
            raise ValueError(f"path must hold no other run, got {path}")
        partial = beside(path, "partial")
        config, log = partial / "config.json", partial / "log.jsonl"
        if not resume:
            shutil.rmtree(partial, ignore_errors=True)
        elif config.exists() and json.loads(config.read_text()) != as_json(self.config):
            raise ValueError(
                f"config of {self.name} must be that of the interrupted run to resume "
                "it; start anew without resume"
            )
        files.write_whole(config, json.dumps(as_json(self.config)).encode())
        for entry in entries(log):
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
        metrics = {m: [v[seed] for seed in seeds] for m, v in self.metrics.items()}
        config, history = as_json(self.config), columns(self.rows)
        path = self.path or Path()
        return Run(self.name, config, metrics, history, self.provenance(), path)

    def provenance(self) -> dict[str, Any]:
        """Return what made this run."""
        return {
            "device": device_name(self.device),
            "accelerator": self.device.type,
            "seconds": round(self.seconds(), 1),
            "memory_mb": round(peak_memory(self.device) / 1e6),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "revision": revision(),
            **self.origin,
        }

    def commit(self, path: Path) -> None:
        """Write all files to a new folder, and put it in the place of the old one."""
        run, new = self.run(), beside(path, "new")
        shutil.rmtree(new, ignore_errors=True)
        for part in ("config", "metrics", "provenance"):
            text = json.dumps(getattr(run, part), indent=2) + "\n"
            files.write_whole(new / f"{part}.json", text.encode())
        header = list(run.history)
        rows = zip(*run.history.values(), strict=True)
        lines = [",".join(header), *(",".join(map(cell, row)) for row in rows)]
        files.write_whole(new / "history.csv", ("\n".join(lines) + "\n").encode())
        if self.kept is not None:
            files.write_whole(new / "weights.safetensors", self.kept)
        swap(new, path)
        shutil.rmtree(beside(path, "partial"), ignore_errors=True)


def entries(log: Path) -> Iterator[dict[str, Any]]:
    """Yield what was logged, without a line that a crash has cut off."""
    for line in log.read_text().splitlines() if log.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):  # its step recurs
            yield json.loads(line)


def columns(rows: dict[tuple[int, int], dict[str, float]]) -> dict[str, list[float]]:
    """Return a history by columns from its rows by (seed, step)."""
    keys = dict.fromkeys(key for row in rows.values() for key in row)
    return {
        "seed": [seed for seed, _ in rows],
        "step": [step for _, step in rows],
        **{key: [row.get(key, math.nan) for row in rows.values()] for key in keys},
    }


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


# Where a run comes from.


def origin(config: Any) -> dict[str, Any]:
    """Return the hashes of the code and of the data that an experiment uses."""
    module = sys.modules[type(config).__module__]
    data = str(getattr(config, "data", "")).replace("_", "-")
    sums = files.checksums(data) if data in files.NAMES else {}
    return {"code": digest(Path(str(module.__file__))), "data": sums}


def digest(experiment: Path) -> str:
    """Return the hash of an experiment and of all of the code that it imports.

    Comments, docstrings and empty lines do not count.
    """
    texts: dict[Path, str] = {}
    todo = [experiment]
    while todo:
        path = todo.pop()
        if path not in texts.keys() | KEEPERS:
            texts[path], named = reading(path.read_text(encoding="utf-8"))
            todo += [file for level, name in named for file in found(path, level, name)]
    first, *rest = texts.values()
    return hashlib.sha256("\n".join([first, *sorted(rest)]).encode()).hexdigest()


@functools.cache
def reading(text: str) -> tuple[str, list[tuple[int, str]]]:
    """Return a module's bare code, and the (level, name) of all that it imports."""
    lines, named = text.splitlines(), []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            named += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            head = f"{node.module}." if node.module else ""
            named += [(node.level, head + alias.name) for alias in node.names]
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            for k in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[k] = ""
    bare = [line for line in lines if line.strip() and line.lstrip()[0] != "#"]
    return "\n".join(bare), named


def found(importer: Path, level: int, name: str) -> list[Path]:
    """Return the file of the code that an import reaches: [] if it is a library's."""
    base = importer.parents[level - 1] if level else CODE
    full = base.joinpath(*name.split("."))
    places = [p for f in (full, full.parent) for p in (f"{f}.py", f / "__init__.py")]
    return [p for p in map(Path, places) if p.is_file()][:1]


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
