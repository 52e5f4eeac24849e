"""Live figures in the built pages: pictures, controls and data, with and without V8."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup, Tag
from press.reader.live import Stage
from press.text.page import Page

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build/html"
SCRIPTS = ROOT / "book/_static/live"

ALIVE = {
    page.name: page
    for path in sorted((ROOT / "book").glob("*/*.md"))
    if "import live" in (page := Page.read(ROOT, path)).text and page.executed
}
CELL = """
import json
from IPython.display import display
record = json.dumps({"name": "NAME", "alt": "A <hill>.", "caption": "C", "data": {}})
record = record.replace("<", "\\\\u003c")
markup = f'<p>Words.</p><script type="application/json" data-live>{record}</script>'
display({"text/html": markup, "text/plain": "Words."}, raw=True)
triple(1)
"""


@pytest.fixture(scope="module")
def stage() -> Stage:
    return Stage(SCRIPTS)


@pytest.fixture(scope="module")
def figures(built: str) -> Callable[[str], list[Tag]]:
    """Return the live figures of a page of the site."""

    def of(name: str) -> list[Tag]:
        text = (SITE / f"{name}.html").read_text(encoding="utf-8")
        return BeautifulSoup(text, "html.parser").select("figure.pf-live")

    return of


def test_the_seven_figures_are_in_the_book() -> None:
    text = "".join(page.text for page in ALIVE.values())
    for file in SCRIPTS.glob("*.js"):
        assert file.stem == "live" or f'live("{file.stem}"' in text, file.stem


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIVE)
def test_a_page_shows_each_of_its_figures(
    name: str, figures: Callable[[str], list[Tag]], stage: Stage
) -> None:
    """Picture, sentence and data stand in the page, for readers without scripts."""
    found = figures(name)
    assert len(found) == ALIVE[name].text.count("\nlive(")
    for figure in found:
        data = json.loads(figure.select_one("script").string)
        first = stage.call("first", figure["data-live"], data)
        assert figure.select_one(".pf-says").get_text() == first["says"]
        pictures = figure.select(".pf-picture > svg")
        assert len(pictures) == len(first["pictures"])
        assert all(int(p["width"]) > 0 < int(p["height"]) for p in pictures)
        assert all(len(p.select("path, text")) > 3 for p in pictures)
        named = pictures[0]["aria-labelledby"].split()
        assert pictures[0]["role"] == "img"
        assert all(figure.find(id=anchor).get_text().strip() for anchor in named)
        assert all(p.get("aria-hidden") == "true" for p in pictures[1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIVE)
def test_every_control_has_its_label(
    name: str, figures: Callable[[str], list[Tag]]
) -> None:
    for figure in figures(name):
        box = figure.select_one("fieldset")
        assert box.has_attr("disabled")  # until the script is there
        assert box.legend.get_text().strip()
        for control in box.select("input, select"):
            assert box.select_one(f'label[for="{control["id"]}"]').get_text().strip()
        for slider in box.select('input[type="range"]'):
            output = box.select_one(f'output[for="{slider["id"]}"]')
            assert slider["aria-valuetext"] == output.get_text()
        assert all(button.get_text().strip() for button in box.select("button"))
        assert not figure.select("[style], [onclick], [oninput]")


@pytest.mark.slow
def test_scripts_are_loaded_where_a_figure_is_and_nowhere_else(built: str) -> None:
    for path in SITE.glob("book/*/*.html"):
        soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        wanted = {f["data-live"] for f in soup.select("figure.pf-live")}
        scripts = [s for s in soup.select("script[src]") if "/live/" in s["src"]]
        loaded = [Path(s["src"].split("?")[0]).stem for s in scripts]
        assert sorted(loaded) == sorted(wanted | {"live"} if wanted else []), path
        assert loaded[:1] in ([], ["live"])  # the shared module first
        assert all(s.has_attr("defer") for s in scripts)


def test_a_figure_that_is_not_there_is_named(stage: Stage) -> None:
    with pytest.raises(ValueError, match="no live figure 'nothing'"):
        stage.call("first", "nothing", {})


def test_data_cannot_end_its_script(stage: Stage) -> None:
    record = {"alt": "A </svg> & b", "caption": "<i>", "data": {"x": "</script>"}}
    soup = BeautifulSoup(stage.html("divergence", "one", record), "html.parser")
    assert json.loads(soup.select_one("script").string) == record["data"]
    assert soup.select_one("desc").get_text() == record["alt"]
    assert soup.select_one("figcaption").get_text() == "<i>"


def test_all_figures_live_together(stage: Stage) -> None:
    """Names of one file do not meet those of another."""
    for file in sorted(SCRIPTS.glob("*.js")):
        stage.load(file.stem)


@pytest.mark.slow
def test_a_throw_away_book_comes_alive(tiny: Any, tmp_path: Path) -> None:
    static = tmp_path / "static"
    shutil.copytree(ROOT / "book/_static", static)
    cell = CELL.replace("NAME", "divergence")
    page, config = "book/ot/two.md", "_config.yml"
    with (
        tiny.edited(config, str(ROOT / "book/_static"), str(static)),
        tiny.edited(page, "triple(1)", cell.strip()),
    ):
        assert tiny.build().status == 0
        soup = BeautifulSoup(tiny.html("book/ot/two"), "html.parser")
        [figure] = soup.select("figure.pf-live")
        assert figure["id"] == "live-divergence"
        assert figure.select_one("desc").get_text() == "A <hill>."
        assert not BeautifulSoup(tiny.html("book/ot/one"), "html.parser").figure

        script = static / "live/divergence.js"
        text = script.read_text().replace("Two directions", "Both directions")
        script.write_text(text)
        os.utime(script, (script.stat().st_mtime + 5,) * 2)
        again = tiny.build()
        assert again.ran == []
        assert "ot/two" in again.written
        assert "ot/one" not in again.written
        assert "Both directions" in tiny.html("book/ot/two")

        with tiny.edited(page, '"divergence"', '"nothing"'):
            failed = tiny.build()
        assert failed.status != 0
        assert "book/ot/two: live figure nothing: there is no live" in failed.said
