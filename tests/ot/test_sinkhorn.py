"""book/ot/sinkhorn.md, equation by equation."""

import math

import pytest
import torch
from torch import Generator, Tensor

from pushforward.ot import (
    birkhoff,
    cost,
    entropic_cost,
    entropic_cost_gaussian,
    hilbert,
    plan,
    rounded,
    sinkhorn,
    sinkhorn_divergence,
    sinkhorn_log,
)
from pushforward.ot.sinkhorn import correction, relaxation


def law(n: int, rng: Generator) -> Tensor:
    a = torch.rand(n, generator=rng) + 0.1
    return a / a.sum()


def problem(n: int, m: int, rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
    C = cost(torch.randn(n, 2, generator=rng), 1 + torch.rand(m, 2, generator=rng))
    return C / C.max(), law(n, rng), law(m, rng)


def primal(P: Tensor, C: Tensor, a: Tensor, b: Tensor, eps: float) -> float:
    ab = torch.outer(a, b)
    return float((C * P).sum() + eps * torch.special.xlogy(P, P / ab).sum())


@pytest.mark.parametrize("eps", [0.5, 0.05, 0.01, 0.002])
def test_two_algorithms_one_plan(eps: float, rng: Generator) -> None:
    """(eq:sinkhorn-update) against (eq:soft-c-transform), weights not uniform."""
    C, a, b = problem(40, 30, rng)
    fast = sinkhorn(C, a, b, eps, tol=1e-12)
    slow = sinkhorn_log(C, a, b, eps, tol=1e-12, steps=100_000)
    assert max(fast.error, slow.error) < 1e-12
    torch.testing.assert_close(fast.P, slow.P, rtol=0, atol=1e-11)
    shift = (fast.f - slow.f).mean()  # the potentials are unique up to a constant
    torch.testing.assert_close(fast.f - shift, slow.f, rtol=0, atol=1e-9)
    torch.testing.assert_close(fast.g + shift, slow.g, rtol=0, atol=1e-9)


def test_plan_has_the_entropic_form_and_its_marginals(rng: Generator) -> None:
    """(eq:entropic-plan), (eq:gibbs-kernel): what is returned belongs together."""
    C, a, b = problem(30, 50, rng)
    for eps in (0.1, 0.01, 1e-3, 1e-4):
        found = sinkhorn(C, a, b, eps, tol=1e-8, steps=100_000)
        form = ((found.f[:, None] + found.g - C) / eps).exp() * torch.outer(a, b)
        torch.testing.assert_close(found.P, form, rtol=0, atol=1e-12)
        assert float((found.P.sum(0) - b).abs().sum()) < 1e-12
        miss = float((found.P.sum(1) - a).abs().sum())
        assert miss == pytest.approx(found.error, abs=1e-13)
        assert miss < 1e-8


def test_gap_is_primal_less_dual(rng: Generator) -> None:
    """(eq:entropic-gap), from the two sums."""
    C, a, b = problem(20, 25, rng)
    eps = 0.02
    for solve in (sinkhorn, sinkhorn_log):
        found = solve(C, a, b, eps, tol=1e-14, steps=3)
        dual = float(found.f @ a + found.g @ b - eps * (found.P.sum() - 1))
        assert found.error > 1e-6
        value = primal(found.P, C, a, b, eps) - eps * float(found.P.sum() - 1)
        assert value - dual == pytest.approx(found.gap, abs=1e-14)


def test_no_coupling_is_better(rng: Generator) -> None:
    """(eq:entropic-ot): the plan against its feasible neighbours."""
    C, a, b = problem(6, 7, rng)
    eps = 0.05
    best = sinkhorn(C, a, b, eps, tol=1e-13).P
    least = primal(best, C, a, b, eps)
    for _ in range(50):
        step = torch.randn(6, 7, generator=rng)
        step = step - step.mean(0) - step.mean(1, keepdim=True) + step.mean()
        step *= 0.3 * best.min() / step.abs().max()
        assert primal(best + step, C, a, b, eps) > least


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_survives_small_eps(dtype: torch.dtype, rng: Generator) -> None:
    """ε = 1e-4 of the largest cost; the value against the linear program."""
    C, a, b = (t.to(dtype) for t in problem(200, 200, rng))
    found = sinkhorn(C, a, b, 1e-4, tol=1e-4, steps=20_000)
    assert found.error < 1e-4
    assert all(t.isfinite().all() for t in found[:3])
    exact = float(plan(C.double(), a.double(), b.double()).value)
    near = float((C * found.P).sum())
    assert abs(near - exact) < 1e-4 * math.log(200) + 1e-4


def test_value_lies_between_its_bounds(rng: Generator) -> None:
    """OT ≤ OT_ε ≤ OT + ε min(h(a), h(b)), and OT_ε ≤ ⟨C, a ⊗ b⟩."""
    C, a, b = problem(30, 20, rng)
    exact = float(plan(C, a, b).value)
    entropy = min(float(-(w * w.log()).sum()) for w in (a, b))
    values = [float(entropic_cost(C, a, b, e)) for e in (0.003, 0.03, 0.3, 3.0, 300)]
    for eps, value in zip((0.003, 0.03, 0.3, 3.0, 300), values, strict=True):
        assert exact - 1e-9 <= value <= exact + eps * entropy
    independent = float(a @ C @ b)
    assert values == sorted(values)
    assert values[-1] < independent
    assert values[-1] == pytest.approx(independent, rel=1e-3)


def test_gradient_of_the_value_is_the_plan(rng: Generator) -> None:
    """(eq:entropic-gradient), by central differences."""
    C, a, b = problem(5, 4, rng)
    C.requires_grad_()
    slope = torch.autograd.grad(entropic_cost(C, a, b, 0.1, tol=1e-13), C)[0]
    C = C.detach()
    for i, j in ((0, 0), (2, 3), (4, 1)):
        e = torch.zeros_like(C)
        e[i, j] = 1e-5
        up, down = (entropic_cost(C + s * e, a, b, 0.1, tol=1e-13) for s in (1, -1))
        assert float(up - down) / 2e-5 == pytest.approx(float(slope[i, j]), rel=1e-7)


def test_log_domain_can_be_differentiated(rng: Generator) -> None:
    """Through the iterations, against the plan."""
    C, a, b = problem(5, 4, rng)
    C.requires_grad_()
    found = sinkhorn_log(C, a, b, 0.1, tol=1e-13)
    slope = torch.autograd.grad(found.f @ a + found.g @ b, C)[0]
    torch.testing.assert_close(slope, found.P.detach(), rtol=0, atol=1e-10)


def test_kernels_contract_hilbert_distances(rng: Generator) -> None:
    """(eq:birkhoff): the bound holds, and is attained for 2 × 2."""
    K = (torch.randn(8, 6, generator=rng)).exp()
    kappa = float(birkhoff(K))
    for _ in range(100):
        x, y = torch.randn(2, 6, generator=rng).exp()
        assert hilbert(K @ x, K @ y) <= kappa * hilbert(x, y) + 1e-12
    K = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    x, y = torch.tensor([1 + 1e-6, 1.0]), torch.tensor([1.0, 1.0])
    ratio = float(hilbert(K @ x, K @ y) / hilbert(x, y))
    assert ratio == pytest.approx(float(birkhoff(K)), rel=1e-6)
    assert ratio == pytest.approx(0.5, rel=1e-6)  # tanh(log(9)/4) = 1/2


def test_sweeps_contract_as_franklin_and_lorenz_say(rng: Generator) -> None:
    """Each plain sweep shrinks Hilbert's distance to the limit by κ² or more."""
    C, a, b = problem(12, 15, rng)
    eps = 0.3
    kappa = float(birkhoff((-C / eps).exp()))
    limit = sinkhorn_log(C, a, b, eps, tol=1e-15, steps=200).g
    runs = [sinkhorn_log(C, a, b, eps, tol=0.0, steps=k).g for k in (1, 2, 3)]
    d = [float((g - limit).max() - (g - limit).min()) / eps for g in runs]
    assert d[1] <= kappa**2 * d[0]
    assert d[2] <= kappa**2 * d[1]


def test_long_steps_gain_what_the_guard_promises(rng: Generator) -> None:
    """(eq:relaxation-guard): the rise of the dual, row by row."""
    x = torch.logspace(-3, 3, 4001)
    ones = torch.ones_like(x)
    exact = x - 1 - x.log()
    for omega in (1.05, 1.3, 1.6, 1.9, 1.98):
        factor = correction(ones, x, omega)  # the mass x becomes x · factor
        gain = factor.log() + x - x * factor
        assert (gain >= (2 - omega) * exact - 1e-13).all()


def test_relaxation_is_that_of_young(rng: Generator) -> None:
    """(eq:young): the rate that ω makes of σ gives σ, hence the best ω, back."""
    for lam in (0.2, 0.7, 0.99):
        best = 2 / (1 + math.sqrt(1 - lam))
        for omega in (1.0, 1 + 0.5 * (best - 1)):
            trace = 2 * (1 - omega) + omega**2 * lam
            rho = (trace + math.sqrt(trace**2 - 4 * (1 - omega) ** 2)) / 2
            assert relaxation(omega, rho**10, 1.0) == pytest.approx(best, rel=1e-9)


def test_over_relaxation_pays(rng: Generator) -> None:
    C, a, b = problem(60, 60, rng)
    fast = sinkhorn(C, a, b, 0.002, tol=1e-9)
    plain = sinkhorn_log(C, a, b, 0.002, tol=1e-9)
    assert fast.error < 1e-9
    assert 2 * fast.steps < plain.steps


def test_gaussian_value_is_that_of_quadrature() -> None:
    """(eq:entropic-gaussian), against Sinkhorn on a fine grid."""
    m1, s1, m2, s2, eps = 0.0, 1.0, 0.5, 0.6, 0.4
    t = torch.linspace(-6, 6, 401)
    a, b = (torch.exp(-(((t - m) / s) ** 2) / 2) for m, s in ((m1, s1), (m2, s2)))
    a, b = a / a.sum(), b / b.sum()
    got = float(entropic_cost(cost(t, t), a, b, eps, tol=1e-12))
    exact = entropic_cost_gaussian(m1, s1, m2, s2, eps)
    assert got == pytest.approx(exact, abs=1e-7)
    tiny = entropic_cost_gaussian(m1, s1, m2, s2, 1e-9)
    assert tiny == pytest.approx(0.25 + 0.16, abs=1e-7)  # W₂² of the two laws


def test_divergence_vanishes_only_at_equality(rng: Generator) -> None:
    """(eq:sinkhorn-divergence): zero, positive, symmetric; by its three terms."""
    x, y = torch.randn(40, 2, generator=rng), torch.randn(30, 2, generator=rng)
    assert float(sinkhorn_divergence(x, x.flip(0), 1.0)) == pytest.approx(0, abs=1e-10)
    there = float(sinkhorn_divergence(x, y, 1.0, tol=1e-12))
    back = float(sinkhorn_divergence(y, x, 1.0, tol=1e-12))
    assert there > 1e-3
    assert there == pytest.approx(back, rel=1e-8)
    a, b = torch.full((40,), 1 / 40), torch.full((30,), 1 / 30)
    terms = [
        float(plan.f.detach() @ p + plan.g.detach() @ q)
        for (u, v, p, q) in ((x, y, a, b), (x, x, a, a), (y, y, b, b))
        for plan in [sinkhorn_log(cost(u, v), p, q, 1.0, tol=1e-12)]
    ]
    assert there == pytest.approx(terms[0] - (terms[1] + terms[2]) / 2, abs=1e-9)


def test_divergence_has_the_right_gradient(rng: Generator) -> None:
    x, y = torch.randn(6, 2, generator=rng), torch.randn(5, 2, generator=rng)
    x.requires_grad_()
    value = sinkhorn_divergence(x, y, 0.5, tol=1e-13)
    slope = torch.autograd.grad(value, x)[0]
    e = torch.zeros(6, 2)
    e[2, 1] = 1e-5
    x = x.detach()
    up, down = (sinkhorn_divergence(x + s * e, y, 0.5, tol=1e-13) for s in (1, -1))
    assert float(up - down) / 2e-5 == pytest.approx(float(slope[2, 1]), rel=1e-6)


def test_rounding_makes_a_coupling_nearby(rng: Generator) -> None:
    C, a, b = problem(20, 30, rng)
    rough = sinkhorn(C, a, b, 0.01, steps=2)
    assert rough.error > 1e-3
    P = rounded(rough.P, a, b)
    torch.testing.assert_close(P.sum(1), a, rtol=0, atol=1e-15)
    torch.testing.assert_close(P.sum(0), b, rtol=0, atol=1e-15)
    assert (P >= 0).all()
    assert float((P - rough.P).abs().sum()) <= 2 * rough.error + 1e-14


def test_nothing_is_changed_in_place(rng: Generator) -> None:
    C, a, b = problem(10, 10, rng)
    before = C.clone(), a.clone(), b.clone()
    sinkhorn(C, a, b, 0.01)
    assert all(torch.equal(s, t) for s, t in zip(before, (C, a, b), strict=True))


@pytest.mark.parametrize("solve", [sinkhorn, sinkhorn_log])
def test_bad_arguments(solve, rng: Generator) -> None:  # noqa: ANN001
    C, a, b = problem(4, 5, rng)
    for args, word in (
        ((C[0], a, b, 0.1), "C must"),
        ((C.log() * math.nan, a, b, 0.1), "C must be finite"),
        ((C, b, b, 0.1), "a must"),
        ((C, a, b.float(), 0.1), "b must"),
        ((C, a, 2 * b, 0.1), "b must be positive"),
        ((C, a, b, 0.0), "eps must"),
    ):
        with pytest.raises(ValueError, match=word):
            solve(*args)
    with pytest.raises(ValueError, match="steps must"):
        solve(C, a, b, 0.1, steps=0)
