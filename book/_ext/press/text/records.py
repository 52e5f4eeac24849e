"""What the pages, the experiments and the ledger have put on record.

of_outputs(outputs)      checks, measurements and figures of a page
states(env)              what is known of the executed pages
claims(env, rows)        the rows of book/claims.toml, each with its verdict
runs(...)                the runs that experiments name, made or pending
"""

import ast
import json
import re
import statistics
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from sphinx.environment import BuildEnvironment

from .page import string

Record = dict[str, Any]

WANTED = ("id", "paper", "measured", "band")  # of a row of the ledger

IMAGE = re.compile(r"<img\b[^>]*>", re.S)
ALT = re.compile(r"\balt\s*=\s*(\"\s*[^\"\s]|'\s*[^'\s])")


class PageState(NamedTuple):
    """What is known of an executed page.

    Attributes:
        mark: Fingerprint with which it ran.
        key: The cache's key of the executed notebook.
        seconds: How long it ran.
        records: What its cells put on record, in order.
        unread: Cells (from 1) with a picture that has no alternative text.
    """

    mark: str
    key: str
    seconds: float
    records: list[Record]
    unread: list[int]


def states(env: BuildEnvironment) -> dict[str, PageState]:
    """Return the executed pages' states, kept in Sphinx's environment."""
    found: dict[str, PageState] = getattr(env, "press_pages")  # noqa: B009
    return found


def of_outputs(outputs: list[dict[str, Any]]) -> tuple[list[Record], list[int]]:
    """Return the records of a page, and its cells with a picture without alt text."""
    records = [
        {**record, "cell": output["cell"]}
        for output in outputs
        if (record := output.get("metadata", {}).get("pushforward"))
    ]
    return records, sorted({o["cell"] for o in outputs if not readable(o)})


def readable(output: dict[str, Any]) -> bool:
    """Return whether an output shows no picture without alternative text."""
    data = output.get("data", {})
    page = "".join(data.get("text/html", ""))
    if any(kind.startswith("image/") for kind in data) and not page:
        return bool(output.get("metadata", {}).get("pushforward", {}).get("alt"))
    return all(ALT.search(tag) for tag in IMAGE.findall(page))


class Claim(NamedTuple):
    """A row of the ledger, with what was measured for it.

    Attributes:
        row: The row as book/claims.toml gives it.
        value: The measured value; None while it is pending.
        sd: Standard deviation over seeds or repetitions.
        n: Number of seeds or repetitions.
        machine: What made it, for a run.
    """

    row: dict[str, Any]
    value: float | None = None
    sd: float | None = None
    n: int | None = None
    machine: str = ""

    @property
    def inside(self) -> bool:
        """Whether the measured value lies in the accepted band."""
        lo, hi = self.row["band"]
        return self.value is not None and lo <= self.value <= hi

    @property
    def verdict(self) -> str:
        """One of reproduced, contradicted, pending, outside."""
        if self.value is None:
            return "pending"
        if self.inside:
            return "reproduced"
        return "contradicted" if self.row.get("contradicted") else "outside"


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of the ledger; none if there is no file.

    Raises:
        ValueError: A row lacks what every row must have.
    """
    if not path.exists():
        return []
    found = list(tomllib.loads(path.read_text(encoding="utf-8")).get("claim", []))
    for k, row in enumerate(found, 1):
        if lost := [key for key in WANTED if key not in row]:
            name = row.get("id", f"row {k}")
            raise ValueError(f"{path.name}, {name}: no {' and no '.join(lost)}")
    return found


def origin(row: dict[str, Any]) -> tuple[str, str]:
    """Return what measures a row: ("page", its full name) or ("run", "name:metric")."""
    kind, _, rest = row["measured"].partition(":")
    return kind, page_name(rest) if kind == "page" else rest


def claims(env: BuildEnvironment, rows: list[dict[str, Any]]) -> list[Claim]:
    """Return the ledger's rows with what was measured."""
    folder = Path(env.srcdir) / "code/runs"
    return [claim(row, states(env), folder) for row in rows]


def claim(row: dict[str, Any], pages: dict[str, PageState], folder: Path) -> Claim:
    """Return a row with its measurement, from a page's records or a run's metrics."""
    kind, rest = origin(row)
    if kind == "page":
        state = pages.get(rest)
        told = state.records if state else []
        found = [r for r in told if r.get("claim") == row["id"]]
        if not found:
            return Claim(row)
        return Claim(row, found[-1]["value"], found[-1]["sd"], found[-1]["n"])
    name, _, metric = rest.rpartition(":")
    made = run(folder, name)
    values = [v for v in made.metrics.get(metric, []) if v is not None]
    if made.pending or not values:
        return Claim(row)
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Claim(row, statistics.fmean(values), sd, len(values), made.machine)


def page_name(short: str) -> str:
    """Return a page's full name: "ot/duality" is book/ot/duality."""
    return short if short.startswith("book/") else f"book/{short}"


class Run(NamedTuple):
    """A run: its name, and what it left in its folder (nothing: not made)."""

    name: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    metrics: dict[str, list[float]]

    @property
    def machine(self) -> str:
        """What made it."""
        return str(self.provenance.get("device", ""))

    @property
    def pending(self) -> bool:
        """Whether it is still to be made: missing, or made on less than it wants."""
        wants_gpu = self.config.get("hardware") == "gpu"
        on_cpu = self.provenance.get("accelerator") == "cpu"
        return not self.provenance or (wants_gpu and on_cpu)


def run(folder: Path, name: str) -> Run:
    """Return a run by its name, from the folder of all runs."""
    config, provenance, metrics = (
        read_json(folder / name / f"{part}.json")
        for part in ("config", "provenance", "metrics")
    )
    return Run(name, config, provenance, metrics)


def runs(experiments: Path, folder: Path) -> list[Run]:
    """Return every run named by a ``RUNS`` dictionary, in order of its name."""
    found = {
        name
        for path in experiments.glob("**/*.py")
        for name in run_keys(path.read_text(encoding="utf-8"), str(path))
    }
    return [run(folder, name) for name in sorted(found)]


def run_keys(source: str, file: str = "<unknown>") -> list[str]:
    """Return the literal keys of the dictionary ``RUNS`` at a file's top level.

    A key that is computed keeps its literal beginning, with "…" for the rest.
    """
    for node in ast.parse(source, file).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(getattr(t, "id", "") == "RUNS" for t in targets) and node.value:
            return sorted(literal_keys(node.value))
    return []


def literal_keys(value: ast.expr) -> set[str]:
    """Return the string keys of a dictionary, or of those joined in it by | or **."""
    if isinstance(value, ast.BinOp):
        return literal_keys(value.left) | literal_keys(value.right)
    if isinstance(value, ast.DictComp):
        return {name} if (name := literal(value.key)) else set()
    if not isinstance(value, ast.Dict):
        return set()
    inner = [literal_keys(v) for k, v in zip(value.keys, value.values, strict=True)
             if k is None]  # fmt: skip
    names = {name for key in value.keys if key and (name := literal(key))}
    return names.union(*inner)


def literal(key: ast.expr) -> str | None:
    """Return a key, with "…" for what it computes, or None where it is no string."""
    name = string(key)
    return name.replace("*", "…") if isinstance(key, ast.JoinedStr) and name else name


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object; empty if there is no file."""
    if not path.exists():
        return {}
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
