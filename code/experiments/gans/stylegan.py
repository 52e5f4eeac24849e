"""Runs behind book/gans/stylegan.md: a small StyleGAN2, whole and in parts.

    pushforward train gans/stylegan/digits      half a minute a seed, one core
    pushforward train gans/stylegan/cpu         minutes, one core; its weights ship
    pushforward train gans/stylegan/mnist       minutes, one GPU

Each run without a part has a partner that differs in nothing else.  A paired run
trains both, from the same first weights on the same batches.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Generator, Tensor, nn
from torch.optim import Adam

from pushforward import runs
from pushforward.data import Images, digits, fashion_mnist, mnist, stream
from pushforward.gans import (
    ModulatedConv,
    ResidualDiscriminator,
    StyleGAN,
    StyleGenerator,
    path_lengths,
    perceptual_path_length,
)
from pushforward.gans.stylegan import Mapping, Synthesis
from pushforward.metrics import Classifier, features, frechet_distance
from pushforward.runs import Writer
from pushforward.train import Average, train

DATA: dict[str, Callable[[str], Images]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
}
CLASSIFIERS = {
    "digits": "metrics/digits",
    "mnist": "metrics/mnist",
    "fashion_mnist": "metrics/fashion",
}
PARTS = ("demodulation", "path-length", "r1", "noise", "mixing")


@dataclass(frozen=True)
class Config:
    """What a run does; the defaults are those of gans/stylegan/mnist."""

    data: str = "mnist"  # or digits, fashion_mnist
    without: tuple[str, ...] = ()  # parts that are left out, of PARTS
    paired: bool = False  # train the whole machine too, and report the ratio
    k: int = 64  # dimension of z
    width: int = 128  # dimension of w
    depth: int = 4  # layers of the mapping
    channels: tuple[int, ...] = (96, 96, 48)  # of the generator, coarse to fine
    gamma: float = 0.5  # weight of R1, for images in [0, 1]
    stretch: float = 20.0  # weight of the path length, for images in [0, 1]
    mixing: float = 0.5  # share of images with two styles
    shares: tuple[int, int] = (8, 4)  # parts of a batch that are regularised
    steps: int = 5000
    batch: int = 128
    lr: float = 2e-3
    average: float = 0.999  # decay of the averaged weights
    every: int = 500  # steps between two lines of the history
    samples: int = 10_000  # images in a Fréchet distance, at most the test images
    repeats: int = 1  # samples whose distances are averaged
    lines: int = 5000  # draws of the perceptual path length
    rows: int = 60_000  # how many training images are used
    ship: bool = False  # whether the weights of the first seed are kept
    seeds: tuple[int, ...] = (0, 1, 2)
    hardware: str = "gpu"

    def small(self) -> "Config":
        """Return the same run in seconds: everything happens, little is learned."""
        return replace(
            self,
            k=4,
            width=8,
            depth=2,
            channels=tuple(4 for _ in self.channels),
            steps=4,
            batch=8,
            every=2,
            samples=20,
            repeats=1,
            lines=10,
            rows=40,
            seeds=(0,),
            hardware="cpu",
        )


DIGITS = Config(
    data="digits", k=16, width=32, depth=3, channels=(16, 16), steps=300, batch=32,
    lr=5e-3, stretch=2.0, average=0.99, every=50, samples=360, repeats=10, lines=2000,
    seeds=(0, 1), hardware="cpu",
)  # fmt: skip
RUNS = {
    "gans/stylegan/mnist": Config(ship=True),
    "gans/stylegan/fashion": Config(data="fashion_mnist"),
    "gans/stylegan/no-demodulation": Config(without=("demodulation",)),
    "gans/stylegan/no-path-length": Config(
        without=("path-length",), paired=True, steps=2500
    ),
    "gans/stylegan/cpu": replace(
        DIGITS, k=32, channels=(32, 32, 16), stretch=0.5, steps=1500, ship=True,
        seeds=(0,),
    ),
    "gans/stylegan/digits": DIGITS,
    "gans/stylegan/digits-path-length": replace(DIGITS, stretch=50.0),
    **{
        f"gans/stylegan/digits-no-{part}": replace(DIGITS, without=(part,))
        for part in PARTS[:4]
    },
}  # fmt: skip


# The model


def build(config: Config) -> StyleGAN:
    """Return the untrained model of a configuration."""
    if odd := set(config.without) - set(PARTS):
        raise ValueError(f"without must be parts of {PARTS}, got {sorted(odd)}")
    start = {"digits": 8}.get(config.data, 28) // 2 ** (len(config.channels) - 1)
    left = {part: part not in config.without for part in PARTS}
    synthesis = Synthesis(
        config.width,
        config.channels,
        start=start,
        demodulate=left["demodulation"],
        noise=left["noise"],
    )
    mapping = Mapping(config.k, config.width, config.depth)
    return StyleGAN(
        StyleGenerator(mapping, synthesis),
        ResidualDiscriminator(config.channels[::-1], start=start),
        gamma=config.gamma * left["r1"],
        stretch=config.stretch * left["path-length"],
        mixing=config.mixing * left["mixing"],
        shares=config.shares,
    )


def classifier(data: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return φ, from images to the features of the shipped classifier."""
    net = Classifier(8 if data == "digits" else 28)
    net.load_state_dict(runs.load(CLASSIFIERS[data]).weights())
    net = net.to(device).requires_grad_(False)
    return lambda x: features(net, x.clamp(0, 1))


# The run


def fit(config: Config, x: Tensor, seed: int, run: Writer, key: str) -> StyleGAN:
    """Train; return the model with averaged weights."""
    torch.manual_seed(seed)
    model = build(config).to(run.device)
    ema = Average(model, config.average)
    rng = Generator().manual_seed(seed)
    steps = train(
        model,
        stream(x, config.batch, rng=rng),
        steps=config.steps,
        lr=config.lr,
        rng=Generator(run.device).manual_seed(seed),
        optimizer=partial(Adam, betas=(0.0, 0.99), eps=1e-8, fused=True),
        ema=ema,
        **run.training(seed, key),
    )
    for step in steps:
        if step.number % config.every == 0:
            losses = dict(zip(("critic", "generator"), step.losses, strict=True))
            named = {f"{key}{name}": value for name, value in losses.items()}
            run.log(seed=seed, step=step.number, **named)
    return cast(StyleGAN, ema.model)


@torch.no_grad()
def distance(model: StyleGAN, test: Tensor, see: Callable[[Tensor], Tensor],
             config: Config, rng: Generator) -> float:  # fmt: skip
    """Return the mean Fréchet distance of samples to as many test images."""
    n = min(config.samples, len(test))
    values = []
    for _ in range(config.repeats):
        order = torch.randperm(len(test), generator=rng, device=rng.device)[:n]
        sizes = [len(part) for part in order.split(1000)]
        parts = [see(model.sample(m, rng=rng)) for m in sizes]
        real = see(test[order.to(test.device)])
        values.append(frechet_distance(torch.cat(parts), real).item())
    return sum(values) / len(values)


def speeds(
    model: StyleGAN, see: Callable[[Tensor], Tensor], n: int, rng: Generator
) -> dict[str, float]:
    """Return the perceptual path length, and how unequal the lengths ‖Jᵀy‖ are."""
    made = model.generator
    parts = [min(500, n - i) for i in range(0, n, 500)]
    ppl = [perceptual_path_length(made, see, m, rng=rng) for m in parts]
    lengths = []
    for m in parts[:4]:
        z, noise = made.split(model.prior.sample(m, rng=rng))
        w = made.mapping(z).detach().requires_grad_()
        lengths.append(path_lengths(made.synthesis(w, noise), w, rng=rng).detach())
    sizes = torch.cat(lengths)
    return {
        "ppl": torch.cat(ppl).mean().item(),
        "unequal": (sizes.std() / sizes.mean()).item(),
    }


@torch.no_grad()
def deviations(model: StyleGAN, n: int, rng: Generator) -> dict[str, float]:
    """Return the least and the largest deviation that leaves a convolution."""
    found: list[float] = []

    def look(layer: nn.Module, given: tuple[Tensor, ...], y: Tensor) -> None:
        found.append(y.std().item())

    parts = [layer.conv for layer in model.generator.synthesis.layers]
    hooks = [cast(ModulatedConv, part).register_forward_hook(look) for part in parts]
    model.sample(n, rng=rng)
    for hook in hooks:
        hook.remove()
    return {"least_std": min(found), "largest_std": max(found)}


def judge(config: Config, model: StyleGAN, test: Tensor) -> dict[str, float]:
    """Return what is reported of a trained model."""
    rng = Generator(test.device).manual_seed(0)
    see = classifier(config.data, test.device)
    return {
        "frechet": distance(model, test, see, config, rng),
        **speeds(model, see, config.lines, rng),
        **deviations(model, min(200, config.samples), rng),
    }


def main(config: Config, run: Writer) -> None:
    """Train and judge one model for each seed, and its partner where there is one."""
    torch.set_float32_matmul_precision("high")  # TF32, where there is such a thing
    x, test = (DATA[config.data](split).x.to(run.device) for split in ("train", "test"))
    for seed in config.seeds:
        model = fit(config, x[: config.rows], seed, run, "")
        found = judge(config, model, test)
        if config.paired:
            whole = replace(config, without=())
            other = fit(whole, x[: config.rows], seed, run, "whole-")
            values = judge(whole, other, test)
            found |= {f"whole_{name}": value for name, value in values.items()}
            found["ppl_ratio"] = values["ppl"] / found["ppl"]
        for name, value in found.items():
            run.metric(seed, name, value)
        if config.ship and seed == config.seeds[0]:
            run.weights(model.half().state_dict())
