"""The words of the book that no dictionary knows.

prose(text)         a page's sentences: no cells, formulas, labels, addresses
docstrings(text)    those of a module, without code and formulas
Dictionary          English as this book writes it: British, with its own words

The dictionary is hunspell's for American English, read by spylls; British forms
are led back to American ones by rule, and American ones are refused.
"""

import ast
import gc
import re
import unicodedata
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from spylls.hunspell import Dictionary as Hunspell  # type: ignore[import-untyped]

from ..text.page import FRONT, VERBATIM

CELL = re.compile(
    rf"^(\s*)([`~:]{{3,}})\{{(?:{'|'.join(VERBATIM)})\}}.*?^\1\2[ \t]*$", re.M | re.S
)
SKIPPED = (
    re.compile(r"^\s*[`~:]{3,}\{(?:solution|solution-start|bibliography)\}.*$", re.M),
    re.compile(r"^\([^()\n]+\)=\s*$", re.M),  # a label
    re.compile(r"^\s*:(?!{)[\w-]+:.*$", re.M),  # an option
    re.compile(r"<!--.*?-->", re.S),
    re.compile(r"“\w+”"),  # one word, quoted as it stands elsewhere
    re.compile(r"\$\$.*?\$\$(?:\s*\([^()\s]+\))?", re.S),
    re.compile(r"\\begin\{(\w+\*?)\}.*?\\end\{\1\}", re.S),
    re.compile(r"``.*?``|`[^`\n]*`"),  # code, and what a role names
    re.compile(r"\$[^$]*\$(?:-?(?:th|st|nd|rd|s)\b)?"),
    re.compile(r"\]\([^()\s]*(?:\([^()]*\)[^()\s]*)*\)"),  # a link's address
    re.compile(r"<?https?://\S+"),
    re.compile(r"[\w.-]*\w[/_]\w[\w./-]*|\b\w+\.(?:py|md|toml|json|txt|bib|ipynb)\b"),
    re.compile(r"\{[\w:.+-]+\}"),  # a role
)
CODE = re.compile(  # in a docstring: blocks, citations of equations, formulas
    r"^(?: {4,}|\t).*$|\(eq:[^)]*\)|\b\w+\(.*?\)|[^\s]*[=^_∇∫Σᵀ].*$", re.M
)
ROLE = re.compile(
    r"\{(?:ref|doc|prf:ref|numref|abbr|term|download)\}`([^`<]+)\s*<[^`]*`"
)
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
INNER = re.compile(r"[A-ZΑ-Ω]")  # a capital within: an identifier, an abbreviation

BRITISH = (  # what a British form has, and what stands there in the American one
    (r"our", "or"),
    (r"is(?=(?:e[sdr]?|ers?|ing|ations?|ational|able)$)", "iz"),
    (r"ys(?=(?:e[sdr]?|ing)$)", "yz"),
    (r"re(?=[sd]?$)", "er"),
    (r"ring$", "ering"),
    (r"ll(?=(?:ed|ing|ings|er|ers|ation|ations)$)", "l"),
    (r"ogue(?=s?$)", "og"),
    (r"grey", "gray"),
    (r"artef", "artif"),
    (r"ence(?=s?$)", "ense"),
)
AMERICAN = re.compile(
    r"(?!(?:re|over|down|up)?siz|priz|seiz|capsiz)\w*?(?:"
    r"\w{2}iz(?:e[sdr]?|ers?|ing|ations?|able)|\w{3}yz(?:e[sdr]?|ing)"
    r"|(?:col|fav|behavi|neighb|hon|lab|vap|hum|rum|harb)or(?:s|ed|ing|ful|able|al|hood)?"
    r"|(?:cent|fib|theat)er(?:s|ed|ing)?|gray\w*|(?:cat|an|di)a?logs?|artifacts?"
    r"|(?:def|off)enses?|(?:model|label|travel|cancel|signal|level)(?:ed|ing|er)"
    r"|fulfill|enroll|skillful)"
)


class Dictionary:
    """English as the book writes it, with the words and names that are its own."""

    def __init__(self, own: set[str]) -> None:
        with warnings.catch_warnings():  # spylls leaves its files open
            warnings.simplefilter("ignore", ResourceWarning)
            self.hunspell = Hunspell.from_files("en_US")
            gc.collect()
        self.own = own

    @classmethod
    def of(cls, root: Path) -> "Dictionary":
        """Return the book's: its list of words, and the authors that it cites."""
        listed = (root / "book/words.txt").read_text(encoding="utf-8").split()
        cited = (root / "book/references.bib").read_text(encoding="utf-8")
        return cls(set(listed) | names(cited))

    @cache  # noqa: B019 - one dictionary lives as long as its test
    def knows(self, word: str) -> bool:
        """Return whether a word is right; a possessive is judged by its owner."""
        owner = word.removesuffix("'s").removesuffix("'")
        if {owner, owner.lower(), folded(owner)} & self.own:
            return True
        if AMERICAN.fullmatch(owner.lower()):
            return False
        forms = (re.sub(old, new, owner) for old, new in BRITISH)
        plain = (word, owner, folded(owner))
        return any(self.hunspell.lookup(form) for form in (*plain, *forms))

    def unknown(self, text: str) -> list[str]:
        """Return the words that are not known, as "line: word"."""
        return [f"{n}: {word}" for n, word in words(text) if not self.knows(word)]


def names(bibliography: str) -> set[str]:
    """Return the names of authors in a bibliography, without accents."""
    field = re.compile(r"author\s*=\s*[{\"](.*?)[}\"],?\s*$", re.M | re.S)
    told = " ".join(field.findall(bibliography))
    plain = re.sub(r"\\[a-zA-Z]+\s*|[\\{}'\"`^~=.]", "", told)
    return {folded(name) for name in WORD.findall(plain)}


def folded(word: str) -> str:
    """Return a word without accents."""
    parts = unicodedata.normalize("NFKD", word)
    return "".join(c for c in parts if not unicodedata.combining(c))


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield the docstrings of a module with their lines, without code in them."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        text = ast.get_docstring(node, clean=False)
        if text:
            yield node.body[0].lineno, stripped(CODE.sub(blank, text))


def prose(text: str) -> str:
    """Return the sentences of a page in MyST, with its lines where they were."""
    return stripped(CELL.sub(blank, FRONT.sub(front, text)))


def front(match: re.Match[str]) -> str:
    """Return the description in a page's front matter, on its line."""
    key = "description:"
    lines = match[0].split("\n")
    return "\n".join(x.removeprefix(key) if x.startswith(key) else "" for x in lines)


def stripped(text: str) -> str:
    """Return text without code, formulas, labels and addresses."""
    text = ROLE.sub(lambda match: match[1], text)
    for pattern in SKIPPED:
        text = pattern.sub(blank, text)
    return text


def blank(match: re.Match[str]) -> str:
    """Return nothing but the line ends of what was found."""
    return " " + "\n" * match[0].count("\n")


def words(text: str) -> Iterator[tuple[int, str]]:
    """Yield the words of a text with their lines; no identifiers, no initials."""
    for number, line in enumerate(text.splitlines(), 1):
        for word in WORD.findall(line):
            letters = re.sub(r"['’]", "", word)
            if len(word) > 2 and letters.isalpha() and not INNER.search(word[1:]):
                yield number, word.replace("’", "'")
