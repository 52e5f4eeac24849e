"""The pictures within the pages become files beside them, made small."""

import base64
import hashlib
import inspect
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from ..files import written
from . import svg

FORM = inspect.getsource(svg).encode()  # pictures made otherwise have other names
EMBEDDED = re.compile(r'src="data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)"')


def figures(
    app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Move embedded SVG pictures into files beside the page (html-page-context)."""
    body = context.get("body")
    if not body or "data:image/svg+xml;base64," not in body:
        return
    folder = Path(app.outdir) / "_images"
    prefix = "../" * name.count("/")

    def moved(match: re.Match[str]) -> str:
        data = base64.b64decode(match[1])
        file = folder / f"{hashlib.sha256(data + FORM).hexdigest()[:16]}.svg"
        if not file.exists():
            written(file, svg.small(data.decode()))
        return f'src="{prefix}_images/{file.name}"'

    context["body"] = EMBEDDED.sub(moved, body)
