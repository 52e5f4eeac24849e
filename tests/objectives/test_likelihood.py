"""book/objectives/likelihood.md, equation by equation."""

import math

import pytest
import torch
from scipy.stats import multivariate_normal, norm
from torch import Tensor

from pushforward.distributions import (
    Gaussian,
    Mixture,
    StandardNormal,
    line_mixture,
    ring,
)
from pushforward.objectives.likelihood import (
    Rule,
    bits_per_dim,
    dequantise,
    em_step,
    empirical,
    fit_gaussian,
    information,
    kl_divergence,
    line_rule,
    normal_rule,
    push_forward,
)


def normal(m: float, v: float) -> Gaussian:
    return Gaussian(torch.tensor([m]), torch.tensor([[v]]))


def test_normal_rule_has_the_moments_of_the_normal_law() -> None:
    rule = normal_rule()
    moments = torch.stack([rule.mean(lambda x, k=k: x**k)[0] for k in range(9)])
    exact = torch.tensor([1.0, 0, 1, 0, 3, 0, 15, 0, 105])
    torch.testing.assert_close(moments, exact, rtol=0, atol=1e-11)


def test_normal_rule_gives_the_characteristic_function() -> None:
    """E cos(tZ) = exp(−t²/2): no polynomial rule of 401 nodes is needed to see it."""
    t = torch.linspace(0, 6, 13)
    left = normal_rule().mean(lambda x: (t * x).cos())
    torch.testing.assert_close(left, (-(t**2) / 2).exp(), rtol=0, atol=1e-14)


def test_line_rule_has_the_moments_of_the_mixture() -> None:
    law = line_mixture((-1.0, 2.0), 0.7, (0.3, 0.7))
    rule = line_rule(law)
    assert rule.w.sum().item() == pytest.approx(1, abs=1e-14)
    torch.testing.assert_close(rule.mean(lambda x: x), law.mean(), rtol=0, atol=1e-13)
    second = rule.mean(lambda x: (x - law.mean()) ** 2)
    torch.testing.assert_close(second, law.cov()[0], rtol=0, atol=1e-12)


def test_kl_of_gaussians_is_the_closed_form() -> None:
    """(eq:forward-kl), and that its arguments are not swapped."""
    p, q = normal(0.3, 0.5), normal(-1.0, 2.0)
    exact = (math.log(4) + (0.5 + 1.3**2) / 2 - 1) / 2
    assert kl_divergence(p, q, line_rule(p)).item() == pytest.approx(exact, abs=1e-13)


def test_expected_likelihood_is_minus_entropy_minus_divergence() -> None:
    """(eq:expected-likelihood), the entropy of a Gaussian in closed form."""
    p, q = normal(1.0, 3.0), normal(0.0, 2.0)
    entropy = math.log(2 * math.pi * math.e * 3) / 2
    rule = line_rule(p)
    left = rule.mean(q.log_prob).item()
    assert left == pytest.approx(-entropy - kl_divergence(p, q, rule).item(), abs=1e-13)


def test_fit_gaussian_beats_its_neighbours(rng: torch.Generator) -> None:
    """(eq:gaussian-projection) maximises (eq:likelihood-objective)."""
    x = ring().sample(500, rng=rng)
    fit = fit_gaussian(empirical(x))
    best = fit.log_prob(x).mean()
    for _ in range(50):
        e = 0.05 * torch.randn(2, 2, generator=rng)
        cov = fit.covs[0] + (e + e.T) / 2
        shift = 0.05 * torch.randn(2, generator=rng)
        assert Gaussian(fit.means[0] + shift, cov).log_prob(x).mean() < best


def test_fit_gaussian_agrees_with_scipy(rng: torch.Generator) -> None:
    x = ring().sample(200, rng=rng)
    fit = fit_gaussian(empirical(x))
    mean, cov = multivariate_normal.fit(x.numpy())
    torch.testing.assert_close(fit.means[0], torch.tensor(mean))
    torch.testing.assert_close(fit.covs[0], torch.tensor(cov))


def quartic(x: Tensor) -> Tensor:
    """T(x) = (x², x⁴)."""
    return torch.cat([x**2, x**4], dim=1)


def test_matched_moments_are_the_projection() -> None:
    """(eq:moment-matching) and (eq:pythagoras) for exp(θ·(x², x⁴) − A(θ))."""
    x = torch.linspace(-6, 6, 4001)[:, None]
    log_dx = math.log((x[1] - x[0]).item())
    data = line_mixture((-1.0, 1.0))
    rule = line_rule(data)
    moments = rule.mean(quartic)

    def log_q(theta: Tensor, at: Tensor) -> Tensor:
        return quartic(at) @ theta - (quartic(x) @ theta).logsumexp(0) - log_dx

    def kl(theta: Tensor) -> Tensor:
        return rule.mean(lambda at: data.log_prob(at) - log_q(theta, at))

    theta = torch.tensor([-0.15, -0.01])
    for _ in range(40):  # Newton on A(θ) − θ·E T, damped
        w = (quartic(x) @ theta).softmax(0)
        c = quartic(x) - w @ quartic(x)
        theta = theta + torch.linalg.solve((w * c.T) @ c, moments - w @ quartic(x)) / 2
    for _ in range(5):
        w = (quartic(x) @ theta).softmax(0)
        c = quartic(x) - w @ quartic(x)
        theta = theta + torch.linalg.solve((w * c.T) @ c, moments - w @ quartic(x))
    torch.testing.assert_close(w @ quartic(x), moments, rtol=1e-10, atol=0)
    for step in ([0.02, 0.0], [-0.02, 0.0], [0.0, -0.004], [0.0, 0.002]):
        other = theta + torch.tensor(step)
        between = w @ (log_q(theta, x) - log_q(other, x))
        assert kl(other).item() == pytest.approx((kl(theta) + between).item(), rel=1e-9)
        assert kl(other) > kl(theta)


def test_information_is_the_sandwich_of_the_closed_form() -> None:
    """(eq:sandwich) for N(m, v) fitted to ½N(−1, 1) + ½N(1, 1): V = diag(2, 6)."""

    def log_prob(theta: Tensor, x: Tensor) -> Tensor:
        return -((x[:, 0] - theta[0]) ** 2 / theta[1] + theta[1].log()) / 2

    rule = line_rule(line_mixture((-1.0, 1.0)))
    info = information(log_prob, torch.tensor([0.0, 2.0]), rule)
    close = {"rtol": 0, "atol": 1e-11}
    torch.testing.assert_close(
        info.A, torch.diag(torch.tensor([1 / 2, 1 / 8])), **close
    )
    B = torch.diag(torch.tensor([1 / 2, 6 / 64]))
    torch.testing.assert_close(info.B, B, **close)
    torch.testing.assert_close(info.V, torch.diag(torch.tensor([2.0, 6.0])), **close)


def test_sandwich_of_a_family_with_correlated_parameters() -> None:
    """In a right family A = B = V⁻¹, also when they are not diagonal."""

    def log_prob(theta: Tensor, x: Tensor) -> Tensor:
        z = (x[:, 0] - theta[0] - theta[1]) / theta[1].exp()  # an odd chart
        return -z.square() / 2 - theta[1]

    theta = torch.tensor([0.3, -0.2])
    law = normal(0.1, math.exp(-0.4))
    info = information(log_prob, theta, line_rule(law))
    torch.testing.assert_close(info.A, info.B, rtol=0, atol=1e-11)
    torch.testing.assert_close(info.V, torch.linalg.inv(info.B), rtol=1e-10, atol=0)
    assert info.A[0, 1].abs() > 0.1


def cubic(z: Tensor) -> Tensor:
    """The inverse of x + x³/3."""
    return 2 * ((1.5 * z).asinh() / 3).sinh()


def test_push_forward_on_the_line_is_the_derivative_of_the_cdf() -> None:
    """(eq:push-forward-density)."""
    x = torch.linspace(-2, 2, 81)[:, None]
    pushed = push_forward(cubic, StandardNormal(1), x + x**3 / 3)
    torch.testing.assert_close(pushed.x, x)
    exact = norm.logpdf((x + x**3 / 3).numpy()) + (1 + x**2).log().numpy()
    torch.testing.assert_close(pushed.log_prob, torch.tensor(exact)[:, 0])


def test_push_forward_by_a_linear_map_is_a_gaussian(rng: torch.Generator) -> None:
    """(eq:push-forward-density), where det is negative and not one."""
    W = torch.tensor([[0.5, 2.0, 0.0], [1.0, 0.3, 0.1], [0.0, 0.2, 3.0]])
    assert torch.linalg.det(W) < -1
    z = torch.randn(20, 3, generator=rng)
    pushed = push_forward(lambda z: z @ W.T + 1, StandardNormal(3), z)
    exact = Gaussian(torch.ones(3), W @ W.T).log_prob(pushed.x)
    torch.testing.assert_close(pushed.log_prob, exact)


def test_push_forward_to_a_curve_is_a_density_by_length() -> None:
    """A helix of speed √2: the density along it is that of u, over √2."""
    u = torch.linspace(-1, 1, 9)[:, None]

    def helix(u: Tensor) -> Tensor:
        return torch.cat([u.cos(), u.sin(), u], dim=1)

    log_prob = push_forward(helix, StandardNormal(1), u).log_prob
    exact = StandardNormal(1).log_prob(u) - math.log(2) / 2
    torch.testing.assert_close(log_prob, exact)


def test_push_forward_refuses_to_lower_the_dimension() -> None:
    with pytest.raises(ValueError, match="g must not lower the dimension 2 to 1"):
        push_forward(lambda z: z[:, :1], StandardNormal(2), torch.zeros(3, 2))


def test_dequantised_points_lie_in_their_cells(rng: torch.Generator) -> None:
    """And fill them: u is uniform (eq:dequantisation)."""
    k = torch.randint(8, (20_000, 1), generator=rng).double()
    x = dequantise(k, 8, rng=rng)
    assert torch.equal((8 * x).floor(), k)
    u = 8 * x - k
    assert u.mean().item() == pytest.approx(0.5, abs=4 * (1 / 12 / len(k)) ** 0.5)
    assert u.var().item() == pytest.approx(1 / 12, abs=4 * (1 / 180 / len(k)) ** 0.5)


def test_dequantise_refuses_what_is_no_grey_value() -> None:
    with pytest.raises(ValueError, match=r"k must be floats in \[0, 7\]"):
        dequantise(torch.tensor([[8.0]]), 8)
    with pytest.raises(ValueError, match="k must be floats"):
        dequantise(torch.tensor([[3]]), 8)


def test_bits_per_dim_of_the_uniform_law_is_log2_of_the_levels() -> None:
    """(eq:bits-per-dim): the density is one, so nats = 0."""
    assert bits_per_dim(torch.tensor(0.0), 3).item() == pytest.approx(8)
    # half the cube: the density is 2 in each of d dimensions, one bit less each
    half = bits_per_dim(torch.tensor(-5 * math.log(2)), 5, 32)
    assert half.item() == pytest.approx(4)


def test_bits_per_dim_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="d ≥ 1 and levels ≥ 2 are needed, got 0, 256"):
        bits_per_dim(torch.tensor(0.0), 0)


def test_em_finds_the_law_when_given_the_law_itself() -> None:
    """A mixture is a fixed point of EM on its own quadrature."""
    law = line_mixture((-2.0, 1.0), 0.8, (0.3, 0.7))
    step = em_step(law, line_rule(law))
    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(step.means, law.means, **close)
    torch.testing.assert_close(step.covs, law.covs, **close)
    torch.testing.assert_close(step.log_weights, law.log_weights, **close)


def test_em_climbs_in_the_plane(rng: torch.Generator) -> None:
    data = empirical(ring(3).sample(300, rng=rng))
    law = Mixture(torch.randn(3, 2, generator=rng), torch.eye(2).repeat(3, 1, 1))
    climb = []
    for _ in range(30):
        climb.append(data.mean(law.log_prob))
        law = em_step(law, data)
    assert (torch.stack(climb).diff() > -1e-13).all()
    assert climb[-1] - climb[0] > 0.5


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="x must have shape"):
        empirical(torch.zeros(3))
    with pytest.raises(ValueError, match="nodes ≥ 2"):
        normal_rule(1)
    with pytest.raises(ValueError, match=r"law must live on R\^1, got R\^2"):
        line_rule(ring())


def test_a_rule_averages_what_has_more_than_one_entry() -> None:
    rule = Rule(torch.tensor([[0.0], [1.0]]), torch.tensor([0.25, 0.75]))
    left = rule.mean(lambda x: torch.cat([x, x + 1], dim=1))
    torch.testing.assert_close(left, torch.tensor([0.75, 1.75]))
