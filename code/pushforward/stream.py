"""Endless streams of batches, from data or from a law.

    stream(images.x, 128, rng=rng)  shuffled epochs of the rows of a tensor
    stream(ring(), 128, rng=rng)    fresh draws from a law

A stream can be saved and taken up again, and shared by several processes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

__all__ = ["Sampler", "Stream", "stream"]


@runtime_checkable
class Sampler(Protocol):
    """Whatever can be sampled: a law, or a model."""

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw n points, shape (n, *shape)."""
        ...


class Stream(Iterator[Tensor], ABC):
    """An endless iterator of batches that can be saved and taken up again."""

    @abstractmethod
    def __next__(self) -> Tensor:
        """Return the next batch."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return what the next batches depend on, apart from the data."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the stream that gave this state would have gone on."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "Stream":
        """Return the stream of the changed batches.

        With it grey levels get fresh noise each time they are seen:
        ``stream(x, 128, rng=rng).map(partial(dequantize, levels=256, rng=rng))``.
        """
        return Mapped(self, change)


class Shared(Stream):
    """A stream whose batches may be shared by several processes.

    Every process of a distributed run has the same rng, so draws the same global
    batch, and keeps its own rows: together they see what one process would see.

    Args:
        size: Rows of the global batch.
        rng: Source of the draws; by default torch's own.
        rank: Number of this process, 0 ≤ rank < world.
        world: How many processes share each batch; it divides ``size``.
    """

    def __init__(self, size: int, rng: Generator | None, rank: int, world: int) -> None:
        if size < 1:
            raise ValueError(f"size must be positive, got {size}")
        if world < 1 or not 0 <= rank < world:
            raise ValueError(f"rank must lie in 0..world − 1, got {rank} of {world}")
        if size % world:
            raise ValueError(f"size must be a multiple of {world} ranks, got {size}")
        self.size = size
        self.rng = rng
        part = size // world
        self.rows = slice(rank * part, (rank + 1) * part)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator."""
        return {"rng": (self.rng or torch.default_generator).get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the generator into a state."""
        (self.rng or torch.default_generator).set_state(state["rng"].cpu())


class Mapped(Stream):
    """The batches of a stream, each changed; see :meth:`Stream.map`."""

    def __init__(self, source: Stream, change: Callable[[Tensor], Tensor]) -> None:
        self.source = source
        self.change = change

    def __next__(self) -> Tensor:
        """Return the next batch, changed."""
        return self.change(next(self.source))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the source."""
        return self.source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the source."""
        self.source.load_state_dict(state)


class Epochs(Shared):
    """The rows of a tensor, shuffled anew in each epoch; see :func:`stream`."""

    def __init__(self, x: Tensor, size: int, *args: Any) -> None:
        super().__init__(size, *args)
        self.x = x
        self.order = torch.empty(0, dtype=torch.long, device=x.device)
        self.at = 0

    def __next__(self) -> Tensor:
        """Return the rows of the next part of the epoch."""
        if self.at + self.size > len(self.order):
            device = "cpu" if self.rng is None else self.rng.device
            order = torch.randperm(len(self.x), generator=self.rng, device=device)
            self.order, self.at = order.to(self.x.device), 0
        batch = self.order[self.at : self.at + self.size]
        self.at += self.size
        return self.x.index_select(0, batch[self.rows])

    def state_dict(self) -> dict[str, Any]:
        """Return the order of this epoch and the place in it, too."""
        return {**super().state_dict(), "order": self.order.cpu(), "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the middle of the epoch."""
        order = state["order"]
        if len(order) not in (0, len(self.x)):
            raise ValueError(
                f"state is of {len(order)} rows, the data of {len(self.x)}"
            )
        super().load_state_dict(state)
        self.order, self.at = order.to(self.x.device), state["at"]


class Draws(Shared):
    """Fresh draws from a law; see :func:`stream`."""

    def __init__(self, law: Sampler, size: int, *args: Any) -> None:
        super().__init__(size, *args)
        self.law = law

    def __next__(self) -> Tensor:
        """Return this process's rows of a fresh sample."""
        with torch.no_grad():
            return self.law.sample(self.size, rng=self.rng)[self.rows]


def stream(
    source: Tensor | Sampler,
    size: int,
    *,
    rng: Generator | None = None,
    rank: int = 0,
    world: int = 1,
) -> Stream:
    """Return an endless iterator of batches, all of the same size.

    The rows of a tensor come in shuffled epochs; the n mod ``size`` rows that do
    not fill a batch are left out, other ones in each epoch.  A law is sampled
    anew for each batch.  The tensor may live on any device; its batches do too.

    Args:
        source: Data (n, *shape), or a law.
        size: Rows of a batch.
        rng: Source of the order, or of the sample.
        rank: Number of this process among ``world``.
        world: How many processes share each batch.

    Raises:
        ValueError: Data that are empty, not finite, without a row axis or fewer
            than ``size``; a source of another kind; a bad size or rank.
    """
    if isinstance(source, Tensor):
        if source.ndim < 2:
            raise ValueError(f"source must be (n, *shape), got {tuple(source.shape)}")
        if source.numel() == 0 or not source.isfinite().all():
            raise ValueError("source must be finite and not empty")
        if size > len(source):
            raise ValueError(f"size must be at most {len(source)} rows, got {size}")
        return Epochs(source, size, rng, rank, world)
    if isinstance(source, Sampler):
        return Draws(source, size, rng, rank, world)
    hint = ": did you mean images.x?" if hasattr(source, "x") else ""
    raise ValueError(f"source must be a tensor or a law, got {type(source)}{hint}")
