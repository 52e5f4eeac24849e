"""What a build does after an edit, on a throw-away book of two executed pages."""

import re
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ONE, TWO = "book/ot/one.md", "book/ot/two.md"


def test_nothing_changed_nothing_done(tiny: Any) -> None:
    again = tiny.build()
    assert again.status == 0, again.said
    assert again.ran == again.written == []


def test_the_pages_show_what_they_should(tiny: Any) -> None:
    boards = tiny.html("book/back/boards")
    for words in ("1 passed", "1 reproduced", "twice: 2 = 2", "Theorem 1.1"):
        assert words in boards, words
    assert "2 pages," in boards
    assert 'href="../ot/one.html#equation-eq-double"' in boards  # from the docstring
    one = tiny.html("book/ot/one")
    assert '<meta name="description" content="The first page' in one
    assert "𝔼" in tiny.html("book/notation")  # its own macro, typeset
    assert not re.search(r'(src|href)="(https?:)?//', one + boards)


def test_a_module_reruns_the_pages_that_reach_it(tiny: Any) -> None:
    with tiny.edited("code/pushforward/ot/two.py", "3 * x", "x + x + x"):
        edited = tiny.build()
        assert edited.status == 0, edited.said
        assert edited.ran == ["ot/two"]
        assert "ot/one" not in edited.written
    back = tiny.build()
    assert back.ran == []  # what had run before is still kept


def test_a_sentence_is_written_without_running(tiny: Any) -> None:
    with tiny.edited(TWO, "second page", "second leaf"):
        edited = tiny.build()
        assert edited.status == 0, edited.said
        assert edited.ran == []
        assert "second leaf" in tiny.html("book/ot/two")
        assert "ot/one" not in edited.written


def test_the_pins_rerun_everything(tiny: Any) -> None:
    with tiny.edited("requirements.txt", "a==1", "a==2"):
        assert tiny.build().ran == ["ot/one", "ot/two"]


def test_failing_cells_fail_the_build_every_time_and_are_named(tiny: Any) -> None:
    with (
        tiny.edited(ONE, "double(1), 2.0", "double(1), 2.5"),
        tiny.edited(TWO, "triple(1)", "triple(1) / 0"),
    ):
        for _ in range(2):
            failed = tiny.build()
            assert failed.status != 0
            assert failed.ran == []
            for words in (
                "2 pages failed",
                "book/ot/one, cell 1 of 1: from pushforward.check import check",
                "AssertionError: thm:double: 2 == 2.5 fails",
                "book/ot/two, cell 1 of 1: from pushforward.ot import triple",
                "ZeroDivisionError",
            ):
                assert words in failed.said, words


def test_a_fault_or_a_warning_fails_the_build_every_time(tiny: Any) -> None:
    with tiny.edited(ONE, 'measure("c1"', 'measure("c2"'):
        for _ in range(2):
            failed = tiny.build()
            assert failed.status != 0
            assert 'book/ot/one: measure("c2") has no row in claims.toml' in failed.said
    with tiny.edited(TWO, "second page", "second {doc}`nowhere`"):
        for _ in range(2):
            failed = tiny.build()
            assert failed.status != 0
            assert "nowhere" in failed.said


def test_a_value_outside_its_band_fails_the_build(tiny: Any) -> None:
    with tiny.edited("book/claims.toml", "[1.9, 2.1]", "[2.9, 3.1]"):
        failed = tiny.build()
        assert failed.status != 0
        assert failed.ran == []
        assert "claims.toml, c1: measured 2, outside the band" in failed.said
    with tiny.edited(
        "book/claims.toml", "[1.9, 2.1]", '[2.9, 3.1]\ncontradicted = "Arithmetic."'
    ):
        shown = tiny.build()
        assert shown.status == 0, shown.said
        assert "contradicted: Arithmetic." in tiny.html("book/back/boards")


def test_a_warning_is_told_again_though_a_fault_was_told_beside_it(tiny: Any) -> None:
    with tiny.edited(TWO, "second page", "second {doc}`nowhere`"):
        with tiny.edited(ONE, 'measure("c1"', 'measure("c2"'):
            assert "has no row in claims.toml" in tiny.build().said
        again = tiny.build()
        assert again.status != 0
        assert "nowhere" in again.said


def test_a_build_stopped_before_its_pages_were_written_is_made_good(tiny: Any) -> None:
    mended = tiny.build()
    assert mended.status == 0, mended.said
    left = tiny.root / "_build/.doctrees/unwritten"
    assert not left.exists()
    left.touch()
    again = tiny.build()
    assert again.written == ["back/boards", "notation", "ot/one", "ot/two"]
    assert not left.exists()
    assert tiny.build().written == []


def test_a_piece_of_an_executed_page_is_not_taken_for_it(tiny: Any) -> None:
    whole = sorted((tiny.root / "_build/.jupyter_cache").glob("executed/*/base.ipynb"))
    for file in whole:
        file.write_bytes(file.read_bytes()[:200])
    again = tiny.build()
    assert again.status == 0, again.said
    assert again.ran == ["ot/one", "ot/two"]


def test_a_new_title_of_a_statement_shows_on_the_board_of_checks(tiny: Any) -> None:
    with tiny.edited(ONE, "} Doubling", "} Twofold"):
        assert tiny.build().status == 0
        assert "Twofold" in tiny.html("book/back/boards")
