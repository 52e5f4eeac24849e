"""What every generative model of the book can do (book/back/api.md).

A generative model is a map g that pushes a law one can sample, z ~ p_z, onto
the law of the data: x = g(z) ~ p (eq:pushforward).  Whatever the map, the
reader asks it the same three questions:

    model.sample(n)      n draws x ~ p                     shape (n, *shape)
    model.log_prob(x)    log p(x), where p has a density   shape (n,)
    model.loss(x)        what training minimises           shape ()
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Generator, Tensor, nn


class Player(NamedTuple):
    """One side of the game that training plays (eq:game).

    Attributes:
        params: What this player may change.
        loss: What it minimises, ``loss(x, rng=...)``, a scalar.
        turns: How many steps it takes each time its turn comes.
    """

    params: list[nn.Parameter]
    loss: Callable[..., Tensor]
    turns: int = 1


class Model(nn.Module, ABC):
    """A law that can be sampled, and learned from samples."""

    @abstractmethod
    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw n points x ~ p, shape (n, *shape)."""

    @abstractmethod
    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return the training objective on a batch x (n, *shape), a scalar."""

    def players(self) -> list[Player]:
        """Return one player for one loss; only an adversarial model has two."""
        return [Player(list(self.parameters()), self.loss)]


class Density(Model):
    """A model whose law has a density that can be evaluated."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) at the points x (n, *shape), shape (n,)."""

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return the mean negative log-likelihood, −1/n Σᵢ log p(xᵢ)."""
        return -self.log_prob(x).mean()
