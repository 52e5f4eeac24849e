"""book/flows/change.md, equation by equation."""

import math

import pytest
import torch
from torch import Generator, Tensor

from pushforward.distributions import Gaussian, Mixture, StandardNormal, ring
from pushforward.flows import (
    Affine,
    AffineCoupling,
    Bijection,
    Chain,
    Flow,
    Inverse,
    Knothe,
    Logit,
)
from pushforward.nn import MLP


class Exp(Bijection):
    """f(x) = log x, g(z) = exp z: the flow of the log-normal law."""

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.log(), -x.log().sum(1)

    def inverse(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z.exp(), z.sum(1)


def mixture() -> Mixture:
    cov = torch.tensor([[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.4]]])
    means = torch.tensor([[-1.0, 0.5], [1.2, -0.7]])
    return Mixture(means, cov, torch.tensor([0.3, 0.7]))


def coupling() -> AffineCoupling:
    torch.manual_seed(0)
    return AffineCoupling(torch.tensor([True, False]), MLP(1, 8, 2))


MAPS = {
    "affine": lambda: Affine(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])),
    "logit": Logit,
    "knothe": lambda: Knothe(mixture()),
    "chain": lambda: Chain([Logit(0.1), Affine(torch.ones(2), 2 * torch.ones(2))]),
    "inverse": lambda: Inverse(coupling()),
}


@pytest.fixture(params=MAPS)
def f(request: pytest.FixtureRequest) -> Bijection:
    return MAPS[request.param]()


@pytest.fixture
def x(rng: Generator) -> Tensor:
    return torch.rand(30, 2, generator=rng)


def slogdet(f: Bijection, x: Tensor) -> Tensor:
    """Log |det| of the Jacobian at each row, by automatic differentiation."""
    return torch.linalg.slogdet(jacobian(f, x)).logabsdet


def jacobian(f: Bijection, x: Tensor) -> Tensor:
    """Jacobian at each row: rows do not mix, so a sum over them serves all."""
    x = x.clone().requires_grad_()
    z = f(x)[0]
    rows = [torch.autograd.grad(z[:, i].sum(), x, retain_graph=True)[0]
            for i in range(z.shape[1])]  # fmt: skip
    return torch.stack(rows, 1)


def test_log_det_is_that_of_the_jacobian(f: Bijection, x: Tensor) -> None:
    z, log_det = f(x)
    assert z.shape == x.shape
    torch.testing.assert_close(log_det, slogdet(f, x), rtol=1e-10, atol=1e-10)


def test_inverse_undoes_forward_and_its_log_det(f: Bijection, x: Tensor) -> None:
    z, log_det = f(x)
    back, log_det_back = f.inverse(z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-10)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-9)


def test_log_dets_of_a_chain_add_up_in_its_order(x: Tensor) -> None:
    """(eq:flow-chain): the first map listed is the first to touch the data."""
    first, second = Logit(0.2), Affine(torch.tensor([1.0, 2.0]), torch.ones(2) * 3)
    z, log_det = Chain([first, second])(x)
    torch.testing.assert_close(z, second(first(x)[0])[0])
    torch.testing.assert_close(log_det, first(x)[1] + second(first(x)[0])[1])


def test_an_empty_chain_is_the_identity(x: Tensor) -> None:
    z, log_det = Chain([])(x)
    assert torch.equal(z, x)
    assert torch.equal(log_det, torch.zeros(30))


def test_log_prob_of_a_flow_is_that_of_the_log_normal_law(x: Tensor) -> None:
    """(eq:flow-log-prob), against torch's own formula."""
    flow = Flow(Exp(), StandardNormal(2))
    truth = torch.distributions.LogNormal(0.0, 1.0).log_prob(x).sum(1)
    torch.testing.assert_close(flow.log_prob(x), truth)


def test_draws_come_with_their_log_density(rng: Generator) -> None:
    """(eq:flow-draw)."""
    flow = Flow(Exp(), StandardNormal(2))
    draw = flow.draw(50, rng=rng)
    truth = torch.distributions.LogNormal(0.0, 1.0).log_prob(draw.x).sum(1)
    torch.testing.assert_close(draw.log_prob, truth)


def test_draw_passes_gradients_and_sample_does_not(rng: Generator) -> None:
    flow = Flow(Inverse(coupling()), StandardNormal(2))
    draw = flow.draw(5, rng=rng)
    (draw.log_prob.mean() + draw.x.mean()).backward()
    grads = [p.grad for p in flow.parameters()]
    assert all(g is not None and (g != 0).any() for g in grads)
    assert not flow.sample(5, rng=rng).requires_grad


def test_knothe_gives_the_mixture_its_own_density(rng: Generator) -> None:
    """(eq:flow-knothe): with base N(0, I) the flow is the law it was made from."""
    law = mixture()
    x = law.sample(200, rng=rng)
    flow = Flow(Knothe(law), StandardNormal(2))
    torch.testing.assert_close(flow.log_prob(x), law.log_prob(x))


def test_knothe_is_triangular_and_increasing(x: Tensor) -> None:
    J = jacobian(Knothe(mixture()), x)
    assert (J[:, 0, 1] == 0).all()
    assert (J.diagonal(dim1=1, dim2=2) > 0).all()


def test_knothe_keeps_its_digits_in_both_tails() -> None:
    """Of N(0, 1) it is the identity, thirty deviations out on either side."""
    f = Knothe(Gaussian(torch.zeros(1), torch.eye(1)))
    x = torch.tensor([[-30.0], [-8.5], [0.0], [8.5], [30.0]])
    torch.testing.assert_close(f(x)[0], x, rtol=1e-12, atol=1e-12)


def test_knothe_in_eight_dimensions(rng: Generator) -> None:
    L = torch.randn(2, 8, 8, generator=rng)
    law = Mixture(torch.randn(2, 8, generator=rng), L @ L.mT + torch.eye(8))
    f, x = Knothe(law), law.sample(20, rng=rng)
    z, log_det = f(x)
    torch.testing.assert_close(log_det, slogdet(f, x))
    torch.testing.assert_close(f.inverse(z)[0], x, rtol=0, atol=1e-9)


def test_logit_covers_the_closed_cube() -> None:
    """(eq:flow-logit), by hand at the corners and in the middle."""
    z, _ = Logit(0.05)(torch.tensor([[0.0, 0.5, 1.0]]))
    edge = math.log(0.05 / 0.95)
    torch.testing.assert_close(z, torch.tensor([[edge, 0.0, -edge]]))


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_logit_refuses_data_outside_the_cube(bad: float) -> None:
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\]"):
        Logit()(torch.tensor([[0.5, bad]]))


@pytest.mark.parametrize("alpha", [0.0, 0.5, -1.0, math.nan])
def test_logit_refuses_another_alpha(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must lie in"):
        Logit(alpha)


@pytest.mark.parametrize(
    ("m", "s"),
    [
        (torch.zeros(2), torch.tensor([1.0, 0.0])),
        (torch.zeros(2), torch.ones(3)),
        (torch.zeros(2), torch.tensor([1.0, math.inf])),
        (torch.tensor([0.0, math.nan]), torch.ones(2)),
    ],
)
def test_affine_refuses_what_is_no_scale(m: Tensor, s: Tensor) -> None:
    with pytest.raises(ValueError, match="s must be positive"):
        Affine(m, s)


def test_affine_serves_images() -> None:
    f = Affine(torch.zeros(1, 1, 1), torch.full((1, 1, 1), 2.0))
    z, log_det = f(torch.ones(3, 2, 4, 4))
    torch.testing.assert_close(z, torch.full((3, 2, 4, 4), 0.5))
    torch.testing.assert_close(log_det, torch.full((3,), -32 * math.log(2)))


def test_flow_refuses_what_is_no_batch_of_data() -> None:
    flow = Flow(Affine(torch.zeros(2), torch.ones(2)), StandardNormal(2))
    with pytest.raises(ValueError, match="x must be a batch"):
        flow.log_prob(torch.zeros(0, 2))
    with pytest.raises(ValueError, match="x must be finite"):
        flow.log_prob(torch.tensor([[0.0, math.nan]]))
    with pytest.raises(ValueError, match=r"x must be torch\.float64"):
        flow.log_prob(torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="x must have 2 numbers a row"):
        flow.log_prob(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="c must have 3 rows"):
        flow.log_prob(torch.zeros(3, 2), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="n must be positive"):
        flow.sample(0)


def test_flow_refuses_another_dtype_than_its_own() -> None:
    flow = Flow(coupling(), StandardNormal(2))
    with pytest.raises(ValueError, match=r"x must be torch.float64"):
        flow.log_prob(torch.zeros(2, 2, dtype=torch.float32))


def test_two_sided_divergence(rng: Generator) -> None:
    """KL(p ‖ g#π) = KL(f#p ‖ π), for Gaussians, where both are known."""
    m, s = torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.5])
    p = torch.distributions.Normal(torch.zeros(2), torch.ones(2) * 1.5)
    q = torch.distributions.Normal(m, s)  # the law of m + s z
    left = torch.distributions.kl_divergence(p, q).sum()
    f = Affine(m, s)
    pushed = torch.distributions.Normal(f(p.mean[None])[0][0], p.stddev / s)
    noise = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
    right = torch.distributions.kl_divergence(pushed, noise).sum()
    torch.testing.assert_close(left, right)


def test_a_conditional_flow_is_another_law_for_each_row(rng: Generator) -> None:
    torch.manual_seed(0)
    f = AffineCoupling(torch.tensor([True, False]), MLP(3, 8, 2))
    flow, c = Flow(f, StandardNormal(2)), torch.randn(4, 2, generator=rng)
    draw = flow.draw(4, c, rng=rng)
    torch.testing.assert_close(flow.log_prob(draw.x, c), draw.log_prob)
    assert not torch.allclose(flow.log_prob(draw.x, c.flip(0)), draw.log_prob)


def test_samples_of_the_exact_flow_follow_the_law(rng: Generator) -> None:
    """Mean and covariance of 20,000 draws within 4 standard errors."""
    law = ring(3, 1.5, 0.4)
    x = Flow(Knothe(law, halvings=60), StandardNormal(2)).sample(20_000, rng=rng)
    se = (law.cov().diagonal() / len(x)).sqrt()
    assert ((x.mean(0) - law.mean()).abs() < 4 * se).all()
    torch.testing.assert_close(torch.cov(x.T), law.cov(), rtol=0, atol=0.04)
