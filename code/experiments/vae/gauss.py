"""Runs behind book/vae/gauss.md: digits in seconds, MNIST in minutes.

    pushforward train vae/gauss/digits-8         seconds, one processor core
    pushforward train vae/gauss/cpu              minutes, one processor core
    pushforward train vae/gauss/residual         minutes, one GPU

Bits are those of the statically binarised MNIST, the benchmark of the
literature.  The best weights on the validation images are kept; the test
images are seen once, at the end.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Independent, Normal
from torch.optim import AdamW

from pushforward.data import (
    binarized_mnist,
    dequantize,
    digits,
    mnist,
    stream,
)
from pushforward.distributions import StandardNormal
from pushforward.nn import MLP, noise_like
from pushforward.runs import Writer
from pushforward.train import Average, Step, cosine, train
from pushforward.vae import (
    VAE,
    BernoulliNet,
    Conditional,
    GaussianNet,
    NoisyNet,
    draw,
    gaussian_kl,
    residual_decoder,
    residual_encoder,
)

LEVELS = {"digits": 17, "mnist": 256}  # grey levels; bits have none


@dataclass(frozen=True)
class Config:
    """What a run does; the defaults are those of vae/gauss/residual."""

    data: str = "binarized-mnist"  # or mnist, digits: grey levels, Gaussian decoder
    k: int = 40  # latents
    network: str = "residual"  # or an activation of torch.nn, for perceptrons
    hidden: tuple[int, ...] = ()  # widths of a perceptron encoder
    channels: int = 32  # of a residual network at full size
    blocks: int = 1  # residual blocks at each size
    dropout: float = 0.2
    steps: int = 10_000
    batch: int = 400
    lr: float = 2e-3
    weight_decay: float = 0.02
    warmup: int = 200  # steps in which the learning rate rises
    free: int = 3000  # steps in which the price β of the rate rises from 0 to 1
    average: float = 0.999  # decay of the averaged weights; 0: none
    clip: float | None = 100.0  # largest norm of a gradient
    every: int = 500  # steps between two looks at the validation images
    samples: int = 5000  # K of the importance-weighted estimate
    rows: int = 60_000  # how many images of each split are used
    images: int = 10_000  # how many test images it is made on
    chunk: int = 2**15  # latents decoded at once
    ship: bool = True  # whether the weights of the first seed are kept
    printed: bool = False  # train with the slides' draw, of deviation σ²
    seeds: tuple[int, ...] = (0, 1, 2)
    hardware: str = "gpu"

    def small(self) -> "Config":
        """Return the same run in seconds: everything happens, little is learned."""
        return replace(
            self,
            hidden=tuple(min(h, 16) for h in self.hidden),
            channels=8,
            steps=6,
            batch=16,
            warmup=1,
            free=min(self.free, 2),
            rows=40,
            every=3,
            samples=8,
            images=20,
            chunk=64,
            seeds=(0,),
            hardware="cpu",
        )


DIGITS = Config(
    data="digits", k=8, network="Tanh", hidden=(200,), dropout=0.0, steps=4000,
    batch=100, weight_decay=0.0, warmup=0, free=0, average=0.0, clip=None, samples=500,
    images=360, ship=False, hardware="cpu",
)  # fmt: skip
RUNS = {
    "vae/gauss/residual": Config(),
    "vae/gauss/mlp": Config(
        k=20, network="Tanh", hidden=(500, 500), dropout=0.0, steps=100_000, batch=100,
        lr=1e-3, weight_decay=0.0, average=0.0, every=2000, ship=False,
    ),
    "vae/gauss/gaussian": Config(data="mnist", dropout=0.1, ship=False),
    "vae/gauss/digits-2": replace(DIGITS, k=2),
    "vae/gauss/digits-8": DIGITS,
    "vae/gauss/digits-20": replace(DIGITS, k=20),
    "vae/gauss/printed": replace(DIGITS, printed=True),
    "vae/gauss/cpu": Config(
        k=32, network="SiLU", hidden=(400, 200), steps=20_000, batch=128,
        weight_decay=0.01, free=5000, every=1000, samples=500, images=2000, chunk=2**14,
        seeds=(0,), hardware="cpu",
    ),
}  # fmt: skip


def load(config: Config, rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return the images for training, validation and test, on the CPU.

    The digits are too few to hold some out: their validation images are the test
    images, and the last weights are kept, not the best.  Validation and test
    images of grey levels are dequantised once, those for training in each batch.
    """
    if config.data == "binarized-mnist":
        train, valid, test = (binarized_mnist(s).x for s in ("train", "valid", "test"))
        return train, valid, test
    source = {"digits": digits, "mnist": mnist}[config.data]
    fill = partial(dequantize, levels=LEVELS[config.data], rng=rng)
    train, test = source("train").x, fill(source("test").x)
    if config.data == "digits":
        return fill(train), test, test
    cut = len(train) * 5 // 6  # 50,000 of MNIST's 60,000
    return train[:cut], fill(train[cut:]), test


# The model


class Printed(Normal):
    """The slides' draw: its deviation is σ², where the law says σ (erratum E3)."""


@draw.register
def draw_printed(
    law: Printed, shape: tuple[int, ...] = (), *, rng: Generator | None = None
) -> Tensor:
    """Return μ + σ² ⊙ ε."""
    eps = noise_like(law.loc.expand(*shape, *law.loc.shape), rng)
    return law.loc + law.scale**2 * eps


class PrintedNet(nn.Module):
    """An encoder that draws as the slides print it.

    Args:
        right: The encoder whose network it uses.
    """

    def __init__(self, right: Conditional) -> None:
        super().__init__()
        self.right = right

    def forward(self, x: Tensor) -> Independent:
        """Return the laws at the rows of x."""
        law = self.right(x)
        return Independent(Printed(law.mean, law.stddev, validate_args=False), 1)


def networks(config: Config) -> tuple[nn.Module, nn.Module]:
    """Return the two maps, images ↦ 2k numbers and k numbers ↦ images."""
    k, drop = config.k, config.dropout
    if config.network == "residual":
        shape: dict[str, Any] = {"channels": config.channels, "blocks": config.blocks}
        return (
            residual_encoder(2 * k, dropout=drop, **shape),
            residual_decoder(k, dropout=drop, **shape),
        )
    side = 8 if config.data == "digits" else 28
    activation = getattr(nn, config.network)
    widths = (side**2, *config.hidden)
    encoder = MLP(*widths, 2 * k, activation=activation)
    decoder = MLP(k, *reversed(widths), activation=activation)
    return (
        nn.Sequential(nn.Flatten(), nn.Dropout(drop), encoder),
        nn.Sequential(decoder, nn.Unflatten(1, (1, side, side))),
    )


def build(config: Config) -> VAE:
    """Return the untrained model of a configuration."""
    into, out = networks(config)
    law = BernoulliNet(out) if config.data not in LEVELS else NoisyNet(out)
    return VAE(GaussianNet(into), law, StandardNormal(config.k))


# The run


def batches(x: Tensor, config: Config, rng: Generator) -> Iterator[Tensor]:
    """Yield batches for ever; grey levels of MNIST get fresh noise each time."""
    for batch in stream(x, config.batch, rng=rng):
        fresh = config.data == "mnist"
        yield dequantize(batch, LEVELS["mnist"], rng=rng) if fresh else batch


@torch.no_grad()
def mean_bound(model: VAE, x: Tensor, rng: Generator, repeats: int = 1) -> float:
    """Return the mean ELBO over the images, in nats."""
    model.eval()
    parts = [
        model.elbo(part, rng=rng) for _ in range(repeats) for part in x.split(2000)
    ]
    return torch.cat(parts).mean().item()


def learning(model: VAE, x: Tensor, config: Config, **options: Any) -> Iterator[Step]:
    """Return the training loop of a configuration; it sets the price of the rate."""
    if config.printed:  # the same weights, drawn from in another way
        model = VAE(PrintedNet(model.encoder), model.decoder, model.prior)
    falls = config.data != "digits"
    steps = train(
        model,
        batches(x, config, options["rng"]),
        steps=config.steps,
        lr=config.lr,
        schedule=cosine(config.steps, warmup=config.warmup) if falls else None,
        optimizer=partial(AdamW, weight_decay=config.weight_decay, fused=True),
        clip=config.clip,
        **options,
    )
    model.beta = 0.0 if config.free else 1.0
    for step in steps:
        model.beta = min(1.0, step.number / max(config.free, 1))
        yield step


def fit(
    model: VAE, splits: list[Tensor], config: Config, run: Writer, seed: int
) -> tuple[VAE, list[float]]:
    """Train; return the model to be judged and its bounds on validation images."""
    x, valid, _ = splits
    rng = torch.Generator(run.device).manual_seed(seed)
    ema = Average(model, config.average) if config.average else None
    seen = model if ema is None else cast(VAE, ema.model)
    bounds: list[float] = []
    kept: dict[str, Tensor] = {}
    for step in learning(model, x, config, ema=ema, rng=rng, progress=run.progress):
        if step.number % config.every == 0:
            bounds.append(mean_bound(seen, valid, rng))
            losses = {"valid": bounds[-1], "train": -step.losses[0]}
            run.log(seed=seed, step=step.number, **losses)
            if bounds[-1] == max(bounds):
                kept = {k: v.clone() for k, v in seen.state_dict().items()}
    if config.data != "digits":
        seen.load_state_dict(kept)
    return seen.eval(), bounds


@torch.no_grad()
def judge(model: VAE, splits: list[Tensor], config: Config) -> dict[str, float]:
    """Return what is reported of a trained model."""
    x, _, test = splits
    rng = torch.Generator(test.device).manual_seed(0)
    few = x[: config.images]
    few = dequantize(few, LEVELS["mnist"], rng=rng) if config.data == "mnist" else few
    chosen = torch.randperm(len(test), generator=rng, device=test.device)
    some = test[chosen[: config.images]]
    log_prob = model.log_prob_iw(
        some, samples=config.samples, chunk=config.chunk, rng=rng
    )
    mean = log_prob.mean().item()
    return {
        "log_prob": mean,
        "nll": -mean,
        "elbo": mean_bound(model, test, rng, repeats=20),
        "gap": mean - mean_bound(model, some, rng, repeats=20),
        "train_elbo": mean_bound(model, few, rng, repeats=5),
        **describe(model, test, mean, config),
    }


def describe(
    model: VAE, test: Tensor, log_prob: float, config: Config
) -> dict[str, float]:
    """Return the rate, how many latents move, and for grey levels bits and σ."""
    parts = [model.encoder(part) for part in test.split(2000)]
    mean, std = (torch.cat([getattr(q, v) for q in parts]) for v in ("mean", "stddev"))
    found = {
        "rate": gaussian_kl(mean, std).sum(-1).mean().item(),
        "active": float((mean.var(0) > 0.01).sum()),
    }
    if isinstance(model.decoder, NoisyNet):
        nats = math.log(LEVELS[config.data]) - log_prob / test[0].numel()
        found |= {"bits": nats / math.log(2), "sigma": model.decoder.sigma.item()}
    return found


def main(config: Config, run: Writer) -> None:
    """Train and judge one model for each seed."""
    torch.set_float32_matmul_precision("high")  # TF32, where there is such a thing
    for seed in config.seeds:
        torch.manual_seed(seed)
        parts = load(config, torch.Generator().manual_seed(seed))
        splits = [part[: config.rows].to(run.device) for part in parts]
        model, bounds = fit(build(config).to(run.device), splits, config, run, seed)
        found = judge(model, splits, config)
        found["decline"] = max(bounds) - bounds[-1]
        for name, value in found.items():
            run.metric(seed, name, value)
        if config.ship and seed == config.seeds[0]:
            run.weights(light(model.state_dict()))


def light(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights on the CPU, in half precision where they pass 4 MB."""
    size = sum(w.numel() * w.element_size() for w in weights.values())
    heavy = size > 4e6
    return {k: (w.half() if heavy else w).cpu() for k, w in weights.items()}
