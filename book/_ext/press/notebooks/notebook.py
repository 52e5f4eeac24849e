r"""An executed page as a Jupyter notebook, written from its resolved doctree.

Jupyter knows Markdown, LaTeX and a little HTML, and none of the book's directives.
So a statement becomes a quotation with its number, a proof and a solution fold,
a citation keeps its reference at the end, an equation its number as a \tag, and
the book's macros are expanded in every formula, so that a notebook reads alike in
Jupyter, Colab, an editor and on a code host.  Outputs are left out: they are the
reader's to make.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urljoin

from docutils import nodes

from ..tex.expand import expanded
from ..tex.formulas import asked
from ..tex.macros import Macro

SPECIAL = re.compile(r"([\\`*_<$])")
STATEMENT = "proof"  # the class of statements, and of proofs
FOLD = "<details>\n<summary>{}</summary>\n\n{}\n\n</details>"
MARKS = {"emphasis": "*", "strong": "**", "title_reference": "*"}
SKIPPED = (nodes.comment, nodes.target, nodes.substitution_definition, nodes.citation)


class Cell(NamedTuple):
    """A code cell: its source, its tags, and whether it opens folded."""

    source: str
    tags: list[str]
    folded: bool = False


Piece = str | Cell  # a block of Markdown, or a code cell


class Numbers(NamedTuple):
    """The numbers of a page's sections, statements and exercises, by their id."""

    sections: dict[str, tuple[int, ...]]
    figures: dict[str, dict[str, tuple[int, ...]]]

    def section(self, ids: list[str], *, first: bool) -> str:
        """Return the number of a section, "2.1. " or ""; ``first``: of the page."""
        keys = [f"#{key}" for key in ids] + [""] * first
        return next((dotted(n) + ". " for k in keys if (n := self.sections.get(k))), "")

    def figure(self, node: nodes.Element) -> str:
        """Return the number of a statement or exercise, "2.1.3" or ""."""
        found = [n for table in self.figures.values()
                 for key in node["ids"] if (n := table.get(key))]  # fmt: skip
        return dotted(found[0]) if found else ""


def dotted(number: Iterable[int]) -> str:
    """Return 2.1.3 for (2, 1, 3)."""
    return ".".join(map(str, number))


class Writer:
    """Writes the pieces of one page.

    Args:
        address: Of the page on the site, absolute; "" where none is configured, and
            then links to other pages are words.
        macros: The macros of the formulas.
        numbers: Of the page's sections and statements.
    """

    def __init__(
        self, address: str, macros: dict[str, Macro], numbers: Numbers
    ) -> None:
        self.address = address
        self.macros = macros
        self.numbers = numbers
        self.cited: dict[str, None] = {}

    def pieces(self, node: nodes.Node) -> Iterator[Piece]:
        """Yield a node of block level as Markdown and cells."""
        if isinstance(node, SKIPPED) or not isinstance(node, nodes.Element):
            return
        if node.get("nb_element") == "cell_code":
            yield from cells(node)
        elif write := getattr(self, f"do_{kind(node)}", None):
            yield from write(node)
        elif isinstance(node, nodes.Inline | nodes.TextElement):
            yield self.inline(node).strip()
        else:
            yield from self.below(node)

    def below(self, node: nodes.Element) -> Iterator[Piece]:
        """Yield the pieces of a node's children."""
        for child in node.children:
            yield from self.pieces(child)

    def text(self, node: nodes.Element) -> str:
        """Return the pieces of a node's children as one text, without cells."""
        return "\n\n".join(p for p in self.below(node) if isinstance(p, str) and p)

    def do_section(self, node: nodes.Element) -> Iterator[Piece]:
        """A heading with its number, and what it heads; a statement has no heading."""
        depth = sum(isinstance(n, nodes.section) for n in ancestors(node))
        for child in node.children:
            if isinstance(child, nodes.title):
                number = self.numbers.section(node["ids"], first=depth == 0)
                yield f"{'#' * (depth + 1)} {number}{self.inline(child)}"
            else:
                yield from self.pieces(child)

    def do_statement(self, node: nodes.Element) -> Iterator[Piece]:
        """> **Theorem 2.1 (title).** What it says."""
        name = node.get("realtype", node.get("type", "")).title()
        title = next((self.inline(t).strip() for t in node.findall(nodes.title)), "")
        head = " ".join(filter(None, [name, self.numbers.figure(node), title]))
        body = "\n\n".join(
            p for child in node.children if not isinstance(child, nodes.title)
            for p in self.pieces(child) if isinstance(p, str))  # fmt: skip
        yield quoted(f"**{head}.** {body}")

    def do_proof(self, node: nodes.Element) -> Iterator[Piece]:
        """A proof: in the text, or folded where the page folds it."""
        text = re.sub(r"\A\*?Proof\.?\*?\s*", "", self.text(node))
        folds = any(
            "dropdown" in n.get("classes", []) for n in node.findall(nodes.Element)
        )
        yield FOLD.format("Proof", text) if folds else f"*Proof.* {text}"

    def do_solution_node(self, node: nodes.Element) -> Iterator[Piece]:
        """The words fold; a cell among them stands in the open, its source folded."""
        name, words = "Solution", []
        for piece in [*self.solved(node), Cell("", [])]:
            if isinstance(piece, str):
                words.append(piece)
                continue
            if words:
                yield FOLD.format(name, "\n\n".join(words))
                name, words = "Solution, continued", []
            if piece.source:
                yield piece._replace(folded=True)

    def solved(self, node: nodes.Element) -> Iterator[Piece]:
        """Yield the pieces of a solution, without its title."""
        for child in node.children:
            if not isinstance(child, nodes.title):
                yield from self.pieces(child)

    def do_math_block(self, node: nodes.Element) -> Iterator[Piece]:
        r"""$$ … \tag{4.1} $$ on one line, which survives quotations and lists."""
        yield f"$$ {self.display(node)} $$"

    def display(self, node: nodes.Element) -> str:
        """Return the TeX of a displayed formula, with its number."""
        tex = " ".join(expanded(asked(node)[0], self.macros).split())
        table = self.numbers.figures.get("displaymath", {})
        number = next((dotted(table[k]) for k in node["ids"] if k in table), "")
        return rf"{tex} \tag{{{number}}}" if number else tex

    def do_literal_block(self, node: nodes.Element) -> Iterator[Piece]:
        """A fenced block; code of the package says which file it is from."""
        language = node.get("language", "")
        source = PurePosixPath(node.get("source") or "")
        if "code" in source.parts:
            place = source.parts[source.parts.index("code") + 1 :]
            yield f"From `{'/'.join(place)}`:"
        fence = "```"
        while fence in node.astext():
            fence += "`"
        name = "python" if language in ("default", "ipython3", "python") else language
        yield f"{fence}{name}\n{node.astext().rstrip()}\n{fence}"

    def do_bullet_list(self, node: nodes.Element) -> Iterator[Piece]:
        """A list of points."""
        yield "\n".join(item("- ", self.text(child)) for child in elements(node))

    def do_enumerated_list(self, node: nodes.Element) -> Iterator[Piece]:
        """A list with numbers."""
        start = node.get("start", 1)
        yield "\n".join(item(f"{k}. ", self.text(child))
                        for k, child in enumerate(elements(node), start))  # fmt: skip

    def do_definition_list(self, node: nodes.Element) -> Iterator[Piece]:
        """A list of terms, each with what it means."""
        points = []
        for entry in elements(node):
            term, *rest = elements(entry)
            meaning = "\n\n".join(self.text(part) for part in rest)
            points.append(item("- ", f"**{self.inline(term).strip()}**: {meaning}"))
        yield "\n".join(points)

    def do_block_quote(self, node: nodes.Element) -> Iterator[Piece]:
        """A quotation."""
        yield quoted(self.text(node))

    def do_rubric(self, node: nodes.Element) -> Iterator[Piece]:
        """A heading that is in no table of contents."""
        yield f"**{self.inline(node).strip()}**"

    def do_table(self, node: nodes.Element) -> Iterator[Piece]:
        """A table with bars."""
        rows = [[self.entry(cell) for cell in elements(row)]
                for row in node.findall(nodes.row)]  # fmt: skip
        rule = ["---"] * max(map(len, rows), default=0)
        yield "\n".join(f"| {' | '.join(r)} |" for r in [rows[0], rule, *rows[1:]])

    def entry(self, node: nodes.Element) -> str:
        """Return a table's cell on one line; bars in formulas get their TeX names."""
        text = " ".join(self.text(node).split())
        text = re.sub(r"\$[^$]*\$", lambda m: barless(m[0]), text)
        return re.sub(r"(?<!\\)\|", r"\\|", text)

    def do_raw(self, node: nodes.Element) -> Iterator[Piece]:
        """HTML, which Jupyter shows as it is; other formats are not for it."""
        if "html" in node.get("format", ""):
            yield node.astext().strip()

    def do_compound(self, node: nodes.Element) -> Iterator[Piece]:
        """The contents of a part are the site's."""
        if "toctree-wrapper" not in node["classes"]:
            yield from self.below(node)

    # Words.

    def inline(self, node: nodes.Node) -> str:
        """Return a node within a paragraph as Markdown."""
        if isinstance(node, nodes.Text):
            return escaped(node.astext())
        if isinstance(node, nodes.math):
            tex = expanded(node.astext(), self.macros).strip()
            return f"${tex}${escaped(node.get('tail', ''))}"
        if isinstance(node, nodes.literal):
            return ticked(node.astext())
        if isinstance(node, nodes.image):
            return f"*{node.get('alt', '')}*"
        if not isinstance(node, nodes.Element) or isinstance(node, nodes.raw):
            return ""
        words = "".join(map(self.inline, node.children))
        if isinstance(node, nodes.reference):
            return self.link(node, words)
        if "bibtex-citation" in node.get("classes", []):
            return words.replace("[", "(").replace("]", ")")
        mark = MARKS.get(kind(node), "")
        return mark + words + mark

    def link(self, node: nodes.Element, words: str) -> str:
        """Return a reference: a link where there is an address that it leads to."""
        title, target = node.get("reftitle", ""), node.get("refuri", "")
        if title and "bibtex-citation" in node.parent.get("classes", []):
            self.cited[title] = None
            return words
        if not target or not node.get("internal"):
            return f"[{words}]({target})" if target else words
        return f"[{words}]({urljoin(self.address, target)})" if self.address else words

    def references(self) -> str:
        """Return the list of what the page cites, sorted; "" for none."""
        entries = "\n".join(f"- {escaped(title)}" for title in sorted(self.cited))
        return f"## References\n\n{entries}" if entries else ""


def kind(node: nodes.Element) -> str:
    """Return what a node is to the writer: its tag, or "statement" or "proof"."""
    name = type(node).__name__
    if name in ("proof_node", "unenumerable_node"):
        return "proof"
    numbered = "label" in node and "proof" in node.get("classes", [])
    return "statement" if numbered or name.startswith("exercise") else name


def cells(node: nodes.Element) -> Iterator[Cell]:
    """Yield the code cell of a container of cells, as its page shows it."""
    for block in node.findall(nodes.literal_block):
        if "output" not in block["classes"]:
            tags = list(node.get("cell_metadata", {}).get("tags", []))
            yield Cell(block.astext(), tags, folded="hide-input" in tags)
            return


def ancestors(node: nodes.Node) -> Iterator[nodes.Node]:
    """Yield the nodes that a node stands in, the nearest first."""
    while (node := node.parent) is not None:
        yield node


def elements(node: nodes.Element) -> list[nodes.Element]:
    """Return the children that are no text and no comment."""
    return [n for n in node.children
            if isinstance(n, nodes.Element) and not isinstance(n, SKIPPED)]  # fmt: skip


def escaped(text: str) -> str:
    """Return words whose signs mean nothing to Markdown."""
    return SPECIAL.sub(r"\\\1", text)


def quoted(text: str) -> str:
    """Return a block as a quotation."""
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())


def item(mark: str, text: str) -> str:
    """Return a point of a list, its further lines indented."""
    return mark + text.replace("\n", "\n" + " " * len(mark)).strip()


def ticked(text: str) -> str:
    """Return code within a line, in as many ticks as it needs."""
    runs = re.findall("`+", text)
    fence = "`" * (1 + max(map(len, runs), default=0))
    pad = " " if runs else ""
    return fence + pad + text + pad + fence


def barless(tex: str) -> str:
    r"""Return a formula without | and \|, which end a table's cell."""
    return tex.replace(r"\|", r"\Vert ").replace("|", r"\vert ")


def assembled(pieces: Iterable[Piece]) -> list[dict[str, Any]]:
    """Return a notebook's cells: text up to the next code or heading is one cell."""
    found: list[dict[str, Any]] = []
    for piece in pieces:
        if isinstance(piece, Cell):
            found.append(coded(piece))
        elif found and found[-1]["cell_type"] == "markdown" and not heading(piece):
            found[-1]["source"] += "\n\n" + piece
        elif piece:
            found.append({"cell_type": "markdown", "metadata": {}, "source": piece})
    for k, cell in enumerate(found):
        cell["id"] = f"cell-{k}"
    return found


def coded(cell: Cell) -> dict[str, Any]:
    """Return a code cell as a notebook holds it, without outputs."""
    hidden = {"jupyter": {"source_hidden": True}} if cell.folded else {}
    tags = {"tags": cell.tags} if cell.tags else {}
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": hidden | tags,
        "outputs": [],
        "source": cell.source,
    }


def heading(text: str) -> bool:
    """Return whether a block is a heading."""
    return bool(re.match(r"#{1,6} ", text))
