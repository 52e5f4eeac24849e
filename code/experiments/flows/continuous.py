"""Runs behind book/flows/continuous.md: toys on a processor core, more on a GPU.

    pushforward train flows/continuous/moons            minutes, one processor core
    pushforward train flows/continuous/checkerboard     minutes, one processor core
    pushforward train flows/continuous/digits           minutes, one GPU

All are trained by likelihood through an adaptive solver of a loose tolerance, and
judged by one of a tight one; flows/continuous/coarse shows what four fixed steps do.
The law of a toy is known, so its entropy is too, and what a model
misses is a divergence: E log p − E log p_θ over the same fresh points.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from pushforward import ode
from pushforward.data import dequantize, digits, stream
from pushforward.distributions import Checkerboard, Law, StandardNormal, TwoMoons
from pushforward.flows.continuous import (
    Adaptive,
    ContinuousFlow,
    FixedSteps,
    flow_log_prob,
    transport,
)
from pushforward.nn import TimeMLP
from pushforward.objectives import bits_per_dim
from pushforward.runs import Writer
from pushforward.train import cosine, train

TOYS: dict[str, Callable[[], Law]] = {"moons": TwoMoons, "checkerboard": Checkerboard}
LEVELS, CENTRE, SCALE = 17, 0.5, 0.35  # of the digits; they are flown as (x − c)/s


@dataclass(frozen=True)
class Config:
    """What a run does; the defaults are those of flows/continuous/board."""

    data: str = "checkerboard"  # or moons, digits
    hidden: tuple[int, ...] = (256, 256, 256)
    frequencies: int = 1  # of the time, in the field
    loose: float = 1e-3  # tolerance of the solver in training
    solver_steps: int = 0  # fixed steps of order 4 in its place; 0: none
    penalty: float = 0.0  # λ, the price of the energy
    steps: int = 8000
    batch: int = 8192
    lr: float = 2e-3
    clip: float = 10.0
    every: int = 400  # steps between two looks
    points: int = 20_000  # on which the model is judged
    tol: float = 1e-5  # of the solver that judges
    grid: int = 400  # points a side, to integrate the density
    seeds: tuple[int, ...] = (0,)
    hardware: str = "gpu"

    def small(self) -> "Config":
        """Return the same run in seconds: everything happens, little is learned."""
        return replace(
            self,
            hidden=tuple(min(h, 8) for h in self.hidden),
            solver_steps=min(self.solver_steps, 2),
            steps=4,
            batch=16,
            every=2,
            points=40,
            tol=1e-3,
            grid=12,
            seeds=(0,),
            hardware="cpu",
        )


CORE = Config(
    data="moons", hidden=(64, 64), steps=1200, batch=256, lr=8e-3, every=100,
    points=10_000, grid=150, hardware="cpu",
)  # fmt: skip
RUNS = {
    "flows/continuous/board": Config(),
    "flows/continuous/digits": Config(
        data="digits", hidden=(512, 512), penalty=0.01, steps=4000, batch=1024, lr=1e-3,
    ),
    "flows/continuous/moons": replace(CORE, seeds=(0, 1)),
    "flows/continuous/moons-straight": replace(CORE, penalty=0.1, seeds=(0, 1)),
    "flows/continuous/checkerboard": replace(CORE, data="checkerboard", steps=1500),
    "flows/continuous/coarse": replace(
        CORE, frequencies=4, solver_steps=4, steps=600, lr=5e-3, every=50
    ),
}  # fmt: skip


def dimension(config: Config) -> int:
    """Return the dimension of the data."""
    return 64 if config.data == "digits" else 2


def build(config: Config) -> ContinuousFlow:
    """Return the untrained model of a configuration."""
    d = dimension(config)
    f = config.frequencies
    v = TimeMLP(d, *config.hidden, frequencies=f, activation=nn.Tanh)
    fixed = config.solver_steps and FixedSteps(config.solver_steps)
    solver = fixed or Adaptive(config.loose)
    return ContinuousFlow(v, StandardNormal(d), solver=solver, penalty=config.penalty)


def load(config: Config, run: Writer, rng: Generator) -> tuple[Law | Tensor, Tensor]:
    """Return what is trained on, and fresh points to judge by, on the device.

    The digits for training are dequantised twenty times over.
    """
    if config.data in TOYS:
        law = TOYS[config.data]()
        if isinstance(law, nn.Module):
            law.to(run.device)
        return law, law.sample(config.points, rng=rng)
    parts = digits("train").x.repeat(20, 1, 1, 1), digits("test").x[: config.points]
    train, test = (dequantize(x.to(run.device), LEVELS, rng=rng) for x in parts)
    return ((train.flatten(1) - CENTRE) / SCALE, (test.flatten(1) - CENTRE) / SCALE)


# Judging


@torch.no_grad()
def log_prob(
    model: ContinuousFlow, x: Tensor, config: Config, rng: Generator
) -> Tensor:
    """Return log p(x), exactly in the plane and by Hutchinson's estimate elsewhere."""
    eps = None if dimension(config) == 2 else ode.signs_like(x, rng=rng)
    return flow_log_prob(model.v, x, model.base, solver=Adaptive(config.tol), eps=eps)


@torch.no_grad()
def evaluations(model: ContinuousFlow, config: Config, rng: Generator) -> int:
    """Return how often the field is called to draw up to 1000 points."""
    z = model.base.sample(min(config.points, 1000), rng=rng)
    return ode.adaptive(model.v, z, 0.0, 1.0, tol=config.tol).evaluations


@torch.no_grad()
def mass(
    model: ContinuousFlow, config: Config, rng: Generator, r: float = 4.0
) -> float:
    """Return ∫ p over the square of side 2r, by the trapezoid rule."""
    first = next(model.parameters())
    side = torch.linspace(-r, r, config.grid).to(first)
    grid = torch.cartesian_prod(side, side)
    total = sum(
        log_prob(model, rows, config, rng).exp().sum().item()
        for rows in grid.split(5000)
    )
    return total * (2 * r / (config.grid - 1)) ** 2


def judge(
    model: ContinuousFlow, law: Law | Tensor, x: Tensor, config: Config, rng: Generator
) -> dict[str, float]:
    """Return what is reported of a trained model."""
    found = torch.cat([log_prob(model, rows, config, rng) for rows in x.split(5000)])
    with torch.no_grad():
        z = model.base.sample(min(config.points, 2000), rng=rng)
        way = transport(model.v, z, 0.0, 1.0, solver=Adaptive(config.tol))
    nll = -found.mean().item()
    told = {
        "nll": nll,
        "nfe": float(evaluations(model, config, rng)),
        "energy": way.energy.mean().item(),
        "length": (way.x - z).square().sum(1).mean().item(),
    }
    if isinstance(law, Tensor):
        nats = -found + x.shape[1] * math.log(SCALE)
        return told | {"bits": bits_per_dim(nats, x.shape[1], LEVELS).mean().item()}
    with torch.no_grad():
        coarse = -model.log_prob(x).mean().item()
    gaps = law.log_prob(x) - found
    return told | {
        "kl": gaps.mean().item(),
        "kl_se": (gaps.std() / len(gaps) ** 0.5).item(),
        "entropy": -law.log_prob(x).mean().item(),
        "coarse": coarse - nll,
        "mass": mass(model, config, rng),
    }


def main(config: Config, run: Writer) -> None:
    """Train and judge one model for each seed."""
    torch.set_float32_matmul_precision("high")  # TF32, where there is such a thing
    for seed in config.seeds:
        torch.manual_seed(seed)
        rng = Generator(run.device).manual_seed(seed)
        law, x = load(config, run, rng)
        model = build(config).to(run.device)
        steps = train(
            model, stream(law, config.batch, rng=rng), steps=config.steps, lr=config.lr,
            rng=rng, schedule=cosine(config.steps), clip=config.clip,
            **run.training(seed),
        )  # fmt: skip
        for step in steps:
            if step.number % config.every == 0 or step.number == 1:
                nll = -log_prob(model, x[:1000], config, rng).mean()
                nfe, loss = evaluations(model, config, rng), step.losses[0]
                run.log(seed=seed, step=step.number, loss=loss, nll=nll, nfe=nfe)
        for name, value in judge(model, law, x, config, rng).items():
            run.metric(seed, name, value)
        if seed == config.seeds[0]:
            run.weights(model.state_dict())
