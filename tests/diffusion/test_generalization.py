"""book/diffusion/generalization.md, where the best denoiser is known in closed form."""

import math

import pytest
import torch
from torch import Generator, Tensor

from pushforward.diffusion import (
    BiasFree,
    Rescale,
    adaptive_basis,
    c_alpha_images,
    cosine_shares,
    denoiser_jacobian,
    disk_images,
    exact_denoiser,
    filtered_noise,
    kl_from_excess,
    linear_denoiser,
    model_variance,
    psnr,
    psnr_slope,
    shrinkage_error,
)
from pushforward.diffusion.score import Denoiser
from pushforward.distributions import Mixture


def mixture() -> Mixture:
    means = torch.tensor([[2.0, 0.0, 1.0], [-1.0, 1.5, 0.0]])
    covs = torch.stack([torch.diag(torch.tensor([0.3, 0.1, 0.2])), 0.4 * torch.eye(3)])
    covs[0, 0, 1] = covs[0, 1, 0] = 0.1
    return Mixture(means, covs, torch.tensor([0.6, 0.4]))


def net(width: int = 4) -> BiasFree:
    """A network whose running sizes are not one."""
    torch.manual_seed(0)
    f = BiasFree(width=width, levels=2)
    f(torch.randn(6, 1, 8, 8))
    return f.eval()


# A network without additive constants


@pytest.mark.parametrize("a", [1e-3, 0.3, 7.0, 1e4])
def test_a_bias_free_network_is_homogeneous(a: float, rng: Generator) -> None:
    f, y = net(), torch.randn(5, 1, 8, 8, generator=rng)
    torch.testing.assert_close(f(a * y), a * f(y), rtol=1e-11, atol=0)
    assert (f(-y) + f(y)).norm() > 1e-3 * f(y).norm()  # positively only


def test_it_is_its_own_jacobian(rng: Generator) -> None:
    """(eq:gen-expansion), the Jacobian by finite differences."""
    f, y = net(), torch.randn(2, 1, 8, 8, generator=rng)
    J, h = denoiser_jacobian(f, y), 1e-7
    torch.testing.assert_close((J @ y.flatten(1)[..., None])[..., 0], f(y).flatten(1))
    bumps = torch.eye(64).view(64, 1, 8, 8) * h
    slopes = (f(y[1] + bumps) - f(y[1] - bumps)).flatten(1) / (2 * h)
    torch.testing.assert_close(J[1], slopes.T, rtol=0, atol=1e-6)


def test_the_level_is_not_looked_at(rng: Generator) -> None:
    f, y = net(), torch.randn(2, 1, 8, 8, generator=rng)
    assert torch.equal(f(y), f(y, torch.tensor(0.3)))


def test_sides_at_every_level_return(rng: Generator) -> None:
    f = BiasFree(3, width=2, levels=3, convs=1)
    assert f(torch.randn(2, 3, 8, 12, generator=rng)).shape == (2, 3, 8, 12)
    assert not [k for k in f.state_dict() if "bias" in k]


def test_rescaling_subtracts_no_mean(rng: Generator) -> None:
    x = 5 + torch.randn(50, 2, 4, 4, generator=rng)
    layer = Rescale(2)
    y = layer(x)
    torch.testing.assert_close(
        y.square().mean((0, 2, 3)), torch.ones(2), rtol=1e-7, atol=0
    )
    ratio = (y / x).amax((0, 2, 3)) - (y / x).amin((0, 2, 3))
    torch.testing.assert_close(ratio, torch.zeros(2))
    rms = x.square().mean((0, 2, 3)).sqrt()
    torch.testing.assert_close(layer.size.flatten(), 0.9 + 0.1 * rms)
    layer.eval()
    torch.testing.assert_close(layer(x), x / layer.size)
    before = layer.size.clone()
    layer(x)
    assert torch.equal(layer.size, before)


# Its Jacobian


def at(D: Denoiser, sigma: float):  # noqa: ANN201 - a denoiser of one level
    return lambda y: D(y, torch.tensor(sigma))


def test_the_best_jacobian_is_a_covariance(rng: Generator) -> None:
    """σ⁻² Cov[x | y], the covariance by quadrature over x."""
    law, sigma = mixture(), 0.5
    y = torch.tensor([[0.6, 0.7, 0.4]])
    J = denoiser_jacobian(at(exact_denoiser(law), sigma), y)[0]
    axis = torch.linspace(-5, 5, 101)
    x = torch.cartesian_prod(axis, axis, axis)
    w = (law.log_prob(x) - (x - y).square().sum(1) / (2 * sigma**2)).softmax(0)
    c = x - w @ x
    torch.testing.assert_close(J, (w * c.T) @ c / sigma**2, rtol=0, atol=1e-9)
    assert torch.linalg.eigvalsh(J).min() > 0


def test_chunks_change_nothing(rng: Generator) -> None:
    f, y = net(), torch.randn(2, 1, 8, 8, generator=rng)
    torch.testing.assert_close(
        denoiser_jacobian(f, y, chunk=5), denoiser_jacobian(f, y)
    )


def test_the_basis_of_a_linear_map_is_that_of_its_matrix(rng: Generator) -> None:
    B = torch.randn(4, 4, generator=rng)
    lam, Q = torch.tensor([0.9, 0.5, 0.2, -0.1]), torch.linalg.qr(B).Q
    A = Q @ torch.diag(lam) @ Q.T
    y = torch.randn(1, 2, 2, generator=rng)
    found = adaptive_basis(lambda x: (x.flatten(1) @ A.T).view_as(x), y)
    torch.testing.assert_close(found.values, lam)
    assert found.vectors.shape == (4, 1, 2, 2)
    overlap = (found.vectors.flatten(1) @ Q).abs()
    torch.testing.assert_close(overlap, torch.eye(4), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        found.coefficients(y).square().sum(), y.square().sum(), rtol=1e-12, atol=0
    )
    assert max(found.asymmetry, found.affinity) < 1e-14


def test_certificates_see_a_turn_and_a_constant() -> None:
    turn = torch.tensor([[1.0, 0.5], [-0.5, 1.0]])
    found = adaptive_basis(lambda x: x @ turn.T + 2, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(found.values, torch.ones(2))  # of the symmetric part
    assert found.asymmetry == pytest.approx(0.5)
    expected = math.sqrt(8) / math.hypot(1 + 2, -0.5 + 2)
    assert found.affinity == pytest.approx(expected)


# Errors, and what they say


@pytest.mark.parametrize("v", [0.2, 0.6, 3.0])
def test_the_lost_error_of_a_gaussian_is_its_divergence(v: float) -> None:
    """(eq:gen-kl) with equality: data N(0, 1), denoiser that of N(0, v)."""
    s = torch.logspace(-5, 5, 4001)
    lack = (v / (v + s**2) - 1 / (1 + s**2)).square() * (1 + s**2)
    kl = (1 / v - 1 + math.log(v)) / 2
    assert float(kl_from_excess(s, lack)) == pytest.approx(kl, abs=1e-6)


def test_the_best_factors_are_best() -> None:
    """(eq:gen-shrinkage) is the least of Σ (1 − λ)² c² + λ² σ², found on a grid."""
    c, sigma = torch.tensor([0.1, 0.5, 2.0, 0.0]), torch.tensor([0.3, 1.0])
    lam = torch.linspace(0, 1, 100_001)[:, None]
    found = shrinkage_error(c, sigma)
    for s, value in zip(sigma, found, strict=True):
        grid = (1 - lam).square() * c.square() + lam.square() * s**2
        torch.testing.assert_close(value, grid.amin(0).sum(), rtol=0, atol=1e-9)


def test_the_error_is_between_half_and_all_of_the_minima(rng: Generator) -> None:
    c, sigma = torch.randn(500, generator=rng), torch.logspace(-2, 2, 9)
    least = torch.minimum(c.square(), sigma.square()[:, None]).sum(1)
    ratio = shrinkage_error(c, sigma) / least
    assert ((ratio >= 0.5) & (ratio <= 1)).all()


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_power_laws_have_the_error_of_the_theorem(alpha: float) -> None:
    """(eq:gen-slope): C σ^{2α/(α+1)} − σ² ≤ error ≤ C σ^{2α/(α+1)}."""
    c = torch.arange(1, 400_001).double() ** (-(alpha + 1) / 2)
    sigma = torch.logspace(-2, -0.5, 5)
    angle = math.pi / (alpha + 1)
    top = angle / math.sin(angle) * sigma ** (2 * alpha / (alpha + 1))
    error = shrinkage_error(c, sigma)
    rest = c[-1] ** 2 * len(c)  # what the sum over k > 400 000 can be
    assert (error <= top).all()
    assert (error + rest >= top - sigma**2).all()


def test_slopes_of_powers_are_exact() -> None:
    sigma = torch.tensor([0.01, 0.05, 0.2, 0.3])
    for slope in (0.0, 0.5, 1.0):
        mse = 3.7 * sigma ** (2 * slope)
        assert float(psnr_slope(sigma, mse)) == pytest.approx(slope, abs=1e-12)
    assert float(psnr(torch.tensor(0.01))) == pytest.approx(20.0)


# Two models of one law


def test_the_linear_denoiser_is_least_squares(rng: Generator) -> None:
    """The best matrix for given data and all noises: ridge regression on x + σ z."""
    x = torch.randn(7, 3, generator=rng)
    A = linear_denoiser(x, 0.4).requires_grad_()
    noise = 0.16 * len(x) * A.square().sum()  # E over z of ‖A σ z‖², summed over rows
    ((x @ A.T - x).square().sum() + noise).backward()
    torch.testing.assert_close(A.grad, torch.zeros(3, 3), rtol=0, atol=1e-12)


def test_the_variance_between_models_falls_as_one_over_n(rng: Generator) -> None:
    """(eq:gen-variance), by simulation: N E‖A y − B y‖² at a large N."""
    lam, sigma, n, trials = torch.tensor([1.0, 0.5, 0.05, 0.002]), 0.3, 1000, 1500
    total = torch.diag(lam + sigma**2)
    found = []
    for _ in range(trials):
        x, y = torch.randn(2, n, 4, generator=rng) * lam.sqrt()
        gap = linear_denoiser(x, sigma) - linear_denoiser(y, sigma)
        found.append(n * (gap @ total @ gap.T).trace())
    each = torch.stack(found)
    error = float(each.mean() - model_variance(lam, sigma))
    assert abs(error) < 4 * float(each.std()) / trials**0.5
    assert float(each.std()) / trials**0.5 < 0.02 * float(each.mean())


def test_one_coordinate_by_hand() -> None:
    """d = 1: A = S/(S + σ²), S ≈ λ + √(2/N) λ z, so N E(A − B)² y² → 4 λ²σ⁴/(λ+σ²)³."""
    found = model_variance(torch.tensor([2.0]), 1.0)
    assert float(found) == pytest.approx(4 * 4 / 27)


def test_shares_of_known_pairs() -> None:
    centre = torch.tensor([1.0, 1.0])
    turn = lambda angle: centre + torch.tensor([math.cos(angle), math.sin(angle)])
    a = torch.stack([turn(0.0), turn(1.0), turn(2.0)])
    b = torch.stack([turn(0.1), turn(1.0 + math.pi), 3 * turn(2.0) - 2 * centre])
    train = torch.stack([turn(0.3), turn(4.0)])
    found = cosine_shares(a, b, train, centre=centre)
    assert found.agree == pytest.approx((math.cos(0.1) - 1 + 1) / 3)
    assert found.same == pytest.approx(2 / 3)
    near = [math.cos(0.3), math.cos(0.7), max(math.cos(1.7), math.cos(2.0))]
    assert found.nearest == pytest.approx(sum(near) / 3)
    assert found.copies == pytest.approx(1 / 3)


# Images of known regularity


@pytest.mark.parametrize(("shape", "decay"), [((64,), 1.5), ((24, 24), 2.0)])
def test_filtered_noise_has_its_spectrum(
    shape: tuple[int, ...], decay: float, rng: Generator
) -> None:
    """(eq:gen-filter): E|x̂_ω|² ∝ max(|ω|, 1)^(−2 decay), and a variance of one."""
    x = filtered_noise(4000, shape, decay, rng=rng)
    assert x.square().mean() == pytest.approx(1.0, abs=0.06)
    power = torch.fft.fftn(x, dim=tuple(range(1, x.ndim))).abs().square().mean(0)
    whole = [torch.fft.fftfreq(s, 1 / s) for s in shape]
    size = torch.stack(torch.meshgrid(*whole, indexing="ij")).square().sum(0).sqrt()
    ratio = power * size.clamp(min=1) ** (2 * decay)
    torch.testing.assert_close(
        ratio / ratio.mean(), torch.ones(shape), rtol=0.15, atol=0
    )


def test_c_alpha_images_are_two_ranges_and_one_edge(rng: Generator) -> None:
    x = c_alpha_images(50, 32, 3.0, background=4.0, rng=rng)
    assert x.shape == (50, 1, 32, 32)
    assert (x >= 0).all()
    assert (x <= 1).all()
    assert x.dtype == torch.get_default_dtype()
    step = x.diff(dim=2).abs().amax((1, 2))  # of a column: at the contour
    assert step.mean() > 0.2
    again = c_alpha_images(50, 32, 3.0, background=4.0, rng=Generator().manual_seed(1))
    same = c_alpha_images(50, 32, 3.0, background=4.0, rng=Generator().manual_seed(1))
    assert torch.equal(again, same)


def test_smoother_filters_make_smoother_images(rng: Generator) -> None:
    rough, smooth = (c_alpha_images(200, 16, a, rng=rng) for a in (1.0, 3.0))
    bend = [x.diff(n=2, dim=3).square().mean() for x in (rough, smooth)]
    assert bend[1] < 0.7 * bend[0]


def test_disks_have_the_area_of_disks(rng: Generator) -> None:
    """Of the mask, by its two grey values: the mean of an image is linear in them."""
    x = disk_images(400, 32, rng=Generator().manual_seed(3))
    u = torch.rand((5, 400, 1, 1), generator=Generator().manual_seed(3))[..., 0, 0]
    radius = 32 * (0.12 + 0.23 * u[0])
    area = math.pi * radius.square() / 32**2
    mean = x.mean((1, 2, 3))
    expected = u[4] + (u[3] - u[4]) * area
    torch.testing.assert_close(mean, expected, rtol=0, atol=4e-3)
    assert ((x >= 0) & (x <= 1)).all()
    edge = torch.cat([x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]], 2)
    assert (edge - u[4][:, None, None]).abs().mean() < 0.02


# Doors

y3: Tensor = torch.zeros(2, 3, dtype=torch.float64)
three: Tensor = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
BAD = {
    "channels": lambda: BiasFree(width=0),
    "multiples of 4": lambda: BiasFree(width=2)(torch.zeros(1, 1, 6, 8)),
    "y must be": lambda: BiasFree(width=2)(torch.zeros(1, 8, 8)),
    "y must be real": lambda: denoiser_jacobian(lambda y: y, torch.zeros(3)),
    "y must be finite": lambda: denoiser_jacobian(lambda y: y, y3 / 0),
    "f must keep": lambda: denoiser_jacobian(lambda y: y[:, :2], y3),
    "sigma must": lambda: linear_denoiser(y3, 0.0),
    "x must have shape": lambda: linear_denoiser(torch.zeros(2, 3, 1), 1.0),
    "lam must": lambda: model_variance(-three, 1.0),
    "sigmas, excess": lambda: kl_from_excess(three, three[:2]),
    "sigmas must be positive and rising": lambda: kl_from_excess(three.flip(0), three),
    "mse must be finite": lambda: psnr_slope(three, three / 0),
    "mse must be positive": lambda: psnr(-three),
    "c, sigmas": lambda: shrinkage_error(y3, three),
    "sigmas must be positive, got": lambda: shrinkage_error(three, -three),
    "threshold": lambda: cosine_shares(y3 + 1, y3 + 1, y3, centre=y3[0], threshold=2),
    "b must": lambda: cosine_shares(y3, y3[:1], y3, centre=y3[0]),
    "train must": lambda: cosine_shares(y3 + 1, y3 + 1, y3[:, :2], centre=y3[0]),
    "n and shape": lambda: filtered_noise(1, (), 1.0),
    "decay": lambda: filtered_noise(1, (4,), -1.0),
    "size ≥ 2": lambda: c_alpha_images(1, 1, 1.0),
    "alpha, background": lambda: c_alpha_images(1, 8, 1.0, background=0.0),
    "size ≥ 8": lambda: disk_images(1, 4),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_what_makes_no_sense_is_said_so(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message]()
