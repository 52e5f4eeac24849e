"""What a reader takes away: each page as a notebook that runs, and all in one file.

    _notebooks/<part>/<chapter>.ipynb     each executed page
    _notebooks/pushforward-….whl          the package and its runs
    _notebooks/notebooks.zip              all of these

The first cell of a notebook installs the package where it is missing: from the wheel
beside the notebook, else from the site or the repository, where an address of one is
configured.  It never asks an index for the package's name.
"""

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.docutils import SphinxDirective

from ..files import written
from ..public.findable import address
from . import launch
from .notebook import Cell, Numbers, Writer, assembled
from .wheel import Wheel, zipped

FOLDER = "_notebooks"
ALL = f"{FOLDER}/notebooks.zip"
PDF = "push-forward.pdf"

INSTALL = """\
# {title}: a page of the book Push-forward, as a notebook.
# This cell installs the book's package where it is missing; run it first.
import importlib.util
import pathlib
import subprocess
import sys

WHEEL = "{wheel}"
ADDRESS = "{address}"  # where the package is, on the web
if importlib.util.find_spec("pushforward") is None:
    here = pathlib.Path.cwd()
    beside = [str(f / WHEEL) for f in (here, *here.parents[:2]) if (f / WHEEL).exists()]
    source = beside[0] if beside else ADDRESS
    if not source:
        raise FileNotFoundError(
            f"The book's package is not installed. Put {{WHEEL}} into {{here}} and run "
            "this cell again: it is on the book's site, in the folder _notebooks, and "
            "in notebooks.zip, where all notebooks are."
        )
    command = [sys.executable, "-m", "pip", "install", "--quiet", source]
    subprocess.run(command, check=True)
    importlib.invalidate_caches()"""

README = """The notebooks of the book Push-forward

Every page that computes is here as a Jupyter notebook. The first cell of each
installs the book's package from {wheel}, which lies beside this file, with what it
needs (PyTorch among it), where it is missing. To install it once for all:

    pip install jupyterlab {wheel}
    jupyter lab
"""


def configure(app: Sphinx, config: Config) -> None:
    """See where the book is published, and whether it is printed (config-inited)."""
    address(config)  # a faulty one ends the build before its pages run
    config.press_pdf = (Path(app.outdir).parent / PDF).exists()


class Takeaway:
    """Writes the notebooks of a build; does nothing where there is no package."""

    def __init__(self) -> None:
        self.wheel: Wheel | None = None

    def start(self, app: Sphinx) -> None:
        """Look at the project (builder-inited)."""
        root = Path(app.srcdir)
        has = (root / "pyproject.toml").exists() and app.builder.format == "html"
        self.wheel = Wheel(root) if has else None

    def write(
        self,
        app: Sphinx,
        name: str,
        template: str,
        context: dict[str, Any],
        doctree: nodes.document | None,
    ) -> None:
        """Write the page's notebook and offer it for download (html-page-context)."""
        if self.wheel is None or doctree is None:
            return
        made = self.notebook(app, name, doctree, self.wheel)
        path = Path(app.outdir) / FOLDER / file(name)
        if made:
            written(path, json.dumps(made, ensure_ascii=False, indent=1) + "\n")
            context["press_notebook"] = file(name)
        else:
            path.unlink(missing_ok=True)  # of a page that was a notebook
        offer(context, downloads(app, name if made else ""))

    def notebook(
        self, app: Sphinx, name: str, doctree: nodes.document, wheel: Wheel
    ) -> dict[str, Any] | None:
        """Return the notebook of a page; None for one without code."""
        if not app.env.metadata[name].get("kernelspec"):
            return None
        numbers = Numbers(
            app.env.toc_secnumbers.get(name, {}), app.env.toc_fignumbers.get(name, {})
        )
        base = address(app.config)
        place = f"{base}{name}.html" if base else ""
        writer = Writer(place, app.config.press_macros, numbers)
        pieces = list(writer.below(doctree))
        if not any(isinstance(piece, Cell) for piece in pieces):
            return None
        title = app.env.titles[name].astext()
        first = Cell(self.install(app, title, wheel), [])
        return {
            "cells": assembled([first, *pieces, writer.references()]),
            "metadata": {
                "kernelspec": {
                    "display_name": "Python 3",
                    "language": "python",
                    "name": "python3",
                },
                "language_info": {"name": "python"},
                "title": title,
            },
            "nbformat": 4,
            "nbformat_minor": 5,
        }

    def install(self, app: Sphinx, title: str, wheel: Wheel) -> str:
        """Return the cell that installs the package."""
        base, source = address(app.config), ""
        repository = launch.Repository.of(app.config)
        if base:
            source = f"{base}{FOLDER}/{wheel.name}"
        elif repository:
            source = f"git+{repository.url}@v{wheel.version}"
        return INSTALL.format(title=title, wheel=wheel.name, address=source)

    def finish(self, app: Sphinx, error: Exception | None) -> None:
        """Write the wheel and the zip file; remove what is no page (build-finished)."""
        if self.wheel is None or error is not None:
            return
        folder = Path(app.outdir) / FOLDER
        folder.mkdir(exist_ok=True)
        wheel = self.wheel.write(folder)
        known = {folder / file(name) for name in app.env.found_docs}
        for path in sorted(folder.rglob("*.ipynb")):
            if path not in known:
                path.unlink()
        needs = (
            f"--extra-index-url https://download.pytorch.org/whl/cpu\n./{wheel.name}\n"
        )
        written(folder / "requirements.txt", needs)  # for Binder
        self.pack(folder, wheel)
        pdf = Path(app.outdir).parent / PDF
        if app.config.press_pdf:
            written(Path(app.outdir) / PDF, pdf.read_bytes())

    def pack(self, folder: Path, wheel: Path) -> None:
        """Write all notebooks and the wheel into one file."""
        files = [("push-forward/README.txt", README.format(wheel=wheel.name).encode())]
        for path in [*sorted(folder.rglob("*.ipynb")), wheel]:
            name = f"push-forward/{path.relative_to(folder).as_posix()}"
            files.append((name, path.read_bytes()))
        zipped(folder / Path(ALL).name, files)


def file(name: str) -> str:
    """Return the path of a page's notebook in the folder of notebooks."""
    return f"{name.removeprefix('book/')}.ipynb"


def downloads(app: Sphinx, name: str) -> list[dict[str, str]]:
    """Return what the download menu offers beside the theme's own entries."""
    found = []
    if name:
        url, tip = (
            f"{FOLDER}/{file(name)}",
            "Download this page as a notebook that runs",
        )
        found.append(("Notebook (.ipynb)", url, "fas fa-code", tip, "notebook"))
    if app.config.press_pdf:
        tip = "Download the whole book, ready to print"
        found.append(("Whole book (.pdf)", PDF, "fas fa-book", tip, "book"))
    return [
        {"type": "link", "text": text, "url": url, "icon": icon, "tooltip": tip,
         "label": f"download-{label}-button"}
        for text, url, icon, tip, label in found
    ]  # fmt: skip


def offer(context: dict[str, Any], entries: list[dict[str, str]]) -> None:
    """Put entries first into the page's download menu."""
    for group in context.get("header_buttons", []):
        if group.get("label") == "download-buttons":
            linked = [e | {"url": context["pathto"](e["url"], 1)} for e in entries]
            group["buttons"] = [*linked, *group["buttons"]]


class takeaway(nodes.General, nodes.Element):
    """The paragraph of the front page that links what can be taken away."""


class TakeawayDirective(SphinxDirective):
    """Where the front page says what can be taken away: {takeaway}."""

    def run(self) -> list[nodes.Node]:
        """Return the paragraph, written when the page is."""
        return [takeaway()]


def visit(self: Any, node: nodes.Element) -> None:
    """Write the links to what this build has made."""
    up = "../" * self.builder.current_docname.count("/")
    text = (
        "Each page that computes can be downloaded as a notebook that runs, by the "
        f'button at its head; here are <a href="{up}{ALL}">all of them in one file</a>'
    )
    if self.builder.config.press_pdf:
        text += f', and <a href="{up}{PDF}">the whole book as a PDF</a>'
    self.body.append(f"<p>{text}.</p>\n")
    raise nodes.SkipNode


def connect(app: Sphinx) -> None:
    """Connect this room and the launch buttons to Sphinx."""
    made = Takeaway()
    app.add_config_value("press_pdf", False, "html")
    app.add_config_value("press_repository", "", "html")
    app.add_node(takeaway, html=(visit, None))
    app.add_directive("takeaway", TakeawayDirective)
    app.connect("config-inited", configure)
    app.connect("config-inited", launch.configure)
    app.connect("builder-inited", made.start)
    app.connect("html-page-context", made.write, priority=800)
    app.connect("html-page-context", launch.buttons, priority=810)
    app.connect("build-finished", made.finish, priority=300)
