"""book/ot/kantorovich.md, equation by equation."""

from itertools import pairwise

import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog
from torch import Generator, Tensor

from pushforward.ot import cost, glue, interpolate, plan, product, wasserstein


def cloud(n: int, d: int, rng: Generator) -> Tensor:
    return torch.randn(n, d, generator=rng)


def law(n: int, rng: Generator) -> Tensor:
    a = torch.rand(n, generator=rng) + 0.01
    return a / a.sum()


def by_highs(C: Tensor, a: Tensor, b: Tensor) -> float:
    """Solve (eq:ot-primal) as a plain linear program."""
    n, m = C.shape
    rows = torch.eye(n).repeat_interleave(m, dim=1)
    columns = torch.eye(m).repeat(1, n)
    answer = linprog(
        C.flatten().numpy(),
        A_eq=torch.cat([rows, columns]).numpy(),
        b_eq=torch.cat([a, b]).numpy(),
        method="highs",
    )
    return float(answer.fun)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_cost_is_the_power_of_the_distance(p: float, rng: Generator) -> None:
    """(eq:ot-cost), entry by entry."""
    x, y = cloud(5, 3, rng), cloud(7, 3, rng)
    expected = torch.stack([((xi - y) ** 2).sum(-1) ** (p / 2) for xi in x])
    torch.testing.assert_close(cost(x, y, p), expected, rtol=1e-13, atol=0)


def test_cost_on_the_line_takes_vectors(rng: Generator) -> None:
    x, y = cloud(5, 1, rng)[:, 0], cloud(7, 1, rng)[:, 0]
    expected = (x[:, None] - y).abs()
    torch.testing.assert_close(cost(x, y, 1), expected, rtol=1e-15, atol=0)


def test_cost_keeps_its_digits_far_from_the_origin(rng: Generator) -> None:
    """In float32 ‖x‖² + ‖y‖² − 2⟨x, y⟩ is wrong by more than its value here."""
    x, y = cloud(40, 3, rng).float() + 3000, cloud(40, 3, rng).float() + 3000
    torch.testing.assert_close(
        cost(x, y).double(), cost(x.double(), y.double()), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("p", [1, 2])
def test_plan_is_what_another_solver_finds(p: int, rng: Generator) -> None:
    """(eq:ot-primal), against HiGHS, with a row of no weight."""
    a, b = law(13, rng), law(9, rng)
    a[4] = 0.0
    a = a / a.sum()
    C = cost(cloud(13, 2, rng), cloud(9, 2, rng), p)
    best = plan(C, a, b)
    assert abs(float(best.value) - by_highs(C, a, b)) < 1e-10
    torch.testing.assert_close(best.P.sum(1), a, rtol=0, atol=1e-14)
    torch.testing.assert_close(best.P.sum(0), b, rtol=0, atol=1e-14)
    assert best.P.min() >= 0


def test_potentials_are_feasible_and_close_the_gap(rng: Generator) -> None:
    """(eq:ot-gap) and (eq:ot-feasible), also where a weight is zero."""
    a, b = law(30, rng), law(20, rng)
    a[7], b[3] = 0.0, 0.0
    a, b = a / a.sum(), b / b.sum()
    C = cost(cloud(30, 2, rng), cloud(20, 2, rng))
    best = plan(C, a, b)
    assert (best.f[:, None] + best.g - C).max() < 1e-14
    assert abs(float(best.value - a @ best.f - b @ best.g)) < 1e-11
    assert abs(best.gap) < 1e-11
    assert best.error < 1e-13


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_plan_does_not_know_the_unit_of_the_cost(scale: float, rng: Generator) -> None:
    C = cost(cloud(20, 2, rng), cloud(20, 2, rng))
    one, other = plan(C), plan(scale * C)
    torch.testing.assert_close(other.value / scale, one.value, rtol=1e-12, atol=0)


def test_uniform_marginals_have_a_permutation(rng: Generator) -> None:
    """Birkhoff, against the Hungarian method."""
    C = cost(cloud(60, 2, rng), cloud(60, 2, rng))
    P = plan(C).P
    i, j = linear_sum_assignment(C.numpy())
    expected = torch.zeros_like(C)
    expected[i, j] = 1 / 60
    torch.testing.assert_close(P, expected, rtol=0, atol=1e-15)


def test_value_has_the_plan_as_gradient(rng: Generator) -> None:
    C = cost(cloud(6, 2, rng), cloud(5, 2, rng)).requires_grad_()
    best = plan(C)
    (slope,) = torch.autograd.grad(best.value, C)
    step = torch.zeros_like(C)
    step[2, 3] = 1e-6
    ahead, behind = plan(C + step).value, plan(C - step).value
    torch.testing.assert_close(slope, best.P, rtol=0, atol=0)
    torch.testing.assert_close(slope[2, 3], (ahead - behind) / 2e-6, rtol=0, atol=1e-8)


def test_wasserstein_of_a_shift_is_its_length(rng: Generator) -> None:
    """(eq:wasserstein): W_p(X, X + v) = ‖v‖ for every p."""
    x, v = cloud(40, 2, rng), torch.tensor([1.2, -1.6])
    for p in (1.0, 2.0, 4.0):
        torch.testing.assert_close(
            wasserstein(x, x + v, p), torch.tensor(2.0), rtol=0, atol=1e-13
        )


def test_wasserstein_has_a_gradient_also_at_zero(rng: Generator) -> None:
    x = cloud(8, 2, rng).requires_grad_()
    (slope,) = torch.autograd.grad(wasserstein(x, x.detach()), x)
    torch.testing.assert_close(slope, torch.zeros(8, 2), rtol=0, atol=0)
    (slope,) = torch.autograd.grad(wasserstein(x, x.detach() + 1), x)
    expected = torch.full((8, 2), -(0.5**0.5) / 8)
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-13)


def test_gluing_keeps_the_outer_marginals(rng: Generator) -> None:
    """(eq:gluing), with a middle point of no weight."""
    a, b, c = law(6, rng), law(5, rng), law(7, rng)
    b[2] = 0.0
    b = b / b.sum()
    R = glue(product(a, b), product(b, c))
    torch.testing.assert_close(R, product(a, c), rtol=0, atol=1e-15)
    with pytest.raises(ValueError, match="middle marginal"):
        glue(product(a, b), product(b.flip(0), c))


def test_displacement_runs_at_constant_speed(rng: Generator) -> None:
    """(eq:displacement): W_2(μ_s, μ_t) = |s − t| W_2(μ, ν)."""
    x, y = cloud(9, 2, rng), cloud(12, 2, rng) + 2
    P, whole = plan(cost(x, y)).P, wasserstein(x, y)
    start, _ = interpolate(x, y, P, 0.0)
    torch.testing.assert_close(start, x[P.nonzero()[:, 0]], rtol=0, atol=0)
    times = [0.0, 0.25, 0.6, 1.0]
    laws = [interpolate(x, y, P, t) for t in times]
    for (s, (u, a)), (t, (v, b)) in pairwise(zip(times, laws, strict=True)):
        torch.testing.assert_close(
            wasserstein(u, v, 2, a, b), (t - s) * whole, rtol=0, atol=1e-12
        )


def test_float32_comes_back_as_float32(rng: Generator) -> None:
    C = cost(cloud(10, 2, rng).float(), cloud(10, 2, rng).float())
    a = law(10, rng).float()
    best = plan(C, a, a.flip(0))
    assert {t.dtype for t in (C, best.P, best.f, best.g, best.value)} == {torch.float32}
    exact = plan(C.double(), a.double() / a.double().sum(), a.flip(0)).value
    torch.testing.assert_close(best.value.double(), exact, rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("a", "said"),
    [
        (torch.tensor([0.5, 0.5]), "a must be 3"),
        (torch.tensor([0.7, 0.7, -0.4]), "not negative"),
        (torch.tensor([0.5, 0.5, 0.5]), "sum to 1"),
        (torch.tensor([0.5, 0.5, torch.nan]), "finite"),
        (torch.tensor([1, 0, 0]), "floating-point"),
    ],
)
def test_bad_weights_are_named(a: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan(torch.ones(3, 3), a)


def test_bad_points_and_costs_are_named(rng: Generator) -> None:
    x = cloud(3, 2, rng)
    with pytest.raises(ValueError, match="one dimension"):
        cost(x, cloud(3, 3, rng))
    with pytest.raises(ValueError, match="p must"):
        cost(x, x, 0.5)
    with pytest.raises(ValueError, match="x must be finite"):
        cost(x * torch.inf, x)
    with pytest.raises(ValueError, match="floating-point"):
        cost(torch.arange(3), torch.arange(3))
    with pytest.raises(ValueError, match="C must"):
        plan(x[0])
    with pytest.raises(ValueError, match="C must"):
        plan(torch.tensor([[torch.inf]]))
    with pytest.raises(ValueError, match="t must"):
        interpolate(x, x, torch.eye(3) / 3, 1.5)
    with pytest.raises(ValueError, match="P must"):
        interpolate(x, x, torch.eye(2) / 2, 0.5)
