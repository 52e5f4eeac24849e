"""What the pages, the experiments and the ledger have put on record.

of_outputs(outputs)      checks, measurements and figures of a page
claims(text)             the rows of book/claims.toml, each with its verdict
runs(...)                the runs that experiments name, made or pending
"""

import ast
import json
import re
import statistics
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from .page import string

Record = dict[str, Any]

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
    """Return the rows of the ledger; none if there is no file."""
    if not path.exists():
        return []
    return list(tomllib.loads(path.read_text(encoding="utf-8")).get("claim", []))


def claim(row: dict[str, Any], pages: dict[str, PageState], folder: Path) -> Claim:
    """Return a row with its measurement, from a page's records or a run's metrics."""
    kind, _, rest = row["measured"].partition(":")
    if kind == "page":
        state = pages.get(page_name(rest))
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
        for name in run_keys(path.read_text(encoding="utf-8"))
    }
    return [run(folder, name) for name in sorted(found)]


def run_keys(source: str) -> list[str]:
    """Return the literal keys of the dictionary ``RUNS`` at a file's top level.

    A key that is computed keeps its literal beginning, with "…" for the rest.
    """
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(getattr(t, "id", "") == "RUNS" for t in targets) and node.value:
            return sorted(literal_keys(node.value))
    return []


def literal_keys(value: ast.expr) -> set[str]:
    """Return the string keys of all dictionaries in an expression."""
    keys: set[str] = set()
    for node in ast.walk(value):
        found = node.keys if isinstance(node, ast.Dict) else []
        found = [node.key] if isinstance(node, ast.DictComp) else found
        for key in found:
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                keys.add(key.value)
            elif isinstance(key, ast.JoinedStr):
                keys.add((string(key) or "").replace("*", "…"))
    return keys


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object; empty if there is no file."""
    if not path.exists():
        return {}
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
