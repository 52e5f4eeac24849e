"""The boards of the end matter: {checks}, {ledger}, {runs} and {page-times}.

A page that holds one is read again whenever what it shows has changed.
"""

import platform
import re
import statistics
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from ..numbers import count, number, plural, seconds, small
from ..text import records
from ..text.page import Page
from ..text.records import Claim, Record, Run, claims, states

WORDS = {
    "reproduced": "✓ reproduced",
    "contradicted": "✗ contradicted",
    "pending": "… pending",
    "outside": "✗ outside the band",
}


class Board(SphinxDirective):
    """A directive that shows what the build has collected.

    Attributes:
        follows: Under this name the page's metadata remember that it holds one.
    """

    has_content = False
    follows: ClassVar[str] = "press_board"

    def run(self) -> list[nodes.Node]:
        """Remember that this page shows records, and show them."""
        digest = getattr(self.env, "press_digest", "")
        self.env.metadata[self.env.docname][self.follows] = digest
        return self.show()

    @abstractmethod
    def show(self) -> list[nodes.Node]:
        """Return the board."""

    def markdown(self, text: str) -> list[nodes.Node]:
        """Return parsed text."""
        node = nodes.Element()
        lines = StringList(text.splitlines(), source=self.get_source_info()[0])
        self.state.nested_parse(lines, self.content_offset, node)
        return list(node.children)

    def table(
        self, head: list[str], rows: list[list[str]], *classes: str
    ) -> nodes.Node:
        """Return a table whose cells are Markdown, in a box that scrolls."""
        table = nodes.table(classes=["pf-table", *classes])
        group = nodes.tgroup(cols=len(head))
        group += [nodes.colspec(colwidth=1) for _ in head]
        body = nodes.tbody()
        body += [self.row(row) for row in rows]
        group += [nodes.thead("", self.row(head)), body]
        table += group
        return nodes.container("", table, classes=["pf-scroll"])

    def row(self, cells: list[str]) -> nodes.row:
        """Return a row of a table."""
        row = nodes.row()
        row += [nodes.entry("", *self.markdown(cell)) for cell in cells]
        return row

    def link(self, name: str) -> str:
        """Return a link to a page, or its name where the page is not there."""
        there = name in self.env.found_docs
        return f"{{doc}}`/{name}`" if there else f"`{name.removeprefix('book/')}`"


class Checks(Board):
    """The dashboard: every executed check, page by page."""

    def show(self) -> list[nodes.Node]:
        """Return the counts and a table for each page."""
        found = {n: [r for r in s.records if r.get("kind") == "check"]
                 for n, s in states(self.env).items()}  # fmt: skip
        found = {n: r for n, r in found.items() if r}
        order = [n for n in in_order(self.env) if n in found]
        total = sum(map(len, found.values()))
        passed = sum(r["passed"] for rs in found.values() for r in rs)
        labels = {(n, r["label"]) for n, rs in found.items() for r in rs}
        text = (
            f"**{plural(total, 'check')}** of {plural(len(labels), 'label')} "
            f"on {plural(len(found), 'page')}: **{passed} passed**, "
            f"{total - passed} failed."
        )
        return [
            *self.markdown(text),
            *(n for name in order for n in self.of(name, found[name])),
        ]

    def of(self, name: str, found: list[Record]) -> list[nodes.Node]:
        """Return a page's checks."""
        text = (Path(self.env.srcdir) / f"{name}.md").read_text(encoding="utf-8")
        page = Page(name, text)
        head = ["Holds", "Statement", "Compared", "Error", "Tolerance", "Size"]
        rows = [
            [
                mark(r),
                place(page, r["label"]),
                compared(r),
                small(r["error"]),
                small(r["tolerance"]) + (" (4 s.e.)" if r["se"] else ""),
                count(r["n"]),
            ]
            for r in found
        ]
        title = f"**{self.link(name)}**, {plural(len(found), 'check')}"
        return [*self.markdown(title), self.table(head, rows, "pf-checks")]


def in_order(env: Any) -> list[str]:
    """Return the pages in the order of _toc.yml."""
    toc = env.external_site_map

    def below(name: str) -> Iterator[str]:
        yield name
        for child in toc[name].child_files():
            yield from below(child)

    order = [name for name in below(toc.root.docname) if name in env.found_docs]
    return order + sorted(env.found_docs - set(order))


def mark(r: Record) -> str:
    """Return the verdict of a check."""
    return "✓" if r["passed"] else "✗"


def compared(r: Record) -> str:
    """Return what a check compared, in words and numbers."""
    relation = {"==": "=", "<=": "≤", ">=": "≥"}.get(r["relation"], r["relation"])
    sides = f"{number(r['left'])} {relation} {number(r['right'])}"
    return f"{escaped(r['what'])}: {sides}" if r["what"] else sides


def escaped(text: str) -> str:
    """Return plain text as Markdown that shows it."""
    return re.sub(r"([\\`*_{}\[\]<>|$#~])", r"\\\1", text)


def place(page: Page, label: str) -> str:
    """Return a reference to a label, in the way of its kind."""
    for block in page.blocks:
        if block.options.get("label") == label and block.name.startswith("prf:"):
            title = f", {block.argument}" if block.argument else ""
            return f"{{prf:ref}}`{label}`{title}"
    if label in page.equations:
        return f"equation {{eq}}`{label}`"
    return (
        f"{{ref}}`{label}`"
        if label.startswith("ex:")
        else f"{{ref}}`{label} <{label}>`"
    )


class Ledger(Board):
    """The claims of the papers beside our measurements."""

    def show(self) -> list[nodes.Node]:
        """Return the counts and a table for each paper."""
        found = claims(
            self.env, records.rows(Path(self.env.srcdir) / "book/claims.toml")
        )
        if not found:
            return self.markdown("No claim is on record yet.")
        papers = list(dict.fromkeys(c.row["paper"] for c in found))
        tally = {v: sum(c.verdict == v for c in found) for v in WORDS}
        text = (
            f"**{plural(len(found), 'claim')}** of {plural(len(papers), 'source')}: "
            f"**{tally['reproduced']} reproduced**, "
            f"{tally['contradicted']} contradicted, {tally['pending']} pending."
        )
        return [*self.markdown(text), *(n for p in papers for n in self.of(p, found))]

    def of(self, paper: str, found: list[Claim]) -> list[nodes.Node]:
        """Return the claims of one paper."""
        head = ["Verdict", "Claim", "Published", "Ours", "Ratio", "Accepted"]
        rows = [
            [
                verdict(c),
                self.claim(c),
                self.published(c),
                self.ours(c),
                ratio(c),
                band(c),
            ]
            for c in found
            if c.row["paper"] == paper
        ]
        title = self.markdown(f"{{cite:t}}`{paper}`")
        return [*title, self.table(head, rows, "pf-ledger")]

    def claim(self, c: Claim) -> str:
        """Return the claim, where it stands, and what differs."""
        where = f" ({c.row['where']})" if c.row.get("where") else ""
        differs = f"\n\n*Differs:* {c.row['differs']}" if c.row.get("differs") else ""
        return f"{c.row['claim']}{where}{differs}"

    def published(self, c: Claim) -> str:
        """Return the published number and where it was read."""
        if c.row.get("published") is None:
            return f"({c.row['kind']})"
        source = f", by {{cite:t}}`{c.row['source']}`" if c.row.get("source") else ""
        unit = c.row.get("unit", "")
        return f"{number(c.row['published'])} {unit}{source}".strip()

    def ours(self, c: Claim) -> str:
        """Return the measured value, its spread, and the page or run that gives it."""
        kind, name = records.origin(c.row)
        origin = self.link(name) if kind == "page" else f"run `{name}`"
        if c.value is None:
            return origin
        spread = f" ± {small(c.sd)}" if c.sd is not None else ""
        size = f" (n = {count(c.n)})" if c.n else ""
        made = f", on {c.machine}" if c.machine else ""
        unit = c.row.get("unit", "")
        return f"{number(c.value)}{spread} {unit}{size}\n\n{origin}{made}"


def ratio(c: Claim) -> str:
    """Return ours over published, where both are there and it means something."""
    published = c.row.get("published")
    return number(c.value / published, 3) if c.value is not None and published else ""


def band(c: Claim) -> str:
    """Return the accepted band."""
    lo, hi = c.row["band"]
    return f"{number(lo, 8)} to {number(hi, 8)}"


def verdict(c: Claim) -> str:
    """Return the verdict, with the likely cause of a contradiction."""
    cause = f": {c.row['contradicted']}" if c.verdict == "contradicted" else ""
    return WORDS[c.verdict] + cause


class Runs(Board):
    """The runs that the experiments name, made or pending."""

    def show(self) -> list[nodes.Node]:
        """Return the counts and the table."""
        root = Path(self.env.srcdir)
        found = records.runs(root / "code/experiments", root / "code/runs")
        if not found:
            return self.markdown("No experiment names a run yet.")
        pending = sum(r.pending for r in found)
        made = len(found) - pending
        text = f"**{plural(len(found), 'run')}**: {made} made, {pending} pending."
        head = ["Run", "Chapter", "Machine", "Seeds", "Time", "PyTorch"]
        return [*self.markdown(text), self.table(head, [self.of(r) for r in found])]

    def of(self, r: Run) -> list[str]:
        """Return the row of one run."""
        part, name, *_ = r.name.split("/")
        shared = f"book/back/{part}"  # a module of no part, as the metrics
        page = self.link(shared if shared in self.env.found_docs
                         else f"book/{part}/{name}")  # fmt: skip
        if r.pending:
            return [f"`{r.name}`", page, "*pending*", "", "", ""]
        return [
            f"`{r.name}`",
            page,
            r.machine,
            str(max(map(len, r.metrics.values()), default=0)),
            seconds(r.provenance["seconds"]),
            str(r.provenance.get("torch", "")),
        ]


class PageTimes(Board):
    """How long each page's cells took, on which machine."""

    def show(self) -> list[nodes.Node]:
        """Return the machine and the table, slowest page first."""
        known = {n: s for n, s in states(self.env).items() if s.seconds > 0.05}
        total = sum(s.seconds for s in known.values())
        median = statistics.median([s.seconds for s in known.values()] or [0.0])
        text = (
            f"{plural(len(known), 'page')}, {seconds(total)} in all and "
            f"{seconds(median)} in the median, one thread a page. The pages were "
            f"put together on {this_machine()}."
        )
        order = sorted(known, key=lambda n: -known[n].seconds)
        rows = [[self.link(n), seconds(known[n].seconds)] for n in order]
        return [*self.markdown(text), self.table(["Page", "Time"], rows)]


def this_machine() -> str:
    """Return this build's processor and Python; a kept page may have run elsewhere."""
    info = Path("/proc/cpuinfo")
    names: Iterable[str] = re.findall(r"model name\s*:\s*(.+)", info.read_text()) \
        if info.exists() else []  # fmt: skip
    processor = next(iter(names), platform.processor() or platform.machine())
    return f"{processor}, Python {platform.python_version()}"
