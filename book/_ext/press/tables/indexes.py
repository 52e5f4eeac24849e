"""The indexes at the end of the book: ``{statements}`` and ``{symbols}``.

Both are read from the pages' sources, and read again in every build that reads
anything, since any page may change them.
"""

import re
from collections.abc import Iterator
from functools import cache, cached_property
from itertools import groupby
from typing import Any, NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform

from ..numbers import plural
from ..tex.macros import cells_of
from ..text.page import Page
from .boards import Board, in_order
from .needs import anchor

NOTATION = "book/notation"
KINDS = ("definition", "theorem", "proposition", "lemma", "corollary", "algorithm",
         "remark", "example")  # fmt: skip
MATH = re.compile(r"\$\$.+?\$\$|\$[^$\n]+?\$", re.S)
FORMULA = re.compile(r"^\$(.+?)\$")
MACRO = re.compile(r"`(\\[A-Za-z]+)`")
#: Where a symbol lives that the notation page limits ("in splines: …").
SCOPES = {
    "in adversarial games": "gans/vanilla gans/wasserstein",
    "in continuous flows": "flows/continuous",
    "in convergence": "diffusion/convergence",
    "in couplings": "flows/coupling",
    "in denoising": "diffusion/denoising",
    "in denoising autoencoders": "diffusion/score",
    "in dequantisation": "flows/coupling",
    "in diffusion": "diffusion/",
    "in diffusions": "diffusion/",
    "in divergences": "objectives/divergences",
    "in entropic transport": "ot/sinkhorn",
    "in estimation": "vae/estimation",
    "in flow matching": "flows/matching",
    "in flows": "flows/",
    "in generalization": "diffusion/generalization",
    "in Girsanov's theorem": "diffusion/likelihood",
    "in Glow": "flows/glow",
    "in guidance": "diffusion/samplers",
    "in likelihoods of diffusions": "diffusion/likelihood",
    "in Markov chains": "flows/mcmc",
    "in memorisation": "diffusion/generalization diffusion/reproducibility",
    "in optimal transport": "ot/",
    "in planar flows": "flows/planar",
    "in samplers": "diffusion/samplers",
    "in score matching": "diffusion/score",
    "in sliced transport": "ot/sliced",
    "in splines": "flows/spline",
    "in style generators": "gans/stylegan",
    "in the Wasserstein game": "gans/wasserstein",
    "in trace estimates": "flows/continuous",
    "in training dynamics": "diffusion/dynamics",
    "for grey levels": "diffusion/likelihood",
}


class Statement(NamedTuple):
    """A statement as its page writes it, and whether a proof follows."""

    label: str
    title: str
    proved: bool


class Symbol(NamedTuple):
    """A row of the notation page: section, first formula, macro, meaning, anchor."""

    section: str
    tex: str
    macro: str
    meaning: str
    anchor: str

    @property
    def scope(self) -> list[str]:
        """The pages, or beginnings of their names, that the row limits itself to."""
        words = re.match(r"((?:in|for) [^:,]+)(?::|, )", self.meaning)
        transport = "optimal transport" in self.meaning[-30:]
        key = words[1] if words else "in optimal transport" if transport else ""
        return [f"book/{place}" for place in SCOPES.get(key, "").split()]

    def used(self, page: Page) -> bool:
        """Return whether a page uses the symbol in a formula."""
        scope = self.scope
        if scope and not page.name.startswith(tuple(scope)):
            return False
        wanted = self.macro or self.tex.split(", ")[0]
        end = r"(?![A-Za-z])" if wanted[-1].isalpha() else ""
        begin = r"(?<![A-Za-z\\])" if wanted[0].isalpha() else ""
        return bool(re.search(begin + re.escape(wanted) + end, formulas(page)))


@cache
def formulas(page: Page) -> str:
    """Return all that a page sets as mathematics."""
    fenced = ["\n".join(b.body) for b in page.blocks if b.name == "math"]
    return "\n".join([*MATH.findall(page.text), *fenced])


def statements(page: Page) -> Iterator[Statement]:
    """Yield the labelled statements of a page in its order."""
    found = [b for b in page.blocks if b.name.startswith("prf:")]
    for block, after in zip(found, [*found, None][1:], strict=True):
        if block.name[4:] in KINDS and "label" in block.options:
            proved = after is not None and after.name == "prf:proof"
            yield Statement(block.options["label"], block.argument, proved)


def symbols(text: str) -> Iterator[Symbol]:
    """Yield the rows of the notation page."""
    seen: set[str] = set()
    section = ""
    for line in text.splitlines():
        section = line.removeprefix("## ") if line.startswith("## ") else section
        cells = [c.strip() for c in cells_of(line.strip().strip("|"))]
        found = FORMULA.match(cells[0])
        if not line.startswith("|") or not found or len(cells) < 4:
            continue
        macro = MACRO.match(cells[1])
        tex = found[1].replace(r"\|", "|")
        name = slug(tex, seen)
        yield Symbol(section, tex, macro[1] if macro else "", cells[3], name)


def slug(tex: str, seen: set[str]) -> str:
    """Return an anchor for a formula, another one for each that looks the same."""
    base = "symbol-" + re.sub(r"[^A-Za-z0-9]+", "-", tex).strip("-")
    name, k = base, 2
    while name in seen:
        name, k = f"{base}-{k}", k + 1
    seen.add(name)
    return name


class Rows(SphinxPostTransform):
    """Give each row of the notation page an anchor."""

    default_priority = 200

    def run(self, **kwargs: Any) -> None:
        """Name the rows as ``symbols`` does."""
        if self.env.docname != NOTATION:
            return
        seen: set[str] = set()
        for row in self.document.findall(nodes.row):
            first = next(iter(row.children[0].findall(nodes.math)), None)
            if first is not None and len(row.children) >= 4:
                row["ids"] = [slug(first.astext(), seen)]


class Index(Board):
    """A directive that shows something of every page."""

    follows = "press_index"

    @cached_property
    def pages(self) -> list[Page]:
        """The pages of the book, in its order."""
        root = self.env.srcdir
        return [
            Page(name, (root / f"{name}.md").read_text(encoding="utf-8"))
            for name in in_order(self.env)
            if (root / f"{name}.md").exists()
        ]

    def to(self, page: str, target: str, text: str) -> nodes.paragraph:
        """Return a link to an anchor of a page."""
        uri = self.env.app.builder.get_relative_uri(self.env.docname, page)
        link = nodes.reference("", text, refuri=f"{uri}#{target}", internal=True)
        return nodes.paragraph("", "", link)

    def cells(self, *cells: str | list[nodes.Node]) -> nodes.row:
        """Return a row of Markdown and nodes."""
        row = nodes.row()
        row += [nodes.entry("", *(self.markdown(c) if isinstance(c, str) else c))
                for c in cells]  # fmt: skip
        return row

    def filled(self, head: list[str], rows: list[nodes.row]) -> nodes.Node:
        """Return a table with these rows."""
        box = self.table(head, [], "pf-index")
        next(iter(box.findall(nodes.tbody))).extend(rows)
        return box


class Statements(Index):
    """The index of statements, page by page."""

    def show(self) -> list[nodes.Node]:
        """Return the count and a table for each page."""
        found = {page: list(statements(page)) for page in self.pages}
        found = {page: some for page, some in found.items() if some}
        total = sum(map(len, found.values()))
        text = f"**{plural(total, 'statement')}** on {plural(len(found), 'page')}."
        shown = [self.of(page, some) for page, some in found.items()]
        return [*self.markdown(text), *(node for nodes_ in shown for node in nodes_)]

    def of(self, page: Page, found: list[Statement]) -> list[nodes.Node]:
        """Return the statements of one page."""
        checked = {call.label for call in page.calls if call.name == "check"}
        rows = [self.one(page.name, s, s.label in checked) for s in found]
        title = self.markdown(f"**{self.link(page.name)}**")
        return [*title, self.filled(["Number", "Statement", "Proof", "Check"], rows)]

    def one(self, page: str, s: Statement, checked: bool) -> nodes.row:
        """Return the row of one statement."""
        proof = [self.to(page, f"proof:{s.label}", "proof")] if s.proved else ""
        check = [self.to(page, f"check:{s.label}", "check")] if checked else ""
        return self.cells(f"{{prf:ref}}`{s.label}`", s.title, proof, check)


class Symbols(Index):
    """The index of symbols: where each is used, and the symbols of each page."""

    def show(self) -> list[nodes.Node]:
        """Return the tables: by sections of the notation, then by parts of the book."""
        notation = next(p for p in self.pages if p.name == NOTATION)
        found = list(symbols(notation.text))
        pages = [p for p in self.pages if p.name.count("/") == 2
                 and not p.name.startswith("book/back/")]  # fmt: skip
        shown: list[nodes.Node] = []
        for section, some in groupby(found, lambda s: s.section):
            rows = [self.of(s, [p for p in pages if s.used(p)]) for s in some]
            shown += self.markdown(f"**{section}: where each is used**")
            shown.append(self.filled(["Symbol", "Meaning", "Pages"], rows))
        for part, chapters in groupby(pages, lambda p: p.name.rpartition("/")[0]):
            rows = [self.on(p, [s for s in found if s.used(p)]) for p in chapters]
            shown += self.markdown(f"**{self.link(f'{part}/index')}: its symbols**")
            shown.append(self.filled(["Page", "Symbols"], rows))
        return shown

    def of(self, s: Symbol, pages: list[Page]) -> nodes.row:
        """Return the row of a symbol."""
        many = "throughout" if len(pages) > 24 else ""
        links = many or ", ".join(self.link(p.name) for p in pages)
        return self.cells([self.symbol(s)], s.meaning, links)

    def on(self, page: Page, found: list[Symbol]) -> nodes.row:
        """Return the row of a page."""
        line = nodes.paragraph()
        for k, s in enumerate(found):
            line += [nodes.Text(", ")] if k else []
            line += self.symbol(s).children
        row = self.cells(self.link(page.name), [line])
        row["ids"] = [anchor(page.name)]
        return row

    def symbol(self, s: Symbol) -> nodes.paragraph:
        """Return the symbol as a link to its row of the notation page."""
        box = self.to(NOTATION, s.anchor, "")
        link = box.children[0]
        link["reftitle"] = s.tex  # a formula alone is no name
        link[:] = [nodes.math(s.tex, s.tex)]
        return box


def renewed(app: Sphinx, env: BuildEnvironment, names: list[str]) -> None:
    """Read the indexes again when any page is read (env-before-read-docs)."""
    if names:
        shown = {n for n, meta in env.metadata.items() if Index.follows in meta}
        names += sorted((shown & env.found_docs) - set(names))


def checks(
    app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Give the first check of each label an anchor (html-page-context)."""
    seen: set[str] = set()

    def named(match: re.Match[str]) -> str:
        label = match[2]
        known = label in seen
        seen.add(label)
        return match[0] if known else f'<p id="check:{label}"{match[1]}{label}'

    body = context.get("body")
    if body and "pf-check" in body:
        pattern = r'<p( class="pf-check[^>]*>. )([^\s<]+:[^\s<,:]+)'
        context["body"] = re.sub(pattern, named, body)


def connect(app: Sphinx) -> None:
    """Connect the indexes to Sphinx."""
    app.add_directive("statements", Statements)
    app.add_directive("symbols", Symbols)
    app.add_post_transform(Rows)
    app.connect("env-before-read-docs", renewed, priority=600)
    app.connect("html-page-context", checks)
