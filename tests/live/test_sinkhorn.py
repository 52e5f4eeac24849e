"""Sinkhorn's algorithm in the page, and the package's (eq:soft-c-transform)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from pushforward.ot import cost, entropic_cost, plan, sinkhorn, sinkhorn_log

TOL = 1e-6


@pytest.fixture
def data() -> dict[str, Any]:
    rng = Generator().manual_seed(0)
    x = (torch.arange(40, dtype=torch.float64) + 0.5) / 40
    a, b = 0.2 + torch.rand(2, 40, generator=rng, dtype=torch.float64)
    return {"x": x, "a": a / a.sum(), "b": b / b.sum(), "tol": TOL}


def problem(data: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return costs and laws as the page has them."""
    x, a, b = (data[k].float().double() for k in "xab")
    return cost(x, x), a / a.sum(), b / b.sum()


@pytest.mark.parametrize("eps", [0.003, 0.03, 0.3])
def test_the_sweeps_are_those_of_the_plain_iteration(
    eps: float, data: dict[str, Any], figure: Callable[[str], Any]
) -> None:
    C, a, b = problem(data)
    found = figure("sinkhorn")({"eps": eps}, data)
    exact = sinkhorn_log(C, a, b, eps, tol=TOL)
    assert len(found["errors"]) == exact.steps
    assert found["error"] == pytest.approx(exact.error, rel=1e-6)
    P = torch.tensor(found["plan"], dtype=torch.float64).view(40, 40)
    torch.testing.assert_close(P, exact.P, atol=1e-15, rtol=1e-9)


def test_a_few_sweeps_stop_where_the_package_stops(
    data: dict[str, Any], figure: Callable[[str], Any]
) -> None:
    C, a, b = problem(data)
    found = figure("sinkhorn")({"eps": 0.01, "sweeps": 4}, data)
    exact = sinkhorn_log(C, a, b, 0.01, tol=TOL, steps=4)
    P = torch.tensor(found["plan"], dtype=torch.float64).view(40, 40)
    torch.testing.assert_close(P, exact.P, atol=1e-15, rtol=1e-9)
    assert len(found["errors"]) == 4
    assert found["error"] == pytest.approx(exact.error, rel=1e-9)
    torch.testing.assert_close(P.sum(0), b, atol=1e-14, rtol=0)  # the columns are right


def test_the_costs_are_those_of_the_other_algorithm(
    data: dict[str, Any], figure: Callable[[str], Any]
) -> None:
    C, a, b = problem(data)
    found = figure("sinkhorn")({"eps": 0.02}, {**data, "tol": 1e-11})
    best = sinkhorn(C, a, b, 0.02, tol=1e-11)
    value = entropic_cost(C, a, b, 0.02, tol=1e-11).item()
    assert found["moved"] == pytest.approx((C * best.P).sum().item(), rel=1e-6)
    assert found["value"] == pytest.approx(value, rel=1e-6)
    entropy = torch.special.xlogy(best.P, best.P / (a[:, None] * b)).sum().item()
    assert found["entropy"] == pytest.approx(entropy, rel=1e-6)
    assert found["least"] == pytest.approx(plan(C, a, b).value.item(), rel=1e-9)


def test_a_plan_that_is_no_coupling_is_not_compared(
    data: dict[str, Any], figure: Callable[[str], Any]
) -> None:
    """After one sweep its price may lie below the least."""
    early = figure("sinkhorn").says({"eps": 0.002, "sweeps": 1}, data)
    assert "is no coupling yet" in early
    assert "entropic cost" not in early
    late = figure("sinkhorn").says({"eps": 0.1}, data)
    assert "the entropic cost is" in late
