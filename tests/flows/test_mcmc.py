"""book/flows/mcmc.md, on kernels that are known exactly.

On finitely many states a kernel is a matrix: its law, its spectrum and its
distance to π are computed, by enumeration where the module integrates.  On R^d the
truths are Gaussians, torch.distributions, and chains of known autocorrelation.
"""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from pushforward.distributions import Gaussian, StandardNormal, line_mixture
from pushforward.flows import Affine, Flow, real_nvp
from pushforward.flows.mcmc import (
    AdaptiveProposal,
    Chains,
    Move,
    chain_size,
    compose,
    ex2,
    harris,
    importance_size,
    isir,
    isir_matrix,
    isir_rate,
    mala,
    metropolis_matrix,
    simulate,
    sir,
    sir_law,
)
from pushforward.train import train

FIVE = torch.tensor([0.35, 0.25, 0.2, 0.15, 0.05], dtype=torch.float64)
UNIFORM = torch.full((5,), 0.2, dtype=torch.float64)
OTHER = torch.tensor([0.1, 0.4, 0.2, 0.1, 0.2], dtype=torch.float64)


class Table:
    """A law on {0, …, k − 1}, as points of R^1."""

    def __init__(self, p: Tensor) -> None:
        self.p = p

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        return torch.multinomial(self.p, n, True, generator=rng)[:, None].to(self.p)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.p.log()[x[:, 0].long()]


def enumerated(target: Tensor, proposal: Tensor, n: int) -> Tensor:
    """P_N by all sets of particles: (eq:mcmc-isir) and no integral."""
    k = len(target)
    w, P = target / proposal, torch.zeros(k, k)
    for x in range(k):
        for others in itertools.product(range(k), repeat=n - 1):
            at = torch.tensor([x, *others])
            chance = proposal[at[1:]].prod() / w[at].sum()
            P[x].index_add_(0, at, chance * w[at])
    return P


def grid(half: float, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """N(0, 1) on a grid, with a proposal too narrow, and a Langevin kernel."""
    x = torch.linspace(-half, half, k)
    target, narrow = (-(x**2) / 2).softmax(0), (-(x**2)).softmax(0)
    langevin = (-((x - x[:, None] / 2) ** 2) / 2).softmax(1)  # γ = ½
    return target, narrow, metropolis_matrix(target, langevin)


def distance(P: Tensor, target: Tensor) -> float:
    """The worst total variation from π over the starting states."""
    return float((P - target).abs().sum(1).max() / 2)


def frequencies(x: Tensor, k: int = 5) -> Tensor:
    return torch.bincount(x[:, 0].long(), minlength=k) / len(x)


# Importance sampling


def test_the_importance_size_is_kish() -> None:
    """(eq:mcmc-size) on weights by hand, and at its two ends."""
    w = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(importance_size(w.log()), w.sum() ** 2 / (w**2).sum())
    assert importance_size(torch.zeros(7)).item() == pytest.approx(7)
    one = torch.tensor([0.0, -math.inf, -math.inf])
    assert importance_size(one).item() == pytest.approx(1)


def test_the_importance_size_survives_weights_that_overflow() -> None:
    log_w = torch.tensor([[5000.0, 5000.0, -5000.0], [-9000.0, -9000.0, -9000.0]])
    torch.testing.assert_close(importance_size(log_w), torch.tensor([2.0, 3.0]))


def test_the_importance_size_tends_to_the_chi_square(rng: Generator) -> None:
    """For π = N(0, 1), λ = N(0, s²): E_λ w² = s²/√(2s² − 1)."""
    s, n, m = 1.3, 4000, 400
    law = Gaussian(torch.zeros(1), torch.tensor([[s**2]]))
    x = law.sample(n * m, rng=rng)
    log_w = (StandardNormal(1).log_prob(x) - law.log_prob(x)).view(m, n)
    share = importance_size(log_w) / n
    exact = math.sqrt(2 * s**2 - 1) / s**2
    assert abs(share.mean() - exact) < 4 * share.std() / m**0.5 + 2 / n


@pytest.mark.parametrize("n", [1, 2, 4])
def test_sir_draws_from_its_law(n: int, rng: Generator) -> None:
    """(eq:mcmc-sir-law) against enumeration, and against draws."""
    w, exact = FIVE / UNIFORM, torch.zeros(5)
    for at in itertools.product(range(5), repeat=n):
        index = torch.tensor(at)
        exact.index_add_(0, index, w[index] / w[index].sum() / 5**n)
    torch.testing.assert_close(sir_law(FIVE, UNIFORM, n), exact)
    m = 200_000
    found = sir(m, Table(FIVE).log_prob, Table(UNIFORM), n, rng=rng)
    assert found.log_weights.shape == (m, n)
    se = (exact * (1 - exact) / m).sqrt()
    assert ((frequencies(found.x) - exact).abs() < 4 * se).all()


# i-SIR


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("proposal", [UNIFORM, OTHER])
def test_the_exact_kernel_is_that_of_enumeration(n: int, proposal: Tensor) -> None:
    """(eq:mcmc-isir-density) against all sets of particles of (eq:mcmc-isir)."""
    P = isir_matrix(FIVE, proposal, n)
    torch.testing.assert_close(P, enumerated(FIVE, proposal, n), atol=1e-13, rtol=0)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_isir_steps_as_its_matrix_says(n: int, rng: Generator) -> None:
    m = 200_000
    for start in range(5):
        x = torch.full((m, 1), float(start))
        move = isir(x, Table(FIVE).log_prob, Table(OTHER), n, rng=rng)
        exact = isir_matrix(FIVE, OTHER, n)[start]
        se = (exact * (1 - exact) / m).sqrt()
        assert ((frequencies(move.x) - exact).abs() < 4 * se).all()
        assert move.log_weights.shape == (m, n)
        assert (move.x[~move.moved] == start).all()


def test_isir_is_reversible_and_positive() -> None:
    """π(x) P(x, y) is symmetric, and its spectrum lies in [0, 1]."""
    for n in (2, 5, 40):
        P = isir_matrix(FIVE, OTHER, n)
        torch.testing.assert_close(FIVE @ P, FIVE, atol=1e-14, rtol=0)
        flow = FIVE[:, None] * P
        torch.testing.assert_close(flow, flow.mT, atol=1e-14, rtol=0)
        root = FIVE.sqrt()
        values = torch.linalg.eigvalsh(root[:, None] * P / root)
        assert values.min() > 0
        assert values.max() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("n", "rate", "least"),
    [(2, 0.286, 0.333), (3, 0.444, 0.508), (5, 0.615, 0.681), (7, 0.706, 0.766)],
)
def test_isir_forgets_at_the_rate_of_the_theorem(
    n: int, rate: float, least: float
) -> None:
    """(eq:mcmc-rate): P_N ≥ ε_N π, and TV_k ≤ (1 − ε_N)^k."""
    P, eps = isir_matrix(FIVE, UNIFORM, n), isir_rate(1.75, n)
    assert eps == pytest.approx(rate, abs=5e-4)
    assert (P / FIVE).min().item() == pytest.approx(least, abs=5e-4)
    power = torch.eye(5)
    for k in range(1, 15):
        power = power @ P
        assert distance(power, FIVE) <= (1 - eps) ** k + 1e-14


def test_the_step_without_the_current_state_keeps_another_law() -> None:
    """SIR repeated is not i-SIR: its law is not π."""
    for n in (2, 5):
        wrong = (sir_law(FIVE, UNIFORM, n) - FIVE).abs().sum() / 2
        assert 0.01 < wrong <= 0.75 / (1.75 + n - 1)


def test_isir_keeps_a_gaussian(rng: Generator) -> None:
    """From exact draws the law stays, in mean and variance, with a bad proposal."""
    m, target = 40_000, Gaussian(torch.tensor([1.0]), torch.tensor([[0.5]]))
    x = target.sample(m, rng=rng)
    for _ in range(5):
        x = isir(x, target.log_prob, StandardNormal(1), 3, rng=rng).x
    assert abs(x.mean() - 1) < 4 * (0.5 / m) ** 0.5
    assert abs(x.var() - 0.5) < 4 * 0.5 * (2 / m) ** 0.5


def test_weights_of_high_dimension_do_not_overflow(rng: Generator) -> None:
    """In single precision exp overflows beyond 88; log w reaches 277 here."""
    d = 800
    law = Flow(Affine(torch.zeros(d), torch.full((d,), 2**0.5)), StandardNormal(d))
    law, x = law.float(), torch.zeros(3, d, dtype=torch.float32)
    move = isir(x, StandardNormal(d).float().log_prob, law, 4, rng=rng)
    assert move.log_weights.max() > 200
    assert move.x.isfinite().all()
    assert not move.moved.any()


def test_a_flow_proposes_with_one_pass(rng: Generator) -> None:
    """A flow that is N(0, 4I) gives the kernel of that law, draw by draw."""
    d = 2
    flow = Flow(Affine(torch.zeros(d), torch.full((d,), 2.0)), StandardNormal(d))

    class Wide:
        def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
            return 2 * torch.randn(n, d, generator=rng)

        def log_prob(self, x: Tensor) -> Tensor:
            return Normal(0.0, 2.0).log_prob(x).sum(-1)

    law = Wide()
    x, target = torch.ones(50, d), StandardNormal(d).log_prob
    a = isir(x, target, flow, 6, rng=torch.Generator().manual_seed(1))
    b = isir(x, target, law, 6, rng=torch.Generator().manual_seed(1))
    torch.testing.assert_close(a.x, b.x)
    torch.testing.assert_close(a.log_weights, b.log_weights)
    assert not a.x.requires_grad


# MALA


def test_the_acceptance_ratio_is_that_of_torch(rng: Generator) -> None:
    """(eq:mcmc-mala), with proposals (eq:mcmc-langevin) as MultivariateNormal."""
    law, step = (
        Gaussian(torch.tensor([1.0, -1.0]), torch.diag(torch.tensor([2.0, 0.3]))),
        0.3,
    )
    x = law.sample(500, rng=rng)
    state = rng.get_state()
    walk = mala(x, law.log_prob, step, rng=rng)
    rng.set_state(state)
    noise = torch.randn(500, 2, generator=rng)

    def propose(x: Tensor) -> MultivariateNormal:
        return MultivariateNormal(x + step * law.score(x), 2 * step * torch.eye(2))

    y = propose(x).mean + math.sqrt(2 * step) * noise
    ratio = law.log_prob(y) - law.log_prob(x)
    ratio = ratio + propose(y).log_prob(x) - propose(x).log_prob(y)
    torch.testing.assert_close(walk.log_ratio[0], ratio)
    torch.testing.assert_close(walk.x[walk.moved], y[walk.moved])
    torch.testing.assert_close(walk.x[~walk.moved], x[~walk.moved])
    rate = ratio.clamp(max=0).exp().mean()
    assert abs(walk.moved.double().mean() - rate) < 4 * (0.25 / 500) ** 0.5


def test_mala_keeps_a_mixture(rng: Generator) -> None:
    """From exact draws the law stays: its first four moments, and its bins."""
    m, law = 40_000, line_mixture((-1.5, 1.5), 0.8, (0.3, 0.7))
    x = law.sample(m, rng=rng)
    y = mala(x, law.log_prob, 0.8, repeats=6, rng=rng).x
    fresh = law.sample(m, rng=rng)
    for power in (1, 2, 3, 4):
        a, b = y**power, fresh**power
        assert abs(a.mean() - b.mean()) < 4 * (a.var() / m + b.var() / m) ** 0.5


def test_repeats_are_repeated_steps() -> None:
    law, x = StandardNormal(3), torch.ones(20, 3)
    a, b = (torch.Generator().manual_seed(2) for _ in "ab")
    once = mala(x, law.log_prob, 0.4, repeats=3, rng=a)
    y = x
    for _ in range(3):
        y = mala(y, law.log_prob, 0.4, rng=b).x
    torch.testing.assert_close(once.x, y)
    assert once.log_ratio.shape == (3, 20)


def test_a_step_out_of_the_support_is_refused(rng: Generator) -> None:
    """On [0, 1] every proposal beyond the ends has density zero."""

    def log_uniform(x: Tensor) -> Tensor:
        inside = ((x > 0) & (x < 1)).all(-1)
        return torch.where(inside, 0.0 * x.sum(-1), -math.inf)

    x = torch.rand(2000, 1, generator=rng)
    walk = mala(x, log_uniform, 0.2, repeats=5, rng=rng)
    assert ((walk.x > 0) & (walk.x < 1)).all()
    assert 0.05 < walk.moved.double().mean() < 1


@pytest.mark.parametrize("k", [7, 101])
def test_the_metropolis_matrix_is_in_detailed_balance(k: int, rng: Generator) -> None:
    """(eq:mcmc-metropolis) against the rule with a minimum and a quotient."""
    target = torch.rand(k, generator=rng).softmax(0)
    q = torch.rand(k, k, generator=rng).softmax(1)
    P = metropolis_matrix(target, q)
    flow = target[:, None] * P
    torch.testing.assert_close(flow, flow.mT, atol=1e-15, rtol=0)
    torch.testing.assert_close(P.sum(1), torch.ones(k))
    x, y = 1, 4
    odds = float(target[y] * q[y, x] / (target[x] * q[x, y]))
    assert P[x, y].item() == pytest.approx(q[x, y].item() * min(1.0, odds), rel=1e-12)


# Composition


def test_a_composition_applies_the_first_kernel_first() -> None:
    def add(x: Tensor, *, rng: Generator | None = None) -> Move:
        return Move(x + 1, torch.tensor([True, False]))

    def double(x: Tensor, *, rng: Generator | None = None) -> Move:
        return Move(2 * x, torch.tensor([False, False]))

    move = compose(add, double)(torch.ones(2, 1))
    assert move.x.tolist() == [[4.0], [4.0]]
    assert move.moved.tolist() == [True, False]


def test_ex2_explores_first(rng: Generator) -> None:
    """(eq:mcmc-ex2), seed by seed: i-SIR, and MALA from where it went."""
    law, x = line_mixture((-1.0, 1.0)), torch.zeros(9, 1)
    a, b = (torch.Generator().manual_seed(5) for _ in "ab")
    both = ex2(law.log_prob, StandardNormal(1), 4, 0.3, repeats=2)(x, rng=a)
    y = isir(x, law.log_prob, StandardNormal(1), 4, rng=b)
    z = mala(y.x, law.log_prob, 0.3, repeats=2, rng=b)
    torch.testing.assert_close(both.x, z.x)
    assert torch.equal(both.moved, y.moved | z.moved)


def test_ex2_keeps_what_isir_and_mala_keep(rng: Generator) -> None:
    """(eq:mcmc-ex2) from exact draws of two modes, with a narrow proposal."""
    m, law = 20_000, line_mixture((-3.0, 3.0), 1.0, (0.25, 0.75))
    kernel = ex2(law.log_prob, StandardNormal(1), 8, 0.4, repeats=2)
    path = simulate(kernel, law.sample(m, rng=rng), 6, rng=rng)
    assert path.x.shape == (6, m, 1)
    assert path.moved.shape == (6, m)
    x, fresh = path.x[-1], law.sample(m, rng=rng)
    for f in (torch.sign, torch.square, torch.sin):
        a, b = f(x), f(fresh)
        assert abs(a.mean() - b.mean()) < 4 * (a.var() / m + b.var() / m) ** 0.5


def test_ex2_forgets_although_the_weights_are_not_bounded() -> None:
    """The gap of i-SIR falls to zero as the grid grows; that of Ex² stays."""
    gaps = []
    for half in (4.0, 6.0):
        target, narrow, R = grid(half, 161)
        P = isir_matrix(target, narrow, 10)
        both = torch.linalg.eigvals(P @ R).abs().sort().values[-2]
        alone = torch.linalg.eigvals(P).abs().sort().values[-2]
        gaps.append((1 - float(alone), 1 - float(both)))
    assert gaps[1][0] < 1e-4 * gaps[0][0]
    assert gaps[1][1] > 0.95 * gaps[0][1] > 0.5


def test_a_state_of_large_weight_is_not_left() -> None:
    """P_N(x, {x}ᶜ) ≤ (N − 1)/w(x), where no proposal has an atom worth naming."""
    target, narrow, _ = grid(6.0, 161)
    for n in (2, 10):
        P = isir_matrix(target, narrow, n)
        leave, w = 1 - P.diagonal(), target / narrow
        assert (leave <= (n - 1) / w + 1e-12).all()
        top = int(w.argmax())
        assert leave[top] > 0.9 * (n - 1) / w[top]


# Harris


def test_harris_contracts_as_it_says() -> None:
    """(eq:mcmc-harris) for every pair of starting states, in the norm with V."""
    target, narrow, R = grid(8.0, 161)
    K, V = isir_matrix(target, narrow, 10) @ R, torch.linspace(-8, 8, 161) ** 2
    found = harris(K, V, 0.26, 7.5)
    assert (found.gamma * V + found.K + 1e-12 >= K @ V).all()
    assert 0.5 < found.rate < 0.9
    norm = 1 + found.beta * V
    after = ((K[:, None] - K) * norm).abs().sum(-1)
    before = norm[:, None] + norm
    before.fill_diagonal_(1.0)
    assert (after / before).max() <= found.rate + 1e-12
    small = K[V <= 7.5]
    assert found.alpha == pytest.approx(float(small.min(0).values.sum()), rel=1e-12)


def test_the_rate_of_harris_is_the_best_of_its_formula() -> None:
    """(eq:mcmc-harris) at every β, and no smaller rate at another."""
    target, narrow, R = grid(5.0, 81)
    P, V = isir_matrix(target, narrow, 10) @ R, torch.linspace(-5, 5, 81) ** 2
    gamma, r = 0.3, 8.0
    found = harris(P, V, gamma, r)
    beta = found.alpha / found.K * torch.linspace(0.0005, 0.9995, 2000)
    inside = 1 - found.alpha + beta * found.K
    outside = (2 + beta * (gamma * r + 2 * found.K)) / (2 + beta * r)
    rates = torch.maximum(inside, outside)
    assert found.rate == pytest.approx(float(rates.min()), abs=1e-3)
    near = (beta - found.beta).abs().argmin()
    assert found.rate == pytest.approx(float(rates[near]), abs=1e-3)


def test_harris_bounds_the_second_eigenvalue() -> None:
    target, narrow, R = grid(5.0, 81)
    V = torch.linspace(-5, 5, 81) ** 2
    for n in (2, 20):
        K = isir_matrix(target, narrow, n) @ R
        second = torch.linalg.eigvals(K).abs().sort().values[-2]
        assert second < harris(K, V, 0.3, 12.0).rate < 1


# What a path is worth


@pytest.mark.parametrize("a", [0.9, 0.5, 0.0, -0.6])
def test_the_time_of_an_autoregression(a: float, rng: Generator) -> None:
    """(eq:mcmc-time): x' = a x + noise has τ = (1 + a)/(1 − a)."""
    steps, m = 4000, 40
    x = torch.randn(m, 2, generator=rng)
    path = []
    for _ in range(steps):
        x = a * x + math.sqrt(1 - a**2) * torch.randn(m, 2, generator=rng)
        path.append(x)
    found = chain_size(torch.stack(path))
    exact = (1 + a) / (1 - a)
    torch.testing.assert_close(found.time, torch.full((2,), exact), rtol=0.05, atol=0)
    torch.testing.assert_close(found.size, steps * m / found.time)
    assert (found.lags < 200).all()
    # the meaning of τ: the variance of a chain's mean is τ/steps
    means = torch.stack(path).mean(0)
    assert (means.square().mean() * steps / exact - 1).abs() < 4 * (2 / (2 * m)) ** 0.5


def test_chains_that_disagree_are_worth_no_more_than_their_number(
    rng: Generator,
) -> None:
    side = torch.tensor([-5.0, 5.0]).repeat(4)[:, None]
    path = side + torch.randn(1000, 8, 1, generator=rng)
    assert chain_size(path).size.item() < 40
    each = torch.cat([chain_size(path[:, [i]]).size for i in range(8)])
    assert each.sum() > 6000  # what one would believe, chain by chain


# The adaptive proposal


def test_the_loss_is_two_divergences(rng: Generator) -> None:
    """(eq:mcmc-flex) on Gaussians, whose divergences torch knows."""
    n, s, a = 200_000, 1.5, 0.3
    flow = Flow(Affine(torch.tensor([0.4]), torch.tensor([s])), StandardNormal(1))
    p, q = Normal(0.0, 1.0), Normal(0.4, s)
    x = torch.randn(n, 1, generator=rng)
    exact = a * (kl_divergence(p, q) + p.entropy()) + (1 - a) * kl_divergence(q, p)
    model = AdaptiveProposal(flow, lambda y: p.log_prob(y[:, 0]), a)
    assert (model.loss(x, rng=rng) - exact).abs() < 4 * 2 / n**0.5


def test_each_divergence_stands_alone(rng: Generator) -> None:
    """a = 1 is the likelihood; a = 0 does not look at the chains."""
    target, flow = StandardNormal(2).log_prob, real_nvp(2, 2, (8,))
    x = 3 + torch.randn(30, 2, generator=rng)
    forward = AdaptiveProposal(flow, target, 1.0)
    assert forward.loss(x, rng=rng) == -flow.log_prob(x).mean()
    losses = [
        AdaptiveProposal(flow, target, 0.0).loss(
            y, rng=torch.Generator().manual_seed(0)
        )
        for y in (x, x + 5)
    ]
    assert losses[0] == losses[1]


def test_a_flow_learns_from_its_chains(rng: Generator) -> None:
    """Only the learned global moves can bring half and half to one in five.

    The modes are nearly six deviations apart; without training the flow is N(0, I).
    """
    torch.manual_seed(0)
    law = line_mixture((-1.0, 1.0), 0.35, (0.2, 0.8))

    def log_target(x: Tensor) -> Tensor:  # a second coordinate, as couplings need it
        return law.log_prob(x[:, :1]) - x[:, 1] ** 2 / 2

    flow = real_nvp(2, 4, (32,), activation=torch.nn.SiLU)
    model = AdaptiveProposal(flow, log_target, 0.9)
    x = torch.randn(128, 2, generator=rng)
    x[:, 0] = torch.where(torch.arange(128) % 2 == 0, -1.0, 1.0)
    chains = Chains(ex2(log_target, model, 8, 0.05), x, rng=rng)

    @torch.no_grad()
    def share() -> float:
        draw = model.draw(4000, rng=rng)
        return float(importance_size(log_target(draw.x) - draw.log_prob)) / 4000

    before = share()
    for _ in train(model, chains, steps=150, lr=1e-2, clip=5.0, rng=rng):
        pass
    assert share() > 0.6 > before + 0.1
    path = simulate(chains.kernel, chains.x, 60, rng=rng)
    assert abs((path.x[..., 0] < 0).double().mean() - 0.2) < 0.03


def test_chains_go_on_as_they_would_have() -> None:
    def steps() -> Chains:
        kernel = partial(mala, log_target=StandardNormal(2).log_prob, step=0.3)
        return Chains(kernel, torch.zeros(5, 2), rng=torch.Generator().manual_seed(3))

    whole, half = steps(), steps()
    expected = [next(whole) for _ in range(6)]
    for _ in range(3):
        next(half)
    saved = half.state_dict()
    resumed = steps()
    resumed.load_state_dict(saved)
    for x in expected[3:]:
        assert torch.equal(next(resumed), x)


# Randomness and bad input


def test_kernels_are_functions_of_their_rng() -> None:
    state = torch.get_rng_state()
    law, x = line_mixture((-1.0, 1.0)), torch.zeros(6, 1)
    kernel = ex2(law.log_prob, StandardNormal(1), 4, 0.3)
    a, b = (kernel(x, rng=torch.Generator().manual_seed(1)).x for _ in "ab")
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)
    c = kernel(x, rng=torch.Generator().manual_seed(2)).x
    assert not torch.equal(a, c)


LAW = StandardNormal(2)
X = torch.zeros(3, 2)


def nowhere(x: Tensor) -> Tensor:
    return x.sum(-1) * 0 - math.inf


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: isir(X[0], LAW.log_prob, LAW, 3), r"x must be real states .* \(2,\)"),
        (lambda: isir(X.long(), LAW.log_prob, LAW, 3), "got .*int64"),
        (lambda: isir(X[:0], LAW.log_prob, LAW, 3), r"m ≥ 1 chains, got \(0, 2\)"),
        (lambda: isir(X, LAW.log_prob, LAW, 1), "n must be at least 2, got 1"),
        (lambda: isir(X, nowhere, LAW, 3), "log_weights must have a finite largest"),
        (lambda: isir(X + math.nan, LAW.log_prob, LAW, 3), "log_weights must have"),
        (lambda: sir(0, LAW.log_prob, LAW, 3), "m must be at least 1, got 0"),
        (lambda: sir(4, LAW.log_prob, LAW, 0), "n must be at least 1, got 0"),
        (lambda: mala(X, LAW.log_prob, 0.0), "step must be positive and finite, got 0"),
        (lambda: mala(X, LAW.log_prob, 0.1, repeats=0), "repeats must be at least 1"),
        (lambda: mala(X, nowhere, 0.1), "log_target must be finite at the states"),
        (lambda: compose(), "number of kernels must be at least 1, got 0"),
        (lambda: simulate(compose, X, 0), "steps must be at least 1, got 0"),
        (lambda: isir_rate(0.5, 3), "bound must be finite and at least 1, got 0.5"),
        (lambda: isir_rate(2.0, 1), "n must be at least 2, got 1"),
        (
            lambda: isir_matrix(2 * FIVE, UNIFORM, 2),
            "target must be positive, .* sum 1",
        ),
        (lambda: isir_matrix(FIVE, UNIFORM, 1), "n must be at least 2"),
        (lambda: sir_law(FIVE, FIVE[:4], 2), "proposal must be positive"),
        (lambda: metropolis_matrix(FIVE, FIVE[None]), r"\(5, 5\) with rows of sum 1"),
        (lambda: chain_size(X), r"path must be \(steps ≥ 4, m, d\), got \(3, 2\)"),
        (lambda: chain_size(torch.ones(9, 2, 1)), "path must be finite, and vary"),
        (lambda: harris(torch.eye(5), FIVE, 0.5, 0.1), "radius must exceed 2K"),
        (lambda: harris(torch.eye(5), FIVE, 1.0, 9.0), r"gamma must lie in \[0, 1\)"),
        (lambda: harris(torch.eye(5), FIVE, 0.5, 9.0), "mass in common"),
        (lambda: harris(torch.eye(5), 0 * FIVE, 0.5, 9.0), "constant K of the drift"),
        (lambda: importance_size(torch.zeros(3, 0)), r"log_weights must be \(…, n\)"),
        (lambda: AdaptiveProposal(real_nvp(2), nowhere, 1.5), r"forward must lie in"),
        (lambda: Chains(compose, X[0]), "x must be real states"),
    ],
)
def test_what_makes_no_sense_is_named(call: partial, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
