"""What the finished pages look like: figures as files, a description, no waste."""

import base64
import hashlib
import html
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

EMBEDDED = re.compile(r'src="data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)"')
LENGTH = 155  # of a description, in characters


def figures(
    app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Move embedded SVG pictures into files beside the page (html-page-context)."""
    body = context.get("body")
    if not body or "data:image/svg+xml;base64," not in body:
        return
    folder = Path(app.outdir) / "_images"
    folder.mkdir(exist_ok=True)
    prefix = "../" * name.count("/")

    def moved(match: re.Match[str]) -> str:
        data = base64.b64decode(match[1])
        file = folder / f"{hashlib.sha256(data).hexdigest()[:16]}.svg"
        if not file.exists():
            file.write_bytes(data)
        return f'src="{prefix}_images/{file.name}"'

    context["body"] = EMBEDDED.sub(moved, body)


def description(
    app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Describe the page to search engines by its first words (html-page-context)."""
    if doctree is None:
        return
    text = shortened(first_words(doctree))
    if text:
        tag = f'<meta name="description" content="{html.escape(text)}" />'
        context["metatags"] = context.get("metatags", "") + "\n" + tag


def first_words(doctree: nodes.document) -> str:
    """Return the text of the first paragraphs, without formulas in display."""
    words = ""
    for node in doctree.findall(nodes.paragraph):
        if isinstance(node.parent, nodes.section):
            words += " " + node.astext()
        if len(words) > LENGTH:
            break
    return " ".join(words.split())


def shortened(text: str) -> str:
    """Return text cut at a word, with an ellipsis."""
    if len(text) <= LENGTH:
        return text
    return text[:LENGTH].rpartition(" ")[0].rstrip(",;:.") + " …"
