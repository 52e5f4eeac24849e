"""Runs behind book/flows/coupling.md: moons and digits in minutes, MNIST on a GPU.

    pushforward train flows/coupling/moons-8       a minute for each seed, one core
    pushforward train flows/coupling/digits        minutes, one processor core
    pushforward train flows/coupling/mnist         minutes, one GPU

Moons are judged beside their exact density.  Grey levels are judged by the bound
of log P(x), with the noise the model was trained with and ``samples`` draws of it.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Generator, Tensor
from torch.optim import AdamW

from pushforward.data import digits, mnist, stream
from pushforward.distributions import TwoMoons
from pushforward.flows import (
    Affine,
    Dequantized,
    Flow,
    dequantizer,
    image_nvp,
    real_nvp,
)
from pushforward.runs import Writer
from pushforward.train import Average, cosine, train

LEVELS = {"digits": 17, "mnist": 256}


@dataclass(frozen=True)
class Config:
    """What a run does; the defaults are those of flows/coupling/mnist."""

    data: str = "mnist"  # or digits, moons
    noise: str = "variational"  # or uniform; points need none
    layers: int = 8  # couplings, at each scale
    scales: int = 2
    width: int = 96  # channels of each network, or units of a perceptron
    blocks: int = 2  # residual blocks of each network
    noise_layers: int = 4  # couplings of the noise
    noise_width: int = 32
    steps: int = 12_000
    batch: int = 256
    lr: float = 1e-3
    warmup: int = 500  # steps in which the learning rate rises
    weight_decay: float = 1e-4
    clip: float = 50.0  # largest norm of a gradient
    average: float = 0.999  # decay of the averaged weights; 0: none
    precision: str = "bf16-mixed"
    every: int = 1000  # steps between two looks at the test images
    samples: int = 16  # draws of the noise under the logarithm, at the end
    rows: int = 60_000  # images of each split that are used
    ship: bool = False  # whether the weights of the first seed are kept
    seeds: tuple[int, ...] = (0,)
    hardware: str = "gpu"

    def small(self) -> "Config":
        """Return the same run in seconds: everything happens, little is learned."""
        return replace(
            self, layers=2, width=8, blocks=1, noise_layers=1, noise_width=8, steps=4,
            batch=16, warmup=1, precision="32", every=2, samples=2, rows=40, seeds=(0,),
            hardware="cpu",
        )  # fmt: skip


DIGITS = Config(
    data="digits", layers=4, width=16, blocks=1, noise_layers=2, noise_width=16,
    steps=800, batch=64, lr=2e-3, warmup=100, weight_decay=1e-2, average=0.99,
    precision="32", every=200, ship=True, hardware="cpu",
)  # fmt: skip
MOONS = Config(
    data="moons", noise="none", layers=8, width=64, steps=2000, batch=256, lr=2e-3,
    warmup=0, weight_decay=0.0, average=0.0, precision="32", every=500, rows=20_000,
    ship=True, seeds=(0, 1), hardware="cpu",
)  # fmt: skip
RUNS = {
    "flows/coupling/mnist": Config(),
    "flows/coupling/mnist-uniform": Config(noise="uniform"),
    "flows/coupling/digits": DIGITS,
    "flows/coupling/digits-uniform": replace(DIGITS, noise="uniform"),
    "flows/coupling/moons-2": replace(MOONS, layers=2, ship=False),
    "flows/coupling/moons-4": replace(MOONS, layers=4, ship=False),
    "flows/coupling/moons-8": MOONS,
}


def standard_moons(s: float = 0.05) -> Flow:
    """Return two moons, in units of their deviations, with their exact density."""
    law = TwoMoons(s)
    w = law.log_mass.exp()[:, None]  # the moons are centred by symmetry
    deviation = ((w * law.arc.square()).sum(0) + s**2).sqrt()
    return Flow(Affine(torch.zeros(2), 1 / deviation), law)


def build(config: Config) -> Flow | Dequantized:
    """Return the untrained model of a configuration."""
    if config.data == "moons":
        return real_nvp(2, config.layers, (config.width,) * 2)
    side = 8 if config.data == "digits" else 28
    shape = (1, side, side)
    flow = image_nvp(
        shape, config.layers, scales=config.scales, width=config.width,
        blocks=config.blocks,
    )  # fmt: skip
    noise = None
    if config.noise == "variational":
        noise = dequantizer(shape, config.noise_layers, width=config.noise_width)
    return Dequantized(flow, noise, LEVELS[config.data])


def fit(
    model: Flow | Dequantized, parts: list[Tensor], config: Config, run: Writer,
    seed: int,
) -> Flow | Dequantized:  # fmt: skip
    """Train; return the model to be judged."""
    x, test = parts
    rng = torch.Generator(run.device).manual_seed(seed)
    ema = Average(model, config.average) if config.average else None
    seen = model if ema is None else cast(Dequantized, ema.model)
    source = standard_moons().to(run.device) if config.data == "moons" else x
    steps = train(
        model, stream(source, config.batch, rng=rng), steps=config.steps,
        lr=config.lr, schedule=cosine(config.steps, warmup=config.warmup),
        optimizer=partial(AdamW, weight_decay=config.weight_decay, fused=True),
        clip=config.clip, ema=ema, precision=config.precision, rng=rng,
        progress=run.progress,
    )  # fmt: skip
    for step in steps:
        if step.number % config.every == 0:
            losses = {"train": step.losses[0], "test": look(seen, test, rng)}
            run.log(seed=seed, step=step.number, **losses)
    return seen.eval()


@torch.no_grad()
def look(model: Flow | Dequantized, x: Tensor, rng: Generator) -> float:
    """Return the mean loss, in nats."""
    losses = [model.loss(part, rng=rng) * len(part) for part in x.split(2000)]
    return (torch.stack(losses).sum() / len(x)).item()


@torch.no_grad()
def judge_points(model: Flow, x: Tensor) -> dict[str, float]:
    """Return test likelihood, divergence from the truth, mass and inverse error."""
    found = model.log_prob(x)
    truth = standard_moons().to(x).log_prob(x)
    side = torch.linspace(-4, 4, 401, device=x.device)
    grid = torch.cartesian_prod(side, side)
    back = model.f.inverse(model.f(x)[0])[0]
    return {
        "nll": -found.mean().item(),
        "kl": (truth - found).mean().item(),
        "mass": model.log_prob(grid).exp().sum().item() * (8 / 400) ** 2,
        "inverse": (back - x).abs().max().item(),
    }


@torch.no_grad()
def judge_images(
    model: Dequantized, x: Tensor, test: Tensor, config: Config
) -> dict[str, float]:
    """Return bits per dimension with one draw of the noise and with several."""
    rng = torch.Generator(test.device).manual_seed(0)

    def bits(images: Tensor, samples: int) -> float:
        parts = images.split(max(1, 2000 // samples))
        all_bits = [model.bits_per_dim(p, samples=samples, rng=rng) for p in parts]
        return torch.cat(all_bits).mean().item()

    few = test[:100]
    y = model.fill(few, rng=rng)[0]
    back = model.flow.f.inverse(model.flow.f(y)[0])[0]
    return {
        "bits": bits(test, 1),
        "tight": bits(test, config.samples),
        "train_bits": bits(x[: len(test)], 1),
        "inverse": (back - y).abs().max().item(),
    }


def load(config: Config, seed: int) -> list[Tensor]:
    """Return the data for training and for testing, on the CPU."""
    if config.data == "moons":
        rng = torch.Generator().manual_seed(10_000 + seed)
        return [torch.empty(0), standard_moons().sample(config.rows, rng=rng)]
    source = {"digits": digits, "mnist": mnist}[config.data]
    return [source(split).x[: config.rows] for split in ("train", "test")]


def main(config: Config, run: Writer) -> None:
    """Train and judge one model for each seed."""
    torch.set_float32_matmul_precision("high")  # TF32, where there is such a thing
    for seed in config.seeds:
        torch.manual_seed(seed)
        parts = [part.to(run.device) for part in load(config, seed)]
        model = fit(build(config).to(run.device), parts, config, run, seed)
        torch.set_float32_matmul_precision("highest")  # a density is judged in full
        if isinstance(model, Dequantized):
            found = judge_images(model, parts[0], parts[1], config)
        else:
            found = judge_points(model, parts[1])
        for name, value in found.items():
            run.metric(seed, name, value)
        size = sum(p.numel() for p in model.parameters())
        run.metric(seed, "parameters", float(size))
        if config.ship and seed == config.seeds[0]:
            run.weights({k: v.cpu() for k, v in model.state_dict().items()})
