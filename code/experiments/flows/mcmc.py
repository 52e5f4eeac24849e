"""Runs behind book/flows/mcmc.md: when do global moves pay?

    pushforward train flows/mcmc/gaussian      minutes, one processor core
    pushforward train flows/mcmc/modes         minutes, one processor core
    pushforward train flows/mcmc/mixture-cpu   minutes, one processor core
    pushforward train flows/mcmc/nuts          minutes, one core; needs pyro-ppl
    pushforward train flows/mcmc/mixture       minutes, one GPU

The mixture is that of Samsonov et al. (2022): two Gaussians of variance 1/2 in 100
dimensions, at ±(5/2, …, 5/2, 0), of weights 1 and 3.  All is in single precision
and without TF32: importance weights are differences of large logarithms.
"""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from pushforward.distributions import StandardNormal
from pushforward.flows.change import Affine, Chain, Flow
from pushforward.flows.coupling import real_nvp
from pushforward.flows.mcmc import (
    AdaptiveProposal,
    Chains,
    Kernel,
    Trajectory,
    chain_size,
    ex2,
    importance_size,
    isir,
    mala,
    simulate,
)
from pushforward.nn import noise_like, randn
from pushforward.runs import Writer
from pushforward.train import cosine, train

NUTS = "flows/mcmc/nuts needs Pyro: pip install --no-deps pyro-ppl pyro-api opt_einsum"


@dataclass(frozen=True)
class Config:
    """What a run does; the defaults are those of flows/mcmc/mixture."""

    task: str = "adapt"  # or gaussian: three kernels, no training; or nuts
    target: str = "two"  # or three: modes in the plane
    dims: tuple[int, ...] = (100,)  # of the target
    chains: int = 4096
    particles: int = 100  # N of i-SIR
    step: float = 0.1  # γ of MALA
    repeats: int = 3  # local steps after each global one
    start: float = 1.0  # chains start from N(0, start²)
    burn: int = 50  # steps of MALA alone, before the flow learns
    scale: float = 2.6  # the flow starts as N(0, scale²)
    layers: int = 4  # couplings
    hidden: tuple[int, ...] = (256, 256)
    forward: float = 1.0  # weight of the forward divergence
    steps: int = 3000  # of training
    lr: float = 1e-3
    clip: float = 5.0
    keep: int = 1000  # steps with the frozen flow, which are judged
    draws: int = 100_000  # of the flow, for its importance weights
    every: int = 100  # steps between two looks
    ship: bool = False  # whether the weights of the first seed are kept
    seeds: tuple[int, ...] = (0, 1, 2)
    hardware: str = "gpu"

    def small(self) -> "Config":
        """Return the same run in seconds: everything happens, little is learned."""
        return replace(
            self,
            dims=self.dims[:2] if self.task == "gaussian" else (min(self.dims[0], 6),),
            chains=min(self.chains, 8),
            particles=4,
            burn=2,
            hidden=(8,),
            steps=4,
            keep=8,
            draws=50,
            every=2,
            seeds=(0,),
            hardware="cpu",
        )


CPU = Config(
    chains=256, particles=10, hidden=(64, 64), steps=1000, keep=200, draws=20_000,
    seeds=(0, 1), hardware="cpu",
)  # fmt: skip
RUNS = {
    "flows/mcmc/mixture": Config(),
    "flows/mcmc/mixture-cpu": CPU,
    "flows/mcmc/modes": replace(
        CPU, target="three", dims=(2,), step=0.3, repeats=1, start=6.0, burn=0,
        scale=6.0, layers=6, forward=0.995, steps=1200, lr=2e-3, keep=500, ship=True,
    ),
    "flows/mcmc/gaussian": replace(
        CPU, task="gaussian", target="normal", dims=(10, 30, 60, 120, 240), chains=16,
        particles=200, step=0.2, repeats=5, keep=500, seeds=(0,),
    ),
    "flows/mcmc/nuts": replace(
        CPU, task="nuts", chains=4, burn=200, keep=300, seeds=(0,)
    ),
}  # fmt: skip


# Targets


class Modes:
    """Σ_j w_j N(m_j, s²I), which counts how often it was asked.

    Args:
        means: m_j, shape (k, d).
        variance: s².
        weights: w_j, shape (k,), of sum one.

    Attributes:
        values: Points at which its density was evaluated.
        gradients: Those of them at which the gradient was wanted too.
    """

    def __init__(self, means: Tensor, variance: float, weights: Tensor) -> None:
        self.means, self.variance, self.weights = means, variance, weights
        self.values = self.gradients = 0

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log π(x) up to a constant, shape (n,)."""
        self.values += len(x)
        self.gradients += len(x) * x.requires_grad
        sq = (x[:, None] - self.means).square().sum(-1)  # (n, k)
        return (self.weights.log() - sq / (2 * self.variance)).logsumexp(-1)

    def nearest(self, x: Tensor) -> Tensor:
        """Return which mode each point (…, d) is nearest to, shape (…)."""
        flat = torch.cdist(x.reshape(-1, x.shape[-1]), self.means).argmin(-1)
        return flat.view(x.shape[:-1])

    def shares(self, x: Tensor) -> Tensor:
        """Return the share of the points (…, d) that is nearest to each mode, (k,)."""
        near = self.nearest(x).flatten()
        return torch.bincount(near, minlength=len(self.means)) / len(near)


def target(config: Config, device: torch.device) -> Modes:
    """Return the law of a configuration."""
    d = config.dims[0]
    if config.target == "three":
        spots = torch.tensor([[0.0, 8.0], [7.0, -4.0], [-7.0, -4.0]])
        means = nn.functional.pad(spots, (0, d - 2))
        return Modes(means.to(device), 1.0, torch.tensor([0.5, 0.3, 0.2]).to(device))
    m = torch.full((d,), 2.5)
    m[-1] = 0.0
    weights = torch.tensor([0.25, 0.75])
    return Modes(torch.stack([m, -m]).to(device), 0.5, weights.to(device))


def normal(d: int, scale: float) -> Flow:
    """Return N(0, scale² I) as the flow of one affine map."""
    return Flow(Affine(torch.zeros(d), torch.full((d,), scale)), StandardNormal(d))


def build(config: Config) -> AdaptiveProposal:
    """Return the untrained proposal of a configuration."""
    d = config.dims[0]
    wide = normal(d, config.scale)
    flow = real_nvp(d, config.layers, config.hidden, activation=nn.SiLU, bound=2.0)
    law = target(config, torch.device("cpu"))
    return AdaptiveProposal(
        Flow(Chain([wide.f, flow.f]), flow.base), law.log_prob, config.forward
    )


# Global, local and both, on N(0, I)


def gaussian(config: Config, run: Writer, seed: int) -> None:
    """Measure three kernels on N(0, I_d) with the proposal N(0, 2I_d)."""
    for d in config.dims:
        rng = torch.Generator(run.device).manual_seed(seed)
        wide = normal(d, 2**0.5).to(run.device)
        start = wide.sample(config.chains, rng=rng)
        for name, kernel in kernels(config, wide).items():
            path = simulate(kernel, start, config.keep, rng=rng)
            worth = 1 / chain_size(path.x[..., :10]).time.mean()
            run.metric(seed, f"{name}_{d}", worth)
            run.metric(seed, f"{name}_{d}_moved", path.moved.double().mean())
            run.metric(seed, f"{name}_{d}_square", path.x.square().mean())
            run.log(seed=seed, step=d, **{name: worth})


def kernels(config: Config, proposal: Flow) -> dict[str, Kernel]:
    """Return i-SIR, MALA and Ex² with the target N(0, I)."""

    def log_target(x: Tensor) -> Tensor:
        return -x.square().sum(-1) / 2

    n, step, repeats = config.particles, config.step, config.repeats
    return {
        "isir": partial(isir, log_target=log_target, proposal=proposal, n=n),
        "mala": partial(mala, log_target=log_target, step=step, repeats=repeats),
        "ex2": ex2(log_target, proposal, n, step, repeats=repeats),
    }


# A flow that learns from its chains


def adapt(config: Config, run: Writer, seed: int) -> None:
    """Train a flow on its own chains, freeze it, judge the chains that follow."""
    began, law = time.monotonic(), target(config, run.device)
    rng = torch.Generator(run.device).manual_seed(seed)
    torch.manual_seed(seed)
    model = build(config).to(run.device)
    model.log_target = law.log_prob
    local = partial(
        mala, log_target=law.log_prob, step=config.step, repeats=config.repeats
    )
    d = config.dims[0]
    x = config.start * randn((config.chains, d), law.means, rng=rng)
    for _ in range(config.burn):
        x = local(x, rng=rng).x
    run.metric(seed, "start_error", error(law, x))
    kernel = ex2(
        law.log_prob, model, config.particles, config.step, repeats=config.repeats
    )
    x = learned(model, Chains(kernel, x, rng=rng), law, config, run, seed)
    cost = time.monotonic() - began
    run.metric(seed, "train_seconds", cost)
    run.metric(seed, "train_gradients", law.gradients / config.chains)
    path, seconds, gradients = timed(kernel, x, config.keep, law, rng)
    judge(path, law, run, seed)
    run.metric(seed, "seconds", seconds)
    run.metric(seed, "gradients", gradients / config.chains)
    run.metric(seed, "importance", importance(model, law, config.draws, rng))
    lonely(local, config, law, run, seed)
    if config.ship and seed == config.seeds[0]:
        run.weights(model.state_dict())


def learned(
    model: AdaptiveProposal, chains: Chains, law: Modes, config: Config, run: Writer,
    seed: int,
) -> Tensor:  # fmt: skip
    """Train on the chains; return where they are at the end."""
    steps = train(
        model, chains, steps=config.steps, lr=config.lr, clip=config.clip,
        schedule=cosine(config.steps), rng=chains.rng, progress=run.progress,
    )  # fmt: skip
    for step in steps:
        if step.number % config.every == 0 or step.number == 1:
            shares = law.shares(chains.x)
            run.log(
                seed=seed,
                step=step.number,
                loss=step.losses[0],
                importance=importance(model, law, config.draws // 4, chains.rng),
                **{f"share_{j}": share for j, share in enumerate(shares)},
            )
    return chains.x


@torch.no_grad()
def importance(
    model: AdaptiveProposal, law: Modes, n: int, rng: Generator | None
) -> float:
    """Return which share of n draws of the flow counts for the target."""
    parts = [model.draw(min(10_000, n), rng=rng) for _ in range(0, n, 10_000)]
    weights = torch.cat([law.log_prob(p.x) - p.log_prob for p in parts])
    return float(importance_size(weights.double())) / len(weights)


def timed(
    kernel: Kernel, x: Tensor, steps: int, law: Modes, rng: Generator
) -> tuple[Trajectory, float, int]:
    """Return a path, its seconds and the gradients of all its chains."""
    before, start = law.gradients, time.monotonic()
    path = simulate(kernel, x, steps, rng=rng)
    return path, time.monotonic() - start, law.gradients - before


def lonely(local: Any, config: Config, law: Modes, run: Writer, seed: int) -> None:
    """Run the local kernel alone, for as many steps as the flow has seen."""
    rng = torch.Generator(run.device).manual_seed(seed)
    x = config.start * randn((config.chains, config.dims[0]), law.means, rng=rng)
    for _ in range(config.burn):
        x = local(x, rng=rng).x
    basin = law.nearest(x)
    for _ in range(min(config.steps + config.keep, 2000)):
        x = local(x, rng=rng).x
    run.metric(seed, "mala_stay", (law.nearest(x) == basin).double().mean())
    run.metric(seed, "mala_error", error(law, x))


def error(law: Modes, x: Tensor) -> Tensor:
    """Return the largest error of the modes' shares among the points (…, d)."""
    return (law.shares(x) - law.weights).abs().max()


def judge(path: Trajectory, law: Modes, run: Writer, seed: int) -> None:
    """Report a path: its modes, and what it is worth, chain by chain and as a whole."""
    near = law.nearest(path.x)
    first = path.x[..., :1]
    alone = [worth(part) for part in first.split(1, dim=1)[:64]]
    found: dict[str, float | Tensor] = {
        "error": error(law, path.x),
        "heavy": law.shares(path.x)[law.weights.argmax()],
        "crossed": (near != near[0]).any(0).double().mean(),
        "moved": path.moved.double().mean(),
        "size": chain_size(first).size,
        "size_alone": sum(alone) / len(alone) * path.x.shape[1],
    }
    for name, value in found.items():
        run.metric(seed, name, value)


def worth(chain: Tensor) -> float:
    """Return the effective size of one chain (steps, 1, 1): 1 if it never moves."""
    return float(chain_size(chain).size) if (chain != chain[0]).any() else 1.0


# The library


def library() -> Any:
    """Return pyro.infer, or say what to install."""
    try:
        return importlib.import_module("pyro.infer")
    except ModuleNotFoundError as cause:
        raise ModuleNotFoundError(NUTS, name=cause.name) from cause


def nuts(config: Config, run: Writer, seed: int) -> None:
    """Let Pyro's no-U-turn sampler do the same, one chain after the other."""
    infer = library()
    law, chains = target(config, torch.device("cpu")), []
    rng, began = torch.Generator().manual_seed(seed), time.monotonic()
    for number in range(config.chains):
        torch.manual_seed(1000 * seed + number)  # it takes no generator
        start = config.start * noise_like(law.means[0], rng)
        sampler = infer.MCMC(
            infer.NUTS(potential_fn=lambda z: -law.log_prob(z["x"][None])[0]),
            num_samples=config.keep,
            warmup_steps=config.burn,
            initial_params={"x": start},
            disable_progbar=True,
        )
        sampler.run()
        chains.append(sampler.get_samples()["x"])
        run.log(seed=seed, step=number, heavy=law.shares(chains[-1])[1])
    x = torch.stack(chains, 1)  # (keep, chains, d)
    judge(Trajectory(x, x.new_ones(x.shape[:2])), law, run, seed)
    run.metric(seed, "seconds", time.monotonic() - began)
    run.metric(seed, "gradients", law.gradients / config.chains)


TASKS: dict[str, Callable[[Config, Writer, int], None]] = {
    "adapt": adapt, "gaussian": gaussian, "nuts": nuts,
}  # fmt: skip


def main(config: Config, run: Writer) -> None:
    """Do the task of a configuration, once for each seed."""
    for seed in config.seeds:
        TASKS[config.task](config, run, seed)
