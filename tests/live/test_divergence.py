"""Both divergences in the page, and the package's (eq:free-energy)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pushforward.distributions import line_mixture
from pushforward.objectives import (
    GaussianPush,
    fit_gaussian,
    kl_divergence,
    line_rule,
    normal_rule,
    reverse_kl,
    stationary,
)

STATES = [(0.0, 0.0, 1.0), (1.0, 0.5, 2.0), (3.0, 0.5, 1.0), (4.0, -5.0, 5.0),
          (4.0, -5.0, 0.3)]  # fmt: skip


@pytest.fixture(autouse=True)
def double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("a", "m", "s"), STATES)
def test_the_divergences_are_those_of_the_package(
    a: float, m: float, s: float, figure: Callable[[str], Any]
) -> None:
    found = figure("divergence")({"a": a, "m": m, "s": s}, {})
    target = line_mixture((-a, a))
    model = GaussianPush(torch.tensor([m]), torch.tensor([s]))
    forward = kl_divergence(target, model, line_rule(target)).item()
    noise = normal_rule(1601, 9.0)  # wide models have sharp integrands
    reverse = reverse_kl(model, target, noise).item()
    assert found["forward"] == pytest.approx(forward, rel=1e-9, abs=1e-12)
    assert found["reverse"] == pytest.approx(reverse, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("start", [(0.5, 1.0), (2.0, 1.0), (-5.0, 0.3), (0.1, 4.0)])
def test_the_reverse_descent_ends_in_a_minimum(
    start: tuple[float, float], figure: Callable[[str], Any]
) -> None:
    m, s = start
    state = {"way": "reverse", "a": 3, "m": m, "s": s}
    path = figure("divergence").states(state, {}, "descend")
    assert path[0] == pytest.approx({"m": m, "s": s})
    end = stationary(line_mixture((-3.0, 3.0)), path[-1]["m"], path[-1]["s"])
    assert (path[-1]["m"], path[-1]["s"]) == pytest.approx((end.m, end.s), abs=1e-4)
    assert end.curvature > 0


def test_where_a_descent_ends_depends_on_its_start(
    figure: Callable[[str], Any],
) -> None:
    """The three dark places that the page names."""
    starts = [(-3, 1), (3, 1), (0, 3)]
    ends = [
        figure("divergence").states({"a": 3, "m": m, "s": s}, {}, "descend")[-1]["m"]
        for m, s in starts
    ]
    assert ends == pytest.approx([-2.984, 2.984, 0.0], abs=1e-3)


@pytest.mark.parametrize("start", [(0.5, 1.0), (-5.0, 0.3), (3.0, 4.0)])
def test_the_forward_descent_ends_at_the_moments(
    start: tuple[float, float], figure: Callable[[str], Any]
) -> None:
    m, s = start
    state = {"way": "forward", "a": 3, "m": m, "s": s}
    end = figure("divergence").states(state, {}, "descend")[-1]
    fit = fit_gaussian(line_rule(line_mixture((-3.0, 3.0))))
    assert end["m"] == pytest.approx(fit.means.item(), abs=1e-4)
    assert end["s"] ** 2 == pytest.approx(fit.covs.item(), rel=1e-5)
