"""What a page's equations, statements, exercises and sections look like in a preview.

Each page leaves ``_previews/<page>.js`` beside the site: a dictionary from anchors to
HTML, which ``reader.js`` asks for when a reader first points at a link to that page.
A classic script works from a folder on disk, where nothing can be fetched.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from ..files import written

ANCHOR = re.compile(r'<(div|details|figure|section|tr)\b([^>]*?)\bid="([^"]+)"([^>]*)>')
WHOLE = re.compile(r'\bclass="[^"]*\b(?:pf-statement|exercise|math|citation)\b')
ROW = re.compile("symbol-")
HEADING = re.compile(r'\s*((?:<span id="[^"]+"></span>)*)(<h[1-6]\b.*?</h[1-6]>)', re.S)
WITHIN = re.compile(r"<(/?)(?:section|details|table|p)\b[^>]*>")
LINK = re.compile(r'<a class="headerlink".*?</a>', re.S)
FOLDER = "_previews"


def element(body: str, start: int, tag: str) -> str:
    """Return the element of this tag that begins at ``start``.

    Raises:
        ValueError: It has no end.
    """
    depth = 0
    for match in re.compile(rf"<(/?){tag}\b[^>]*>").finditer(body, start):
        depth += -1 if match[1] else 1
        if depth == 0:
            return body[start : match.end()]
    raise ValueError(f"<{tag}> without end: {body[start : start + 80]}")


def opening(body: str, start: int) -> str:
    """Return the first paragraph after ``start``, before a box or another section."""
    match = WITHIN.search(body, start)
    if match is None or match[0][1] != "p":
        return ""
    return element(body, match.start(), "p")


def previews(body: str) -> Iterator[tuple[str, str]]:
    """Yield the anchors of a page's body and what they show; "" is the page itself."""
    for match in ANCHOR.finditer(body):
        tag, anchor = match[1], match[3]
        if tag == "section":
            yield from section(body, match.end(), anchor)
        elif tag == "figure" or WHOLE.search(match[2] + match[4]) or ROW.match(anchor):
            whole = element(body, match.start(), tag)
            yield anchor, f"<table>{whole}</table>" if tag == "tr" else whole


def section(body: str, start: int, anchor: str) -> Iterator[tuple[str, str]]:
    """Yield the title and first words of a section, under each of its names."""
    head = HEADING.match(body, start)
    if head is None:
        return
    text = head[2] + opening(body, head.end())
    names = re.findall(r'id="([^"]+)"', head[1]) or [anchor]
    if head[2].startswith("<h1"):
        names.append("")
    for name in names:
        yield name, text


def save(
    app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Write the previews of a page (html-page-context)."""
    if doctree is None:
        return
    found = {anchor: LINK.sub("", text) for anchor, text in previews(context["body"])}
    if found:
        file = Path(app.outdir) / FOLDER / f"{name}.js"
        data = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
        written(file, f"pfPreview({json.dumps(name)},{data});\n")


def connect(app: Sphinx) -> None:
    """Save the previews after the other handlers have finished the body."""
    app.connect("html-page-context", save, priority=900)
