"""The book's own Sphinx extension: it executes, collects, checks and renders.

page, fingerprint   what a page says, and what its execution depends on
execution, build    stale pages run in parallel, once; the order of a build
records, boards     what cells and experiments put on record, and its tables
consistency         what the book promises about itself
api, macros, site   the package's reference, the formulas' macros, the looks
"""

import gc
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config

from . import boards, site
from .api import Api
from .build import Press
from .fingerprint import sha
from .macros import macros


def configure(app: Sphinx, config: Config) -> None:
    """Give MathJax the macros of the notation page (config-inited)."""
    path = Path(app.srcdir) / "book/notation.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    config.mathjax3_config = {
        "tex": {"macros": macros(text)},
        "options": {"enableMenu": False},
    }


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the extension to Sphinx."""
    # A build makes millions of nodes that live to its end: looking for garbage
    # among them takes a fifth of its time.
    gc.set_threshold(200_000, 50, 50)
    press = Press()
    app.add_config_value("comments_config", {}, "")  # Jupyter Book always sets it
    app.connect("config-inited", configure)
    app.connect("builder-inited", press.start)
    app.connect("env-get-outdated", press.outdated)
    app.connect("env-before-read-docs", press.prepare)
    app.connect("source-read", press.stamp)
    app.connect("env-get-updated", press.renumbered, priority=900)
    app.connect("html-page-context", site.figures)
    app.connect("html-page-context", site.description)
    app.connect("build-finished", press.judge, priority=900)
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
