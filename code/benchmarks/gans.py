"""Rounds of a GAN beside its peers: ``python code/benchmarks/gans.py``.

Generator 8-128-128-2, discriminator 2-128-128-1, rectifiers, the non-saturating
loss, batches of 256 points of a ring.  A round is a step of the discriminator and
one of the generator.  Everybody plays the same number of rounds on batches of one
data set, from weights of its own; the certificate is the mean loss of the
discriminator in its first rounds, which must agree between all.
"""

import importlib.util
import os
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from interleave import Thunk, machine, table
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pushforward.data import stream
from pushforward.distributions import StandardNormal, ring
from pushforward.gans import GAN
from pushforward.nn import MLP

torch.set_num_threads(1)
H, K, BATCH, ROUNDS, LR = 128, 8, 256, 40, 5e-4
Round = Callable[[Tensor], float]


def data() -> Tensor:
    """Return 10,000 points of a ring, (n, 2)."""
    return ring(s=0.05).sample(10_000, rng=torch.Generator().manual_seed(0))


def adams(g: nn.Module, d: nn.Module, **options: Any) -> list[torch.optim.Optimizer]:
    """Return an optimiser for the generator and one for the discriminator."""
    adam = partial(torch.optim.Adam, lr=LR, betas=(0.5, 0.99), **options)
    return [adam(g.parameters()), adam(d.parameters())]


def played(x: Tensor, step: Round) -> Thunk:
    """Return some rounds as one thunk; it returns the mean loss."""
    batches = stream(x, BATCH, rng=torch.Generator().manual_seed(0))
    return lambda: sum(step(next(batches)) for _ in range(ROUNDS)) / ROUNDS


def ours() -> GAN:
    """Return our model."""
    small = partial(MLP, activation=nn.ReLU)
    return GAN(small(K, H, H, 2), small(2, H, H, 1), StandardNormal(K))


def by_hand() -> Round:
    """Return a round of our model in a loop that one writes by hand."""
    gan, rng = ours(), torch.Generator().manual_seed(0)
    of_g, of_d = adams(gan.generator, gan.discriminator, fused=True)
    pairs = list(zip(gan.players(), (of_d, of_g), strict=True))

    def step(x: Tensor) -> float:
        losses = []
        for player, optimizer in pairs:
            loss = player.loss(x, rng=rng)
            optimizer.zero_grad()
            loss.backward(inputs=player.params)
            optimizer.step()
            losses.append(loss.detach())
        return losses[0].item()

    return step


def by_train(x: Tensor) -> Thunk:
    """Return rounds of our loop, checks of the losses included."""
    from pushforward.train import train

    rng = torch.Generator().manual_seed(0)
    adam = partial(torch.optim.Adam, betas=(0.5, 0.99), fused=True)
    game = train(ours(), stream(x, BATCH, rng=rng), steps=10**9, lr=LR, rng=rng,
                 optimizer=adam)  # fmt: skip
    return lambda: sum(next(game).values[0].item() for _ in range(ROUNDS)) / ROUNDS


def perceptron(*widths: int) -> nn.Sequential:
    """Return the perceptron of the tutorials."""
    a, b, c, d = widths
    return nn.Sequential(
        nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c), nn.ReLU(), nn.Linear(c, d)
    )


def plain(**options: Any) -> Round:
    """Return a round of the GAN of the tutorials."""
    g, d = perceptron(K, H, H, 2), perceptron(2, H, H, 1)
    of_g, of_d = adams(g, d, **options)
    real, fake = torch.ones(BATCH, 1), torch.zeros(BATCH, 1)
    entropy = binary_cross_entropy_with_logits

    def step(x: Tensor) -> float:
        of_d.zero_grad()
        y = g(torch.randn(len(x), K)).detach()
        loss = entropy(d(x), real) + entropy(d(y), fake)
        loss.backward()
        of_d.step()
        of_g.zero_grad()
        entropy(d(g(torch.randn(len(x), K))), real).backward()
        of_g.step()
        return loss.item()

    return step


def torchgan(**options: Any) -> Round:
    """Return a round of torchgan's losses, which carry the steps with them."""
    # torchgan imports torchvision to draw, which we do not.
    sys.modules.setdefault("torchvision", types.ModuleType("torchvision"))
    from torchgan.losses import MinimaxDiscriminatorLoss, MinimaxGeneratorLoss
    from torchgan.models import Discriminator, Generator

    class G(Generator):
        def __init__(self) -> None:
            super().__init__(K)
            self.net = perceptron(K, H, H, 2)

        def forward(self, z: Tensor) -> Tensor:
            return self.net(z)

    class D(Discriminator):
        def __init__(self) -> None:
            super().__init__(2)
            self.net = perceptron(2, H, H, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    g, d, device = G(), D(), torch.device("cpu")
    of_g, of_d = adams(g, d, **options)
    judge, make = MinimaxDiscriminatorLoss(), MinimaxGeneratorLoss()

    def step(x: Tensor) -> float:
        loss = judge.train_ops(g, d, of_d, x, device)
        make.train_ops(g, d, of_g, device, len(x))
        return float(loss)

    return step


def contestants(x: Tensor) -> dict[str, Thunk | None]:
    """Return some rounds for everybody."""
    thunks: dict[str, Thunk | None] = {
        "ours, loop by hand, fused Adam": played(x, by_hand()),
        "plain PyTorch": played(x, plain()),
        "plain PyTorch, fused Adam": played(x, plain(fused=True)),
    }
    if importlib.util.find_spec("lightning_fabric"):
        thunks["ours, train()"] = by_train(x)
    here = importlib.util.find_spec("torchgan") is not None
    for name, adam in (("torchgan", {}), ("torchgan, fused Adam", {"fused": True})):
        thunks[name] = played(x, torchgan(**adam)) if here else None
    return thunks


if __name__ == "__main__":
    torch.manual_seed(0)
    print(machine())
    print(
        table(
            f"{ROUNDS} rounds, ring in the plane, batch {BATCH}",
            contestants(data()),
            certify=lambda loss: f"mean loss {loss:.2f} nats in the first rounds",
            rounds=9,
        )
    )
