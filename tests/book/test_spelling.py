"""The prose of the book, the README and the documentation is spelled in British."""

import re
from pathlib import Path

import pytest
from press.proofreading import spelling

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("book/**/*.md"))]
MODULES = sorted(ROOT.glob("code/pushforward/**/*.py"))

PAGE = """---
description: "Wrod in the descripton."
---

(sec:labl)=
# A heddline

Words of [a lnk](sec:nolabl) and {doc}`a titel <../pth/nofile>`, of `kode` and $tex_x$.
The naïve Sinkhorn's algorithm, the $k$-th colour, can't, isn't, x2y, GANs.

$$
notex = \\wrongmacro
$$ (eq:nolabl)

```{code-cell} ipython3
:tags: [hide-inpt]
plott = 1
```

````{prf:theorem} Of Kantorovitsch
:label: thm:nolabl
A statment.

```{math}
:label: eq:othr
notex
```
The color of the center; we generalize, modeling behavior.
````
See https://exampel.org/pagge and «speling» and “Denosing”, as printed.
"""

WRONG = ["2: Wrod", "2: descripton", "6: heddline", "8: lnk", "8: titel",
         "20: Kantorovitsch", "22: statment", "28: color", "28: center",
         "28: generalize", "28: modeling", "28: behavior", "30: speling"]  # fmt: skip


@pytest.fixture(scope="module")
def dictionary() -> spelling.Dictionary:
    """The book's dictionary."""
    return spelling.Dictionary.of(ROOT)


def test_every_planted_misspelling_is_found_and_nothing_else(
    dictionary: spelling.Dictionary,
) -> None:
    assert dictionary.unknown(spelling.prose(PAGE)) == WRONG


@pytest.mark.parametrize(
    "words",
    [
        "colour coloured neighbouring behaviour favourite honour labour",
        "minimise minimised minimising minimisation minimisers analyse analysed",
        "centre centred centres metre fibre theatre labelled modelling travelled",
        "catalogue grey artefact defence size sizes resized prize seize program",
        "Schrödinger's Schrodinger Villani Hyvärinen Tweedie's Gaussians'",
    ],
)
def test_british_forms_and_cited_names_are_right(
    words: str, dictionary: spelling.Dictionary
) -> None:
    assert dictionary.unknown(words) == []


@pytest.mark.parametrize(
    "words",
    [
        "color colored neighboring behavior favorable honor labor",
        "minimize minimized minimizing minimization minimizers analyze analyzed",
        "center centered centers fiber theater labeled modeling traveled",
        "catalog gray artifact defense",
        "colourr minimisse seperate occured recieve teh neigbour",
    ],
)
def test_american_forms_and_errors_are_wrong(
    words: str, dictionary: spelling.Dictionary
) -> None:
    found = [entry.split(": ")[1] for entry in dictionary.unknown(words)]
    assert found == words.split()


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page_is_spelled_well(path: Path, dictionary: spelling.Dictionary) -> None:
    found = dictionary.unknown(spelling.prose(path.read_text(encoding="utf-8")))
    assert not found, "mend, or add to book/words.txt"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_documentation_of_a_module_is_spelled_well(
    path: Path, dictionary: spelling.Dictionary
) -> None:
    told = spelling.docstrings(path.read_text(encoding="utf-8"))
    found = [(line, word) for line, text in told for word in dictionary.unknown(text)]
    assert not found, "mend, or add to book/words.txt"


def test_the_list_of_words_is_sorted_and_holds_no_word_twice() -> None:
    words = (ROOT / "book/words.txt").read_text(encoding="utf-8").split("\n")
    assert words.pop() == ""
    assert words == sorted(set(words), key=lambda word: (word.casefold(), word))
    assert all(re.fullmatch(r"[^\W\d_]+", word) for word in words)
