"""The whole book, built once as a reader builds it, and every page of its site."""

import ast
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
import yaml
from press.running.execution import Cache

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "_build"
SITE = BUILD / "html"

pytestmark = pytest.mark.slow


def names(items: list[dict]) -> list[str]:
    """Return the pages of a piece of the table of contents, in order."""
    inner = [(i["file"], names(i.get("sections", []))) for i in items]
    return [name for file, below in inner for name in (file, *below)]


def pages() -> list[str]:
    """Return all pages of the book, in order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [toc["root"], *(n for part in toc["parts"] for n in names(part["chapters"]))]


PAGES = pages()


class Html(HTMLParser):
    """The tags of a page with their attributes, and its title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.title = ""
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.tags.append((tag, found))
        self.inside = tag

    def handle_data(self, data: str) -> None:
        if self.inside == "title":
            self.title += data

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


class Site(NamedTuple):
    """The pages of the site, by their file."""

    pages: dict[Path, Html]


@pytest.fixture(scope="module")
def site(built: str) -> Site:
    """The site as a browser sees it."""
    files = sorted(SITE.glob("book/**/*.html"))
    return Site({f: Html(f.read_text(encoding="utf-8")) for f in files})


def page(site: Site, name: str) -> Html:
    return site.pages[SITE / f"{name}.html"]


@pytest.mark.parametrize("name", PAGES)
def test_every_cell_ran_without_error(name: str, built: str) -> None:
    """The executed page is in the cache, and no output of it is an error."""
    made = (BUILD / f"jupyter_execute/{name}.ipynb").read_text(encoding="utf-8") \
        if (BUILD / f"jupyter_execute/{name}.ipynb").exists() else ""  # fmt: skip
    if not made:
        assert "{code-cell}" not in (ROOT / f"{name}.md").read_text(encoding="utf-8")
        return
    notebook = nbformat.reads(made, nbformat.NO_CONVERT)
    cache = Cache(BUILD / ".jupyter_cache")
    key = cache.base.create_hashed_notebook(notebook)[1]
    ran = json.loads(cache.file(key).read_text(encoding="utf-8"))
    assert ran["metadata"]["kernelspec"]["fingerprint"]
    cells = [c for c in ran["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    allowed = [c for c in cells if "raises-exception" in c["metadata"].get("tags", [])]
    for cell in cells:
        kinds = {output["output_type"] for output in cell["outputs"]}
        assert cell in allowed or "error" not in kinds


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_title_description_and_language(name: str, site: Site) -> None:
    seen = page(site, name)
    meta = {a.get("name"): a.get("content", "") for t, a in seen.tags if t == "meta"}
    assert len(seen.title.strip()) > len(" · Push-forward")
    assert meta["description"]
    assert [a["lang"] for t, a in seen.tags if t == "html"] == ["en"]
    assert sum(tag == "h1" for tag, _ in seen.tags) >= 1


@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_no_other_site_for_anything(name: str, site: Site) -> None:
    """Links may lead away; scripts, styles, fonts and pictures may not."""
    loads = {"script": "src", "img": "src", "iframe": "src", "source": "src"}
    for tag, found in page(site, name).tags:
        address = found.get(loads.get(tag, ""), "")
        if tag == "link" and found.get("rel") not in ("canonical", "author"):
            address = found.get("href", "")
        assert not re.match(r"(https?:)?//", address), (tag, found)
    text = (SITE / f"{name}.html").read_text(encoding="utf-8")
    scripts = "".join(re.findall(r"<script\b[^>]*>(.*?)</script>", text, re.S))
    assert not re.findall(r"https?://(?!www\.w3\.org|schema\.org)[^\"' ]+", scripts)


def test_the_scripts_and_styles_ask_no_other_site(built: str) -> None:
    for file in SITE.glob("_static/**/*.css"):
        text = file.read_text(encoding="utf-8")
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", text), file
    assert (SITE / "_static/math.woff2").exists()
    assert not list(SITE.glob("_static/**/*mathjax*"))


@pytest.mark.parametrize("name", PAGES)
def test_every_picture_says_what_it_shows(name: str, site: Site) -> None:
    for tag, found in page(site, name).tags:
        if tag == "img":
            assert found.get("alt", "").strip(), found
            assert not found["src"].startswith("data:"), found["alt"]


def test_the_reference_shows_the_documentation_of_every_module(built: str) -> None:
    text = (SITE / "book/back/api.html").read_text(encoding="utf-8")
    shown = html.unescape(re.sub(r"<[^>]+>", "", text))
    for path in sorted((ROOT / "code/pushforward").rglob("[!_]*.py")):
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert (about or "none").splitlines()[0] in shown, path
