"""The couplings in the page, and the package's (eq:ot-cost, eq:ot-primal)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from pushforward.ot import cost, plan, product, wasserstein_1d


def doubled(x: Tensor) -> Tensor:
    """Return what arrives in the page: x through 32 bits, in double precision."""
    return x.float().double()


@pytest.fixture
def data() -> dict[str, Any]:
    rng = Generator().manual_seed(0)
    draw = lambda: torch.rand(36, generator=rng, dtype=torch.float64)
    x = torch.linspace(-3.875, 4.875, 36, dtype=torch.float64)
    gaps = draw() * (draw() > 0.4)  # a law with empty cells
    pairs = [{"a": draw() + 0.1, "b": draw()}, {"a": draw() + 0.1, "b": gaps}]
    return {"x": x, "pairs": [*pairs, {"a": draw() + 0.1, "b": draw() + 0.1}]}


def laws(data: dict[str, Any], pair: int) -> tuple[Tensor, Tensor]:
    """Return the two laws of a pair as the page has them."""
    a, b = (doubled(data["pairs"][pair][k]) for k in "ab")
    return a / a.sum(), b / b.sum()


@pytest.mark.parametrize("pair", [0, 1, 2])
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("s", [0.0, 0.37, 1.0])
def test_the_costs_are_those_of_the_package(
    pair: int, p: int, s: float, data: dict[str, Any], figure: Callable[[str], Any]
) -> None:
    found = figure("coupling")({"pair": pair, "p": p, "s": s}, data)
    a, b = laws(data, pair)
    C = cost(doubled(data["x"]), doubled(data["x"]), p)
    best = plan(C, a, b)
    assert found["least"] == pytest.approx(best.value.item(), rel=1e-9)
    independent = (C * product(a, b)).sum().item()
    assert found["independent"] == pytest.approx(independent, rel=1e-12)
    mixed = (1 - s) * independent + s * best.value.item()
    assert found["cost"] == pytest.approx(mixed, rel=1e-9)


def test_the_least_cost_is_the_wasserstein_distance_of_atoms(
    figure: Callable[[str], Any],
) -> None:
    """Equal weights on disjoint places: the closed form on the line."""
    x = torch.linspace(-3, 4, 36, dtype=torch.float64)
    a, b = torch.zeros(2, 36)
    a[[1, 5, 8, 9]], b[[3, 17, 20, 35]] = 1, 1
    data = {"x": x, "pairs": [{"a": a, "b": b}]}
    state = {"pair": 0, "grain": x[8].item()}
    for p in (1, 2):
        found = figure("coupling")({**state, "p": p}, data)
        exact = wasserstein_1d(doubled(x)[a > 0], doubled(x)[b > 0], p) ** p
        assert found["least"] == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("s", [0.0, 0.37, 1.0])
def test_the_marginals_never_change(
    s: float, data: dict[str, Any], figure: Callable[[str], Any]
) -> None:
    found = figure("coupling")({"pair": 1, "s": s, "grain": 0.875}, data)
    P = torch.tensor(found["plan"], dtype=torch.float64).view(36, 36)
    a, b = laws(data, 1)
    torch.testing.assert_close(P.sum(1), a, atol=1e-14, rtol=0)
    torch.testing.assert_close(P.sum(0), b, atol=1e-14, rtol=0)
    row = int((doubled(data["x"]) - 0.875).abs().argmin())
    goes = torch.tensor(found["goes"], dtype=torch.float64)
    torch.testing.assert_close(goes, P[row] / a[row], atol=1e-14, rtol=0)
    assert (P >= 0).all()
