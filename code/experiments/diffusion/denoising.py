"""Runs behind book/diffusion/denoising.md: images in minutes.

    pushforward train diffusion/denoising/digits     minutes, one processor core
    pushforward train diffusion/denoising/mnist      minutes, one GPU

Three trainings of one network on one budget are compared: EDM's; the same network
in EDM's form, with the levels and the weight of earlier work; and that work's form,
too, in which the network predicts the noise.  Samples are judged by their Fréchet
distance to test images for each number of evaluations, denoisers by their error at
each level.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn

from pushforward import runs
from pushforward.data import digits, fashion_mnist, mnist, stream
from pushforward.diffusion import (
    VP,
    Diffusion,
    Form,
    Levels,
    LogNormal,
    Preconditioned,
    Sampler,
    TimeUniform,
    Units,
    Weight,
    denoising_error,
    edm_form,
    edm_weight,
    euler,
    heun,
    noise_form,
    noise_weight,
)
from pushforward.distributions import StandardNormal
from pushforward.metrics import Classifier, copy_share, features, frechet_distance
from pushforward.nn import ResMLP, UNet
from pushforward.runs import Writer
from pushforward.train import Average, cosine, train

IMAGES = {"digits": digits, "mnist": mnist, "fashion_mnist": fashion_mnist}
JUDGES = {"digits": "digits", "mnist": "mnist", "fashion_mnist": "fashion"}
SIGMA_DATA = 0.5
FORMS: dict[str, Form] = {"edm": edm_form, "noise": noise_form}
NOISES: dict[str, Levels] = {"log-normal": LogNormal(), "time": TimeUniform(VP())}
WEIGHTS: dict[str, Weight] = {
    "edm": partial(edm_weight, sigma_data=SIGMA_DATA),
    "noise": noise_weight,
}
SAMPLERS: dict[str, Sampler] = {"euler": euler, "heun": heun}


@dataclass(frozen=True)
class Config:
    """What a run does; the defaults are those of diffusion/denoising/mnist.

    Attributes:
        data: Which images.
        mean: Of their pixels, in the training set.
        std: Likewise; it becomes σ_data.
        form: What the network predicts: edm, or noise.
        noise: Law of the levels: log-normal, or that of uniform times of VP.
        weight: edm, or noise: 1/σ².
        net: unet, or mlp.
        width: Channels of a U-Net, or units of a layer.
        factors: Channels at each size of the image, in units of ``width``.
        blocks: Residual blocks at each size, or in all.
        heads: Of the attention.
        dropout: Of a U-Net.
        steps: Of the training.
        batch: Rows of a step.
        lr: Learning rate at its top.
        average: Decay of the averaged weights.
        precision: Of the training.
        euler: Numbers of steps at which samples are judged.
        heun: Likewise; N steps cost 2N − 1 evaluations.
        samples: How many are drawn for a judgement.
        levels: At which the error of the denoiser is measured.
        repeats: Noises for each image of that measurement.
        rows: How many images of each split are used.
        ship: Keep the weights of the first seed.
        seeds: Of weights, batches and samples.
        hardware: gpu or cpu.
    """

    data: str = "mnist"
    mean: float = 0.1307
    std: float = 0.3081
    form: str = "edm"
    noise: str = "log-normal"
    weight: str = "edm"
    net: str = "unet"
    width: int = 48
    factors: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    heads: int = 4
    dropout: float = 0.1
    steps: int = 20_000
    batch: int = 256
    lr: float = 1e-3
    average: float = 0.999
    precision: str = "bf16-mixed"
    euler: tuple[int, ...] = (5, 9, 18, 35, 70)
    heun: tuple[int, ...] = (3, 5, 9, 18, 35)
    samples: int = 10_000
    levels: tuple[float, ...] = (0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 3.0, 20.0)
    repeats: int = 1
    rows: int = 60_000
    ship: bool = True
    seeds: tuple[int, ...] = (0,)
    hardware: str = "gpu"

    def small(self) -> "Config":
        """Return the same run in seconds: everything happens, little is learned."""
        return replace(
            self,
            width=16,
            heads=min(self.heads, 2),
            blocks=1,
            steps=4,
            batch=16,
            precision="32",
            euler=(2,),
            heun=(2,),
            samples=70,
            repeats=1,
            rows=80,
            seeds=(0,),
            hardware="cpu",
        )


DIGITS = Config(
    data="digits", mean=0.3054, std=0.3759, net="mlp", width=256, blocks=2,
    steps=6000, batch=128, lr=2e-3, average=0.998, precision="32", samples=360,
    repeats=20, seeds=(0, 1), hardware="cpu",
)  # fmt: skip
OLD_LOSS: dict[str, Any] = {"noise": "time", "weight": "noise", "ship": False}
PLAIN: dict[str, Any] = {**OLD_LOSS, "form": "noise"}
RUNS = {
    "diffusion/denoising/digits": DIGITS,
    "diffusion/denoising/digits-form": replace(DIGITS, **OLD_LOSS),
    "diffusion/denoising/digits-plain": replace(DIGITS, **PLAIN),
    "diffusion/denoising/mnist": Config(),
    "diffusion/denoising/mnist-plain": replace(Config(), **PLAIN),
    "diffusion/denoising/fashion": Config(
        data="fashion_mnist", mean=0.2860, std=0.3530, ship=False
    ),
}


# The model


def network(config: Config) -> nn.Module:
    """Return the untrained network F."""
    if config.net == "mlp":
        side = 8 if config.data == "digits" else 28
        return ResMLP(side**2, config.width, config.blocks)
    return UNet(
        1,
        width=config.width,
        factors=config.factors,
        blocks=config.blocks,
        heads=config.heads,
        dropout=config.dropout,
    )


def build(config: Config) -> Diffusion:
    """Return the untrained model of a configuration, which draws images."""
    side = 8 if config.data == "digits" else 28
    form = FORMS[config.form]
    return Diffusion(
        Preconditioned(network(config), sigma_data=SIGMA_DATA, form=form),
        StandardNormal(1, side, side),
        noise=NOISES[config.noise],
        weight=WEIGHTS[config.weight],
        units=Units(config.mean, config.std / SIGMA_DATA),
    )


# Training


def batches(
    config: Config, device: torch.device, rng: Generator
) -> tuple[Iterator[Tensor], Tensor, Tensor]:
    """Return endless batches, and the images of both splits, on the device."""
    source = IMAGES[config.data]
    seen, held = (source(s).x[: config.rows].to(device) for s in ("train", "test"))
    return stream(seen, config.batch, rng=rng), seen, held


def fit(
    model: Diffusion, data: Iterator[Tensor], config: Config, run: Writer, seed: int
) -> Diffusion:
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
    return cast(Diffusion, ema.model)


# Judging


def judge_levels(
    model: Diffusion, seen: Tensor, held: Tensor, config: Config, seed: int
) -> dict[str, float]:
    """Return the error at each level, over that of the best multiple of x_σ.

    ``train_σ`` and ``test_σ``: λ(σ) E‖D − y‖² with EDM's weight, whatever the run's
    own, on as many images of each split.
    """
    rng = torch.Generator(held.device).manual_seed(seed)
    found = {}
    for split, x in (("train", seen[: len(held)]), ("test", held)):
        y = model.units.inside(x)
        for level in config.levels:
            sigma = y.new_tensor(level)
            errors = [level_error(model, y, sigma, rng) for _ in range(config.repeats)]
            mean = torch.stack(errors).mean() * edm_weight(sigma, SIGMA_DATA)
            found[f"{split}_{level:g}"] = mean.item()
    return found


@torch.no_grad()
def level_error(model: Diffusion, y: Tensor, sigma: Tensor, rng: Generator) -> Tensor:
    """Return E‖D − y‖² per coordinate at a level, a thousand images at a time."""
    rows = [denoising_error(model.denoiser, b, sigma, rng=rng) for b in y.split(1000)]
    return torch.cat(rows).mean()


def draws(model: Diffusion, n: int, steps: int, sampler: Sampler, seed: int) -> Tensor:
    """Return n images, cut to [0, 1], a thousand at a time; a seed has its noise."""
    rng = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    sizes = [min(1000, n - i) for i in range(0, n, 1000)]
    parts = [model.sample(k, steps=steps, sampler=sampler, rng=rng) for k in sizes]
    return torch.cat(parts).clamp(0, 1)


def judge_images(
    model: Diffusion, seen: Tensor, held: Tensor, config: Config, seed: int
) -> dict[str, float]:
    """Return the Fréchet distance for each number of steps, its floor, and copies."""
    net = Classifier(held.shape[-1]).to(held.device)
    net.load_state_dict(runs.load(f"metrics/{JUDGES[config.data]}").weights())
    n = min(config.samples, len(held))
    test = features(net, held[:n])
    found = {"floor": frechet_distance(features(net, seen[:n]), test).item()}
    for name, sampler in SAMPLERS.items():
        for k in getattr(config, name):
            x = draws(model, n, k, sampler, seed)  # the same noise for each k
            distance = frechet_distance(features(net, x), test)
            found[f"{name}_{k}"] = distance.item()
    m = min(n, 2000)
    found["copy_share"] = copy_share(x[:m], seen[:m], held[:m])
    return found


def main(config: Config, run: Writer) -> None:
    """Train and judge one model for each seed."""
    torch.set_float32_matmul_precision("high")  # TF32, where there is such a thing
    for seed in config.seeds:
        torch.manual_seed(seed)
        rng = torch.Generator(run.device).manual_seed(seed)
        data, seen, held = batches(config, run.device, rng)
        model = build(config).to(run.device)
        kept = fit(model, data, config, run, seed).eval()
        levels = judge_levels(kept, seen, held, config, seed)
        images = judge_images(kept, seen, held, config, seed)
        for name, value in {**levels, **images}.items():
            run.metric(seed, name, value)
        if config.ship and seed == config.seeds[0]:
            run.weights(light(kept.state_dict()))


def light(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights on the CPU, in half precision where they pass 1 MB."""
    size = sum(w.numel() * w.element_size() for w in weights.values())
    return {k: (w.half() if size > 1e6 else w).cpu() for k, w in weights.items()}
