"""book/back/metrics.md: every distance against its closed form or another library."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import sklearn.metrics.pairwise
import torch
from torch import Generator, Tensor

from pushforward import metrics
from pushforward.distributions import Gaussian, Mixture, StandardNormal, line_mixture
from pushforward.metrics import (
    Classifier,
    copy_share,
    distance_kernel,
    energy_distance,
    features,
    frechet_bias,
    frechet_distance,
    gaussian_kernel,
    median_distance,
    mmd,
    nll,
    parzen_log_prob,
    polynomial_kernel,
    two_sample,
)


def generator(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def folded(m: float, s: float) -> float:
    """E|N(m, s²)|."""
    half = s * math.sqrt(2 / math.pi) * math.exp(-(m**2) / (2 * s**2))
    return half + m * math.erf(m / (s * math.sqrt(2)))


def replicates(
    n: int, times: int, draw: Callable[[int], Tensor]
) -> tuple[float, float]:
    values = torch.stack([draw(seed) for seed in range(times)])
    return values.mean().item(), (values.std() / times**0.5).item()


# MMD and the energy distance.


def test_energy_distance_of_gaussians_on_the_line_has_the_right_mean() -> None:
    """(eq:energy-distance): 2 E|X−Y| − E|X−X'| − E|Y−Y'| by the folded normal."""

    def draw(seed: int) -> Tensor:
        z = randn(150, 1, seed=seed)
        return energy_distance(z[:60], 1 + 2 * z[60:])

    mean, se = replicates(60, 400, draw)
    want = 2 * folded(1, 5**0.5) - folded(0, 2**0.5) - folded(0, 8**0.5)
    assert abs(mean - want) < 4 * se < 0.1 * want


def test_biased_energy_distance_is_scipys_squared() -> None:
    x, y = randn(37, 1), 0.3 + 1.7 * randn(53, 1, seed=1)
    ours = energy_distance(x, y, unbiased=False).item()
    theirs = scipy.stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert ours == pytest.approx(theirs**2, rel=1e-10)


def test_the_biased_estimate_exceeds_by_the_diagonal() -> None:
    """(eq:mmd-bias): E V − MMD² = (1/n + 1/m)(E k(X,X) − E k(X,X')), one law."""
    n, h, d = 20, 0.8, 2

    def draw(seed: int) -> Tensor:
        x, y = randn(2, n, d, seed=seed)
        return mmd(x, y, gaussian_kernel(h), unbiased=False)

    mean, se = replicates(n, 600, draw)
    want = 2 / n * (1 - (1 + 2 / h**2) ** (-d / 2))
    assert abs(mean - want) < 4 * se < 0.1 * want


def gaussian_kernel_mean(p: Gaussian, q: Gaussian, h: float) -> Tensor:
    """E k(X, Y) for X ~ p, Y ~ q: h^d times the density of X − Y + h Z at 0."""
    d = p.means.shape[1]
    eye = torch.eye(d)
    gap = Gaussian(p.mean() - q.mean(), p.cov() + q.cov() + h**2 * eye)
    zero = torch.zeros(1, d)
    return gap.log_prob(zero).exp()[0] * (2 * math.pi) ** (d / 2) * h**d


def test_mmd_of_gaussians_has_the_right_mean() -> None:
    """(eq:mmd-unbiased) averages to (eq:mmd), in closed form for Gaussians."""
    h = 1.3
    p = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 2]]))
    q = Gaussian(torch.tensor([0.8, -0.2]), 0.5 * torch.eye(2))

    def draw(seed: int) -> Tensor:
        rng = generator(seed)
        x, y = p.sample(40, rng=rng), q.sample(70, rng=rng)
        return mmd(x, y, gaussian_kernel(h))

    mean, se = replicates(40, 500, draw)
    cross = gaussian_kernel_mean(p, q, h)
    want = gaussian_kernel_mean(p, p, h) + gaussian_kernel_mean(q, q, h) - 2 * cross
    assert abs(mean - want.item()) < 4 * se < 0.1 * want.item()


@pytest.mark.parametrize("unbiased", [True, False])
def test_mmd_is_the_sum_over_pairs(unbiased: bool) -> None:
    x, y = randn(6, 3), randn(9, 3, seed=1)

    def mean(a: Tensor, b: Tensor, same: bool) -> float:
        values = [
            math.exp(-float((u - v).square().sum()) / 2)
            for i, u in enumerate(a)
            for j, v in enumerate(b)
            if not (same and unbiased and i == j)
        ]
        return float(np.mean(values))

    want = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    got = mmd(x, y, gaussian_kernel(1.0), unbiased=unbiased)
    assert got.item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("unbiased", [True, False])
def test_energy_distance_is_twice_the_mmd_of_a_positive_kernel(unbiased: bool) -> None:
    """(eq:energy-mmd): k₀(x, y) = (‖x‖ + ‖y‖ − ‖x − y‖)/2."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x.norm(dim=1)[:, None] + y.norm(dim=1) + distance_kernel(x, y)) / 2

    x, y = randn(20, 4), 1 + randn(30, 4, seed=1)
    want = 2 * mmd(x, y, kernel, unbiased=unbiased)
    got = energy_distance(x, y, unbiased=unbiased)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("unbiased", [True, False])
def test_blocks_change_nothing(unbiased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = randn(50, 3), randn(41, 3, seed=1)
    whole = energy_distance(x, y, unbiased=unbiased)
    monkeypatch.setattr(metrics, "ROWS", 7)
    blocks = energy_distance(x, y, unbiased=unbiased)
    # ‖x − x‖ rounds to 1e-8, not to 0, and i = j counts when biased.
    torch.testing.assert_close(blocks, whole, rtol=1e-9, atol=0)


def test_a_far_origin_costs_no_accuracy() -> None:
    x, y = randn(100, 2), 1 + randn(100, 2, seed=1)
    near = energy_distance(x, y).item()
    assert energy_distance(x + 1e6, y + 1e6).item() == pytest.approx(near, abs=1e-7)


def test_single_precision_and_images_are_taken() -> None:
    x, y = randn(30, 1, 4, 4).float(), randn(30, 1, 4, 4, seed=1).float()
    flat = energy_distance(x.flatten(1).double(), y.flatten(1).double())
    assert energy_distance(x, y).dtype == torch.float64
    torch.testing.assert_close(energy_distance(x, y), flat)


def test_polynomial_kernel_separates_third_moments_only() -> None:
    """MMD² is a sum over monomials: here only x³ differs (by E X³ = 1)."""
    x = torch.tensor([[-1.0], [0.0], [0.0], [0.0], [0.0], [1.0]])
    mmd2 = mmd(x, x + 0, polynomial_kernel, unbiased=False)
    assert mmd2.item() == pytest.approx(0, abs=1e-14)
    a = torch.tensor([2.0, -1.0, -1.0])[:, None]  # E = 0, E² = 2, E³ = 2
    gap = mmd(a, -a, polynomial_kernel, unbiased=False).item()
    assert gap == pytest.approx((2 - -2) ** 2, rel=1e-12)


def test_polynomial_kernel_is_sklearns() -> None:
    x, y = randn(4, 3), randn(5, 3, seed=1)
    want = sklearn.metrics.pairwise.polynomial_kernel(x, y, degree=3, coef0=1)
    np.testing.assert_allclose(polynomial_kernel(x, y), want, rtol=1e-12)


def test_median_distance() -> None:
    x = torch.tensor([0.0, 1.0, 3.0])[:, None]  # distances 1, 2, 3
    assert median_distance(x) == 2
    many = torch.arange(6000.0)[:, None]
    assert median_distance(many) == pytest.approx(6000 * (1 - 0.5**0.5), rel=2e-3)


# The Fréchet distance.


def spread(n: int, d: int, seed: int) -> Tensor:
    mix = randn(d, d, seed=100 + seed)
    return randn(n, d, seed=seed) @ mix + seed


def test_frechet_distance_is_that_of_scipys_square_roots() -> None:
    """(eq:frechet-distance) with matrix square roots by Schur's method."""
    x, y = spread(200, 5, 0), spread(300, 5, 1)
    S1, S2 = (np.cov(t.numpy().T) for t in (x, y))
    root = scipy.linalg.sqrtm(S1 @ S2).real
    gap = (x.mean(0) - y.mean(0)).square().sum().item()
    want = gap + np.trace(S1 + S2 - 2 * root)
    assert frechet_distance(x, y).item() == pytest.approx(want, rel=1e-9)


def test_frechet_distance_of_singular_covariances() -> None:
    """With fewer points than dimensions: tr √· is the nuclear norm of AᵀB."""
    x, y = spread(6, 20, 0), spread(9, 20, 1)
    A, B = ((t - t.mean(0)) / (len(t) - 1) ** 0.5 for t in (x, y))
    cross = torch.linalg.svdvals(A @ B.T).sum()
    gap = (x.mean(0) - y.mean(0)).square().sum()
    want = gap + A.square().sum() + B.square().sum() - 2 * cross
    torch.testing.assert_close(frechet_distance(x, y), want, rtol=1e-6, atol=0)


def test_frechet_distance_sees_two_moments_only() -> None:
    """A coin has the moments of N(0, 1); the energy distance tells them apart."""
    coin = torch.tensor([-1.0, 1.0]).repeat(500)[:, None]
    z = randn(1000, 1)
    z = (z - z.mean()) / z.std() * coin.std()
    assert frechet_distance(coin, z).item() == pytest.approx(0, abs=1e-12)
    assert energy_distance(coin, z).item() > 0.1


def test_frechet_bias_of_gaussian_features() -> None:
    """(eq:frechet-bias): Var(uᵢuⱼ) = λᵢλⱼ(1 + δᵢⱼ), and n E F by simulation."""
    lam = torch.tensor([3.0, 1.0, 0.25])
    sums = lam[:, None] + lam
    pairs = torch.outer(lam, lam) * (1 + torch.eye(3)) / sums
    C = 2 * lam.sum() + pairs.sum()
    big = randn(200_000, 3) * lam.sqrt()
    assert frechet_bias(big).item() == pytest.approx(C.item(), rel=0.01)

    n = 1000

    def draw(seed: int) -> Tensor:
        x, y = randn(2, n, 3, seed=seed) * lam.sqrt()
        return n * frechet_distance(x, y)

    mean, se = replicates(n, 500, draw)
    assert abs(mean - C.item()) < 4 * se + 10 / n
    assert se < 0.03 * C.item()


def test_frechet_bias_ignores_directions_without_width() -> None:
    x = randn(500, 3)
    flat = torch.cat([x, torch.zeros(500, 2)], dim=1)
    assert frechet_bias(flat).item() == pytest.approx(frechet_bias(x).item(), rel=1e-10)


# The permutation test.


def mean_gap(x: Tensor, y: Tensor) -> Tensor:
    return (x.mean(0) - y.mean(0)).norm()


def test_p_is_uniform_under_one_law() -> None:
    """(eq:permutation-p): P(p ≤ k/20) = k/20 with 19 relabellings, no ties."""
    rng, times = generator(), 2000
    p = []
    for _ in range(times):
        z = torch.randn(15, 2, generator=rng)
        test = two_sample(z[:7], z[7:], mean_gap, permutations=19, rng=rng)
        p.append(test.p)
    ranks = (torch.tensor(p) * 20).round()
    counts = torch.bincount(ranks.long(), minlength=21)[1:]
    chi2 = ((counts - times / 20) ** 2 / (times / 20)).sum().item()
    assert chi2 < scipy.stats.chi2.ppf(0.9999, 19)
    assert counts.sum() == times


def test_p_is_small_for_two_laws() -> None:
    x, y = randn(40, 2), 1.5 + randn(40, 2, seed=1)
    test = two_sample(x, y, permutations=99, rng=generator())
    assert test.p == 0.01
    assert test.statistic == energy_distance(x, y).item()


def test_p_counts_ties_against_the_difference() -> None:
    """All points equal: every relabelling ties, so p = 1."""
    x = torch.ones(4, 1)
    assert two_sample(x, x, permutations=9, rng=generator()).p == 1


def test_the_test_is_a_function_of_its_rng() -> None:
    state = torch.get_rng_state()
    x, y = randn(20, 1), 0.5 + randn(20, 1, seed=1)
    a, b = (two_sample(x, y, permutations=50, rng=generator(3)) for _ in "ab")
    assert a == b
    assert torch.equal(torch.get_rng_state(), state)


# Likelihoods.


def test_nll_of_the_law_itself_is_its_entropy() -> None:
    law = StandardNormal(3)
    x = randn(20_000, 3)
    got = nll(law, x, batch=999)
    entropy = 1.5 * math.log(2 * math.pi * math.e)
    assert abs(got.mean - entropy) < 4 * got.se
    assert got.se == pytest.approx((1.5 / 20_000) ** 0.5, rel=0.05)


def test_parzen_log_prob_is_that_of_the_mixture() -> None:
    """(eq:parzen) is a mixture of equal Gaussians at the centres."""
    y, x, h = randn(30, 2), 3 * randn(50, 2, seed=1), 0.4
    covs = h**2 * torch.eye(2).expand(30, 2, 2)
    want = Mixture(y, covs).log_prob(x)
    torch.testing.assert_close(parzen_log_prob(x, y, h), want, rtol=1e-11, atol=1e-11)


def test_parzen_prefers_a_shrunken_model() -> None:
    """Of N(0, s²) the window h scores best at s² = 1 − h² (prop:parzen-trap)."""
    h, z = 0.6, randn(4000, 1)
    x = randn(4000, 1, seed=1)
    true, shrunken = (
        parzen_log_prob(x, s * z, h).mean() for s in (1.0, (1 - h**2) ** 0.5)
    )
    assert shrunken > true + 0.02


def test_copy_share() -> None:
    train, test = randn(200, 2), randn(200, 2, seed=1)
    assert copy_share(train[:50] + 1e-6, train, test) == 1
    assert copy_share(test[:50] + 1e-6, train, test) == 0
    shares = []
    for seed in range(60):
        x, a, b = randn(3, 100, 2, seed=10 + seed)
        shares.append(copy_share(x, a, b))
    se = float(np.std(shares)) / 60**0.5
    assert abs(np.mean(shares) - 0.5) < 4 * se < 0.05


# Features.


@pytest.mark.parametrize("side", [8, 28])
def test_features_are_what_the_head_reads(side: int) -> None:
    torch.manual_seed(0)
    net = Classifier(side)
    net.scale.fill_(3.0)
    images = torch.rand(25, 1, side, side, generator=generator())
    phi = features(net, images, batch=10)
    assert phi.shape == (25, 64)
    assert not phi.requires_grad
    torch.testing.assert_close(net.head(3 * phi), net(images))
    assert sum(4 * p.numel() for p in net.parameters()) <= 400_000


# Bad input.

X, BAD = torch.zeros(5, 2), torch.full((5, 2), math.nan)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: energy_distance(X, X[:, :1]), "y must have rows of shape"),
        (lambda: energy_distance(X[:1], X), "x must be"),
        (lambda: energy_distance(X, X[:1]), "y must be"),
        (lambda: energy_distance(X[:, 0], X[:, 0]), "x must be"),
        (lambda: frechet_distance(X, BAD), "y must be finite"),
        (lambda: frechet_bias(X[:1]), "x must be"),
        (lambda: gaussian_kernel(0.0), "bandwidth"),
        (lambda: parzen_log_prob(X, X, -1.0), "bandwidth"),
        (lambda: two_sample(X, X, permutations=0), "permutations"),
        (lambda: nll(line_mixture((0.0,)), X[:1, :1]), "x must hold"),
        (lambda: copy_share(X, X, X[:4]), "test must have 5 rows"),
        (lambda: Classifier(1), "side"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
