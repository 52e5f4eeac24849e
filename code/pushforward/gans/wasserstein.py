"""The Wasserstein game (book/gans/wasserstein.md).

The opponent no longer tells data from samples: it measures how far apart they are.
Over critics f of slope at most 1,

    W₁(p, p_g) = max_f  E f(x) − E f(g(z))                      (eq:wgan-value)

and the generator lowers −E f(g(z)).  Two ways to keep the slope in check: a box for
the weights (:func:`clip_weights`), or a price for slopes that are not 1
(:func:`gradient_penalty`).

References:
    Arjovsky, Chintala, Bottou (2017), Wasserstein generative adversarial networks.
    Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville (2017), Improved training of
        Wasserstein GANs.
"""

import torch
from torch import Generator, Tensor, nn

from ..distributions import positive
from .vanilla import Constraint, Objective, Penalty, input_gradient

__all__ = ["WASSERSTEIN", "between", "clip_weights", "gap", "gradient_penalty"]


def gap(real: Tensor, fake: Tensor) -> Tensor:
    """Return E f(x) − E f(g(z)) from the critic's scores (eq:wgan-value)."""
    return real.mean() - fake.mean()


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return minus the gap."""
    return -gap(real, fake)


def generator_loss(fake: Tensor) -> Tensor:
    """Return −E f(g(z)) (eq:wgan-generator)."""
    return -fake.mean()


WASSERSTEIN = Objective(critic_loss, generator_loss)


def clip_weights(c: float) -> Constraint:
    """Return the projection of all weights on the box [−c, c] (eq:wgan-clip).

    A GAN calls it before each loss, so that every loss sees a critic in the box, and
    after a round, which ends with the generator's loss, the critic is in it.

    Args:
        c: Half the side of the box, c > 0.
    """
    positive("c", c)

    @torch.no_grad()
    def constraint(critic: nn.Module) -> None:
        """Move each weight to the nearest point of [−c, c], in place."""
        for w in critic.parameters():
            w.clamp_(-c, c)  # (eq:wgan-clip)

    return constraint


def between(x: Tensor, y: Tensor, *, rng: Generator | None = None) -> Tensor:
    """Draw a point on each segment from xᵢ to yᵢ, uniformly, shape (n, *shape).

    Args:
        x: One end of each segment, (n, *shape).
        y: The other, (n, *shape).
        rng: Source of the draw.
    """
    device = x.device if rng is None else rng.device
    shape = (len(x), *[1] * (x.ndim - 1))  # one number for a row
    u = torch.rand(shape, generator=rng, dtype=x.dtype, device=device).to(x.device)
    return u * x + (1 - u) * y


def gradient_penalty(
    weight: float, target: float = 1.0, *, one_sided: bool = False
) -> Penalty:
    """Return the penalty λ E(‖∇f(x̂)‖ − a)² (eq:gradient-penalty).

    x̂ is uniform on the segment between a datum and a sample.

    Args:
        weight: λ > 0.
        target: a > 0, the slope that costs nothing.
        one_sided: Charge only for slopes above the target.
    """
    positive("weight", weight)
    positive("target", target)

    def penalty(
        critic: nn.Module, x: Tensor, fake: Tensor, *, rng: Generator | None = None
    ) -> Tensor:
        """Return λ E(‖∇f(x̂)‖ − a)²."""
        slope = input_gradient(critic, between(x, fake, rng=rng)).flatten(1)
        excess = slope.norm(dim=1) - target  # (n,), one norm for each row
        if one_sided:
            excess = excess.relu()
        return weight * excess.square().mean()  # (eq:gradient-penalty)

    return penalty
