"""Sliders reach their ends by keyboard, Play goes to them; numbers as they are read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "book/_static/live"

# What a press of each key leaves on a slider that moves by whole steps, as a browser's.
WALK = """((c, keys) => {
  const [first, last, step] = live.places(c);
  const input = { value: first, setAttribute() {}, nextElementSibling: {} };
  const pressed = (key) => {
    input.value = Math.min(last, Math.max(first, Number(input.value) + key * step));
    const value = live.taken(c, input);
    live.put(c, input, value);
    return value;
  };
  return keys.map(pressed);
})"""


@pytest.fixture
def evaluate() -> Callable[[str], Any]:
    """Return what evaluates JavaScript with all figures' controls in `controls`."""
    from press.reader.live import Stage

    stage = Stage(FOLDER)
    stage.engine.eval("""
      const controls = [], { define } = live;
      live.define = (name, figure) => {
        controls.push(...figure.controls);
        define(name, figure);
      };
    """)
    for script in FOLDER.glob("*.js"):
        stage.load(script.stem)
    return lambda code: json.loads(stage.engine.eval(f"JSON.stringify({code})"))


@pytest.fixture
def sliders(evaluate: Callable[[str], Any]) -> list[dict[str, Any]]:
    found = [c for c in evaluate("controls") if c["kind"] == "slider"]
    assert len(found) > 10
    assert any(c.get("whole") for c in found)
    return found


def test_keys_bring_a_slider_to_its_ends(
    sliders: list[dict[str, Any]], evaluate: Callable[[str], Any]
) -> None:
    """A value that is rounded, or kept in other units, holds no key back."""
    for c in sliders:
        first, last, step = evaluate(f"live.places({json.dumps(c)})")
        count = round((last - first) / step)
        assert first + count * step == pytest.approx(last, abs=1e-9), c
        keys = [1] * count + [-1] * count
        seen = evaluate(f"{WALK}({json.dumps(c)}, {keys})")
        assert seen[count - 1] == pytest.approx(c["max"], rel=1e-12), c
        assert seen[-1] == pytest.approx(c["min"], rel=1e-12, abs=1e-12), c
        assert seen[:count] == sorted(seen[:count])
        assert seen[count:] == sorted(seen[count:], reverse=True)


def test_play_goes_to_the_end_and_from_the_end_begins_again(
    sliders: list[dict[str, Any]], evaluate: Callable[[str], Any]
) -> None:
    for c in sliders:
        key, ends = c["key"], [c["min"], c["max"]]
        swept = f"live.sweep({json.dumps(c)}, "
        for value in (*ends, c["value"]):
            states = [s[key] for s in evaluate(f"{swept}{value})")]
            begins = c["min"] if value == c["max"] else value
            assert [states[0], states[-1]] == pytest.approx([begins, c["max"]])
            assert states == sorted(states)
        at_once = [evaluate(f"{swept}{v}, true)")[0][key] for v in ends]
        assert at_once == pytest.approx(ends[::-1])


@pytest.mark.parametrize(
    ("value", "digits", "written"),
    [
        (0.9996, 3, "1.00"),
        (9.999, 3, "10.0"),
        (-0.0999999, 3, "−0.100"),
        (0.00099999999, 3, "0.00100"),
        (0.001, 3, "0.00100"),
        (0.00098, 3, "9.8·10⁻⁴"),
        (999999.9, 3, "10⁶"),
        (1234.5, 3, "1235"),
        (0, 3, "0"),
        (45, 1, "45"),
    ],
)
def test_a_number_is_written_with_its_digits(
    value: float, digits: int, written: str, evaluate: Callable[[str], Any]
) -> None:
    assert evaluate(f"live.number({value}, {digits})") == written
