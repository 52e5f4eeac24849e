"""book/ot/quantile.md, equation by equation."""

import math

import pytest
import torch
from scipy import stats
from torch import Generator, Tensor

from pushforward.ot import (
    area_between,
    cdf,
    cost,
    monotone_coupling,
    plan,
    quantile,
    quantile_map,
    wasserstein_1d,
)


def line(n: int, rng: Generator) -> Tensor:
    return torch.randn(n, generator=rng)


def law(n: int, rng: Generator) -> Tensor:
    a = torch.rand(n, generator=rng)
    return a / a.sum()


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
@pytest.mark.parametrize(("n", "m"), [(40, 40), (30, 47), (1, 5)])
def test_sorting_solves_the_linear_program(
    p: float, n: int, m: int, rng: Generator
) -> None:
    """(eq:quantile-wasserstein) and (eq:quantile-sorted), against the simplex."""
    x, y = line(n, rng), 1 + 1.5 * line(m, rng)
    a, b = law(n, rng), law(m, rng)
    for weights in ((None, None), (a, b), (a, None)):
        exact = plan(cost(x, y, p), *weights).value ** (1 / p)
        got = wasserstein_1d(x, y, p, *weights)
        torch.testing.assert_close(got, exact, rtol=0, atol=1e-12)


def test_weights_are_repetitions(rng: Generator) -> None:
    """Integer weights are repeated points."""
    x, y = line(5, rng), line(12, rng)
    times = torch.tensor([1, 4, 2, 3, 2])
    weighted = wasserstein_1d(x, y, 2, times / 12)
    repeated = wasserstein_1d(x.repeat_interleave(times), y, 2)
    torch.testing.assert_close(weighted, repeated, rtol=0, atol=1e-14)


def test_coupling_is_that_of_the_linear_program(rng: Generator) -> None:
    """(eq:monotone-coupling) and (eq:staircase): the plan itself."""
    x, y, a, b = line(9, rng), line(6, rng), law(9, rng), law(6, rng)
    i, j, mass = monotone_coupling(x, y, a, b)
    P = torch.zeros(9, 6).index_put((i, j), mass, accumulate=True)
    torch.testing.assert_close(P, plan(cost(x, y), a, b).P, rtol=0, atol=1e-14)
    assert len(mass) <= 9 + 6 - 1
    assert (x[i].diff() >= 0).all()
    assert (y[j].diff() >= 0).all()


def test_the_area_between_the_distribution_functions_is_w1(rng: Generator) -> None:
    """(eq:cdf-area), against SciPy's."""
    x, y, a, b = line(50, rng), line(31, rng), law(50, rng), law(31, rng)
    expected = stats.wasserstein_distance(x, y, a, b)
    assert abs(float(area_between(x, y, a, b)) - expected) < 1e-13
    assert abs(float(wasserstein_1d(x, y, 1, a, b)) - expected) < 1e-13


def test_quantile_is_the_least_point_that_is_high_enough(rng: Generator) -> None:
    """(eq:quantile), by search, with ties; and u ≤ F(x) ⇔ F⁻¹(u) ≤ x."""
    x = torch.tensor([2.0, 0.0, 1.0, 1.0])
    u = torch.tensor([0.0, 0.1, 0.25, 0.26, 0.75, 0.76, 1.0])
    expected = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0])
    torch.testing.assert_close(quantile(u, x), expected, rtol=0, atol=0)
    t = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0])
    expected = torch.tensor([0.0, 0.25, 0.25, 0.75, 1.0, 1.0])
    torch.testing.assert_close(cdf(t, x), expected, rtol=0, atol=0)
    u, t, a = torch.rand(200, generator=rng), line(300, rng), law(4, rng)
    left = u[:, None] <= cdf(t, x, a)
    assert torch.equal(left, quantile(u, x, a)[:, None] <= t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_map_rearranges(dtype: torch.dtype, rng: Generator) -> None:
    """(eq:quantile-map): ranks are kept, and every y is used once."""
    x, y = line(999, rng).to(dtype), line(999, rng).to(dtype)
    moved = quantile_map(x, x, y)
    assert torch.equal(moved.sort().values, y.sort().values)
    assert torch.equal(moved.argsort(), x.argsort())


def test_normal_quantiles_give_the_closed_form() -> None:
    """W_2² = (m₁ − m₂)² + (s₁ − s₂)² between N(0, 1) and N(1, 4)."""
    u = (torch.arange(200_000) + 0.5) / 200_000
    z = torch.special.ndtri(u)
    value = wasserstein_1d(z, 1 + 2 * z)
    assert abs(float(value) - math.sqrt(2)) < 2e-5


def test_a_batch_is_its_rows(rng: Generator) -> None:
    x, y = torch.randn(3, 4, 20, generator=rng), torch.randn(3, 4, 20, generator=rng)
    for v in (y, y[..., :13]):
        got = wasserstein_1d(x, v, 3)
        rows = zip(x.reshape(12, -1), v.reshape(12, -1), strict=True)
        expected = torch.stack([wasserstein_1d(s, t, 3) for s, t in rows])
        torch.testing.assert_close(got, expected.reshape(3, 4), rtol=0, atol=1e-14)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_gradients_are_differences(p: int, rng: Generator) -> None:
    """In the points and in the weights; the sums of float64 allow 1e-6."""
    x, y, a, b = line(6, rng), line(5, rng), law(6, rng), law(5, rng)
    for t in (x, y, a, b):
        t.requires_grad_()

    def distance(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return wasserstein_1d(x, y, p, a / a.sum(), b / b.sum())

    assert torch.autograd.gradcheck(distance, (x, y, a, b), atol=1e-6)
    same = line(5, rng).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: wasserstein_1d(s, t, p), (same, y))


def test_gradient_at_zero_is_zero(rng: Generator) -> None:
    x = line(7, rng).requires_grad_()
    for weights in (None, law(7, rng)):
        w = wasserstein_1d(x, x.detach(), 2, weights, weights)
        (slope,) = torch.autograd.grad(w, x)
        torch.testing.assert_close(slope, torch.zeros(7), rtol=0, atol=1e-99)


def test_a_million_float32_points_keep_six_digits(rng: Generator) -> None:
    x, y = line(300_000, rng).float(), line(300_000, rng).float() + 1
    a = torch.rand(300_000, generator=rng).float()
    a = a / a.sum()
    for weights in ((), (a, a.flip(0))):
        got = wasserstein_1d(x, y, 2, *weights)
        wide = [w.double() / w.double().sum() for w in weights]
        exact = wasserstein_1d(x.double(), y.double(), 2, *wide)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_agrees(rng: Generator) -> None:
    x, y, a = line(500, rng), line(700, rng), law(500, rng)
    for args in ((x, y), (x, y[:500]), (x, y, 3.0, a)):
        there = [t.cuda() if isinstance(t, Tensor) else t for t in args]
        got = wasserstein_1d(*there)
        assert got.is_cuda
        torch.testing.assert_close(got.cpu(), wasserstein_1d(*args), rtol=1e-13, atol=0)


def test_bad_input_is_named(rng: Generator) -> None:
    x = line(4, rng)
    bad = x.clone()
    bad[2] = torch.nan
    for wrong in (bad, bad.nan_to_num(torch.inf), bad.nan_to_num(-torch.inf)):
        with pytest.raises(ValueError, match="x must be finite"):
            wasserstein_1d(wrong, x)
        with pytest.raises(ValueError, match="must be finite"):
            quantile(torch.tensor([0.5]), wrong)
    with pytest.raises(ValueError, match="floating-point"):
        wasserstein_1d(torch.arange(4), x)
    with pytest.raises(ValueError, match="n ≥ 1"):
        wasserstein_1d(x[:0], x[:0])
    with pytest.raises(ValueError, match="p must"):
        wasserstein_1d(x, x, 0.5)
    with pytest.raises(ValueError, match="sum to 1"):
        wasserstein_1d(x, x, 2, torch.ones(4))
    with pytest.raises(ValueError, match="not negative"):
        wasserstein_1d(x, x, 2, None, torch.tensor([1.0, 1.0, -0.5, -0.5]))
    with pytest.raises(ValueError, match="shape"):
        wasserstein_1d(x[None], x[None], 2, torch.ones(4) / 4)
    with pytest.raises(ValueError, match="u must"):
        quantile(torch.tensor([1.2]), x)
