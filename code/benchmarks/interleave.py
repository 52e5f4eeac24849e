"""Time functions side by side, in turns, so that a busy machine is fair to all.

    print(table("1-D W2", {"ours": ours, "peer": peer}, certify=relative_error))

Every thunk runs once to warm up.  Then come rounds in which each runs once, in an
order that turns; the median counts.  A time without a certificate is worth little:
``certify`` turns each result into the error that stands beside it.
"""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Thunk = Callable[[], Any]


class Row(NamedTuple):
    """What one thunk did: median seconds and certificate; or why it did not run."""

    name: str
    seconds: float | None
    certificate: str


def interleave(
    thunks: Mapping[str, Thunk | None],
    *,
    certify: Callable[[Any], str],
    rounds: int = 7,
) -> list[Row]:
    """Run the thunks in turns and return a row for each.

    Args:
        thunks: By name; None for a peer that is not installed.
        certify: Turns a result into its certificate.
        rounds: How many times each is timed.
    """
    rows: list[Row] = []
    alive: dict[str, tuple[Thunk, str]] = {}
    for name, thunk in thunks.items():
        if thunk is None:
            rows.append(Row(name, None, "not installed"))
            continue
        try:
            alive[name] = thunk, certify(thunk())
        except Exception as failure:  # a peer that fails is a result
            reason = f"{type(failure).__name__}: {failure}".splitlines()[0]
            rows.append(Row(name, None, f"fails ({reason[:60]})"))
    times: dict[str, list[float]] = {name: [] for name in alive}
    names = list(alive)
    for k in range(rounds):
        turn = k % max(len(names), 1)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            alive[name][0]()
            times[name].append(time.perf_counter() - start)
    done = [Row(n, statistics.median(times[n]), alive[n][1]) for n in names]
    return sorted(done, key=lambda row: row.seconds or 0.0) + rows


def table(title: str, thunks: Mapping[str, Thunk | None], **options: Any) -> str:
    """Run :func:`interleave` and return its rows as text, fastest first."""
    rows = interleave(thunks, **options)
    best = min((row.seconds for row in rows if row.seconds), default=1.0)
    width = max(len(row.name) for row in rows)
    lines = [title, f"  {'':{width}}  {'ms':>9}  {'ratio':>6}  certificate"]
    for name, seconds, certificate in rows:
        if seconds is None:
            lines.append(f"  {name:{width}}  {'—':>9}  {'—':>6}  {certificate}")
            continue
        ms, ratio = f"{1e3 * seconds:9.2f}", f"{seconds / best:6.2f}"
        lines.append(f"  {name:{width}}  {ms}  {ratio}  {certificate}")
    return "\n".join(lines)


def machine() -> str:
    """Return one line about processor, load and versions."""
    import numpy
    import torch

    info = Path("/proc/cpuinfo")
    models = [
        line.split(":", 1)[1].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    load = Path("/proc/loadavg")
    busy = load.read_text().split()[0] if load.exists() else "unknown"
    return (
        f"{models[0] if models else platform.processor()}, "
        f"{torch.get_num_threads()} thread, load {busy}; python "
        f"{platform.python_version()}, torch {torch.__version__}, "
        f"numpy {numpy.__version__}"
    )
