"""The book's own Sphinx extension: it executes, collects, checks and renders.

page, fingerprint   what a page says, and what its execution depends on
execution, build    stale pages run in parallel, once; the order of a build
records, boards     what cells and experiments put on record, and its tables
consistency         what the book promises about itself
findable, cards     what search engines and shared links see; doors: 404, the root
live                the figures that the reader moves
fold, needs, previews, indexes   boxes that fold, and ways through the book
takeaway, notebook, expand, wheel, launch   pages as notebooks, and their package
pdf, sheets, packed         the whole book in print; the build does without them
formulas, mathml, macros, font   TeX becomes MathML; the font that shows it
bridge, slim        each page finished as it is written; what the site can spare
styles, icons, svg  small sheets, few icons, short pictures
api, site           the package's reference, the looks
"""

import gc
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from . import (
    boards,
    findable,
    fold,
    formulas,
    indexes,
    live,
    needs,
    previews,
    site,
    slim,
    takeaway,
)
from .api import Api
from .build import Press
from .fingerprint import sha


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the extension to Sphinx."""
    # A build makes millions of nodes that live to its end: looking for garbage
    # among them takes a fifth of its time.
    gc.set_threshold(200_000, 50, 50)
    press = Press()
    app.add_config_value("comments_config", {}, "")  # Jupyter Book always sets it
    app.connect("builder-inited", press.start)
    app.connect("env-get-outdated", press.outdated)
    app.connect("env-before-read-docs", press.prepare)
    app.connect("source-read", press.stamp)
    app.connect("env-get-updated", press.renumbered, priority=900)
    app.connect("doctree-read", live.drawn)
    app.connect("html-page-context", live.scripted)
    app.connect("html-page-context", site.figures)
    app.connect("html-page-context", findable.describe)
    app.connect("build-finished", findable.finish)
    app.connect("build-finished", slim.finish, priority=800)
    app.connect("build-finished", press.judge, priority=900)
    takeaway.connect(app)
    for reading in (formulas, fold, needs, previews, indexes):
        reading.connect(app)
    app.add_directive("checks", boards.Checks)
    app.add_directive("ledger", boards.Ledger)
    app.add_directive("runs", boards.Runs)
    app.add_directive("page-times", boards.PageTimes)
    app.add_directive("api", Api)
    files = sorted(Path(__file__).parent.glob("*.py"))
    version = sha(b"".join(file.read_bytes() for file in files))
    return {
        "version": version,
        "env_version": version,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
