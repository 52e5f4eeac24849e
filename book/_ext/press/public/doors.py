"""The pages outside of the book: the front door, and "page not found".

A server shows 404.html in place of any address that leads nowhere, whatever its
depth, so that its links cannot be relative.  They begin at the path of ``baseurl``;
where none is configured, at the root of the host.  The page carries its style with
it and has no script.
"""

import base64
import html
from math import cos, pi, sin
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

import resvg_py

from ..shell.bridge import digest

ICON = Path(__file__).parents[3] / "_static/icon.svg"

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --ground: #ffffff; --link: #0a5f99;
  --quiet: #59636e; --line: #8c959f; --z: #0f7ec4; --x: #d88c00 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --ground: #14181e;
  --link: #6cbcf0; --quiet: #a3adb8; --z: #4fb0ee; --x: #f0ad33 } }
body { background: var(--ground); color: var(--ink); margin: 0 auto; max-width: 36rem;
  font: 1.1rem/1.6 system-ui, sans-serif; padding: 2rem 1.25rem 4rem }
a { color: var(--link) }
h1 { font-size: 2rem; line-height: 1.2 }
h2 { font-size: 1.1rem; margin-top: 2rem }
li { padding: .2rem 0 }
label { display: block }
input, button { background: none; border: 1px solid var(--line); border-radius: .4rem;
  box-sizing: border-box; color: inherit; font: inherit; padding: .4rem .7rem }
input { max-width: 100%; width: 22rem }
button { margin-top: .4rem }
svg { height: auto; max-width: 100% }
.quiet { color: var(--quiet) }
"""

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
style-src $hash; img-src data:; connect-src 'self'; form-action 'self'; \
base-uri 'none'" />
<title>$title</title>
<meta name="description" content="$description" />
$tags
<link rel="icon" href="$icon" type="image/svg+xml" />
<style>$style</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")

LOST = Template("""<svg viewBox="84 16 260 132" width="312" height="158" role="img" \
aria-labelledby="lost"><title id="lost">Two half moons of points, and one point far \
from both.</title>$points<text x="318" y="46" text-anchor="middle" font-size="26" \
fill="var(--ink)">?</text></svg>
<h1>This address has density zero</h1>
<p>No point of the book was pushed forward to it. \
<span class="quiet">(404: the page was not found.)</span>
The address may be mistyped, or the page may have moved since the link was made.</p>
<form action="${root}search.html" method="get" role="search">
<label for="q">Search the book</label>
<input id="q" name="q" type="search" /> <button type="submit">Search</button>
</form>
<h2>Where the mass is</h2>
<ul>
$links
</ul>""")

DOOR = Template("""<h1>$book</h1>
<p>The book begins on <a href="$first">its first page</a>.</p>""")


def not_found(book: str, pages: list[tuple[str, str]], base: str) -> str:
    """Return the page for addresses that lead nowhere.

    Args:
        book: Its title.
        pages: Names and titles of the pages to send the reader to.
        base: Where the book is published; "" if nowhere.
    """
    root = urlsplit(base).path or "/"
    links = "\n".join(
        f'<li><a href="{root}{name}.html">{html.escape(title)}</a></li>'
        for name, title in pages
    )
    body = LOST.substitute(root=root, links=links, points=moons())
    about = f"The page was not found; the parts of the book {book}, and its search."
    return page(f"Page not found · {book}", about, body)


def moons() -> str:
    """Return the points of the picture: two half moons, and the one that is lost."""
    angles = [pi * k / 16 for k in range(17)]
    upper = [(90 - 62 * cos(a), 88 - 62 * sin(a), "z") for a in angles]
    lower = [(152 - 62 * cos(a), 62 + 62 * sin(a), "x") for a in angles]
    return "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="var(--{colour})"/>'
        for x, y, colour in [*upper, *lower, (318, 68, "x")]
    )


def door(first: str, book: str, base: str) -> str:
    """Return the page at the site's root, which sends the reader to the first page."""
    target = f"{first}.html"
    tags = f'<meta http-equiv="refresh" content="0; url={target}" />'
    if base:
        tags += f'\n<link rel="canonical" href="{html.escape(base + target)}" />'
    body = DOOR.substitute(book=html.escape(book), first=target)
    return page(book, f"The door of the book {book}: it opens on the first page.",
                body, tags)  # fmt: skip


def page(title: str, description: str, body: str, tags: str = "") -> str:
    """Return a page that carries everything it needs."""
    data = base64.b64encode(ICON.read_bytes()).decode()
    return PAGE.substitute(
        title=html.escape(title),
        description=html.escape(description),
        body=body,
        tags=tags,
        style=STYLE,
        hash=digest(STYLE),
        icon=f"data:image/svg+xml;base64,{data}",
    )


def icon(size: int) -> bytes:
    """Return the book's icon as PNG, for browsers that do not draw SVG."""
    svg = ICON.read_text(encoding="utf-8")
    return resvg_py.svg_to_bytes(svg_string=svg, width=size, dpi=96)
