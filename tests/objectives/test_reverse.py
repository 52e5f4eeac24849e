"""book/objectives/reverse.md, equation by equation."""

import math

import pytest
import torch
from scipy import integrate, optimize
from torch import Tensor

from pushforward.distributions import Gaussian, line_mixture, ring
from pushforward.objectives.likelihood import empirical, normal_rule
from pushforward.objectives.reverse import (
    GaussianPush,
    descend,
    free_energy,
    gradients,
    reverse_kl,
    stationary,
    symmetric_variance,
)


def push(m: float, s: float) -> GaussianPush:
    return GaussianPush(torch.tensor([m]), torch.tensor([s]))


def test_model_is_a_gaussian(rng: torch.Generator) -> None:
    """(eq:gaussian-push): density against the exact law, samples by moments."""
    m, s = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    model, law = GaussianPush(m, s), Gaussian(m, torch.diag(s**2))
    x = model.sample(40_000, rng=rng).detach()
    torch.testing.assert_close(model.log_prob(x), law.log_prob(x))
    assert ((x.mean(0) - m).abs() < 4 * s / 200).all()
    assert ((x.var(0) / s**2 - 1).abs() < 4 * (2 / 40_000) ** 0.5).all()


def test_same_rng_same_sample_and_gradients_pass_through(rng: torch.Generator) -> None:
    model = push(1.0, 2.0)
    a = model.sample(5, rng=torch.Generator().manual_seed(3))
    b = model.sample(5, rng=torch.Generator().manual_seed(3))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    (g,) = torch.autograd.grad(a.sum(), model.m)
    assert g.item() == 5


def test_free_energy_of_a_gaussian_target_is_closed() -> None:
    """(eq:free-energy): target N(0, 1), F = −τ log s − τ(log 2π + 1)/2 + …"""
    model, tau = push(0.7, 1.6), 0.3
    target = Gaussian(torch.zeros(1), torch.eye(1))
    log_2pi = math.log(2 * math.pi)
    own = -math.log(1.6) - (log_2pi + 1) / 2
    exact = tau * own + (0.7**2 + 1.6**2 + log_2pi) / 2
    value = free_energy(model, target.log_prob, normal_rule(), tau=tau)
    assert value.item() == pytest.approx(exact, abs=1e-12)


def test_reverse_kl_agrees_with_an_adaptive_quadrature() -> None:
    target, model = line_mixture((-3.0, 3.0)), push(0.4, 1.9)

    def integrand(x: float) -> float:
        point = torch.tensor([[x]])
        log_q = model.log_prob(point).item()
        return math.exp(log_q) * (log_q - target.log_prob(point).item())

    exact, _ = integrate.quad(integrand, -20, 20, epsabs=1e-11, limit=200)
    value = reverse_kl(model, target, normal_rule()).item()
    assert value == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize(("a", "tau"), [(0.4, 1.0), (1.0, 1.0), (3.0, 1.0), (2.0, 0.2)])
def test_symmetric_variance_minimises(a: float, tau: float) -> None:
    """(eq:symmetric-variance), against a minimiser that knows no derivative."""
    target, noise = line_mixture((-a, a)), normal_rule()

    def energy(log_s: float) -> float:
        model = push(0.0, math.exp(log_s))
        return free_energy(model, target.log_prob, noise, tau=tau).item()

    found = optimize.minimize_scalar(energy, bounds=(-4, 2), method="bounded",
                                     options={"xatol": 1e-9})  # fmt: skip
    left = symmetric_variance(a, tau=tau)
    assert left == pytest.approx(math.exp(2 * found.x), rel=1e-6)


def test_the_slides_example() -> None:
    """s² E tanh²(sZ) = 1 gives 1.94249; the forward answer 2 does not."""
    v = symmetric_variance(1.0)
    z, w = normal_rule(4001, 12.0)
    tanh2 = (w @ (math.sqrt(v) * z[:, 0]).tanh().square()).item()
    assert v * tanh2 == pytest.approx(1, abs=1e-12)
    assert 1.94248 < v < 1.94250


@pytest.mark.parametrize("start", [(3.0, 1.0), (-2.8, 1.1), (0.0, 2.7)])
def test_newton_ends_where_autograd_finds_no_slope(start: tuple[float, float]) -> None:
    target = line_mixture((-3.0, 3.0))
    point = stationary(target, *start)
    assert point.gradient < 1e-12
    assert point.curvature > 0
    model = push(point.m, point.s)
    value = reverse_kl(model, target, normal_rule(1201, 12.0))
    value.backward()
    assert value.item() == pytest.approx(point.kl, abs=1e-10)
    assert model.m.grad.abs().item() < 1e-9
    assert model.log_s.grad.abs().item() < 1e-9


def test_a_saddle_has_negative_curvature() -> None:
    point = stationary(line_mixture((-2.5, 2.5)), 1.98, 1.54)
    assert point.gradient < 1e-12
    assert point.curvature < -0.1
    assert 1.9 < point.m < 2.1


def test_curvature_in_the_mean_is_one_over_the_variance() -> None:
    """prop:no-pitchfork, by finite differences."""
    target, noise, h = line_mixture((-2.0, 2.0)), normal_rule(), 1e-3
    s = symmetric_variance(2.0) ** 0.5
    low, mid, high = (
        reverse_kl(push(m, s), target, noise).item() for m in (-h, 0.0, h)
    )
    assert (low - 2 * mid + high) / h**2 == pytest.approx(1 / s**2, rel=1e-5)


def exact_gradient(target: object, model: GaussianPush) -> Tensor:
    """By central differences of the quadrature, in (m, log s)."""
    theta, h = [model.m.item(), model.log_s.item()], 1e-5
    slopes = []
    for j in range(2):
        ends = []
        for sign in (1, -1):
            t = list(theta)
            t[j] += sign * h
            at = push(t[0], math.exp(t[1]))
            ends.append(reverse_kl(at, target, normal_rule()).item())
        slopes.append((ends[0] - ends[1]) / (2 * h))
    return torch.tensor(slopes)


@pytest.mark.parametrize("name", ["path", "landing", "score"])
def test_gradients_have_the_right_mean(name: str) -> None:
    """(eq:path-gradient) and (eq:score-gradient), by quadrature."""
    target, model, rule = line_mixture((-1.0, 2.0)), push(0.3, 0.8), normal_rule()
    left = rule.w @ getattr(gradients(model, target, rule.x), name)
    torch.testing.assert_close(left, exact_gradient(target, model), rtol=0, atol=1e-8)


def test_path_gradient_is_what_autograd_computes(rng: torch.Generator) -> None:
    """In the plane, draw by draw."""
    model = GaussianPush(torch.tensor([0.2, 1.0]), torch.tensor([0.5, 2.0]))
    target, z = ring(), torch.randn(6, 2, generator=rng)
    left = gradients(model, target, z).path
    for i in range(6):
        value = reverse_kl(model, target, empirical(z[i : i + 1]))
        right = torch.cat(torch.autograd.grad(value, list(model.parameters())))
        torch.testing.assert_close(left[i], right)


def test_training_goes_to_the_fixed_point(rng: torch.Generator) -> None:
    """The run must keep s² in [1.90, 1.98]: neither shrink nor swell."""
    target, model, noise = line_mixture((-1.0, 1.0)), push(0.5, 1.0), normal_rule()
    for _ in descend(
        model, lambda: reverse_kl(model, target, noise), steps=300, lr=0.05
    ):
        pass
    assert math.exp(2 * model.log_s.item()) == pytest.approx(1.94249, abs=1e-4)
    assert model.m.item() == pytest.approx(0, abs=1e-4)


def test_without_entropy_the_model_collapses() -> None:
    """At τ = 0 the same run leaves the band: the check can see it."""
    target, model, noise = line_mixture((-1.0, 1.0)), push(0.5, 1.0), normal_rule()

    def printed() -> Tensor:
        return free_energy(model, target.log_prob, noise, tau=0.0)

    for _ in descend(model, printed, steps=300, lr=0.05):
        pass
    assert math.exp(2 * model.log_s.item()) < 0.1


def test_descend_yields_after_the_step() -> None:
    model, noise = push(1.0, 1.0), normal_rule()
    target = Gaussian(torch.zeros(1), torch.eye(1))
    steps = descend(model, lambda: reverse_kl(model, target, noise), steps=3, lr=0.1)
    first = next(steps)
    assert first == pytest.approx(0.5)  # the value that the step started from
    assert model.m.item() == pytest.approx(0.9, abs=1e-6)  # Adam's first step is lr
    assert len(list(steps)) == 2


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="m and s > 0 must have one shape"):
        push(0.0, -1.0)
    with pytest.raises(
        ValueError, match=r"a ≥ 0 and tau > 0 are needed, got 1\.0, 0\.0"
    ):
        symmetric_variance(1.0, tau=0.0)
