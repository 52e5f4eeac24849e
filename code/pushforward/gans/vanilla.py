"""The adversarial game (book/gans/vanilla.md).

A generator g pushes noise forward, x = g(z), z ~ π.  A discriminator D scores
points.  They play: D learns to tell data from samples, g to be taken for data.

    max_D  E log σ(D(x)) + E log(1 − σ(D(g(z))))               (eq:gan-value)

D returns log-odds, so that no logarithm ever meets a rounded 0.

References:
    Goodfellow, Pouget-Abadie, Mirza, Xu, Warde-Farley, Ozair, Courville, Bengio
        (2014), Generative adversarial nets.
    Arjovsky, Bottou (2017), Towards principled methods for training generative
        adversarial networks.
    Mescheder, Geiger, Nowozin (2018), Which training methods for GANs do actually
        converge?
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import softplus

from ..distributions import Law, Mixture, points, positive
from ..model import Model, Player
from ..nn import ResBlock

__all__ = [
    "GAN",
    "NON_SATURATING",
    "SATURATING",
    "Constraint",
    "Coverage",
    "Objective",
    "Penalty",
    "conv_discriminator",
    "conv_generator",
    "coverage",
    "input_gradient",
    "r1_penalty",
]


class Objective(NamedTuple):
    """What the two players minimise, as functions of the discriminator's scores.

    Attributes:
        critic: (scores of data (n,), scores of samples (m,)) ↦ loss ().
        generator: scores of samples (m,) ↦ loss ().
    """

    critic: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


def log_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return −E log σ(D(x)) − E log(1 − σ(D(g(z)))), minus (eq:gan-value)."""
    return softplus(-real).mean() + softplus(fake).mean()


def saturating_loss(fake: Tensor) -> Tensor:
    """Return E log(1 − σ(D(g(z)))), the generator's part of (eq:gan-value)."""
    return -softplus(fake).mean()


def non_saturating_loss(fake: Tensor) -> Tensor:
    """Return −E log σ(D(g(z))) (eq:gan-non-saturating)."""
    return softplus(-fake).mean()


SATURATING = Objective(log_loss, saturating_loss)
NON_SATURATING = Objective(log_loss, non_saturating_loss)

# (discriminator, data (n, *shape), samples (n, *shape), rng=) ↦ a scalar
Penalty = Callable[..., Tensor]
# discriminator ↦ nothing: moves its weights, in place, into the set of allowed ones
Constraint = Callable[[nn.Module], None]


def input_gradient(discriminator: nn.Module, x: Tensor) -> Tensor:
    """Return ∇D at each row of x, differentiable in D's weights, (n, *shape).

    The scores are summed, so D must treat the rows apart: no batch normalisation.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        total = discriminator(x).sum()
        return torch.autograd.grad(total, x, create_graph=True)[0]


def r1_penalty(gamma: float) -> Penalty:
    """Return the penalty ½ γ E‖∇D(x)‖² on data (eq:gan-r1).

    Args:
        gamma: γ > 0.
    """
    positive("gamma", gamma)

    def penalty(
        discriminator: nn.Module, x: Tensor, fake: Tensor, *, rng: object = None
    ) -> Tensor:
        """Return ½ γ E‖∇D(x)‖²; samples and noise play no part."""
        slope = input_gradient(discriminator, x).flatten(1)
        return gamma / 2 * slope.square().sum(1).mean()  # (eq:gan-r1)

    return penalty


class GAN(Model):
    """A generator and a discriminator, two players.

    Args:
        generator: g, from noise to data.
        discriminator: D, from data (n, *shape) to scores (n, 1) or (n,).
        prior: π, the law of the noise.
        objective: What each player minimises.
        penalty: Added to the discriminator's loss: :func:`r1_penalty`,
            :func:`.gradient_penalty`.
        constraint: Called on the discriminator before each loss:
            :func:`.clip_weights`.
        turns: Steps of the discriminator for one of the generator.

    Raises:
        ValueError: No turn.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        prior: Law,
        *,
        objective: Objective = NON_SATURATING,
        penalty: Penalty | None = None,
        constraint: Constraint | None = None,
        turns: int = 1,
    ) -> None:
        super().__init__()
        if turns < 1:
            raise ValueError(f"turns must be at least 1, got {turns}")
        self.generator = generator
        self.discriminator = discriminator
        self.prior = prior
        self.objective = objective
        self.penalty = penalty
        self.constraint = constraint
        self.turns = turns

    def generate(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Return g(z) for n draws z ~ π, differentiable in g, shape (n, *shape)."""
        return self.generator(self.prior.sample(n, rng=rng))

    @torch.no_grad()
    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw n points g(z), shape (n, *shape)."""
        return self.generate(n, rng=rng)

    def score(self, x: Tensor) -> Tensor:
        """Return D(x), log-odds that x is data, shape (n,).

        Raises:
            ValueError: No rows, or a discriminator that returns more than one number
                for each.
        """
        scores = self.discriminator(x)
        if not scores.numel() == len(x) > 0:
            raise ValueError(
                f"discriminator must return (n, 1), n ≥ 1, for x {tuple(x.shape)}, "
                f"got {tuple(scores.shape)}"
            )
        return scores.flatten()

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return the generator's loss; of x only the number of rows matters."""
        self.constrain()
        return self.objective.generator(self.score(self.generate(len(x), rng=rng)))

    def judge(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return the discriminator's loss on data x (n, *shape).

        Raises:
            ValueError: Data of another shape than the samples.
        """
        self.constrain()
        fake = self.sample(len(x), rng=rng)  # no gradient reaches g
        if fake.shape != x.shape:
            raise ValueError(
                f"x must have rows of shape {tuple(fake.shape[1:])}, as the samples, "
                f"got {tuple(x.shape[1:])}"
            )
        loss = self.objective.critic(self.score(x), self.score(fake))
        if self.penalty is None:
            return loss
        return loss + self.penalty(self.discriminator, x, fake, rng=rng)

    def constrain(self) -> None:
        """Bring the discriminator's weights back, if there is a constraint."""
        if self.constraint is not None:
            self.constraint(self.discriminator)

    def players(self) -> list[Player]:
        """Return the discriminator, who moves first, and the generator."""
        return [
            Player(list(self.discriminator.parameters()), self.judge, self.turns),
            Player(list(self.generator.parameters()), self.loss),
        ]


# What a sample has found of a mixture


class Coverage(NamedTuple):
    """How a sample is spread over the modes of a mixture.

    Attributes:
        modes: How many modes have enough points near them.
        quality: Share of points that are near a mode, in [0, 1].
        shares: Share of points that are near each mode, (k,).
    """

    modes: int
    quality: float
    shares: Tensor


def coverage(
    x: Tensor, law: Mixture, *, radius: float = 3.0, least: float = 0.1
) -> Coverage:
    """Count the modes that a sample has found (eq:gan-coverage).

    Args:
        x: Sample, shape (n, d), n ≥ 1.
        law: A mixture whose components do not overlap.
        radius: Largest distance from a mode, in its standard deviations.
        least: A mode is found if it has this part of its weight.

    Raises:
        ValueError: An empty sample, points of another dimension, ``radius`` ≤ 0 or
            ``least`` outside (0, 1].
    """
    positive("radius", radius)
    if not 0 < least <= 1:
        raise ValueError(f"least must lie in (0, 1], got {least}")
    if len(points(x, law.means.shape[1])) == 0:
        raise ValueError("x must hold at least one point, got 0")
    diff = x[:, None] - law.means  # (n, k, d)
    chol = torch.linalg.cholesky(law.covs)
    steps = torch.linalg.solve_triangular(chol, diff[..., None], upper=False)
    away, mode = steps[..., 0].norm(dim=-1).min(-1)  # in standard deviations
    counts = torch.bincount(mode[away <= radius], minlength=len(law.means))
    shares = counts.to(x) / len(x)
    modes = int((shares >= least * law.log_weights.exp()).sum())
    return Coverage(modes, shares.sum().item(), shares)


# Networks for images


def conv_generator(k: int, *, channels: int = 64) -> nn.Sequential:
    """Return a residual network from noise (n, k) to images (n, 1, 28, 28) in [0, 1].

    Args:
        k: Dimension of the noise.
        channels: At full size, a multiple of 8; four times as many at 7 × 7.
    """
    c = 4 * channels
    layers: list[nn.Module] = [nn.Linear(k, 49 * c), nn.Unflatten(1, (c, 7, 7))]
    for c in (2 * channels, channels):
        layers += [ResBlock(2 * c), nn.Upsample(scale_factor=2)]
        layers.append(nn.Conv2d(2 * c, c, 3, padding=1))
    head = [nn.SiLU(), nn.Conv2d(channels, 1, 3, padding=1), nn.Sigmoid()]
    return nn.Sequential(*layers, ResBlock(channels), *head)


def conv_discriminator(*, channels: int = 64, size: int = 28) -> nn.Sequential:
    """Return a convolutional network from images (n, 1, size, size) to scores (n, 1).

    It has no normalisation: each row is judged by itself, and ∇D means what it says.

    Args:
        channels: At full size; four times as many at a quarter.
        size: Height and width, a multiple of 4.

    Raises:
        ValueError: A size that is no multiple of 4.
    """
    if size < 4 or size % 4:
        raise ValueError(f"size must be a positive multiple of 4, got {size}")
    layers: list[nn.Module] = [nn.Conv2d(1, channels, 3, padding=1), nn.LeakyReLU(0.2)]
    for c in (channels, 2 * channels):
        layers.append(nn.Conv2d(c, 2 * c, 4, stride=2, padding=1))
        layers.append(nn.LeakyReLU(0.2))
    flat = 4 * channels * (size // 4) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, 1))
