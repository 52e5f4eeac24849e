"""Style sheets made small: one of many, what no page uses taken away, no blanks.

A rule stays when a page, or a script, has the classes, ids and tags that one of its
selectors asks for. What a selector says of attributes, of states and inside ``:not``
or ``:is`` is taken to hold: too much may stay, nothing that is used may go.
"""

import base64
import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tinycss2

Node = Any  # of tinycss2, which has no types

NESTED = ("media", "supports", "layer", "container")
GROUPS = (*NESTED, "keyframes")
QUIET = {"skip_comments": True, "skip_whitespace": True}
URL = re.compile(r"""url\(\s*("[^"]*"|'[^']*'|[^)"']*?)\s*\)""")
# The theme draws signs beside titles with a font of icons, which the book has not.
GLYPHS = re.compile(r"Font.{0,2}Awesome|--fa-|--pst-icon-", re.I)
REFERENCE = re.compile(r"var\(\s*(--[\w-]+)")


def parsed(text: str) -> list[Node]:
    """Return the rules of a style sheet."""
    rules: list[Node] = tinycss2.parse_stylesheet(text, **QUIET)
    return rules


def checked(text: str, name: str) -> None:
    """See that every rule and declaration of a sheet is one.

    Raises:
        ValueError: One is not; a browser would pass over it in silence.
    """
    if error := next(faults(parsed(text)), None):
        raise ValueError(f"{name}, line {error.source_line}: {error.message}")


def faults(rules: Iterable[Node]) -> Iterator[Node]:
    """Yield what is no rule and no declaration."""
    for rule in rules:
        if rule.type == "error":
            yield rule
        elif rule.type == "at-rule" and rule.content is None:
            continue
        elif rule.type == "at-rule" and rule.lower_at_keyword in GROUPS:
            yield from faults(tinycss2.parse_rule_list(rule.content, **QUIET))
        elif rule.type in ("at-rule", "qualified-rule"):
            inner = tinycss2.parse_declaration_list(rule.content, **QUIET)
            yield from (entry for entry in inner if entry.type == "error")


def needs(tokens: Iterable[Node]) -> Iterator[str]:
    """Yield the names (.class, #id, tag) that a selector asks for."""
    before = ""
    for token in tokens:
        if token.type == "ident":
            if before == ".":
                yield f".{token.value}"
            elif before != ":":
                yield token.lower_value
        elif token.type == "hash":
            yield f"#{token.value}"
        before = token.value if token.type == "literal" else ""


def parts(tokens: list[Node]) -> list[list[Node]]:
    """Return the selectors of a list, without comments and blanks at their ends."""
    found: list[list[Node]] = [[]]
    for token in tokens:
        if token == ",":
            found.append([])
        elif token.type != "comment" and (found[-1] or token.type != "whitespace"):
            found[-1].append(token)
    for part in found:
        while part and part[-1].type == "whitespace":
            part.pop()
    return [part for part in found if part]


def terse(tokens: Iterable[Node], tight: str = ",") -> str:
    """Return tokens as text, with no blank beside the characters in ``tight``."""
    words: list[str] = []
    for token in tokens:
        if token.type == "comment":
            continue
        if token.type == "whitespace":
            words.append(" ")
        elif token.type == "function":
            words.append(f"{token.name}({terse(token.arguments)})")
        elif token.type == "() block":
            words.append(f"({terse(token.content)})")
        else:
            words.append(token.serialize())
    kept: list[str] = []
    for i, word in enumerate(words):
        beside = {kept[-1] if kept else tight[0], *words[i + 1 : i + 2]}
        if word != " " or not (beside & {*tight, " "} or i + 1 == len(words)):
            kept.append(word)
    return "".join(kept).strip()


def declared(tokens: list[Node]) -> list[tuple[str, str]]:
    """Return the declarations of a block, without those that ask for a glyph font."""
    found = tinycss2.parse_declaration_list(tokens, **QUIET)
    return [
        (d.name, terse(d.value) + ("!important" if d.important else ""))
        for d in found
        if d.type == "declaration" and not GLYPHS.search(tinycss2.serialize(d.value))
    ]


class Rule(NamedTuple):
    """A selector, or an at-word, with its declarations."""

    opening: str
    body: list[tuple[str, str]]

    def __str__(self) -> str:
        return f"{self.opening}{{{';'.join(':'.join(item) for item in self.body)}}}"


class Group(NamedTuple):
    """Rules under a condition, or the frames of an animation."""

    opening: str
    rules: list[Any]

    def __str__(self) -> str:
        return f"{self.opening}{{{''.join(map(str, self.rules))}}}"


def purged(rules: Iterable[Node], used: frozenset[str]) -> Iterator[Rule | Group]:
    """Yield the rules that can hold somewhere, tersely."""
    for rule in rules:
        if rule.type == "qualified-rule":
            fit = [s for s in parts(rule.prelude) if used.issuperset(needs(s))]
            if fit:
                opening = ",".join(terse(s, ">~,") for s in fit)
                yield Rule(opening, declared(rule.content))
        elif rule.type == "at-rule" and rule.content is not None:
            yield at_rule(rule, used)


def at_rule(rule: Node, used: frozenset[str]) -> Rule | Group:
    """Return a rule like ``@media`` with what stays in it, ``@font-face`` whole."""
    word = rule.lower_at_keyword
    opening = f"@{rule.at_keyword} {terse(rule.prelude)}".rstrip()
    if word in NESTED:
        inner = parsed(tinycss2.serialize(rule.content))
        return Group(opening, list(purged(inner, used)))
    if word.endswith("keyframes"):
        frames = parsed(tinycss2.serialize(rule.content))
        return Group(
            opening, [Rule(terse(f.prelude), declared(f.content)) for f in frames]
        )
    return Rule(opening, declared(rule.content))


def leaves(rules: Iterable[Rule | Group]) -> Iterator[Rule]:
    """Yield the rules that hold declarations."""
    for rule in rules:
        if isinstance(rule, Group):
            yield from leaves(rule.rules)
        else:
            yield rule


def referenced(rules: list[Rule | Group], text: str) -> list[Rule | Group]:
    """Return the rules without variables, animations and fonts that none refers to."""
    while True:
        values = [value for rule in leaves(rules) for _, value in rule.body]
        known = set(REFERENCE.findall("\n".join([text, *values])))
        for rule in leaves(rules):
            rule.body[:] = [
                item for item in rule.body
                if not item[0].startswith("--") or item[0] in known or item[0] in text
            ]  # fmt: skip
        if sum(len(rule.body) for rule in leaves(rules)) == len(values):
            break
    asked = [item for rule in leaves(rules) if rule.opening != "@font-face"
             for item in rule.body]  # fmt: skip
    said = text + " ".join(v for n, v in asked if "animation" in n or "font" in n)
    return list(filled(rules, said))


def filled(rules: Iterable[Rule | Group], said: str) -> Iterator[Rule | Group]:
    """Yield the rules that say something, and what is named in ``said``."""
    for rule in rules:
        if "keyframes" in rule.opening or rule.opening == "@font-face":
            if name(rule) and name(rule) in said:
                yield rule
        elif isinstance(rule, Group):
            inner = list(filled(rule.rules, said))
            if inner:
                yield Group(rule.opening, inner)
        elif rule.body:
            yield rule


def name(rule: Rule | Group) -> str:
    """Return the name of an animation or of a font."""
    if isinstance(rule, Rule):
        return dict(rule.body).get("font-family", "").strip("\"'")
    return rule.opening.split()[-1]


def embedded(font: Path) -> str:
    """Return the address of a font that holds all of it."""
    data = base64.b64encode(font.read_bytes()).decode("ascii")
    return f'url("data:font/{font.suffix[1:]};base64,{data}")'


def moved(text: str, folder: str) -> str:
    """Return a sheet of ``folder`` (below _static) with addresses from _static."""

    def address(match: re.Match[str]) -> str:
        name = match[1].strip("\"'")
        if re.match(r"[a-z]+:|/|#", name):
            return match[0]
        return f'url("{posixpath.normpath(posixpath.join(folder, name))}")'

    return URL.sub(address, text)


def bundled(sheets: Iterable[str], used: frozenset[str], text: str) -> str:
    """Return one small sheet of many, for pages and scripts that use these names.

    ``text`` is where variables and animations may be named too: the scripts, and what
    pages say in style attributes.
    """
    rules = [rule for sheet in sheets for rule in purged(parsed(sheet), used)]
    return "\n".join(str(rule) for rule in referenced(rules, text)) + "\n"
