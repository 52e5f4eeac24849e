"""The whole book as a PDF: ``python -m press.printed.pdf``, after a build.

Chromium prints the pages as one document, with the site's own formulas and pictures.
It prints at least twice: the first printing says on which page every heading and
statement stands, the next has these numbers in the table of contents and after each
reference to another chapter, and so on until they are right.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import yaml  # type: ignore[import-untyped]
from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]
from pypdf import PdfReader

from ..files import written
from ..notebooks.wheel import Wheel
from ..public.findable import SUBTITLE
from ..shell.styles import embedded
from .packed import packed
from .sheets import Sheets, Words, document

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--allow-file-access-from-files")  # fmt: skip
PRINTINGS = 4
PATIENCE = 1800  # seconds for one printing
FIT = """
const found = '.pf-formula > *, table, .pf-picture > svg';
const wide = [...document.querySelectorAll(found)];
const size = tag => Math.max(tag.scrollWidth, tag.getBoundingClientRect().width);
const ratio = wide.map(tag => tag.parentElement.clientWidth / size(tag));
wide.forEach((tag, k) => {
  if (ratio[k] < 0.998) tag.style.zoom = Math.max(0.4, ratio[k]);
});
"""


def browser() -> str:
    """Return the browser that prints.

    Raises:
        FileNotFoundError: There is none; the message says what to install.
    """
    named = os.environ.get("CHROMIUM", "")
    found = [path for name in (named, *NAMES) if name and (path := shutil.which(name))]
    if not found:
        raise FileNotFoundError(
            "Printing needs Chromium or Chrome. On Debian or Ubuntu: apt-get install "
            "chromium. Elsewhere, name the program: CHROMIUM=/path/to/chrome make pdf"
        )
    return found[0]


def printed(page: Path, target: Path) -> None:
    """Print a page of HTML.

    Raises:
        RuntimeError: The browser did not; the message has its last words.
    """
    target.unlink(missing_ok=True)  # of an earlier printing
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            browser(), *QUIET, f"--user-data-dir={profile}", "--no-pdf-header-footer",
            "--generate-pdf-document-outline", "--export-tagged-pdf",
            f"--print-to-pdf={target.resolve()}", page.resolve().as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode or not target.exists():
        raise RuntimeError(f"Chromium did not print:\n{done.stderr[-2000:]}")


def places(reader: PdfReader) -> dict[str, int]:
    """Return the page, from 1, of every anchor that a link of the PDF leads to."""
    pages = [page.indirect_reference for page in reader.pages]
    index = {page.idnum: k for k, page in enumerate(pages, 1) if page}
    found = {}
    for name, place in reader.named_destinations.items():
        number = getattr(place.page, "idnum", None)
        if number in index:
            found[name.lstrip("/")] = index[number]
    return found


def settled(sheets: Sheets, words: Words, folder: Path) -> Path:
    """Print until the numbers on the pages are those of the pages.

    Raises:
        RuntimeError: They are not after four printings, or a page is missing.
    """
    page, target = folder / "book.html", folder / "book.pdf"
    numbers: dict[str, int] = {}
    for k in range(PRINTINGS):
        page.write_text(document(sheets, words, numbers), encoding="utf-8")
        start = time.perf_counter()
        printed(page, target)
        reader = PdfReader(target)
        found = places(reader)
        if lost := [s.title for s in sheets.all if s.leaf.anchor not in found]:
            raise RuntimeError(f"these pages were not printed: {', '.join(lost)}")
        say(f"printing {k + 1}: {len(reader.pages)} pages, "
            f"{time.perf_counter() - start:.0f} s")  # fmt: skip
        if found == numbers:
            return target
        numbers = found
    raise RuntimeError("the page numbers did not settle")


def held(style: str, folders: tuple[Path, ...]) -> str:
    """Return a style sheet with its fonts inside: they are there at the first line.

    A font that is a file may arrive when the pages are already laid out.
    """

    def data(match: re.Match[str]) -> str:
        path = next((f / match[1] for f in folders if (f / match[1]).exists()), None)
        if path is None:
            raise FileNotFoundError(f"font {match[1]} is missing")
        return embedded(path)

    return re.sub(r'url\("([\w-]+\.(?:woff2|ttf))"\)', data, style)


def words(root: Path, site: Path) -> Words:
    """Return the title page's words and the style sheets."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    fonts = Path(matplotlib.get_data_path()) / "fonts/ttf"
    sheets = [root / f"book/_static/{name}.css" for name in ("math", "live", "press")]
    sheets.append(Path(__file__).with_name("pdf.css"))
    style = "\n".join(p.read_text(encoding="utf-8") for p in sheets if p.exists())
    code = HtmlFormatter(style="a11y-high-contrast-light").get_style_defs(".highlight")
    author = config["author"]
    return Words(
        config["title"],
        SUBTITLE,
        author,
        f"Version {Wheel(root).version}. © {config['copyright']} {author}. "
        "Text: CC BY 4.0. Code: MIT.",
        f"{code}\n{held(style, (site / '_static', fonts))}",
        FIT,
    )


def make(root: Path, site: Path, target: Path, only: list[str] | None = None) -> Path:
    """Print the book of ``root``, built in ``site``, to ``target``."""
    folder = site.parent / "print"
    folder.mkdir(exist_ok=True)
    said = words(root, site)
    made = settled(Sheets(site, root / "_toc.yml", only), said, folder)
    about = {"Title": said.title, "Author": said.author, "Subject": said.subtitle}
    written(target, packed(made.read_bytes(), about))
    return target


def say(text: str) -> None:
    """Tell the terminal."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Print the book of this folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", type=Path, default=Path("_build/html"))
    parser.add_argument("--out", type=Path, default=Path("_build/push-forward.pdf"))
    parser.add_argument("--only", nargs="*", help="names of pages; all by default")
    given = parser.parse_args()
    try:
        made = make(Path.cwd(), given.site.resolve(), given.out.resolve(), given.only)
    except (FileNotFoundError, RuntimeError, subprocess.TimeoutExpired) as error:
        sys.exit(str(error))
    say(f"The book in print: {made.as_uri()}, {made.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
