"""Runs behind book/flows/matching.md: two moons in seconds, images in minutes.

    pushforward train flows/matching/independent     eight Gaussians to two moons
    pushforward train flows/matching/digits          minutes, one processor core
    pushforward train flows/matching/mnist           minutes, one GPU

In the plane four ways to pair noise and data are compared: independent, by optimal
transport in each batch, and by one or two reflows.  Images are judged by their
likelihood and, for each number of steps, by the Fréchet distance to test images.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Generator, Tensor, nn

from pushforward import ode, runs
from pushforward.data import dequantize, digits, fashion_mnist, mnist, stream
from pushforward.distributions import Law, StandardNormal, TwoMoons, ring
from pushforward.flows import (
    Affine,
    Flow,
    FlowMatching,
    flow_log_prob,
    given,
    independent,
    minibatch_ot,
    reflow,
    straightness,
)
from pushforward.metrics import (
    Classifier,
    copy_share,
    energy_distance,
    features,
    frechet_distance,
)
from pushforward.nn import TimeMLP, UNet
from pushforward.objectives import bits_per_dim
from pushforward.runs import Writer
from pushforward.train import Average, cosine, train

IMAGES = {"digits": digits, "mnist": mnist, "fashion_mnist": fashion_mnist}
LEVELS = {"digits": 17, "mnist": 256, "fashion_mnist": 256}
JUDGES = {"digits": "digits", "mnist": "mnist", "fashion_mnist": "fashion"}
PAIRINGS = {"independent": independent, "ot": minibatch_ot}


@dataclass(frozen=True)
class Config:
    """What a run does; the defaults are those of flows/matching/mnist.

    Attributes:
        data: moons (the noise is then eight Gaussians), or images.
        pairing: independent or ot.
        reflows: How many times the model is trained again on its own pairs.
        pairs: Of each reflow.
        width: Of the network: channels, or units of a layer.
        factors: Channels at each size of the image, in units of ``width``.
        blocks: Residual blocks at each size, or hidden layers.
        heads: Of the attention.
        dropout: Of a U-Net.
        steps: Of a training.
        batch: Rows of a step.
        lr: Learning rate at its top.
        average: Decay of the averaged weights.
        precision: Of the training.
        euler: Numbers of steps at which samples are judged.
        heun: Likewise, with two evaluations in a step.
        samples: How many are drawn for a judgement.
        ode_steps: Of the likelihood, four evaluations in each.
        probes: Noises of the estimated divergence, for each image.
        rows: How many images of each split are used.
        ship: Keep the weights of the first seed.
        seeds: Of weights, batches and samples.
        hardware: gpu or cpu.
    """

    data: str = "mnist"
    pairing: str = "independent"
    reflows: int = 0
    pairs: int = 0
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
    euler: tuple[int, ...] = (2, 3, 5, 10, 20, 50, 100)
    heun: tuple[int, ...] = (1, 2, 5, 10, 25, 50)
    samples: int = 10_000
    ode_steps: int = 50
    probes: int = 1
    rows: int = 60_000
    ship: bool = True
    seeds: tuple[int, ...] = (0,)
    hardware: str = "gpu"

    def small(self) -> "Config":
        """Return the same run in seconds: everything happens, little is learned."""
        return replace(
            self,
            pairs=min(self.pairs, 64),
            width=8,
            heads=min(self.heads, 2),
            blocks=1,
            steps=4,
            batch=16,
            precision="32",
            euler=(2,),
            heun=self.heun[:1],
            samples=70,
            ode_steps=2,
            rows=80,
            seeds=(0,),
            hardware="cpu",
        )


MOONS = Config(
    data="moons", width=64, blocks=3, steps=2000, batch=256, lr=4e-3, average=0.99,
    precision="32", euler=(1, 2, 3, 5, 10, 20, 50), heun=(),
    samples=2000, pairs=20_000, seeds=(0, 1, 2), hardware="cpu",
)  # fmt: skip
RUNS = {
    "flows/matching/independent": MOONS,
    "flows/matching/ot": replace(MOONS, pairing="ot"),
    "flows/matching/reflow": replace(MOONS, reflows=1),
    "flows/matching/reflow-2": replace(MOONS, reflows=2),
    "flows/matching/digits": Config(
        data="digits", width=16, factors=(1, 2), blocks=1, heads=2, dropout=0.0,
        steps=2000, batch=64, lr=4e-3, average=0.995, precision="32",
        euler=(1, 2, 3, 5, 10, 20, 50), heun=(1, 2, 5, 10, 25), samples=360,
        ode_steps=30, probes=2, hardware="cpu",
    ),
    "flows/matching/mnist": Config(),
    "flows/matching/fashion": Config(data="fashion_mnist", ship=False),
}  # fmt: skip


# The model


def noise(config: Config) -> Law:
    """Return π: eight Gaussians, or pixels of mean ½ and deviation ½."""
    if config.data == "moons":
        return ring()
    side = 8 if config.data == "digits" else 28
    half = torch.full((1, side, side), 0.5)
    return Flow(Affine(half, half), StandardNormal(1, side, side))


def field(config: Config) -> nn.Module:
    """Return the untrained network."""
    if config.data == "moons":
        return TimeMLP(2, *[config.width] * config.blocks)
    return UNet(
        1,
        width=config.width,
        factors=config.factors,
        blocks=config.blocks,
        heads=config.heads,
        dropout=config.dropout,
    )


def build(config: Config) -> FlowMatching:
    """Return the untrained model of a configuration."""
    return FlowMatching(field(config), noise(config), pairing=PAIRINGS[config.pairing])


# Training


def batches(
    config: Config, device: torch.device, rng: Generator
) -> tuple[Iterator[Tensor], Tensor]:
    """Return endless batches and what is held out, on the device."""
    if config.data == "moons":
        law = TwoMoons().to(device)
        held = law.sample(config.samples, rng=rng)
        return stream(law, config.batch, rng=rng), held
    source, levels = IMAGES[config.data], LEVELS[config.data]
    fill = partial(dequantize, levels=levels, rng=rng)
    seen, held = (source(s).x[: config.rows].to(device) for s in ("train", "test"))
    return stream(seen, config.batch, rng=rng).map(fill), fill(held)


def fit(
    model: FlowMatching, data: Iterator[Tensor], config: Config, run: Writer, seed: int
) -> FlowMatching:
    """Train; return the model with averaged weights."""
    rng = torch.Generator(run.device).manual_seed(seed)
    ema = Average(model, config.average)
    start = max((step for s, step in run.rows if s == seed), default=0)
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
            run.log(seed=seed, step=start + step.number, loss=step.losses[0])
    return cast(FlowMatching, ema.model)


def rectify(
    model: FlowMatching, config: Config, run: Writer, seed: int
) -> FlowMatching:
    """Train once more, on pairs of noise and what the model makes of it."""
    rng = torch.Generator(run.device).manual_seed(1000 + seed)
    z = model.base.sample(config.pairs, rng=rng)
    pairs = reflow(model.v, z, steps=20)
    again = FlowMatching(model.v, model.base, pairing=given)
    again.requires_grad_(True)
    return fit(again, stream(pairs, config.batch, rng=rng), config, run, seed)


# Judging


@torch.no_grad()
def judge_plane(
    model: FlowMatching, held: Tensor, config: Config, seed: int
) -> dict[str, float]:
    """Return cost, straightness and, for each number of steps, two errors.

    ``gap``: root mean square distance to the end of the exact flow, from the same
    noise.  ``energy``: squared energy distance to fresh data, zero for one law.
    """
    rng = torch.Generator(held.device).manual_seed(seed)
    z = model.base.sample(len(held), rng=rng)
    end = reflow(model.v, z, steps=100)[:, 1]
    found = {
        "cost": (end - z).square().sum(1).mean().item(),
        "straightness": straightness(model.v, z, steps=100).mean().item(),
        "energy_flow": energy_distance(end, held).item(),
    }
    for k in config.euler:
        times = torch.linspace(0, 1, k + 1, device=z.device)
        x = ode.integrate(model.v, z, times, ode.EULER)
        found[f"gap_{k}"] = (x - end).square().sum(1).mean().sqrt().item()
        found[f"energy_{k}"] = energy_distance(x, held).item()
    return found


@torch.no_grad()
def draws(
    model: FlowMatching, n: int, steps: int, method: ode.Tableau, seed: int
) -> Tensor:
    """Return n images, cut to [0, 1], a thousand at a time; a seed has its noise."""
    rng = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    sizes = [min(1000, n - i) for i in range(0, n, 1000)]
    parts = [model.sample(k, steps=steps, method=method, rng=rng) for k in sizes]
    return torch.cat(parts).clamp(0, 1)


def judge_images(
    model: FlowMatching, held: Tensor, config: Config, seed: int
) -> dict[str, float]:
    """Return the Fréchet distance for each number of steps, copies, likelihood."""
    net = Classifier(held.shape[-1]).to(held.device)
    net.load_state_dict(runs.load(f"metrics/{JUDGES[config.data]}").weights())
    seen = IMAGES[config.data]("train").x.to(held.device)
    unseen = IMAGES[config.data]("test").x.to(held.device)
    n = min(config.samples, len(unseen))
    test = features(net, unseen[:n])
    found = {"floor": frechet_distance(features(net, seen[:n]), test).item()}
    for name, method, counts in (
        ("euler", ode.EULER, config.euler), ("heun", ode.HEUN, config.heun),
    ):  # fmt: skip
        for k in counts:
            x = draws(model, n, k, method, seed)  # the same noise for each k
            distance = frechet_distance(features(net, x), test)
            found[f"{name}_{k}"] = distance.item()
    m = min(len(x), len(unseen), 2000)
    found["copy_share"] = copy_share(x[:m], seen[:m], unseen[:m])
    return found | likelihood(model, held, config, seed)


def likelihood(
    model: FlowMatching, held: Tensor, config: Config, seed: int
) -> dict[str, float]:
    """Return bits per dimension of the held-out images, with two standard errors.

    ``bits_se`` is that of the mean over images; ``probe_se`` is the part of it that
    Hutchinson's noise brings, from the spread between the probes of an image.
    """
    rng = torch.Generator(held.device).manual_seed(seed)
    rows = []
    for x in held.split(500):
        eps = [ode.signs_like(x, rng=rng) for _ in range(config.probes)]
        with torch.no_grad():
            each = [flow_log_prob(model.v, x, model.base, steps=config.ode_steps, eps=e)
                    for e in eps]  # fmt: skip
        rows.append(torch.stack(each, 1).double())
    log_prob = torch.cat(rows)  # (n, probes)
    n, d = len(held), held[0].numel()
    bits = bits_per_dim(-log_prob, d, LEVELS[config.data])
    found = {
        "log_prob": log_prob.mean().item(),
        "bits": bits.mean().item(),
        "bits_se": (bits.mean(1).std() / math.sqrt(n)).item(),
    }
    if config.probes > 1:
        spread = bits.var(1).mean() / config.probes / n
        found["probe_se"] = spread.sqrt().item()
    return found


def main(config: Config, run: Writer) -> None:
    """Train and judge one model for each seed."""
    torch.set_float32_matmul_precision("high")  # TF32, where there is such a thing
    for seed in config.seeds:
        torch.manual_seed(seed)
        rng = torch.Generator(run.device).manual_seed(seed)
        data, held = batches(config, run.device, rng)
        model = build(config).to(run.device)
        kept = fit(model, data, config, run, seed)
        for _ in range(config.reflows):
            kept = rectify(kept, config, run, seed)
        kept.eval()
        judge = judge_plane if config.data == "moons" else judge_images
        for name, value in judge(kept, held, config, seed).items():
            run.metric(seed, name, value)
        if config.ship and seed == config.seeds[0]:
            run.weights(light(kept.state_dict()))


def light(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights on the CPU, in half precision where they pass 4 MB."""
    size = sum(w.numel() * w.element_size() for w in weights.values())
    return {k: (w.half() if size > 3.9e6 else w).cpu() for k, w in weights.items()}
