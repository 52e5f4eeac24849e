"""Coupling flows beside their peers: ``python code/benchmarks/flows.py``.

Eight couplings of the plane, affine and splines of 8 bins, with perceptrons of
64-64 units and ReLU; the law is a ring of eight Gaussians.  Three works each:
training steps on 512 points, ``log_prob`` of 100,000 points, and as many samples.
Everybody evaluates 4096 points at a time, which is best for all on a CPU; one row
shows what happens otherwise.

Everybody's density is certified: by its test likelihood after the first round of
training, by its mass on a square, and by the entropy that its samples show beside
the one that its density has.
"""

import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from interleave import Thunk, machine, table
from torch import Tensor, nn
from torch.nn import functional as F

from pushforward.data import stream
from pushforward.distributions import ring
from pushforward.flows import real_nvp, spline_flow

torch.set_num_threads(1)
LAYERS, H, BINS, BOX, BATCH, STEPS = 8, 64, 8, 5.0, 512, 20
MANY, CHUNK = 100_000, 4096
AFFINE, SPLINE = 2, 3 * BINS - 1  # numbers that a network returns


class Contestant(NamedTuple):
    """A flow, whoever made it."""

    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor]
    params: Iterable[nn.Parameter]


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    """Return the network of every coupling; its last layer is zero."""
    net = nn.Sequential(
        nn.Linear(inputs, H), nn.ReLU(), nn.Linear(H, H), nn.ReLU(),
        nn.Linear(H, outputs),
    )  # fmt: skip
    nn.init.zeros_(net[-1].weight)
    nn.init.zeros_(net[-1].bias)
    return net


class ForPeer(nn.Module):
    """The same network, called as the peers call theirs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = perceptron(inputs, outputs)

    def forward(self, x: Tensor, context: Any = None) -> Tensor:
        """Return the parameters of the moved coordinate."""
        return self.net(x)


# Contestants


def ours(kind: str) -> Contestant:
    """Return our flow."""
    if kind == "affine":
        flow = real_nvp(2, LAYERS, (H, H))
    else:
        flow = spline_flow(2, LAYERS, (H, H), bins=BINS, box=BOX)
    return Contestant(flow.log_prob, flow.sample, flow.parameters())


def plain_spline(x: Tensor, h: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    """Return the spline as tutorials write it, with x and h (n, ·)."""
    w = 1e-3 + (1 - 1e-3 * BINS) * h[:, :BINS].softmax(-1)
    v = 1e-3 + (1 - 1e-3 * BINS) * h[:, BINS : 2 * BINS].softmax(-1)
    d = F.pad(
        1e-3 + F.softplus(h[:, 2 * BINS :] + math.log(math.e - 1)), (1, 1), value=1.0
    )
    xs = F.pad(2 * BOX * w.cumsum(-1), (1, 0)) - BOX
    ys = F.pad(2 * BOX * v.cumsum(-1), (1, 0)) - BOX
    inside = (x > -BOX) & (x < BOX)
    at = torch.where(inside, x, torch.zeros_like(x))
    k = torch.searchsorted((ys if back else xs).detach(), at).sub(1).clamp(0, BINS - 1)
    x0, y0 = xs.gather(1, k), ys.gather(1, k)
    w, v = xs.gather(1, k + 1) - x0, ys.gather(1, k + 1) - y0
    d0, d1, s = d.gather(1, k), d.gather(1, k + 1), v / w
    if back:
        t = d0 + d1 - 2 * s
        e = at - y0
        a, b, c = v * (s - d0) + e * t, v * d0 - e * t, -s * e
        xi = 2 * c / (-b - (b.square() - 4 * a * c).sqrt())
        out = xi * w + x0
    else:
        xi = (at - x0) / w
    r = xi * (1 - xi)
    bottom = s + (d0 + d1 - 2 * s) * r
    if not back:
        out = y0 + v * (s * xi.square() + d0 * r) / bottom
    top = s.square() * (d1 * xi.square() + 2 * s * r + d0 * (1 - xi).square())
    log = top.log() - 2 * bottom.log()
    log = torch.where(inside, -log if back else log, torch.zeros_like(log))
    return torch.where(inside, out, x), log[:, 0]


def plain_affine(x: Tensor, h: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    """Return the affine map as tutorials write it."""
    s, t = h.chunk(2, dim=1)
    s = 2 * torch.tanh(s)
    if back:
        return (x - t) * torch.exp(-s), -s.sum(1)
    return x * torch.exp(s) + t, s.sum(1)


def plain(kind: str) -> Contestant:
    """Return the flow that everybody writes by hand."""
    move, outputs = (
        (plain_affine, AFFINE) if kind == "affine" else (plain_spline, SPLINE)
    )
    nets = nn.ModuleList(perceptron(1, outputs) for _ in range(LAYERS))

    def run(x: Tensor, back: bool) -> tuple[Tensor, Tensor]:
        total = torch.zeros(len(x))
        order = range(LAYERS - 1, -1, -1) if back else range(LAYERS)
        for i in order:
            a, b = x[:, :1], x[:, 1:]
            if i % 2:
                a, b = b, a
            b, log = move(b, nets[i](a), back)
            x = torch.cat([b, a] if i % 2 else [a, b], 1)
            total = total + log
        return x, total

    def log_prob(x: Tensor) -> Tensor:
        z, total = run(x, False)
        return total - (z.square().sum(1) / 2 + math.log(2 * math.pi))

    return Contestant(
        log_prob, lambda n: run(torch.randn(n, 2), True)[0], nets.parameters()
    )


def zuko_flow(kind: str) -> Contestant:
    """Return zuko's coupling flow."""
    from zuko.distributions import DiagNormal
    from zuko.flows.coupling import GeneralCouplingTransform
    from zuko.lazy import Flow, UnconditionalDistribution
    from zuko.transforms import MonotonicRQSTransform

    def layer(i: int) -> Any:
        mask = torch.tensor([i % 2 == 0, i % 2 == 1])
        if kind == "affine":
            return GeneralCouplingTransform(2, mask=mask, hidden_features=(H, H))
        return GeneralCouplingTransform(
            2, mask=mask, univariate=MonotonicRQSTransform,
            shapes=((BINS,), (BINS,), (BINS - 1,)), hidden_features=(H, H),
        )  # fmt: skip

    base = UnconditionalDistribution(
        DiagNormal, torch.zeros(2), torch.ones(2), buffer=True
    )
    flow = Flow([layer(i) for i in range(LAYERS)], base)
    return Contestant(
        lambda x: flow().log_prob(x), lambda n: flow().sample((n,)), flow.parameters()
    )


def nflows_flow(kind: str) -> Contestant:
    """Return nflows' coupling flow."""
    from nflows.distributions.normal import StandardNormal
    from nflows.flows.base import Flow
    from nflows.transforms.base import CompositeTransform
    from nflows.transforms.coupling import (
        AffineCouplingTransform,
        PiecewiseRationalQuadraticCouplingTransform,
    )

    def layer(i: int) -> Any:
        mask = [-1, 1] if i % 2 == 0 else [1, -1]
        if kind == "affine":
            return AffineCouplingTransform(mask, ForPeer)
        return PiecewiseRationalQuadraticCouplingTransform(
            mask, ForPeer, num_bins=BINS, tails="linear", tail_bound=BOX
        )

    flow = Flow(
        CompositeTransform([layer(i) for i in range(LAYERS)]), StandardNormal([2])
    )
    return Contestant(flow.log_prob, flow.sample, flow.parameters())


def normflows_flow(kind: str) -> Contestant:
    """Return normflows' coupling flow."""
    import normflows as nf
    from normflows.flows.neural_spline.coupling import (
        PiecewiseRationalQuadraticCoupling,
    )

    layers: list[nn.Module] = []
    for i in range(LAYERS):
        if kind == "affine":
            layers.append(nf.flows.AffineCouplingBlock(ForPeer(1, AFFINE)))
            layers.append(nf.flows.Permute(2, mode="swap"))
            continue
        mask = torch.tensor([-1, 1] if i % 2 == 0 else [1, -1])
        layers.append(
            PiecewiseRationalQuadraticCoupling(
                mask, ForPeer, num_bins=BINS, tails="linear", tail_bound=BOX
            )
        )
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(2, trainable=False), layers)
    return Contestant(flow.log_prob, lambda n: flow.sample(n)[0], flow.parameters())


PEERS = {"zuko": zuko_flow, "nflows": nflows_flow, "normflows": normflows_flow}


def contestants(kind: str) -> dict[str, Contestant | None]:
    """Return everybody; None for a peer that is not installed."""
    everybody: dict[str, Contestant | None] = {
        "ours": ours(kind), "plain PyTorch": plain(kind),
    }  # fmt: skip
    for name, make in PEERS.items():
        everybody[name] = make(kind) if importlib.util.find_spec(name) else None
    return everybody


# Works


def training(flow: Contestant, fused: bool = False) -> Thunk:
    """Return a round of training steps on fresh batches of a fixed sample."""
    x = ring().sample(20_000, rng=torch.Generator().manual_seed(0))
    batches = stream(x, BATCH, rng=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(flow.params, lr=1e-3, fused=fused)

    def run() -> float:
        for _ in range(STEPS):
            loss = -flow.log_prob(next(batches)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    return run


def evaluation(flow: Contestant, chunk: int = CHUNK) -> Thunk:
    """Return log_prob on the points of a square, and their mass by quadrature."""
    side = (torch.arange(316) + 0.5) * 12 / 316 - 6
    x = torch.cartesian_prod(side, side)

    @torch.no_grad()
    def run() -> float:
        logs = torch.cat([flow.log_prob(part) for part in x.split(chunk)])
        return logs.exp().sum().item() * (12 / 316) ** 2

    return run


def drawing(flow: Contestant, chunk: int = CHUNK) -> Callable[[], Tensor]:
    """Return a thunk that draws many samples."""
    sizes = [min(chunk, MANY - i) for i in range(0, MANY, chunk)]

    @torch.no_grad()
    def run() -> Tensor:
        return torch.cat([flow.sample(n) for n in sizes])

    return run


@torch.no_grad()
def entropies(flow: Contestant, x: Tensor) -> str:
    """Return the entropy by samples, and by quadrature of the density."""
    side = (torch.arange(400) + 0.5) / 25 - 8
    grid = torch.cartesian_prod(side, side)
    log = torch.cat([flow.log_prob(part) for part in grid.split(CHUNK)])
    exact = -(log.exp() * log).sum().item() / 25**2
    found = -torch.cat([flow.log_prob(part) for part in x.split(CHUNK)]).mean().item()
    return f"entropy {found:.3f} by samples, {exact:.3f} by quadrature"


def report(kind: str, rounds: int = 7) -> None:
    """Print the three tables of one kind of coupling."""
    torch.manual_seed(0)
    all_of_them = contestants(kind)
    title = f"{LAYERS} {kind} couplings, {H}-{H}"
    steps: dict[str, Thunk | None] = {}
    for name, flow in all_of_them.items():
        # The same optimiser for all; the fused one is a choice that all have.
        steps[name] = None if flow is None else training(flow, fused=True)
    print(
        table(
            f"{title}: {STEPS} training steps, batch {BATCH}, fused Adam",
            steps,
            certify=lambda loss: f"loss {loss:.3f} after {STEPS} steps",
            rounds=rounds,
        )
    )
    live = {n: f for n, f in all_of_them.items() if f is not None}
    masses: dict[str, Thunk | None] = {n: evaluation(f) for n, f in live.items()}
    masses["ours, in one piece"] = evaluation(live["ours"], MANY)
    print(
        table(
            f"{title}: log_prob of {316**2} points",
            masses,
            certify=lambda mass: f"mass {mass:.4f}",
            rounds=rounds,
        )
    )
    draws: dict[str, Thunk | None] = {n: drawing(f) for n, f in live.items()}
    names = iter(live)
    print(
        table(
            f"{title}: {MANY} samples",
            draws,
            certify=lambda x: entropies(live[next(names)], x),
            rounds=rounds,
        )
    )


if __name__ == "__main__":
    print(machine())
    for kind in sys.argv[1:] or ("affine", "spline"):
        report(kind)
    print(machine())
