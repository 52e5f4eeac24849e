"""Pages that are light, and that ask nobody for anything: the passes, and the site."""

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urldefrag

import pytest
import yaml
from press.shell import bridge, icons, slim, styles, svg
from pygments.styles import get_style_by_name
from pygments.token import STANDARD_TYPES, Text

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build/html"
LIMIT = 300_000  # of a page before its figures, bytes as a server sends them

PAGE = """<!DOCTYPE html>
<html lang="en" data-content_root="../" >
  <head>
    <meta charset="utf-8" />
    <meta name="viewport" content="width=device-width, initial-scale=1.0" />
    <meta name="viewport" content="width=device-width, initial-scale=1" />
    <title>A page</title>
    <script data-cfasync="false">document.documentElement.dataset.mode = "";</script>
    <!-- a comment -->
    <link href="../_static/styles/theme.css?digest=1" rel="stylesheet" />
    <link rel="stylesheet" type="text/css" href="../_static/press.css?v=2" />
    <link rel="preload" as="script" href="../_static/scripts/bootstrap.js?digest=1" />
    <link rel="canonical" href="https://host/page.html" />
    <script src="../_static/documentation_options.js?v=1"></script>
    <script src="../_static/searchtools.js"></script>
    <script src="../_static/reader.js?v=1"></script>
    <script>let toggleHintShow = 'Click to show';</script>
    <script type="application/ld+json">{"a": 1}</script>
  </head>
  <body>
    <button onclick="window.print()" class="btn" title="Print to PDF"
      data-bs-placement="left" data-bs-toggle="tooltip"><i class="fas fa-file"></i>
    </button>
    <div class="highlight-ipython3 notranslate"><div class="highlight"><pre>a

  b</pre></div></div>
    <div class="highlight-none notranslate"><div class="highlight"><pre>out</pre>
    </div></div>
    <img src="a.png" alt="A" width="1" height="1" />
    <p>Write onclick="x".</p>
    <script defer src="../_static/scripts/bootstrap.js?digest=1"></script>
  </body>
</html>
"""


def inline(text: str) -> list[str]:
    """Return the scripts of a page that have no address and are no data."""
    found = re.findall(r"<script\b([^>]*)>(.*?)</script>", text, re.S)
    return [body for said, body in found if "src=" not in said and "json" not in said]


def loaded(text: str) -> set[str]:
    """Return the addresses that a page loads before its figures."""
    tags = (
        r'<script\b[^>]*\bsrc="([^"]+)"|<link\b(?=[^>]*stylesheet)[^>]*href="([^"]+)"'
    )
    return {a or b for a, b in re.findall(tags, text)}


def source(code: str) -> str:
    hashed = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return f"'sha256-{hashed}'"


def policy(text: str) -> dict[str, list[str]]:
    """Return the rules of a page's policy."""
    said = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert said
    rules = (rule.split() for rule in said[1].split(";"))
    return {name: given for name, *given in rules}


# The passes.


def test_a_page_keeps_one_sheet_and_the_scripts_that_it_needs() -> None:
    text = bridge.finished(PAGE)
    assert loaded(text) == {
        "../_static/book.css",
        "../_static/page.js",
        "../_static/reader.js?v=1",
    }
    assert '<script defer src="../_static/reader.js?v=1"></script>' in text
    assert 'rel="canonical" href="https://host/page.html"' in text
    assert '<script type="application/ld+json">{"a": 1}</script>' in text
    assert "preload" not in text
    assert "<!--" not in text
    assert text.count('name="viewport"') == 1


def test_where_results_are_shown_the_search_comes_after_our_script() -> None:
    text = bridge.finished(PAGE.replace("<p>", '<p id="search-results">'))
    names = re.findall(r'src="[^"]*?([\w.]+\.js)', text)
    assert names == [
        "documentation_options.js",
        "page.js",
        "searchtools.js",
        "reader.js",
    ]


def test_the_only_code_in_a_page_is_named_by_its_policy() -> None:
    text = bridge.finished(PAGE)
    assert inline(text) == [bridge.COLOURS]
    rules = policy(text)
    assert source(bridge.COLOURS) in rules["script-src"]
    assert "'unsafe-inline'" not in rules["script-src"]
    assert rules["default-src"] == ["'none'"]
    assert text.index("Content-Security-Policy") < text.index("<script")
    assert text.index("charset") < 200  # browsers look no further than 1024 bytes


def test_buttons_have_names_and_no_handlers() -> None:
    text = bridge.finished(PAGE)
    button = re.search(r'<button[^>]*class="pst-js-only btn"[^>]*>', text)
    assert button
    assert "onclick" not in button[0]
    assert "data-bs" not in button[0]
    assert 'aria-label="Print to PDF"' in button[0]
    assert '<p>Write onclick="x".</p>' in text


def test_code_keeps_its_blanks_and_has_a_button_outputs_have_none() -> None:
    text = bridge.finished(PAGE)
    assert "<pre>a\n\n  b</pre><button" in text
    assert text.count('class="copybtn') == 1


def test_code_in_the_colour_of_text_has_no_spans() -> None:
    code = '<span class="n">x</span><span class="o">=</span><span class="p">(</span>'
    assert bridge.colourless(code) == 'x<span class="o">=</span>('
    options = yaml.safe_load((ROOT / "_config.yml").read_text())["sphinx"]["config"]
    theme = options["html_theme_options"]
    names = [theme[f"pygments_{k}_style"] for k in ("light", "dark")]
    schemes = [get_style_by_name(name) for name in names]
    plain = [
        name
        for token, name in STANDARD_TYPES.items()
        if name
        and all(s.style_for_token(token) == s.style_for_token(Text) for s in schemes)
    ]
    assert sorted(plain) == ["n", "nn", "nx", "p", "pm", "w"]
    for name in plain:
        assert bridge.colourless(f'<span class="{name}">x</span>') == "x"


def test_pictures_are_fetched_late_but_one_above_all_headings() -> None:
    page = PAGE.replace("<img", '<h2>1</h2><img src="b.svg" alt="b"><img', 1)
    late = re.findall(r"<img[^>]*>", bridge.finished(page))
    assert len(late) > 1
    assert all('loading="lazy"' in image for image in late)
    assert all('decoding="async"' in image for image in late)
    first = re.search(r"<img[^>]*>", bridge.finished(PAGE))
    assert first
    assert 'loading="eager" fetchpriority="high"' in first[0]


# The style sheet.


def bundled(css: str, *names: str, text: str = "") -> str:
    return styles.bundled([css], frozenset(names), text).strip()


@pytest.mark.parametrize(
    ("css", "kept"),
    [
        (".a { color : red ; } .b { color: blue }", ".a{color:red}"),
        (".a, .b > p { margin: 0 }", ".a{margin:0}"),
        ('html[data-theme="dark"] .a { x: y }', 'html[data-theme="dark"] .a{x:y}'),
        (".a:not(.b) { x: y }", ".a:not(.b){x:y}"),
        ("#i .a:hover::after { x: y }", ""),
        ("@media print { .a { x: y } .b { x: y } }", "@media print{.a{x:y}}"),
        ("@media print { .b { x: y } }", ""),
        ("/* c */ .a { x: calc(1px + 2px) }", ".a{x:calc(1px + 2px)}"),
        ('.a::before { content: "a,  b" }', '.a::before{content:"a,  b"}'),
        (".a { --used: 1; --not: 2; x: var(--used) }", ".a{--used:1;x:var(--used)}"),
        (".a { --one: var(--two); --two: 1 }", ""),
        ("@keyframes k { to { x: y } } .a { animation: k 1s }",
         "@keyframes k{to{x:y}}\n.a{animation:k 1s}"),
        ("@keyframes k { to { x: y } } .a { x: y }", ".a{x:y}"),
        ("@font-face { font-family: F; src: url(f) } .a { font-family: G }",
         ".a{font-family:G}"),
        ('@font-face { font-family: "F" } .a { font-family: F }',
         '@font-face{font-family:"F"}\n.a{font-family:F}'),
        (".a { font: var(--fa-font-solid); x: y }", ".a{x:y}"),
        (".a { x: y !important }", ".a{x:y!important}"),
    ],
)  # fmt: skip
def test_a_rule_stays_when_a_page_can_use_it(css: str, kept: str) -> None:
    assert bundled(css, "html", "p", ".a") == kept


def test_what_a_script_or_an_attribute_names_stays() -> None:
    assert "--x" in bundled(".a { --x: 1 }", ".a", text="style.setProperty('--x', 1)")


def test_addresses_are_told_from_the_static_folder() -> None:
    css = "a{x:url(../f/a.woff2);y:url(\"data:b\");z:url( 'c.png' )}"
    told = 'a{x:url("f/a.woff2");y:url("data:b");z:url("styles/c.png")}'
    assert styles.moved(css, "styles") == told


def test_an_icon_is_the_solid_one_of_its_name() -> None:
    script = (
        '{sun:[1,2,[],"f185","M0"],x:[1,2,[],"f1","M1"]}{sun:[5,6,[9],"f185","M2"]}'
    )
    assert icons.found(script, "sun") == (5, 6, "M2")
    assert icons.found(script, "moon") is None


# The pictures.


def test_a_picture_says_the_same_in_fewer_characters() -> None:
    text = (
        '<?xml version="1.0"?>\n<svg viewBox="0 0 9 9" version="1.1">\n<metadata>m'
        '</metadata><defs>\n <path id="g" d="M 1.23456 -0.00001 \nL 2 3 \nz"'
        ' transform="scale(0.015625)" style="fill: none; stroke: red"/></defs>\n'
        ' <g id="axes_1"><use xlink:href="#g" x="10.123456"/></g><g id="e">\n</g></svg>'
    )
    assert svg.small(text) == (
        '<svg viewBox="0 0 9 9"><defs><path id="g" d="M1.23 -0L2 3z"'
        ' transform="scale(0.015625)" style="fill:none;stroke:red"/></defs>'
        '<g><use xlink:href="#g" x="10.123"/></g></svg>\n'
    )


# What is remembered of a page.


def test_a_page_is_looked_at_again_only_when_its_file_changed(tmp_path: Path) -> None:
    page, memory = tmp_path / "a.html", tmp_path / "memory/used.json"
    page.write_text('<p class="a b" id="i" style="--x:1"><img src="_images/f.svg">')
    seen = slim.Pages(tmp_path, memory)
    assert seen.all("names") == {"p", "img", ".a", ".b", "#i"}
    assert seen.all("files") == {"_images/f.svg"}
    seen.keep()
    state = json.loads(memory.read_text())
    state["a.html"][1][0] = ["remembered"]
    memory.write_text(json.dumps(state))
    assert slim.Pages(tmp_path, memory).all("names") == {"remembered"}
    page.write_text("<em>")
    assert slim.Pages(tmp_path, memory).all("names") == {"em"}


def test_what_no_page_asks_for_goes(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name in (
        "_static/book.js",
        "_static/scripts/fontawesome.js",
        "_static/images/asked.png",
        "_static/images/logo.png",
        "_images/0123456789abcdef.svg",
        "_images/fedcba9876543210.svg",
        "_images/cover.png",
        "_sources/a.md",
    ):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).touch()
    (site / "a.html").write_text(
        '<img src="_images/0123456789abcdef.svg"><img src="_static/images/asked.png">'
    )
    for _ in range(2):
        slim.swept(site, slim.Pages(site, tmp_path / "used.json"))
        left = {f.relative_to(site).as_posix() for f in site.rglob("*") if f.is_file()}
        assert left == {
            "a.html",
            "_static/book.js",
            "_static/images/asked.png",
            "_images/0123456789abcdef.svg",
            "_images/cover.png",
        }


def test_what_a_page_left_goes_with_it(tmp_path: Path) -> None:
    stay = {
        "404.html",
        "genindex.html",
        "search.html",
        "_static/x/a.html",
        "_images/a.png",
        "_notebooks/a.ipynb",
        "book/ot/one.html",
        "_previews/book/ot/one.js",
        "cards/ot-one-0123456789.png",
    }
    for name in stay | {n.replace("one", "gone") for n in stay}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    slim.forgotten(tmp_path, {"book/ot/one"})
    files = {f.relative_to(tmp_path).as_posix() for f in tmp_path.rglob("*.*")}
    assert {f for f in files if (tmp_path / f).is_file()} == stay


def sources(tmp_path: Path) -> slim.Sources:
    """Return the static files of a book, its environment below it, and its site."""
    own, other = tmp_path / "book/_static", tmp_path / ".venv/extension"
    for folder in (own, other, tmp_path / "site/_static"):
        folder.mkdir(parents=True)
    (own / "press.css").write_text(".a { color: red }")
    (own / "icon.svg").write_bytes(b"\xff new")
    (own / "sub").mkdir()
    (own / "sub/own.js").write_text("'own'")
    (own / ".hidden").touch()
    (other / "theirs.js").write_text("'theirs'")
    sheet = SimpleNamespace(priority=1, filename="_static/press.css")
    builder = SimpleNamespace(
        theme=SimpleNamespace(get_theme_dirs=list), _css_files=[sheet]
    )
    config = SimpleNamespace(html_static_path=["book/_static", str(other)])
    return slim.Sources(SimpleNamespace(
        builder=builder, config=config, srcdir=tmp_path, confdir=tmp_path,
        outdir=tmp_path / "site"))  # fmt: skip


def test_the_books_own_files_are_those_below_its_folder(tmp_path: Path) -> None:
    """Not those of an environment that lies in the same folder as the book."""
    found = sources(tmp_path)
    assert found.scripts() == "'own'"
    (found.made / "icon.svg").write_text("old")
    slim.refreshed(found)
    files = {f.relative_to(found.made).as_posix() for f in found.made.rglob("*.*")}
    assert files == {"icon.svg", "sub/own.js"}
    assert (found.made / "icon.svg").read_bytes() == b"\xff new"


@pytest.mark.parametrize(
    "fault",
    [".b color: blue", ".b { color blue }", "@media print { .b { x y } }", ".b }"],
)
def test_a_fault_in_a_sheet_of_the_book_is_told(tmp_path: Path, fault: str) -> None:
    found = sources(tmp_path)
    sheet = tmp_path / "book/_static/press.css"
    assert found.sheets()[-1] == sheet.read_text()
    sheet.write_text(f".a {{ x: y }}\n{fault}")
    with pytest.raises(ValueError, match=r"press\.css, line 2: "):
        found.sheets()


def test_code_with_long_lines_can_be_reached() -> None:
    text = PAGE.replace("<pre>a", f"<pre>{'a' * (bridge.NARROW + 1)}")
    assert bridge.finished(text).count("<pre tabindex") == 1
    assert "<pre tabindex" not in bridge.finished(PAGE)


def test_the_parts_of_the_sidebar_are_named() -> None:
    fold = '<a class="reference internal" href="a.html">1. One</a><details><summary>'
    page = PAGE.replace("<body>", f"<body>{fold}</summary></details>")
    assert '<summary aria-label="Chapters of 1. One">' in bridge.finished(page)


# The site.

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def site(built: str) -> dict[str, str]:
    """The finished pages' texts, by their addresses from the top."""
    files = [*SITE.glob("*.html"), *SITE.glob("book/**/*.html")]
    texts = {f.relative_to(SITE).as_posix(): f.read_text("utf-8") for f in files}
    return {name: text for name, text in texts.items() if "<article" in text}


@pytest.fixture(scope="module")
def sheet(built: str) -> str:
    return (SITE / "_static/book.css").read_text(encoding="utf-8")


@slow
def test_every_page_forbids_outside_code_and_holds_none(site: dict[str, str]) -> None:
    assert len(site) > 45
    for name, text in site.items():
        rules = policy(text)
        assert [source(code) for code in inline(text)] == [
            given for given in rules["script-src"] if given.startswith("'sha256")
        ], name
        assert not re.search(r"<[a-z]+\b[^<>]*\son[a-z]+=\"", text), name
        assert 'href="javascript:' not in text, name
        sources = re.findall(
            r'<(?:script|img|source|iframe)\b[^>]*\ssrc="([^"]*)"', text
        )
        assert not [s for s in sources if re.match(r"(https?:)?//", s)], name


@slow
def test_every_picture_has_its_size(site: dict[str, str]) -> None:
    for name, text in site.items():
        for image in re.findall(r"<img\b[^>]*>", text):
            assert re.search(r'\bwidth="\d', image), (name, image)
            assert re.search(r'\bheight="\d', image), (name, image)


@slow
def test_every_page_is_light_before_its_figures(site: dict[str, str]) -> None:
    """Page, sheet, scripts, and the fonts that the sheet names, as gzip sends them."""
    fonts = {f"_static/{f.name}" for f in (SITE / "_static").glob("*.woff2")}
    weights: dict[Path, int] = {}

    def weight(path: Path) -> int:
        if path not in weights:
            data = path.read_bytes()
            weights[path] = len(
                data if path.suffix == ".woff2" else gzip.compress(data)
            )
        return weights[path]

    for name, text in site.items():
        here = (SITE / name).parent
        files = {
            (here / urldefrag(a)[0].partition("?")[0]).resolve() for a in loaded(text)
        }
        files |= {(SITE / font).resolve() for font in fonts}
        assert sum(map(weight, [SITE / name, *files])) <= LIMIT, name


@slow
def test_the_sheet_has_what_pages_and_schemes_need(
    site: dict[str, str], sheet: str
) -> None:
    for needed in (
        'html[data-theme="dark"] .highlight',
        "html[data-theme=dark]{",
        ".skip-link",
        ".prev-next-area",
        ".bd-sidebar-primary",
        "#pst-search-dialog",
        ".pst-sidebar-hidden",
        ".dropdown-menu.show",
        ".pf-check",
        "::highlight(search)",
        "@media print",
    ):
        assert needed in sheet, needed
    assert not re.search(r"url\(\s*[\"']?(?:https?:)?//", sheet)
    bare = re.sub(r"data:font/woff2;base64,[^\"]*", "", sheet)
    assert bare != sheet  # the formulas' font is in the sheet, before the first paint
    assert len(gzip.compress(bare.encode())) < 30_000


@slow
def test_every_icon_is_drawn(site: dict[str, str], sheet: str) -> None:
    words = {
        w for t in site.values() for c in slim.CLASSES.findall(t) for w in c.split()
    }
    named = {word for word in words if word.startswith("fa-")} - icons.MANNERS
    assert {"fa-sun", "fa-moon", "fa-copy", "fa-magnifying-glass"} <= named
    for name in named:
        assert f".{name}{{--pf-icon:url(" in sheet, name
    assert "CC BY 4.0" in sheet


@slow
def test_nothing_that_a_sheet_or_page_names_is_missing(
    site: dict[str, str], sheet: str
) -> None:
    for address in re.findall(r'url\("(?!data:|#)([^"]+)"\)', sheet):
        assert (SITE / "_static" / address).is_file(), address
    for name, text in site.items():
        for address in loaded(text):
            file = (SITE / name).parent / address.partition("?")[0]
            assert file.is_file(), (name, address)


@slow
def test_the_folder_holds_no_waste(built: str) -> None:
    assert not list(SITE.rglob("*.map"))
    assert not list(SITE.rglob("fontawesome*"))
    assert not (SITE / "_static/locales").exists()
    assert not (SITE / "_static/styles").exists()
    assert not (SITE / "_static/mathjax").exists()
