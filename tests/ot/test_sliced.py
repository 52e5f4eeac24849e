"""book/ot/sliced.md, equation by equation."""

import math

import pytest
import torch
from torch import Generator

from pushforward.ot import (
    slice_constant,
    sliced_flow,
    sliced_wasserstein,
    sphere,
    wasserstein,
)


def test_isotropic_gaussians_have_the_exact_value(rng: Generator) -> None:
    """SW₂² = |m|²/d + (s₁ − s₂)², from quantiles that a sample has exactly."""
    d, n = 5, 40_000
    x = torch.randn(n, d, generator=rng)
    m = torch.linspace(-1, 1, d)
    got = sliced_wasserstein(x, 0.5 * x + m, directions=400, rng=rng)
    exact = float(m.square().sum()) / d + 0.25
    assert abs(float(got.power) - exact) < 4 * got.se + 4 * (2 / n) ** 0.5
    assert float(got.distance) == pytest.approx(math.sqrt(float(got.power)), rel=1e-14)


def test_translation_is_exact_direction_by_direction(rng: Generator) -> None:
    """(eq:sliced): W_p(θ_# x, θ_# (x + v)) = |θ·v|; the mean is |v|^p E|θ₁|^p."""
    x = torch.randn(50, 3, generator=rng)
    v = torch.tensor([1.0, -2.0, 2.0])
    for p in (1.0, 2.0, 3.0):
        got = sliced_wasserstein(x, x + v, directions=4000, p=p, rng=rng)
        exact = 3.0**p * slice_constant(3, p)
        assert abs(float(got.power) - exact) < 4 * got.se


def test_standard_error_is_that_of_repetition(rng: Generator) -> None:
    x, y = torch.randn(30, 3, generator=rng), 1 + torch.rand(30, 3, generator=rng)
    runs = [sliced_wasserstein(x, y, directions=50, rng=rng) for _ in range(300)]
    spread = float(torch.stack([r.power for r in runs]).std())
    claimed = sum(r.se for r in runs) / len(runs)
    assert claimed == pytest.approx(spread, rel=0.15)  # 300 runs: ± 4 %


def test_constant_is_that_of_quadrature() -> None:
    """(eq:slice-constant), against the density (1 − t²)^((d−3)/2) of θ₁."""
    t = (torch.arange(200_000) + 0.5) / 200_000
    for d in (3, 4, 10):
        w = (1 - t**2) ** ((d - 3) / 2)
        for p in (1.0, 2.0, 3.5):
            exact = float((t**p * w).sum() / w.sum())
            assert slice_constant(d, p) == pytest.approx(exact, rel=1e-6)
    assert slice_constant(1, 3.0) == pytest.approx(1, rel=1e-14)
    assert slice_constant(7) == pytest.approx(1 / 7, rel=1e-14)


def test_sliced_is_below_wasserstein(rng: Generator) -> None:
    """SW_p^p ≤ E|θ₁|^p W_p^p, against the linear program."""
    x, y = torch.randn(60, 3, generator=rng), 2 * torch.rand(60, 3, generator=rng)
    for p in (1.0, 2.0):
        got = sliced_wasserstein(x, y, directions=500, p=p, rng=rng)
        bound = slice_constant(3, p) * float(wasserstein(x, y, p)) ** p
        assert float(got.power) < bound


def test_on_the_line_it_is_wasserstein(rng: Generator) -> None:
    x, y = torch.randn(30, 1, generator=rng), torch.randn(20, 1, generator=rng)
    got = sliced_wasserstein(x, y, directions=3, rng=rng)
    torch.testing.assert_close(got.distance, wasserstein(x, y, 2), rtol=1e-10, atol=0)


def test_flow_steps_are_gradient_steps(rng: Generator) -> None:
    """(eq:sliced-flow): x − n d τ/2 ∇ SW₂², with the same directions."""
    x = torch.randn(20, 3, generator=rng).requires_grad_()
    y = torch.rand(20, 3, generator=rng)
    twin = torch.Generator().manual_seed(7)
    value = sliced_wasserstein(x, y, directions=16, rng=twin).power
    slope = torch.autograd.grad(value, x)[0]
    twin = torch.Generator().manual_seed(7)
    moved = next(sliced_flow(x.detach(), y, directions=16, step=0.3, rng=twin))
    expected = x.detach() - 0.3 * 20 * 3 / 2 * slope
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-12)


def test_flow_arrives(rng: Generator) -> None:
    """Exact transport, not the sliced one, says that the target is reached."""
    x, y = torch.randn(100, 2, generator=rng), 3 + torch.rand(100, 2, generator=rng)
    before = float(wasserstein(x, y))
    flow = sliced_flow(x, y, directions=16, rng=rng)
    for _ in range(60):
        x = next(flow)
    assert float(wasserstein(x, y)) < 0.03 * before


def test_directions_are_uniform(rng: Generator) -> None:
    theta = sphere(40_000, torch.zeros(1, 4), rng=rng)
    torch.testing.assert_close(theta.norm(dim=1), torch.ones(40_000))
    second = theta.mT @ theta / 40_000
    assert (second - torch.eye(4) / 4).abs().max() < 4 * 0.25 / 40_000**0.5
    assert theta.mean(0).abs().max() < 4 * 0.5 / 40_000**0.5


def test_the_rng_decides(rng: Generator) -> None:
    x, y = torch.randn(10, 2), torch.randn(10, 2)
    first, second = (
        sliced_wasserstein(x, y, rng=torch.Generator().manual_seed(3)).power
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_bad_arguments() -> None:
    x = torch.zeros(5, 2)
    with pytest.raises(ValueError, match="x and y must"):
        sliced_wasserstein(x, torch.zeros(5, 3))
    with pytest.raises(ValueError, match="directions must"):
        sliced_wasserstein(x, x, directions=1)
    with pytest.raises(ValueError, match="p must"):
        sliced_wasserstein(x, x, p=0.5)
    with pytest.raises(ValueError, match="x and y must"):
        next(sliced_flow(x, torch.zeros(5, 3)))
    with pytest.raises(ValueError, match="d and p"):
        slice_constant(0)
