"""book/ot/duality.md, equation by equation."""

import pytest
import torch
from scipy.optimize import linprog
from torch import Generator, Tensor

from pushforward.ot import (
    c_transform,
    certificate,
    cost,
    kantorovich_rubinstein,
    plan,
    potentials,
    product,
)


def problem(rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
    a, b = torch.rand(12, generator=rng), torch.rand(8, generator=rng)
    x = torch.randn(12, 2, generator=rng)
    y = torch.randn(8, 2, generator=rng)
    return cost(x, y), a / a.sum(), b / b.sum()


def dual_by_highs(C: Tensor, a: Tensor, b: Tensor) -> float:
    """Solve (eq:ot-dual) as a plain linear program."""
    n, m = C.shape
    pairs = torch.cat(
        [torch.eye(n).repeat_interleave(m, dim=0), torch.eye(m).repeat(n, 1)], dim=1
    )
    answer = linprog(
        -torch.cat([a, b]).numpy(),
        A_ub=pairs.numpy(),
        b_ub=C.flatten().numpy(),
        bounds=(None, None),
        method="highs",
    )
    return -float(answer.fun)


def test_both_potentials_reach_the_dual_optimum(rng: Generator) -> None:
    """(eq:ot-dual), from POT and from (eq:ot-shortest-path), against HiGHS."""
    C, a, b = problem(rng)
    best, dual = plan(C, a, b), dual_by_highs(C, a, b)
    for f, g in ((best.f, best.g), potentials(C, best.P)):
        judged = certificate(C, best.P, f, g, a, b)
        assert abs(judged.dual - dual) < 1e-11
        assert abs(judged.gap) < 1e-11
        assert judged.infeasible < 1e-14
        assert judged.marginals < 1e-14


def test_slack_is_the_gap(rng: Generator) -> None:
    """⟨P, C − f − g⟩ = primal − dual for any coupling and any potentials."""
    C, a, b = problem(rng)
    f, g = torch.randn(12, generator=rng), torch.randn(8, generator=rng)
    judged = certificate(C, product(a, b), f, g, a, b)
    assert abs(judged.slack - judged.gap) < 1e-13
    assert judged.infeasible > 0.1


def test_certificate_refuses_a_negative_plan(rng: Generator) -> None:
    C, a, b = problem(rng)
    P = product(a, b)
    P[0, 0] -= 1
    P[1, 1] -= 1
    P[0, 1] += 1
    P[1, 0] += 1
    best = plan(C, a, b)
    judged = certificate(C, P, best.f, best.g, a, b)
    assert judged.marginals == torch.inf
    assert certificate(C, best.P * 0.9, best.f, best.g, a, b).marginals > 0.19


def test_shortest_paths_refuse_a_plan_that_is_not_optimal(rng: Generator) -> None:
    """(eq:ot-shortest-path): a cycle of negative length."""
    C, a, b = problem(rng)
    with pytest.raises(ValueError, match="cycle"):
        potentials(C, product(a, b))


def test_shortest_paths_pass_rows_without_weight(rng: Generator) -> None:
    C, a, b = problem(rng)
    a[3] = 0.0
    a = a / a.sum()
    P = plan(C, a, b).P
    judged = certificate(C, P, *potentials(C, P), a, b)
    assert judged.infeasible < 1e-14
    assert abs(judged.gap) < 1e-12


def test_c_transform_by_hand_and_thrice(rng: Generator) -> None:
    """(eq:c-transform): f^{cc} ≥ f and f^{ccc} = f^c."""
    C = torch.tensor([[1.0, 4.0], [2.0, 0.0]])
    by_hand = torch.tensor([0.0, -1.0])  # min(1 − 0, 2 − 1), min(4 − 0, 0 − 1)
    f = torch.tensor([0.0, 1.0])
    by_hand[0] = 1.0
    torch.testing.assert_close(c_transform(f, C), by_hand, rtol=0, atol=0)
    C, _, _ = problem(rng)
    f = torch.randn(12, generator=rng)
    once = c_transform(f, C)
    twice = c_transform(once, C.T)
    assert (twice >= f - 1e-15).all()
    torch.testing.assert_close(c_transform(twice, C), once, rtol=0, atol=1e-15)


def test_critic_reaches_w1_and_is_lipschitz(rng: Generator) -> None:
    """(eq:kr) and (eq:critic), against the dual program."""
    x, y = torch.randn(12, 2, generator=rng), torch.randn(8, 2, generator=rng)
    _, a, b = problem(rng)
    phi = kantorovich_rubinstein(x, y, a, b)
    dual = dual_by_highs(cost(x, y, 1), a, b)
    assert abs(float(phi.value) - dual) < 1e-11
    assert abs(phi.gap) < 1e-11
    t = 3 * torch.randn(400, 2, generator=rng)
    rise = (phi(t)[:, None] - phi(t)).abs() - cost(t, t, 1)
    assert rise.max() < 1e-14
    assert abs(float(a @ phi(x) - b @ phi(y) - phi.value)) < 1e-15


def test_critic_on_the_line_is_that_of_the_distribution_functions() -> None:
    """φ' = sign(G − F): two unit masses at 0 and 1 against two at 2 and 5."""
    x, y = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 5.0])
    phi = kantorovich_rubinstein(x, y)
    t = torch.tensor([0.0, 1.0, 2.0, 5.0])
    torch.testing.assert_close(phi(t).diff(), -t.diff(), rtol=0, atol=1e-14)
    assert abs(float(phi.value) - 3.0) < 1e-14


def test_float32_comes_back_as_float32(rng: Generator) -> None:
    x = torch.randn(6, 2, generator=rng).float()
    phi = kantorovich_rubinstein(x, x + 1)
    assert phi.value.dtype == phi(x).dtype == torch.float32
    assert abs(float(phi.value) - 2**0.5) < 1e-6


def test_bad_shapes_are_named(rng: Generator) -> None:
    C, a, b = problem(rng)
    P = product(a, b)
    with pytest.raises(ValueError, match="f must be"):
        c_transform(b, C)
    with pytest.raises(ValueError, match="P, f, g must fit"):
        certificate(C, P, b, a, a, b)
    with pytest.raises(ValueError, match="sum to 1"):
        certificate(C, P, a, b, 2 * a, b)
    with pytest.raises(ValueError, match="one dimension"):
        kantorovich_rubinstein(torch.ones(3, 2), torch.ones(3, 3))
