"""book/ot/gaussian.md, equation by equation."""

import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor

from pushforward.distributions import Gaussian
from pushforward.ot.gaussian import (
    barycenter,
    bures,
    gaussian_map,
    gelbrich,
    geodesic,
    moments,
    sqrtm,
)


def law(rng: Generator, d: int = 3) -> tuple[Tensor, Tensor]:
    A = torch.randn(d, d, generator=rng)
    m = torch.randn(d, generator=rng)
    return m, A @ A.T + 0.1 * torch.eye(d)


def test_bures_is_that_of_pot(rng: Generator) -> None:
    """(eq:bures), (eq:bures-procrustes), against another library's matrix roots."""
    for d in (1, 2, 5, 20):
        m1, S1, m2, S2 = *law(rng, d), *law(rng, d)
        peer = ot.gaussian.bures_wasserstein_distance(
            *(t.numpy() for t in (m1, m2, S1, S2))
        )
        ours = bures(m1, S1, m2, S2)
        torch.testing.assert_close(ours.sqrt().item(), float(peer), rtol=1e-9, atol=0)


def test_map_pushes_and_pays_the_distance(rng: Generator) -> None:
    """(eq:gaussian-map): A Σ₁ A = Σ₂, and E|X − T(X)|² is W₂²."""
    m1, S1, m2, S2 = *law(rng), *law(rng)
    T = gaussian_map(m1, S1, m2, S2)
    torch.testing.assert_close(T.A @ S1 @ T.A.mT, S2, rtol=0, atol=1e-10)
    torch.testing.assert_close(T(m1[None])[0], m2)
    assert torch.equal(T.A, T.A.mT)
    assert torch.linalg.eigvalsh(T.A).min() > 0
    x = Gaussian(m1, S1).sample(40_000, rng=rng)
    paid = (x - T(x)).square().sum(-1)
    se = paid.std() / len(x) ** 0.5
    assert (paid.mean() - bures(m1, S1, m2, S2)).abs() < 4 * se


def test_no_sample_is_transported_for_less_than_gelbrich(rng: Generator) -> None:
    """(eq:gelbrich), against the assignment problem, for laws that are not normal."""
    for n in (20, 100):
        x = torch.rand(n, 3, generator=rng) ** 3
        y = torch.randn(n, 3, generator=rng).sign() + x.flip(0)
        C = torch.cdist(x, y).square().numpy()
        exact = C[linear_sum_assignment(C)].mean()
        assert float(gelbrich(x, y)) < exact
        T = gaussian_map(*moments(x), *moments(y))
        z = T(x)  # affine and symmetric, hence optimal: the bound is attained
        C = torch.cdist(x, z).square().numpy()
        attained = C[linear_sum_assignment(C)].mean()
        assert float(gelbrich(x, z)) == pytest.approx(attained, rel=1e-10)


def test_geodesic_has_constant_speed(rng: Generator) -> None:
    """(eq:gaussian-geodesic): W₂ between times s and t is |s − t| W₂."""
    a, b = law(rng), law(rng)
    whole = bures(*a, *b).sqrt()
    for s, t in ((0.0, 0.3), (0.3, 0.8), (0.8, 1.0)):
        part = bures(*geodesic(*a, *b, s), *geodesic(*a, *b, t)).sqrt()
        torch.testing.assert_close(part, (t - s) * whole, rtol=1e-9, atol=0)


def test_root_has_the_gradient_of_sylvester() -> None:
    """(eq:root-gradient), by finite differences, at equal eigenvalues too."""
    S = torch.eye(3).requires_grad_()
    grad = torch.autograd.grad(sqrtm(S).sum(), S)[0]
    torch.testing.assert_close(grad, torch.full((3, 3), 0.5))
    A = torch.tensor([[2.0, 0.3, 0.1], [0.0, 1.0, 0.4], [0.0, 0.0, 0.5]])
    assert torch.autograd.gradcheck(lambda F: sqrtm(F @ F.mT), A.requires_grad_())


def test_gradient_is_identity_less_map(rng: Generator) -> None:
    """∇_Σ₁ W₂² = I − A, by differentiation of the value."""
    m1, S1, m2, S2 = *law(rng), *law(rng)
    S = S1.clone().requires_grad_()
    slope = torch.autograd.grad(bures(m1, S, m2, S2), S)[0]
    expected = torch.eye(3) - gaussian_map(m1, S1, m2, S2).A
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-10)
    equal = torch.autograd.grad(bures(m1, S, m1, S1), S)[0]
    assert equal.abs().max() < 1e-12


def test_singular_laws(rng: Generator) -> None:
    """Two segments at a right angle, and a law against itself."""
    zero = torch.zeros(3)
    D = torch.diag(torch.tensor([4.0, 0.0, 0.0]))
    E = torch.diag(torch.tensor([0.0, 9.0, 0.0]))
    assert float(bures(zero, D, zero, E)) == pytest.approx(13, rel=1e-12)
    assert float(bures(zero, D, zero, D)) < 1e-28
    half = geodesic(zero, D, zero, E, 0.5).cov
    assert float(torch.trace(half)) == pytest.approx(13 / 4, rel=1e-12)
    with pytest.raises(ValueError, match="positive definite"):
        gaussian_map(zero, D, zero, E)


def test_small_distances_keep_their_digits() -> None:
    """W₂² = δ²/4 + … for Σ and (1 + δ) Σ: far below rounding of the traces."""
    zero = torch.zeros(2)
    S = torch.diag(torch.tensor([1.0, 1e-12]))
    for delta in (1e-4, 1e-8, 1e-10):
        exact = float(S.trace()) * ((1 + delta) ** 0.5 - 1) ** 2
        ours = float(bures(zero, S, zero, (1 + delta) * S))
        assert ours == pytest.approx(exact, rel=1e-4)


def test_barycenter_of_two_lies_on_their_geodesic(rng: Generator) -> None:
    """(eq:barycenter) against (eq:gaussian-geodesic), and its own condition."""
    (m1, S1), (m2, S2) = law(rng), law(rng)
    w = torch.tensor([0.3, 0.7])
    found = barycenter(torch.stack([m1, m2]), torch.stack([S1, S2]), w)
    assert found.error < 1e-10
    path = geodesic(m1, S1, m2, S2, 0.7)
    torch.testing.assert_close(found.cov, path.cov, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.m, path.m)


def test_barycenter_on_the_line_averages_deviations() -> None:
    s = torch.tensor([1.0, 2.0, 5.0])
    w = torch.tensor([0.5, 0.3, 0.2])
    found = barycenter(s[:, None], s.square()[:, None, None], w)
    assert float(found.cov) == pytest.approx(float(w @ s) ** 2, rel=1e-12)


@pytest.mark.parametrize(
    "bad",
    [
        torch.tensor([[1.0, 2.0], [0.0, 1.0]]),
        torch.tensor([[1.0, 2.0], [2.0, 1.0]]),
        torch.tensor([[torch.nan, 0.0], [0.0, 1.0]]),
        torch.ones(2, 3),
    ],
)
def test_what_is_no_covariance_is_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="S must"):
        sqrtm(bad)


def test_bad_arguments(rng: Generator) -> None:
    a = law(rng)
    with pytest.raises(ValueError, match="t must lie"):
        geodesic(*a, *a, 1.5)
    with pytest.raises(ValueError, match="x must have shape"):
        moments(a[0])
    with pytest.raises(ValueError, match="S, w must be"):
        barycenter(a[0][None], a[1], torch.ones(1))
