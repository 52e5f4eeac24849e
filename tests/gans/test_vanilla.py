"""book/gans/vanilla.md, where the best discriminator is known."""

import math
from functools import partial

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.func import jacrev, vmap
from torch.nn.functional import binary_cross_entropy_with_logits

from pushforward.data import stream
from pushforward.distributions import Mixture, StandardNormal, line_mixture, ring
from pushforward.gans import (
    GAN,
    NON_SATURATING,
    SATURATING,
    Objective,
    conv_discriminator,
    conv_generator,
    coverage,
    input_gradient,
    r1_penalty,
)
from pushforward.nn import MLP
from pushforward.objectives import js, masses
from pushforward.train import train


class Shift(nn.Module):
    """z ↦ θ + s z, or without noise the point θ."""

    def __init__(self, theta: float, s: float = 1.0) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta))
        self.s = s

    def forward(self, z: Tensor) -> Tensor:
        return self.theta + self.s * z


class Line(nn.Module):
    """x ↦ ψ x."""

    def __init__(self, psi: float) -> None:
        super().__init__()
        self.psi = nn.Parameter(torch.tensor(psi))

    def forward(self, x: Tensor) -> Tensor:
        return self.psi * x


def nodes(n: int = 20_000) -> Tensor:
    """Return n points of equal weight that stand for N(0, 1), shape (n, 1)."""
    return torch.special.ndtri((torch.arange(n) + 0.5) / n)[:, None]


# What the players minimise


def test_the_log_loss_is_the_cross_entropy_of_labels(rng: Generator) -> None:
    """(eq:gan-value), with 1 for data and 0 for samples."""
    real, fake = torch.randn(2, 40, generator=rng)
    for objective in (SATURATING, NON_SATURATING):
        entropy = partial(binary_cross_entropy_with_logits, reduction="mean")
        both = entropy(real, torch.ones(40)) + entropy(fake, torch.zeros(40))
        torch.testing.assert_close(objective.critic(real, fake), both)
    left = -binary_cross_entropy_with_logits(fake, torch.zeros(40))
    torch.testing.assert_close(SATURATING.generator(fake), left)
    right = binary_cross_entropy_with_logits(fake, torch.ones(40))  # non-saturating
    torch.testing.assert_close(NON_SATURATING.generator(fake), right)


def test_scores_of_any_size_give_finite_losses() -> None:
    far = torch.tensor([-1e4, 1e4])
    for objective in (SATURATING, NON_SATURATING):
        assert objective.critic(far, far).isfinite()
        assert objective.generator(far).isfinite()


def test_the_best_discriminator_reaches_its_value() -> None:
    """(eq:gan-value) at D* = log p/p_g is −log 4 + 2 JS; elsewhere it is less."""
    x = torch.linspace(-12, 13, 8001)
    p, q = (masses(line_mixture((m,)), x) for m in (0.0, 1.0))
    gan = GAN(Shift(1.0), MLP(1, 1), StandardNormal(1))
    with torch.no_grad():
        gan.discriminator[0].weight.fill_(-1.0)
        gan.discriminator[0].bias.fill_(0.5)
        z = nodes()
        value = -gan.objective.critic(gan.score(z), gan.score(1 + z))
        torch.testing.assert_close(value, 2 * js(p, q) - math.log(4), atol=1e-5, rtol=0)
        gan.discriminator[0].bias.fill_(0.7)
        worse = -gan.objective.critic(gan.score(z), gan.score(1 + z))
    assert worse < value - 1e-3


@pytest.mark.parametrize(("theta", "s"), [(0.1, 0.1), (0.5, 0.1), (1.3, 0.7)])
def test_two_losses_share_the_gradient_of_the_reverse_divergence(
    theta: float, s: float
) -> None:
    """(eq:gan-two-gradients): saturating + non-saturating = ∇KL(p_g ‖ p) = θ/s²."""
    critic = MLP(1, 1)
    with torch.no_grad():  # D* between N(0, s²) and N(θ, s²)
        critic[0].weight.fill_(-theta / s**2)
        critic[0].bias.fill_(theta**2 / (2 * s**2))
    slopes = []
    for objective in (SATURATING, NON_SATURATING):
        g = Shift(theta, s)
        objective.generator(critic(g(nodes()))[:, 0]).backward()
        assert g.theta.grad is not None
        slopes.append(g.theta.grad)
    torch.testing.assert_close(sum(slopes), torch.tensor(theta / s**2))
    bound = theta / (2 * s**2) * math.exp(-(theta**2) / (8 * s**2))
    assert 0 < slopes[0] <= bound  # (eq:gan-saturation)
    x = torch.linspace(-6, 8, 20_001)

    def divergence(t: float) -> Tensor:
        return 2 * js(*(masses(line_mixture((m,), s), x) for m in (0.0, t)))

    change = (divergence(theta + 1e-5) - divergence(theta - 1e-5)) / 2e-5
    torch.testing.assert_close(slopes[0], change, atol=1e-3, rtol=1e-4)


# The slope of the discriminator


def test_the_input_gradient_is_that_of_each_row(rng: Generator) -> None:
    net, x = MLP(3, 7, 1), torch.randn(5, 3, generator=rng)
    exact = vmap(jacrev(lambda row: net(row)[0]))(x)
    with torch.no_grad():  # as in a loop that only looks
        found = input_gradient(net, x)
    torch.testing.assert_close(found, exact.detach())
    assert not x.requires_grad  # the data are left as they were


def test_r1_charges_for_the_slope_on_data(rng: Generator) -> None:
    """(eq:gan-r1) on D(x) = ½ xᵀAx, whose slope is Ax."""
    A = torch.randn(4, 4, generator=rng)
    A = A + A.mT
    x, fake = torch.randn(2, 9, 4, generator=rng)

    class Quadratic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.A = nn.Parameter(A.clone())

        def forward(self, y: Tensor) -> Tensor:
            return ((y @ self.A) * y).sum(1, keepdim=True) / 2

    net = Quadratic()
    value = r1_penalty(3.0)(net, x, fake, rng=rng)
    torch.testing.assert_close(value, 1.5 * (x @ A).square().sum(1).mean())
    value.backward()
    B = A.clone().requires_grad_()
    (1.5 * (x @ (B + B.mT) / 2).square().sum(1).mean()).backward()
    torch.testing.assert_close(net.A.grad, B.grad)
    with pytest.raises(ValueError, match="gamma must be positive"):
        r1_penalty(0.0)


# The game


def test_each_player_changes_its_own_network_alone(rng: Generator) -> None:
    gan = GAN(MLP(2, 4, 3), MLP(3, 4, 1), StandardNormal(2), turns=3)
    x = torch.randn(6, 3, generator=rng)
    critic, generator = gan.players()
    assert (critic.turns, generator.turns) == (3, 1)
    critic.loss(x, rng=rng).backward()
    assert all(p.grad is not None for p in critic.params)
    assert all(p.grad is None for p in generator.params)
    generator.loss(x, rng=rng).backward()
    assert all(p.grad is not None for p in generator.params)
    ids = {id(p) for player in (critic, generator) for p in player.params}
    assert ids == {id(p) for p in gan.parameters()}


def test_the_game_is_a_function_of_its_rng() -> None:
    gan = GAN(MLP(2, 3), MLP(3, 1), StandardNormal(2), penalty=r1_penalty(1.0))
    state, x = torch.get_rng_state(), torch.ones(5, 3)
    for f in (gan.judge, gan.loss):
        one, two = (f(x, rng=torch.Generator().manual_seed(1)) for _ in "12")
        assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_penalty_is_added_and_the_constraint_is_kept(rng: Generator) -> None:
    calls: list[nn.Module] = []
    seen: list[tuple[torch.Size, bool]] = []

    def penalty(
        net: nn.Module, x: Tensor, fake: Tensor, *, rng: Generator | None
    ) -> Tensor:
        seen.append((fake.shape, fake.requires_grad))
        return torch.tensor(5.0)

    net, x = MLP(3, 1), torch.randn(6, 3, generator=rng)
    options = {"generator": MLP(2, 3), "discriminator": net, "prior": StandardNormal(2)}
    plain = GAN(**options)
    dear = GAN(**options, penalty=penalty, constraint=calls.append)
    one, two = (m.judge(x, rng=torch.Generator().manual_seed(3)) for m in (plain, dear))
    torch.testing.assert_close(two, one + 5)
    assert seen == [(x.shape, False)]
    dear.loss(x, rng=rng)
    assert calls == [net, net]


@pytest.mark.parametrize("saturating", [True, False])
def test_training_follows_the_game_of_two_points(saturating: bool) -> None:
    """Data at 0, a sample at θ, D(x) = ψx: train() alternates, D first."""
    h, theta, psi = 0.3, 1.0, 0.7
    gan = GAN(
        Shift(theta, 0.0), Line(psi), StandardNormal(1),
        objective=SATURATING if saturating else NON_SATURATING,
    )  # fmt: skip
    sgd = partial(torch.optim.SGD)
    batches = stream(torch.zeros(4, 1), 4)
    steps = train(gan, batches, steps=60, lr=h, optimizer=sgd)
    sigma = lambda u: 1 / (1 + math.exp(-u))
    for _ in steps:
        psi -= h * sigma(psi * theta) * theta
        slope = sigma(psi * theta) if saturating else sigma(-psi * theta)
        theta += h * slope * psi
    assert gan.generator.theta.item() == pytest.approx(theta, abs=1e-12)
    assert gan.discriminator.psi.item() == pytest.approx(psi, abs=1e-12)


def test_a_gan_learns_a_normal_law(rng: Generator) -> None:
    torch.manual_seed(0)
    gan = GAN(
        nn.Linear(1, 1), MLP(1, 32, 1), StandardNormal(1), penalty=r1_penalty(0.3)
    )
    law = line_mixture((1.5,), s=0.5)
    for _ in train(gan, stream(law, 200, rng=rng), steps=700, lr=1e-2, rng=rng):
        pass
    a, b = gan.generator.weight.abs().item(), gan.generator.bias.item()
    assert b == pytest.approx(1.5, abs=0.15)
    assert a == pytest.approx(0.5, abs=0.15)


def test_a_game_says_what_is_wrong() -> None:
    prior, x = StandardNormal(2), torch.zeros(4, 3)
    with pytest.raises(ValueError, match="turns must be at least 1, got 0"):
        GAN(MLP(2, 3), MLP(3, 1), prior, turns=0)
    with pytest.raises(ValueError, match=r"discriminator must return .* got \(4, 2\)"):
        GAN(MLP(2, 3), MLP(3, 2), prior).score(x)
    with pytest.raises(ValueError, match=r"n ≥ 1, for x \(0, 3\)"):
        GAN(MLP(2, 3), MLP(3, 1), prior).score(x[:0])
    with pytest.raises(ValueError, match=r"shape \(2,\), as the samples, got \(3,\)"):
        GAN(MLP(2, 2), MLP(3, 1), prior).judge(x)


# Modes


def test_a_true_sample_has_the_coverage_of_the_law(rng: Generator) -> None:
    """(eq:gan-coverage): in the plane 1 − e^(−r²/2) of a mode is within r."""
    n, law = 40_000, ring(s=0.05)
    found = coverage(law.sample(n, rng=rng), law, radius=2.0)
    exact = 1 - math.exp(-2)
    assert found.quality == pytest.approx(exact, abs=4 * (exact / 7.4 / n) ** 0.5)
    assert found.modes == 8
    assert found.shares.sum().item() == pytest.approx(found.quality)


def test_distances_are_in_deviations_of_the_mode() -> None:
    covs = torch.tensor([[[4.0, 0.0], [0.0, 0.01]], [[0.01, 0.0], [0.0, 0.01]]])
    law = Mixture(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), covs)
    x = torch.tensor([[5.9, 0.0], [6.1, 0.0], [0.0, 0.29], [0.0, 0.31], [9.2, 0.2]])
    found = coverage(x, law)
    torch.testing.assert_close(found.shares, torch.tensor([0.4, 0.2]))
    assert found.modes == 2


def test_a_mode_needs_its_part() -> None:
    """(eq:gan-coverage): a tenth of an eighth of the points."""
    law = ring()
    for modes, few in ((8, 14), (7, 13)):  # 14/1064 > 1/80 > 13/1063
        x = torch.cat([law.means[1:].repeat(150, 1), law.means[:1].expand(few, 2)])
        assert coverage(x, law).modes == modes
    assert coverage(torch.full((3, 2), 50.0), law)[:2] == (0, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(0, 2)}, "at least one point"),
        ({"x": torch.zeros(3, 1)}, r"x must have shape \(n, 2\)"),
        ({"radius": 0.0}, "radius must be positive"),
        ({"least": 0.0}, r"least must lie in \(0, 1\]"),
        ({"least": 1.5}, r"least must lie in \(0, 1\]"),
    ],
)
def test_coverage_says_what_is_wrong(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coverage(**{"x": torch.zeros(3, 2), "law": ring(), **change})


# Networks


def test_images_come_from_noise_and_are_judged_one_by_one(rng: Generator) -> None:
    gan = GAN(
        conv_generator(5, channels=8), conv_discriminator(channels=8),
        StandardNormal(5), penalty=r1_penalty(1.0),
    )  # fmt: skip
    x = gan.sample(3, rng=rng)
    assert x.shape == (3, 1, 28, 28)
    assert ((x > 0) & (x < 1)).all()
    torch.testing.assert_close(gan.score(x)[1:2], gan.score(x[1:2]))
    (gan.judge(x, rng=rng) + gan.loss(x, rng=rng)).backward()
    assert all(p.grad is not None for p in gan.parameters())
    small = conv_discriminator(channels=4, size=8)
    assert small(torch.zeros(2, 1, 8, 8)).shape == (2, 1)
    with pytest.raises(ValueError, match="multiple of 4, got 30"):
        conv_discriminator(size=30)


def test_another_objective_is_two_functions() -> None:
    hinge = Objective(
        lambda real, fake: (1 - real).relu().mean() + (1 + fake).relu().mean(),
        lambda fake: -fake.mean(),
    )
    gan = GAN(Shift(0.0), Line(0.5), StandardNormal(1), objective=hinge)
    assert gan.judge(torch.full((3, 1), 4.0)).item() > 0
