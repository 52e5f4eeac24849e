"""The training loop, one for every model (book/back/api.md).

Training is a game (eq:game): each player in turn lowers its own loss.  A model
with one loss is a game of one, a GAN a game of two, and the critic of a
Wasserstein GAN takes five turns for each one of the generator.

    for step in train(model, batches, steps=1000, lr=1e-3, rng=rng):
        ...                             # log, draw, average, or break

The loop runs on Lightning Fabric: its precision, its devices, its processes.
Nothing here knows which model it trains, and no model knows that this file
exists.

References:
    Kingma, Ba (2015), Adam: a method for stochastic optimization.
    Polyak, Juditsky (1992), Acceleration of stochastic approximation by
        averaging (the averaged weights of :class:`Average`).
    Loshchilov, Hutter (2017), SGDR (the schedule :func:`cosine`).
"""

import copy
import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam, Optimizer

from .files import write_whole
from .model import Model, Player
from .stream import Stream

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Average", "CheckpointError", "NonFiniteLoss", "Step", "cosine", "train"]

Schedule = Callable[[int], float]
MakeOptimizer = Callable[..., Optimizer]
WATCH = 50  # steps between two looks at the losses, where a look halts the device


class NonFiniteLoss(FloatingPointError):
    """A loss became infinite or not a number."""


class CheckpointError(OSError):
    """A checkpoint could not be written; the one before it is whole."""


class Step(NamedTuple):
    """What the loop yields after a round.

    Attributes:
        number: 1, 2, …, ``steps``: how many rounds the weights have seen.
        values: The last loss of each player, scalars on the device.
    """

    number: int
    values: list[Tensor]

    @property
    def losses(self) -> list[float]:
        """The last loss of each player; reading them waits for the device."""
        return [value.item() for value in self.values]


class Average:
    """An exponential moving average of a model's weights, w̄ ← β w̄ + (1 − β) w.

    Hand it to :func:`train`, then use ``average.model`` like the model itself.
    Integers, such as counters, are copied.

    Args:
        model: The model whose weights are averaged; it is copied.
        decay: β ∈ [0, 1), or a function of the step number 1, 2, … that gives it.

    Raises:
        ValueError: A decay outside [0, 1).
    """

    def __init__(self, model: Model, decay: float | Schedule) -> None:
        if not callable(decay) and not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: Model, number: int) -> None:
        """Move the average towards the weights of the model after a step."""
        beta = self.decay(number) if callable(self.decay) else self.decay
        weights = model.state_dict()
        for name, mean in self.model.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(weights[name], 1 - beta)
            else:
                mean.copy_(weights[name])


def adam(params: list[nn.Parameter], *, lr: float) -> Optimizer:
    """Return Adam in one kernel, which takes a third off the step of a small net."""
    return Adam(params, lr=lr, fused=True)


def cosine(steps: int, *, warmup: int = 0) -> Schedule:
    """Return a schedule: up in a line over ``warmup`` steps, down along a cosine.

    Its factor is 1 at the top, and tends to 0 at the end of the ``steps``.

    Raises:
        ValueError: Unless 0 ≤ warmup < steps.
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup must lie in 0..{steps - 1}, got {warmup}")

    def factor(number: int) -> float:
        if number < warmup:
            return (number + 1) / (warmup + 1)
        return (1 + math.cos(math.pi * (number - warmup) / (steps - warmup))) / 2

    return factor


# More arguments than six: each is one decision, has a default, and is a keyword.
def train(
    model: Model,
    batches: Iterator[Tensor],
    *,
    steps: int,
    lr: float = 1e-3,
    rng: Generator | None = None,
    schedule: Schedule | None = None,
    optimizer: MakeOptimizer = adam,
    clip: float | None = None,
    ema: Average | None = None,
    precision: str = "32",
    compile: bool = False,
    fabric: "Fabric | None" = None,
    checkpoint: str | Path | None = None,
    every: int = 1000,
    resume: bool = False,
    progress: bool = False,
) -> Iterator[Step]:
    """Play ``steps`` rounds, yielding after each one, weights updated.

    A generator, not a callback: whoever iterates decides what to log, plot,
    average or stop.  The model is trained in place, where its weights are.

    A run that was killed at any instant and is resumed ends in the very weights
    of the uninterrupted run: a checkpoint holds the weights, the optimisers, the
    average, the stream and every generator.  It is written after the loop's body
    has seen the step, so draws made in the body are repeated too.

    With a ``fabric`` of several processes (launched by ``torchrun`` or by a
    scheduler) gradients are averaged over them, so they train as one process
    would on the joined batch: give each its rows by ``stream(…, rank=
    fabric.global_rank, world=fabric.world_size)`` and all the same ``rng``.

    Args:
        model: What is trained.
        batches: An endless iterator of data (n, *shape): :func:`.stream.stream`.
        steps: How many rounds, those before a resumed checkpoint included.
        lr: Learning rate of every player.
        rng: Source of every draw of the losses; by default torch's own.
        schedule: Factor of the learning rate at step 0, 1, …: :func:`cosine`.
        optimizer: Makes an optimiser, ``optimizer(params, lr=lr)``.
        clip: Largest Euclidean norm of a player's gradient.
        ema: Weights to average after each round.
        precision: "32" (the weights' own) or "bf16-mixed" (autocast).
        compile: Compile the losses; pays where training runs for minutes.
        fabric: A launched Fabric; by default one device, where the model is.
        checkpoint: File for the state of the run.
        every: Steps between checkpoints; one more is written at the end.
        resume: Go on from the checkpoint if there is one.
        progress: Show a progress bar.

    Yields:
        A :class:`Step` per round.

    Raises:
        ValueError: Arguments that make no sense, alone or together.
        NonFiniteLoss: A loss is not finite; says at which step, of which player,
            and where the last good checkpoint is.  A step on an accelerator may
            be found out up to 50 steps later, and never enters a checkpoint.
        CheckpointError: A checkpoint could not be written; the last one is whole.
    """
    if steps < 0 or every < 1:
        raise ValueError(f"steps and every must be positive, got {steps} and {every}")
    if not 0 < lr < math.inf or not (clip is None or clip > 0):
        raise ValueError(f"lr and clip must be positive, got {lr} and {clip}")
    if fabric is not None and precision != "32":
        raise ValueError("precision must be set on the fabric when one is given")
    if resume and checkpoint is None:
        raise ValueError("resume must come with a checkpoint to resume from")
    if checkpoint is not None and not isinstance(batches, Stream):
        raise ValueError(f"batches must be a Stream to be saved, got {type(batches)}")
    fabric = fabric or local_fabric(model, precision)
    path = None if checkpoint is None else Path(checkpoint)
    game = Game(model, batches, fabric, rng, clip, ema)
    game.set_up(partial(optimizer, lr=lr), compile)
    if resume and path is not None and path.exists():
        game.load(path)
    return play(game, steps, schedule or (lambda _: 1.0), path, every, progress)


def local_fabric(model: Model, precision: str) -> "Fabric":
    """Return a Fabric of one process, on the device where the model is."""
    with warnings.catch_warnings():  # the import leaves filters of its own behind
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments import LightningEnvironment

    weight = next(model.parameters(), torch.empty(0))
    kind, index = weight.device.type, weight.device.index
    devices = 1 if index is None else [index]
    how: Any = precision  # Fabric knows which names there are
    alone = LightningEnvironment()  # whatever a scheduler has put into ours
    return Fabric(accelerator=kind, devices=devices, precision=how, plugins=alone)


def play(
    game: "Game",
    steps: int,
    schedule: Schedule,
    path: Path | None,
    every: int,
    progress: bool,
) -> Iterator[Step]:
    """Yield the rounds that are left, checkpoints and progress bar included."""
    with bar(game, steps, progress) as shown:
        while game.number < steps:
            step = game.round(schedule(game.number))
            shown(step)
            yield step
            if path is not None and (step.number % every == 0 or step.number == steps):
                game.save(path)
        game.check_losses()


@contextmanager
def bar(game: "Game", steps: int, shown: bool) -> Iterator[Callable[[Step], None]]:
    """Give a function that shows a step in a progress bar, if one is to be shown."""
    if not shown or not game.fabric.is_global_zero:
        yield lambda step: None
        return
    with warnings.catch_warnings():  # without widgets the bar is one of text
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm

    with tqdm(total=steps, initial=game.number, unit="step") as line:

        def show(step: Step) -> None:
            if line.update():  # true when the line is drawn, a few times a second
                losses = ", ".join(f"{loss:.4g}" for loss in step.losses)
                line.set_postfix_str(f"loss {losses}", refresh=False)

        yield show


@dataclass
class Game:
    """A run between two rounds: all that the next round depends on."""

    model: Model
    batches: Iterator[Tensor]
    fabric: "Fabric"
    rng: Generator | None
    clip: float | None
    ema: Average | None
    number: int = 0
    players: list[Player] = field(default_factory=list)
    optimizers: list[Optimizer] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)
    sources: list[Generator] = field(default_factory=list)
    pending: list[tuple[int, int, Tensor]] = field(default_factory=list)
    good: str = "there is no checkpoint"

    def set_up(self, optimizer: MakeOptimizer, compiled: bool) -> None:
        """Place the weights, and give each player its optimiser."""
        fabric = self.fabric
        fabric.to_device(self.model)
        if self.ema is not None:
            fabric.to_device(self.ema.model)
        self.sources = [torch.default_generator]  # dropout knows no other
        if fabric.device.type == "cuda":
            index = fabric.device.index or 0
            self.sources.append(torch.cuda.default_generators[index])
        if self.rng is not None:
            self.sources.append(self.rng)
        if fabric.world_size > 1:
            self.join()
        for player in self.model.players():
            params = [p for p in player.params if p.requires_grad]
            loss = torch.compile(player.loss) if compiled else player.loss
            self.players.append(Player(params, loss, player.turns))
            self.optimizers.append(optimizer(params))
        self.rates = [[g["lr"] for g in o.param_groups] for o in self.optimizers]

    def join(self) -> None:
        """Start from the weights of process 0, with a source of noise of one's own.

        The generator of the caller may also shuffle the data, in the same way
        everywhere; so the losses draw from another, seeded by it and by the rank.
        """
        averaged = [] if self.ema is None else [self.ema.model]
        for module in [self.model, *averaged]:
            weights = {k: v.cpu() for k, v in module.state_dict().items()}
            module.load_state_dict(self.fabric.broadcast(weights))
        source = self.rng or torch.default_generator
        draw = torch.randint(2**62, (), generator=source, device=source.device)
        seed = int(draw.item()) + self.fabric.global_rank
        self.rng = Generator(source.device).manual_seed(seed)
        self.sources.append(self.rng)

    def round(self, factor: float) -> Step:
        """Let each player take its turns, at its learning rate times a factor."""
        if not self.model.training:  # the body may have sampled from it
            self.model.train()
        values = []
        for i, optimizer in enumerate(self.optimizers):
            for group, rate in zip(optimizer.param_groups, self.rates[i], strict=True):
                group["lr"] = rate * factor
            for _ in range(self.players[i].turns):
                value = self.turn(i)
            values.append(value)
        self.number += 1
        if self.ema is not None:
            self.ema.update(self.model, self.number)
        return Step(self.number, values)

    def turn(self, i: int) -> Tensor:
        """Lower the loss of player i once; return what it was."""
        player, optimizer = self.players[i], self.optimizers[i]
        x = self.fabric.to_device(next(self.batches))
        with self.fabric.autocast():
            loss = player.loss(x, rng=self.rng)
        self.watch(i, loss.detach())
        optimizer.zero_grad()
        self.fabric.backward(loss, inputs=player.params)  # no gradient for others
        self.average_gradients(player.params)
        if self.clip is not None:
            clip_grad_norm_(player.params, self.clip)
        optimizer.step()
        return loss.detach()

    def average_gradients(self, params: list[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes."""
        grads = [p.grad for p in params if p.grad is not None]
        if self.fabric.world_size == 1 or not grads:
            return
        flat = torch.cat([g.flatten() for g in grads])  # one message, not many
        torch.distributed.all_reduce(flat)  # Fabric's own waits at a barrier first
        flat /= self.fabric.world_size
        for g, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            g.copy_(mean.view_as(g))

    def watch(self, i: int, loss: Tensor) -> None:
        """Note the loss of player i; look at once where looking is free."""
        self.pending.append((self.number + 1, i, loss))
        if loss.device.type == "cpu" or len(self.pending) >= WATCH:
            self.check_losses()

    def check_losses(self) -> None:
        """Raise for the first loss, of those not yet looked at, that is not finite."""
        seen, self.pending = self.pending, []
        if not seen or torch.stack([loss for *_, loss in seen]).isfinite().all():
            return
        for number, i, loss in seen:
            if not loss.isfinite():
                raise NonFiniteLoss(
                    f"loss of player {i} is {loss.item()} at step {number}; {self.good}"
                )

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        self.check_losses()
        state = {
            "number": self.number,
            "world": self.fabric.world_size,
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "ema": None if self.ema is None else self.ema.model.state_dict(),
            "stream": self.stream().state_dict(),
            "generators": [self.gathered(g.get_state()) for g in self.sources],
        }
        if not self.fabric.is_global_zero:
            return
        buffer = io.BytesIO()
        torch.save(state, buffer)
        try:
            write_whole(path, buffer.getbuffer())
        except OSError as cause:
            raise CheckpointError(
                cause.errno, f"{path} was not written at step {self.number}: {cause}; "
                f"{self.good}"
            ) from cause  # fmt: skip
        self.good = f"the last good checkpoint is {path} (step {self.number})"

    def load(self, path: Path) -> None:
        """Become the game that was saved."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["world"] != self.fabric.world_size:
            raise ValueError(
                f"checkpoint {path} must be resumed by {state['world']} processes, "
                f"got {self.fabric.world_size}"
            )
        if (state["ema"] is None) != (self.ema is None):
            raise ValueError(f"ema must be given as it was in the checkpoint {path}")
        self.number = state["number"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.ema is not None:
            self.ema.model.load_state_dict(state["ema"])
        self.stream().load_state_dict(state["stream"])
        for generator, saved in zip(self.sources, state["generators"], strict=True):
            generator.set_state(saved[self.fabric.global_rank])
        self.good = f"the last good checkpoint is {path} (step {self.number})"

    def stream(self) -> Stream:
        """Return the batches, which can be saved."""
        assert isinstance(self.batches, Stream)  # train() has seen to it
        return self.batches

    def gathered(self, state: Tensor) -> list[Tensor]:
        """Return the state of a generator in each process."""
        if self.fabric.world_size == 1:
            return [state]
        states = [state] * self.fabric.world_size
        torch.distributed.all_gather_object(states, state)
        return states
