"""Live figures: V8 draws their first state into the page, and their scripts follow.

    stage = Stage(folder)                   # of live.js and the figures
    stage.call("compute", "coupling", {"s": 1}, data)  # what the tests compare
    stage.html("coupling", "live-coupling", record)

A cell's ``live(…)`` leaves its record in its output; ``drawn`` puts the figure in
its place when the page is read, so that a page is read again when a script of its
changes, and ``scripted`` loads the scripts on the pages that want them.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from docutils import nodes
from py_mini_racer import JSEvalException, MiniRacer
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

RECORD = re.compile(r'<script type="application/json" data-live>(.*?)</script>', re.S)
LOADED = re.compile(r'<figure class="pf-live"[^>]* data-live="([\w-]+)"')


class Stage:
    """The shared module in V8, and the figures that were asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = MiniRacer()
        self.loaded: set[str] = set()
        self.load("live")

    def file(self, name: str) -> Path:
        """Return the script of a figure."""
        return self.folder / f"{name}.js"

    def load(self, name: str) -> None:
        """Run a figure's script, once.

        Raises:
            ValueError: There is no such figure.
        """
        if name in self.loaded:
            return
        if not self.file(name).is_file():
            raise ValueError(f"there is no live figure {name!r}: {self.file(name)}")
        self.engine.eval(self.file(name).read_text(encoding="utf-8"))
        self.loaded.add(name)

    def call(self, method: str, name: str, *given: Any) -> Any:
        """Return what a method of the module says about a figure."""
        self.load(name)
        values = ", ".join(json.dumps(value) for value in (name, *given))
        return json.loads(str(self.engine.eval(f"live.json(live.{method}({values}))")))

    def html(self, name: str, anchor: str, record: dict[str, Any]) -> str:
        """Return a figure as HTML in its first state; its id is ``anchor``."""
        return str(self.call("html", name, anchor, record))


def folder(app: Sphinx) -> Path:
    """Return where the figures' scripts are."""
    return Path(app.srcdir, app.config.html_static_path[0], "live")


def drawn(app: Sphinx, doctree: nodes.document) -> None:
    """Put the figures in the place of their records (doctree-read)."""
    found = [
        (node, json.loads(match[1]))
        for node in doctree.findall(nodes.raw)
        if (match := RECORD.search(node.astext())) and "html" in node["format"]
    ]
    if not found:
        return
    stage, times = Stage(folder(app)), Counter[str]()
    for node, record in found:
        times[record["name"]] += 1
        figure = draw(app, stage, record, times[record["name"]])
        node.replace_self(nodes.raw("", figure, **node.attributes))


def draw(app: Sphinx, stage: Stage, record: dict[str, Any], times: int) -> str:
    """Return the figure of a record; its page depends on the scripts from now on.

    Raises:
        ExtensionError: There is no such figure, or its script fails.
    """
    name, page = record["name"], app.env.docname
    anchor = f"live-{name}" + (f"-{times}" if times > 1 else "")
    try:
        text = stage.html(name, anchor, record)
    except (ValueError, JSEvalException) as cause:
        raise ExtensionError(f"{page}: live figure {name}: {cause}") from cause
    for script in ("live", name):
        app.env.note_dependency(str(stage.file(script)))
    return text


def scripted(
    app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Load the scripts of a page's live figures, deferred (html-page-context)."""
    found = dict.fromkeys(LOADED.findall(context.get("body") or ""))
    for script in ["live", *found] if found else []:
        app.add_js_file(f"live/{script}.js", loading_method="defer")
