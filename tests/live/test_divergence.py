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


@pytest.mark.parametrize("way", ["reverse", "forward"])
def test_the_landscape_is_that_of_the_divergences(
    way: str, figure: Callable[[str], Any]
) -> None:
    """At every 91st cell; the reverse one is a coarse sum."""
    divergence, state = figure("divergence"), {"way": way, "a": 2.0}
    land = divergence(state, {})["landscape"]
    at = [(m, s) for s in land["s"] for m in land["m"]]
    assert len(at) == len(land["values"]) == 24 * 33
    want = [divergence({**state, "m": m, "s": s}, {})[way] for m, s in at[::91]]
    assert land["values"][::91] == pytest.approx(want, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(("a", "m", "s"), STATES[:3])
@pytest.mark.parametrize("way", ["reverse", "forward"])
def test_the_area_is_that_under_the_integrand(
    way: str, a: float, m: float, s: float, figure: Callable[[str], Any]
) -> None:
    found = figure("divergence")({"way": way, "a": a, "m": m, "s": s}, {})
    x = found.tensor("xs")[:, None]
    p, q = (law.log_prob(x) for law in (line_mixture((-a, a)), line_mixture((m,), s)))
    want = q.exp() * (q - p) if way == "reverse" else p.exp() * (p - q)
    torch.testing.assert_close(found.tensor("terms"), want)
    area = torch.trapezoid(want, x[:, 0]).item()
    assert found[way] == pytest.approx(area, abs=1e-3)


def test_a_saddle_is_no_minimum(figure: Callable[[str], Any]) -> None:
    """Between the model that covers both modes and the one that sits on one."""
    says, state = figure("divergence").says, {"way": "reverse", "a": 3}
    law = line_mixture((-3.0, 3.0))
    saddle, broad = stationary(law, 1.5, 1.5), stationary(law, 0.0, 3.0)
    assert saddle.curvature < 0 < broad.curvature
    assert "is no minimum" in says({**state, "m": saddle.m, "s": saddle.s}, {})
    assert "N(0, 2.74²) is a minimum" in says({**state, "m": 2e-6, "s": broad.s}, {})
    assert "can still fall" in says({**state, "m": 1, "s": 1}, {})
    assert "is a minimum" in says({"way": "forward", "a": 3, "m": 0, "s": 10**0.5}, {})


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
