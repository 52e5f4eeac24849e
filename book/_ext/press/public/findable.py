"""What search engines and links shared with others see: titles, tags, addresses.

describe    the title of each page, its description, its tags, its card
first_words what a page without a description in its front matter is told by
finish      the sitemap, the icons, the front door, and "page not found"

Absolute addresses are written only when ``html: baseurl:`` in _config.yml names
the place where the book is published.
"""

import html
import json
import re
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ConfigError

from ..files import written
from . import cards
from .doors import door, icon, not_found

SUBTITLE = "Generative models, theory and code"
LENGTH = 160  # of a description, in characters
COVER = Path(__file__).parents[3] / "_static/cover.png"
SCREENS = {"light": "#ffffff", "dark": "#14181e"}  # the page's ground
ICONS = Template("""
<link rel="icon" href="${static}icon.svg" type="image/svg+xml" sizes="any" />
<link rel="icon" href="${static}icon-48.png" type="image/png" sizes="48x48" />
<link rel="apple-touch-icon" href="${static}icon-180.png" />""")


def address(config: Config) -> str:
    """Return where the book is published, with a final slash; "" if nowhere.

    Raises:
        ConfigError: ``baseurl`` is no address.
    """
    url = (config.html_baseurl or "").strip()
    if url and not re.fullmatch(r"https?://[^/\s?#]+(/[^\s?#]*)?", url):
        raise ConfigError(f"baseurl must be like https://host/path/, got {url!r}")
    return url and url.rstrip("/") + "/"


def describe(
    app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Give a page its title and the tags of its head (html-page-context)."""
    book = app.config.html_title
    tags = icons("../" * name.count("/") + "_static/")
    title = html.unescape(re.sub(r"<[^>]+>", "", context.get("title", ""))) or "Search"
    if doctree is None:
        tags = meta(name="description", text=f"{title} of the book {book}.") + tags
    else:
        title = app.env.titles[name].astext()
        tags = head(app, name, title, doctree, context.get("body", "")) + tags
        whole = f"{book} · {SUBTITLE}" if title == book else f"{title} · {book}"
        context |= {"title": html.escape(whole), "docstitle": ""}
    context["metatags"] = context.get("metatags", "") + tags


class About(NamedTuple):
    """What the tags of a page say; ``url``, ``image`` and ``base`` may be empty."""

    title: str
    text: str
    url: str
    image: str
    book: str
    author: str
    base: str
    root: bool


def head(app: Sphinx, name: str, title: str, doctree: Any, body: str) -> str:
    """Return the tags of a page of the book: description, cards, structured data."""
    book, base = app.config.html_title, address(app.config)
    url = image = ""
    if base:
        out = Path(app.outdir)
        figures = [*cards.pictures(body, out / f"{name}.html"), COVER]
        words = (title, part_of(app, name) or SUBTITLE, book)
        url = f"{base}{name}.html"
        image = f"{base}cards/{cards.card(out / 'cards', name, words, figures).name}"
    text, root = description(app, name, doctree), name == app.config.root_doc
    about = About(title, text, url, image, book, app.config.author, base, root)
    return social(about) + structured(about)


def part_of(app: Sphinx, name: str) -> str:
    """Return the title of the part that a chapter belongs to, or ""."""
    index = f"{name.rpartition('/')[0]}/index"
    known = index in app.env.titles and index not in (name, app.config.root_doc)
    return app.env.titles[index].astext() if known else ""


def social(about: About) -> str:
    """Return the description, and the tags that draw a card where a page is shared."""
    tags = meta(name="description", text=about.text)
    tags += meta(property="og:type", text="book" if about.root else "article")
    tags += meta(property="og:site_name", text=about.book)
    tags += meta(property="og:title", text=about.title)
    tags += meta(property="og:description", text=about.text)
    if about.url:
        tags += meta(property="og:url", text=about.url)
        tags += meta(property="og:image", text=about.image)
        tags += meta(property="og:image:width", text=str(cards.WIDTH))
        tags += meta(property="og:image:height", text=str(cards.HEIGHT))
        tags += meta(property="og:image:alt", text=f"{about.title}, and a figure")
    card = "summary_large_image" if about.image else "summary"
    tags += meta(name="twitter:card", text=card)
    for scheme, colour in SCREENS.items():
        media = f"(prefers-color-scheme: {scheme})"
        tags += meta(name="theme-color", text=colour, media=media)
    return tags


def structured(about: About) -> str:
    """Return the page as a book or a chapter in the words of schema.org."""
    book: dict[str, Any] = {"@type": "Book", "name": about.book, "inLanguage": "en"}
    book["author"] = {"@type": "Organization", "name": about.author}
    if about.base:
        book["url"] = about.base
    page = {"@type": "Chapter", "name": about.title, "isPartOf": book}
    page = {"@context": "https://schema.org"} | (book if about.root else page)
    page["description"] = about.text
    if about.url:
        page |= {"url": about.url, "image": about.image}
    data = json.dumps(page, ensure_ascii=False).replace("<", "\\u003c")
    return f'\n<script type="application/ld+json">{data}</script>'


def meta(text: str, **which: str) -> str:
    """Return a meta tag."""
    names = " ".join(f'{key}="{value}"' for key, value in which.items())
    return f'\n<meta {names} content="{html.escape(text)}" />'


def icons(static: str) -> str:
    """Return the links to the icons; their files are in the folder ``static``."""
    return ICONS.substitute(static=static)


def description(app: Sphinx, name: str, doctree: nodes.document) -> str:
    """Return the description of the front matter, or the page's first sentences."""
    given = app.env.metadata[name].get("description")
    return " ".join(str(given).split()) if given else shortened(first_words(doctree))


def first_words(doctree: nodes.document) -> str:
    """Return the first sentences that hold no formula."""
    words = ""
    for node in doctree.findall(nodes.paragraph):
        if isinstance(node.parent, nodes.section):
            text = "".join(map(plain, node.findall(nodes.Text)))
            sentences = re.split(r"(?<=[.?!])\s+", " ".join(text.split()))
            words += "".join(f" {s}" for s in sentences if "\0" not in s)
        if len(words) > LENGTH:
            break
    return words.strip()


def plain(piece: nodes.Text) -> str:
    """Return words as they are; for a formula a mark, and what is tied to it."""
    tied = isinstance(piece.parent, nodes.math)
    return "\0" + piece.parent.get("tail", "") if tied else piece.astext()


def shortened(text: str) -> str:
    """Return text cut after a sentence if that leaves enough, or after a word."""
    if len(text) <= LENGTH:
        return text
    sentences = re.match(rf"(.{{{LENGTH // 2},{LENGTH - 1}}}[.?!])\s", text)
    if sentences:
        return sentences[1]
    return text[: LENGTH - 1].rpartition(" ")[0].rstrip(",;:.") + " …"


def finish(app: Sphinx, error: Exception | None) -> None:
    """Write what the site has beside its pages (build-finished)."""
    if error is not None or app.builder.format != "html":
        return
    out, base = Path(app.outdir), address(app.config)
    written(out / "index.html", door(app.config.root_doc, app.config.html_title, base))
    written(out / "404.html", not_found(app.config.html_title, ways(app), base))
    for size in (48, 180):
        written(out / f"_static/icon-{size}.png", icon(size))
    if base:
        written(out / "sitemap.xml", sitemap(base, sorted(app.env.found_docs)))
        robots = f"User-agent: *\nAllow: /\n\nSitemap: {base}sitemap.xml\n"
        written(out / "robots.txt", robots)


def ways(app: Sphinx) -> list[tuple[str, str]]:
    """Return names and titles of the book's first pages: of itself and its parts."""
    root = app.config.root_doc
    top = [root, *app.env.toctree_includes.get(root, [])]
    return [(name, app.env.titles[name].astext()) for name in dict.fromkeys(top)]


def sitemap(base: str, names: list[str]) -> str:
    """Return the addresses of all pages, as XML for search engines."""
    rows = "\n".join(
        f"  <url><loc>{html.escape(f'{base}{name}.html')}</loc></url>" for name in names
    )
    space = "http://www.sitemaps.org/schemas/sitemap/0.9"
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<urlset xmlns="{space}">\n'
        f"{rows}\n</urlset>\n"
    )
