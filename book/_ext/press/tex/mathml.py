"""MathML as the book wants it: small, without inline styles, able to break lines."""

import re
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import NamedTuple

from .spacing import BINARY, spaced

SILENT = ("fence", "separator")  # attributes that no browser lays out
BREAKS = BINARY - set("∘∗∣∖/:")
WHOLE = 12  # a formula of so few characters stays on one line

# What Temml says by a style that a content security policy forbids: our classes.
CLASSES = {
    "margin-left:-0.1667em": "m-back",
    "font-weight:bold": "m-bold",
    "padding-left:0em": "m-left-0",
    "padding-right:0em": "m-right-0",
    "padding-left:0pt": "m-left-0",
    "padding-right:0pt": "m-right-0",
    "padding-left:5.9776pt": "m-left-1",
    "padding-right:5.9776pt": "m-right-1",
    "padding-left:1em": "m-left-2",
    "padding-right:1em": "m-right-2",
    "border-top:0.06em solid": "m-line-top",
    "border-right:0.06em solid": "m-line-right",
    "border-bottom:0.06em solid": "m-line-bottom",
    "border-left:0.06em solid": "m-line-left",
    "width:100%": "m-wide",
    "width:50%": "m-half",
    "padding:0": "m-none",
    "padding:3pt": "m-padded",
    "border:1px solid": "m-boxed",
}
SAID = re.compile(r"color:.*|display:block math|math-depth:\d")  # by attributes too


class Formula(NamedTuple):
    """A formula as MathML, and the characters that it is set with."""

    mathml: str
    characters: frozenset[str]


def polished(mathml: str) -> Formula:
    """Return Temml's MathML with classes for styles, and with places to break.

    Raises:
        ValueError: There is a style for which the book has no class.
    """
    root = ET.fromstring(mathml)
    for element in root.iter():
        for name in SILENT:
            element.attrib.pop(name, None)
        restyle(element)
    spaced(root)
    row = root.find("semantics/mrow")
    if row is not None and len("".join(row.itertext())) > WHOLE:
        broken(root, row)
    text = ET.tostring(root, encoding="unicode", short_empty_elements=False)
    return Formula(text, frozenset(characters(root)))


def restyle(element: ET.Element) -> None:
    """Replace an element's style by attributes and classes."""
    style = element.attrib.pop("style", "")
    if "math-depth:0" in style:
        element.set("scriptlevel", "0")
    said = [part.strip() for part in style.split(";")]
    for part in said:
        if part.startswith("color:"):
            element.set("mathcolor", part.removeprefix("color:"))
    wanted = [p for p in said if p and not SAID.fullmatch(p)]
    if unknown := [part for part in wanted if part not in CLASSES]:
        raise ValueError(f"no class in press/mathml.py for the style {unknown[0]!r}")
    if wanted:
        given = element.get("class", "").split()
        element.set("class", " ".join([*given, *(CLASSES[part] for part in wanted)]))


def broken(root: ET.Element, row: ET.Element) -> None:
    """Part a formula's row after relations and operators, where a line may break."""
    pieces = list(parted(list(row)))
    if len(pieces) == 1:
        return
    root.set("class", f"{root.get('class', '')} m-long".strip())
    row.set("class", "m-row")
    row[:] = []
    for piece in pieces:
        ET.SubElement(row, "mrow").extend(piece)


def parted(children: list[ET.Element]) -> Iterator[list[ET.Element]]:
    """Yield the pieces of a row; nothing is parted within parentheses."""
    piece: list[ET.Element] = []
    depth = 0
    for k, child in enumerate(children):
        piece.append(child)
        depth += {"prefix": 1, "postfix": -1}.get(fence(child), 0)
        after = children[k + 1] if k + 1 < len(children) else None
        if after is None or (after.tag == "mspace" and depth <= 0):
            continue
        space = child.tag == "mspace" and len(piece) > 1 and operator(piece[-2])
        if depth <= 0 and (operator(child) or space):
            if child.tag == "mo":
                child.set("form", "infix")
            yield piece
            piece = []
    yield piece


def fence(child: ET.Element) -> str:
    """Return whether an element opens ("prefix") or closes ("postfix") a group."""
    text = child.text or ""
    opens = child.tag == "mo" and text in ("(", "[", "{", "⟨", "⌊", "⌈")
    closes = child.tag == "mo" and text in (")", "]", "}", "⟩", "⌋", "⌉")
    return "prefix" if opens else "postfix" if closes else ""


def operator(child: ET.Element) -> bool:
    """Return whether a line may break after this element."""
    return child.tag == "mo" and child.text in BREAKS and child.get("form") != "prefix"


# What a browser shows for a letter that stands alone.
ITALICS = {
    chr(int(unicodedata.decomposition(chr(code)).split()[-1], 16)): chr(code)
    for code in [*range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C), 0x210E]
    if unicodedata.decomposition(chr(code))
}


def characters(root: ET.Element) -> set[str]:
    """Return the characters that a formula is set with, italics among them."""
    found: set[str] = set()
    for element in root.iter():
        text = element.text or ""
        if element.tag == "annotation":
            continue
        if element.tag in ("msqrt", "mroot"):
            found.add("√")
        if element.tag == "mi" and element.get("mathvariant") != "normal":
            text = ITALICS.get(text, text)
        found |= {c for c in text if not c.isspace() and c != "\u2061"}
    return found
