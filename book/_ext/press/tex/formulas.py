"""Formulas become MathML while the book is built: TeX, typeset by Temml in V8.

Typesetter      TeX to MathML, each formula once
Formulas        the renderer that Sphinx calls, in place of its MathJax
aligned         how a formula of several lines is set, here and in notebooks

The number, anchor and link of an equation are those that Sphinx gives.
"""

import html
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from docutils import nodes
from fontTools.ttLib import TTFont  # type: ignore[import-untyped]
from py_mini_racer import MiniRacer
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

from .macros import Macro, macros
from .mathml import Formula, polished

HERE = Path(__file__).parent
FONT = HERE.parents[2] / "_static/math.woff2"
ENVIRONMENT = re.compile(r"\\begin\{([a-z]+\*?)\}(?:(?!\\begin\{).)*?\\end\{\1\}", re.S)
CLOSING = re.compile(r"[.,;:!?)\]’”]+|-(?=\w)")
MATH = re.compile(r"<math\b.*?</math>", re.S)

PROGRAM = r"""
const typeset = given => given.map(([tex, display]) => {
  try {
    return [temml.renderToString(tex, {displayMode: display, macros: {...macros},
      annotate: true, throwOnError: true}), ""]
  } catch (error) { return ["", error.message.split("\n")[0]] }
})
"""

logger = logging.getLogger(__name__)

Asked = tuple[str, bool]  # TeX, and whether it stands in display


class Typesetter:
    """Turns TeX into MathML; V8 starts with the first formula.

    Args:
        macros: As `press.tex.macros.macros` reads them.
    """

    def __init__(self, macros: dict[str, Macro]) -> None:
        self.macros = {
            f"\\{name}": value if isinstance(value, str) else value[0]
            for name, value in macros.items()
        }
        self.known: dict[Asked, Formula | str] = {}
        self.engine: MiniRacer | None = None

    def formula(self, tex: str, *, display: bool = False) -> Formula:
        """Return a formula.

        Raises:
            ValueError: It is not TeX that Temml knows.
        """
        if (tex, display) not in self.known:
            self.learn([(tex, display)])
        made = self.known[tex, display]
        if isinstance(made, str):
            raise ValueError(made)
        return made

    def learn(self, asked: list[Asked]) -> None:
        """Typeset many formulas at once: a call of V8 costs as much as a formula."""
        fresh = [key for key in dict.fromkeys(asked) if key not in self.known]
        if not fresh:
            return
        answers = self.started().call("typeset", fresh)
        for key, (mathml, fault) in zip(fresh, answers, strict=True):
            try:
                self.known[key] = fault or polished(mathml)
            except (ValueError, ET.ParseError) as error:
                self.known[key] = str(error)

    def started(self) -> MiniRacer:
        """Return V8 with Temml and the macros in it."""
        if self.engine is None:
            self.engine = MiniRacer()
            self.engine.eval((HERE / "temml/temml.min.js").read_text(encoding="utf-8"))
            self.engine.eval(f"const macros = {json.dumps(self.macros)}")
            self.engine.eval(PROGRAM)
        return self.engine

    def close(self) -> None:
        """Stop V8, whose thread would keep the program from its end."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None


class Formulas:
    """The renderer of a build; its methods are handlers of Sphinx."""

    def __init__(self) -> None:
        self.typesetter = Typesetter({})
        self.covered: set[str] = set()

    def start(self, app: Sphinx, config: Config) -> None:
        """Take the macros of the notation page (config-inited).

        They are a setting: when one changes, every page is written again.
        """
        path = Path(app.srcdir) / "book/notation.md"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        config.press_macros = macros(text)
        self.typesetter = Typesetter(config.press_macros)
        self.covered = covered(FONT)

    def finish(self, app: Sphinx, error: Exception | None) -> None:
        """Stop the engine (build-finished)."""
        self.typesetter.close()

    def prepare(self, app: Sphinx, tree: nodes.document, name: str) -> None:
        """Typeset all formulas of a page (doctree-resolved)."""
        if app.builder.format == "html":
            found = tree.findall(lambda n: isinstance(n, nodes.math | nodes.math_block))
            self.typesetter.learn([asked(node) for node in found])
            for node in list(tree.findall(nodes.math)):
                tie(node)

    def inline(self, translator: Any, node: nodes.math) -> None:
        """Write a formula of a line."""
        start = translator.starttag(
            node, "span", "", CLASS="math notranslate nohighlight"
        )
        tail = html.escape(node.get("tail", ""))
        translator.body.append(f"{start}{self.formula(node)}{tail}</span>")
        raise nodes.SkipNode

    def display(self, translator: Any, node: nodes.math_block) -> None:
        """Write a formula of its own, with its number and the link to it."""
        body = translator.body
        body.append(
            translator.starttag(node, "div", CLASS="math notranslate nohighlight")
        )
        if node["number"]:
            number = get_node_equation_number(translator, node)
            body.append(f'<span class="eqno">({number})')
            translator.add_permalink_ref(node, "Link to this equation")
            body.append("</span>")
        body.append(f'<div class="pf-formula">{self.formula(node)}</div></div>\n')
        raise nodes.SkipNode

    def formula(self, node: nodes.Element) -> str:
        """Return a formula as MathML, or as code with a warning where it is faulty."""
        tex, display = asked(node)
        try:
            made = self.typesetter.formula(tex, display=display)
        except ValueError as error:
            logger.warning("formula %r: %s", tex, error, location=placed(node))
            return f"<code>{html.escape(tex)}</code>"
        if missing := sorted(made.characters - self.covered):
            told = ", ".join(f"{c} (U+{ord(c):04X})" for c in missing)
            text = "formula %r: %s not in book/_static/math.woff2; see press/font.py"
            logger.warning(text, tex, told, location=placed(node))
        return made.mathml


def connect(app: Sphinx) -> None:
    """Render the formulas of the book with Temml."""
    formulas = Formulas()
    app.add_config_value("press_macros", {}, "html")
    app.add_html_math_renderer(
        "temml", (formulas.inline, None), (formulas.display, None)
    )
    app.connect("config-inited", formulas.start)
    app.connect("doctree-resolved", formulas.prepare, priority=900)
    app.connect("build-finished", formulas.finish)


def tie(node: nodes.math) -> None:
    """Take the punctuation after a formula to it, so that no line begins with it."""
    parent = node.parent
    place = parent.index(node) + 1
    after = parent[place] if place < len(parent) else None
    if isinstance(after, nodes.Text) and (found := CLOSING.match(after.astext())):
        node["tail"] = found[0]
        parent[place] = nodes.Text(after.astext()[found.end() :])


def asked(node: nodes.Element) -> Asked:
    """Return the TeX of a node, and whether it stands in display."""
    if isinstance(node, nodes.math):
        return node.astext(), False
    return node.astext() if node["nowrap"] else aligned(node.astext()), True


def aligned(tex: str) -> str:
    r"""Return TeX whose lines, parted by ``\\``, are aligned, as Sphinx has it."""
    outside, count = tex, 1
    while count:
        outside, count = ENVIRONMENT.subn("", outside)
    tex = re.sub(r"\n\s*\n", "\n", tex)  # a blank line ends no formula
    return f"\\begin{{split}}{tex}\\end{{split}}" if r"\\" in outside else tex


def covered(font: Path) -> set[str]:
    """Return the characters that a font has."""
    return {chr(code) for code in TTFont(font).getBestCmap()}


def placed(node: nodes.Element) -> nodes.Element:
    """Return the node, or the nearest around it, of which the line is known."""
    while node.line is None and node.parent is not None:
        node = node.parent
    return node
