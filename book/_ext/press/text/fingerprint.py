"""What a page's execution depends on, as one hash.

A page must run again when its cells change (the cache sees that by itself), and
when one of these does: a module that it reaches through imports, a file beside
such a module that is named in it, a run that it loads with the experiment that
makes it, or the pins.

    Sources(code).reach(cells)      the modules, found in the syntax trees

``from pushforward.ot import sinkhorn`` reaches the one module that defines the
name, through ``ot/__init__.py``; ``import pushforward.ot`` reaches all of the
part.  Modules are compared as syntax trees: comments, docstrings and layout do not
count.
"""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from ..files import sha
from .page import Page, python

RUN = re.compile(r"^[\w-]+(/[\w.=-]*)+$")


class Facts(NamedTuple):
    """What the text of a module says.

    Attributes:
        text: Hash of the text.
        digest: Hash of the syntax tree, or of the text where it does not parse.
        imports: Pairs (module, name); the name is "" for ``import module``.
        exports: What ``from … import name`` at top level brings in: name → module.
        defines: The names that it defines at top level.
    """

    text: str
    digest: str
    imports: list[tuple[str, str]]
    exports: dict[str, str]
    defines: frozenset[str]


class Cells(NamedTuple):
    """What the cells of a page ask for.

    Attributes:
        text: Hash of the page's text.
        imports: Pairs (module, name), as in ``Facts``.
        runs: The strings that look like names of runs.
    """

    text: str
    imports: list[tuple[str, str]]
    runs: list[str]


class Known(NamedTuple):
    """What was found in modules and pages, by name: unchanged ones are not parsed."""

    modules: dict[str, Facts]
    pages: dict[str, Cells]


class Module:
    """One file of the package; ``known`` keeps what its last text said."""

    def __init__(self, name: str, path: Path, known: Known) -> None:
        self.name = name
        self.path = path
        self.package = path.name == "__init__.py"
        self.known = known

    @cached_property
    def data(self) -> bytes:
        """The file's bytes."""
        return self.path.read_bytes()

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.data, str(self.path))

    @cached_property
    def facts(self) -> Facts:
        """What the text says; it is parsed only where it has changed."""
        text = sha(self.data)
        found = self.known.modules.get(self.name)
        if found is None or found.text != text:
            found = self.known.modules[self.name] = self.read(text)
        return found

    def read(self, text: str) -> Facts:
        """Return the facts; few of a module that does not parse."""
        try:
            tree = ast.parse(self.data, str(self.path))
        except SyntaxError:
            return Facts(text, text, [], {}, frozenset())
        pairs = list(imports(tree, self.name, self.package))
        brought = dict(exports(tree, self.name, self.package))
        defined = frozenset(defines(tree))
        digest = sha(ast.dump(wordless(tree)).encode())
        return Facts(text, digest, pairs, brought, defined)

    @cached_property
    def carried(self) -> list[Path]:
        """The files beside it, other than modules, that it names."""
        beside = [f for f in self.path.parent.iterdir() if f.suffix != ".py"]
        named = [f for f in beside if f.name.encode() in self.data]
        return sorted(f for f in named if f.is_file())


def wordless(tree: ast.Module) -> ast.Module:
    """Take the docstrings out of a tree, in place."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                del body[0]
    return tree


def absolute(node: ast.ImportFrom, name: str, package: bool) -> str:
    """Return the full name of the module that a ``from`` import names."""
    if not node.level:
        return node.module or ""
    parts = name.split(".")
    parts = parts[: len(parts) - node.level + package]
    return ".".join(parts + ([node.module] if node.module else []))


def imports(tree: ast.AST, name: str, package: bool) -> Iterator[tuple[str, str]]:
    """Yield every import of a tree as (module, imported name or "")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, name, package)
            yield from ((module, alias.name) for alias in node.names)


def exports(tree: ast.Module, name: str, package: bool) -> Iterator[tuple[str, str]]:
    """Yield what imports at top level bring in, as (its name here, its module)."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            module = absolute(node, name, package)
            yield from ((alias.asname or alias.name, module) for alias in node.names)


def defines(tree: ast.Module) -> Iterator[str]:
    """Yield the names of functions, classes and variables at top level."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        targets = getattr(node, "targets", [])
        yield from (target.id for target in targets if isinstance(target, ast.Name))


class Sources:
    """The Python files below a folder (code/), by their module names.

    Args:
        folder: The folder.
        known: What earlier builds found; it is kept up.
    """

    def __init__(self, folder: Path, known: Known | None = None) -> None:
        self.modules: dict[str, Module] = {}
        self.hashes: dict[Path, str] = {}
        self.known = known or Known({}, {})
        for path in sorted(folder.glob("*/**/*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self.modules[name] = Module(name, path, self.known)

    def reach(self, pairs: list[tuple[str, str]]) -> list[Module]:
        """Return the modules that imports (module, name) reach, sorted by name."""
        seen: set[str] = set()
        todo = [name for pair in pairs for name in self.resolve(*pair)]
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                for pair in self.modules[name].facts.imports:
                    todo += self.resolve(*pair)
        return [self.modules[name] for name in sorted(seen)]

    def resolve(self, module: str, name: str) -> list[str]:
        """Return the modules that one import runs and can see the effect of."""
        if module not in self.modules:
            return []
        if not name or name == "*":
            return self.below(module)
        if f"{module}.{name}" in self.modules:
            return self.below(f"{module}.{name}")
        if not self.modules[module].package:
            return [module]
        facts = self.modules[module].facts
        source = facts.exports.get(name)
        if source in self.modules and source != module:
            return self.resolve(source, name)
        return [module] if name in facts.defines else self.below(module)

    def below(self, module: str) -> list[str]:
        """Return a module, with all modules inside if it is a package."""
        inside = [n for n in self.modules if n.startswith(module + ".")]
        return [module, *inside] if self.modules[module].package else [module]

    def makers(self, run: str) -> list[str]:
        """Return the experiments that may make a run: ``runs`` imports them by name.

        A name that ends in "*" may go on in any way.
        """
        begin = run.removesuffix("*")
        chapters = {n: n.split(".", 1)[1].replace(".", "/")
                    for n in self.modules if n.startswith("experiments.")}  # fmt: skip
        return [
            name
            for name, chapter in chapters.items()
            if begin.startswith(chapter) or (begin != run and chapter.startswith(begin))
        ]

    def cells(self, page: Page) -> Cells:
        """Return what a page's cells ask for; they are parsed only after a change."""
        text = sha(page.text.encode())
        found = self.known.pages.get(page.name)
        if found is None or found.text != text:
            found = self.known.pages[page.name] = Cells(text, *asked(page))
        return found

    def hashed(self, path: Path) -> str:
        """Return the hash of a file as it was when first asked for, or "absent"."""
        if path not in self.hashes:
            there = path.is_file()
            self.hashes[path] = sha(path.read_bytes()) if there else "absent"
        return self.hashes[path]


def fingerprint(page: Page, sources: Sources, runs: Path, pins: Path) -> str:
    """Return the hash of what the page's cells depend on beside their text.

    Args:
        page: The page.
        sources: The package.
        runs: The folder of the runs (code/runs).
        pins: The file of pinned versions (requirements.txt).
    """
    cells, names = sources.cells(page), []
    modules = sources.reach(cells.imports)
    if any(m.name.endswith(".runs") for m in modules):
        names = cells.runs
        made = [(maker, "") for name in names for maker in sources.makers(name)]
        modules = sources.reach(cells.imports + made)
    lines = [f"python {sys.version_info.major}.{sys.version_info.minor}"]
    lines += [f"pins {sources.hashed(pins)}"]
    lines += [f"module {m.name} {m.facts.digest}" for m in modules]
    lines += [f"data {f.name} {sources.hashed(f)}" for m in modules for f in m.carried]
    lines += [line for name in names for line in run_lines(name, runs, sources)]
    return sha("\n".join(lines).encode())


def asked(page: Page) -> tuple[list[tuple[str, str]], list[str]]:
    """Return what the page's cells import, and the names of runs in them."""
    trees = [tree for cell in page.cells if (tree := parsed("\n".join(cell.body)))]
    pairs = {pair for tree in trees for pair in imports(tree, "", False)}
    names = {name for tree in trees for name in run_names(tree)}
    return sorted(pairs), sorted(names)


def parsed(source: str) -> ast.Module | None:
    """Return a cell's tree, or None where it is not Python."""
    try:
        return python(source)
    except SyntaxError:
        return None


def run_names(tree: ast.AST) -> Iterator[str]:
    """Yield the strings that look like names of runs; "…*" begins an f-string."""
    nodes = list(ast.walk(tree))
    parts = {id(p) for n in nodes if isinstance(n, ast.JoinedStr) for p in n.values}
    for node in nodes:
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(value, str) and RUN.match(value):
            yield value + "*" * (id(node) in parts)


def run_lines(name: str, runs: Path, sources: Sources) -> list[str]:
    """Return a line for each file of a run, or of all runs that "…*" may mean."""
    files = [f for f in sorted(runs.glob(f"{name}/**/*")) if f.is_file()]
    found = [f"run {f.relative_to(runs).as_posix()} {sources.hashed(f)}" for f in files]
    return found or [f"run {name} absent"]
