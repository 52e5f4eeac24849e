"""Titles, descriptions, addresses, cards, and the page for lost readers."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from docutils import nodes
from PIL import Image, ImageChops
from press.public import cards, findable
from press.tex.formulas import tie
from press.text.page import Page
from sphinx.errors import ConfigError

ROOT = Path(__file__).parents[2]
BASE = "https://example.org/reading/push-forward/"
PAGES = ["book/notation", "book/ot/one", "book/ot/two", "book/back/boards"]


class Head(HTMLParser):
    """What the tags of a page say: metas by their name, links by their relation."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.metas: dict[str, str] = {}
        self.links: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        if tag == "meta" and "content" in found:
            name = found.get("name") or found.get("property") or "http-equiv"
            self.metas[name] = found["content"]
        if tag in ("link", "a"):
            self.links.setdefault(found.get("rel", tag), []).append(found["href"])


def facts(text: str) -> dict:
    """Return the structured data of a page."""
    return json.loads(re.search(r'ld\+json">(.*?)</script>', text, re.S)[1])


def described() -> dict[str, str]:
    """Return the description of each page of the book, from its front matter."""
    names = re.findall(r"(?:file|root): (\S+)", (ROOT / "_toc.yml").read_text())
    pages = [Page.read(ROOT, ROOT / f"{name}.md") for name in names]
    return {page.name: page.front.get("description", "") for page in pages}


DESCRIBED = described()


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_page_says_in_a_sentence_what_it_holds(name: str) -> None:
    text = DESCRIBED[name]
    assert 120 <= len(text) <= 160, len(text)
    assert re.match(r"[A-Z]", text)
    assert text.endswith(".")
    assert not re.search(r"[$\\{}<>`*_]|\.\.\.|…", text)
    assert list(DESCRIBED.values()).count(text) == 1


@pytest.fixture(scope="module")
def published(tiny: Any) -> Iterator[Any]:
    """The throw-away book, built for an address."""
    with tiny.edited("_config.yml", 'baseurl: ""', f"baseurl: {BASE.rstrip('/')}"):
        done = tiny.build()
        assert done.status == 0, done.said
        assert done.ran == []
        yield tiny


def test_without_an_address_nothing_absolute_is_written(tiny: Any) -> None:
    head = Head(tiny.html("book/ot/one"))
    assert "canonical" not in head.links
    assert not {"og:url", "og:image"} & set(head.metas)
    assert head.metas["twitter:card"] == "summary"
    site = tiny.root / "_build/html"
    assert not [
        n for n in ("sitemap.xml", "robots.txt", "cards") if (site / n).exists()
    ]
    assert "https://example" not in tiny.html("book/ot/one")
    links = Head((site / "404.html").read_text()).links["a"]
    assert links == [f"/{name}.html" for name in PAGES]


def test_a_page_has_its_title_description_and_icons(tiny: Any) -> None:
    text = tiny.html("book/ot/one")
    head = Head(text)
    assert "<title>One · Push-forward</title>" in text
    assert head.metas["description"] == head.metas["og:description"] != ""
    assert head.metas["og:title"] == facts(text)["name"] == "One"
    assert facts(text)["isPartOf"]["name"] == "Push-forward"
    assert facts(tiny.html("book/notation"))["@type"] == "Book"
    files = head.links["icon"] + head.links["apple-touch-icon"]
    assert [Path(f).suffix for f in files] == [".svg", ".png", ".png"]
    for file, size in zip(files[1:], (48, 180), strict=True):
        with Image.open(tiny.root / "_build/html/book/ot" / file) as image:
            assert image.size == (size, size)
            assert image.getchannel("A").getextrema() == (0, 255)


def test_the_description_of_the_front_matter_wins(tiny: Any) -> None:
    given = "description: Of <one> & only\njupytext:"
    with tiny.edited("book/ot/one.md", "jupytext:", given):
        assert tiny.build().ran == []
        assert Head(tiny.html("book/ot/one")).metas["description"] == "Of <one> & only"
        assert facts(tiny.html("book/ot/one"))["description"] == "Of <one> & only"
    assert tiny.build().status == 0


def test_an_address_that_is_none_ends_the_build_at_its_start(tiny: Any) -> None:
    with tiny.edited("_config.yml", 'baseurl: ""', "baseurl: example.org"):
        done = tiny.build()
    assert done.status != 0
    assert "baseurl must be like https://host/path/" in done.said
    assert done.ran == done.written == []


def test_the_front_door_opens_on_the_first_page(tiny: Any) -> None:
    head = Head((tiny.root / "_build/html/index.html").read_text())
    assert head.links["a"] == ["book/notation.html"]
    assert head.metas["http-equiv"] == "0; url=book/notation.html"


def test_with_an_address_every_page_has_its_own(published: Any) -> None:
    for name in PAGES:
        head = Head(published.html(name))
        assert head.links["canonical"] == [f"{BASE}{name}.html"]
        assert head.metas["og:url"] == f"{BASE}{name}.html"
        assert head.metas["twitter:card"] == "summary_large_image"
        assert facts(published.html(name))["url"] == f"{BASE}{name}.html"
    door = Head((published.root / "_build/html/index.html").read_text())
    assert door.links["canonical"] == [f"{BASE}book/notation.html"]


def test_the_sitemap_and_robots_name_every_page(published: Any) -> None:
    site = published.root / "_build/html"
    space = "{http://www.sitemaps.org/schemas/sitemap/0.9}"
    tree = ET.parse(site / "sitemap.xml").getroot()
    assert tree.tag == f"{space}urlset"
    found = [row.findtext(f"{space}loc") for row in tree]
    assert found == sorted(f"{BASE}{name}.html" for name in PAGES)
    assert f"Sitemap: {BASE}sitemap.xml" in (site / "robots.txt").read_text()


def test_lost_readers_find_the_way_at_any_depth(published: Any) -> None:
    text = (published.root / "_build/html/404.html").read_text()
    assert Head(text).links["a"] == [f"/reading/push-forward/{n}.html" for n in PAGES]
    assert 'action="/reading/push-forward/search.html"' in text
    assert "<script" not in text


def test_every_page_has_a_card_that_is_drawn_once(published: Any) -> None:
    site = published.root / "_build/html"
    images = [Head(published.html(name)).metas["og:image"] for name in PAGES]
    files = [site / image.removeprefix(BASE) for image in images]
    assert sorted(files) == sorted((site / "cards").iterdir())
    for file in files:
        assert file.stat().st_size <= 60_000
        with Image.open(file) as image:
            assert (image.size, image.mode) == ((1200, 630), "P")
    drawn = {file: file.stat().st_mtime_ns for file in files}
    with published.edited("book/ot/two.md", "# Two", "# Zwei"):
        assert published.build().status == 0
        now = {file: file.stat().st_mtime_ns for file in (site / "cards").iterdir()}
    assert {f.name[:6] for f in set(now.items()) ^ set(drawn.items()) for f in f[:1]} \
        == {"ot-two"}  # fmt: skip
    assert len(now) == len(drawn)


SQUARE = '<svg xmlns="http://www.w3.org/2000/svg" width="{}pt" height="100pt">' \
    '<rect width="100%" height="100%" fill="#ff0000"/></svg>'  # fmt: skip


def test_a_card_shows_the_first_wide_figure_and_the_title(tmp_path: Path) -> None:
    for name, width in (("square", 100), ("wide", 300)):
        (tmp_path / f"{name}.svg").write_text(SQUARE.format(width))
    tag = '<img class="pf-{}" src="{}.svg" alt="An image" width="{}" height="100" />'
    seen = ("dark", "wide", 300), ("light", "square", 100), ("light", "wide", 300)
    body = "".join(tag.format(*parts) for parts in seen)
    files = cards.pictures(body, tmp_path / "page.html")
    assert files == [tmp_path / "wide.svg"]
    assert cards.pictures(tag.format("light", "gone", 300), tmp_path / "p.html") == []
    words = ("On <noise> & data", "Part", "Book")
    with Image.open(cards.card(tmp_path / "c", "book/a/b", words, files)) as image:
        shown = image.convert("RGB")
    assert shown.getpixel((600, 420)) == (255, 0, 0)
    plain = cards.opened(cards.rendered(cards.lettering(" ", "", ""))).convert("RGB")
    left, top, right, bottom = ImageChops.difference(
        shown.crop((0, 100, 1200, 220)), plain.crop((0, 100, 1200, 220))
    ).getbbox()
    assert left >= 60
    assert right <= 1140
    assert bottom - top >= 40


def test_a_long_title_fits_its_card() -> None:
    svg = cards.lettering("A title as long as the longest one of any book " * 2, "", "")
    image = cards.opened(cards.rendered(svg)).convert("L")
    assert image.crop((1140, 20, 1200, 630)).getextrema() == (255, 255)


@pytest.mark.parametrize("url", ["example.org", "ftp://a.b/", "https://a.b/?q=1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="baseurl must be like https://host/path/"):
        findable.address(SimpleNamespace(html_baseurl=url))


def test_first_words_leave_no_formula_and_no_half_sentence() -> None:
    short = (
        "A sentence that says enough to stand alone, and that is long enough to stay."
    )
    assert findable.shortened(short) == short
    assert findable.shortened(f"{short} {'And one more that is long. ' * 5}") \
        .endswith(("long.", "stay."))  # fmt: skip
    cut = findable.shortened("word " * 60)
    assert len(cut) <= 160
    assert cut.endswith("word …")


def test_a_formula_takes_its_own_sentence_and_no_other() -> None:
    line = nodes.paragraph("", "", nodes.Text("One "), nodes.math("", "x"),
                           nodes.Text(". Two is plain."))  # fmt: skip
    tree = nodes.section("", line)
    tie(line[1])
    assert findable.first_words(tree) == "Two is plain."


def test_the_configuration_names_the_address_once() -> None:
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert "baseurl" in config["html"]
    assert "html_baseurl" not in config["sphinx"]["config"]
