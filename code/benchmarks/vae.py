"""Training steps of a VAE beside its peers: ``python code/benchmarks/vae.py``.

The network is 784-400-20 with a Bernoulli decoder, the batch 128 images of MNIST
size, the optimiser Adam.  Everybody takes the same number of steps on the same
batches in a round, from weights of its own; the certificate is the loss in nats
per image at the end of its first round, which must agree between all.
"""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from interleave import Thunk, machine, table
from torch import Tensor, nn
from torch.nn import functional as F

from pushforward.data import stream
from pushforward.distributions import StandardNormal
from pushforward.nn import MLP
from pushforward.vae import VAE, BernoulliNet, GaussianNet

torch.set_num_threads(1)
D, H, K, BATCH, STEPS = 784, 400, 20, 128, 40


def bits() -> Tensor:
    """Return 4096 binary images with the contrast of digits, (n, 784)."""
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(4096, 8, generator=rng)
    logits = 3 * z @ torch.randn(8, D, generator=rng) / 8**0.5 - 3
    return (torch.rand(4096, D, generator=rng) < logits.sigmoid()).float()


def ours(x: Tensor) -> VAE:
    """Return our model."""
    encoder = MLP(D, H, 2 * K, activation=nn.ReLU)
    decoder = MLP(K, H, D, activation=nn.ReLU)
    return VAE(GaussianNet(encoder), BernoulliNet(decoder), StandardNormal(K))


def by_hand(
    x: Tensor, loss: Callable[[Tensor], Tensor], params: Any, **adam: Any
) -> Thunk:
    """Return a round of the loop that everybody writes."""
    optimizer = torch.optim.Adam(params, lr=1e-3, **adam)
    batches = stream(x, BATCH, rng=torch.Generator().manual_seed(0))

    def run() -> float:
        for _ in range(STEPS):
            value = loss(next(batches))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        return value.item()

    return run


def by_train(x: Tensor) -> Thunk:
    """Return a round of our loop, checks of the loss included."""
    from pushforward.train import train

    rng = torch.Generator().manual_seed(0)
    steps = train(ours(x), stream(x, BATCH, rng=rng), steps=10**9, lr=1e-3, rng=rng)
    return lambda: [next(steps).losses[0] for _ in range(STEPS)][-1]


class Plain(nn.Module):
    """The VAE of the tutorials, with nothing between it and torch."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.mean, self.var = (
            nn.Linear(D, H),
            nn.Linear(H, K),
            nn.Linear(H, K),
        )
        self.two, self.out = nn.Linear(K, H), nn.Linear(H, D)

    def forward(self, x: Tensor) -> Tensor:
        """Return minus the bound."""
        h = F.relu(self.one(x))
        mean, log_var = self.mean(h), self.var(h)
        z = mean + (log_var / 2).exp() * torch.randn_like(mean)
        logits = self.out(F.relu(self.two(z)))
        cost = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        rate = (mean**2 + log_var.exp() - log_var - 1).sum() / 2
        return (cost + rate) / len(x)


def pythae_loss() -> tuple[Callable[[Tensor], Tensor], Any]:
    """Return the loss of pythae's model, and its parameters."""
    from pythae.data.datasets import DatasetOutput
    from pythae.models import VAE as Peer
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.mean = nn.Linear(D, H), nn.Linear(H, K)
            self.var = nn.Linear(H, K)

        def forward(self, x: Tensor) -> Any:
            h = F.relu(self.one(x))
            return ModelOutput(embedding=self.mean(h), log_covariance=self.var(h))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(K, H), nn.ReLU(), nn.Linear(H, D), nn.Sigmoid()
            )

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.net(z))

    config = VAEConfig(input_dim=(D,), latent_dim=K, reconstruction_loss="bce")
    model = Peer(config, encoder=Encoder(), decoder=Decoder())
    return lambda x: model(DatasetOutput(data=x)).loss, model.parameters()


def contestants(x: Tensor) -> dict[str, Thunk | None]:
    """Return a round for everybody."""
    model, plain, fast = ours(x), Plain(), Plain()
    rng = torch.Generator().manual_seed(0)
    thunks: dict[str, Thunk | None] = {
        "ours, loop by hand, fused Adam": by_hand(
            x, lambda b: model.loss(b, rng=rng), model.parameters(), fused=True
        ),
        "plain PyTorch": by_hand(x, plain, plain.parameters()),
        "plain PyTorch, fused Adam": by_hand(x, fast, fast.parameters(), fused=True),
    }
    if importlib.util.find_spec("lightning_fabric"):
        thunks["ours, train()"] = by_train(x)
    here = importlib.util.find_spec("pythae") is not None
    for name, adam in (("pythae", {}), ("pythae, fused Adam", {"fused": True})):
        thunks[name] = by_hand(x, *pythae_loss(), **adam) if here else None
    return thunks


if __name__ == "__main__":
    print(machine())
    print(
        table(
            f"{STEPS} training steps, VAE {D}-{H}-{K}, batch {BATCH}",
            contestants(bits()),
            certify=lambda loss: f"{loss:.1f} nats after {STEPS} steps",
            rounds=9,
        )
    )
