"""What the book promises about itself, as functions that return the faults.

Each fault names a page or a file, and the label.  The functions read text only,
so that tests call them without a build; ``executed`` also wants the records.
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .fingerprint import Sources
from .page import Page
from .records import Claim, PageState, origin

CITED = re.compile(r"\((eq:[^()\s]+)\)")


class Book(NamedTuple):
    """The pages, the package's files by module name, and the ledger's rows."""

    pages: list[Page]
    modules: dict[str, str]
    rows: list[dict[str, Any]]


def book(root: Path, pages: Iterable[Page], rows: list[dict[str, Any]]) -> Book:
    """Return the book below ``root`` with these pages and rows."""
    modules = Sources(root / "code").modules
    package = {
        name: m.path.read_text(encoding="utf-8")
        for name, m in modules.items()
        if not name.startswith(("experiments", "benchmarks"))
    }
    return Book(list(pages), package, rows)


def static(b: Book) -> list[str]:
    """Return all faults that the text alone shows."""
    return [fault for rule in RULES for fault in rule(b)]


def unlabelled(b: Book) -> list[str]:
    """Statements without a label."""
    return [
        f"{p.name}, line {line}: this {kind} has no :label:"
        for p in b.pages
        for kind, label, line in p.statements
        if not label
    ]


def unchecked(b: Book) -> list[str]:
    """Statements that no cell of their page checks."""
    return [
        f"{p.name}, line {line}: no cell of the page checks the {kind} {label}"
        for p in b.pages
        for kind, label, line in p.statements
        if label and label not in {c.label for c in p.calls if c.name == "check"}
    ]


def unplaced(b: Book) -> list[str]:
    """Checks whose label is not on their page, or is not a literal."""
    return [
        f"{p.name}, line {call.line}: "
        + (f"check({call.label!r}): the page has no such label" if call.label
           else f"the first argument of {call.name} must be a string")
        for p in b.pages
        for call in p.calls
        if call.label is None or (call.name == "check" and call.label not in p.labels)
    ]  # fmt: skip


def unexecuted(b: Book) -> list[str]:
    """Cells that never run: inside another block, or on a page that is no notebook."""
    return [
        f"{p.name}, line {c.line}: a cell inside another block does not run"
        for p in b.pages
        for c in p.blocks
        if c.name == "code-cell" and not c.outer
    ] + [
        f"{p.name}, line {p.cells[0].line}: cells, but no jupytext header to run them"
        for p in b.pages
        if p.cells and not p.executed
    ]


def kernelless(b: Book) -> list[str]:
    """Notebooks that name no kernel: there a fingerprint has no place."""
    return [
        f"{p.name}: a jupytext header, but no kernelspec beside it"
        for p in b.pages
        if p.executed and not p.front.get("kernelspec")
    ]


def repeated(b: Book) -> list[str]:
    """Labels that stand more than once in the book."""
    where = [(label, p.name) for p in b.pages for label in p.labels]
    often = Counter(label for label, _ in where)
    return [
        f"{', '.join(sorted({n for k, n in where if k == label}))}: "
        f"the label {label} stands {times} times in the book"
        for label, times in sorted(often.items())
        if times > 1
    ]


def uncited(b: Book) -> list[str]:
    """Equations that a module cites and its page does not have.

    A module's page is the chapter of its name; a module without a chapter may cite
    any page.
    """
    at = {label: p.name for p in b.pages for label in p.equations}
    names = {p.name for p in b.pages}
    faults = []
    for module, text in b.modules.items():
        page = "book/" + "/".join(module.split(".")[1:])
        for label in sorted(set(CITED.findall(text))):
            if page in names and at.get(label) != page:
                faults.append(f"{module} cites ({label}), which {page} does not have")
            elif label not in at:
                faults.append(f"{module} cites ({label}), which no page has")
    return faults


def unclaimed(b: Book) -> list[str]:
    """Measurements without a row, and rows whose page measures nothing."""
    ids = [row["id"] for row in b.rows]
    measured = {(p.name, c.label) for p in b.pages for c in p.calls
                if c.name == "measure" and c.label}  # fmt: skip
    names = {p.name for p in b.pages}
    faults = [
        f'{page}: measure("{label}") has no row in claims.toml'
        for page, label in sorted(measured)
        if not fnmatch.filter(ids, label)
    ]
    for key, times in sorted(Counter(ids).items()):
        if times > 1:
            faults.append(f"claims.toml: the id {key} stands {times} times")
    for row in b.rows:
        kind, page = origin(row)
        told = any(p == page and fnmatch.fnmatch(row["id"], k) for p, k in measured)
        if kind not in ("page", "run"):
            faults.append(f"claims.toml, {row['id']}: measured must be page: or run:")
        elif kind == "page" and page in names and not told:
            faults.append(f"claims.toml, {row['id']}: {page} does not measure it")
    return faults


RULES = (unlabelled, unchecked, unplaced, unexecuted, kernelless, repeated, uncited,
         unclaimed)  # fmt: skip


def executed(pages: dict[str, PageState], claims: Iterable[Claim]) -> list[str]:
    """Return the faults that only the outputs show: pictures, measurements, bands."""
    faults = [
        f"{name}, cell {cell}: a picture without alternative text"
        for name, state in sorted(pages.items())
        for cell in state.unread
    ]
    claims = list(claims)
    ids = {c.row["id"] for c in claims}
    faults += [
        f'{name}, cell {r["cell"]}: measure("{r["claim"]}") has no row in claims.toml'
        for name, state in sorted(pages.items())
        for r in state.records
        if r["kind"] == "measure" and r["claim"] not in ids
    ]
    for c in claims:
        where, band = f"claims.toml, {c.row['id']}", c.row["band"]
        kind, page = origin(c.row)
        if c.value is None and kind == "page" and page in pages:
            faults.append(f"{where}: {page} did not measure it")
        elif c.verdict == "outside":
            faults.append(
                f"{where}: measured {c.value:.6g}, outside the band {band}, "
                "and no cause is given (contradicted = …)"
            )
        elif c.inside and c.row.get("contradicted"):
            faults.append(
                f"{where}: said to be contradicted, but {c.value:.6g} lies in {band}"
            )
    return faults
