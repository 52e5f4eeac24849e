"""book/gans/wasserstein.md, against linear programs and closed forms."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

from pushforward.data import stream
from pushforward.distributions import StandardNormal, line_mixture
from pushforward.gans import (
    GAN,
    WASSERSTEIN,
    between,
    clip_weights,
    gap,
    gradient_penalty,
)
from pushforward.nn import MLP
from pushforward.ot import cost, kantorovich_rubinstein, plan
from pushforward.train import train


def linear(*weights: float) -> nn.Linear:
    """Return the critic f(x) = ⟨w, x⟩."""
    net = nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([weights]))
    return net


class Half(nn.Module):
    """The critic f(x) = ½‖x‖², whose slope at x is x."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).square().sum(1) / 2


# The objective


def test_the_gap_of_the_exact_critic_is_the_distance(rng: Generator) -> None:
    """(eq:wgan-value) against the linear program."""
    x, y = torch.randn(30, 2, generator=rng), 1 + torch.rand(30, 2, generator=rng)
    critic = kantorovich_rubinstein(x, y)
    exact = plan(cost(x, y, 1)).value
    torch.testing.assert_close(gap(critic(x), critic(y)), exact)
    torch.testing.assert_close(WASSERSTEIN.critic(critic(x), critic(y)), -exact)


def test_the_generator_lowers_the_gap(rng: Generator) -> None:
    """(eq:wgan-generator) differs from the gap by what does not depend on g."""
    real, fake = torch.randn(2, 20, generator=rng)
    left = WASSERSTEIN.generator(fake) - WASSERSTEIN.generator(fake + 1)
    torch.testing.assert_close(left, gap(real, fake) - gap(real, fake + 1))
    assert left.item() == pytest.approx(1.0)


# The box


def test_clipping_is_the_nearest_point_of_the_box(rng: Generator) -> None:
    """(eq:wgan-clip): ⟨w − Pw, v − Pw⟩ ≤ 0 for every v in the box."""
    net = MLP(3, 5, 1)
    before = nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    clip_weights(0.2)(net)
    after = nn.utils.parameters_to_vector(net.parameters()).detach()
    v = 0.4 * torch.rand(500, len(after), generator=rng) - 0.2
    assert after.abs().max() == 0.2
    assert ((v - after) @ (before - after)).max() <= 1e-15
    with pytest.raises(ValueError, match="c must be positive"):
        clip_weights(0.0)


def clipped_game() -> GAN:
    torch.manual_seed(0)
    return GAN(
        MLP(1, 4, 1), MLP(1, 8, 1), StandardNormal(1),
        objective=WASSERSTEIN, constraint=clip_weights(0.05), turns=3,
    )  # fmt: skip


def test_after_every_round_the_critic_is_in_the_box(rng: Generator) -> None:
    gan = clipped_game()
    law = line_mixture((3.0,))
    norms = []
    for _ in train(gan, stream(law, 16, rng=rng), steps=20, lr=0.02, rng=rng):
        weights = nn.utils.parameters_to_vector(gan.discriminator.parameters())
        norms.append(weights.abs().max().item())
    assert max(norms) <= 0.05
    assert sum(n == 0.05 for n in norms) >= 15  # the box is met, not only kept


def test_a_clipped_game_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    def play(steps: int, **options: object) -> dict[str, Tensor]:
        gan, rng = clipped_game(), torch.Generator().manual_seed(4)
        batches = stream(line_mixture((3.0,)), 16, rng=rng)
        for _ in train(gan, batches, steps=steps, lr=0.02, rng=rng, **options):
            pass
        return gan.state_dict()

    file = tmp_path / "game.pt"
    whole = play(11)
    play(6, checkpoint=file)
    again = play(11, checkpoint=file, resume=True)
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_the_slope_of_a_clipped_network_is_the_product_of_its_sizes() -> None:
    """c³h² for a critic 1-h-h-1 with all its weights at c."""
    c, h = 0.3, 6
    net = MLP(1, h, h, 1, activation=nn.ReLU)
    with torch.no_grad():
        for w in net.parameters():
            w.fill_(9.0 if w.ndim == 2 else 0.0)
    clip_weights(c)(net)
    rise = (net(torch.tensor([[2.0]])) - net(torch.tensor([[1.0]]))).item()
    assert rise == pytest.approx(c**3 * h**2)


# The penalty


def test_points_between_are_uniform_on_their_segments(rng: Generator) -> None:
    n = 20_000
    x, y = (
        torch.randn(n, 1, 2, 2, generator=rng),
        torch.randn(n, 1, 2, 2, generator=rng),
    )
    u = (between(x, y, rng=rng) - y) / (x - y)
    torch.testing.assert_close(u, u[:, :, :1, :1].expand_as(u))  # one for a row
    t = u[:, 0, 0, 0].sort().values
    assert 0 <= t[0] <= t[-1] <= 1
    assert (t - (torch.arange(n) + 0.5) / n).abs().max() < 1.95 / n**0.5  # Kolmogorov


@pytest.mark.parametrize(
    ("target", "one_sided"), [(1.0, False), (7.0, True), (2.0, True)]
)
def test_the_penalty_of_a_linear_critic(
    target: float, one_sided: bool, rng: Generator
) -> None:
    """(eq:gradient-penalty): λ(‖w‖ − a)², and its gradient 2λ(‖w‖ − a) w/‖w‖."""
    net = linear(3.0, -4.0)
    x, y = torch.randn(2, 8, 2, generator=rng)
    value = gradient_penalty(10.0, target, one_sided=one_sided)(net, x, y, rng=rng)
    value.backward()
    excess = max(5 - target, 0.0) if one_sided else 5 - target
    assert value.item() == pytest.approx(10 * excess**2)
    slope = torch.tensor([[3.0, -4.0]]) * 20 * excess / 5
    torch.testing.assert_close(net.weight.grad, slope)


def test_each_row_has_its_own_norm() -> None:
    """(eq:gradient-penalty) with x̂ = x: the mean of (‖xᵢ‖ − 1)²."""
    x = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.6, 0.0]]).reshape(3, 1, 1, 2)
    value = gradient_penalty(2.0)(Half(), x, x)
    assert value.item() == pytest.approx(2 * (16 + 0 + 0.16) / 3)


def test_a_flat_critic_has_a_finite_gradient() -> None:
    net = linear(0.0, 0.0)
    value = gradient_penalty(1.0)(net, torch.ones(4, 2), torch.zeros(4, 2))
    value.backward()
    assert value.item() == 1.0
    assert net.weight.grad.isfinite().all()


def test_an_optimal_critic_pays_nothing_along_the_rays(rng: Generator) -> None:
    """Its slope is 1 between x and the partner of x in the optimal plan."""
    x, y = torch.randn(25, 2, generator=rng), 2 + torch.randn(25, 2, generator=rng)
    critic = kantorovich_rubinstein(x, y)
    i, j = plan(cost(x, y, 1)).P.nonzero(as_tuple=True)

    class Exact(nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            return critic(t)

    value = gradient_penalty(1.0)(Exact(), x[i], y[j], rng=rng)
    assert value.item() < 1e-15


@pytest.mark.parametrize("one_sided", [False, True])
def test_a_penalised_critic_is_too_steep_by_the_distance(one_sided: bool) -> None:
    """Between two points at distance θ its slope is 1 + θ/(2λ) (eq:wgan-penalised)."""
    theta, weight = 1.5, 2.0
    net = linear(0.3)
    gan = GAN(
        nn.Identity(), net, StandardNormal(1), objective=WASSERSTEIN,
        penalty=gradient_penalty(weight, one_sided=one_sided),
    )  # fmt: skip
    x, y = torch.full((6, 1), theta), torch.zeros(6, 1)
    best = torch.optim.LBFGS(net.parameters(), line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        best.zero_grad()
        loss = gan.objective.critic(gan.score(x), gan.score(y))
        loss = loss + gan.penalty(net, x, y)
        loss.backward()
        return loss

    for _ in range(5):
        best.step(closure)
    assert net.weight.item() == pytest.approx(1 + theta / (2 * weight), abs=1e-6)


def test_the_penalty_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="weight must be positive"):
        gradient_penalty(-1.0)
    with pytest.raises(ValueError, match="target must be positive"):
        gradient_penalty(1.0, 0.0)


# The game


def test_a_generator_follows_the_distance_where_the_supports_are_apart(
    rng: Generator,
) -> None:
    """Data at 0, a sample at 1: with a critic of slope 1 it walks at speed h."""

    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(torch.ones(1))

        def forward(self, z: Tensor) -> Tensor:
            return self.theta.expand_as(z)

    torch.manual_seed(0)
    gan = GAN(
        Point(), MLP(1, 16, 1), StandardNormal(1), objective=WASSERSTEIN,
        penalty=gradient_penalty(10.0, one_sided=True), turns=3,
    )  # fmt: skip
    quick = partial(torch.optim.Adam, betas=(0.0, 0.9))
    batches = stream(torch.zeros(8, 1), 8, rng=rng)
    steps = train(gan, batches, steps=150, lr=1e-2, rng=rng, optimizer=quick)
    path = [gan.generator.theta.item() for _ in steps]
    assert max(abs(theta) for theta in path[-20:]) < 0.15
