"""Each page is finished as it is written: a short list of passes over its HTML.

Sphinx asks the template bridge for the text of a page; this one returns it without
the theme's scripts and style sheets (static/page.js and one sheet, made by ``slim``,
stand in their place), without handlers in attributes, and under a policy that lets
no page ask another site for anything. A pass takes and returns a page's HTML.
"""

import base64
import hashlib
import html
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from sphinx.jinja2glue import BuiltinTemplateLoader

SHEET = "book.css"  # in _static; see slim
SCRIPT = "page.js"
NARROW = 32  # characters of code beside each other on a phone

# The theme's and the extensions' scripts that page.js replaces.
REPLACED = {
    "bootstrap.js",
    "clipboard.min.js",
    "copybutton.js",
    "design-tabs.js",
    "fontawesome.js",
    "pydata-sphinx-theme.js",
    "sphinx-book-theme.js",
    "togglebutton.js",
}
# Sphinx's search, wanted where results are shown.
SEARCH = {
    "doctools.js",
    "documentation_options.js",
    "language_data.js",
    "searchindex.js",
    "searchtools.js",
    "sphinx_highlight.js",
}

# The colours before the first paint: those that the reader chose, or the system's.
COLOURS = (
    "(d=>{let m;try{m=localStorage.getItem('mode')}catch{}"
    "if(m!=='light'&&m!=='dark')m='auto';d.mode=m;"
    "d.theme=m!=='auto'?m:matchMedia('(prefers-color-scheme:dark)').matches?'dark':"
    "'light'})(document.documentElement.dataset)"
)

# A page opened from a disk has no origin that 'self' could mean in every browser, so
# that its own files are named; a page from a server cannot load from a disk.
RULES = (
    "default-src 'none'",
    "script-src 'self' file: {hashes}",
    "style-src 'self' file: 'unsafe-inline'",
    "img-src 'self' file: data:",
    "font-src data:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'self'",
    "object-src 'none'",
)

SCRIPTS = re.compile(r"[ \t]*<script\b([^>]*)>(.*?)</script>\n?", re.S)
ADDRESS = re.compile(r'\bsrc="([^"]*)"')
TYPE = re.compile(r'\btype="(?!text/javascript|module)([^"]+)"')
SHEETS = re.compile(r'[ \t]*<link\b(?=[^>]*\brel="stylesheet")[^>]*>\n?')
PRELOADS = re.compile(
    r'[ \t]*<link\b(?=[^>]*\brel="preload")[^>]*\bas="(?:script|font)"[^>]*>\n?'
)
ROOT = re.compile(r'\bdata-content_root="([^"]*)"')
VERBATIM = re.compile(r"(<(pre|script|textarea|style)\b.*?</\2>)", re.S)
BUTTON = re.compile(r"<button\b[^>]*>")
CODE = re.compile(
    r'(<div class="highlight-(?:ipython3|python3?|bash|console|default|yaml|toml)'
    r'[^"]*"><div class="highlight">)(<pre>.*?</pre>)',
    re.S,
)
COPY = (
    '<button class="copybtn pst-js-only" type="button" aria-label="Copy the code"'
    ' title="Copy the code" hidden><i class="fas fa-copy"></i></button>'
)
WIDE = re.compile(r"<pre>(?=(.*?)</pre>)", re.S)
PICTURE = re.compile(r"<img\b[^>]*>")


def root(text: str) -> str:
    """Return the way from a page to the top of the site, as the page gives it."""
    match = ROOT.search(text)
    return match[1] if match else ""


def scripts(text: str) -> str:
    """Take the replaced scripts and all code in the page away; defer what stays."""
    searching = 'id="search-results"' in text

    def chosen(match: re.Match[str]) -> str:
        attributes = match[1]
        if TYPE.search(attributes):
            return match[0]  # data, not code
        address = ADDRESS.search(attributes)
        if not address:
            return ""
        name = PurePosixPath(address[1].partition("?")[0]).name
        if name in REPLACED or (name in SEARCH and not searching):
            return ""
        if not re.search(r"\b(defer|async)\b", attributes):
            attributes = f" defer{attributes}"
        return f"<script{attributes}></script>\n"

    kept = PRELOADS.sub("", SCRIPTS.sub(chosen, text))
    mine = f'<script defer src="{root(text)}_static/{SCRIPT}"></script>\n'
    # Before the search, which it tells what a page on a disk may not do.
    first = re.search(r"<script defer[^>]*\bsearchtools\.js[^>]*>|</head>", kept)
    at = first.start() if first else len(kept)
    return kept[:at] + mine + kept[at:]


def sheets(text: str) -> str:
    """Put the one style sheet in the place of all."""
    found = [m for m in SHEETS.finditer(text) if "://" not in m[0]]
    if not found:
        return text
    mine = f'<link rel="stylesheet" href="{root(text)}_static/{SHEET}">\n'
    at = found[0].start()
    return text[:at] + mine + SHEETS.sub("", text[at:])


def scripted(tag: str) -> str:
    """Hide a button where scripts are off; a menu opens there by its focus."""
    if "pst-js-only" in tag or "dropdown-toggle" in tag:
        return tag
    if ' class="' not in tag:
        return f'{tag[:-1]} class="pst-js-only">'
    return tag.replace(' class="', ' class="pst-js-only ', 1)


def handlers(text: str) -> str:
    """Name the buttons; page.js knows them by their classes, without handlers."""

    def named(match: re.Match[str]) -> str:
        tag = re.sub(r'\s+(onclick|data-bs-placement)="[^"]*"', "", match[0])
        tag = tag.replace(' data-bs-toggle="tooltip"', "")
        tag = re.sub(r'\sdata-bs-title="([^"]*)"', r' title="\1"', tag)
        title = re.search(r'\stitle="([^"]*)"', tag)
        if "search-button-field" in tag:  # its words name it
            tag = re.sub(r'\s(aria-label|title)="[^"]*"', "", tag)
        elif title and "aria-label" not in tag:
            tag = f'{tag[:-1]} aria-label="{title[1]}">'
        tag = scripted(tag)
        return tag if " type=" in tag else f'{tag[:-1]} type="button">'

    text = BUTTON.sub(named, text)
    text = text.replace('<summary aria-label="Toggle hidden content">', "<summary>")
    return re.sub(
        r'\s+data-bs-(?:toggle|placement)="(?:tooltip|left|bottom)"', "", text
    )


# What the theme leaves in each page for services that the book does not use.
WASTE = re.compile(
    r'<meta name="docsearch:[^>]*>\s*'
    r'|<div class="sidebar-primary-item">\s*<div id="ethical-ad.*?</div>\s*</div>'
    r'|<div class="pst-async-banner-revealer.*?</aside>\s*</div>'
    r'|<button [^>]*id="pst-back-to-top">.*?</button>'
    r'|<div id="pst-scroll-pixel-helper"></div>'
    r"|<!--.*?-->",
    re.S,
)
PART = re.compile(
    r'(<a class="[^"]*\breference internal" href="[^"]*">([^<]*)</a><details[^>]*>)'
    "<summary>"
)
VIEWPORT = re.compile(r'\s*<meta name="viewport"[^>]*>')


# Names and brackets of code: a quarter of all elements, in the colour of the text.
PLAIN = re.compile(r'<span class="(?:n|nn|nx|p|pm|w)">([^<]*)</span>')


def waste(text: str) -> str:
    """Take away what serves nobody: empty boxes, doubled tags, comments."""
    text = WASTE.sub("", text)
    found = VIEWPORT.findall(text)
    if len(found) > 1:
        text = VIEWPORT.sub("", text)
        text = text.replace("</title>", f"</title>{found[-1]}", 1)
    return text


def colourless(text: str) -> str:
    """Leave spans to the code that has a colour of its own."""
    return PLAIN.sub(r"\1", text)


def pictures(text: str) -> str:
    """Let pictures be decoded beside the text, and fetched when they come near."""

    def told(match: re.Match[str]) -> str:
        tag = match[0].rstrip("/> ")
        for name, value in (("loading", "lazy"), ("decoding", "async")):
            if f" {name}=" not in tag:
                tag += f' {name}="{value}"'
        return f"{tag}>"

    text = PICTURE.sub(told, text)
    top, heading, rest = text.partition("<h2")
    # A picture above all headings is what the reader sees first.
    eager = 'loading="eager" fetchpriority="high"'
    return top.replace('loading="lazy"', eager, 1) + heading + rest


def copies(text: str) -> str:
    """Give each piece of code its button, which page.js shows when it comes near."""
    return CODE.sub(rf"\1\2{COPY}", text)


def reach(text: str) -> str:
    """Let the keyboard reach code with long lines, which scrolls on some screens.

    reader.js looks at each when it comes near, and takes back what was too much.
    """

    def reached(match: re.Match[str]) -> str:
        lines = re.sub(r"<[^>]+>", "", match[1]).splitlines()
        longest = max((len(html.unescape(line)) for line in lines), default=0)
        return '<pre tabindex="0" data-reached>' if longest > NARROW else "<pre>"

    return WIDE.sub(reached, text)


def landmarks(text: str) -> str:
    """Say what the sidebar and its folds are, to those who do not see them."""
    text = PART.sub(r'\1<summary aria-label="Chapters of \2">', text)
    # The roles of a bibliography: one is deprecated, one not for links in a list.
    text = text.replace(' role="doc-biblioentry"', ' role="listitem"')
    text = text.replace(' role="doc-backlink"', "")
    return text.replace(
        '<div id="pst-primary-sidebar"',
        '<div id="pst-primary-sidebar" role="complementary" aria-label="The book"',
    )


def spaces(text: str) -> str:
    """Take the blanks at the ends of lines and the empty lines out of the markup."""
    parts = VERBATIM.split(text)
    parts[::3] = [re.sub(r"\s*\n\s*", "\n", part) for part in parts[::3]]
    del parts[2::3]
    return "".join(parts)


def digest(code: str) -> str:
    """Return the source expression of a script's text for a policy."""
    hashed = hashlib.sha256(code.encode()).digest()
    return f"'sha256-{base64.b64encode(hashed).decode()}'"


def policy(text: str) -> str:
    """Let the page load from its own site alone, and run no script but ours."""
    rules = "; ".join(RULES).format(hashes=digest(COLOURS))
    top = (
        '<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{rules}">\n'
        f"<script>{COLOURS}</script>\n"
    )
    text = re.sub(r'\s*<meta charset="[^"]*"\s*/?>', "", text, count=1)
    text = re.sub(
        r"<html\b", '<html data-mode="auto" data-theme="light"', text, count=1
    )
    return re.sub(r"<head>\s*", lambda _: f"<head>\n{top}", text, count=1)


PASSES: tuple[Callable[[str], str], ...] = (
    waste,
    scripts,
    sheets,
    handlers,
    colourless,
    pictures,
    copies,
    reach,
    landmarks,
    policy,
    spaces,
)


def finished(text: str) -> str:
    """Return a page as it is written to the disk."""
    for change in PASSES:
        text = change(text)
    return text


class Bridge(BuiltinTemplateLoader):
    """Sphinx's template bridge, whose pages are finished."""

    def render(self, template: str, context: dict[str, Any]) -> str:  # type: ignore[override]
        """Return the text of a template; of a whole page, the finished page."""
        text = super().render(template, context)
        return finished(text) if "</html>" in text[-100:] else text
