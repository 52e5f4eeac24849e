"""Runs behind book/diffusion/generalization.md: from copies to a law, and its bases.

    pushforward train diffusion/generalization/digits           minutes, one core
    pushforward train diffusion/generalization/c-alpha-small    minutes, one core
    pushforward train diffusion/generalization/c-alpha          minutes, one GPU

``digits`` trains two networks of one shape on disjoint sets of N digits, for growing
N, and lets both draw from the same noise.  The others train blind denoisers without
additive constants on images of known regularity, fresh ones in each step, and measure
the slope of their output over their input PSNR.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from pushforward.data import digits, stream
from pushforward.diffusion import (
    BiasFree,
    Denoiser,
    Diffusion,
    LogUniform,
    Preconditioned,
    c_alpha_images,
    cosine_shares,
    disk_images,
    psnr_slope,
)
from pushforward.distributions import StandardNormal
from pushforward.nn import ResMLP, noise_like
from pushforward.runs import Writer
from pushforward.train import cosine, train

SIDES = ("first", "second")


@dataclass(frozen=True)
class Config:
    """A run on images of known regularity; the defaults are those of …/c-alpha.

    Attributes:
        kinds: Regularities α of the images, or 0 for disks: one network for each.
        lift: What is added to α in the filter of the backgrounds, and half of it in
            that of the contours: with 1 their regularity is α, with 0 the filter is
            that of the paper's algorithm.
        size: Height and width of the images.
        width: Channels of the network at the finest size.
        levels: Sizes in the network.
        steps: Of each training.
        batch: Images of a step, all of them fresh.
        lr: Learning rate at its top.
        noise: Least and largest noise level of the training.
        sigmas: Levels at which errors are measured; the slope is fitted to all.
        tests: Images on which they are measured.
        ship: Kinds whose network is kept.
        seeds: Of weights, images and noise.
        hardware: gpu or cpu.
    """

    kinds: tuple[float, ...] = (1.0, 2.0, 3.0, 0.0)
    lift: float = 1.0
    size: int = 32
    width: int = 64
    levels: int = 3
    steps: int = 12_000
    batch: int = 256
    lr: float = 1e-3
    noise: tuple[float, float] = (0.005, 1.0)
    sigmas: tuple[float, ...] = (0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3)
    tests: int = 4000
    ship: tuple[float, ...] = (2.0,)
    seeds: tuple[int, ...] = (0,)
    hardware: str = "gpu"

    def small(self) -> "Config":
        """Return the same run in seconds: everything happens, little is learned."""
        return replace(
            self,
            kinds=self.kinds[-2:],
            ship=self.kinds[-2:],
            size=8,
            width=4,
            levels=2,
            steps=3,
            batch=8,
            tests=80,
            seeds=(0,),
            hardware="cpu",
        )


@dataclass(frozen=True)
class Halves:
    """A run on two disjoint sets of digits.

    Attributes:
        data: digits.
        counts: Numbers N of images in each of the two sets.
        width: Of the network.
        blocks: Of the network.
        steps: Of each training.
        batch: Rows of a step.
        lr: Learning rate at its top.
        noises: From how many both draw.
        sigmas: Levels at which the errors are measured.
        kept: Samples of each network that are kept.
        seeds: Of weights, batches and noise.
        hardware: gpu or cpu.
    """

    data: str = "digits"
    counts: tuple[int, ...] = (8, 32, 128, 512, 898)
    width: int = 256
    blocks: int = 2
    steps: int = 1500
    batch: int = 256
    lr: float = 2e-3
    noises: int = 500
    sigmas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
    kept: int = 100
    seeds: tuple[int, ...] = (0,)
    hardware: str = "cpu"

    def small(self) -> "Halves":
        """Return the same run in seconds: everything happens, little is learned."""
        return replace(
            self,
            counts=(8, 20),
            width=16,
            blocks=1,
            steps=3,
            batch=16,
            noises=10,
            kept=4,
        )


RUNS: dict[str, Any] = {
    "diffusion/generalization/digits": Halves(),
    "diffusion/generalization/c-alpha-small": Config(
        size=16, width=16, steps=550, batch=64, lr=2e-2, noise=(0.01, 0.6),
        tests=1000, ship=(1.0, 2.0, 3.0, 0.0), hardware="cpu",
    ),
    "diffusion/generalization/c-alpha": Config(),
    "diffusion/generalization/c-alpha-algorithm": Config(lift=0.0, ship=()),
}  # fmt: skip


# Two sets of digits


def halves(config: Halves, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return two disjoint sets of 898 digits, of mean 0 and deviation ½ together."""
    x = torch.cat([digits(split).x for split in ("train", "test")]).to(device)
    x = (x - x.mean()) / (2 * x.std())
    return x[:898], x[898:1796]


def repeated(x: Tensor, size: int) -> Tensor:
    """Return x as often as it takes to fill a batch of a size."""
    return x.repeat(-(-size // len(x)), *(1,) * (x.ndim - 1))


def fit(
    model: Diffusion,
    batches: Iterator[Tensor],
    config: Config | Halves,
    rng: Generator,
    **options: Any,
) -> Iterator[tuple[int, float]]:
    """Train, and yield the step and the loss fifty times on the way."""
    warmup = min(100, config.steps // 4)
    steps = train(
        model,
        batches,
        steps=config.steps,
        lr=config.lr,
        rng=rng,
        schedule=cosine(config.steps, warmup=warmup),
        clip=10.0,
        **options,
    )
    for step in steps:
        if step.number % max(config.steps // 50, 1) == 0:
            yield step.number, step.losses[0]


def learn(x: Tensor, side: int, config: Halves, run: Writer, seed: int) -> Diffusion:
    """Return a model of the digits x; no two trainings share a draw."""
    own = 10_000 * seed + 2 * len(x) + side
    torch.manual_seed(own)
    rng = torch.Generator(x.device).manual_seed(own)
    net = Preconditioned(ResMLP(x[0].numel(), config.width, config.blocks))
    model = Diffusion(net, StandardNormal(*x.shape[1:])).to(x.device)
    batches = stream(repeated(x, config.batch), config.batch, rng=rng)
    options = run.training(seed, SIDES[side], len(x))
    for number, loss in fit(model, batches, config, rng, **options):
        run.log(seed=seed, step=number, **{f"{SIDES[side]}_{len(x)}": loss})
    return model.eval()


@torch.no_grad()
def errors(
    D: Denoiser, x: Tensor, sigmas: tuple[float, ...], rng: Generator
) -> list[float]:
    """Return the mean square error of a denoiser per pixel, at each level."""
    found = []
    for sigma in sigmas:
        level = x.new_tensor(sigma)
        parts = [(D(y + level * noise_like(y, rng), level) - y).square().flatten(1)
                 for y in x.split(500)]  # fmt: skip
        found.append(torch.cat(parts).double().mean().item())
    return found


def compare(
    sets: list[Tensor], pair: list[Diffusion], config: Halves, seed: int
) -> tuple[dict[str, float], list[Tensor]]:
    """Return what is measured for one N, and the samples of both models."""
    whole = torch.cat(halves(config, sets[0].device))
    device, n = whole.device, len(sets[0])
    first, second = (
        model.sample(config.noises, rng=torch.Generator(device).manual_seed(seed))
        for model in pair
    )
    shares = cosine_shares(first, second, sets[0], centre=whole.mean(0))
    found = {f"{name}_{n}": value for name, value in shares._asdict().items()}
    fresh = halves(config, device)[1]  # the first model has seen none of them
    for name, x in (("seen", repeated(sets[0], 898)[:898]), ("fresh", fresh)):
        rng = torch.Generator(device).manual_seed(seed)
        each = errors(pair[0].denoiser, x, config.sigmas, rng)
        named = zip(config.sigmas, each, strict=True)
        found |= {f"{name}_{n}_{sigma:g}": value for sigma, value in named}
    return found, [first, second]


def digits_main(config: Halves, run: Writer) -> None:
    """Train two networks for each N, and compare what they draw."""
    samples: dict[str, Tensor] = {}
    parts = halves(config, run.device)
    for seed in config.seeds:
        for n in config.counts:
            sets = [x[:n] for x in parts]
            pair = [learn(x, i, config, run, seed) for i, x in enumerate(sets)]
            found, drawn = compare(sets, pair, config, seed)
            for name, value in found.items():
                run.metric(seed, name, value)
            if seed == config.seeds[0]:
                samples |= {f"{side}_{n}": x[: config.kept].half()
                            for side, x in zip(SIDES, drawn, strict=True)}  # fmt: skip
        centre = torch.cat(parts).mean(0)
        real = cosine_shares(parts[1], parts[1], parts[0], centre=centre)
        run.metric(seed, "nearest_real", real.nearest)
        run.metric(seed, "copies_real", real.copies)
    run.weights(samples)


# Images of known regularity


@dataclass(frozen=True)
class Pictures:
    """The law of the images of one kind."""

    kind: float
    config: Config

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw n images, (n, 1, size, size)."""
        size, lift = self.config.size, self.config.lift
        if self.kind == 0:
            return disk_images(n, size, rng=rng)
        contour, ground = self.kind + lift / 2, self.kind + lift
        return c_alpha_images(n, size, contour, background=ground, rng=rng)


def build(config: Config) -> Diffusion:
    """Return an untrained model."""
    net = BiasFree(width=config.width, levels=config.levels)
    base = StandardNormal(1, config.size, config.size)
    noise = LogUniform(*config.noise)
    return Diffusion(net, base, noise=noise, weight=lambda sigma: 1 / sigma)


def linear_errors(x: Tensor, sigmas: tuple[float, ...]) -> list[float]:
    """Return the least error per pixel of maps y ↦ A y + b that know the level."""
    c = (x - x.mean(0)).flatten(1).double()
    lam = torch.linalg.eigvalsh(c.T @ c / len(c)).clamp(min=0)
    return [(s**2 * lam / (lam + s**2)).mean().item() for s in sigmas]


def picture_run(kind: float, config: Config, run: Writer, seed: int) -> Diffusion:
    """Train one network on images of one kind and measure its errors."""
    name = f"alpha{kind:g}" if kind else "disks"
    torch.manual_seed(seed)
    rng = torch.Generator(run.device).manual_seed(100 * seed + int(10 * kind))
    model, law = build(config).to(run.device), Pictures(kind, config)
    batches = stream(law, config.batch, rng=rng)
    options = run.training(seed, name)
    for number, loss in fit(model, batches, config, rng, **options):
        run.log(seed=seed, step=number, **{name: loss})
    model.eval()
    x = law.sample(config.tests, rng=rng)
    found = {
        "mse": errors(model.denoiser, x, config.sigmas, rng),
        "linear": linear_errors(x, config.sigmas),
    }
    for what, values in found.items():
        slope = psnr_slope(torch.tensor(config.sigmas), torch.tensor(values))
        run.metric(seed, f"slope_{what}_{name}", slope)
        for sigma, value in zip(config.sigmas, values, strict=True):
            run.metric(seed, f"{what}_{name}_{sigma:g}", value)
    return model


def pictures_main(config: Config, run: Writer) -> None:
    """Train a network on each kind of images."""
    kept: dict[str, Tensor] = {}
    for seed in config.seeds:
        for kind in config.kinds:
            model = picture_run(kind, config, run, seed)
            if seed == config.seeds[0] and kind in config.ship:
                state = model.denoiser.state_dict()
                kept |= {f"{kind:g}.{key}": w.half() for key, w in state.items()}
    if kept:
        run.weights(kept)


def main(config: Config | Halves, run: Writer) -> None:
    """Make a run."""
    torch.set_float32_matmul_precision("high")  # TF32, where there is such a thing
    if isinstance(config, Halves):
        digits_main(config, run)
    else:
        pictures_main(config, run)
