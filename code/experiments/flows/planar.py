"""Runs behind book/flows/planar.md: four energies, four depths.

    pushforward train flows/planar/energies       eight minutes, one processor core
    pushforward train flows/planar/long           the deepest flows, ten times longer

The energies are those of the paper's table 1, and every fit has the same budget of
steps, so that a deep flow has to earn its depth.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from pushforward.data import stream
from pushforward.distributions import StandardNormal
from pushforward.flows import (
    ENERGIES,
    Boltzmann,
    anneal,
    log_partition,
    planar_flow,
)
from pushforward.runs import Writer
from pushforward.train import cosine, train


@dataclass(frozen=True)
class Config:
    """What a run does; the defaults are those of flows/planar/long."""

    energies: tuple[str, ...] = ("U1", "U2", "U3", "U4")
    depths: tuple[int, ...] = (8, 32)
    steps: int = 25_000
    batch: int = 1024
    lr: float = 5e-3
    heat: float = 0.5  # share of the steps in which β rises to 1
    clip: float = 5.0
    draws: int = 100_000  # for the divergence at the end
    ship: int = 8  # the depth whose weights of the first seed are kept
    seeds: tuple[int, ...] = (0, 1, 2)
    hardware: str = "gpu"

    def small(self) -> "Config":
        """Return the same run in seconds: everything happens, little is learned."""
        return replace(
            self, energies=("U1", "U2"), depths=(0, 2), steps=5, batch=8, draws=50,
            ship=2, seeds=(0,), hardware="cpu",
        )  # fmt: skip


RUNS = {
    "flows/planar/long": Config(),
    "flows/planar/energies": Config(
        depths=(0, 2, 8, 32), steps=2500, batch=256, seeds=(0, 1), hardware="cpu"
    ),
}


def build(config: Config) -> torch.nn.ModuleDict:
    """Return the flows whose weights are shipped, one for each energy."""
    return torch.nn.ModuleDict(
        {name: planar_flow(2, config.ship) for name in config.energies}
    )


def fit(name: str, depth: int, config: Config, run: Writer, seed: int) -> Boltzmann:
    """Fit a flow of one depth to one energy and record its divergence."""
    torch.manual_seed(seed)  # the weights
    rng = Generator(run.device).manual_seed(seed)
    model = Boltzmann(planar_flow(2, depth).to(run.device), ENERGIES[name])
    noise = stream(StandardNormal(2).to(run.device), config.batch, rng=rng)
    options: dict[str, Any] = {
        "steps": config.steps, "lr": config.lr, "rng": rng, "clip": config.clip,
        "schedule": cosine(config.steps),
    }  # fmt: skip
    for step in train(model, noise, **options):
        model.beta = anneal(step.number, int(config.heat * config.steps))
        if step.number % max(config.steps // 25, 1) == 0:
            loss = {f"loss_{name}_{depth}": step.losses[0]}
            run.log(seed=seed, step=step.number, **loss)
    log_w = model.double().log_weights(config.draws, rng=rng)
    kl = log_partition(ENERGIES[name]).to(log_w) - log_w.mean()
    ess = (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp() / len(log_w)
    run.metric(seed, f"kl_{name}_{depth}", kl.item())
    run.metric(seed, f"ess_{name}_{depth}", ess.item())
    return model.float()


def main(config: Config, run: Writer) -> None:
    """Fit every depth to every energy; ship one depth of the first seed."""
    shipped: dict[str, Tensor] = {}
    for seed in config.seeds:
        for name in config.energies:
            for depth in config.depths:
                model = fit(name, depth, config, run, seed)
                if seed == config.seeds[0] and depth == config.ship:
                    weights = model.flow.state_dict()
                    shipped |= {f"{name}.{k}": v for k, v in weights.items()}
    run.weights(shipped)
