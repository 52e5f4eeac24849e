"""What a page gives to a live figure arrives whole, and says what it shows."""

import base64
import json
import re
from typing import Any

import numpy as np
import pytest
import torch

from pushforward import live as module
from pushforward.live import live, packed


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any], str]]:
    """Collect what the page would show."""
    seen: list[tuple[str, dict[str, Any], str]] = []

    def emit(text: str, record: dict[str, Any], *, markup: str = "") -> None:
        seen.append((text, record, markup))

    monkeypatch.setattr(module, "emit", emit)
    return seen


def carried(markup: str) -> dict[str, Any]:
    """Return the record that an output carries."""
    found = re.search(r"<script[^>]* data-live>(.*?)</script>", markup, re.S)
    assert found
    record: dict[str, Any] = json.loads(found[1])
    return record


def test_a_tensor_travels_as_its_shape_and_its_32_bit_floats() -> None:
    x = torch.tensor([[1.5, -2.0, 0.1]], dtype=torch.float64, requires_grad=True)
    sent = packed(x)
    assert sent["shape"] == [1, 3]
    back = np.frombuffer(base64.b64decode(sent["f32"]), dtype="<f4")
    assert back.tolist() == x.detach().float().flatten().tolist()


def test_a_tensor_that_is_a_view_travels_in_its_own_order() -> None:
    x = torch.arange(6.0).view(2, 3).T
    back = np.frombuffer(base64.b64decode(packed(x)["f32"]), dtype="<f4")
    assert back.tolist() == [0, 3, 1, 4, 2, 5]


def test_everything_else_travels_as_json() -> None:
    given = {"a": [1, 2.5, "x", True], "b": {"c": (torch.ones(1), 0)}}
    sent = packed(given)
    assert sent["a"] == given["a"]
    assert sent["b"]["c"] == [{"shape": [1], "f32": "AACAPw=="}, 0]


@pytest.mark.parametrize(
    "bad", [torch.tensor([torch.nan]), torch.inf, [1.0, -torch.inf]]
)
def test_what_is_not_finite_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="finite"):
        packed({"x": bad})


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (torch.tensor([1.0, 1e300], dtype=torch.float64), r"fit .* got 1e\+300"),
        (torch.tensor([2**24 + 1]), "fit into 32-bit floats, got 1.67772e"),
        (torch.tensor([-(2**63)]), "fit into 32-bit floats"),
        (torch.tensor([1j]), "real"),
        (np.ones(2), "tensors, numbers, .* got ndarray"),
        (np.float32(1), "got float32"),
        ({"a": [object()]}, "got object"),
    ],
)
def test_what_would_arrive_altered_is_refused(bad: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        packed(bad)


def test_the_largest_that_fit_travel() -> None:
    for x in (torch.tensor([2**24, -(2**24)]), torch.tensor([True, False])):
        back = np.frombuffer(base64.b64decode(packed(x)["f32"]), dtype="<f4")
        assert back.tolist() == x.tolist()
    large = torch.full((1,), torch.finfo(torch.float32).max).double()
    assert packed(large)["shape"] == [1]
    assert packed(torch.ones(0, 3)) == {"shape": [0, 3], "f32": ""}
    assert packed(torch.tensor(2.0))["shape"] == []


@pytest.mark.parametrize("name", ["", "../live", "Coupling", "a b"])
def test_a_name_that_is_no_figure_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name must be"):
        live(name, {}, alt="A picture.")


def test_a_figure_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="alt must say"):
        live("coupling", {}, alt="  ")


def test_the_output_carries_the_figure_and_the_record_stays_small(
    shown: list[tuple[str, dict[str, Any], str]],
) -> None:
    alt = 'Mass at "0" & where x < </script> 1.'
    live("coupling", {"x": torch.zeros(5000)}, alt=alt, caption="C")
    [(text, record, markup)] = shown
    assert alt in text
    assert record == {"kind": "live", "name": "coupling", "alt": alt, "caption": "C"}
    assert carried(markup) == {
        "name": "coupling",
        "alt": alt,
        "caption": "C",
        "data": {"x": packed(torch.zeros(5000))},
    }
    assert "x &lt; &lt;/script&gt; 1" in markup  # the words, for a plain notebook
