"""book/diffusion/denoising.md, where the best denoiser is known in closed form."""

import math
from functools import partial

import pytest
import torch
from torch import Generator, Tensor, nn

from pushforward.diffusion import (
    VE,
    VP,
    Diffusion,
    Form,
    Levels,
    LogNormal,
    LogUniform,
    Preconditioned,
    TimeUniform,
    Units,
    amplification,
    denoiser_form,
    denoising_error,
    edm_form,
    edm_weight,
    euler,
    exact_denoiser,
    heun,
    karras_grid,
    noise_form,
    noise_weight,
    score_form,
    v_form,
    velocity_form,
)
from pushforward.distributions import Gaussian, Mixture, StandardNormal, ring
from pushforward.flows import linear_path, marginal_velocity
from pushforward.metrics import two_sample
from pushforward.nn import MLP, ResMLP, UNet

FORMS = [denoiser_form, noise_form, score_form, velocity_form, v_form, edm_form]
SIGMAS = [0.002, 0.05, 0.5, 2.0, 80.0]
RING_DEVIATION = math.sqrt(0.65**2 / 2 + 0.1**2)  # .470: of each coordinate


def eight() -> Mixture:
    return ring(8, 0.65, 0.1)


class Fixed(nn.Module):
    """A network that returns the same function of (x, t) for ever."""

    def __init__(self, f: object) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.f(x, t)  # type: ignore[operator]


# Forms


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_right_prediction_gives_back_the_data(
    form: Form, sigma: float, rng: Generator
) -> None:
    """(eq:dn-forms): D made of the target a x_0 + b z itself is x_0."""
    s, (x, z) = torch.tensor(sigma), torch.randn(2, 50, 3, generator=rng)
    target = form(s, 0.47)
    D = target.denoised(target.value(x, z), x + s * z, s)
    torch.testing.assert_close(D, x, rtol=0, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_every_form_describes_the_same_denoiser(
    form: Form, sigma: float, rng: Generator
) -> None:
    law, s = eight(), torch.tensor(sigma)
    x = law.sample(50, rng=rng) + s * torch.randn(50, 2, generator=rng)
    D, target = exact_denoiser(law)(x, s), form(s, 0.47)
    F = target.predicted(D, x, s)
    torch.testing.assert_close(target.denoised(F, x, s), D, rtol=0, atol=1e-11)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_forms_are_what_their_names_say(sigma: float, rng: Generator) -> None:
    """Noise, score, velocity and v of the exact denoiser, each by another route."""
    law, s = eight(), torch.tensor(sigma)
    x = law.sample(40, rng=rng) + s * torch.randn(40, 2, generator=rng)
    D, close = exact_denoiser(law)(x, s), partial(torch.testing.assert_close, rtol=1e-8)
    F = {f: f(s, 0.47).predicted(D, x, s) for f in FORMS}
    score = law.score(x, sigma)
    close(F[score_form], score, atol=1e-8 / sigma)
    close(F[noise_form], -s * score, atol=1e-8)
    t = 1 / (1 + s)  # straight path: x_t = t x_0 + (1 − t) z = x_σ/(1 + σ)
    close(F[velocity_form], marginal_velocity(law)(x * t, t), atol=1e-8)
    assert float((1 - t) / linear_path(t).a) == pytest.approx(sigma)
    alpha = 1 / (1 + s.square()).sqrt()
    close(F[v_form], alpha * F[noise_form] - s * alpha * D, atol=1e-8)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_v_is_the_edm_form_with_deviation_one_and_the_other_sign(
    sigma: float,
) -> None:
    s = torch.tensor(sigma)
    v, edm = v_form(s, 0.47), edm_form(s, 1.0)
    torch.testing.assert_close(torch.stack(v), -torch.stack(edm))


@pytest.mark.parametrize("form", FORMS)
def test_the_amplification_is_that_of_an_error(form: Form, rng: Generator) -> None:
    """(eq:dn-amplification), measured: errors in units of the target's deviation."""
    n, own = 200_000, 0.47
    x, z = own * torch.randn(n, generator=rng), torch.randn(n, generator=rng)
    wrong = torch.randn(n, generator=rng)
    for sigma in SIGMAS:
        s = torch.tensor(sigma)
        target = form(s, own)
        F = target.value(x, z)
        D = target.denoised(F + 0.1 * F.std() * wrong, x + s * z, s)
        found = (D - x).square().mean().sqrt() / (0.1 * wrong.square().mean().sqrt())
        exact = amplification(form, s, own)
        torch.testing.assert_close(found, exact, rtol=0.01, atol=0)


def test_amplifications_in_closed_form() -> None:
    s, own = torch.tensor(SIGMAS), 0.47
    total = (s.square() + own**2).sqrt()
    exact = {
        denoiser_form: torch.full_like(s, own),
        noise_form: s,
        score_form: s,
        velocity_form: s * math.sqrt(1 + own**2) / (1 + s),
        v_form: s * (1 + (s * own).square()).sqrt() / (1 + s.square()),
        edm_form: s * own / total,
    }
    least = exact[edm_form]
    for form, value in exact.items():
        torch.testing.assert_close(amplification(form, s, own), value)
        assert (value >= least * (1 - 1e-12)).all()
    assert float(exact[noise_form][-1]) == 80.0
    assert (least < 0.5).all()


@pytest.mark.parametrize("sigma", SIGMAS)
def test_no_skip_amplifies_less_than_edm(sigma: float) -> None:
    """c_out² as a function of c_skip, on a grid: least at σ_d²/(σ² + σ_d²)."""
    own, skip = 0.47, torch.linspace(0, 1, 20_001)
    c_out = ((1 - skip).square() * own**2 + (skip * sigma).square()).sqrt()
    i = int(c_out.argmin())
    assert float(skip[i]) == pytest.approx(own**2 / (sigma**2 + own**2), abs=5e-5)
    least = amplification(edm_form, torch.tensor(sigma), own)
    assert float(least) == pytest.approx(float(c_out[i]), rel=1e-4, abs=1e-6)


# Preconditioning


def test_the_coefficients_are_those_of_edm(rng: Generator) -> None:
    """(eq:edm-precondition), with c_skip, c_out, c_in as the paper prints them."""
    own, x = 0.7, torch.randn(5, 1, 2, 3, generator=rng)
    sigma = torch.rand(5, 1, 1, 1, generator=rng) + 0.1
    seen: list[Tensor] = []

    def F(y: Tensor, t: Tensor) -> Tensor:
        seen.extend((y, t))
        return y.sin()

    D = Preconditioned(Fixed(F), sigma_data=own)(x, sigma)
    c_skip = own**2 / (sigma**2 + own**2)
    c_out, c_in = (
        sigma * own / (sigma**2 + own**2).sqrt(),
        1 / (own**2 + sigma**2).sqrt(),
    )
    torch.testing.assert_close(seen[0], c_in * x)
    torch.testing.assert_close(seen[1], sigma.log() / 4)
    torch.testing.assert_close(D, c_skip * x + c_out * (c_in * x).sin())


@pytest.mark.parametrize("sigma", SIGMAS)
def test_input_and_target_have_deviation_one(sigma: float, rng: Generator) -> None:
    """On the ring, whose deviation is .470; and input and target are uncorrelated."""
    n, s, own = 200_000, torch.tensor(sigma), RING_DEVIATION
    x, z = eight().sample(n, rng=rng), torch.randn(n, 2, generator=rng)
    entry = (x + s * z) / (s.square() + own**2).sqrt()
    target = edm_form(s, own).value(x, z)
    bound = 4 * math.sqrt(2 / (2 * n))  # 4 s.e. of a mean square of normal numbers
    assert abs(entry.square().mean() - 1) < bound
    assert abs(target.square().mean() - 1) < bound
    assert abs((entry * target).mean()) < bound


def test_gaussian_data_leave_the_network_nothing_to_do(rng: Generator) -> None:
    law, x = Gaussian(torch.zeros(2), 0.25 * torch.eye(2)), torch.randn(9, 2)
    D = Preconditioned(Fixed(lambda y, t: torch.zeros_like(y)))
    for sigma in SIGMAS:
        s = torch.tensor(sigma)
        torch.testing.assert_close(D(x, s), exact_denoiser(law)(x, s))


@pytest.mark.parametrize("form", FORMS)
def test_levels_may_differ_from_row_to_row(form: Form, rng: Generator) -> None:
    torch.manual_seed(0)
    net = ResMLP(6, 8, 1)
    nn.init.normal_(net.leave.weight)
    D = Preconditioned(net, form=form)
    x, sigma = torch.randn(4, 1, 2, 3, generator=rng), torch.rand(4, 1, 1, 1) + 0.1
    rows = torch.cat([D(x[i : i + 1], sigma[i, 0, 0, 0]) for i in range(4)])
    torch.testing.assert_close(D(x, sigma), rows)


def test_a_network_of_low_precision_is_rounded_once(rng: Generator) -> None:
    """Only F is rounded, to 8 bits: neither c_skip x nor the product c_out F is."""
    x, s = torch.randn(2000, 2, generator=rng).float(), torch.tensor(0.3).float()
    F = x.sin()
    D = Preconditioned(Fixed(lambda y, t: F.bfloat16()))(x, s)
    exact = Preconditioned(Fixed(lambda y, t: F))(x, s)
    assert D.dtype == torch.float32
    c_out = amplification(edm_form, s)
    assert ((D - exact).abs() <= 1.01 * c_out * F.abs() * 2**-8 + 1e-7).all()


def test_classes_reach_the_network() -> None:
    torch.manual_seed(0)
    net = ResMLP(2, 8, 1, classes=3)
    nn.init.normal_(net.leave.weight)
    D, x, s = Preconditioned(net), torch.zeros(2, 2), torch.tensor(1.0)
    assert not torch.equal(D(x, s, torch.tensor([0, 1])), D(x, s, torch.tensor([2, 1])))


# Levels and weights


LEVELS: list[Levels] = [
    LogNormal(),
    LogUniform(),
    TimeUniform(VP()),
    TimeUniform(VE(), start=0.01),
]


@pytest.mark.parametrize("noise", LEVELS, ids=lambda n: type(n).__name__)
def test_the_density_of_the_levels_is_that_of_the_draws(
    noise: Levels, rng: Generator
) -> None:
    """The distribution function, by quadrature in ln σ and by counting."""
    n = 100_000
    sigma = noise.sample(torch.zeros(n, 1, 2, 2), rng=rng)
    assert sigma.shape == (n, 1, 1, 1)
    u = torch.linspace(math.log(1e-4), math.log(1e4), 200_001)
    mass = torch.cumulative_trapezoid(noise.density(u.exp()), u)
    assert float(mass[-1]) == pytest.approx(1.0, abs=1e-4)
    for q in (0.1, 0.5, 0.9):
        i = int((mass < q).sum())
        share = (sigma.log() < u[i]).double().mean()
        assert abs(share - q) < 4 * math.sqrt(q * (1 - q) / n) + 1e-4


def test_only_the_product_of_weight_and_levels_counts(rng: Generator) -> None:
    """One loss by two laws of levels, whose weights make up for it."""
    n, D, law = 400_000, exact_denoiser(eight()), eight()
    one, other = LogNormal(), LogNormal(-1.0, 1.4)

    def shifted(sigma: Tensor) -> Tensor:
        return edm_weight(sigma) * one.density(sigma) / other.density(sigma)

    x = law.sample(n, rng=rng)
    found = []
    for noise, weight in ((one, edm_weight), (other, shifted)):
        sigma = noise.sample(x, rng=rng)
        found.append(weight(sigma)[:, 0] * denoising_error(D, x, sigma, rng=rng))
    a, b = found
    assert abs(a.mean() - b.mean()) < 4 * ((a.var() + b.var()) / n).sqrt()


def test_the_edm_weight_makes_every_level_count_the_same() -> None:
    s = torch.tensor(SIGMAS)
    for own in (0.47, 0.5, 1.0):
        product = edm_weight(s, own) * amplification(edm_form, s, own).square()
        torch.testing.assert_close(product, torch.ones_like(s))


def test_erratum_e8_gamma_one_is_neither_edm_nor_edm2() -> None:
    """γ/σ² on the data's error: γ = 1 weighs F by σ_d²/(σ² + σ_d²), EDM by one."""
    own = 0.47
    s = torch.tensor([0.5, 10.0])
    slides = noise_weight(s) * amplification(edm_form, s, own).square()
    torch.testing.assert_close(slides, own**2 / (s.square() + own**2))
    assert [round(float(w), 4) for w in slides] == [0.4691, 0.0022]
    gamma = edm_weight(s, own) * s.square()
    torch.testing.assert_close(gamma, 1 + s.square() / own**2)


def test_weight_one_over_sigma_squared_is_the_error_of_the_noise(
    rng: Generator,
) -> None:
    x, z = torch.randn(2, 30, 2, generator=rng)
    sigma = torch.rand(30, 1, generator=rng) + 0.1
    guess = torch.randn(30, 2, generator=rng)
    D = noise_form(sigma, 0.5).denoised(guess, x + sigma * z, sigma)
    weighted = noise_weight(sigma) * (D - x).square()
    torch.testing.assert_close(weighted, (guess - z).square())


# The loss


def test_the_error_of_the_best_denoiser_is_the_posterior_variance(
    rng: Generator,
) -> None:
    """For N(0, s²I): s²σ²/(s² + σ²) per coordinate."""
    n, own, sigma = 100_000, 0.6, 0.8
    law = Gaussian(torch.zeros(3), own**2 * torch.eye(3))
    x, s = law.sample(n, rng=rng), torch.tensor(sigma)
    found = denoising_error(exact_denoiser(law), x, s, rng=rng)
    assert found.shape == (n,)
    exact = own**2 * sigma**2 / (own**2 + sigma**2)
    assert abs(found.mean() - exact) < 4 * found.std() / n**0.5


def test_the_loss_is_the_weighted_error_at_its_own_levels() -> None:
    """(eq:denoising-loss), with levels and noise drawn again."""
    torch.manual_seed(0)
    net = UNet(1, width=8, factors=(1,), blocks=1, heads=2)
    nn.init.normal_(net.leave[2].weight, std=0.1)
    D = Preconditioned(net, sigma_data=0.3)
    model = Diffusion(D, StandardNormal(1, 4, 4), units=Units(0.5, 2.0))
    x = torch.rand(6, 1, 4, 4)
    loss = model.loss(x, rng=Generator().manual_seed(5))
    again = Generator().manual_seed(5)
    sigma = (-1.2 + 1.2 * torch.randn(6, 1, 1, 1, generator=again)).exp()
    z = torch.randn(6, 1, 4, 4, generator=again)
    y = (x - 0.5) / 2
    weight = (sigma**2 + 0.09) / (0.3 * sigma) ** 2
    expected = (weight * (D(y + sigma * z, sigma) - y) ** 2).mean()
    torch.testing.assert_close(loss, expected)


def test_an_untrained_network_has_loss_one_at_every_level(rng: Generator) -> None:
    """F = 0 under EDM's weight, whatever the data, in units of deviation σ_d."""
    n, x = 50_000, eight().sample(50_000, rng=rng)
    units = Units.of(x, 0.5)
    D = Preconditioned(ResMLP(2, 8, 1))
    for sigma in SIGMAS:
        s = torch.tensor(sigma)
        error = edm_weight(s) * denoising_error(D, units.inside(x), s, rng=rng)
        assert abs(error.mean() - 1) < 4 * error.std() / n**0.5


def test_the_default_weight_knows_the_deviation_of_the_denoiser() -> None:
    D = Preconditioned(MLP(2, 2), sigma_data=0.8)
    s = torch.tensor(SIGMAS)
    model = Diffusion(D, StandardNormal(2))
    torch.testing.assert_close(model.weight(s), edm_weight(s, 0.8))
    other = Diffusion(Fixed(lambda x, s: x), StandardNormal(2))
    torch.testing.assert_close(other.weight(s), edm_weight(s, 0.5))


@pytest.mark.parametrize("weight", [edm_weight, noise_weight, lambda s: s / s])
@pytest.mark.parametrize("noise", LEVELS, ids=lambda n: type(n).__name__)
def test_the_best_denoiser_is_stationary_for_every_weight_and_levels(
    weight: object, noise: Levels, rng: Generator
) -> None:
    """The slope of the loss at D* in any direction h is zero: E λ ⟨h, D* − x_0⟩."""
    n, law = 100_000, eight()
    x, best = law.sample(n, rng=rng), exact_denoiser(law)
    sigma = noise.sample(x, rng=rng)
    y = x + sigma * torch.randn(n, 2, generator=rng)
    miss = weight(sigma) * (best(y, sigma) - x)  # type: ignore[operator]
    scale = (1 + sigma).square() / weight(sigma)  # type: ignore[operator]
    for h in (y.sin() / scale, y.flip(1).cos() / scale):
        slope = (h * miss).sum(1)
        assert slope.mean().abs() < 4 * slope.std() / n**0.5


@pytest.mark.parametrize("form", FORMS)
def test_least_squares_find_the_exact_denoiser_in_any_form(
    form: Form, rng: Generator
) -> None:
    """For Gaussian data F is linear in its input: its slope, by one normal equation."""
    n, own, s = 200_000, 0.6, torch.tensor(0.7)
    x, z = own * torch.randn(n, generator=rng), torch.randn(n, generator=rng)
    y = x + s * z
    target = form(s, own)
    slope = (y * target.value(x, z)).sum() / y.square().sum()
    D = target.denoised(slope * torch.ones(1), torch.ones(1), s)
    assert float(D) == pytest.approx(own**2 / (own**2 + 0.49), abs=0.01)


# The model


@pytest.mark.parametrize("sampler", [heun, euler])
def test_the_model_draws_from_the_law_of_an_exact_denoiser(
    sampler: object, rng: Generator
) -> None:
    """In the units of the data: shifted and stretched."""
    law = eight()

    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.D = exact_denoiser(law)

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return self.D(x, sigma)

    model = Diffusion(Exact(), StandardNormal(2), units=Units(3.0, 10.0), steps=60)
    x = model.sample(400, sampler=sampler, rng=rng)  # type: ignore[arg-type]
    fresh = 3 + 10 * law.sample(400, rng=rng)
    assert two_sample(x, fresh, permutations=49, rng=rng).p > 0.02
    assert two_sample(x + 2, fresh, permutations=49, rng=rng).p < 0.05


def test_a_denoiser_is_learned(rng: Generator) -> None:
    """In some hundred steps most of what linear denoisers miss."""
    torch.manual_seed(0)
    law = eight()
    D = Preconditioned(ResMLP(2, 32, 1), sigma_data=RING_DEVIATION)
    model = Diffusion(D, StandardNormal(2))
    adam = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(500):
        adam.param_groups[0]["lr"] = 5e-3 * (1 - step / 500)
        loss = model.loss(law.sample(256, rng=rng), rng=rng)
        adam.zero_grad()
        loss.backward()
        adam.step()
    x, best = law.sample(4000, rng=rng), exact_denoiser(law)
    for sigma, share in ((0.2, 0.25), (0.4, 0.25)):
        s = torch.tensor(sigma)
        y = x + s * torch.randn(4000, 2, generator=rng)
        with torch.no_grad():
            excess = (D(y, s) - best(y, s)).square().mean()
        linear = RING_DEVIATION**2 / (sigma**2 + RING_DEVIATION**2) * y
        assert excess < share * (linear - best(y, s)).square().mean()


def test_sampling_is_a_function_of_rng_steps_and_sampler() -> None:
    torch.manual_seed(0)
    net = UNet(1, width=8, factors=(1, 2), heads=2)
    nn.init.normal_(net.leave[2].weight, std=0.1)
    model = Diffusion(Preconditioned(net), StandardNormal(1, 6, 6))
    state = torch.get_rng_state()
    a, b, c, d = (
        model.sample(3, rng=Generator().manual_seed(2), **options)
        for options in ({}, {"steps": 18}, {"steps": 6}, {"sampler": euler})
    )
    assert a.shape == (3, 1, 6, 6)
    assert not a.requires_grad
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), state), "the global state was used"
    assert (a - c).abs().max() > 0
    assert (a - d).abs().max() > 0


def test_the_model_works_in_single_precision(rng: Generator) -> None:
    torch.manual_seed(0)
    model = Diffusion(Preconditioned(ResMLP(4, 8, 1)), StandardNormal(4)).float()
    x = torch.randn(5, 4, generator=rng, dtype=torch.float32)
    assert model.loss(x, rng=rng).dtype == torch.float32
    assert model.sample(2, rng=rng).dtype == torch.float32


def test_the_first_point_of_a_sample_is_noise_of_the_highest_level() -> None:
    seen: list[Tensor] = []

    def still(D: object, x: Tensor, sigmas: Tensor) -> Tensor:
        seen.append(sigmas)
        return x

    model = Diffusion(Fixed(lambda x, s: x), StandardNormal(2), sampler=still, steps=7)
    x = model.sample(4, rng=Generator().manual_seed(0))
    z = torch.randn(4, 2, generator=Generator().manual_seed(0))
    torch.testing.assert_close(x, 80 * z)
    torch.testing.assert_close(seen[0], karras_grid(7))


def test_units_standardise(rng: Generator) -> None:
    x = 3 + 2 * torch.randn(1000, 1, 2, 2, generator=rng)
    units = Units.of(x, 0.5)
    y = units.inside(x)
    assert float(y.mean()) == pytest.approx(0, abs=1e-12)
    assert float(y.std()) == pytest.approx(0.5)
    torch.testing.assert_close(units.outside(y), x)


# Doors


@pytest.mark.parametrize(
    ("sigma", "what"),
    [
        (torch.tensor(0.0), "sigma must be positive and finite, got 0 to 0"),
        (torch.tensor(-1.0), "sigma must be positive and finite, got -1 to -1"),
        (torch.tensor(math.inf), "sigma must be positive and finite"),
        (torch.tensor(math.nan), "sigma must be positive and finite"),
        (torch.tensor([[1.0], [0.0], [1.0]]), "positive and finite, got 0 to 1"),
        (torch.ones(3), r"sigma must be \(\) or \(3, 1\), got \(3,\)"),
        (torch.ones(2, 1), r"sigma must be \(\) or \(3, 1\), got \(2, 1\)"),
    ],
)
def test_levels_that_are_none_are_refused(sigma: Tensor, what: str) -> None:
    D = Preconditioned(ResMLP(2, 8, 1))
    with pytest.raises(ValueError, match=what):
        D(torch.zeros(3, 2), sigma)


def test_a_network_of_another_shape_is_refused() -> None:
    D = Preconditioned(Fixed(lambda x, t: x[:, :1]))
    with pytest.raises(ValueError, match=r"shape \(3, 2\) of x, got \(3, 1\)"):
        D(torch.zeros(3, 2), torch.tensor(1.0))


@pytest.mark.parametrize("own", [0.0, -0.5, math.inf, math.nan])
def test_a_deviation_of_the_data_must_be_positive(own: float) -> None:
    with pytest.raises(ValueError, match="sigma_data must be positive"):
        Preconditioned(MLP(2, 2), sigma_data=own)
    with pytest.raises(ValueError, match="sigma_data must be positive"):
        amplification(edm_form, torch.tensor(1.0), own)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (partial(LogNormal, 0.0, 0.0), "std must be positive"),
        (partial(LogNormal, math.nan), "mean must be finite"),
        (partial(LogUniform, 0.0, 1.0), "0 < low < high"),
        (partial(LogUniform, 2.0, 1.0), "0 < low < high"),
        (partial(TimeUniform, VP(), 0.0), "0 < start < 1"),
        (partial(TimeUniform, VP(), 1.0), "0 < start < 1"),
    ],
)
def test_bad_laws_of_levels_are_refused(make: object, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("x", "what"),
    [
        (torch.zeros(3, 3), r"x must have shape \('n', 2\), got \(3, 3\)"),
        (torch.zeros(2), r"x must have shape \('n', 2\), got \(2,\)"),
        (torch.zeros(0, 2), r"got \(0, 2\)"),
        (torch.full((3, 2), math.nan), "x must be finite"),
        (torch.full((3, 2), math.inf), "x must be finite"),
    ],
)
def test_data_that_are_none_are_refused(x: Tensor, what: str) -> None:
    model = Diffusion(Preconditioned(ResMLP(2, 8, 1)), StandardNormal(2))
    with pytest.raises(ValueError, match=what):
        model.loss(x)


def test_bad_units_and_grids_are_refused() -> None:
    D, base = Preconditioned(ResMLP(2, 8, 1)), StandardNormal(2)
    with pytest.raises(ValueError, match="scale of units must be positive"):
        Diffusion(D, base, units=Units(0.0, 0.0))
    with pytest.raises(ValueError, match="shift of units must be finite"):
        Diffusion(D, base, units=Units(math.nan, 1.0))
    with pytest.raises(ValueError, match="steps"):
        Diffusion(D, base).sample(2, steps=1)
