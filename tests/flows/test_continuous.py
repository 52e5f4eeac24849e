"""book/flows/continuous.md, on fields whose flow, density and gradient are known.

A linear field has the flow exp(tA), so a Gaussian stays one, and torch.matrix_exp
is differentiated by other means than ours.  For the others the truth is autograd's
Jacobian, quadrature, or the sum over all signs.
"""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor, nn

from pushforward import ode
from pushforward.distributions import Gaussian, StandardNormal
from pushforward.flows import (
    Adaptive,
    Adjoint,
    Checkpointed,
    ContinuousFlow,
    FixedSteps,
    flow_log_prob,
    flow_map,
    hutchinson_variance,
    saved_bytes,
    transport,
)
from pushforward.nn import TimeMLP
from pushforward.ode import EULER, HEUN, RK4, signs_like

A = torch.tensor([[-0.3, 1.2, 0.0], [-0.8, 0.1, 0.5], [0.2, 0.0, -0.4]]).double()


class Linear(nn.Module):
    """v(x, t) = 2 t A x, whose flow from 0 to t is exp(t² A)."""

    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(A.clone())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 2 * t * x @ self.A.mT


def wavy(d: int = 2, scale: float = 3.0) -> TimeMLP:
    """A smooth field that depends on the time, no symmetry in it."""
    torch.manual_seed(0)
    v = TimeMLP(d, 12, frequencies=1, activation=nn.Tanh)
    with torch.no_grad():
        v.net[-1].weight.mul_(scale)
    return v


def exact(v: ode.Field, x: Tensor, start: float, end: float) -> Tensor:
    return flow_map(v, x, start, end, solver=Adaptive(1e-11))


def gradients(loss: Tensor, v: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, v.parameters())])


# The map and its density


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0), (0.2, 0.9)])
def test_the_flow_of_a_linear_field_is_an_exponential(
    start: float, end: float, rng: Generator
) -> None:
    """(eq:cnf), forwards and backwards in time, by fixed and by adaptive steps."""
    x = torch.randn(6, 3, generator=rng)
    truth = x @ torch.matrix_exp((end**2 - start**2) * A).mT
    torch.testing.assert_close(
        flow_map(Linear(), x, start, end, steps=60), truth, rtol=1e-8, atol=1e-8
    )
    torch.testing.assert_close(
        exact(Linear(), x, start, end), truth, rtol=1e-9, atol=1e-9
    )


def test_a_linear_field_makes_a_gaussian(rng: Generator) -> None:
    """(eq:cnf-log-prob): N(0, I) becomes N(0, EEᵀ), E = exp(A)."""
    x, E = torch.randn(50, 3, generator=rng), torch.matrix_exp(A)
    law = Gaussian(torch.zeros(3), E @ E.mT)
    found = flow_log_prob(Linear(), x, StandardNormal(3), steps=100)
    torch.testing.assert_close(found, law.log_prob(x), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0), (0.7, 0.1)])
def test_the_divergence_gathers_to_the_log_determinant(
    start: float, end: float, rng: Generator
) -> None:
    """Against the Jacobian of the integrated map, by autograd."""
    v, x = wavy(3), torch.randn(5, 3, generator=rng)
    solver = Adaptive(1e-11)
    way = transport(v, x, start, end, solver=solver)
    f = lambda x: flow_map(v, x, start, end, solver=solver).sum(0)
    J = torch.autograd.functional.jacobian(f, x).transpose(0, 1)  # (n, d, d)
    torch.testing.assert_close(
        way.log_det, torch.linalg.slogdet(J).logabsdet, rtol=1e-8, atol=1e-8
    )
    torch.testing.assert_close(way.x, exact(v, x, start, end), rtol=1e-9, atol=1e-9)
    assert way.log_det.abs().min() > 1e-3


def test_the_density_has_mass_one_and_the_mean_of_the_samples(rng: Generator) -> None:
    """By quadrature in the plane, and by 20,000 draws within 4 standard errors."""
    n, flow = 20_000, ContinuousFlow(wavy(), StandardNormal(2), steps=10)
    side = torch.linspace(-9, 9, 121)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        p = flow.log_prob(grid).exp() * 0.15**2
        x = flow.sample(n, rng=rng)
    assert p.sum().item() == pytest.approx(1.0, abs=1e-6)
    for f in (lambda x: x, lambda x: x.square(), lambda x: x[:, :1] * x[:, 1:]):
        draws, mean = f(x), p @ f(grid)
        assert ((draws.mean(0) - mean).abs() < 4 * draws.std(0) / n**0.5).all()


@pytest.mark.parametrize("method", [EULER, HEUN, RK4], ids=lambda m: m.order)
def test_log_p_has_the_order_of_the_method(method: ode.Tableau, rng: Generator) -> None:
    v, x, base = wavy(), torch.randn(20, 2, generator=rng), StandardNormal(2)
    with torch.no_grad():
        truth = flow_log_prob(v, x, base, solver=Adaptive(1e-11))
        n = {1: 160, 2: 20, 4: 10}[method.order]
        errors = [
            (flow_log_prob(v, x, base, solver=FixedSteps(k, method)) - truth).norm()
            for k in (n, 2 * n)
        ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(method.order, abs=0.15)


def test_the_energy_is_the_integral_of_the_squared_speed(rng: Generator) -> None:
    """Against the trapezoid rule on a fine path; the same both ways."""
    v, x = wavy(), torch.randn(7, 2, generator=rng)
    times = torch.linspace(0, 1, 601)
    states = [x, *ode.path(v, x, times)]
    speed = torch.stack(
        [v(s, t).square().sum(1) for s, t in zip(states, times, strict=True)]
    )
    truth = torch.trapezoid(speed, times, dim=0)
    there = transport(v, x, 0.0, 1.0, solver=Adaptive(1e-10))
    back = transport(v, there.x, 1.0, 0.0, solver=Adaptive(1e-10))
    torch.testing.assert_close(there.energy, truth, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(back.energy, truth, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(back.log_det, -there.log_det, rtol=1e-7, atol=1e-8)
    assert (truth > (there.x - x).square().sum(1)).all(), "a detour costs"


def test_images_flow_too(rng: Generator) -> None:
    """A field on images, row by row the same as on the flattened points."""
    v, x = wavy(4), torch.randn(6, 1, 2, 2, generator=rng)
    on_images = lambda x, t: v(x.flatten(1), t).view_as(x)
    found = flow_log_prob(on_images, x, StandardNormal(1, 2, 2))
    flat = flow_log_prob(v, x.flatten(1), StandardNormal(4))
    torch.testing.assert_close(found, flat, rtol=1e-13, atol=1e-13)


def test_in_a_row_the_flow_is_the_quantile_map(rng: Generator) -> None:
    """On R no path passes another: the mass left of a point stays left of it."""
    v, z = wavy(1), torch.tensor([[-1.5], [-0.2], [0.9]])
    x = exact(v, z, 0.0, 1.0)
    side = torch.linspace(-14, 14, 8001)[:, None]
    p = flow_log_prob(v, side, StandardNormal(1), steps=30).exp()
    cdf = torch.cumulative_trapezoid(p, side[:, 0])
    for a, b in zip(z[:, 0], x[:, 0], strict=True):
        k = int(((b - side[0, 0]) / (28 / 8000)).item())  # b lies after the k-th point
        part = (b - side[k, 0]) / (28 / 8000)
        left = cdf[k - 1] + part * (cdf[k] - cdf[k - 1])
        assert left.item() == pytest.approx(torch.special.ndtr(a).item(), abs=1e-5)


# Hutchinson's estimate


def all_signs(d: int) -> Tensor:
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=d)))


def test_the_mean_over_all_signs_is_log_p(rng: Generator) -> None:
    """Exactly, for a fixed number of steps: the path does not feel the noise."""
    v, x, base = wavy(3), torch.randn(5, 3, generator=rng), StandardNormal(3)
    estimates = torch.stack(
        [flow_log_prob(v, x, base, eps=s.expand(5, 3), steps=6) for s in all_signs(3)]
    )
    truth = flow_log_prob(v, x, base, steps=6)
    torch.testing.assert_close(estimates.mean(0), truth, rtol=1e-12, atol=1e-12)
    assert (estimates.exp().mean(0) > truth.exp()).all(), "of p it is biased, upwards"
    assert estimates.std(0).min() > 1e-3


@pytest.mark.parametrize("a2", [1.0, 3.0, 4.5])
def test_the_variance_of_the_estimate(a2: float, rng: Generator) -> None:
    """(eq:cnf-hutchinson-variance), summed over a law on {−a, 0, a}: E ε⁴ = a²."""
    d, J = 3, torch.randn(2, 3, 3, generator=rng)
    values, p = torch.tensor([-(a2**0.5), 0.0, a2**0.5]), torch.tensor(
        [0.5 / a2, 1 - 1 / a2, 0.5 / a2]
    )  # fmt: skip
    at = torch.tensor(list(itertools.product(range(3), repeat=d)))
    eps, weight = values[at], p[at].prod(1)
    draws = torch.einsum("mi,nij,mj->mn", eps, J, eps)
    mean = weight @ draws
    torch.testing.assert_close(mean, J.diagonal(dim1=1, dim2=2).sum(1))
    torch.testing.assert_close(
        weight @ (draws - mean).square(), hutchinson_variance(J, a2)
    )


def test_the_variance_for_normal_noise_is_twice_the_squared_norm(
    rng: Generator,
) -> None:
    n, J = 200_000, torch.randn(1, 4, 4, generator=rng)
    S = (J[0] + J[0].T) / 2
    truth = 2 * S.square().sum()
    torch.testing.assert_close(hutchinson_variance(J, 3.0)[0], truth)
    eps = torch.randn(n, 4, generator=rng)
    sq = (torch.einsum("mi,ij,mj->m", eps, J[0], eps) - J[0].trace()).square()
    assert abs(sq.mean() - truth) < 4 * sq.std() / n**0.5


def test_the_estimate_is_that_of_its_noise(rng: Generator) -> None:
    """Of a linear field it is constant in time: log p̂ = log π(z) − εᵀAε."""
    x, eps = torch.randn(4, 3, generator=rng), torch.randn(4, 3, generator=rng)
    way = transport(Linear(), x, 0.0, 1.0, eps=eps, solver=FixedSteps(100))
    quadratic = torch.einsum("ni,ij,nj->n", eps, A, eps)
    torch.testing.assert_close(way.log_det, quadratic, rtol=1e-9, atol=1e-9)


# Gradients


def test_the_adjoint_is_the_gradient_of_the_exponential(rng: Generator) -> None:
    """(eq:cnf-adjoint) against autograd through torch.matrix_exp, by x and by A."""
    x, w = (torch.randn(5, 3, generator=rng) for _ in "xw")
    x.requires_grad_()
    B = A.clone().requires_grad_()
    truth = torch.autograd.grad(((x @ torch.matrix_exp(B).mT).sin() * w).sum(), (B, x))
    v = Linear()
    for inner in (Adaptive(1e-9), FixedSteps(60)):
        y = flow_map(v, x, 0.0, 1.0, solver=Adjoint(inner))
        found = torch.autograd.grad((y.sin() * w).sum(), (v.A, x))
        torch.testing.assert_close(found, truth, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("eps", [None, torch.tensor([[1.0, -1.0]])])
def test_three_gradients_of_the_likelihood_agree(
    eps: Tensor | None, rng: Generator
) -> None:
    """Backpropagation, checkpoints (the same to rounding), and the adjoint."""
    v, x, base = wavy(), torch.randn(8, 2, generator=rng), StandardNormal(2)
    noise = None if eps is None else eps.expand(8, 2)

    def gradient(solver: Callable) -> Tensor:
        loss = flow_log_prob(v, x, base, solver=solver, eps=noise).mean()
        return gradients(loss, v)

    back = gradient(FixedSteps(24))
    for same in (Checkpointed(24), Checkpointed(6, FixedSteps(4))):
        torch.testing.assert_close(gradient(same), back, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(
        gradient(Adjoint(FixedSteps(24))), back, rtol=1e-5, atol=1e-5
    )
    fine = gradient(Adjoint(Adaptive(1e-8)))
    torch.testing.assert_close(gradient(Adaptive(1e-8)), fine, rtol=1e-6, atol=1e-6)
    assert back.abs().max() > 0.01


@pytest.mark.parametrize("method", [EULER, HEUN, RK4], ids=lambda m: m.order)
def test_both_gradients_have_the_order_of_the_method(
    method: ode.Tableau, rng: Generator
) -> None:
    v, x = wavy(), torch.randn(6, 2, generator=rng)
    f = lambda solver: gradients(
        flow_map(v, x, 0.0, 1.0, solver=solver).square().sum(), v
    )
    truth, n = f(Adaptive(1e-11)), {1: 160, 2: 20, 4: 10}[method.order]
    for wrap in (lambda s: s, Adjoint):
        errors = [(f(wrap(FixedSteps(k, method))) - truth).norm() for k in (n, 2 * n)]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(method.order, abs=0.15)


def test_what_is_frozen_gets_no_gradient(rng: Generator) -> None:
    v, x = wavy(), torch.randn(3, 2, generator=rng)
    v.net[0].weight.requires_grad_(False)
    for solver in (Adjoint(), Checkpointed(5)):
        flow_log_prob(v, x, StandardNormal(2), solver=solver).sum().backward()
        assert v.net[0].weight.grad is None
        assert v.net[0].bias.grad.abs().max() > 0
        v.zero_grad()


def test_a_field_that_stands_still_has_the_identity_for_gradient() -> None:
    """Nothing in it depends on x or on a parameter."""

    class Still(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.ones_like(x.detach())

    x = torch.zeros(2, 2, requires_grad=True)
    y = flow_map(Still(), x, 0.0, 1.0, solver=Adjoint())
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, torch.ones(2, 2))
    torch.testing.assert_close(grad, torch.ones(2, 2))


@pytest.mark.parametrize("solver", [Adjoint(), Checkpointed(3)])
def test_what_is_not_used_has_gradient_zero(solver: Callable) -> None:
    """A field that is one vector: neither the points nor the spare weight matter."""

    class Drift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, -2.0]))
            self.spare = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.w.expand(len(x), 2)

    v = Drift()
    y = flow_map(v, torch.zeros(5, 2), 0.0, 1.0, solver=solver)
    by_w, by_spare = torch.autograd.grad(y.sum(), (v.w, v.spare))
    torch.testing.assert_close(by_w, torch.full((2,), 5.0))
    torch.testing.assert_close(by_spare, torch.zeros(3))


def test_a_lambda_has_no_adjoint() -> None:
    for solver in (Adjoint(), Checkpointed()):
        with pytest.raises(ValueError, match="v must be a module"):
            flow_map(lambda x, t: -x, torch.ones(2, 2), 0.0, 1.0, solver=solver)


def test_memory_is_counted() -> None:
    """exp keeps its result, once however often it is kept, until it is let go."""
    x = torch.zeros(1000, requires_grad=True)
    assert saved_bytes(lambda: x.exp()) == 8000
    assert saved_bytes(lambda: x.exp().exp().sum().backward()) == 16_000
    assert saved_bytes(lambda: [x.exp() for _ in range(5)]) == 40_000
    assert saved_bytes(lambda: [x.exp().sum().backward() for _ in range(5)]) == 8000
    y = x.exp()
    assert saved_bytes(lambda: (y * y, y.sin())) == 8000
    assert saved_bytes(lambda: None) == 0


def test_memory_grows_with_the_steps_unless_it_does_not(rng: Generator) -> None:
    v, x = wavy(), torch.randn(50, 2, generator=rng)

    def held(solver: Callable) -> int:
        def compute() -> None:
            gradients(flow_log_prob(v, x, StandardNormal(2), solver=solver).sum(), v)

        return saved_bytes(compute)

    back = [held(FixedSteps(n)) for n in (6, 12)]
    assert back[1] / back[0] == pytest.approx(2, abs=0.05)
    adjoint = [held(Adjoint(FixedSteps(n))) for n in (6, 12)]
    assert adjoint[0] == adjoint[1] < back[0] / 20
    kept = [held(Checkpointed(n)) for n in (6, 12)]
    assert kept[1] - kept[0] == 6 * 50 * 4 * 8, "one state a step"
    assert kept[1] < back[1] / 6


# The model


def test_the_loss_is_unbiased(rng: Generator) -> None:
    """Over all signs: −log p + λ energy (eq:cnf-loss)."""
    flow = ContinuousFlow(wavy(), StandardNormal(2), steps=5, penalty=0.3)
    x, n = torch.randn(1, 2, generator=rng), 4000
    way = transport(flow.v, x, 1.0, 0.0, solver=FixedSteps(5))
    truth = 0.3 * way.energy[0] - flow.log_prob(x)[0]
    rows = torch.stack(
        [flow.loss(x, rng=rng).detach() for _ in range(40)]
    )  # each takes one of two values: εᵀJε = tr J ± (J₁₂ + J₂₁)
    assert len(rows.mul(1e9).round().unique()) == 2
    mean = (rows.min() + rows.max()) / 2
    assert mean.item() == pytest.approx(truth.item(), abs=1e-10)
    many = flow.loss(x.expand(n, 2), rng=rng)
    half = (rows.max() - rows.min()) / 2
    assert abs(many - truth) < 4 * half / n**0.5


def test_the_loss_draws_from_its_rng_alone() -> None:
    flow, state = ContinuousFlow(wavy(), StandardNormal(2)), torch.get_rng_state()
    x = torch.randn(9, 2, generator=Generator().manual_seed(9))
    a, b, c = (flow.loss(x, rng=Generator().manual_seed(k)).item() for k in (1, 1, 3))
    assert a == b != c
    assert torch.equal(torch.get_rng_state(), state)


def test_samples_have_the_law_of_a_linear_flow(rng: Generator) -> None:
    n, E = 50_000, torch.matrix_exp(A)
    flow = ContinuousFlow(Linear(), StandardNormal(3), solver=FixedSteps(40))
    x = flow.sample(n, rng=rng)
    cov, truth = x.mT @ x / n, E @ E.mT
    se = ((truth**2 + truth.diagonal()[:, None] * truth.diagonal()) / n).sqrt()
    assert ((cov - truth).abs() < 4 * se).all()
    assert not x.requires_grad
    again = flow.sample(5, rng=Generator().manual_seed(3))
    assert torch.equal(again, flow.sample(5, rng=Generator().manual_seed(3)))


def test_single_precision_stays(rng: Generator) -> None:
    v = wavy().float()
    x = torch.randn(4, 2, generator=rng, dtype=torch.float32)
    base = StandardNormal(2).float()
    for solver in (
        FixedSteps(3),
        Adaptive(1e-3),
        Adjoint(FixedSteps(3)),
        Checkpointed(3),
    ):
        found = flow_log_prob(v, x, base, solver=solver, eps=signs_like(x, rng=rng))
        assert found.dtype == torch.float32


def test_no_time_is_no_change(rng: Generator) -> None:
    x = torch.randn(3, 2, generator=rng)
    for solver in (FixedSteps(3), Adaptive(1e-3), Adjoint(), Checkpointed(3)):
        assert torch.equal(flow_map(wavy(), x, 0.4, 0.4, solver=solver), x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v, x: flow_map(v, x[0], 0.0, 1.0), r"x must be finite .* got \(2,\)"),
        (lambda v, x: flow_map(v, x.long(), 0.0, 1.0), "got .* torch.int64"),
        (lambda v, x: flow_map(v, x / 0, 0.0, 1.0), "x must be finite"),
        (lambda v, x: flow_map(v, x, 0.0, math.inf), "start and end .* inf"),
        (lambda v, x: flow_map(v, x, 0.0, 1.0, steps=0), "steps must be at least 1"),
        (lambda v, x: Checkpointed(0), "segments must be at least 1, got 0"),
        (
            lambda v, x: transport(v, x, 0.0, 1.0, eps=x[:1]),
            r"eps must be \(4, 2\), got \(1, 2\)",
        ),
        (
            lambda v, x: transport(lambda x, t: x[:, :1], x, 0.0, 1.0),
            r"velocities \(4, 2\), got \(4, 1\)",
        ),
        (
            lambda v, x: flow_log_prob(v, x, StandardNormal(2), solver=Adaptive(0.0)),
            "tol must be positive",
        ),
        (
            lambda v, x: ContinuousFlow(v, StandardNormal(2), penalty=-1),
            "penalty .* -1",
        ),
        (lambda v, x: hutchinson_variance(x), r"J must have shape .* got \(4, 2\)"),
        (lambda v, x: hutchinson_variance(x[None, :2], 0.5), "fourth .* 0.5"),
    ],
)
def test_bad_input_is_refused_at_the_door(call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(wavy(), torch.ones(4, 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same(rng: Generator) -> None:
    v, x = wavy(), torch.randn(8, 2, generator=rng)
    eps = signs_like(x, rng=rng)
    here = flow_log_prob(v, x, StandardNormal(2), eps=eps)
    v, base = v.cuda(), StandardNormal(2).cuda()
    for solver in (None, Adjoint(), Checkpointed()):
        there = flow_log_prob(v, x.cuda(), base, eps=eps.cuda(), solver=solver)
        torch.testing.assert_close(there.cpu(), here, rtol=1e-9, atol=1e-9)
