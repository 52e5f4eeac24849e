"""Measures every page of the built site in a browser and writes REPORT.md.

    python tests/site/report.py [--runs 3] [--site FOLDER] [PAGE …]

Lighthouse runs first and alone, since other work would slow its pages; then the
survey (axe, requests, weights, phones), then the tests of the live figures, whose
differences from the package are recorded while they run.  With pages named, these
alone are measured, and their lines replaced in the report that is there.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
REPORT = HERE / "REPORT.md"
CATEGORIES = ("performance", "accessibility", "best-practices", "seo")

HEAD = """# The site, measured

Written by `make site-report`; every number of this book is measured on its built site. Served by a plain loopback server with gzip; Lighthouse {lighthouse} in its mobile setting (a slow phone and a slow network, simulated), the median of {runs} runs for whatever varies; axe-core {axe} with the rules of WCAG 2.2 AA and its best practices, everything unfolded, in both themes. Chromium: {browser}. Processor: {cpu}, {cores} cores; load when it began: {load:.1f}; Lighthouse's benchmark index of its speed, the median over the pages: {benchmark:.0f}.
"""  # noqa: E501

ANCHOR = """
## Beside other executed books

The best executed Jupyter Book of another field, built with this toolchain and served the same way, beside the worst page of this book in each column.

| | performance | accessibility | best practices | SEO | weight | largest paint |
|---|---|---|---|---|---|---|
| another book | 57–58 | 96–100 | 96 | 92 | 845 kB | 6.6 s |
"""  # noqa: E501


class Compared(NamedTuple):
    """What a test of a live figure compared: how often, and the largest difference."""

    figure: str
    what: str
    cases: list[str]
    differences: list[float]


class Recorder:
    """A plugin of pytest that keeps the differences which tests accepted."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], Compared] = {}
        self.differences: list[float] = []

    def pytest_runtest_setup(self, item: pytest.Function) -> None:
        """Begin a test: what is recorded from now on is its own."""
        name = item.originalname
        doc = (item.function.__doc__ or "").strip().splitlines()
        what = doc[0].rstrip(".") if doc else name[5:].replace("_", " ")
        figure = item.path.stem[5:]
        row = self.found.setdefault((figure, name), Compared(figure, what, [], []))
        row.cases.append(item.name)
        self.differences = row.differences

    def keep(self, actual: Any, expected: Any) -> None:
        """Record the largest difference of two numbers or arrays of them."""
        try:
            pair = [torch.as_tensor(v, dtype=torch.float64) for v in (actual, expected)]
        except (TypeError, ValueError, RuntimeError):
            return  # words, flags, nothing: not numbers
        gap = (pair[0] - pair[1]).abs()
        if gap.numel() and bool(gap.isfinite().all()):
            self.differences.append(float(gap.max()))

    def listen(self) -> None:
        """Hear every comparison by pytest.approx and torch.testing.assert_close."""
        # Sequences and arrays are compared number by number, by this type too.
        scalar = type(pytest.approx(0.0))
        equal, close = scalar.__eq__, torch.testing.assert_close

        def approx(tolerant: Any, actual: Any) -> bool:
            self.keep(actual, tolerant.expected)
            return equal(tolerant, actual)

        def assert_close(actual: Any, expected: Any, **options: Any) -> None:
            self.keep(actual, expected)
            close(actual, expected, **options)

        scalar.__eq__ = approx
        torch.testing.assert_close = assert_close


def live() -> list[Compared]:
    """Run the tests of the live figures; return what they compared."""
    recorder = Recorder()
    recorder.listen()
    status = pytest.main(["-q", str(ROOT / "tests/live")], plugins=[recorder])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise SystemExit("a test of a live figure fails: no report")
    return list(recorder.found.values())


def measured(script: str, site: Path, *arguments: str) -> dict[str, Any]:
    """Run a script of this folder on the site; return what it found."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = ["node", HERE / f"{script}.mjs", "--site", site, "--out", out]
        subprocess.run([*command, *arguments], check=True)
        return json.loads(out.read_text(encoding="utf-8"))


def kB(count: float) -> str:
    """Return bytes in thousands."""
    return f"{count / 1000:.0f}"


def weights(load: dict[str, Any]) -> tuple[int, int]:
    """Return the bytes of a page before its figures, and of its figures."""
    kinds = {key: n for key, n in load["bytes"].items() if key != "requests"}
    figures = kinds.pop("image", 0)
    return sum(kinds.values()), figures


def row(name: str, speed: dict[str, Any], seen: dict[str, Any]) -> str:
    """Return a page's line in the table."""
    light, dark = seen["light"], seen["dark"]
    before, figures = weights(light)
    loads = [seen[key] for key in ("light", "dark", "disk") if key in seen]
    outside = sum(len(load["outside"]) for load in loads)
    told = sum(len(load[key]) for load in loads
               for key in ("console", "errors", "failed", "policy"))  # fmt: skip
    phone = light["phone"]
    cells = [
        name.removeprefix("book/").removesuffix(".html"),
        *(f"{speed[c]:.0f}" for c in CATEGORIES),
        *(f"{speed[key] / 1000:.1f}" for key in ("fcp", "lcp", "si")),
        f"{speed['tbt']:.0f}",
        f"{max(speed['cls'], *(load['shift'] for load in loads)):.3f}",
        kB(before),
        kB(figures),
        f"{light['bytes']['requests']}",
        f"{outside}",
        f"{told}",
        f"{len(light['violations'])} / {len(dark['violations'])}",
        f"{max(0, phone['needs'] - phone['width'])}",
    ]
    return f"| {' | '.join(cells)} |"


COLUMNS = (
    "page", "perf.", "access.", "best", "SEO", "first paint, s", "largest paint, s",
    "speed index, s", "blocking, ms", "shift", "before figures, kB", "figures, kB",
    "requests", "outside", "complaints", "axe light / dark", "over 360 px",
)  # fmt: skip


def table(columns: tuple[str, ...], rows: list[str]) -> str:
    """Return a table in Markdown; all columns but the first are numbers."""
    rule = "|---|" + "---:|" * (len(columns) - 1)
    return "\n".join([f"| {' | '.join(columns)} |", rule, *rows])


def worst(rows: list[str]) -> str:
    """Return the worst value in each column of the comparison, from the lines."""
    cells = [
        dict(zip(COLUMNS, row.strip("| ").split(" | "), strict=True)) for row in rows
    ]
    low = [str(min(int(cell[c]) for cell in cells)) for c in COLUMNS[1:5]]
    weight = max(int(c["before figures, kB"]) + int(c["figures, kB"]) for c in cells)
    paint = max(float(cell["largest paint, s"]) for cell in cells)
    told = [*low, f"{weight} kB (with all figures)", f"{paint:.1f} s"]
    return f"| this book, its worst page | {' | '.join(told)} |"


def renewed(text: str, rows: list[str]) -> str:
    """Return a report in which some pages have new lines."""
    for row in rows:
        name = row.partition(" | ")[0]
        line = re.compile(rf"^{re.escape(name)} \| .*$", re.M)
        if not line.search(text):
            raise SystemExit(f"the report has no {name.strip('| ')}: measure all pages")
        text = line.sub(row.replace("\\", r"\\"), text)
    pages = text.partition("## Pages")[2].partition("\n## ")[0]
    lines = [line for line in pages.splitlines() if line.startswith("| ")][1:]
    return re.sub(r"^\| this book, .*$", lambda _: worst(lines), text, flags=re.M)


def figures(found: list[Compared]) -> str:
    """Return the table of the live figures' tests."""
    rows = []
    for one in sorted(found):
        gap = f"{max(one.differences):.1e}" if one.differences else "–"
        cells = [
            one.figure,
            one.what,
            str(len(one.cases)),
            str(len(one.differences)),
            gap,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    head = "| figure | what is compared | cases | numbers | largest difference |"
    return "\n".join([head, "|---|---|---:|---:|---:|", *rows])


def totals(site: Path) -> Iterator[str]:
    """Yield lines on the whole site: its files, its archive, what is taken away."""
    files = [path for path in site.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    yield f"- The folder: {size / 1e6:.1f} MB in {len(files)} files."
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(shutil.make_archive(f"{folder}/site", "zip", site))
        yield f"- The folder as one zip: {packed.stat().st_size / 1e6:.1f} MB."
    for path in sorted([*site.rglob("*.zip"), *site.glob("*.pdf")]):
        name = path.relative_to(site).as_posix()
        yield f"- `{name}`: {path.stat().st_size / 1e6:.1f} MB."


def versions() -> dict[str, str]:
    """Return the versions of the tools, as pinned."""
    pins = json.loads((HERE / "package.json").read_text(encoding="utf-8"))
    return {"lighthouse": pins["devDependencies"]["lighthouse"],
            "axe": pins["devDependencies"]["axe-core"]}  # fmt: skip


def looked(
    site: Path, runs: int, chosen: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """Measure pages; return what measured them, and their lines."""
    lighthouse = measured("lighthouse", site, "--runs", str(runs), *chosen)
    survey = measured("survey", site, "--thorough", *chosen)["pages"]
    speed = lighthouse["pages"]
    return lighthouse, [row(n, page, survey[n]) for n, page in speed.items()]


def report(site: Path, runs: int) -> str:
    """Measure all pages and figures, and return the report."""
    machine, seen = looked(site, runs, [])
    parts = [
        HEAD.format(**{**machine, **versions(), "runs": runs}),
        "## Pages",
        "Times are Lighthouse's, of the simulated phone. *Before figures*: all bytes over the wire but pictures; *figures*: all pictures of the page, also those below the window. *Requests* are those of the page with all its pictures, *outside* those that left the site, in all loads. *Complaints*: messages on the console, exceptions, failed loads and breaches of the content policy, in all loads. *Shift*: the largest, over Lighthouse, wide and narrow windows. *axe*: rules violated. *Over 360 px*: by how much a phone of that width would scroll sideways.",  # noqa: E501
        table(COLUMNS, seen),
        ANCHOR.strip() + "\n" + worst(seen),
        "## Live figures",
        "Each figure's numbers, computed by its script in V8, against the Python package (`tests/live`). *Numbers*: how many comparisons; a dash where a test judges by a standard error, an order or a sign instead.",  # noqa: E501
        figures(live()),
        "## The whole",
        "\n".join(totals(site)),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main() -> None:
    """Write the report, at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--site", type=Path, default=ROOT / "_build/html")
    parser.add_argument("--out", type=Path, default=REPORT)
    parser.add_argument("pages", nargs="*")
    given = parser.parse_args()
    if given.pages:
        _, rows = looked(given.site, given.runs, given.pages)
        text = renewed(given.out.read_text(encoding="utf-8"), rows)
    else:
        text = report(given.site, given.runs)
    part = given.out.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, given.out)
    sys.stdout.write(f"written: {given.out}\n")


if __name__ == "__main__":
    main()
