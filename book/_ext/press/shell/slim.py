"""What is taken away when all pages are written: rules, files and figures unused.

One style sheet, ``_static/book.css``, is made of the theme's, the extensions' and the
book's, of the rules that some page or script can use; it is made again when what the
pages use, or a sheet, has changed. Then the folder keeps what the site asks for.
Everything is read from where it is installed or written, so that a second run on the
same folder changes nothing.
"""

import inspect
import json
import posixpath
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from sphinx.application import Sphinx

from ..files import sha, written
from ..public import cards
from ..reader.previews import FOLDER as PREVIEWS
from . import icons, styles
from .bridge import SEARCH, SHEET

TAG = re.compile(r"<([a-z][a-z0-9-]*)\b")
CLASSES = re.compile(r'\bclass="([^"]*)"')
IDS = re.compile(r'\bid="([^"]*)"')
STYLES = re.compile(r'\bstyle="([^"]*)"')
FILES = re.compile(r"\b(_images|_sources|_static)/([^\"'?#)<> ]+)")
FONT = re.compile(r"\.(fa[a-z]?|fa-.*)$")  # drawn by icons, not by a font
WORDS = re.compile(r"[\w-]+")
IMPORT = re.compile(r"""@import\s+(?:url\()?["']?([^"')]+)["']?\)?\s*;""")
WOFF = re.compile(r"""url\(["']?([\w./-]+\.woff2)["']?\)""")
MADE = re.compile(r"[0-9a-f]{16,64}\.(?:svg|png|jpe?g)")  # a figure of a cell

# What the theme brings and no page asks for once its scripts are replaced.
UNUSED = [
    "check-solid.svg",
    "clipboard.min.js",
    "copy-button.svg",
    "copybutton.css",
    "copybutton.js",
    "copybutton_funcs.js",
    "design-tabs.js",
    "exercise.css",
    "images",
    "locales",
    "minus.png",
    "mystnb.*.css",
    "plus.png",
    "proof.css",
    "sbt-webpack-macros.html",
    "press.css",
    "math.css",
    "live.css",
    "reader.css",
    "scripts",
    "sphinx-design.min.css",
    "styles",
    "togglebutton.css",
    "togglebutton.js",
    "vendor",
    "webpack-macros.html",
    "sphinx-thebe.*",
    "thebe-*",
]


class Used(NamedTuple):
    """What a page uses: names of rules, words in style attributes, files."""

    names: list[str]
    styles: list[str]
    files: list[str]


def used(text: str) -> Used:
    """Return what the HTML of a page uses."""
    classes = {word for found in CLASSES.findall(text) for word in found.split()}
    names = set(TAG.findall(text)) | {f".{word}" for word in classes}
    names |= {f"#{word}" for word in IDS.findall(text)}
    files = {f"{folder}/{name}" for folder, name in FILES.findall(text)}
    return Used(sorted(names), sorted(set(STYLES.findall(text))), sorted(files))


class Pages:
    """What each page uses, looked at again when its file has changed."""

    def __init__(self, site: Path, memory: Path) -> None:
        self.memory = memory
        before = json.loads(memory.read_text()) if memory.exists() else {}
        self.known: dict[str, tuple[str, Used]] = {}
        for path in sorted(site.rglob("*.html")):
            if "_static" not in path.relative_to(site).parts:
                name = path.relative_to(site).as_posix()
                self.known[name] = looked(path, before.get(name))

    def keep(self) -> None:
        """Remember what was seen."""
        written(self.memory, json.dumps(self.known))

    def all(self, what: str) -> set[str]:
        """Return the names, styles or files that any page uses."""
        return {x for _, page in self.known.values() for x in getattr(page, what)}


def looked(path: Path, before: list | None) -> tuple[str, Used]:
    """Return the state of a file, and what it uses."""
    status = path.stat()
    state = f"{status.st_mtime_ns} {status.st_size}"
    if before and before[0] == state:
        return state, Used(*before[1])
    return state, used(path.read_text(encoding="utf-8"))


class Sources:
    """Where the static files of the theme, the extensions and the book come from."""

    def __init__(self, app: Sphinx) -> None:
        builder: Any = app.builder
        theme = [Path(folder, "static") for folder in builder.theme.get_theme_dirs()]
        paths = [Path(folder) for folder in app.config.html_static_path]
        given = [Path(app.confdir, path) for path in paths]
        self.made = Path(app.outdir, "_static")
        self.folders = [*given, *theme, self.made]
        # The extensions add theirs, which are absolute.
        self.book = [Path(app.confdir, p) for p in paths if not p.is_absolute()]
        found = getattr(builder, "_orig_css_files", builder._css_files)
        files = sorted(found, key=lambda file: file.priority)
        self.names = [
            "styles/theme.css",
            "styles/pydata-sphinx-theme.css",
            *(str(file.filename).removeprefix("_static/") for file in files),
        ]

    def file(self, name: str) -> Path | None:
        """Return the path of a static file, or None."""
        paths = (folder / name for folder in self.folders)
        return next((path for path in paths if path.is_file()), None)

    def sheet(self, name: str) -> str:
        """Return a sheet's text, with what it imports, and addresses from _static.

        Raises:
            ValueError: A sheet of the book has a fault.
        """
        path = self.file(name)
        if path is None:
            return ""
        folder, text = posixpath.dirname(name), path.read_text(encoding="utf-8")
        if any(path.is_relative_to(own) for own in self.book):
            styles.checked(text, path.name)
        pieces = IMPORT.split(text)
        pieces[::2] = [
            WOFF.sub(self.embedded, styles.moved(piece, folder))
            for piece in pieces[::2]
        ]
        pieces[1::2] = [
            self.sheet(posixpath.normpath(posixpath.join(folder, address)))
            for address in pieces[1::2]
        ]
        return "".join(pieces)

    def embedded(self, match: re.Match[str]) -> str:
        """Return a font of the book as part of the sheet.

        It comes before the first paint, from a disk too: a font that comes later moves
        the text.
        """
        found = [path for folder in self.book if (path := folder / match[1]).is_file()]
        return styles.embedded(found[0]) if found else match[0]

    def sheets(self) -> list[str]:
        """Return the texts of all sheets, in their order on a page."""
        return [self.sheet(name) for name in self.names]

    def scripts(self) -> str:
        """Return the text of every script of the book and of the search."""
        files = [f for folder in self.book for f in sorted(folder.rglob("*.js"))]
        search = [f for name in sorted(SEARCH) if (f := self.file(name))]
        return "\n".join(f.read_text(encoding="utf-8") for f in [*files, *search])


def finish(app: Sphinx, error: Exception | None) -> None:
    """Make the one style sheet; take away what is not used (build-finished)."""
    if error is not None or app.builder.name != "html":
        return
    site, memory = Path(app.outdir), Path(app.doctreedir)
    forgotten(site, app.env.found_docs)
    pages, sources = Pages(site, memory / "used.json"), Sources(app)
    style(pages, sources, memory / "sheet.txt")
    refreshed(sources)
    swept(site, pages)
    pages.keep()


def style(pages: Pages, sources: Sources, memory: Path) -> None:
    """Write the style sheet, if what it is made of has changed."""
    scripts, sheets = sources.scripts(), sources.sheets()
    words = set(WORDS.findall(scripts))
    names = pages.all("names")
    icon = {n[1:] for n in names if n.startswith(".fa-")} | {
        word for word in words if word.startswith("fa-")
    }
    names |= {*words, *(f".{w}" for w in words), *(f"#{w}" for w in words)}
    names = {name for name in names if not FONT.match(name)}
    text = "\n".join([scripts, *sorted(pages.all("styles"))])
    code = "".join(inspect.getsource(module) for module in (icons, styles))
    digest = sha("\0".join([code, *sheets, text, *sorted(names | icon)]).encode())
    target = sources.made / SHEET
    if target.exists() and memory.exists() and memory.read_text() == digest:
        return
    theme = sources.file("scripts/fontawesome.js")
    drawn = icons.sheet(icon, theme) if theme else ""
    rest = styles.bundled(sheets, frozenset(names), text)
    written(target, f"{drawn}\n{rest}")
    written(memory, digest)


def refreshed(sources: Sources) -> None:
    """Bring the book's own static files up to date, also when no page changed.

    Its sheets are in the one sheet.
    """
    for folder in sources.book:
        for path in folder.rglob("*"):
            name = path.relative_to(folder)
            hidden = any(part.startswith(".") for part in name.parts)
            if path.is_file() and path.suffix != ".css" and not hidden:
                written(sources.made / name, path.read_bytes())


def forgotten(site: Path, names: set[str]) -> None:
    """Take away what pages left that are no pages any more: itself, preview, card.

    What lies beside the folders of pages stays: the search, the index, 404.
    """
    kept = {site / f"{name}.html" for name in names}
    kept |= {site / PREVIEWS / f"{name}.js" for name in names}
    shorts = {cards.short(name) for name in names}
    left = {*site.glob("[!_]*/**/*.html"), *site.glob(f"{PREVIEWS}/**/*.js")} - kept
    left |= {card for card in site.glob("cards/*.png")
             if card.stem.rpartition("-")[0] not in shorts}  # fmt: skip
    for path in left:
        path.unlink()


def swept(site: Path, pages: Pages) -> None:
    """Take away the files that the theme and old pages left and no page asks for."""
    asked = pages.all("files")
    left = [path for pattern in UNUSED for path in site.glob(f"_static/{pattern}")]
    left += [path for path in site.glob("_images/*") if MADE.fullmatch(path.name)]
    left += [site / "_sources"]
    for path in left:
        inner = [file for file in (path, *path.rglob("*")) if file.is_file()]
        kept = {f for f in inner if f.relative_to(site).as_posix() in asked}
        for file in {*inner} - kept:
            file.unlink()
        if path.is_dir() and not kept:
            shutil.rmtree(path)
