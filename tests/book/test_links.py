"""Every link of the built site leads somewhere; the checker sees those that do not."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from press.proofreading import links

ROOT = Path(__file__).parents[2]

PAGE = """<!DOCTYPE html><html><body>
<a href="other.html">there</a> <a href="other.html?v=1#here">there</a>
<a href="#top">top</a> <a href='#own'>own</a> <a href=deep/>folder</a>
<a href="/site/other.html">from the root</a> <a href="mailto:a@b.org">mail</a>
<p id="own">On x &lt; y and <code>&lt;a href="no.html"&gt;</code></p>
<!-- <a href="commented.html"> --><script>let a = '<a href="script.html">';</script>
<label for="q">Q</label><input id=q aria-describedby="own q">
<svg viewBox="0 0 1 1"><clipPath id="clip"/><use href="#own"/>
<path clip-path="url(#clip)" fill="url('#clip')"/></svg>
<img src="a%20b.svg" srcset="a%20b.svg 2x" alt="A picture">
<style>p { background: url(x.png) }</style>
<form action="other.html"></form></body></html>"""

FAULTY = {
    '<a href="gone.html">x</a>': "gone.html leads to no file",
    '<img src="gone.png" alt="">': "gone.png leads to no file",
    '<img alt="" srcset="gone-2.png 2x">': "gone-2.png leads to no file",
    '<a href="other.html#gone">x</a>': "other.html#gone leads to no anchor",
    '<a href="#gone">x</a>': "#gone leads to no anchor",
    '<a href="a%20b.svg#gone">x</a>': "a%20b.svg#gone leads to no anchor",
    '<a href="../../else.html">x</a>': "../../else.html leads out of the site",
    '<a href="/other.html">x</a>': "/other.html leads out of the site",
    "<b id=own></b>": "the id own is given 2 times",
    '<label for="lost"></label>': "nothing has the id lost, which is mentioned",
    '<b aria-labelledby="own b"></b>': "nothing has the id b, which is mentioned",
    '<rect fill="url(#paint)"/>': "nothing has the id paint, which is mentioned",
    '<math><mi href="#eq">x</mi></math>': "#eq leads to no anchor",
    '<svg><a xlink:href="lost.html"></a></svg>': "lost.html leads to no file",
    '<form action="lost.html"></form>': "lost.html leads to no file",
    '<meta content="0; url=lost.html">': "lost.html leads to no file",
    '<p style="background: url(lost.png)"></p>': "lost.png leads to no file",
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A site of three pages and a picture, without a fault."""
    root = tmp_path / "site"
    (root / "deep").mkdir(parents=True)
    (root / "page.html").write_text(PAGE)
    (root / "other.html").write_text('<a name="here"></a>')
    (root / "deep/index.html").write_text('<a href="../page.html#own">x</a>')
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><path id="a"/><use href="#a"/></svg>'
    (root / "a b.svg").write_text(svg)
    (root / "style.css").write_text(
        "/* url(no.png) */ p { background: url(a%20b.svg) }"
    )
    (tmp_path / "else.html").write_text("outside")
    return root


def test_a_sound_site_has_no_faults(small: Path) -> None:
    assert links.faults(small, "/site/") == []


@pytest.mark.parametrize("wrong", FAULTY)
def test_each_kind_of_fault_is_found(wrong: str, small: Path) -> None:
    page = small / "page.html"
    page.write_text(page.read_text().replace("</body>", f"{wrong}</body>"))
    if wrong.startswith('<a href="../../'):
        page = page.rename(small / "deep/page.html")
        found = links.faults(small, "/site/")
        assert f"deep/page.html: {FAULTY[wrong]}" in found
    else:
        assert links.faults(small, "/site/") == [f"page.html: {FAULTY[wrong]}"]


def test_a_fault_of_a_picture_or_a_style_sheet_is_found(small: Path) -> None:
    (small / "a b.svg").write_text('<svg><use href="#none"/></svg>')
    (small / "style.css").write_text("@font-face { src: url('none.woff2') }")
    assert links.faults(small, "/site/") == [
        "a b.svg: #none leads to no anchor",
        "style.css: none.woff2 leads to no file",
    ]


@pytest.mark.slow
def test_every_link_of_the_book_leads_somewhere(built: str) -> None:
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    prefix = urlsplit(config["html"]["baseurl"]).path or "/"
    found = links.faults(ROOT / "_build/html", f"{prefix.rstrip('/')}/")
    assert not found, "\n".join(found)


ANSWERS = {
    "/good": 200,
    "/gone": 404,
    "/forbidden": 403,
    "/get-only": 200,
    "/weak": 200,
}


class Answering(BaseHTTPRequestHandler):
    """A server on this machine: some pages are good, some gone, some moody."""

    asked: list[tuple[str, str]]

    def do_HEAD(self) -> None:
        first = ("GET", self.path) not in self.asked
        self.asked.append((self.command, self.path))
        status = ANSWERS.get(self.path, 200)
        if self.path == "/get-only" and self.command == "HEAD":
            status = 404
        if self.path == "/weak" and first:
            status = 503
        self.send_response(302 if self.path == "/moved" else status)
        self.send_header("Location", "/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    """The address of the server."""
    Answering.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_other_sites_are_asked_and_their_answers_told(
    server: str, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["good", "gone", "forbidden", "get-only", "weak", "moved", "excused/a"]
    anchors = "".join(f'<a href="{server}/{name}#part">x</a>' for name in names)
    (small / "page.html").write_text(anchors)
    assert links.report(small, {f"{server}/excused": "asked by hand"}, pause=0.01) == 1
    said = capsys.readouterr().out
    assert "6 addresses, 1 excused." in said
    assert f"broken: {server}/gone (status 404) in page.html" in said
    assert f"refused: {server}/forbidden (status 403) in page.html" in said
    assert f"moved: {server}/moved ({server}/) in page.html" in said
    assert "3 good, 1 refused, 1 broken, 1 moved" in said
    assert Answering.asked.count(("GET", "/forbidden")) == links.TRIES
    assert ("GET", "/good") not in Answering.asked
    assert not [path for _, path in Answering.asked if "excused" in path]


def test_a_site_with_good_links_passes(server: str, small: Path) -> None:
    (small / "page.html").write_text(f'<a href="{server}/good">x</a>')
    assert links.report(small, {}, pause=0.01) == 0


def test_a_machine_without_a_network_is_told_so(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small / "page.html").write_text('<a href="http://127.0.0.1:9/nobody">x</a>')
    assert links.report(small, {}, pause=0.01) == 2
    assert "this machine seems to be offline" in capsys.readouterr().out


def test_an_address_that_is_none_is_told_like_the_others(
    server: str, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small / "page.html").write_text(f'<a href="{server}/good b">x</a>')
    assert links.report(small, {}, pause=0.01) == 2
    (small / "other.html").write_text(f'<a href="{server}/good">x</a>')
    assert links.report(small, {}, pause=0.01) == 1
    assert f"unreached: {server}/good b" in capsys.readouterr().out


def test_every_excuse_has_a_reason(tmp_path: Path) -> None:
    rows = links.excused(ROOT / "book/links.toml")
    assert all(begins.startswith("https://") and why for begins, why in rows.items())
    assert links.excused(tmp_path / "none.toml") == {}
