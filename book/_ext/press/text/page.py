"""A page of the book as plain text says it: cells, statements, labels, calls.

Nothing here needs Sphinx, so that the tests can read the whole book in a moment.
"""

import ast
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

FRONT = re.compile(r"\A---\n(.*?\n)(?:---|\.\.\.)[ \t]*\n", re.S)
OPENING = re.compile(r"^(\s*)(`{3,}|~{3,}|:{3,})\s*(?:\{([\w:.+-]+)\}(.*)|[^`]*)$")
OPTION = re.compile(r"^\s*:?([\w-]+):\s*(.*)$")
DOLLARS = re.compile(r"\$\$\s*\(([^()\s]+)\)\s*$", re.M)
TARGET = re.compile(r"^\(([^()\n]+)\)=\s*$", re.M)
MAGIC = re.compile(r"^(\s*)[%!?].*$", re.M)

PROVED = ("theorem", "proposition", "lemma", "corollary")
VERBATIM = ("code-cell", "raw-cell", "code", "code-block", "literalinclude", "math")


class Block(NamedTuple):
    """A directive: its name, argument, options, body and first line (from 1).

    ``start`` is the body's first line, below the options.  ``outer`` tells that the
    block stands in no other; only there a cell runs.
    """

    name: str
    argument: str
    options: dict[str, str]
    body: list[str]
    line: int
    start: int
    outer: bool


class Call(NamedTuple):
    """A call ``check("label", …)`` or ``measure("id", …)`` in a cell.

    In an f-string each part that is computed becomes "*".  ``label`` is None where
    the first argument is no string.
    """

    name: str
    label: str | None
    line: int


class Page:
    """A page of the book, by its name (its path without the suffix) and text."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text

    @classmethod
    def read(cls, root: Path, path: Path) -> "Page":
        """Read the page at ``path``, named by its place below ``root``."""
        name = path.relative_to(root).with_suffix("").as_posix()
        return cls(name, path.read_text(encoding="utf-8"))

    @cached_property
    def front(self) -> dict[str, Any]:
        """The front matter; empty where there is none."""
        match = FRONT.match(self.text)
        return (yaml.safe_load(match[1]) or {}) if match else {}

    @cached_property
    def executed(self) -> bool:
        """Whether the page's front matter makes it a notebook."""
        text = self.front.get("jupytext", {}).get("text_representation", {})
        return bool(text.get("format_name") == "myst")

    @cached_property
    def blocks(self) -> list[Block]:
        """Every directive, the nested ones too, in the order of the page."""
        return list(blocks(self.text.splitlines(), 1))

    @cached_property
    def prose(self) -> str:
        """The text without its front matter and blocks; lines keep their place."""
        lines = FRONT.sub(lambda m: "\n" * m[0].count("\n"), self.text).splitlines()
        for start, end in spans(lines):
            lines[start:end] = [""] * (end - start)
        return "\n".join(lines)

    @cached_property
    def cells(self) -> list[Block]:
        """The code cells that run: those in no other block."""
        return [b for b in self.blocks if b.name == "code-cell" and b.outer]

    @cached_property
    def statements(self) -> list[tuple[str, str, int]]:
        """Kind, label ("" where missing) and line of whatever needs a proof."""
        return [
            (b.name[4:], b.options.get("label", ""), b.line)
            for b in self.blocks
            if b.name.startswith("prf:") and b.name[4:] in PROVED
        ]

    @cached_property
    def equations(self) -> list[str]:
        """Labels of equations."""
        named = [b.options["label"] for b in self.blocks
                 if b.name == "math" and "label" in b.options]  # fmt: skip
        return named + DOLLARS.findall(without_cells(self))

    @cached_property
    def labels(self) -> list[str]:
        """Every label of the page: statements, equations, exercises, targets."""
        kinds = ("prf:", "exercise", "exercise-start", "figure", "table")
        named = [b.options[key] for b in self.blocks for key in ("label", "name")
                 if key in b.options and b.name.startswith(kinds)]  # fmt: skip
        return named + self.equations + TARGET.findall(without_cells(self))

    @cached_property
    def calls(self) -> list[Call]:
        """The calls of check and measure in the cells."""
        return [call for cell in self.cells for call in calls(cell)]


def spans(lines: list[str]) -> Iterator[tuple[int, int]]:
    """Yield where fenced blocks of the outermost level begin and end."""
    start = 0
    while start < len(lines):
        match = OPENING.match(lines[start])
        if not match:
            start += 1
            continue
        end = closing(lines, start, match[2])
        yield start, end
        start = end


def closing(lines: list[str], start: int, fence: str) -> int:
    """Return the line after the one that closes the fence opened at ``start``."""
    for k in range(start + 1, len(lines)):
        if closes(lines[k], fence):
            return k + 1
    return len(lines)


def closes(line: str, fence: str) -> bool:
    """Return whether a line closes a fence: by as many signs, or more."""
    signs = line.strip()
    return len(signs) >= len(fence) and set(signs) == {fence[0]}


def blocks(lines: list[str], line: int, *, outer: bool = True) -> Iterator[Block]:
    """Yield the directives in lines, of which the first has number ``line``."""
    for start, end in spans(lines):
        match = OPENING.match(lines[start])
        if not match or not match[3]:
            continue
        closed = closes(lines[end - 1], match[2])
        body = lines[start + 1 : end - 1 if closed else end]
        options, skipped = options_of(body)
        name, argument = match[3], (match[4] or "").strip()
        inner, first = body[skipped:], line + start + 1 + skipped
        yield Block(name, argument, options, inner, line + start, first, outer)
        if name not in VERBATIM:
            yield from blocks(inner, first, outer=False)


def options_of(body: list[str]) -> tuple[dict[str, str], int]:
    """Return a directive's options, and how many lines they take."""
    options: dict[str, str] = {}
    yaml_style = bool(body) and body[0].strip() == "---"
    for k, text in enumerate(body):
        if yaml_style and k and text.strip() == "---":
            return options, k + 1
        match = OPTION.match(text)
        if yaml_style and k == 0:
            continue
        if not match or (not yaml_style and not text.lstrip().startswith(":")):
            return options, k
        options[match[1]] = match[2].strip()
    return options, len(body)


def without_cells(page: Page) -> str:
    """Return the page's text without its verbatim blocks, which hold no labels."""
    lines = page.text.splitlines()
    for b in page.blocks:
        if b.name in VERBATIM and b.name != "math":
            lines[b.start - 1 : b.start - 1 + len(b.body)] = [""] * len(b.body)
    return "\n".join(lines)


def python(source: str) -> ast.Module:
    """Parse a cell; where that fails, its magics (``%``, ``!``) become ``pass``.

    Raises:
        SyntaxError: The cell is not Python.
    """
    try:
        return ast.parse(source)  # here "% 2" at a line's head is a remainder
    except SyntaxError:
        return ast.parse(MAGIC.sub(r"\1pass", source))


def calls(cell: Block) -> Iterator[Call]:
    """Yield the calls of check and measure in a cell; none if it does not parse."""
    try:
        tree = python("\n".join(cell.body))
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name in ("check", "measure"):
            label = string(node.args[0]) if node.args else None
            yield Call(name, label, cell.start + node.lineno - 1)


def string(node: ast.expr) -> str | None:
    """Return a string literal, with "*" for what an f-string computes, or None."""
    if isinstance(node, ast.JoinedStr):
        return "".join(string(part) or "*" for part in node.values)
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, str) else None
