"""book/diffusion/score.md, where posteriors, scores and losses are known exactly.

The truths compared with: the posterior by quadrature and as a Gaussian mixture of
its own, derivatives by automatic differentiation, the constants of the theorems by
quadrature, an autoencoder whose energy is that of a finite mixture, and Monte Carlo.
"""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor
from torch.func import jacrev, vmap

from pushforward.diffusion import (
    ScoreLadder,
    TiedAutoencoder,
    annealed_langevin,
    antithetic_loss,
    denoiser_covariance,
    denoising_loss,
    exact_denoiser,
    explicit_loss,
    implicit_loss,
    posterior_covariance,
    score,
    sliced_loss,
    sure,
)
from pushforward.distributions import Gaussian, Mixture, StandardNormal, line_mixture
from pushforward.nn import ResMLP, noise_like
from pushforward.objectives import line_rule, normal_rule
from pushforward.ode import signs_like

SIGMA = 0.5


def plane() -> Mixture:
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [0.0, -2.0]])
    covs = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.5, 0.0], [0.0, 0.1]],
                         [[0.2, -0.1], [-0.1, 0.4]]])  # fmt: skip
    return Mixture(means, covs, torch.tensor([0.5, 0.3, 0.2]))


def line() -> Mixture:
    means, covs = torch.tensor([[-2.0], [1.0]]), torch.tensor([[[0.25]], [[0.09]]])
    return Mixture(means, covs, torch.tensor([0.4, 0.6]))


def noised(law: Mixture, sigma: float = SIGMA) -> Mixture:
    """The law p_σ, as a mixture of its own."""
    return Mixture(law.means, law.noised(sigma), law.log_weights.exp())


def field(x: Tensor) -> Tensor:
    """A field that is no gradient, on R^d."""
    return torch.sin(x.roll(1, 1) + 0.3) - 0.4 * x


def agree(values: Tensor, exact: Tensor | float, bound: float = math.inf) -> None:
    """The mean is within 4 standard errors, which are no larger than a bound."""
    se = values.std() / len(values) ** 0.5
    assert abs(values.mean() - exact) < 4 * se
    assert se < bound


def by_quadrature(loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """E loss(X_0, Z) for the law on the line and Z ~ N(0, 1)."""
    data, noise = line_rule(line()), normal_rule()
    pairs = torch.cartesian_prod(data.x[:, 0], noise.x[:, 0])
    weights = torch.cartesian_prod(data.w, noise.w).prod(1)
    return weights @ loss(pairs[:, :1], pairs[:, 1:])


# The identities


@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0])
def test_the_denoiser_is_the_posterior_mean(sigma: float) -> None:
    """(eq:tweedie): the mean of the posterior by quadrature over x_0."""
    law, x = line(), torch.linspace(-4, 3, 15)[:, None]
    data = line_rule(law, normal_rule(4001))
    log_w = data.w.log() - (x - data.x.T).square() / (2 * sigma**2)  # (15, nodes)
    mean = log_w.softmax(1) @ data.x
    D = exact_denoiser(law)
    torch.testing.assert_close(D(x, torch.tensor(sigma)), mean, atol=1e-10, rtol=0)
    by_score = x + sigma**2 * noised(law, sigma).score(x)
    torch.testing.assert_close(mean, by_score, atol=1e-10, rtol=0)


def test_the_denoiser_in_the_plane_is_that_of_the_score(rng: Generator) -> None:
    """(eq:tweedie), with the score by automatic differentiation, row by row."""
    law, x = plane(), 2 * torch.randn(30, 2, generator=rng)
    for sigma in (0.01, 0.7, 20.0):
        point = x.clone().requires_grad_()
        (score,) = torch.autograd.grad(law.log_prob(point, sigma).sum(), point)
        found = exact_denoiser(law)(x, torch.tensor(sigma))
        torch.testing.assert_close(found, x + sigma**2 * score, atol=1e-10, rtol=0)
    s = torch.rand(30, 1, generator=rng) + 0.1
    rows = [exact_denoiser(law)(x[i : i + 1], s[i, 0]) for i in range(30)]
    torch.testing.assert_close(exact_denoiser(law)(x, s), torch.cat(rows))


def test_without_noise_the_denoiser_leaves_all_as_it_is(rng: Generator) -> None:
    x = torch.randn(5, 2, generator=rng)
    torch.testing.assert_close(exact_denoiser(plane())(x, torch.tensor(0.0)), x)


def test_the_posterior_covariance_three_ways(rng: Generator) -> None:
    """(eq:score-second): total covariance, Hessian of log p_σ, Jacobian of D."""
    law, x = plane(), 2 * torch.randn(40, 2, generator=rng)
    for sigma in (0.1, 0.6, 3.0):
        exact = posterior_covariance(law, x, sigma)
        log_p = noised(law, sigma).log_prob
        curve = vmap(jacrev(jacrev(lambda y, p=log_p: p(y[None])[0])))(x)
        by_hessian = sigma**2 * torch.eye(2) + sigma**4 * curve
        torch.testing.assert_close(by_hessian, exact, atol=1e-9, rtol=0)
        by_jacobian = denoiser_covariance(exact_denoiser(law), x, sigma)
        torch.testing.assert_close(by_jacobian, exact, atol=1e-9, rtol=0)
        assert torch.linalg.eigvalsh(exact).min() > 0


def test_the_posterior_covariance_by_quadrature() -> None:
    law, x = line(), torch.linspace(-4, 3, 15)[:, None]
    data = line_rule(law, normal_rule(4001))
    w = (data.w.log() - (x - data.x.T).square() / (2 * SIGMA**2)).softmax(1)
    var = w @ data.x.square() - (w @ data.x).square()
    found = posterior_covariance(law, x, SIGMA)
    torch.testing.assert_close(found[:, :, 0], var, atol=1e-10, rtol=0)


def test_the_covariance_of_images_is_that_of_their_pixels(rng: Generator) -> None:
    """Row i of the matrix is the gradient of pixel i; levels may differ by row."""
    A = torch.randn(6, 6, generator=rng)
    x, s = torch.randn(3, 1, 2, 3, generator=rng), torch.rand(3, 1, 1, 1) + 0.5

    def D(x: Tensor, sigma: Tensor) -> Tensor:
        return (x.flatten(1) @ A.T).view_as(x) + sigma

    expected = s.reshape(-1, 1, 1) ** 2 * A
    torch.testing.assert_close(denoiser_covariance(D, x, s), expected)
    constant = denoiser_covariance(lambda x, _: torch.ones_like(x), x, 1.0)
    assert torch.equal(constant, torch.zeros(3, 6, 6))


def test_the_least_error_has_three_names(rng: Generator) -> None:
    """MSE* = E tr Cov = σ² E tr ∂D/∂x = σ² d − σ⁴ I(p_σ), and SURE's mean."""
    n, law, D = 40_000, plane(), exact_denoiser(plane())
    x = law.sample(n, rng=rng)
    y = x + SIGMA * torch.randn(n, 2, generator=rng)
    s = torch.tensor(SIGMA)
    error = (D(y, s) - x).square().sum(1)
    trace = posterior_covariance(law, y, SIGMA).diagonal(dim1=1, dim2=2).sum(1)
    information = noised(law).score(y).square().sum(1)
    by_fisher = SIGMA**2 * 2 - SIGMA**4 * information
    estimate = sure(lambda y: D(y, s), y, SIGMA)
    for other in (trace, by_fisher, estimate):
        agree(error - other, 0.0, 0.01)


# The losses


PSIS = {
    "the identity": lambda x: -x,
    "a line": lambda x: 0.3 - 0.5 * x,
    "nothing": torch.zeros_like,
    "a wave": lambda x: torch.sin(2 * x) - x / 3,
}


@pytest.mark.parametrize("name", PSIS)
def test_denoising_and_explicit_losses_differ_by_a_constant(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(eq:dsm-loss): ½ (1/σ² − I(p_σ)), by quadrature over data and noise."""
    psi, p = PSIS[name], noised(line())

    def gap(x: Tensor, z: Tensor) -> Tensor:
        monkeypatch.setattr(score, "noise_like", lambda x, rng: z)
        return denoising_loss(psi, x, SIGMA) - explicit_loss(
            psi, p.score, x + SIGMA * z
        )

    rule = line_rule(p)
    constant = (1 / SIGMA**2 - rule.mean(lambda x: p.score(x).square())[0]) / 2
    torch.testing.assert_close(by_quadrature(gap), constant, atol=1e-9, rtol=0)
    assert float(constant) == pytest.approx(0.91122, abs=1e-5)


@pytest.mark.parametrize("name", PSIS)
def test_implicit_and_explicit_losses_differ_by_half_the_information(name: str) -> None:
    """(eq:score-implicit), by quadrature."""
    p, psi = noised(line()), PSIS[name]
    rule = line_rule(p)
    gap = rule.mean(lambda x: explicit_loss(psi, p.score, x) - implicit_loss(psi, x))
    half = rule.mean(lambda x: p.score(x).square())[0] / 2
    torch.testing.assert_close(gap, half, atol=1e-9, rtol=0)


def test_the_implicit_loss_has_the_divergence_of_the_field(rng: Generator) -> None:
    """(eq:score-implicit), with the whole Jacobian; on images too."""
    x = torch.randn(6, 1, 2, 2, generator=rng)
    flat = vmap(jacrev(lambda y: field(y[None])[0]))(x.flatten(1))
    trace = flat.diagonal(dim1=1, dim2=2).sum(1)
    square = field(x.flatten(1)).square().sum(1) / 2
    found = implicit_loss(lambda y: field(y.flatten(1)).view_as(y), x)
    torch.testing.assert_close(found, square + trace)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", [noise_like, signs_like])
def test_slices_are_unbiased_with_the_variance_that_is_claimed(
    exact: bool, kind: Callable[..., Tensor], rng: Generator
) -> None:
    """(eq:score-sliced): mean, and 2 (‖A‖² − Σ A_ii²) + (κ₄ − 1) Σ A_ii²."""
    n, x = 200_000, torch.tensor([[0.4, -1.1, 0.8]])
    J = jacrev(lambda y: field(y[None])[0])(x[0])
    A = (J + J.T) / 2 + (0 if exact else field(x).T @ field(x) / 2)
    kurtosis = 3.0 if kind is noise_like else 1.0
    square, own = A.square().sum(), A.diagonal().square().sum()
    variance = 2 * (square - own) + (kurtosis - 1) * own
    many = x.expand(n, -1)
    found = sliced_loss(field, many, kind(many, rng=rng), exact=exact)
    agree(found, implicit_loss(field, x)[0])
    agree((found - found.mean()).square(), variance)


def test_four_losses_have_one_gradient(rng: Generator) -> None:
    """In the scale of a field; the losses are parabolas in it, so by differences."""
    n, law, p = 100_000, plane(), noised(plane())
    x = law.sample(n, rng=rng)
    y = x + SIGMA * torch.randn(n, 2, generator=rng)
    v = signs_like(y, rng=rng)

    def losses(scale: float) -> list[Tensor]:
        psi = lambda x: scale * field(x)
        again = Generator().manual_seed(3)
        return [
            explicit_loss(psi, p.score, y), implicit_loss(psi, y),
            sliced_loss(psi, y, v), denoising_loss(psi, x, SIGMA, rng=again),
            antithetic_loss(psi, x, SIGMA, rng=again.manual_seed(4)),
        ]  # fmt: skip

    slopes = [(a - b) / 2 for a, b in zip(losses(2.0), losses(0.0), strict=True)]
    for other in slopes[1:]:
        agree(other - slopes[0], 0.0, 0.02)


def test_antithetic_noise_leaves_the_mean_and_takes_the_variance(
    rng: Generator,
) -> None:
    """Its mean is the denoising loss less d/(2σ²); (eq:score-antithetic) as σ → 0."""
    n, law = 100_000, plane()
    x = law.sample(n, rng=rng)
    plain = denoising_loss(field, x, SIGMA, rng=rng) - 2 / (2 * SIGMA**2)
    both = antithetic_loss(field, x, SIGMA, rng=rng)
    agree(plain - both, 0.0, 0.02)
    z = torch.randn(100, 2, generator=Generator().manual_seed(7))
    limit = sliced_loss(field, x[:100], z)
    near = antithetic_loss(field, x[:100], 1e-4, rng=Generator().manual_seed(7))
    torch.testing.assert_close(near, limit, atol=1e-6, rtol=0)


def test_the_denoising_gradient_blows_up_as_the_noise_fades(rng: Generator) -> None:
    """σ² Var → E‖f(x_0)‖² for the slope in the scale of a field f."""
    n, sigma = 200_000, 0.01
    x = plane().sample(n, rng=rng)
    a, b = (
        denoising_loss(
            lambda y, k=k: k * field(y), x, sigma, rng=Generator().manual_seed(1)
        )
        for k in (2.0, 0.0)
    )
    slope = (a - b) / 2
    limit = field(x).square().sum(1).mean()
    assert sigma**2 * slope.var() == pytest.approx(float(limit), rel=0.02)


@pytest.mark.parametrize("sigma", [0.3, 1.5])
def test_levels_may_differ_from_row_to_row(sigma: float, rng: Generator) -> None:
    x, s = torch.randn(4, 1, 2, 2, generator=rng), torch.full((4, 1, 1, 1), sigma)
    for loss in (denoising_loss, antithetic_loss):
        one, rows = (loss(torch.sin, x, level, rng=Generator().manual_seed(2))
                     for level in (sigma, s))  # fmt: skip
        torch.testing.assert_close(one, rows)
    torch.testing.assert_close(sure(torch.sin, x, sigma), sure(torch.sin, x, s))


def test_losses_can_be_differentiated_by_weights(rng: Generator) -> None:
    """∂/∂k of ½ k² ‖x‖² + k d, for ψ = k x."""
    k = torch.tensor(0.7, requires_grad=True)
    x = torch.randn(50, 3, generator=rng)
    for loss in (implicit_loss(lambda y: k * y, x),
                 sliced_loss(lambda y: k * y, x, signs_like(x, rng=rng))):  # fmt: skip
        (slope,) = torch.autograd.grad(loss.mean(), k)
        torch.testing.assert_close(slope, 0.7 * x.square().sum(1).mean() + 3)


# Stein's estimate


def test_sure_is_unbiased_for_every_point(rng: Generator) -> None:
    """(eq:score-sure), for one fixed x_0 and a map that is no posterior mean."""
    n, x0 = 200_000, torch.tensor([[1.0, -0.5, 2.0]])
    y = x0 + SIGMA * torch.randn(n, 3, generator=rng)
    error = (field(y) - x0).square().sum(1)
    agree(sure(field, y, SIGMA) - error, 0.0, 0.02)
    sliced = sure(field, y, SIGMA, signs_like(y, rng=rng))
    agree(sliced - error, 0.0, 0.02)


def test_sure_is_the_implicit_loss_in_other_units(rng: Generator) -> None:
    """2σ⁴ (½ ‖ψ‖² + div ψ) + d σ² for f = x + σ² ψ, point by point."""
    x = torch.randn(20, 3, generator=rng)
    found = sure(lambda y: y + SIGMA**2 * field(y), x, SIGMA)
    implicit = 2 * SIGMA**4 * implicit_loss(field, x) + 3 * SIGMA**2
    torch.testing.assert_close(found, implicit)


# The ladder


def test_the_walk_down_the_ladder_shares_out_the_weights(rng: Generator) -> None:
    """With the exact score; the walk at the last level alone gets them wrong."""
    law = line_mixture((-4.0, 4.0), 0.5, (0.2, 0.8))
    score = lambda x, s: law.score(x, float(s))
    start = 10 * torch.randn(1500, 1, generator=rng)
    sigmas = torch.logspace(1, -1, 16)
    right = annealed_langevin(score, start, sigmas, steps=30, rng=rng) > 0
    one = annealed_langevin(score, start, sigmas[-1:], steps=400, rng=rng) > 0
    assert right.double().mean() == pytest.approx(0.8, abs=0.07)
    assert one.double().mean() == pytest.approx(0.5, abs=0.06)


def test_a_long_walk_has_the_law_of_its_score(rng: Generator) -> None:
    """For N(m, v) the chain is linear: its variance is v/(1 − h/(2v))."""
    v, sigma, step = 0.3, 0.5, 0.2
    score = lambda x, s: (1.5 - x) / v
    x = annealed_langevin(score, torch.zeros(20_000, 1), torch.tensor([sigma]),
                          step=step, steps=200, rng=rng)  # fmt: skip
    agree(x, 1.5)
    agree((x - 1.5).square(), v / (1 - step * sigma**2 / (2 * v)))


def test_the_ladder_learns_the_denoiser(rng: Generator) -> None:
    """On a mixture the explicit loss, in units of 1/σ², is small at each level."""
    torch.manual_seed(0)
    law, sigmas = line_mixture((-1.0, 1.0), 0.3), torch.tensor([2.0, 0.7, 0.25])
    model = ScoreLadder(ResMLP(1, 32, 1), StandardNormal(1), sigmas)
    zero = model.loss(law.sample(20_000, rng=rng), rng=rng)
    assert float(zero.detach()) == pytest.approx(
        0.5, abs=0.03
    )  # s = 0 (eq:score-ladder)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(300):
        adam.param_groups[0]["lr"] = 1e-2 * (1 - step / 300)
        loss = model.loss(law.sample(256, rng=rng), rng=rng)
        adam.zero_grad()
        loss.backward()
        adam.step()
    for s in sigmas:
        y = law.sample(4000, rng=rng) + s * torch.randn(4000, 1, generator=rng)
        with torch.no_grad():
            miss = explicit_loss(lambda y, s=s: model.score(y, s),
                                 noised(law, float(s)).score, y).mean()  # fmt: skip
        assert s**2 * miss < 0.02
        D = model.denoise(y, s)
        torch.testing.assert_close(D, y + s**2 * model.score(y, s))


def test_the_ladder_weighs_each_level_by_its_square(rng: Generator) -> None:
    """(eq:score-ladder), drawn again from the same generator; images and points."""
    sigmas = torch.tensor([3.0, 0.5])
    net = lambda x, t: x * t
    model = ScoreLadder(torch.nn.Identity(), StandardNormal(1, 2, 2), sigmas)
    model.net.forward = net
    x = torch.randn(7, 1, 2, 2, generator=rng)
    found = model.loss(x, rng=Generator().manual_seed(5))
    again = Generator().manual_seed(5)
    s = sigmas[torch.randint(2, (7,), generator=again)].reshape(7, 1, 1, 1)
    z = torch.randn(7, 1, 2, 2, generator=again)
    y = x + s * z
    miss = y / (1 + s**2).sqrt() * s.log() + z
    torch.testing.assert_close(found, miss.square().sum() / 14)


def test_the_ladder_is_walked_down_and_denoised_at_its_foot() -> None:
    torch.manual_seed(0)
    net, sigmas = ResMLP(2, 8, 1), torch.tensor([2.0, 0.5])
    torch.nn.init.normal_(net.leave.weight, std=0.1)
    model = ScoreLadder(net, StandardNormal(2), sigmas, steps=4)
    again = Generator().manual_seed(1)
    start = 2.0 * torch.randn(6, 2, generator=again)
    with torch.no_grad():
        x = annealed_langevin(model.score, start, sigmas, steps=4, rng=again)
        x = x + 0.25 * model.score(x, sigmas[1])
    torch.testing.assert_close(model.sample(6, rng=Generator().manual_seed(1)), x)


def test_sampling_is_a_function_of_rng() -> None:
    torch.manual_seed(0)
    net = ResMLP(4, 8, 1)
    torch.nn.init.normal_(net.leave.weight, std=0.1)
    sigmas = torch.tensor([2.0, 0.5])
    ladder = ScoreLadder(net, StandardNormal(1, 2, 2), sigmas, steps=3)
    state = torch.get_rng_state()
    for model, shape in ((ladder, (5, 1, 2, 2)), (TiedAutoencoder(3, 4, 0.5), (5, 3))):
        state = torch.get_rng_state()
        a, b = (model.sample(5, rng=Generator().manual_seed(1)) for _ in range(2))
        assert a.shape == shape
        assert torch.equal(a, b)
        assert not a.requires_grad
        assert torch.equal(torch.get_rng_state(), state), "the global state was used"


# Vincent's autoencoder


def autoencoder(sigma: float = SIGMA) -> TiedAutoencoder:
    torch.manual_seed(0)
    model = TiedAutoencoder(2, 3, sigma)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    return model


def test_the_reconstruction_is_minus_the_gradient_of_the_energy(
    rng: Generator,
) -> None:
    """(eq:dae-reconstruct), (eq:dae-energy): r(x) − x = −σ² ∇E(x)."""
    model, x = autoencoder(), torch.randn(20, 2, generator=rng).requires_grad_()
    (slope,) = torch.autograd.grad(model.energy(x).sum(), x)
    torch.testing.assert_close(model(x) - x, -(SIGMA**2) * slope)
    torch.testing.assert_close(model.score(x), -slope)


def test_a_fresh_one_rebuilds_the_origin() -> None:
    """(eq:dae-reconstruct): r(0) = 0 and r is nearly constant, whatever was drawn."""
    model = TiedAutoencoder(3, 50, SIGMA)
    torch.testing.assert_close(model(torch.zeros(1, 3)), torch.zeros(1, 3))
    slope = denoiser_covariance(lambda x, _: model(x), torch.zeros(1, 3), 1.0)
    assert slope.abs().max() < 0.2


def test_its_loss_is_the_denoising_loss_of_its_energy(rng: Generator) -> None:
    """(eq:dae-loss): σ⁴ J_DSM(−∇E), with the same noise."""
    model, x = autoencoder(), torch.randn(50, 2, generator=rng)

    def psi(y: Tensor) -> Tensor:
        y = y.requires_grad_()
        return -torch.autograd.grad(model.energy(y).sum(), y)[0]

    a = model.loss(x, rng=Generator().manual_seed(1))
    b = denoising_loss(psi, x, SIGMA, rng=Generator().manual_seed(1)).mean()
    torch.testing.assert_close(a, SIGMA**4 * b)


def lattice(model: TiedAutoencoder, m: int) -> Mixture:
    """The law of e^{−E} for 1/σ² = m: (1 + e^u)^m by the binomial theorem."""
    means, logs = [], []
    for k in itertools.product(range(m + 1), repeat=len(model.b)):
        k = torch.tensor(k, dtype=torch.float64)
        mean = model.c + model.sigma**2 * k @ model.W
        ways = sum(math.log(math.comb(m, int(j))) for j in k)
        means.append(mean)
        logs.append(ways + k @ model.b + mean.square().sum() * m / 2)
    cov = model.sigma**2 * torch.eye(2)
    weights = torch.stack(logs).softmax(0)
    return Mixture(torch.stack(means), cov.expand(len(means), 2, 2), weights)


@pytest.mark.parametrize("m", [1, 4])
def test_its_law_is_a_lattice_under_noise(m: int, rng: Generator) -> None:
    """For σ² = 1/m it is a mixture of (m + 1)^hidden Gaussians N(·, σ² I)."""
    model, x = autoencoder(m**-0.5), 2 * torch.randn(20, 2, generator=rng)
    with torch.no_grad():
        law = lattice(model, m)
        torch.testing.assert_close(model.score(x), law.score(x))
        shift = model.energy(x) + law.log_prob(x)  # the log of the normaliser
        torch.testing.assert_close(shift, shift[:1].expand(20))


def test_its_samples_have_the_law_of_its_energy(rng: Generator) -> None:
    model = autoencoder(1.0)
    with torch.no_grad():
        law = lattice(model, 1)
    x = model.sample(4000, steps=300, rng=rng)
    agree(x[:, 0], law.mean()[0])
    torch.testing.assert_close(x.T.cov(), law.cov(), atol=0.25, rtol=0.1)


# Doors


def test_bad_levels_are_refused() -> None:
    x, D = torch.zeros(3, 2), exact_denoiser(plane())
    calls = [
        lambda s: denoising_loss(torch.sin, x, s), lambda s: sure(torch.sin, x, s),
        lambda s: antithetic_loss(torch.sin, x, s),
        lambda s: denoiser_covariance(D, x, s),
        lambda s: posterior_covariance(plane(), x, s),
    ]  # fmt: skip
    for call in calls:
        for s in (0.0, -1.0, math.inf, math.nan):
            with pytest.raises(ValueError, match=f"sigma must be positive.*got {s:g}"):
                call(s)
        with pytest.raises(ValueError, match=r"sigma must be \(\) or \(3, 1\)"):
            call(torch.ones(3))
    with pytest.raises(ValueError, match=r"sigma must be \(\) or \(3, 1\), got \(3,\)"):
        D(x, torch.ones(3))


def test_bad_points_are_refused() -> None:
    D = exact_denoiser(plane())
    calls = [
        lambda x: denoising_loss(torch.sin, x, 1.0), lambda x: sure(torch.sin, x, 1.0),
        lambda x: antithetic_loss(torch.sin, x, 1.0),
        lambda x: implicit_loss(torch.sin, x), lambda x: sliced_loss(torch.sin, x, x),
        lambda x: explicit_loss(torch.sin, torch.sin, x),
        lambda x: denoiser_covariance(D, x, 1.0),
        lambda x: posterior_covariance(plane(), x, 1.0),
    ]  # fmt: skip
    for call in calls:
        for value in (math.nan, math.inf):
            with pytest.raises(ValueError, match="x must be finite"):
                call(torch.full((3, 2), value))
        for x in (torch.zeros(2), torch.zeros(0, 2), torch.zeros(3, 2).long()):
            with pytest.raises(ValueError, match=r"x must be a batch \(n, \*shape\)"):
                call(x)
    for call in (lambda x: D(x, torch.tensor(1.0)), calls[-1], TiedAutoencoder(2, 3, 1),
                 TiedAutoencoder(2, 3, 1).energy):  # fmt: skip
        with pytest.raises(ValueError, match=r"x must have shape \(n, 2\), got"):
            call(torch.zeros(3, 3))


def test_fields_and_directions_of_another_shape_are_refused() -> None:
    x, short = torch.zeros(3, 2), lambda x: x.sum(1)
    message = r"{}\(x\) must have the shape \(3, 2\) of x, got \(3,\)"
    for name, call in {
        "psi": lambda: denoising_loss(short, x, 1.0),
        "psi ": lambda: antithetic_loss(short, x, 1.0),
        "psi  ": lambda: implicit_loss(short, x),
        "psi   ": lambda: sliced_loss(short, x, x),
        "psi    ": lambda: explicit_loss(short, torch.sin, x),
        "score": lambda: explicit_loss(torch.sin, short, x),
        "f": lambda: sure(short, x, 1.0),
        "D": lambda: denoiser_covariance(lambda x, _: x.sum(1), x, 1.0),
    }.items():
        with pytest.raises(ValueError, match=message.format(name.strip())):
            call()
    for call in (lambda v: sliced_loss(torch.sin, x, v),
                 lambda v: sure(torch.sin, x, 1.0, v)):  # fmt: skip
        with pytest.raises(
            ValueError, match=r"v must be \(3, 2\) like x, got \(3, 1\)"
        ):
            call(torch.ones(3, 1))


@pytest.mark.parametrize(
    "sigmas", [[1.0, 2.0], [1.0, 1.0], [1.0, 0.0], [], [[1.0]], [math.inf, 1.0]]
)
def test_a_ladder_that_does_not_fall_is_refused(sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match="sigmas must be falling positive levels"):
        ScoreLadder(ResMLP(2, 8, 1), StandardNormal(2), torch.tensor(sigmas))


def test_walks_without_a_step_are_refused() -> None:
    x, s = torch.zeros(3, 2), lambda x, _: -x
    for sigmas in (torch.zeros(1), torch.tensor(1.0), torch.empty(0)):
        with pytest.raises(ValueError, match="sigmas must be positive levels"):
            annealed_langevin(s, x, sigmas)
    for options in ({"steps": 0}, {"step": 0.0}, {"step": math.inf}):
        with pytest.raises(ValueError, match="steps ≥ 1, step > 0 are needed"):
            annealed_langevin(s, x, torch.ones(1), **options)


def test_an_autoencoder_without_size_is_refused() -> None:
    for sizes in ((0, 3, 1.0), (2, 0, 1.0), (2, 3, 0.0), (2, 3, math.nan)):
        with pytest.raises(ValueError, match="d, hidden, sigma must be positive"):
            TiedAutoencoder(*sizes)


def test_a_gaussian_law_has_a_linear_denoiser(rng: Generator) -> None:
    """Wiener's filter: m + Σ (Σ + σ² I)⁻¹ (x − m), its covariance the same anywhere."""
    m, S = torch.tensor([1.0, -2.0]), torch.tensor([[1.0, 0.6], [0.6, 0.8]])
    law, x = Gaussian(m, S), torch.randn(10, 2, generator=rng)
    gain = S @ torch.linalg.inv(S + SIGMA**2 * torch.eye(2))
    found = exact_denoiser(law)(x, torch.tensor(SIGMA))
    torch.testing.assert_close(found, m + (x - m) @ gain.T)
    cov = posterior_covariance(law, x, SIGMA)
    torch.testing.assert_close(cov, (SIGMA**2 * gain).expand(10, 2, 2))
