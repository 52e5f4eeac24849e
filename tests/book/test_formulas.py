"""Formulas: TeX becomes MathML while the book is built, in a font that has it all."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docutils import nodes
from fontTools.ttLib import TTFont
from press.tex.formulas import FONT, Typesetter, aligned, asked, covered, tie
from press.tex.macros import macros
from press.tex.mathml import SAID, parted

ROOT = Path(__file__).parents[2]
CELL = re.compile(r"^(`{3,}|:{3,})\s*\{code-cell\}.*?^\1$", re.S | re.M)
BLOCK = re.compile(r"^`{3,}\s*\{math\}\n(?::[^\n]*\n)*(.*?)^`{3,}$", re.S | re.M)
PROJECT = """[project]
name = "pushforward"
version = "1.2.3"
[tool.setuptools.packages.find]
include = ["pushforward*"]
"""
DOUBLE = re.compile(r"\$\$(.+?)\$\$", re.S)
SINGLE = re.compile(r"(?<![\\$])\$(?!\s)([^$\n]+(?:\n[^$\n]+)?)(?<!\s)\$(?!\d)")
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")


def formulas() -> list[tuple[str, bool]]:
    """Return the formulas that the pages' sources hold, each once."""
    found: dict[tuple[str, bool], None] = {}
    for path in sorted((ROOT / "book").glob("**/*.md")):
        text = CELL.sub("", path.read_text(encoding="utf-8"))
        for pattern in (BLOCK, DOUBLE):
            found |= dict.fromkeys((aligned(t), True) for t in pattern.findall(text))
            text = pattern.sub("", text)
        text = CODE.sub("", text)
        found |= dict.fromkeys((t, False) for t in SINGLE.findall(text))
    return list(found)


@pytest.fixture(scope="module")
def typesetter() -> Iterator[Typesetter]:
    """V8 with Temml and the macros of the notation page."""
    text = (ROOT / "book/notation.md").read_text(encoding="utf-8")
    made = Typesetter(macros(text))
    made.learn(formulas())
    yield made
    made.close()


def tree(typesetter: Typesetter, tex: str, *, display: bool = False) -> ET.Element:
    return ET.fromstring(typesetter.formula(tex, display=display).mathml)


def texts(root: ET.Element, tag: str) -> list[str]:
    return ["".join(element.itertext()) for element in root.iter(tag)]


def test_every_formula_of_the_book_is_typeset(typesetter: Typesetter) -> None:
    """More than seven thousand; a fault is a string with what Temml says."""
    assert len(typesetter.known) > 7000
    faults = {key: m for key, m in typesetter.known.items() if isinstance(m, str)}
    assert not faults


def test_the_font_has_every_character_of_every_formula(typesetter: Typesetter) -> None:
    have = covered(FONT)
    for (tex, _), made in typesetter.known.items():
        assert not isinstance(made, str)
        assert made.characters <= have, (tex, made.characters - have)


def test_the_font_is_small_and_keeps_what_mathematics_needs() -> None:
    font = TTFont(FONT)
    variants = font["MATH"].table.MathVariants
    names = font.getBestCmap()
    tall = set(variants.VertGlyphCoverage.glyphs)
    wide = set(variants.HorizGlyphCoverage.glyphs)
    assert FONT.stat().st_size < 80_000
    assert {names[ord(c)] for c in "()[]{|‖⟨⟩√∑∫"} <= tall
    assert {names[ord(c)] for c in "\u0302⏟"} <= wide


def test_no_formula_has_a_style_or_an_error_in_it(typesetter: Typesetter) -> None:
    """A content security policy forbids styles; Temml shows errors as merror."""
    for (tex, display), made in typesetter.known.items():
        assert not isinstance(made, str)
        assert " style=" not in re.sub(r"<annotation.*", "", made.mathml, flags=re.S)
        assert "merror" not in made.mathml, tex
        assert ('display="block"' in made.mathml) == display, tex


def test_the_source_travels_with_the_formula(typesetter: Typesetter) -> None:
    root = tree(typesetter, r"a < b \& c", display=True)
    note = root.find("semantics/annotation")
    assert note is not None
    assert note.text == r"a < b \& c"
    assert note.get("encoding") == "application/x-tex"


def test_a_macro_takes_its_arguments(typesetter: Typesetter) -> None:
    assert texts(tree(typesetter, r"\inner{x}{y}"), "semantics") == [
        r"⟨x,y⟩\inner{x}{y}"
    ]
    assert texts(tree(typesetter, r"\push{g}{\mu}"), "msub") == ["g#"]


def test_a_fault_is_told_in_a_line(typesetter: Typesetter) -> None:
    with pytest.raises(ValueError, match=r"Unsupported function name: \\nothing"):
        typesetter.formula(r"a + \nothing")
    with pytest.raises(ValueError, match=r"Unexpected end of input"):
        typesetter.formula(r"\frac{a}")
    with pytest.raises(ValueError, match=r"no class .* for the style"):
        typesetter.formula(r"\colorbox{blue}{x}")
    with pytest.raises(ValueError, match=r"not well-formed"):
        typesetter.formula("\\text{\ufffe}")  # no character of XML


def test_lines_are_aligned_at_their_marks(typesetter: Typesetter) -> None:
    tex = aligned("a &= b \\\\\n\n c &= d")
    root = tree(typesetter, tex, display=True)
    cells = [cell.get("class", "") for cell in root.iter("mtd")]
    assert [c.split()[0] for c in cells] == ["tml-right", "tml-left"] * 2
    assert texts(root, "mtr") == ["a=b", "c=d"]


def test_lines_of_an_environment_are_its_own() -> None:
    for tex in (
        r"f = \begin{cases} 0 & x < 0 \\ 1 & x \ge 0 \end{cases}",
        r"\begin{pmatrix} \begin{matrix} 1 \\ 2 \end{matrix} \\ 3 \end{pmatrix}",
    ):
        assert aligned(tex) == tex
    assert aligned(r"a \\ b").startswith(r"\begin{split}")


def test_lines_of_a_formula_that_says_so_are_its_own() -> None:
    for nowrap in (False, True):
        node = nodes.math_block("", r"a \\ b", nowrap=nowrap)
        assert asked(node) == (node.astext() if nowrap else aligned(r"a \\ b"), True)


def test_columns_and_fences_of_cases(typesetter: Typesetter) -> None:
    tex = r"\begin{cases} a & b \\ c & d \end{cases}"
    root = tree(typesetter, tex, display=True)
    assert all("tml-left" in cell.get("class", "") for cell in root.iter("mtd"))
    assert next(root.iter("mo")).attrib["stretchy"] == "true"


@pytest.mark.parametrize("tex", [r"\boxed{x}", r"x \tag{3}", r"\color{red} x", r"\!x"])
def test_styles_become_classes_or_attributes(tex: str, typesetter: Typesetter) -> None:
    assert " style=" not in typesetter.formula(tex, display=True).mathml
    assert SAID.fullmatch("display:block math")


def test_long_formulas_break_after_relations_only(typesetter: Typesetter) -> None:
    tex = r"f(x = 1) = a_1 + b \cdot (c + d), \quad y \in \R^{k+1}"
    root = tree(typesetter, tex)
    row = root.find("semantics/mrow")
    assert row is not None
    assert (root.get("class"), row.get("class")) == ("m-long", "m-row")
    pieces = ["".join(piece.itertext()) for piece in row]
    assert pieces == ["f(x=1)=", "a1+", "b⋅", "(c+d),", "y∈", "ℝk+1"]
    assert tree(typesetter, "a + b = c").get("class") is None


def test_nothing_is_lost_where_a_row_is_parted() -> None:
    row = ET.fromstring(
        "<mrow><mo>(</mo><mi>a</mi><mo>=</mo><mo>)</mo><mo>=</mo><mi>b</mi></mrow>"
    )
    pieces = list(parted(list(row)))
    assert [child for piece in pieces for child in piece] == list(row)
    assert [len(piece) for piece in pieces] == [5, 1]


def test_indices_are_set_tight(typesetter: Typesetter) -> None:
    root = tree(typesetter, r"\sum_{k=1}^{K} a = b", display=True)
    signs = [mo for mo in root.iter("mo") if mo.text == "="]
    assert [mo.get("lspace") for mo in signs] == ["0", None]


def test_fences_stretch_for_what_is_tall(typesetter: Typesetter) -> None:
    def stretch(tex: str) -> set[str | None]:
        root = tree(typesetter, tex, display=True)
        return {mo.get("stretchy") for mo in root.iter("mo") if mo.text == "‖"}

    assert stretch(r"\norm{J^\top y}") == {"false"}
    assert stretch(r"\norm{\frac{x}{y}}") == {"true"}


def test_a_name_keeps_its_distance(typesetter: Typesetter) -> None:
    def gaps(tex: str) -> int:
        return len(list(tree(typesetter, tex).iter("mspace")))

    assert gaps(r"\nabla_\theta \log p") == 2
    assert gaps(r"\log(x)") == 0
    assert gaps(r"\TV \le 1") == 0


def test_a_wide_hat_covers_its_word(typesetter: Typesetter) -> None:
    root = tree(typesetter, r"\widehat{\operatorname{SW}}")
    over = root.find(".//mover")
    assert over is not None
    assert ["".join(child.itertext()) for child in over] == ["SW", "\u0302"]


def test_no_line_begins_with_the_punctuation_after_a_formula() -> None:
    line = nodes.paragraph("", "", nodes.math("", "x"), nodes.Text("), y"))
    tie(line[0])
    assert line[0]["tail"] == "),"
    assert line[1].astext() == " y"


def test_an_equation_has_its_number_anchor_and_link(tiny: Any) -> None:
    page = tiny.html("book/ot/one")
    block = page[page.index('id="equation-eq-double"') :]
    assert re.search(r'class="eqno">\(1(\.1)?\)<a class="headerlink"', block[:300])
    assert 'href="#equation-eq-double"' in block[:400]
    assert '<div class="pf-formula"><math display="block"' in block[:700]
    board = tiny.html("book/back/boards")
    assert re.search(r'href="\.\./ot/one\.html#equation-eq-double">\(1(\.1)?\)', board)
    assert "mathjax" not in page.lower()


def test_a_new_expansion_reaches_every_page_and_notebook(tiny: Any) -> None:
    tiny.write("pyproject.toml", PROJECT)
    with tiny.edited("book/ot/two.md", "The second page.", "Here: $\\E x$."):
        assert tiny.build().status == 0
        page, notebook = tiny.html("book/ot/two"), "_notebooks/ot/two.ipynb"
        assert "𝔼" in page
        with tiny.edited("book/notation.md", "mathbb{E}", "mathrm{E}"):
            edited = tiny.build()
            assert (edited.status, edited.ran) == (0, [])
            assert "𝔼" not in tiny.html("book/ot/two")
            text = (tiny.root / "_build/html" / notebook).read_text()
            assert "mathrm{E}" in text
    (tiny.root / "pyproject.toml").unlink()
    assert tiny.build().status == 0


def test_a_faulty_formula_fails_the_build(tiny: Any) -> None:
    with tiny.edited("book/ot/two.md", "The second page.", "The page\n$\\nothing$ and"):
        said = tiny.build()
    assert said.status != 0
    assert re.search(r"book/ot/two\.md:\d+: WARNING: formula .*nothing", said.said)
    with tiny.edited("book/ot/two.md", "The second page.", "Here: $x \\uplus y$."):
        said = tiny.build()
    assert said.status != 0
    assert "⊎ (U+228E) not in book/_static/math.woff2" in said.said
    assert tiny.build().status == 0


def test_the_vendored_program_is_the_one_that_the_licences_name() -> None:
    told = (ROOT / "book/_static/licences.txt").read_text(encoding="utf-8")
    program = (ROOT / "book/_ext/press/tex/temml/temml.min.js").read_text(
        encoding="utf-8"
    )
    version = re.search(r"Temml (\d+\.\d+\.\d+)", told)
    assert version
    assert json.dumps(version[1]) in program
