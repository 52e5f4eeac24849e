"""The promises of the book about itself, and that each broken one is seen."""

from collections.abc import Callable
from pathlib import Path

import pytest
from press.tex.macros import macros
from press.text import consistency, records
from press.text.consistency import Book
from press.text.page import Page

ROOT = Path(__file__).parents[2]
HEADER = """---
jupytext:
  text_representation: {extension: .md, format_name: myst}
kernelspec: {display_name: Python 3, language: python, name: python3}
---
"""
SOUND = (
    HEADER
    + """# Title

````{prf:theorem} Name
:label: thm:one
Text with a formula.

```{math}
:label: eq:one
a = b
```
````

$$
c = d
$$ (eq:two)

(erratum:E1)=
## An erratum

```{exercise} Twice
:label: ex:twice
```

```{code-cell} ipython3
:tags: [hide-input]
check("thm:one", 1, 1)
check("eq:two", 1, 1)
check("erratum:E1", 1, 1)
measure("claim", 2.0)
```

```{solution-start} ex:twice
:class: dropdown
```
```{code-cell} ipython3
check("ex:twice", 1, 1)
```
```{solution-end}
```
"""
)
ROW = {"id": "claim", "measured": "page:ot/one", "band": [1, 3]}
MODULE = '"""One (eq:one)."""\n\n\ndef f():\n    """(eq:two)"""\n'


@pytest.fixture(scope="module")
def real() -> Book:
    """The book, whatever of it is written."""
    pages = [Page.read(ROOT, path) for path in sorted(ROOT.glob("book/**/*.md"))]
    return consistency.book(ROOT, pages, records.rows(ROOT / "book/claims.toml"))


@pytest.mark.parametrize("rule", consistency.RULES, ids=lambda rule: rule.__name__)
def test_the_book_keeps(rule: Callable[[Book], list[str]], real: Book) -> None:
    assert rule(real) == []


def small(text: str = SOUND, *, module: str = MODULE, row: dict | None = None) -> Book:
    """A book of one page, one module and one row."""
    row = ROW if row is None else row
    return Book([Page("book/ot/one", text)], {"pushforward.ot.one": module}, [row])


def test_a_sound_page_has_no_fault() -> None:
    assert consistency.static(small()) == []


BROKEN = [
    ("no label", (":label: thm:one\n", ""), "theorem has no :label:"),
    ("no check", ('check("thm:one", 1, 1)', ""), "checks the theorem thm:one"),
    ("label of the check", ('check("eq:two"', 'check("eq:three"'), "eq:three"),
    ("label of a solution", ('check("ex:twice"', 'check("ex:thrice"'), "ex:thrice"),
    ("target", ("(erratum:E1)=", ""), "erratum:E1"),
    ("a computed label", ('check("eq:two"', "check(name"), "must be a string"),
    ("no header", (HEADER, ""), "no jupytext header"),
    ("no kernel", (HEADER[HEADER.index("kernelspec") :], "---\n"), "no kernelspec"),
    ("twice", ("(eq:two)", "(eq:one)"), "eq:one stands 2 times"),
    ("an equation of the module", ("$$ (eq:two)", "$$"), "cites (eq:two)"),
    ("no row for any k", ('measure("claim"', 'measure(f"claims-{k}"'), "claims-*"),
    ("no row", ('measure("claim"', 'measure("other"'), "other"),
    ("no measurement", ('measure("claim", 2.0)', ""), "does not measure it"),
]


@pytest.mark.parametrize(
    ("change", "said"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN]
)
def test_a_fault_is_seen_and_placed(change: tuple[str, str], said: str) -> None:
    assert change[0] in SOUND
    faults = consistency.static(small(SOUND.replace(*change)))
    assert any(said in fault for fault in faults), faults
    assert all("ot/one" in f or "claims.toml" in f for f in faults)


def test_a_cell_inside_a_statement_checks_nothing() -> None:
    """Such a cell is not executed, so it must not count."""
    cell = '```{code-cell} ipython3\ncheck("thm:one", 1, 1)\n```\n'
    text = SOUND.replace('check("thm:one", 1, 1)\n', "")
    text = text.replace("Text with a formula.\n", "Text.\n\n" + cell)
    assert any("thm:one" in fault for fault in consistency.unchecked(small(text)))
    assert any("does not run" in f for f in consistency.unexecuted(small(text)))


def test_a_shared_module_may_cite_any_page_but_not_no_page() -> None:
    book = small()._replace(modules={"pushforward.model": "(eq:one) (eq:nowhere)"})
    assert consistency.uncited(book) == [
        "pushforward.model cites (eq:nowhere), which no page has"
    ]


def test_a_computed_id_may_mean_several_rows() -> None:
    text = SOUND.replace('measure("claim"', 'measure(f"cl{k}m"')
    assert consistency.static(small(text)) == []


def test_what_ran_is_compared_with_the_rows() -> None:
    record = {"kind": "measure", "claim": "claim-3", "value": 2.0, "cell": 4}
    state = records.PageState("", "", 0.0, [record], [])
    pages = {"book/ot/one": state}
    faults = consistency.executed(pages, [records.Claim(ROW)])
    assert faults == [
        'book/ot/one, cell 4: measure("claim-3") has no row in claims.toml',
        "claims.toml, claim: book/ot/one did not measure it",
    ]


def test_two_rows_of_one_id_are_a_fault() -> None:
    faults = consistency.unclaimed(small()._replace(rows=[ROW, ROW]))
    assert faults == ["claims.toml: the id claim stands 2 times"]


@pytest.mark.parametrize(
    ("value", "cause", "verdict", "faults"),
    [
        (2.0, None, "reproduced", 0),
        (2.0, "chance", "reproduced", 1),
        (4.0, None, "outside", 1),
        (4.0, "a smaller network", "contradicted", 0),
        (None, None, "pending", 0),
    ],
)
def test_the_band_decides(
    value: float | None, cause: str | None, verdict: str, faults: int
) -> None:
    claim = records.Claim({**ROW, "contradicted": cause}, value)
    assert claim.verdict == verdict
    assert len(consistency.executed({}, [claim])) == faults


def output(data: dict, **record: str) -> dict:
    """An output of cell 3."""
    metadata = {"pushforward": record} if record else {}
    return {"data": data, "metadata": metadata, "cell": 3}


@pytest.mark.parametrize(
    ("shown", "good"),
    [
        (output({"text/html": '<img src="a" alt="What one sees.">'}), True),
        (output({"text/html": '<img src="a" alt="">'}), False),
        (output({"text/html": '<img src="a">'}), False),
        (output({"image/png": "…"}), False),
        (output({"image/png": "…"}, kind="figure", alt="What one sees."), True),
        (output({"text/plain": "1"}), True),
    ],
)
def test_a_picture_needs_alternative_text(shown: dict, good: bool) -> None:
    state = records.PageState("", "", 0.0, *records.of_outputs([shown]))
    faults = consistency.executed({"book/ot/one": state}, [])
    assert faults == (
        [] if good else ["book/ot/one, cell 3: a picture without alternative text"]
    )


def test_the_notation_page_defines_the_macros() -> None:
    found = macros((ROOT / "book/notation.md").read_text(encoding="utf-8"))
    assert found["E"] == r"\mathbb{E}"
    assert found["norm"] == [r"\left\lVert #1 \right\rVert", 1]
    assert found["push"] == [r"{#1}_{\#} #2", 2]
    assert {"KL", "pdata", "Couplings"} <= set(found)


def test_a_macro_defined_twice_is_refused() -> None:
    table = "| Macro | Expansion |\n|---|---|\n| `\\E` | `a` |\n| `\\E` | `b` |\n"
    with pytest.raises(ValueError, match="twice"):
        macros(table)
