"""Runs behind book/flows/glow.md: which mixing is best, and how far Glow goes.

    pushforward train flows/glow/conv            minutes, one processor core
    pushforward train flows/glow/mnist           minutes, one GPU

Bits per dimension are those of whole grey levels: the bound that the noise of the
dequantisation gives, averaged over draws of it.  The averaged weights at the end
of training are judged; the test images are seen once.

The budget of flows/glow/mnist is an estimate, not a measurement.  By :func:`flops`
an image costs 2 GFLOP forward, three times that in a step, so 7000 steps of 512
images are 21 PFLOP: under five minutes at a tenth of the bfloat16 peak of an H200.
Some 3600 kernels in a step, 10 µs each, are another four where they do not overlap.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Generator, Tensor, nn

from pushforward.data import Images, digits, mnist, stream
from pushforward.distributions import StandardNormal
from pushforward.flows.change import Chain, Flow, Logit
from pushforward.flows.coupling import Coupling, Dequantized, Squeeze, dequantizer
from pushforward.flows.glow import (
    Full,
    conv_net,
    glow,
    initialize,
    residual_net,
    step,
)
from pushforward.runs import Writer
from pushforward.train import Average, cosine, train

LEVELS = {"digits": 17, "mnist": 256}


@dataclass(frozen=True)
class Config:
    """What a run does; the defaults are those of flows/glow/mnist."""

    data: str = "mnist"  # or digits
    levels: int = 2  # squeezes: 28 → 14 → 7
    depth: int = 12  # steps of flow in each level
    channels: int = 96  # inside each network
    blocks: int = 2  # residual blocks of each network; 0: Glow's own
    dropout: float = 0.1  # inside the blocks
    mixing: str = "conv"  # or shuffle, reverse
    flat: bool = False  # mix all pixels of the digits, as 64 channels of one pixel
    noise: int = 4  # couplings of the learned dequantisation; 0: uniform
    alpha: float = 1e-5  # of a logit in front; 0: none
    steps: int = 7000
    batch: int = 512
    lr: float = 1e-3
    warmup: int = 500
    average: float = 0.999  # decay of the averaged weights
    clip: float = 100.0  # largest norm of a gradient
    precision: str = "bf16-mixed"  # of the networks; the flow around them keeps 32
    log: int = 100  # steps between two entries of the history
    draws: int = 1  # of the noise, for each image that is judged
    tighter: int = 16  # draws under one logarithm, for the tighter bound; 0: none
    rows: int = 60_000  # images used
    ship: bool = False  # whether the weights of the first seed are kept
    seeds: tuple[int, ...] = (0,)
    hardware: str = "gpu"

    def small(self) -> "Config":
        """Return the same run in seconds: everything happens, little is learned."""
        return replace(
            self,
            depth=1,
            channels=8,
            blocks=min(self.blocks, 1),
            steps=4,
            batch=16,
            warmup=1,
            log=2,
            draws=1,
            tighter=min(self.tighter, 2),
            rows=32,
            seeds=(0,),
            hardware="cpu",
        )


DIGITS = Config(
    data="digits", depth=4, channels=32, blocks=0, dropout=0.0, noise=0, alpha=0.0,
    steps=500, batch=256, lr=3e-3, warmup=20, average=0.99, clip=20.0, precision="32",
    log=25, draws=20, tighter=0, ship=True, seeds=(0, 1, 2), hardware="cpu",
)  # fmt: skip
FLAT = replace(DIGITS, flat=True, levels=1, depth=8, channels=96, ship=False)
RUNS = {
    "flows/glow/mnist": Config(),
    "flows/glow/conv": DIGITS,
    "flows/glow/shuffle": replace(DIGITS, mixing="shuffle", ship=False),
    "flows/glow/reverse": replace(DIGITS, mixing="reverse", ship=False),
    "flows/glow/flat-conv": FLAT,
    "flows/glow/flat-shuffle": replace(FLAT, mixing="shuffle"),
}


# The model


def build(config: Config) -> Dequantized:
    """Return the untrained model of a configuration."""
    shape = (1, 8, 8) if config.data == "digits" else (1, 28, 28)
    net = partial(residual_net, blocks=config.blocks, dropout=config.dropout)
    flow = flat(config) if config.flat else glow(
        shape, levels=config.levels, steps=config.depth, channels=config.channels,
        mixing=config.mixing, net=net if config.blocks else conv_net,
    )  # fmt: skip
    if config.alpha:
        flow = Flow(Chain([Logit(config.alpha), flow.f]), flow.base)
    noise = quantizer(shape, config.noise) if config.noise else None
    return Dequantized(flow, noise, LEVELS[config.data])


def flat(config: Config) -> Flow:
    """Return a flow of 8 × 8 images as 64 channels of one pixel: nothing is shared."""
    half = torch.arange(64) < 32
    steps = [
        m
        for _ in range(config.depth)
        for m in step(half, config.channels, config.mixing, conv_net)
    ]
    squeezes = [Squeeze() for _ in range(3)]  # 8 → 4 → 2 → 1
    return Flow(Chain([*squeezes, *steps]), StandardNormal(64, 1, 1))


def quantizer(shape: tuple[int, int, int], layers: int) -> Flow:
    """Return a law of the noise that keeps its digits inside an autocast."""
    noise = dequantizer(shape, layers)
    for m in noise.modules():
        if isinstance(m, Coupling):
            m.net = Full(*cast(nn.Sequential, m.net))
    return noise


def flops(config: Config) -> float:
    """Return what the networks of the flow cost for one image, forward, in FLOP."""
    side, channels, total = 8 if config.data == "digits" else 28, 1, 0
    for _ in range(config.levels):
        side, channels = side // 2, 4 * channels
        ends = 9 * config.channels * (channels // 2 + channels)
        inside = config.channels**2 * (18 * config.blocks if config.blocks else 1)
        total += config.depth * side**2 * (ends + inside)
        channels //= 2
    return 2.0 * total


# The run


def load(config: Config, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the images for training and for the test, on the device."""
    source = {"digits": digits, "mnist": mnist}[config.data]
    parts: list[Images] = [source(split) for split in ("train", "test")]
    x, test = (part.x[: config.rows].to(device) for part in parts)
    return x, test


def fit(config: Config, x: Tensor, run: Writer, seed: int) -> Dequantized:
    """Return the averaged model after training."""
    torch.manual_seed(seed)  # weights, and dropout
    rng = Generator(x.device).manual_seed(seed)
    model = build(config).to(x.device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    initialize(model, x[: 4 * config.batch], rng=rng)
    average = Average(model, config.average)
    options = {
        "schedule": cosine(config.steps, warmup=config.warmup), "clip": config.clip,
        "precision": config.precision, "ema": average, "rng": rng, **run.training(seed),
    }  # fmt: skip
    batches = stream(x, config.batch, rng=rng)
    for done in train(model, batches, steps=config.steps, lr=config.lr, **options):
        if done.number % config.log == 0:
            run.log(seed=seed, step=done.number, nats=done.losses[0])
    return cast(Dequantized, average.model)


@torch.no_grad()
def mean_bits(model: Dequantized, x: Tensor, draws: int = 1, samples: int = 1) -> float:
    """Return bits per dimension of images, the mean over draws of the noise."""
    rng = Generator(x.device).manual_seed(0)
    parts = x.split(max(1, 2000 // samples))
    found = [
        model.bits_per_dim(part, samples=samples, rng=rng)
        for _ in range(draws)
        for part in parts
    ]
    return torch.cat(found).double().mean().item()


def judge(model: Dequantized, x: Tensor, test: Tensor, config: Config) -> dict:
    """Return what is reported of a trained model."""
    found = {
        "bits": mean_bits(model, test, config.draws),
        "train_bits": mean_bits(model, x, max(1, config.draws // 4)),
        "weights": float(sum(p.numel() for p in model.parameters())),
    }
    if config.tighter:
        found["tighter_bits"] = mean_bits(model, test, samples=config.tighter)
    return found


def main(config: Config, run: Writer) -> None:
    """Train and judge one model for each seed."""
    torch.set_float32_matmul_precision("high")  # TF32, where there is such a thing
    x, test = load(config, run.device)
    for seed in config.seeds:
        model = fit(config, x, run, seed)
        for name, value in judge(model, x, test, config).items():
            run.metric(seed, name, value)
        if config.ship and seed == config.seeds[0]:
            run.weights(model.state_dict())
