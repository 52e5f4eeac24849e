"""What the figures of networks share: linear layers, and walks that are kept."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator
from torch.nn import functional as F


@pytest.fixture
def evaluate(figure: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return what evaluates JavaScript beside the shared module."""
    return figure("diffusion").stage.engine.eval  # type: ignore[no-any-return]


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 4), (1, 5), (4, 1)])
def test_linear(inputs: int, outputs: int, evaluate: Callable[[str], Any]) -> None:
    rng = Generator().manual_seed(0)
    x, W = (
        torch.randn(6, inputs, generator=rng),
        torch.randn(outputs, inputs, generator=rng),
    )
    b = torch.randn(outputs, generator=rng)
    flat = ", ".join(f"new Float64Array({a.flatten().tolist()})" for a in (x, W, b))
    found = evaluate(f"Array.from(live.linear({flat}))")
    torch.testing.assert_close(torch.tensor(list(found)).view(6, -1), F.linear(x, W, b))


def test_remembered_until_something_it_depends_on_changes(
    evaluate: Callable[[str], Any],
) -> None:
    made = evaluate("""(() => {
      let count = 0;
      const f = live.remembered(["a"], (state, data) => {
        count += 1;
        return state.a + data.x;
      });
      const data = {x: 1}, other = {x: 5}, seen = [];
      for (const [a, b, given] of [[1, 0, data], [1, 9, data], [2, 9, data],
                                   [2, 9, other], [1, 0, data]]) {
        seen.push(f({a, b}, given), count);
      }
      return seen.join(" ");
    })()""")
    assert made == "2 1 2 1 3 2 7 3 2 4"
