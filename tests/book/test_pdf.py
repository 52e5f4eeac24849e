"""The book in print: two chapters, printed by the real browser, read by pypdf."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from press.printed import pdf
from press.printed.packed import packed
from press.printed.sheets import Leaf, Sheets, document, leaves
from pypdf import PdfReader
from pypdf.generic import DictionaryObject, IndirectObject

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build/html"
CHAPTERS = ["book/index", "book/ot/index", "book/ot/quantile", "book/back/references"]

PAGE = (
    '<body><nav>menu</nav><article class="bd-article"><section id="a"><h1>{title}'
    '<a class="headerlink" href="#a">#</a></h1>{body}</section></article></body>'
)


def browser_missing() -> str:
    try:
        pdf.browser()
    except FileNotFoundError as error:
        return str(error)
    return ""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site of two pages that link each other."""
    bodies = {
        "one": '<p><a href="two.html#b">Two</a> <a href="../x/gone.html">gone</a>'
        '<details><summary>Proof</summary><p>Why.</p></details>'
        '<img class="pf-light" src="../../_images/f.svg"><img class="pf-dark" src="d">',
        "two": '<p id="b"><a href="#b">Here</a> <a href="https://a.example/">out</a></p>',
    }  # fmt: skip
    for name, body in bodies.items():
        path = tmp_path / f"html/book/ot/{name}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PAGE.format(title=name.title(), body=body))
    toc = "root: book/ot/one\nparts: [{caption: P, chapters: [{file: book/ot/two}]}]\n"
    (tmp_path / "toc.yml").write_text(toc)
    return tmp_path


def test_the_pages_are_in_the_order_of_the_contents() -> None:
    inner = [{"file": "b", "sections": [{"file": "c"}]}]
    toc = {"root": "a", "parts": [{"caption": "P", "chapters": inner}]}
    assert leaves(toc) == [Leaf("a", 0, ""), Leaf("b", 0, "P"), Leaf("c", 1, "P")]


def test_pages_become_one_document_whose_links_stay_inside(site: Path) -> None:
    sheets = Sheets(site / "html", site / "toc.yml")
    words = pdf.Words("T", "S", "A", "I", "", "")
    made = document(sheets, words, {"ot-two": 7, "ot-two--b": 8})
    assert '<a href="#ot-two--b">Two</a><span class="onpage">8</span>' in made
    assert '<p id="ot-two--b"><a href="#ot-two--b">Here</a> ' in made
    assert '<a href="https://a.example/">out</a>' in made
    assert "gone" in made
    assert "gone.html" not in made
    assert '<span class="dots"></span><span class="onpage">7</span>' in made
    assert 'src="../html/_images/f.svg"' in made
    for left in ("<details", "<summary", "pf-dark", "headerlink", "menu", "<nav"):
        assert left not in made


def test_without_a_browser_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(FileNotFoundError, match="apt-get install chromium"):
        pdf.browser()


@pytest.fixture(scope="module")
def book(built: str, tmp_path_factory: pytest.TempPathFactory) -> PdfReader:
    """Two chapters and the reading list, printed."""
    if missing := browser_missing():
        pytest.skip(missing)
    target = tmp_path_factory.mktemp("print") / "book.pdf"
    return PdfReader(pdf.make(ROOT, SITE, target, CHAPTERS))


def annotations(reader: PdfReader) -> Iterator[DictionaryObject]:
    for page in reader.pages:
        for link in page.get("/Annots", []):
            yield link.get_object()


@pytest.mark.slow
def test_the_contents_say_on_which_page_a_chapter_begins(book: PdfReader) -> None:
    contents = book.pages[1].extract_text()
    found = re.findall(r"^(\d[\d.]*\.? .+?)\s*(\d+)$", contents, re.M)
    assert found, contents
    for title, number in found:
        text = " ".join(book.pages[int(number) - 1].extract_text().split())
        assert " ".join(title.split()) in text
        assert re.search(rf"\b{number}\b", text)  # the page bears its number


@pytest.mark.slow
def test_packing_loses_nothing(book: PdfReader) -> None:
    """The printed file and the packed one, page by page and anchor by anchor."""
    path = SITE.parent / "print/book.pdf"
    printed = PdfReader(path)
    assert book.stream.seek(0, 2) < 0.6 * path.stat().st_size
    assert pdf.places(book) == pdf.places(printed)
    assert [p.extract_text() for p in book.pages] == [
        p.extract_text() for p in printed.pages
    ]
    assert len(list(annotations(book))) == len(list(annotations(printed)))
    for key, (number, k) in book.xref_objStm.items():
        data = IndirectObject(number, 0, book).get_object().get_data()
        assert int(data.split(None, 2 * k + 1)[2 * k]) == key


def test_what_is_no_printed_file_is_not_packed() -> None:
    with pytest.raises(ValueError, match="one plain table of objects"):
        packed(b"%PDF-1.4\nno table", {})


def test_an_object_that_is_not_read_is_told() -> None:
    """An object without its end would be lost in silence."""
    bodies = [b"1 0 obj\n<</Type /Catalog>>\nendobj\n", b"2 0 obj\n<<>>\nendobj\n"]
    head = b"%PDF-1.4\n"
    for last, told in ((b"endobj", ""), (b"endxxx", r"not read: \[2\]")):
        data, table = head, b"xref\n0 3\n0000000000 65535 f \n"
        for body in (bodies[0], bodies[1].replace(b"endobj", last)):
            table += b"%010d 00000 n \n" % len(data)
            data += body
        end = b"trailer\n<</Root 1 0 R /Info 2 0 R>>\nstartxref\n%d\n%%%%EOF\n"
        whole = data + table + end % len(data)
        if told:
            with pytest.raises(ValueError, match=told):
                packed(whole, {})
        else:
            assert packed(whole, {}).startswith(b"%PDF-1.7")


def test_a_printing_of_before_is_none_of_now(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target, program = tmp_path / "book.pdf", tmp_path / "chromium"
    target.write_bytes(b"%PDF old")
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    monkeypatch.setenv("CHROMIUM", str(program))
    with pytest.raises(RuntimeError, match="did not print"):
        pdf.printed(tmp_path / "book.html", target)


def test_a_failure_is_told_in_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*given: object) -> Path:
        raise subprocess.TimeoutExpired("chromium", 1800)

    monkeypatch.setattr(pdf, "make", fail)
    monkeypatch.setattr("sys.argv", ["pdf"])
    with pytest.raises(SystemExit, match="timed out after 1800 seconds"):
        pdf.main()


@pytest.mark.slow
def test_references_say_the_page_that_they_lead_to(book: PdfReader) -> None:
    places = pdf.places(book)
    text = "\n".join(page.extract_text() for page in book.pages)
    assert "??" not in text
    assert "p. 000" not in text
    numbers = {int(n) for n in re.findall(r"\(p\. (\d+)\)", text)}
    assert numbers
    assert numbers <= set(places.values())


@pytest.mark.slow
def test_every_link_inside_has_a_place(book: PdfReader) -> None:
    places, inside = pdf.places(book), 0
    for link in annotations(book):
        target = link.get("/Dest") or link.get("/A", {}).get("/D")
        if target is not None and not isinstance(target, list):
            assert str(target).lstrip("/") in places
            inside += 1
        elif uri := link.get("/A", {}).get("/URI"):
            assert re.match(r"https?://|mailto:", str(uri)), uri
    assert inside > 20


@pytest.mark.slow
def test_fonts_are_embedded_and_the_file_is_tagged_and_named(book: PdfReader) -> None:
    fonts = {}
    for page in book.pages:
        for font in page["/Resources"].get("/Font", {}).values():
            made = font.get_object()
            below = made.get("/DescendantFonts", [made])[0].get_object()
            held = below.get("/FontDescriptor", {})
            held = held.get_object() if held else {}
            kept = made["/Subtype"] == "/Type3" or any(
                f"/FontFile{k}" in held for k in ("", 2, 3)
            )
            fonts[str(made.get("/BaseFont", made["/Subtype"]))] = kept
    assert any("STIXGeneral" in name for name in fonts)
    assert all(fonts.values()), fonts
    assert book.metadata is not None
    assert book.metadata.title == "Push-forward"
    assert book.metadata.author
    assert book.trailer["/Root"]["/MarkInfo"]["/Marked"]
    assert len(book.outline) > 3
