"""The exact laws: mass, samples, scores and posteriors against other truths."""

import itertools
import math
from collections.abc import Callable

import pytest
import scipy.integrate
import torch
from torch import Generator, Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pushforward.distributions import (
    Checkerboard,
    Gaussian,
    Law,
    Mixture,
    StandardNormal,
    TwoMoons,
    gauss_legendre,
    line_mixture,
    ring,
)

Box = tuple[float, int]  # half the side of a square, points along it


def skewed() -> Mixture:
    """Return three unequal Gaussians in R², none of them round."""
    means = torch.tensor([[-1.5, 0.0], [1.0, 1.0], [0.5, -1.2]])
    A = torch.tensor([[[0.6, 0], [0.3, 0.4]], [[0.3, 0], [-0.2, 0.7]]])
    A = torch.cat([A, torch.eye(2)[None] * 0.5])
    return Mixture(means, A @ A.mT, torch.tensor([0.5, 0.3, 0.2]))


# Each with a square, centred at 0, that holds it.
PLANE: dict[str, tuple[Callable[[], Law], Box]] = {
    "StandardNormal": (lambda: StandardNormal(2), (8, 201)),
    "Gaussian": (
        lambda: Gaussian(
            torch.tensor([0.5, -1.0]), torch.tensor([[1.0, 0.6], [0.6, 0.8]])
        ),
        (9, 301),
    ),
    "Mixture": (skewed, (9, 401)),
    "ring": (lambda: ring(), (4, 161)),
    "Checkerboard": (lambda: Checkerboard(), (2.5, 401)),
    "TwoMoons": (lambda: TwoMoons(0.2), (3.5, 71)),
}
MIXTURES = ("Gaussian", "Mixture", "ring")


@pytest.fixture(params=PLANE)
def plane(request: pytest.FixtureRequest) -> tuple[Law, Box]:
    make, box = PLANE[request.param]
    return make(), box


def midpoints(half: float, n: int) -> tuple[Tensor, float]:
    """Return the midpoints (n, n, 2) of a grid of squares, and a square's area."""
    h = 2 * half / n
    side = -half + h * (torch.arange(n) + 0.5)
    return torch.cartesian_prod(side, side).reshape(n, n, 2), h * h


def quadrature(law: Law, half: float, n: int) -> Tensor:
    """Return the mass in each small square, (n, n)."""
    x, area = midpoints(half, n)
    return law.log_prob(x.reshape(-1, 2)).exp().reshape(n, n) * area


def test_the_density_has_mass_one(plane: tuple[Law, Box]) -> None:
    law, (half, n) = plane
    if isinstance(law, Checkerboard):
        n = 400  # so that no small square is half black
    mass = quadrature(law, half, n).sum().item()
    assert mass == pytest.approx(1, abs=1e-9)


def test_samples_follow_the_density(plane: tuple[Law, Box], rng: Generator) -> None:
    """χ² over a 10 × 10 board: within 4 deviations of its mean."""
    law, (half, _) = plane
    n, cells = 20_000, 10
    fine = quadrature(law, half, 10 * cells * (1 if isinstance(law, TwoMoons) else 4))
    k = len(fine) // cells
    expected = n * fine.reshape(cells, k, cells, k).sum((1, 3)).flatten()
    x = law.sample(n, rng=rng)
    assert x.shape == (n, 2)
    column = ((x + half) / (2 * half) * cells).floor().long().clamp(0, cells - 1)
    counts = torch.bincount(column[:, 0] * cells + column[:, 1], minlength=cells**2)
    keep = expected >= 5
    rest = torch.stack([counts[~keep].sum(), expected[~keep].sum()])
    assert (rest[0] - rest[1]).abs() <= 4 * rest[1].sqrt() + 4
    chi2 = ((counts - expected)[keep] ** 2 / expected[keep]).sum().item()
    dof = int(keep.sum()) - 1
    assert chi2 < dof + 4 * math.sqrt(2 * dof)


def test_samples_have_the_moments_of_the_density(
    plane: tuple[Law, Box], rng: Generator
) -> None:
    """Means of x and xxᵀ within 4 standard errors of quadrature."""
    law, (half, n) = plane
    mass = quadrature(law, half, 400 if isinstance(law, Checkerboard) else n)
    x, _ = midpoints(half, len(mass))
    products = lambda x: torch.stack(
        [x[..., 0], x[..., 1], x[..., 0] ** 2, x[..., 0] * x[..., 1], x[..., 1] ** 2]
    ).flatten(1)
    exact = products(x) @ mass.flatten()
    if isinstance(law, Checkerboard):
        exact[2:] += torch.tensor([1.0, 0, 1]) * (2 * half / 400) ** 2 / 12
    values = products(law.sample(50_000, rng=rng))
    se = values.std(1) / values.shape[1] ** 0.5
    assert ((values.mean(1) - exact).abs() < 4 * se).all()


def test_samples_have_the_entropy_of_the_density(
    plane: tuple[Law, Box], rng: Generator
) -> None:
    """The mean of log p within 4 errors of ∫ p log p: it sees a width off by 5 %."""
    law, (half, n) = plane
    mass = quadrature(law, half, 400 if isinstance(law, Checkerboard) else n)
    log_p = law.log_prob(midpoints(half, len(mass))[0].reshape(-1, 2))
    exact = (mass.flatten() * log_p)[mass.flatten() > 0].sum()
    values = law.log_prob(law.sample(20_000, rng=rng))
    assert (values.mean() - exact).abs() < 4 * values.std() / 20_000**0.5 + 1e-9


def test_sampling_is_a_function_of_the_rng(plane: tuple[Law, Box]) -> None:
    law, _ = plane
    state = torch.get_rng_state()
    x, y = (law.sample(50, rng=Generator().manual_seed(1)) for _ in "xy")
    assert torch.equal(x, y)
    assert x.dtype == torch.float64
    assert torch.equal(torch.get_rng_state(), state), "the global state was used"
    assert not torch.equal(x, law.sample(50, rng=Generator().manual_seed(2)))


@pytest.mark.parametrize("name", PLANE)
def test_single_precision_is_kept(name: str, rng: Generator) -> None:
    law = PLANE[name][0]().float()  # type: ignore[attr-defined]
    x = law.sample(64, rng=rng)
    assert x.dtype == torch.float32
    double = PLANE[name][0]().log_prob(x.double())
    torch.testing.assert_close(law.log_prob(x).double(), double, rtol=1e-4, atol=1e-4)


def test_every_law_has_the_two_verbs(plane: tuple[Law, Box]) -> None:
    assert isinstance(plane[0], Law)


@pytest.mark.parametrize("name", MIXTURES)
def test_mixture_density_against_torch_distributions(name: str, rng: Generator) -> None:
    law = PLANE[name][0]()
    assert isinstance(law, Mixture)
    x, sigma = 2 * torch.randn(200, 2, generator=rng), 0.7
    for s in (0.0, sigma):
        parts = MultivariateNormal(law.means, law.covs + s**2 * torch.eye(2))
        truth = MixtureSameFamily(Categorical(logits=law.log_weights), parts)
        torch.testing.assert_close(law.log_prob(x, s), truth.log_prob(x))


@pytest.mark.parametrize("sigma", [0.0, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("name", MIXTURES)
def test_score_is_the_gradient(name: str, sigma: float, rng: Generator) -> None:
    """∇ log p_σ(x) against automatic differentiation."""
    law = PLANE[name][0]()
    assert isinstance(law, Mixture)
    x = (3 * torch.randn(100, 2, generator=rng)).requires_grad_()
    (grad,) = torch.autograd.grad(law.log_prob(x, sigma).sum(), x)
    torch.testing.assert_close(law.score(x, sigma), grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0])
def test_posterior_mean_and_noised_density_by_quadrature(sigma: float) -> None:
    """E[x₀ | x_σ = x] and p_σ(x), integrated over x₀ against the noise."""
    law, at = skewed(), torch.tensor([[0.3, -0.5], [-2.0, 1.0], [4.0, 4.0]])
    mass = quadrature(law, 9, 601).flatten()
    x0 = midpoints(9, 601)[0].reshape(-1, 2)
    sq = torch.cdist(at, x0) ** 2
    kernel = (-sq / (2 * sigma**2)).exp() / (2 * math.pi * sigma**2)
    density = kernel @ mass
    torch.testing.assert_close(law.log_prob(at, sigma), density.log())
    mean = (kernel * mass) @ x0 / density[:, None]
    torch.testing.assert_close(law.posterior_mean(at, sigma), mean)


@pytest.mark.parametrize("name", MIXTURES)
def test_mean_and_covariance_by_quadrature(name: str) -> None:
    make, (half, n) = PLANE[name]
    law = make()
    assert isinstance(law, Mixture)
    mass, x = quadrature(law, half, n).flatten(), midpoints(half, n)[0].reshape(-1, 2)
    mean = mass @ x
    cov = (mass * (x - mean).T) @ (x - mean)
    torch.testing.assert_close(law.mean(), mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(law.cov(), cov, rtol=1e-8, atol=1e-8)


def test_two_moons_against_adaptive_quadrature() -> None:
    """The density at the least noise that the docstring promises."""
    s, law = 0.05, TwoMoons(0.05)
    for x in ([0.5, -0.25], [-0.5, 0.8], [0.0, 0.0], [0.47, 0.02], [-1.5, -0.3]):

        def integrand(u: float, x: list[float] = x) -> float:
            a, b = math.cos(math.pi * u) - 0.5, math.sin(math.pi * u) - 0.25
            sq = (x[0] - a) ** 2 + (x[1] - b) ** 2
            rq = (x[0] + a) ** 2 + (x[1] + b) ** 2
            bells = math.exp(-sq / (2 * s * s)) + math.exp(-rq / (2 * s * s))
            return bells / (4 * math.pi * s * s)

        points = torch.linspace(0, 1, 41).tolist()
        exact = sum(
            scipy.integrate.quad(integrand, a, b, epsabs=1e-15, epsrel=1e-12)[0]
            for a, b in itertools.pairwise(points)
        )
        found = law.log_prob(torch.tensor([x])).exp().item()
        assert found == pytest.approx(exact, rel=1e-9, abs=1e-12)


def test_gauss_legendre_integrates_polynomials() -> None:
    """Exact up to degree 2·nodes − 1."""
    t, w = gauss_legendre(6)
    for degree in range(12):
        exact = 2 / (degree + 1) if degree % 2 == 0 else 0
        assert (w * t**degree).sum().item() == pytest.approx(exact, abs=1e-13)


def test_checkerboard_is_uniform_on_eight_squares() -> None:
    law = Checkerboard(4.0)  # squares of side 2
    assert law.log_prob(torch.tensor([[-3.0, -3.0]])).exp().item() == 1 / 32
    white = torch.tensor([[-1.0, -3.0], [5.0, 1.0], [-4.1, 0.0]])
    assert (law.log_prob(white) == -torch.inf).all()


def test_standard_normal_on_images(rng: Generator) -> None:
    law = StandardNormal(1, 4, 4)
    z = law.sample(7, rng=rng)
    assert z.shape == (7, 1, 4, 4)
    exact = torch.distributions.Normal(0, 1).log_prob(z).sum((1, 2, 3))
    torch.testing.assert_close(law.log_prob(z), exact)


def test_line_mixture_is_on_the_line() -> None:
    law = line_mixture((-1.0, 2.0), 0.5, (1.0, 3.0))
    assert law.mean().item() == pytest.approx(-0.25 + 1.5)
    assert law.cov().item() == pytest.approx(0.25 + 9 * 0.25 * 0.75)


def test_weights_are_normalised_and_rounded_covariances_accepted() -> None:
    """V diag(λ) Vᵀ is symmetric only up to rounding; it is a covariance."""
    V = torch.linalg.qr(torch.arange(16.0).reshape(4, 4).sin())[0]
    cov = V @ torch.diag(torch.tensor([0.1, 0.7, 1.3, 2.9])) @ V.T
    law = Mixture(torch.zeros(2, 4), torch.stack([cov, cov]), torch.tensor([1.0, 3.0]))
    assert torch.equal(law.covs, law.covs.mT)
    torch.testing.assert_close(law.log_weights.exp(), torch.tensor([0.25, 0.75]))


EYE = torch.eye(2, dtype=torch.float64)
ZERO = torch.zeros(1, 2, dtype=torch.float64)
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "no shape": (lambda: StandardNormal(), "shape must be positive"),
    "size": (lambda: StandardNormal(2, 0), "shape must be positive"),
    "z": (lambda: StandardNormal(2).log_prob(torch.zeros(3, 4)), "z must have shape"),
    "means": (lambda: Mixture(torch.zeros(2), EYE[None]), "means must be"),
    "integers": (lambda: Mixture(ZERO.long(), EYE[None]), "means must be"),
    "covs": (lambda: Mixture(ZERO, EYE), "covs must be"),
    "asymmetric": (
        lambda: Gaussian(ZERO[0], torch.tensor([[1.0, 0.5], [0.0, 1.0]])),
        "covs must be symmetric",
    ),
    "indefinite": (lambda: Gaussian(ZERO[0], -EYE), "covs must be symmetric"),
    "nan": (lambda: Gaussian(ZERO[0], EYE * math.nan), "covs must be symmetric"),
    "weights": (
        lambda: Mixture(ZERO, EYE[None], torch.tensor([-1.0])),
        "weights must be 1 positive",
    ),
    "infinite": (
        lambda: Mixture(ZERO, EYE[None], torch.tensor([math.inf])),
        "weights must be 1 positive",
    ),
    "x": (lambda: skewed().log_prob(torch.zeros(3)), "x must have shape"),
    "score": (lambda: skewed().score(torch.zeros(3, 1)), "x must have shape"),
    "board": (lambda: Checkerboard().log_prob(torch.zeros(3, 1)), "x must have"),
    "side": (lambda: Checkerboard(-1.0), "r must be positive"),
    "radius": (lambda: ring(r=0.0), "r must be positive"),
    "spread": (lambda: ring(s=math.nan), "s must be positive"),
    "line": (lambda: line_mixture((0.0,), -1.0), "s must be positive"),
    "moons": (lambda: TwoMoons(0.0), "s must be positive"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
