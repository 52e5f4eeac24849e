"""The pages of the built site as one document, in the order of the book, for print.

What only a screen can use is left out; what folds is open; every anchor carries the
name of its page, so that links stay inside; and a link to another chapter is followed
by a place for the page's number, which the first printing finds out.
"""

import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urldefrag

import yaml  # type: ignore[import-untyped]
from bs4 import BeautifulSoup, Tag

ARTICLE = re.compile(r"<article[^>]*>(.*?)</article>", re.S)
SCREEN = (
    "script, style, noscript, button, form, input, label, nav, dialog, a.headerlink, "
    "annotation, .pf-dark, .pf-folding, .toctree-wrapper, .pf-controls, .pf-slider, "
    "details.hide > summary"
)
HEADINGS = ("h1", "h2", "h3", "h4", "h5")
BIBLIOGRAPHY = "book/back/references"
UNKNOWN = "000"  # as wide as a number


class Leaf(NamedTuple):
    """A page of the book: its name, how deep it stands, and the parts' caption."""

    name: str
    depth: int
    caption: str

    @property
    def anchor(self) -> str:
        """What its anchors begin with."""
        return self.name.removeprefix("book/").replace("/", "-")


def leaves(toc: dict[str, Any]) -> list[Leaf]:
    """Return the pages of a table of contents, in order."""
    found = [Leaf(toc["root"], 0, "")]
    for part in toc.get("parts", []):
        found += below(part.get("chapters", []), 0, part.get("caption", ""))
    return found


def below(entries: list[dict[str, Any]], depth: int, caption: str) -> Iterator[Leaf]:
    """Yield the pages of some entries of the table of contents."""
    for entry in entries:
        yield Leaf(entry["file"], depth, caption)
        yield from below(entry.get("sections", []), depth + 1, caption)


class Sheet(NamedTuple):
    """A page, ready to be printed: its place, heading and body."""

    leaf: Leaf
    title: str
    body: str


class Sheets:
    """The pages of a site.

    Args:
        site: The folder of the built site.
        toc: The file of the table of contents.
        only: The names of the pages to print; all by default.
    """

    def __init__(self, site: Path, toc: Path, only: list[str] | None = None) -> None:
        self.site = site
        settings = yaml.safe_load(toc.read_text(encoding="utf-8"))
        self.leaves = [leaf for leaf in leaves(settings)
                       if only is None or leaf.name in only]  # fmt: skip
        self.anchors = {leaf.name: leaf.anchor for leaf in self.leaves}
        self.all = [self.sheet(leaf) for leaf in self.leaves]

    def sheet(self, leaf: Leaf) -> Sheet:
        """Return a page, ready to be printed."""
        text = (self.site / f"{leaf.name}.html").read_text(encoding="utf-8")
        match = ARTICLE.search(text)
        if not match:
            raise ValueError(f"{leaf.name}.html has no article")
        soup = BeautifulSoup(match[1], "html.parser")
        for tag in soup.select(SCREEN):
            tag.decompose()
        self.unfold(soup)
        self.anchor(soup, leaf)
        self.relink(soup, leaf)
        self.pictures(soup, leaf)
        for tag in soup.find_all(HEADINGS):
            tag.name = f"h{min(6, int(tag.name[1]) + min(leaf.depth, 1))}"
        head = soup.find(re.compile(r"h\d"))
        title = " ".join(head.get_text().split()) if head else leaf.name
        return Sheet(leaf, title, str(soup))

    def unfold(self, soup: BeautifulSoup) -> None:
        """Open what folds; a summary becomes a line."""
        for fold in soup.find_all("details"):
            fold.name = "div"
            fold["class"] = f"{given(fold)} fold"
        for summary in soup.find_all("summary"):
            summary.name = "div"
            summary["class"] = f"{given(summary)} summary"

    def anchor(self, soup: BeautifulSoup, leaf: Leaf) -> None:
        """Give every anchor its page's name; drawings keep theirs."""
        for tag in soup.find_all(id=True):
            if not tag.find_parent("svg") and tag.name != "svg":
                tag["id"] = f"{leaf.anchor}--{tag['id']}"
        for picture in soup.find_all("img"):
            picture.attrs.pop("loading", None)

    def relink(self, soup: BeautifulSoup, leaf: Leaf) -> None:
        """Let links stay inside; those to pages that are not printed are words."""
        here = posixpath.dirname(leaf.name)
        for tag in soup.find_all("a", href=True):
            path, anchor = urldefrag(str(tag["href"]))
            if re.match(r"[a-z]+:|//", path):
                continue
            target = posixpath.normpath(posixpath.join(here, unquote(path)))
            name = target.removesuffix(".html") if path else leaf.name
            if name not in self.anchors:
                tag.unwrap()
                continue
            place = self.anchors[name] + (f"--{unquote(anchor)}" if anchor else "")
            tag["href"] = f"#{place}"
            if name not in (leaf.name, BIBLIOGRAPHY) and not tag.find_parent("table"):
                tag.insert_after(self.number(soup, place))

    def number(self, soup: BeautifulSoup, place: str) -> Tag:
        """Return the place for a page's number."""
        tag = soup.new_tag("span")
        tag["class"], tag["data-to"] = "onpage", place
        return tag

    def pictures(self, soup: BeautifulSoup, leaf: Leaf) -> None:
        """Let pictures be found from a folder beside the site."""
        here = posixpath.dirname(leaf.name)
        for tag in soup.find_all("img", src=True):
            if not str(tag["src"]).startswith("data:"):
                path = posixpath.normpath(posixpath.join(here, str(tag["src"])))
                tag["src"] = f"../{self.site.name}/{path}"


def given(tag: Tag) -> str:
    """Return the classes of a tag."""
    return (
        " ".join(map(str, tag.get_attribute_list("class"))) if tag.get("class") else ""
    )


class Words(NamedTuple):
    """What the title page says, and what the style sheets are."""

    title: str
    subtitle: str
    author: str
    imprint: str
    styles: str
    script: str


def document(sheets: Sheets, words: Words, numbers: dict[str, int]) -> str:
    """Return the whole book as one page of HTML, with the numbers that are known."""
    pictures = re.findall(r"<img[^>]*pf-light[^>]*>", sheets.all[0].body)
    cover = "".join(pictures[:1])
    body = "\n".join(map(article, sheets.all))
    heads = "\n".join(map(running, sheets.all))
    made = (
        f'<!DOCTYPE html>\n<html lang="en" data-theme="light"><head>'
        f'<meta charset="utf-8"><title>{html.escape(words.title)}</title>'
        f'<meta name="author" content="{html.escape(words.author)}">'
        f"<style>\n{words.styles}\n{heads}\n</style></head><body>\n"
        f'<div class="titlepage"><p class="title">{html.escape(words.title)}</p>'
        f'<p class="subtitle">{html.escape(words.subtitle)}</p>{cover}'
        f'<p class="author">{html.escape(words.author)}</p>'
        f'<p class="imprint">{html.escape(words.imprint)}</p></div>\n'
        f"{contents(sheets.all)}\n{body}\n<script>{words.script}</script></body></html>"
    )
    return re.sub(
        r'<span class="onpage" data-to="([^"]*)"></span>',
        lambda m: (
            f'<span class="onpage">{numbers.get(html.unescape(m[1]), UNKNOWN)}</span>'
        ),
        made,
    )


def article(sheet: Sheet) -> str:
    """Return a page as a part of the book."""
    anchor = sheet.leaf.anchor
    kind = "chapter" if sheet.leaf.depth else "part"
    head = f'<article class="{kind}" id="{anchor}" style="page: p-{anchor}">'
    return f"{head}{sheet.body}</article>"


def running(sheet: Sheet) -> str:
    """Return the running head of a page's sheets."""
    title = sheet.title.replace("\\", "").replace('"', "”")
    return f'@page p-{sheet.leaf.anchor} {{ @top-right {{ content: "{title}"; }} }}'


def contents(sheets: list[Sheet]) -> str:
    """Return the table of contents."""
    lines, caption = [], ""
    for sheet in sheets:
        if sheet.leaf.caption != caption:
            caption = sheet.leaf.caption
            lines.append(f'<p class="caption">{html.escape(caption)}</p>')
        anchor = sheet.leaf.anchor
        lines.append(
            f'<p class="entry depth-{min(sheet.leaf.depth, 1)}"><a href="#{anchor}">'
            f'{html.escape(sheet.title)}</a><span class="dots"></span>'
            f'<span class="onpage" data-to="{anchor}"></span></p>'
        )
    return f'<div class="contents"><h1>Contents</h1>{"".join(lines)}</div>'
