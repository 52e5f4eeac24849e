"""book/diffusion/reproducibility.md, where the flow is known or can be followed.

Gaussians have it in closed form, two data on a line have theirs by one quadrature,
and the law of any finite set of data is a mixture that torch knows too.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from pushforward import ode
from pushforward.diffusion import (
    SDE,
    VE,
    VP,
    SubVP,
    cosine,
    empirical_denoiser,
    exact_denoiser,
    flow_bound,
    gaussian_flow,
    generalization_score,
    landing,
    level_flow,
    mae_score,
    marginal_score,
    nearest_similarity,
    ornstein_uhlenbeck,
    probability_flow,
    rp_score,
)
from pushforward.distributions import Gaussian, Mixture, ring

SDES = [VP(), SubVP(), VE(), ornstein_uhlenbeck(4.0)]


def levels(start: float, end: float, steps: int = 400) -> Tensor:
    return torch.linspace(math.log(start), math.log(end), steps + 1)


def follow(D: Any, x: Tensor, start: float, end: float, steps: int = 200) -> Tensor:
    """Where the flow of D takes x, by order four."""
    return ode.integrate(level_flow(D), x, levels(start, end, steps))


def gaussian(rng: Generator, d: int = 3) -> Gaussian:
    A = torch.randn(d, d, generator=rng)
    return Gaussian(torch.randn(d, generator=rng), A @ A.T + 0.1 * torch.eye(d))


# The flow


def test_the_flow_of_a_gaussian_is_its_closed_form(rng: Generator) -> None:
    """(eq:repro-flow) and (eq:repro-gaussian), both ways."""
    law = gaussian(rng)
    x = 3 * torch.randn(20, 3, generator=rng)
    D = exact_denoiser(law)
    for start, end in ((5.0, 0.01), (0.01, 5.0)):
        exact = gaussian_flow(law, x, start, end)
        torch.testing.assert_close(
            follow(D, x, start, end), exact, atol=1e-7, rtol=1e-7
        )


def test_the_flow_of_a_gaussian_carries_the_law(rng: Generator) -> None:
    """The map is affine, so its matrix must turn one covariance into the other."""
    law = gaussian(rng)
    eye, zero = torch.eye(3), torch.zeros(1, 3)
    start = law.covs[0] + 4 * eye
    A = (gaussian_flow(law, eye, 2.0, 0.5) - gaussian_flow(law, zero, 2.0, 0.5)).T
    torch.testing.assert_close(A @ start @ A.T, law.covs[0] + 0.25 * eye)
    torch.testing.assert_close(gaussian_flow(law, law.means, 2.0, 0.5), law.means)


@pytest.mark.parametrize("sde", SDES)
def test_every_linear_sde_has_one_map(sde: SDE, rng: Generator) -> None:
    """x_t/α_t is the flow in the noise level (eq:repro-sde), from its own score."""
    law = ring(3, s=0.5)
    high, low = torch.tensor(1.5), torch.tensor(0.05)
    y = 2 * torch.randn(10, 2, generator=rng)
    t, end = sde.time(high), sde.time(low)
    v = probability_flow(sde, marginal_score(sde, law))
    moved = ode.adaptive(v, sde.alpha(t) * y, float(t), float(end), tol=1e-9).x
    expected = follow(exact_denoiser(law), y, 1.5, 0.05)
    torch.testing.assert_close(moved / sde.alpha(end), expected, atol=1e-6, rtol=0)


# Errors


def test_the_bound_is_attained_by_a_constant_error_of_a_gaussian() -> None:
    """(eq:repro-bound), where the paths part along an axis."""
    law = Gaussian(torch.zeros(2), torch.diag(torch.tensor([4.0, 0.25])))
    D, off = exact_denoiser(law), torch.tensor([0.3, 0.0])
    sigmas = levels(3.0, 0.1, 1000).exp()
    x = torch.tensor([[1.0, 2.0], [-3.0, 0.5]])
    near = follow(D, x, 3.0, 0.1)
    far = follow(lambda x, s: D(x, s) + off, x + 2 * off, 3.0, 0.1)
    slopes = 4 / (4 + sigmas**2)
    bound = flow_bound(sigmas, slopes, torch.full((1001, 2), 0.3), start=0.6)
    torch.testing.assert_close(bound, (far - near).norm(dim=1), atol=1e-6, rtol=0)


def test_the_bound_holds_for_a_mixture(rng: Generator) -> None:
    """Slopes from the largest eigenvalue of the exact denoiser's derivative."""
    law = ring(3, s=0.6)
    D = exact_denoiser(law)

    def wrong(x: Tensor, sigma: Tensor) -> Tensor:
        return D(x, sigma) + 0.05 * torch.sin(2 * x.flip(1))

    grid = torch.cartesian_prod(*[torch.linspace(-6, 6, 25)] * 2)
    sigmas = levels(3.0, 0.3, 60).exp()
    slope = torch.func.vmap(torch.func.jacrev(lambda x, s: D(x[None], s)[0]), (0, None))
    slopes = torch.stack([torch.linalg.eigvalsh(slope(grid, s)).max() for s in sigmas])
    x = 3 * torch.randn(30, 2, generator=rng)
    s = sigmas.log()
    path = torch.stack([x, *ode.path(level_flow(wrong), x, s)])
    errors = torch.stack(
        [(wrong(y, u) - D(y, u)).norm(dim=1) for y, u in zip(path, sigmas, strict=True)]
    )
    apart = (path[-1] - ode.integrate(level_flow(D), x, s)).norm(dim=1)
    bound = flow_bound(sigmas, slopes, errors)
    assert (apart <= bound).all()
    assert apart.max() > 0.02


def test_without_error_or_slope_the_bound_is_a_plain_integral() -> None:
    """L = 1 keeps distances: ∫ e dσ/σ; L = 0 shrinks them by σ_end/σ_start."""
    sigmas = levels(2.0, 0.5, 1000).exp()
    one = torch.ones(1001)
    assert flow_bound(sigmas, one, 0.7 * one) == pytest.approx(0.7 * math.log(4))
    alone = flow_bound(sigmas, 0 * one, 0 * one, start=3.0)
    assert alone == pytest.approx(3.0 / 4)


# The law of finitely many data


def law_of(Y: Tensor, sigma: Tensor) -> torch.distributions.Distribution:
    rows = torch.distributions.Independent(torch.distributions.Normal(Y, sigma), 1)
    pick = torch.distributions.Categorical(logits=torch.zeros(len(Y)))
    return torch.distributions.MixtureSameFamily(pick, rows)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_the_denoiser_is_that_of_torchs_mixture(sigma: float, rng: Generator) -> None:
    """x + σ² ∇ log p_σ, by automatic differentiation (eq:empirical-denoiser)."""
    Y = torch.randn(7, 3, generator=rng)
    x = torch.randn(30, 3, generator=rng).requires_grad_()
    s = torch.tensor(sigma)
    (score,) = torch.autograd.grad(law_of(Y, s).log_prob(x).sum(), x)
    found = empirical_denoiser(Y, chunk=4)(x.detach(), s)
    torch.testing.assert_close(found, x.detach() + s**2 * score)


def test_the_denoiser_is_the_limit_of_narrow_gaussians(rng: Generator) -> None:
    Y = torch.randn(6, 2, generator=rng)
    narrow = Mixture(Y, 1e-10 * torch.eye(2).expand(6, 2, 2))
    x, sigma = torch.randn(40, 2, generator=rng), torch.rand(40, 1, generator=rng) + 0.1
    torch.testing.assert_close(
        empirical_denoiser(Y)(x, sigma), exact_denoiser(narrow)(x, sigma), atol=1e-7,
        rtol=0,
    )  # fmt: skip


def test_images_are_points_and_blocks_change_nothing(rng: Generator) -> None:
    Y, x = (torch.randn(n, 1, 3, 2, generator=rng) for n in (5, 9))
    sigma = torch.rand(9, 1, 1, 1, generator=rng) + 0.2
    flat = empirical_denoiser(Y.flatten(1))(x.flatten(1), sigma.flatten(1))
    found = empirical_denoiser(Y, chunk=2)(x, sigma)
    torch.testing.assert_close(found, flat.view_as(x))
    torch.testing.assert_close(found[3:4], empirical_denoiser(Y)(x[3:4], sigma[3]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_the_smallest_levels_it_is_the_nearest_datum(
    dtype: torch.dtype, rng: Generator
) -> None:
    Y = torch.randn(50, 64, generator=rng, dtype=dtype)
    x = torch.randn(200, 64, generator=rng, dtype=dtype)
    nearest = Y[torch.cdist(x, Y).argmin(1)]
    for sigma in (0.0, 1e-30, 1e-3):
        found = empirical_denoiser(Y)(x, torch.tensor(sigma, dtype=dtype))
        assert torch.equal(found, nearest)
    level = torch.tensor(0.0, dtype=dtype)
    torch.testing.assert_close(empirical_denoiser(Y)(Y, level), Y, atol=0, rtol=0)
    half = (Y[:1] + Y[1:2]) / 2
    pair = empirical_denoiser(Y[:2])(half, torch.tensor(1e-3, dtype=dtype))
    torch.testing.assert_close(pair, half, atol=0.02, rtol=0)


def test_at_large_levels_it_is_the_mean(rng: Generator) -> None:
    Y = torch.randn(50, 4, generator=rng)
    x = 1e4 * torch.randn(3, 4, generator=rng)
    found = empirical_denoiser(Y)(x, torch.tensor(1e4))
    torch.testing.assert_close(found, Y.mean(0).expand(3, 4), atol=1e-3, rtol=0)


def test_two_data_on_a_line_denoise_by_a_hyperbolic_tangent() -> None:
    x, s = torch.linspace(-2, 2, 41)[:, None], torch.tensor(0.6)
    found = empirical_denoiser(torch.tensor([[-1.0], [1.0]]))(x, s)
    torch.testing.assert_close(found, torch.tanh(x / s**2))


def test_it_forgets_the_other_data_exponentially(rng: Generator) -> None:
    """thm:memorisation, part 1: ‖D − y_i‖ ≤ Σ_j ‖y_j − y_i‖ e^{−gap_j/2σ²}."""
    Y, x = torch.randn(6, 2, generator=rng), torch.randn(300, 2, generator=rng)
    sq = torch.cdist(x, Y).square()
    i = sq.argmin(1)
    apart = torch.cdist(Y, Y)[i]
    for s in (0.1, 0.3, 1.0):
        miss = (empirical_denoiser(Y)(x, torch.tensor(s)) - Y[i]).norm(dim=1)
        gap = sq - sq.amin(1, keepdim=True)
        bound = (apart * (-gap / (2 * s**2)).exp()).sum(1)
        assert (miss <= bound + 1e-12).all()


# Landing


def test_what_is_captured_lands_where_it_must(rng: Generator) -> None:
    """(eq:repro-capture), against the flow itself."""
    Y, sigma = 3 * torch.randn(8, 2, generator=rng), 0.15
    x = Y.repeat(50, 1) + 0.5 * torch.randn(400, 2, generator=rng)
    there = landing(x, Y, sigma=sigma, chunk=50)
    end = follow(empirical_denoiser(Y), x, sigma, 1e-3)
    final = landing(end, Y, sigma=1e-3)
    sure = there.captured
    assert 50 < sure.sum() < 350
    assert torch.equal(there.datum[sure], final.datum[sure])
    assert final.captured[sure].all()
    assert (final.distance[sure] < 0.01).all()


def test_landing_finds_the_nearest_datum(rng: Generator) -> None:
    Y, x = (torch.randn(n, 1, 4, 4, generator=rng) for n in (9, 30))
    found = landing(x, Y, chunk=7)
    dense = (x[:, None] - Y).square().sum((2, 3, 4)).sqrt()
    torch.testing.assert_close(found.distance, dense.amin(1))
    assert torch.equal(found.datum, dense.argmin(1))
    assert landing(Y, Y).captured.all()


def test_capture_knows_the_room_around_a_datum() -> None:
    """A quarter of the way to the next datum, whatever copies there are."""
    Y = torch.tensor([[0.0], [1.0], [1.0]])
    x = torch.tensor([[0.24], [0.26], [0.76], [0.74], [0.5]])
    assert landing(x, Y, sigma=0.1).captured.tolist() == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert not landing(x, Y, sigma=0.6).captured.any()
    assert landing(torch.tensor([[9.0]]), Y[:1], sigma=5.0).captured.all()
    limit = 1 / math.sqrt(4 * math.log(4))  # e^{−1/4σ²} = ¼
    for factor in (0.999, 1.001):
        found = landing(Y[:1], Y[:2], sigma=factor * limit)
        assert found.captured.item() == (factor < 1)


def test_data_share_the_noise_equally(rng: Generator) -> None:
    """thm:memorisation, part 3: from p_σ each basin has the mass 1/n."""
    Y, n, s = torch.tensor([[-1.0, 0.0], [0.4, 0.0], [1.0, 0.3]]), 3000, 1.0
    i = torch.randint(3, (n,), generator=rng)
    x = Y[i] + s * torch.randn(n, 2, generator=rng)
    end = landing(follow(empirical_denoiser(Y), x, s, 0.01, steps=150), Y, sigma=0.01)
    share = torch.bincount(end.datum, minlength=3) / n
    assert ((share - 1 / 3).abs() < 4 * math.sqrt(2 / 9 / n)).all()
    assert end.captured.double().mean() > 0.999
    scaled = (end.distance / 0.01).square() / 2
    assert scaled.mean() == pytest.approx(1.0, abs=4 / math.sqrt(n))


# Scores


def test_scores_count_by_hand() -> None:
    """(eq:rp-score)."""
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [3.0, 4.0]])
    b = torch.tensor([[2.0, 0.0], [1.0, 1.0], [-1.0, 0.0], [4.0, 3.0]])
    exact = [1.0, 0.5**0.5, -1.0, 24 / 25]
    torch.testing.assert_close(cosine(a, b), torch.tensor(exact))
    shares = [rp_score(a, b, threshold=t) for t in (-1.0, 0.5, 0.9, 0.97, 1.0)]
    assert shares == [0.75, 0.75, 0.5, 0.25, 0.0]
    assert [mae_score(a, b, threshold=t) for t in (0.5, 0.6, 1.5)] == [0.0, 0.5, 1.0]
    near = nearest_similarity(a, b)
    torch.testing.assert_close(near, torch.tensor([1.0, 1.0, 1.0, 7 / 50**0.5]))
    assert generalization_score(a[3:], b, threshold=0.98) == 0.0
    assert generalization_score(a[3:], b, threshold=0.995) == 1.0


def test_a_centre_changes_the_angle(rng: Generator) -> None:
    a, b = torch.randn(2, 8, 1, 3, 3, generator=rng)
    c = torch.randn(1, 3, 3, generator=rng)
    dense = torch.nn.CosineSimilarity(0)
    exact = torch.stack(
        [dense((u - c).flatten(), (v - c).flatten()) for u, v in zip(a, b, strict=True)]
    )
    torch.testing.assert_close(cosine(a, b, centre=c), exact)


def test_nearest_similarity_is_that_of_all_pairs(
    rng: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the blocks, and whatever the similarity."""
    x, Y = torch.randn(5, 6, generator=rng), torch.randn(11, 6, generator=rng)
    exact = (
        torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(Y).T
    ).amax(1)
    for pairs in (1, 100, 2**22):
        monkeypatch.setattr("pushforward.diffusion.reproducibility.PAIRS", pairs)
        torch.testing.assert_close(nearest_similarity(x, Y), exact)
    closeness = nearest_similarity(x, Y, similarity=lambda a, b: -(a - b).norm(dim=1))
    torch.testing.assert_close(-closeness, torch.cdist(x, Y).amin(1))


def test_cosine_and_relative_distance(rng: Generator) -> None:
    """prop:repro-angle: ‖a − b‖ ≤ δ‖a‖ makes the cosine at least √(1 − δ²)."""
    a = torch.randn(2000, 4, generator=rng)
    delta = torch.rand(2000, generator=rng)
    turn = torch.nn.functional.normalize(torch.randn(2000, 4, generator=rng))
    b = a + (delta * a.norm(dim=1))[:, None] * turn
    assert (cosine(a, b) >= (1 - delta**2).sqrt() - 1e-12).all()


# Doors


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    return empirical_denoiser(ones(2, 3))(x, sigma)


def bound(sigmas: list[float], slopes: Tensor, errors: Tensor) -> Tensor:
    return flow_bound(torch.tensor(sigmas), slopes, errors)


ROUND = Gaussian(torch.zeros(2), torch.eye(2))
BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: empirical_denoiser(ones(0, 3)), r"Y must be .*n ≥ 1, got \(0, 3\)"),
    (lambda: empirical_denoiser(ones(3)), r"Y must be .*got \(3,\)"),
    (lambda: empirical_denoiser(ones(2, 3).long()), "Y must be real .*int64"),
    (lambda: empirical_denoiser(ones(2, 3) / 0), "Y must be finite"),
    (
        lambda: empirical_denoiser(ones(2, 3), chunk=0),
        "chunk must be at least 1, got 0",
    ),
    (
        lambda: denoise(ones(2, 4), ones()),
        r"x must have rows of shape \(3,\), got \(4,",
    ),
    (lambda: denoise(ones(2, 3).float(), ones()), "x must be torch.float64"),
    (
        lambda: denoise(ones(2, 3), ones(3, 1)),
        r"sigma must be .*\(2, 1\), got \(3, 1\)",
    ),
    (lambda: landing(ones(2, 4), ones(2, 3)), "x must have rows"),
    (lambda: landing(ones(0, 3), ones(2, 3)), "x must be"),
    (lambda: landing(ones(2, 3), ones(2, 3), sigma=-1.0), "sigma must be a level ≥ 0"),
    (lambda: cosine(ones(2, 3), ones(1, 3)), "b must have 2 rows like a, got 1"),
    (lambda: cosine(ones(2, 3), ones(2, 4)), r"b must have rows of shape \(3,\)"),
    (lambda: cosine(ones(2, 3), 0 * ones(2, 3)), "b must not equal the centre"),
    (lambda: cosine(ones(2, 3), ones(2, 3), centre=1.0), "a must not equal the centre"),
    (lambda: cosine(ones(2, 3) * math.nan, ones(2, 3)), "a must be finite"),
    (lambda: rp_score(ones(2, 3), ones(2, 3), threshold=1.5), r"threshold must .*1\.5"),
    (lambda: rp_score(ones(2, 3), ones(2, 3), threshold=math.nan), "threshold must"),
    (lambda: mae_score(ones(2, 3), ones(2, 3), threshold=0.0), "threshold must be pos"),
    (lambda: mae_score(ones(2, 3), ones(3, 3)), "b must have 2 rows like a, got 3"),
    (lambda: generalization_score(ones(2, 3), ones(2, 3), threshold=-2), "threshold"),
    (lambda: generalization_score(ones(2, 3), ones(0, 3)), "Y must be"),
    (lambda: nearest_similarity(ones(0, 3), ones(2, 3)), "x must be"),
    (
        lambda: gaussian_flow(ROUND, ones(1, 2), -1.0, 1.0),
        "start, end must be levels",
    ),
    (
        lambda: bound([1.0, 2.0], ones(2), ones(2)),
        "sigmas must be at least two falling",
    ),
    (lambda: bound([1.0, 0.0], ones(2), ones(2)), "sigmas must be positive"),
    (lambda: bound([2.0, 1.0], ones(3), ones(2)), "slopes, errors must have 2 rows"),
    (lambda: bound([2.0, 1.0], ones(2), -ones(2)), "errors, start must be distances"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_arguments_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_partial_similarity_is_a_similarity(rng: Generator) -> None:
    a, b = torch.randn(2, 50, 4, generator=rng)
    c = torch.full((4,), 3.0)
    like = partial(cosine, centre=c)
    share = (torch.nn.functional.cosine_similarity(a - 3, b - 3) > 0.8).double().mean()
    assert rp_score(a, b, threshold=0.8, similarity=like) == share
