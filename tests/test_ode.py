"""Solvers have the order that they claim, divergences are those of calculus."""

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Generator, Tensor
from torch.func import jacrev, vmap

from pushforward import ode
from pushforward.ode import (
    DOPRI5,
    EULER,
    HEUN,
    RK4,
    Tableau,
    adaptive,
    divergence,
    hutchinson,
    integrate,
    path,
    signs_like,
)

METHODS = {"Euler": EULER, "Heun": HEUN, "RK4": RK4, "Dormand–Prince": DOPRI5}
LOWER = DOPRI5._replace(order=4, b=DOPRI5.low)
A = torch.tensor([[-0.3, 2.0, 0.0], [-2.0, 0.1, 0.5], [0.2, 0.0, -0.4]]).double()


def falling(x: Tensor, t: Tensor) -> Tensor:
    """x′ = −2 t x², so x = 1/(1 + t²) from x(0) = 1: neither linear nor autonomous."""
    return -2 * t * x**2


def linear(x: Tensor, t: Tensor) -> Tensor:
    return x @ A.T


def van_der_pol(x: Tensor, t: Tensor) -> Tensor:
    """A driven oscillator whose jumps ask for short steps."""
    p, q = x[:, :1], x[:, 1:]
    return torch.cat([q, 3 * (1 - p**2) * q - p + t.sin()], 1)


@pytest.mark.parametrize("name", [*METHODS, "its lower order"])
def test_the_order_is_the_slope(name: str) -> None:
    """Halving the step divides the error by 2^order, here to 0.15 of the order."""
    method = METHODS.get(name, LOWER)
    x = torch.ones(1, 1)
    n = 32 if method.order == 5 else 64  # beyond, its error is that of rounding
    ends = [
        integrate(falling, x, torch.linspace(0, 1, k + 1), method) for k in (n, 2 * n)
    ]
    errors = [abs(end.item() - 1 / 2) for end in ends]
    slope = math.log2(errors[0] / errors[1])
    assert slope == pytest.approx(method.order, abs=0.15)


def trees(method: Tableau) -> dict[str, tuple[float, float, int]]:
    """Σ over a rooted tree, what it must be, and the order that asks for it."""
    a = np.zeros((len(method.a), len(method.a)))
    for i, row in enumerate(method.a):
        a[i, : len(row)] = row
    b, c = np.array(method.b), a.sum(1)
    return {
        "Σ b": (b.sum(), 1, 1),
        "Σ bc": (b @ c, 1 / 2, 2),
        "Σ bc²": (b @ c**2, 1 / 3, 3),
        "Σ bac": (b @ a @ c, 1 / 6, 3),
        "Σ bc³": (b @ c**3, 1 / 4, 4),
        "Σ bcac": (b * c @ a @ c, 1 / 8, 4),
        "Σ bac²": (b @ a @ c**2, 1 / 12, 4),
        "Σ baac": (b @ a @ a @ c, 1 / 24, 4),
        "Σ bc⁴": (b @ c**4, 1 / 5, 5),
        "Σ bc²ac": (b * c**2 @ a @ c, 1 / 10, 5),
        "Σ b(ac)²": (b @ (a @ c) ** 2, 1 / 20, 5),
        "Σ bcac²": (b * c @ a @ c**2, 1 / 15, 5),
        "Σ bac³": (b @ a @ c**3, 1 / 20, 5),
        "Σ bcaac": (b * c @ a @ a @ c, 1 / 30, 5),
        "Σ bacac": (b @ a @ (c * (a @ c)), 1 / 40, 5),
        "Σ baac²": (b @ a @ a @ c**2, 1 / 60, 5),
        "Σ baaac": (b @ a @ a @ a @ c, 1 / 120, 5),
    }


@pytest.mark.parametrize("method", [*METHODS.values(), LOWER], ids=lambda m: m.order)
def test_the_order_conditions_hold(method: Tableau) -> None:
    """All 17 of Butcher's to order 5, and not all of the order above."""
    found = trees(method)
    for name, (left, right, order) in found.items():
        if order <= method.order:
            assert left == pytest.approx(right, abs=1e-14), name
    above = [abs(x - y) for x, y, order in found.values() if order == method.order + 1]
    assert method.order == 5 or max(above) > 1e-4


def test_dormand_and_prince_is_that_of_scipy() -> None:
    from scipy.integrate import RK45

    for i, row in enumerate(DOPRI5.a[1:6], 1):
        assert row == pytest.approx(RK45.A[i, :i], abs=1e-15)
    assert DOPRI5.a[6] == pytest.approx(RK45.B, abs=1e-15)
    assert DOPRI5.b == (*DOPRI5.a[6], 0), "the last slope is the next first"
    gap = np.array(DOPRI5.low) - np.array(DOPRI5.b)
    assert gap == pytest.approx(RK45.E, abs=1e-15)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_linear_field_is_its_taylor_polynomial(
    method: Tableau, rng: Generator
) -> None:
    """One step on x′ = Ax is Σ_{k ≤ p} (hA)^k/k! x, up to the terms beyond p."""
    x, h = torch.randn(4, 3, generator=rng), 1e-2
    end = integrate(linear, x, torch.tensor([0.0, h]), method)
    error = (end - x @ torch.matrix_exp(h * A).T).abs().max().item()
    assert error < (3 * h) ** (method.order + 1)


def test_the_path_passes_where_the_integral_ends(rng: Generator) -> None:
    x, times = torch.randn(2, 3, generator=rng), torch.linspace(0, 1, 6)
    states = list(path(linear, x, times))
    assert len(states) == 5
    for k, state in enumerate(states, 1):
        expected = integrate(linear, x, times[: k + 1])
        torch.testing.assert_close(state, expected, rtol=0, atol=0)


def test_time_runs_backwards_too(rng: Generator) -> None:
    x, times = torch.randn(5, 3, generator=rng), torch.linspace(0.3, 2, 200)
    end = integrate(linear, x, times)
    torch.testing.assert_close(
        end, x @ torch.matrix_exp(1.7 * A).T, rtol=1e-8, atol=1e-8
    )
    torch.testing.assert_close(
        integrate(linear, end, times.flip(0)), x, rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("tol", [1e-3, 1e-5, 1e-7, 1e-9, 1e-11])
def test_the_tolerance_is_kept(tol: float, rng: Generator) -> None:
    """The error of each of a few steps is below it, and the sum of them near."""
    x = torch.randn(6, 3, generator=rng)
    found = adaptive(linear, x, 0.0, 3.0, tol=tol)
    expected = x @ torch.matrix_exp(3 * A).T
    error = ((found.x - expected) / (1 + expected.abs())).square().mean().sqrt()
    assert error < 4 * tol
    assert found.steps < 12 * (1e-3 / tol) ** 0.2 + 5, "O(tol^(−1/5)) steps"


def test_the_adaptive_solver_agrees_with_scipy() -> None:
    """On the oscillator of van der Pol, at a tolerance far below the comparison."""
    found = adaptive(van_der_pol, torch.tensor([[2.0, 0.0]]), 0.0, 8.0, tol=1e-10)
    f = lambda t, x: [x[1], 3 * (1 - x[0] ** 2) * x[1] - x[0] + math.sin(t)]
    exact = solve_ivp(f, (0, 8), [2.0, 0.0], method="DOP853", rtol=1e-12, atol=1e-12)
    assert found.x[0].tolist() == pytest.approx(exact.y[:, -1].tolist(), abs=1e-7)
    assert found.rejected > 0, "its jumps are met by shorter steps"


def test_evaluations_are_counted(rng: Generator) -> None:
    calls = []

    def field(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t.item())
        return linear(x, t) * (1 + 20 * (-50 * (t - 1) ** 2).exp())

    found = adaptive(field, torch.randn(3, 3, generator=rng), 0.0, 2.0, tol=1e-8)
    assert found.evaluations == len(calls)
    assert found.rejected > 0
    assert found.steps + found.rejected == (len(calls) - 1) / 6
    assert (min(calls), max(calls)) == (0.0, 2.0), "the field is not asked outside"


def test_a_step_is_kept_when_its_error_is_within_the_tolerance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors, inner = [], ode.attempt

    def attempt(*arguments: object) -> tuple:
        tried = inner(*arguments)
        errors.append(tried[1])
        return tried

    monkeypatch.setattr(ode, "attempt", attempt)
    found = adaptive(van_der_pol, torch.tensor([[2.0, 0.0]]), 0.0, 8.0, tol=1e-5)
    assert found.rejected == sum(error > 1e-5 for error in errors) > 0
    assert found.steps == sum(error <= 1e-5 for error in errors)
    assert max(e for e in errors if e <= 1e-5) > 2e-6, "nor shorter than need be"


def test_an_empty_interval_costs_one_evaluation(rng: Generator) -> None:
    x = torch.randn(3, 3, generator=rng)
    found = adaptive(linear, x, 1.0, 1.0)
    assert torch.equal(found.x, x)
    assert (found.steps, found.evaluations) == (0, 1)


def test_the_adaptive_solution_can_be_differentiated() -> None:
    """∂x(T)/∂x(0) of x′ = ax is exp(aT), and ∂/∂a is T x(T)."""
    a = torch.tensor(-0.7, requires_grad=True)
    x = torch.tensor([[1.3]], requires_grad=True)
    end = adaptive(lambda x, t: a * x, x, 0.0, 2.0, tol=1e-9).x
    by_x, by_a = torch.autograd.grad(end.sum(), (x, a))
    assert by_x.item() == pytest.approx(math.exp(-1.4), rel=1e-7)
    assert by_a.item() == pytest.approx(2 * 1.3 * math.exp(-1.4), rel=1e-7)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (
            lambda x, t: x**2,
            r"^\d{1,3} steps reach t = (0.9999|1\.0000)",
        ),  # x = 1/(1 − t) explodes at 1
        (lambda x, t: x / (t < 0.5), r"^\d{1,3} steps reach t = 0\.[345]"),
        (lambda x, t: x * torch.nan, "^0 steps reach t = 0"),
    ],
)
def test_a_field_that_cannot_be_followed_is_said(
    field: Callable[..., Tensor], message: str
) -> None:
    with pytest.raises(ArithmeticError, match=message):
        adaptive(field, torch.ones(1, 1), 0.0, 2.0)


def test_too_many_steps_are_said() -> None:
    stiff = lambda x, t: -1e6 * (x - t.cos())
    with pytest.raises(ArithmeticError, match="steps reach"):
        adaptive(stiff, torch.ones(1, 1), 0.0, 1.0, steps=100)


@pytest.mark.parametrize("times", [[0.0], [0.0, 1.0, 0.5], [0.0, 0.0], [[0.0, 1.0]],
                                   [0.0, math.nan]])  # fmt: skip
def test_bad_times_are_refused_at_the_door(times: list) -> None:
    with pytest.raises(ValueError, match="times must rise or fall"):
        path(linear, torch.ones(1, 3), torch.tensor(times))


@pytest.mark.parametrize(("tol", "end"), [(0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0),
                                          (1e-3, math.inf)])  # fmt: skip
def test_bad_tolerances_are_refused(tol: float, end: float) -> None:
    with pytest.raises(ValueError, match="tol must be positive"):
        adaptive(linear, torch.ones(1, 3), 0.0, end, tol=tol)


# Divergences.


def twisted(x: Tensor, t: Tensor) -> Tensor:
    """A field whose Jacobian is full and changes from point to point."""
    return torch.stack(
        [(x[:, 0] * x[:, 1]).sin() + t, x[:, 0] ** 2 * x[:, 2], x.prod(1)], 1
    )


def test_the_divergence_is_the_trace_of_the_jacobian(rng: Generator) -> None:
    x, t = torch.randn(7, 3, generator=rng), torch.tensor(0.4)
    value, div = divergence(twisted, x, t)
    jacobians = vmap(jacrev(lambda p: twisted(p[None], t)[0]))(x)
    torch.testing.assert_close(value, twisted(x, t), rtol=0, atol=0)
    torch.testing.assert_close(div, jacobians.diagonal(dim1=1, dim2=2).sum(1))


def test_images_have_divergences(rng: Generator) -> None:
    x = torch.randn(4, 1, 3, 3, generator=rng)
    _, div = divergence(lambda x, t: x.pow(3) / 3, x, torch.tensor(0.0))
    torch.testing.assert_close(div, x.square().flatten(1).sum(1))


@pytest.mark.parametrize(
    "field", [lambda x, t: torch.ones(4, 3), lambda x, t: 0 * t + x.detach()]
)
def test_what_does_not_depend_on_x_has_none(field: Callable[..., Tensor]) -> None:
    x, t = torch.ones(4, 3), torch.tensor(0.0)
    assert torch.equal(divergence(field, x, t)[1], torch.zeros(4))
    assert torch.equal(hutchinson(field, x, t, x)[1], torch.zeros(4))


def test_the_mean_over_all_signs_is_the_divergence(rng: Generator) -> None:
    """E ε Jεᵀ, summed over the 2^d signs and not sampled."""
    x, t = torch.randn(7, 3, generator=rng), torch.tensor(0.4)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)))
    total = sum(hutchinson(twisted, x, t, s.expand(7, 3))[1] for s in signs)
    torch.testing.assert_close(total / 8, divergence(twisted, x, t)[1])


def test_signs_are_fair_and_of_their_generator(rng: Generator) -> None:
    n = 100_000
    state = torch.get_rng_state()
    eps = signs_like(torch.empty(n), rng=rng)
    assert eps.unique().tolist() == [-1, 1]
    assert abs(eps.mean()) < 4 / n**0.5
    assert torch.equal(eps, signs_like(eps, rng=Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "trace", [divergence, partial(hutchinson, eps=torch.ones(1, 1))]
)
def test_the_divergence_can_be_differentiated(trace: Callable) -> None:
    """div (w x³) = 3 w x², whose derivatives by w and x are 3x² and 6wx."""
    w = torch.tensor(0.5, requires_grad=True)
    x = torch.tensor([[1.7]], requires_grad=True)
    _, div = trace(lambda x, t: w * x**3, x, torch.tensor(0.0))
    by_w, by_x = torch.autograd.grad(div.sum(), (w, x))
    assert by_w.item() == pytest.approx(3 * 1.7**2)
    assert by_x.item() == pytest.approx(6 * 0.5 * 1.7)
    with torch.no_grad():
        value, div = trace(lambda x, t: w * x**3, x, torch.tensor(0.0))
    assert not value.requires_grad
    assert not div.requires_grad


@pytest.mark.parametrize("exact", [True, False])
def test_the_integral_of_the_divergence_is_the_log_determinant(
    exact: bool, rng: Generator
) -> None:
    """Liouville: log det exp(TA) = T tr A, along the solution."""
    x = torch.randn(3, 3, generator=rng)
    eps = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)))[:3]

    def field(state: Tensor, t: Tensor) -> Tensor:
        trace = divergence if exact else partial(hutchinson, eps=eps)
        value, div = trace(linear, state[:, :3], t)
        return torch.cat([value, div[:, None]], 1)

    state = torch.cat([x, torch.zeros(3, 1)], 1)
    end = adaptive(field, state, 0.0, 2.0, tol=1e-10).x
    truth = torch.linalg.slogdet(torch.matrix_exp(2 * A)).logabsdet.expand(3)
    if not exact:  # of a linear field the estimate is constant in time
        truth = 2 * torch.einsum("ni,ij,nj->n", eps, A, eps)
    torch.testing.assert_close(end[:, 3], truth, rtol=1e-8, atol=1e-8)


def test_the_module_claims_what_it_has() -> None:
    assert all(hasattr(ode, name) for name in ode.__all__)
