"""What a page's execution depends on, as one hash.

A page must run again when its cells change (the cache sees that by itself), and
when one of these does: a module that it reaches through imports, a file beside
such a module that is named in it, a run that it loads, or the pins.

    Sources(code).reach(cells)      the modules, found in the syntax trees

``from pushforward.ot import sinkhorn`` reaches the one module that defines the
name, through ``ot/__init__.py``; ``import pushforward.ot`` reaches all of the
part.  Modules are compared as syntax trees: comments, docstrings and layout do not
count.
"""

import ast
import hashlib
import re
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from .page import Page, python

RUN = re.compile(r"^[\w-]+(/[\w.=-]*)+$")


class Module:
    """One file of the package: its imports, and what it defines at top level."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.package = path.name == "__init__.py"

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.path.read_text(encoding="utf-8"))

    @cached_property
    def digest(self) -> str:
        """Hash of the tree, or of the text where it does not parse."""
        try:
            tree = ast.parse(self.path.read_text(encoding="utf-8"))
            return sha(ast.dump(wordless(tree)).encode())
        except SyntaxError:
            return sha(self.path.read_bytes())

    @cached_property
    def carried(self) -> list[Path]:
        """The files beside it, other than modules, that it names."""
        text = self.path.read_text(encoding="utf-8")
        beside = sorted(f for f in self.path.parent.iterdir() if f.is_file())
        return [f for f in beside if f.suffix != ".py" and f.name in text]

    @cached_property
    def imports(self) -> list[tuple[str, str]]:
        """Pairs (module, name); the name is "" for ``import module``."""
        try:
            return list(imports(self.tree, self.name, self.package))
        except SyntaxError:
            return []

    @cached_property
    def exports(self) -> dict[str, str]:
        """What ``from … import name`` at top level brings in: name → module."""
        return {
            alias.asname or alias.name: absolute(node, self.name, self.package)
            for node in self.tree.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }


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


class Sources:
    """The Python files below a folder (code/), by their module names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: dict[str, Module] = {}
        for path in sorted(folder.glob("*/**/*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self.modules[name] = Module(name, path)

    def reach(self, pairs: list[tuple[str, str]]) -> list[Module]:
        """Return the modules that imports (module, name) reach, sorted by name."""
        seen: set[str] = set()
        todo = [name for pair in pairs for name in self.resolve(*pair)]
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                for pair in self.modules[name].imports:
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
        source = self.modules[module].exports.get(name)
        if source in self.modules and source != module:
            return self.resolve(source, name)
        return [module] if self.defines(module, name) else self.below(module)

    def below(self, module: str) -> list[str]:
        """Return a module, with all modules inside if it is a package."""
        inside = [n for n in self.modules if n.startswith(module + ".")]
        return [module, *inside] if self.modules[module].package else [module]

    def defines(self, module: str, name: str) -> bool:
        """Return whether a module defines a name at its top level."""
        return any(
            getattr(node, "name", None) == name
            or any(getattr(t, "id", None) == name for t in getattr(node, "targets", []))
            for node in self.modules[module].tree.body
        )


def fingerprint(page: Page, sources: Sources, runs: Path, pins: Path) -> str:
    """Return the hash of what the page's cells depend on beside their text.

    Args:
        page: The page.
        sources: The package.
        runs: The folder of the runs (code/runs).
        pins: The file of pinned versions (requirements.txt).
    """
    trees = [tree for cell in page.cells if (tree := parsed("\n".join(cell.body)))]
    modules = sources.reach([p for t in trees for p in imports(t, "", False)])
    lines = [f"python {sys.version_info.major}.{sys.version_info.minor}"]
    lines += [f"pins {content(pins)}"]
    lines += [f"module {m.name} {m.digest}" for m in modules]
    lines += [f"data {f.name} {content(f)}" for m in modules for f in m.carried]
    if any(m.name.endswith(".runs") for m in modules):
        names = sorted({name for tree in trees for name in run_names(tree)})
        lines += [line for name in names for line in run_lines(name, runs)]
    return sha("\n".join(lines).encode())


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


def run_lines(name: str, runs: Path) -> list[str]:
    """Return a line for each file of a run, or of all runs that "…*" may mean."""
    files = [f for f in sorted(runs.glob(f"{name}/**/*")) if f.is_file()]
    found = [f"run {f.relative_to(runs).as_posix()} {content(f)}" for f in files]
    return found or [f"run {name} absent"]


def content(path: Path) -> str:
    """Return the hash of a file, or "absent"."""
    return sha(path.read_bytes()) if path.is_file() else "absent"


def sha(data: bytes) -> str:
    """Return a short hash."""
    return hashlib.sha256(data).hexdigest()[:20]
