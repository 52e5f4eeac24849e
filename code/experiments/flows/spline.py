"""Runs behind book/flows/spline.md: splines beside affine maps, one core.

    pushforward train flows/spline/checkerboard-4

Both kinds of coupling have the same networks, see the same batches, and are
judged beside the exact density of the law.
"""

import time
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.optim import AdamW

from pushforward.data import stream
from pushforward.distributions import Checkerboard, Law, TwoMoons
from pushforward.flows import Affine, Flow, real_nvp, spline_flow
from pushforward.runs import Writer
from pushforward.train import cosine, train


@dataclass(frozen=True)
class Config:
    """What a run does; the defaults are those of flows/spline/checkerboard-4."""

    law: str = "checkerboard"  # or moons
    coupling: str = "spline"  # or affine
    layers: int = 4
    hidden: tuple[int, ...] = (64, 64)  # of each network
    bins: int = 8
    steps: int = 1000
    batch: int = 256
    lr: float = 2e-3
    clip: float = 50.0  # largest norm of the gradient
    every: int = 250  # steps between two looks at the test points
    rows: int = 20_000  # test points
    cells: int = 800  # of the quadrature along a side, which has length 8
    ship: bool = True  # whether the weights of the first seed are kept
    seeds: tuple[int, ...] = (0,)
    hardware: str = "cpu"

    def small(self) -> "Config":
        """Return the same run in seconds: everything happens, little is learned."""
        return replace(
            self, layers=2, hidden=(8,), steps=4, batch=16, every=2, rows=40, cells=20,
            seeds=(0,),
        )  # fmt: skip


AFFINE = Config(coupling="affine", layers=8)
SHORT = Config(layers=2, ship=False)
RUNS = {
    f"flows/spline/{law}-{name}": replace(config, law=law)
    for law in ("checkerboard", "moons")
    for name, config in (("affine", AFFINE), ("2", SHORT), ("4", Config()))
}


def target(config: Config) -> Law:
    """Return the law to learn, with its exact density; moons in their own units."""
    if config.law == "checkerboard":
        return Checkerboard()
    law = TwoMoons(0.05)
    w = law.log_mass.exp()[:, None]  # the moons are centred by symmetry
    deviation = ((w * law.arc.square()).sum(0) + law.s**2).sqrt()
    return Flow(Affine(torch.zeros(2), 1 / deviation), law)


def build(config: Config) -> Flow:
    """Return the untrained flow of a configuration."""
    if config.coupling == "affine":
        return real_nvp(2, config.layers, config.hidden)
    return spline_flow(2, config.layers, config.hidden, bins=config.bins)


@torch.no_grad()
def judge(model: Flow, law: Law, x: Tensor, cells: int) -> dict[str, float]:
    """Return test likelihood, divergence from the truth, mass and inverse error."""
    found = torch.cat([model.log_prob(part) for part in x.split(4096)])
    side = (torch.arange(cells, device=x.device) + 0.5) * 8 / cells - 4
    grid = torch.cartesian_prod(side, side)
    p = torch.cat([model.log_prob(part).exp() for part in grid.split(4096)])
    back = model.f.inverse(model.f(x)[0])[0]
    return {
        "nll": -found.mean().item(),
        "kl": (law.log_prob(x) - found).mean().item(),
        "mass": p.sum().item() * (8 / cells) ** 2,
        "inverse": (back - x).abs().max().item(),
    }


def fit(
    model: Flow, law: Law, x: Tensor, config: Config, run: Writer, seed: int
) -> float:
    """Train, and return how many seconds of the processor it took."""
    rng = torch.Generator(run.device).manual_seed(seed)
    steps = train(
        model, stream(law, config.batch, rng=rng), steps=config.steps, lr=config.lr,
        schedule=cosine(config.steps), optimizer=partial(AdamW, weight_decay=0.0,
        fused=True), clip=config.clip, rng=rng, progress=run.progress,
    )  # fmt: skip
    spent, start = 0.0, time.process_time()
    for step in steps:
        if step.number % config.every == 0:
            spent += time.process_time() - start
            with torch.no_grad():
                found = {"train": step.losses[0], "test": model.loss(x).item()}
            run.log(seed=seed, step=step.number, **found)
            start = time.process_time()
    return spent


def main(config: Config, run: Writer) -> None:
    """Train and judge one flow for each seed."""
    for seed in config.seeds:
        torch.manual_seed(seed)
        law = target(config)
        if isinstance(law, torch.nn.Module):
            law.to(run.device)
        x = law.sample(config.rows, rng=torch.Generator().manual_seed(10_000 + seed))
        model = build(config).to(run.device)
        seconds = fit(model, law, x.to(run.device), config, run, seed)
        found = judge(model, law, x.to(run.device), config.cells)
        found["seconds"] = seconds
        found["parameters"] = float(sum(p.numel() for p in model.parameters()))
        for name, value in found.items():
            run.metric(seed, name, value)
        if config.ship and seed == config.seeds[0]:
            run.weights({k: v.cpu() for k, v in model.state_dict().items()})
