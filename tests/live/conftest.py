"""Figures in V8, as the build runs them."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pushforward.live import packed

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "book/_ext"))


class Numbers(dict[str, Any]):
    """The numbers of a figure, by their names."""

    def tensor(self, name: str) -> Tensor:
        """Return a list of numbers, all their digits."""
        return torch.tensor(self[name], dtype=torch.float64)


class Figure:
    """A live figure: called with a state and data, it returns its numbers.

    What a state leaves out is as at the start; tensors travel as 32-bit floats.
    """

    def __init__(self, stage: Any, name: str) -> None:
        self.stage, self.name = stage, name

    def __call__(self, state: Mapping[str, Any], data: Mapping[str, Any]) -> Numbers:
        return Numbers(self.stage.call("compute", self.name, dict(state), packed(data)))

    def says(self, state: Mapping[str, Any], data: Mapping[str, Any]) -> str:
        """Return the sentence at a state."""
        return str(self.stage.call("says", self.name, dict(state), packed(data)))

    def states(
        self, state: Mapping[str, Any], data: Mapping[str, Any], key: str
    ) -> Any:
        """Return the states through which the button ``key`` goes."""
        return self.stage.call("states", self.name, dict(state), packed(data), key)

    def first(self, data: Mapping[str, Any]) -> Any:
        """Return the first state: pictures, says, panels and controls."""
        return self.stage.call("first", self.name, packed(data))


@pytest.fixture(scope="session")
def figure() -> Callable[[str], Figure]:
    """Return a live figure by its name."""
    from press.reader.live import Stage

    stage = Stage(ROOT / "book/_static/live")
    return lambda name: Figure(stage, name)
