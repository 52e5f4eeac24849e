"""Matplotlib's pictures made small: the same drawing in fewer characters.

A line needs no millionth of a point: two places of a coordinate are a hundredth of a
pixel. Metadata, ids that nothing refers to and blanks go.
"""

import re

DECIMAL = re.compile(r"-?\d+\.\d{3,}")
PATH = re.compile(r'(\s(?:d|points)=")([^"]*)"')
PLACE = re.compile(r'(\s(?:x|y|x1|x2|y1|y2|cx|cy|width|height|transform)=")([^"]*)"')
STYLE = re.compile(r'(\sstyle="|<style[^>]*>)([^"<]*)')
DATA = re.compile(r'"data:[^"]*"')
JOINS = re.compile(r" ?([MLHVCSQTAZmlhvcsqtaz]) ?")
USED = re.compile(r"(?:url\(#|href=\"#)([^)\"]+)")
NAMED = re.compile(r'\sid="([^"]*)"')
GONE = re.compile(
    r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>|\sversion=\"1.1\"",
    re.S,
)
EMPTY = re.compile(r"<(g|defs)>\s*</\1>|<(?:g|defs)\s*/>")


def hundredths(match: re.Match[str]) -> str:
    """Return a number to two places."""
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")


def path(match: re.Match[str]) -> str:
    """Return a path with short numbers and no idle blanks."""
    short = DECIMAL.sub(hundredths, " ".join(match[2].split()))
    return match[1] + JOINS.sub(r"\1", short) + '"'


def place(match: re.Match[str]) -> str:
    """Return a place with five digits: a scale is a small number."""
    return match[1] + DECIMAL.sub(lambda m: f"{float(m[0]):.5g}", match[2]) + '"'


def small(text: str) -> str:
    """Return a picture's text made small."""
    text = GONE.sub("", text)
    used = set(USED.findall(text))
    text = NAMED.sub(lambda m: m[0] if m[1] in used else "", text)
    text = PLACE.sub(place, PATH.sub(path, text))
    text = STYLE.sub(lambda m: m[1] + re.sub(r"([:;])\s+", r"\1", m[2]), text)
    text = DATA.sub(lambda m: "".join(m[0].split()), text)
    text = re.sub(r">\s+<", "><", text)
    while (less := EMPTY.sub("", text)) != text:
        text = less
    return text.strip() + "\n"
