"""Runs behind book/diffusion/samplers.md: one denoiser for all classes and for none.

    pushforward train diffusion/samplers/digits     minutes, one processor core
    pushforward train diffusion/samplers/mnist      minutes, one GPU

A denoiser learns classes, of which a share is hidden in training, so that it also
knows what to do without.  Then samples are judged twice: for each weight of the
guidance (do they belong to their class, how much do they differ within it, how far
are they from test images) and, without guidance, for each sampler and number of
evaluations.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn

from pushforward import runs
from pushforward.data import Images, digits, fashion_mnist, mnist, stream
from pushforward.diffusion import (
    Diffusion,
    Preconditioned,
    Sampler,
    Units,
    churn,
    ddim,
    denoising_error,
    euler,
    exponential,
    guided,
    heun,
    multistep,
)
from pushforward.distributions import StandardNormal
from pushforward.metrics import Classifier, copy_share, features, frechet_distance
from pushforward.nn import ResMLP, UNet
from pushforward.runs import Writer
from pushforward.train import Average, cosine, train

IMAGES = {"digits": digits, "mnist": mnist, "fashion_mnist": fashion_mnist}
JUDGES = {"digits": "digits", "mnist": "mnist", "fashion_mnist": "fashion"}


@dataclass(frozen=True)
class Config:
    """What a run does; the defaults are those of diffusion/samplers/mnist.

    Attributes:
        data: digits, mnist or fashion_mnist.
        width: Of the network: channels of a U-Net, or units of a layer for digits.
        blocks: Residual blocks at each size, or in all.
        units: Mean and deviation of the training images.
        drop: Share of the classes that are hidden in training.
        steps: Of the training.
        batch: Rows of a step.
        lr: Learning rate at its top.
        average: Decay of the averaged weights.
        precision: Of the training.
        weights: Of the guidance.
        grid: Steps of Heun's method with guidance.
        budgets: Numbers of evaluations at which samplers are compared, odd.
        samples: How many are drawn for a judgement.
        rows: How many images of each split are used.
        seeds: Of weights, batches and samples.
        hardware: gpu or cpu.
    """

    data: str = "mnist"
    width: int = 48
    blocks: int = 2
    units: tuple[float, float] = (0.1307, 0.3081)
    drop: float = 0.15
    steps: int = 15_000
    batch: int = 256
    lr: float = 1e-3
    average: float = 0.999
    precision: str = "bf16-mixed"
    weights: tuple[float, ...] = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
    grid: int = 18
    budgets: tuple[int, ...] = (5, 9, 17, 35, 71)
    samples: int = 10_000
    rows: int = 60_000
    seeds: tuple[int, ...] = (0,)
    hardware: str = "gpu"

    def small(self) -> "Config":
        """Return the same run in seconds: everything happens, little is learned."""
        return replace(
            self,
            width=8,
            blocks=1,
            steps=4,
            batch=16,
            precision="32",
            weights=(1.0, 2.0),
            grid=2,
            budgets=(3,),
            samples=60,
            rows=80,
            seeds=(0,),
            hardware="cpu",
        )


RUNS = {
    "diffusion/samplers/digits": Config(
        data="digits", width=192, blocks=3, units=(0.3054, 0.3759), steps=4000,
        batch=256, lr=2e-3, average=0.998, precision="32", samples=360,
        seeds=(0, 1), hardware="cpu",
    ),
    "diffusion/samplers/mnist": Config(),
}  # fmt: skip


class Guided(Diffusion):
    """A diffusion of labelled images, one denoiser for all classes and for none.

    Its batches are rows of an image and its class, as :func:`packed` makes them.

    Args:
        denoiser: D(x, σ, c) for classes 0, …, k; k stands for an unknown one.
        base: N(0, I) in the shape of an image.
        classes: k.
        drop: Share of the classes that the loss hides.
        options: Of a :class:`Diffusion`.
    """

    def __init__(
        self,
        denoiser: Preconditioned,
        base: StandardNormal,
        *,
        classes: int,
        drop: float,
        **options: Any,
    ) -> None:
        super().__init__(denoiser, base, **options)
        self.classes, self.drop = classes, drop

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return the denoising loss of rows x (n, d + 1), some classes hidden."""
        images, c = x[:, :-1].reshape(-1, *self.base.zero.shape), x[:, -1].long()
        device = x.device if rng is None else rng.device
        u = torch.rand(len(x), generator=rng, device=device).to(x.device)
        c = torch.where(u < self.drop, self.classes, c)
        sigma = self.noise.sample(images, rng=rng)
        error = denoising_error(
            lambda y, s: self.denoiser(y, s, c),
            self.units.inside(images),
            sigma,
            rng=rng,
        )
        return (self.weight(sigma).flatten() * error).mean()

    def drawn(
        self,
        c: Tensor,
        weight: float = 1.0,
        *,
        sampler: Sampler | None = None,
        steps: int | None = None,
        rng: Generator | None = None,
    ) -> Tensor:
        """Draw an image of each class of c (n,), guided by a weight."""
        walk = sampler or self.sampler
        return self.sample(
            len(c),
            steps=steps,
            sampler=lambda D, x, sigmas: walk(guided(D, c, weight), x, sigmas),
            rng=rng,
        )


def packed(images: Images) -> Tensor:
    """Return rows of an image and its class, (n, d + 1)."""
    if images.y is None:
        raise ValueError("images must have classes")
    return torch.cat([images.x.flatten(1), images.y[:, None].to(images.x)], 1)


def build(config: Config) -> Guided:
    """Return the untrained model of a configuration."""
    net: nn.Module
    if config.data == "digits":
        shape, net = (1, 8, 8), ResMLP(64, config.width, config.blocks, classes=10)
    else:
        shape = (1, 28, 28)
        net = UNet(
            1, width=config.width, factors=(1, 2, 2), blocks=config.blocks, classes=10
        )
    mean, std = config.units
    return Guided(
        Preconditioned(net),
        StandardNormal(*shape),
        classes=10,
        drop=config.drop,
        steps=config.grid,
        units=Units(mean, std / 0.5),
    )


# Training


def fit(
    model: Guided, data: Iterator[Tensor], config: Config, run: Writer, seed: int
) -> Guided:
    """Train; return the model with averaged weights."""
    rng = torch.Generator(run.device).manual_seed(seed)
    ema = Average(model, config.average)
    steps = train(
        model,
        data,
        steps=config.steps,
        lr=config.lr,
        rng=rng,
        schedule=cosine(config.steps, warmup=min(200, config.steps // 4)),
        clip=10.0,
        ema=ema,
        precision=config.precision,
        progress=run.progress,
    )
    every = max(config.steps // 50, 1)
    for step in steps:
        if step.number % every == 0:
            run.log(seed=seed, step=step.number, loss=step.losses[0])
    return cast(Guided, ema.model).eval()


# Judging


def contestants(nfe: int, rng: Generator) -> dict[str, tuple[Sampler, int]]:
    """Return the samplers, and the steps that take about ``nfe`` evaluations.

    Methods of two evaluations in a step take 2N − 1; the others get one more.
    """
    half, one = (nfe + 1) // 2, nfe + 1
    return {
        "euler": (euler, one),
        "multistep": (multistep, one),
        "ancestral": (partial(ddim, eta=1.0, rng=rng), one),
        "heun": (heun, half),
        "exponential": (exponential, half),
        "churn": (partial(churn, amount=0.2 * half, rng=rng), half),
    }


class Judge:
    """What samples are compared with: test images, seen by a classifier.

    Args:
        config: Of the run.
        device: Of the run.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.seen, self.unseen = (
            IMAGES[config.data](split).x[: config.rows].to(device)
            for split in ("train", "test")
        )
        y = IMAGES[config.data]("test").y
        if y is None:
            raise ValueError("images must have classes")
        self.n = min(config.samples, len(self.unseen))
        self.c = y[: self.n].to(device)
        self.net = Classifier(self.seen.shape[-1]).to(device)
        self.net.load_state_dict(runs.load(f"metrics/{JUDGES[config.data]}").weights())
        self.test = features(self.net, self.unseen[: self.n])

    def distance(self, x: Tensor) -> float:
        """Return the Fréchet distance of images to the test images."""
        return frechet_distance(features(self.net, x), self.test).item()

    def accuracy(self, x: Tensor) -> float:
        """Return the share of images that the classifier puts in their class."""
        logits = torch.cat([self.net(part) for part in x.split(1000)])
        return (logits.argmax(1) == self.c).double().mean().item()

    def spread(self, x: Tensor) -> float:
        """Return the variance within classes over that of the test images."""
        return (
            within(features(self.net, x), self.c) / within(self.test, self.c)
        ).item()


def within(phi: Tensor, c: Tensor) -> Tensor:
    """Return the total variance of features (n, d) within classes (n,)."""
    parts = [phi[c == k] for k in c.unique()]
    return sum(
        ((part - part.mean(0)).double().square().sum() for part in parts),
        start=phi.new_zeros((), dtype=torch.float64),
    )


def drawn(model: Guided, c: Tensor, seed: int, **options: Any) -> Tensor:
    """Return images of classes c, cut to [0, 1]; a seed has its noise."""
    rng = torch.Generator(c.device).manual_seed(seed)
    parts = [model.drawn(part, rng=rng, **options) for part in c.split(1000)]
    return torch.cat(parts).clamp(0, 1)


@torch.no_grad()
def measured(
    model: Guided, judge: Judge, config: Config, seed: int
) -> dict[str, float]:
    """Return what guidance does at each weight, and samplers at each budget."""
    found = {
        "floor": judge.distance(judge.seen[: judge.n]),
        "accuracy_real": judge.accuracy(judge.unseen[: judge.n]),
    }
    for w in config.weights:
        x = drawn(model, judge.c, seed, weight=w)
        found[f"accuracy_{w:g}"] = judge.accuracy(x)
        found[f"spread_{w:g}"] = judge.spread(x)
        found[f"frechet_{w:g}"] = judge.distance(x)
        if w == 1.0:
            m = min(judge.n, len(judge.seen), 2000)
            found["copy_share"] = copy_share(x[:m], judge.seen[:m], judge.unseen[:m])
    for nfe in config.budgets:
        rng = torch.Generator(judge.c.device).manual_seed(1000 + seed)
        for name, (sampler, steps) in contestants(nfe, rng).items():
            x = drawn(model, judge.c, seed, sampler=sampler, steps=steps)
            found[f"{name}_{nfe}"] = judge.distance(x)
    return found


def main(config: Config, run: Writer) -> None:
    """Train and judge one model for each seed."""
    torch.set_float32_matmul_precision("high")  # TF32, where there is such a thing
    judge = Judge(config, run.device)
    rows = packed(IMAGES[config.data]("train"))[: config.rows].to(run.device)
    for seed in config.seeds:
        torch.manual_seed(seed)
        rng = torch.Generator(run.device).manual_seed(seed)
        model = build(config).to(run.device)
        kept = fit(model, stream(rows, config.batch, rng=rng), config, run, seed)
        for name, value in measured(kept, judge, config, seed).items():
            run.metric(seed, name, value)
        if seed == config.seeds[0]:
            run.weights({k: v.half().cpu() for k, v in kept.state_dict().items()})
