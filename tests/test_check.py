"""What a check lets through, what it stops, and what it puts on record."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pushforward import check as module
from pushforward.check import CheckError, check, emit, measure


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Collect what the page would show: lines and records."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def emit(text: str, record: dict[str, Any], *, markup: str = "") -> None:
        seen.append((text, record))

    monkeypatch.setattr(module, "emit", emit)
    return seen


PASS: dict[str, Callable[[], None]] = {
    "equal": lambda: check("a", 1.0, 1.0),
    "equal, written": lambda: check("a", 1.0, "==", 1.0),
    "atol": lambda: check("a", 1.0, 1.125, atol=0.125),
    "rtol": lambda: check("a", 9.0, -10.0 + 19.0, rtol=0.0),
    "rtol of the right": lambda: check("a", 9.0, 10.0, rtol=0.1),
    "rtol of a negative": lambda: check("a", -9.0, -10.0, rtol=0.1),
    "four errors": lambda: check("a", 1.0, 3.0, se=0.5),
    "sum of all": lambda: check("a", 0.0, 8.0, atol=2.0, rtol=0.25, se=1.0),
    "<=": lambda: check("a", 1.0, "<=", 1.0),
    "<": lambda: check("a", 1.0, "<", 1.5),
    ">=": lambda: check("a", 2.0, ">=", 1.0),
    ">": lambda: check("a", 2.0, ">", 1.0),
    "<= with slack": lambda: check("a", 1.5, "<=", 1.0, atol=0.5),
    ">= with slack": lambda: check("a", 0.5, ">=", 1.0, atol=0.5),
    "arrays": lambda: check("a", [1.0, 2.0], [1.0, 2.0]),
    "broadcast": lambda: check("a", torch.ones(3, 2), torch.ones(2)),
    "se an array": lambda: check("a", [1.0, 2.0], [1.4, 2.0], se=[0.1, 0.0]),
    "integers": lambda: check("a", 3, torch.tensor(3)),
    "graph": lambda: check("a", torch.ones(2, requires_grad=True), 1.0),
    "single precision": lambda: check("a", torch.tensor(0.5).float(), 0.5),
}
FAIL: dict[str, Callable[[], None]] = {
    "unequal": lambda: check("a", 1.0, 1.0 + 1e-15),
    "atol": lambda: check("a", 1.0, 1.126, atol=0.125),
    "rtol of the right, not the left": lambda: check("a", 10.0, 9.0, rtol=0.1),
    "five errors": lambda: check("a", 1.0, 3.5, se=0.5),
    "<=": lambda: check("a", 1.0 + 1e-12, "<=", 1.0),
    "< at equality": lambda: check("a", 1.0, "<", 1.0),
    "> at equality": lambda: check("a", 1.0, ">", 1.0),
    "< in one entry": lambda: check("a", [0.0, 1.0], "<", 1.0),
    ">=": lambda: check("a", 1.0, ">=", 2.0),
    "one entry": lambda: check("a", [1.0, 2.0, 3.0], [1.0, 2.5, 3.0], atol=0.4),
    "se of another entry": lambda: check("a", [1.0, 2.0], [1.4, 2.1], se=[0.1, 0.0]),
    "opposite errors": lambda: check("a", [1.0, -1.0], [0.0, 0.0], atol=0.5),
    "left nan": lambda: check("a", math.nan, 1.0, atol=9.0),
    "both nan": lambda: check("a", math.nan, math.nan, atol=9.0),
    "nan below": lambda: check("a", math.nan, "<=", 1.0),
    "one nan": lambda: check("a", [1.0, math.nan], [1.0, 1.0], atol=9.0),
    "infinite": lambda: check("a", math.inf, math.inf),
    "minus infinity below": lambda: check("a", -math.inf, "<=", 0.0),
    "infinite error": lambda: check("a", 1.0, 5.0, se=math.inf),
    "unknown error": lambda: check("a", 1.0, 1.0, se=math.nan),
    "infinite atol": lambda: check("a", 1.0, 5.0, atol=math.inf),
}


@pytest.mark.parametrize("case", PASS)
def test_what_agrees_passes(case: str, shown: list[tuple[str, Any]]) -> None:
    PASS[case]()
    ((line, record),) = shown
    assert record["passed"] is True
    assert line.startswith("✓ a")


@pytest.mark.parametrize("case", FAIL)
def test_what_disagrees_fails_and_says_so(
    case: str, shown: list[tuple[str, Any]]
) -> None:
    """The record is shown before the error is raised."""
    with pytest.raises(CheckError, match=r"^a: .* fails"):
        FAIL[case]()
    ((line, record),) = shown
    assert record["passed"] is False
    assert line.startswith("✗ a")


BAD: dict[str, tuple[Callable[[], None], str]] = {
    "relation": (lambda: check("a", 1.0, "~", 1.0), "relation must be one of"),
    "three numbers": (lambda: check("a", 1.0, 1.0, 1.0), "relation must be one of"),
    "shapes": (
        lambda: check("a", torch.ones(3), torch.ones(2)),
        r"do not broadcast: \(3,\), \(2,\)",
    ),
    "se": (lambda: check("a", 1.0, torch.ones(2), se=torch.ones(3)), "broadcast"),
    "nothing": (lambda: check("a", [], []), "left must hold something"),
}


@pytest.mark.parametrize("case", BAD)
def test_misuse_is_named(case: str, shown: list[tuple[str, Any]]) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
    assert not shown


def test_the_record_tells_the_worst_entry(shown: list[tuple[str, Any]]) -> None:
    check("thm:x", [1.0, 2.0], [1.1, 2.3], atol=0.5, n=7, what="two sides")
    record = shown[0][1]
    assert record == {
        "kind": "check",
        "label": "thm:x",
        "relation": "==",
        "what": "two sides",
        "left": 2.0,
        "right": 2.3,
        "error": pytest.approx(0.3),
        "tolerance": 0.5,
        "se": False,
        "n": 7,
        "passed": True,
    }


def test_the_worst_entry_is_the_one_that_is_no_number(
    shown: list[tuple[str, Any]],
) -> None:
    with pytest.raises(CheckError, match="-inf <= 0 fails"):
        check("a", [-1.0, -math.inf, -2.0], "<=", 0.0)


def test_the_line_of_the_page(shown: list[tuple[str, Any]]) -> None:
    check("thm:x", 1.0, 1.25, se=0.125, n=1000, what="mean")
    check("thm:y", 1.0, "<=", 2.0)
    first, second = (line for line, _ in shown)
    assert first == (
        "✓ thm:x (mean): 1 == 1.25, error 2.5e-01, "
        "tolerance 5.0e-01 = 4 s.e., n = 1,000"
    )
    assert second == "✓ thm:y: 1 <= 2, excess -1.0e+00, tolerance 0.0e+00"


def test_measure_records_its_claim(shown: list[tuple[str, Any]]) -> None:
    measure("id", torch.tensor(1.5), sd=torch.tensor(0.25), n=10)
    line, record = shown[0]
    assert line == "◆ id: measured 1.5 ± 0.25 (n = 10)"
    assert record == {
        "kind": "measure", "claim": "id", "value": 1.5, "sd": 0.25, "n": 10,
    }  # fmt: skip
    assert type(record["sd"]) is float  # so that it can be written as JSON


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_measure_wants_a_number(value: float) -> None:
    with pytest.raises(ValueError, match="value of id must be finite"):
        measure("id", value)


def test_in_a_notebook_the_record_travels_as_metadata(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the book's extension collects, and what the reader sees."""
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr("IPython.core.getipython.get_ipython", object)
    monkeypatch.setattr(
        "IPython.display.display", lambda b, raw, metadata: seen.append((b, metadata))
    )
    record = {"kind": "check", "passed": False}
    emit("✗ a < b", record)
    ((bundle, metadata),) = seen
    assert metadata == {"pushforward": record}
    assert bundle["text/plain"] == "✗ a < b"
    assert bundle["text/html"] == '<p class="pf-check pf-failed">✗ a &lt; b</p>'


def test_outside_a_notebook_the_line_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    emit("✓ a", {"kind": "check", "passed": True})
    assert capsys.readouterr().out == "✓ a\n"
