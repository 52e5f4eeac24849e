"""book/references.bib and the pages: nothing cited that is not there, and back."""

import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from pybtex.database import Entry, parse_file

BOOK = Path(__file__).parents[2] / "book"
BIB = BOOK / "references.bib"
PAGES = {p.relative_to(BOOK).as_posix(): p.read_text() for p in BOOK.rglob("*.md")}
ENTRIES: dict[str, Entry] = dict(parse_file(BIB, bib_format="bibtex").entries)
CITE = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")

# What a reader needs to find a work, by its kind.
NEEDED = {
    "article": {"journal"},
    "inproceedings": {"booktitle"},
    "book": {"publisher"},
    "incollection": {"booktitle", "publisher"},
    "techreport": {"institution"},
    "phdthesis": {"school"},
    "misc": set(),
}


def keys(text: str) -> set[str]:
    """Keys of all citations of a page: {cite:t}`a2001,b2002` has two."""
    return {k.strip() for group in CITE.findall(text) for k in group.split(",")}


def plain(text: str) -> str:
    """Letters and digits only, lower case, without accents and markup."""
    text = re.sub(r"\\([oOlL])\b", r"\1", text)  # letters with a stroke
    text = re.sub(r"\\[a-zA-Z]+|[{}\\]", "", text)
    text = unicodedata.normalize("NFKD", text)
    return "".join(c for c in text.lower() if c.isalnum())


def authors(entry: Entry) -> list[str]:
    people = entry.persons.get("author") or entry.persons.get("editor") or []
    return [plain(" ".join(p.prelast_names + p.last_names)) for p in people]


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_citation_has_its_entry(page: str) -> None:
    assert keys(PAGES[page]) <= ENTRIES.keys()


def test_every_entry_is_cited_or_listed() -> None:
    assert set().union(*map(keys, PAGES.values())) == ENTRIES.keys()


def test_keys_are_written_once() -> None:
    """A second entry of a key would hide the first."""
    written = re.findall(r"^@\w+\{([^,\s]+),", BIB.read_text(), re.MULTILINE)
    assert [k for k, n in Counter(k.lower() for k in written).items() if n > 1] == []
    assert len(written) == len(ENTRIES)


@pytest.mark.parametrize("key", ENTRIES)
def test_an_entry_can_be_found_in_a_library(key: str) -> None:
    entry = ENTRIES[key]
    assert entry.type in NEEDED
    fields = {name.lower() for name, value in entry.fields.items() if value.strip()}
    assert fields >= {"title", "year"} | NEEDED[entry.type]
    assert authors(entry)
    if entry.type == "misc":
        assert "eprint" in fields or "howpublished" in fields or key == "cardoso2026"


@pytest.mark.parametrize("key", ENTRIES)
def test_a_key_is_author_and_year(key: str) -> None:
    """kingma2014, song2021sde: the first author's name begins with the letters."""
    match = re.fullmatch(r"([a-z]+)(\d{4})[a-z]*", key)
    assert match, key
    name, year = match.groups()
    assert ENTRIES[key].fields["year"] == year
    assert key == "alisilvey1966" or name in authors(ENTRIES[key])[0]


def test_no_two_entries_have_one_title() -> None:
    titles = Counter(plain(e.fields["title"]) for e in ENTRIES.values())
    assert [t for t, n in titles.items() if n > 1] == []


def test_the_reading_list_says_why() -> None:
    """Each line of references.md cites, and says something besides."""
    lines = [s for s in PAGES["back/references.md"].splitlines() if s.startswith("- ")]
    for line in lines:
        assert keys(line), line
        assert len(CITE.sub("", line).split()) >= 7, line
