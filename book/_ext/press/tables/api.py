"""The reference of the package, from its syntax trees: nothing is imported.

{api}                 every module, part by part, with a link to its chapter
{api} ot.sinkhorn     one module
"""

import ast
import copy
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

from ..text.fingerprint import Module, Sources
from .boards import Board

LABEL = re.compile(r"\((eq:[^()\s]+)\)")
PACKAGE = "pushforward"
PARTS = {
    "": "The modules that all parts share",
    "objectives": "Objectives",
    "ot": "Optimal transport",
    "vae": "Variational autoencoders",
    "flows": "Normalising flows",
    "gans": "Adversarial networks",
    "diffusion": "Diffusion",
}

Definition = ast.FunctionDef | ast.ClassDef


class Api(Board):
    """Signatures and docstrings of the public names, with links to equations."""

    optional_arguments = 1

    def show(self) -> list[nodes.Node]:
        """Return one module, or all of them by parts."""
        modules = Sources(Path(self.env.srcdir) / "code").modules
        if self.arguments:
            name = f"{PACKAGE}.{self.arguments[0]}"
            if name not in modules:
                raise self.error(f"{{api}} names no module: {name}")
            return self.module(modules[name])
        groups: dict[str, list[Module]] = {}
        for name, module in modules.items():
            if name.startswith(PACKAGE + ".") and not module.package:
                groups.setdefault(part(name), []).append(module)
        order = sorted(groups, key=lambda p: [*PARTS, p].index(p))
        return [
            self.section(
                PARTS.get(p, p), f"api-{p or 'shared'}", map(self.of, groups[p])
            )
            for p in order
        ]

    def of(self, module: Module) -> nodes.section:
        """Return the section of a module."""
        short = module.name.removeprefix(PACKAGE + ".")
        return self.section(short, anchor(short), self.module(module))

    def section(
        self, title: str, key: str, content: Iterable[nodes.Node]
    ) -> nodes.section:
        """Return a section with a title."""
        section = nodes.section("", nodes.title(title, title), ids=[key], names=[key])
        section += list(content)
        return section

    def module(self, module: Module) -> list[nodes.Node]:
        """Return a module's link, docstring and public definitions."""
        self.env.note_dependency(str(module.path))
        short = module.name.removeprefix(PACKAGE + ".")
        places = ("book/" + short.replace(".", "/"), f"book/back/{short}")
        pages = [p for p in places if p in self.env.found_docs]
        link = self.markdown(f"Chapter: {{doc}}`/{pages[0]}`.") if pages else []
        about = ast.get_docstring(module.tree) or ""
        return [*link, *self.docstring(about), *self.definitions(module, short)]

    def definitions(self, module: Module, short: str) -> Iterator[nodes.Node]:
        """Yield signature and docstring of each public definition."""
        for node in public(module.tree):
            key = f"{anchor(short)}-{node.name}"
            yield from self.definition(node, key)
            for method in methods(node):
                yield from self.definition(method, f"{key}.{method.name}")

    def definition(self, node: Definition, key: str) -> list[nodes.Node]:
        """Return a definition's head as code, with an anchor, and its docstring."""
        code = nodes.literal_block(text := head(node), text, language="python")
        signature = nodes.container("", code, ids=[key], classes=["pf-signature"])
        return [signature, *self.docstring(ast.get_docstring(node) or "")]

    def docstring(self, text: str) -> list[nodes.Node]:
        """Return a docstring as it is written, its equations linked."""
        if not text:
            return []
        block = nodes.literal_block(language="text")
        at = 0
        for match in LABEL.finditer(text):
            block += [nodes.Text(text[at : match.start()]), self.equation(match[1])]
            at = match.end()
        block += nodes.Text(text[at:])
        return [nodes.container("", block, classes=["pf-docstring"])]

    def equation(self, label: str) -> nodes.Node:
        """Return a link to a numbered equation."""
        return addnodes.pending_xref(
            "", nodes.literal("", f"({label})"), refdomain="math", reftype="eq",
            reftarget=label, refdoc=self.env.docname, refexplicit=False, refwarn=True,
        )  # fmt: skip


def part(name: str) -> str:
    """Return the part of the book that a module belongs to, "" for none."""
    return ".".join(name.split(".")[1:-1])


def anchor(short: str) -> str:
    """Return the anchor of a module."""
    return "api-" + short.replace(".", "-")


def public(tree: ast.Module) -> list[Definition]:
    """Return the definitions in ``__all__``, or those without an underscore."""
    found: list[Definition] = [n for n in tree.body if isinstance(n, Definition)]
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and getattr(node.targets[0], "id", "") == "__all__"
        ):
            names = ast.literal_eval(node.value)
            return [n for n in found if n.name in names]
    return [n for n in found if not n.name.startswith("_")]


def methods(node: Definition) -> list[ast.FunctionDef]:
    """Return the public, documented methods of a class."""
    if isinstance(node, ast.FunctionDef):
        return []
    return [m for m in node.body if isinstance(m, ast.FunctionDef)
            and not m.name.startswith("_") and ast.get_docstring(m)]  # fmt: skip


def head(node: Definition) -> str:
    """Return ``def name(arguments) -> type`` or ``class name(arguments)``."""
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return wrapped(f"def {node.name}", node.args, returns)
    bases = ", ".join(ast.unparse(b) for b in node.bases)
    init = [m for m in node.body if getattr(m, "name", "") == "__init__"]
    title = f"class {node.name}" + (f"({bases})" if bases else "")
    fields = [f"    {ast.unparse(f)}" for f in node.body
              if isinstance(f, ast.AnnAssign) and "NamedTuple" in bases]  # fmt: skip
    if fields:
        return "\n".join([title + ":", *fields])
    made = [wrapped(f"{node.name}", m.args, "") for m in init
            if isinstance(m, ast.FunctionDef)]  # fmt: skip
    return "\n".join([title, *made])


def wrapped(name: str, args: ast.arguments, returns: str) -> str:
    """Return a signature, one argument a line where it is longer than 72 columns."""
    if args.args and args.args[0].arg == "self":
        args = copy.copy(args)
        args.args = args.args[1:]
    line = f"{name}({ast.unparse(args)}){returns}"
    if len(line) <= 72:
        return line
    pieces = top_level_commas(ast.unparse(args))
    return f"{name}(\n" + "".join(f"    {p},\n" for p in pieces) + f"){returns}"


def top_level_commas(text: str) -> list[str]:
    """Split at the commas that stand in no bracket and no quotes."""
    pieces, depth, quote = [""], 0, ""
    for c in text:
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        depth += (c in "([{") - (c in ")]}") if not quote else 0
        if c == "," and depth == 0 and not quote:
            pieces.append("")
        else:
            pieces[-1] += c
    return [p.strip() for p in pieces]
