"""The book's own Sphinx extension: it executes, collects, checks and renders.

text        what pages and package say; what the book promises about itself
running     stale pages run in parallel, once; the order of a build
tex         TeX becomes MathML; the font that shows it
tables      boards, indexes, the package's reference, what a page needs first
reader      boxes that fold, previews, the figures that the reader moves
shell       each page finished as it is written; small sheets, few icons
notebooks   pages as notebooks, and the package that they install
public      what search engines, shared links and lost readers see
printed     the whole book in print; the build does without
proofreading   links and spelling; the build does without
files, numbers   files written whole; numbers for people
"""

import gc
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from .files import sha
from .notebooks import takeaway
from .public import findable
from .reader import fold, live, previews
from .running.build import Press
from .shell import site, slim
from .tables import boards, indexes, needs
from .tables.api import Api
from .tex import formulas

TOOLS = ("printed", "proofreading")  # what a build does without


def parts() -> list[Path]:
    """Return the files on which a built page depends: the build's, and Temml."""
    here = Path(__file__).parent
    found = [*here.rglob("*.py"), here / "tex/temml/temml.min.js"]
    return sorted(file for file in found if file.parent.name not in TOOLS)


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
    version = sha(b"".join(file.read_bytes() for file in parts()))
    return {
        "version": version,
        "env_version": version,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
