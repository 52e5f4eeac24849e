"""What helps a reader through the book: folds, previews, indexes, needs."""

import html
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from press.reader.previews import element, previews
from press.tables.indexes import KINDS, SCOPES, checks, statements, symbols
from press.text.page import Page

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build/html"
CITED = re.compile(
    r"\{(doc|prf:ref|eq|ref)\}`(?:[^`<]*<)?([^`>]+?)>?`|\]\(([^)\s#]+\.md)"
)


def names(items: list[dict]) -> Iterator[str]:
    """Yield the pages of a piece of the table of contents, in order."""
    for item in items:
        yield item["file"]
        yield from names(item.get("sections", []))


TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
ORDER = [TOC["root"], *(n for p in TOC["parts"] for n in names(p["chapters"]))]
PAGES = {n: Page(n, (ROOT / f"{n}.md").read_text(encoding="utf-8")) for n in ORDER}
CHAPTERS = [n for n in ORDER if n.count("/") == 2 and not n.startswith("book/back/")]
HOME = {label: name for name, page in PAGES.items() for label in page.labels}


def cited(name: str, text: str) -> set[str]:
    """Return the other pages that a text on a page names, itself or by a label."""
    found = set()
    for role, target, path in CITED.findall(text):
        if role == "doc" or path:
            place = (ROOT / name).parent / (path or target).removesuffix(".md")
            found.add(place.resolve().relative_to(ROOT).as_posix())
        elif target in HOME:
            found.add(HOME[target])
    return found - {name}


def proofs(page: Page) -> str:
    """Return the text of a page's proofs."""
    found = [b for b in page.blocks if b.name == "prf:proof"]
    return "\n".join(line for b in found for line in b.body)


def needs(page: Page) -> str:
    """Return what a page says one needs first."""
    found = ["\n".join(b.body) for b in page.blocks if b.name == "needs"]
    assert len(found) == 1, f"{page.name} has {len(found)} boxes {{needs}}"
    return found[0]


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_names_first_what_stands_before_it(name: str) -> None:
    named = cited(name, needs(PAGES[name]))
    assert named <= set(ORDER), named - set(ORDER)
    later = [n for n in named if ORDER.index(n) > ORDER.index(name)]
    assert not later, later


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_names_first_what_its_proofs_cite(name: str) -> None:
    used = {n for n in cited(name, proofs(PAGES[name])) if n in CHAPTERS}
    linked = cited(name, "\n".join(re.findall(r"\{doc\}`.*?`", needs(PAGES[name]))))
    assert used <= linked, used - linked


def test_every_symbol_that_says_where_it_lives_is_placed() -> None:
    found = list(symbols(PAGES["book/notation"].text))
    assert len({s.anchor for s in found}) == len(found) > 100
    for s in found:
        said = re.match(r"((?:in|for) [^:,]+): ", s.meaning)
        assert not said or said[1] in SCOPES, s.meaning
        assert all(any(n.startswith(p) for n in CHAPTERS) for p in s.scope), s.scope


def test_a_symbol_is_found_whole_and_where_it_lives() -> None:
    text = "| Symbol | Macro | Expansion | Meaning |\n|---|---|---|---|\n"
    text += (
        "| $\\E$ | `\\E` | `\\mathbb{E}` | mean |\n| $u$ | | | in splines: a place |"
    )
    mean, place = symbols(text)
    assert mean.used(Page("book/ot/one", "the mean $\\E X$"))
    assert not mean.used(Page("book/ot/one", "an entropy $\\Ent(p)$ and \\E outside"))
    assert place.used(Page("book/flows/spline", "$$ u + 1 $$"))
    assert not place.used(Page("book/flows/spline", "$\\mu + 1$"))
    assert not place.used(Page("book/flows/glow", "$u$"))


def test_a_proof_belongs_to_the_statement_before_it() -> None:
    text = "```{prf:lemma} A\n:label: a\n```\n```{prf:theorem} B\n:label: b\n```\n"
    found = list(statements(Page("p", text + "```{prf:proof}\nx\n```\n")))
    assert [(s.label, s.proved) for s in found] == [("a", False), ("b", True)]


def test_the_first_check_of_a_label_has_its_anchor() -> None:
    line = '<p class="pf-check">✓ {}: 1 == 1</p>'
    context = {"body": line.format("thm:a (twice)") + 2 * line.format("eq:b")}
    checks(None, "p", "page.html", context, None)  # type: ignore[arg-type]
    found = re.findall(r'<p id="(.*?)" class="pf-check">✓ \S+', context["body"])
    assert found == ["check:thm:a", "check:eq:b"]


def test_an_element_is_cut_at_its_own_end() -> None:
    assert element("a<div id='x'><div></div>b</div>c</div>", 1, "div").endswith(
        "b</div>"
    )
    with pytest.raises(ValueError, match="without end"):
        element("<div><div></div>", 0, "div")


def test_a_preview_is_a_statement_or_the_first_words_of_a_section() -> None:
    body = (
        '<section id="one">\n<span id="first"></span><h2>One</h2>\n<p>Words.</p>'
        '<p>More.</p><details class="pf-statement" id="thm:a" open><summary>A</summary>'
        '<div class="math" id="equation-b">x</div></details></section>'
        '<section id="two"><h2>Two</h2><pre>code</pre></section><div id="other">y</div>'
    )
    found = dict(previews(body))
    assert found["first"] == "<h2>One</h2><p>Words.</p>"
    assert found["thm:a"].startswith("<details")
    assert "x</div>" in found["thm:a"]
    assert found["equation-b"] == '<div class="math" id="equation-b">x</div>'
    assert found["two"] == "<h2>Two</h2>"
    assert set(found) == {"first", "thm:a", "equation-b", "two"}


class Tree(HTMLParser):
    """The anchors, links and folds of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.folds: list[str] = []  # the tag that follows each <details>
        self.after = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if self.after:
            self.folds.append(tag)
        self.after = tag == "details"
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found["href"] or ""] if tag == "a" and "href" in found else []


def body(name: str) -> str:
    """Return the article of a page of the site."""
    text = (SITE / f"{name}.html").read_text(encoding="utf-8")
    return text[text.index("<article") : text.index("</article>")]


@pytest.fixture(scope="module")
def trees(built: str) -> dict[str, Tree]:
    """Every page of the site."""
    return {name: Tree(body(name)) for name in ORDER}


def words(text: str) -> str:
    """Return what a piece of HTML says."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", text)).split())


@pytest.mark.slow
@pytest.mark.parametrize("name", ORDER)
def test_every_fold_has_a_summary_and_every_anchor_is_one(
    name: str, trees: dict[str, Tree]
) -> None:
    tree = trees[name]
    assert set(tree.folds) <= {"summary"}
    assert len(set(tree.ids)) == len(tree.ids), sorted(
        i for i in set(tree.ids) if tree.ids.count(i) > 1
    )
    solved = [b for b in PAGES[name].blocks if b.name.startswith("solution")
              and b.name != "solution-end"]  # fmt: skip
    boxes = [b for b in PAGES[name].blocks if b.name.startswith("prf:")]
    assert len(re.findall(r'<details class="[^"]*pf-', body(name))) \
        == len(solved) + len(boxes)  # fmt: skip


@pytest.mark.slow
def test_the_index_has_every_statement_once_with_the_number_of_its_page(
    trees: dict[str, Tree],
) -> None:
    text = body("book/back/statements")
    rows = re.findall(r'<tr class="row-(?:odd|even)"><td>(.*?)</tr>', text, re.S)
    links = [re.search(r'href="([^"#]+)#([^"]+)">(.*?)</a>', row, re.S) for row in rows]
    shown = {m[2]: (m[1], words(m[3])) for m in links if m}
    wanted = {b.options["label"]: page.name for page in PAGES.values()
              for b in page.blocks if b.name in {f"prf:{k}" for k in KINDS}
              if "label" in b.options}  # fmt: skip
    assert len(links) == len(shown)
    assert set(shown) == set(wanted)
    for label, name in wanted.items():
        box = body(name)
        start = box.index(f'id="{label}"')
        number = re.search(r'caption-number">(.*?)</span>', box[start:], re.S)
        assert number
        assert shown[label][1] == words(number[1])
        assert (SITE / "book/back" / shown[label][0]).resolve() == SITE / f"{name}.html"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["statements", "symbols"])
def test_an_index_leads_to_anchors_that_are_there(
    name: str, trees: dict[str, Tree]
) -> None:
    for link in trees[f"book/back/{name}"].links:
        page, _, anchor = link.partition("#")
        if anchor and page.startswith("../"):
            target = f"book/{page.removeprefix('../').removesuffix('.html')}"
            assert anchor in trees[target].ids, link


@pytest.mark.slow
def test_every_row_of_the_notation_has_its_anchor(trees: dict[str, Tree]) -> None:
    ids = trees["book/notation"].ids
    assert {s.anchor for s in symbols(PAGES["book/notation"].text)} <= set(ids)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_leads_to_its_symbols(name: str, trees: dict[str, Tree]) -> None:
    anchor = "symbols-" + name.removeprefix("book/").replace("/", "-")
    assert f"../back/symbols.html#{anchor}" in trees[name].links
    assert anchor in trees["book/back/symbols"].ids


def kept(name: str) -> dict[str, str]:
    """Return what a page keeps for previews."""
    text = (SITE / f"_previews/{name}.js").read_text(encoding="utf-8")
    head = f'pfPreview("{name}",'
    assert text.startswith(head)
    assert text.endswith(");\n")
    found = json.loads(text[len(head) : -3])
    assert isinstance(found, dict)
    return found


@pytest.mark.slow
def test_what_pages_cite_of_one_another_has_a_preview(trees: dict[str, Tree]) -> None:
    """Statements, equations, exercises and papers; few links go elsewhere."""
    found = {name: kept(name) for name in [*CHAPTERS, "book/back/references"]}
    for name in CHAPTERS:
        for link in trees[name].links:
            page, _, anchor = link.partition("#")
            target = ((SITE / name).parent / page).resolve().with_suffix("")
            place = target.relative_to(SITE).as_posix() if page.endswith("html") else ""
            if place in found and not anchor.startswith(("proof:", "check:")):
                assert anchor in found[place], link


@pytest.mark.slow
def test_the_previews_of_a_page_are_light(built: str) -> None:
    sizes = {name: len("".join(kept(name).values())) for name in CHAPTERS}
    assert max(sizes.values()) < 400_000, sizes


def test_an_edited_statement_shows_in_the_index(tiny: Any) -> None:
    tiny.write("book/back/index.md", "# Index\n\nAll.\n\n```{statements}\n```\n")
    with tiny.edited(
        "_toc.yml", "back/boards", "back/boards\n      - file: book/back/index"
    ):
        assert tiny.build().status == 0
        assert "Doubling" in tiny.html("book/back/index")
        with tiny.edited("book/ot/one.md", "} Doubling", "} Twice"):
            assert tiny.build().status == 0
            assert "Twice" in tiny.html("book/back/index")
            box = tiny.html("book/ot/one")
    assert '<summary><span class="caption-number">Theorem' in box
