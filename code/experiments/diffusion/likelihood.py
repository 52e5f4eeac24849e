"""Runs behind book/diffusion/likelihood.md: bits per dimension of score models.

    pushforward train diffusion/likelihood/digits     a minute or two, one core
    pushforward train diffusion/likelihood/mnist      minutes, one GPU

Grey images are filled to points of space by uniform noise, by noise that is learned
with the model, or by the noise of the diffusion itself, with a decoder.  ``bits`` are
those of the probability flow; ``walk_bits`` are the bound of the walk back (under the
first two, at data with noise of the first level).

The budget of the GPU runs is an estimate, not a measurement.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Generator, Tensor, nn
from torch.optim import AdamW

from pushforward.data import digits, mnist, stream
from pushforward.diffusion import SDE, VP, Preconditioned, SubVP
from pushforward.diffusion.likelihood import (
    GreyDenoiser,
    LevelSteps,
    ScoreFlow,
    UniformLogLevel,
    UniformTime,
    Whitened,
    log_level_rate,
)
from pushforward.distributions import Gaussian, StandardNormal
from pushforward.flows import Affine, Dequantized, Flow, dequantizer
from pushforward.model import Model
from pushforward.nn import ResMLP, UNet
from pushforward.ode import signs_like
from pushforward.runs import Writer
from pushforward.train import Average, cosine, train

IMAGES = {"digits": digits, "mnist": mnist}
LEVELS = {"digits": 17, "mnist": 256}
SDES: dict[str, SDE] = {"vp": VP(), "sub-vp": SubVP()}


@dataclass(frozen=True)
class Config:
    """What a run does; the defaults are those of diffusion/likelihood/mnist.

    Attributes:
        data: digits or mnist.
        sde: vp or sub-vp.
        weight: likelihood (g²) or plain (‖ε̂ − ε‖²).
        times: log-level (importance sampling) or uniform.
        level: Noise level at which the model ends, in distances of grey levels.
        noise: variational or uniform dequantisation, or gaussian: the diffusion's.
        mean: Of the pixels, subtracted before a U-Net sees them.
        std: Of the pixels, which become numbers of deviation ½.
        width: Channels, or units of a layer.
        factors: Channels at each size, in units of ``width``; digits need none.
        blocks: Residual blocks.
        dropout: Of a U-Net.
        steps: Of the training.
        batch: Rows of a step.
        lr: Learning rate at its top.
        weight_decay: Of AdamW.
        average: Decay of the averaged weights.
        precision: Of the training.
        ode_steps: Of the likelihood, four evaluations in each.
        draws: Of dequantisation and divergence noise, for each image.
        walk_draws: Of the bound.
        rows: How many images of each split are used.
        ship: Keep the weights of the first seed.
        seeds: Of weights and batches.
        hardware: gpu or cpu.
    """

    data: str = "mnist"
    sde: str = "vp"
    weight: str = "likelihood"
    times: str = "log-level"
    level: float = 0.03
    noise: str = "variational"
    mean: float = 0.1321
    std: float = 0.3069
    width: int = 64
    factors: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    dropout: float = 0.1
    steps: int = 14_000
    batch: int = 256
    lr: float = 1e-3
    weight_decay: float = 1e-3
    average: float = 0.999
    precision: str = "bf16-mixed"
    ode_steps: int = 50
    draws: int = 1
    walk_draws: int = 20
    rows: int = 60_000
    ship: bool = False
    seeds: tuple[int, ...] = (0,)
    hardware: str = "gpu"

    def small(self) -> "Config":
        """Return the same run in seconds: everything happens, little is learned."""
        return replace(
            self, width=8, blocks=1, steps=4, batch=8, precision="32", ode_steps=3,
            draws=2, walk_draws=2, rows=12, factors=(1, 2), seeds=(0,), hardware="cpu",
        )  # fmt: skip


DIGITS = Config(
    data="digits", noise="gaussian", level=0.1, width=128, blocks=2, steps=450,
    batch=256, lr=3e-3, weight_decay=0.1, average=0.99, precision="32", ode_steps=50,
    draws=2, walk_draws=200, ship=True, hardware="cpu",
)  # fmt: skip
LONG = replace(DIGITS, steps=1500, batch=128)
PLAIN = replace(LONG, weight="plain", times="uniform", ship=False)
RUNS = {
    "diffusion/likelihood/mnist": Config(),
    "diffusion/likelihood/mnist-sub-vp": Config(sde="sub-vp"),
    "diffusion/likelihood/mnist-uniform": Config(noise="uniform"),
    "diffusion/likelihood/mnist-plain": Config(
        noise="uniform", weight="plain", times="uniform"
    ),
    "diffusion/likelihood/digits": DIGITS,
    "diffusion/likelihood/digits-long": LONG,
    "diffusion/likelihood/digits-plain": PLAIN,
    "diffusion/likelihood/digits-sub-vp": replace(PLAIN, sde="sub-vp"),
    "diffusion/likelihood/digits-uniform": replace(
        LONG, noise="uniform", level=0.01, ship=False
    ),
}


class GreyScores(Model):
    """A score model of grey images: a density of points, and noise to reach them.

    Args:
        flow: The density, Flow(Affine, ScoreFlow).
        noise: Its dequantisation; None for the noise of the diffusion itself.
        levels: L, how many grey levels there are.
    """

    def __init__(self, flow: Flow, noise: Dequantized | None, levels: int) -> None:
        super().__init__()
        self.flow, self.noise, self.levels = flow, noise, levels

    @property
    def scores(self) -> ScoreFlow:
        """The score model behind the affine map."""
        return cast(ScoreFlow, self.flow.base)

    def fill(self, x: Tensor, rng: Generator | None) -> tuple[Tensor, Tensor]:
        """Draw a point for each image; return it with log q(point | image), nats.

        A decoder counts as a part of log q.
        """
        if self.noise is None:
            decoder = cast(GreyDenoiser, self.scores.denoiser)
            return decoder.fill(x, self.scores.level, rng=rng)
        y, log_q = self.noise.fill(x, rng=rng)
        z, log_det = self.flow.f(y)
        nats = x[0].numel() * math.log(self.levels)  # of u, as y = (l + u)/L
        return z, log_q + nats - log_det

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return the loss of the scores, and of the noise that is learned with them.

        Under likelihood weights it is a bound of −log P(x), but for a constant.
        """
        if self.noise is None:
            return self.scores.loss(x, rng=rng)
        z, log_q = self.fill(x, rng)
        return self.scores.loss(z, rng=rng) + log_q.mean()

    @torch.no_grad()
    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw grey images, shape (n, 1, h, w)."""
        if self.noise is not None:
            return self.noise.sample(n, rng=rng)
        top = self.levels - 1
        return (top * self.scores.sample(n, rng=rng)).round().clamp(0, top) / top

    @torch.no_grad()
    def bits(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return bits per dimension for a draw of each noise, shape (n,)."""
        z, log_q = self.fill(x, rng)
        log_p = self.scores.log_prob(z, eps=signs_like(z, rng=rng))
        return (log_q - log_p) / (x[0].numel() * math.log(2))

    @torch.no_grad()
    def walk_bits(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return the bound of the walk back for a draw, in bits, shape (n,)."""
        z, log_q = self.fill(x, rng)
        seen = x if self.noise is None else z  # the bound draws noise of its own
        nats = self.scores.bound(seen, rng=rng) + log_q
        return nats / (x[0].numel() * math.log(2))


# The model


def pixel_law() -> Gaussian:
    """Return the Gaussian with mean and covariance of the filled training digits."""
    x = digits("train").x.flatten(1).double() * (16 / 17)
    cell = torch.eye(64, dtype=x.dtype) / 17**2 / 12
    law = Gaussian(x.mean(0) + 1 / 34, torch.cov(x.T) + cell)
    return law.to(torch.get_default_dtype())


def pixel_frequencies() -> Tensor:
    """Return log-frequencies of the levels of each pixel, smoothed, (64, 17)."""
    index = (16 * digits("train").x.flatten(1)).round().long()
    counts = torch.nn.functional.one_hot(index, 17).sum(0)
    return ((counts + 0.5) / (len(index) + 8.5)).to(torch.get_default_dtype()).log()


def network(config: Config) -> nn.Module:
    """Return the untrained denoiser."""
    if config.data == "digits" and config.noise == "gaussian":
        net = ResMLP(64 * 17, config.width, config.blocks)
        return GreyDenoiser(net, pixel_frequencies())
    if config.data == "digits":
        return Whitened(ResMLP(64, config.width, config.blocks), pixel_law())
    return Preconditioned(
        UNet(1, width=config.width, factors=config.factors, blocks=config.blocks,
             dropout=config.dropout)
    )  # fmt: skip


def build(config: Config) -> GreyScores:
    """Return the untrained model of a configuration."""
    sde, levels = SDES[config.sde], LEVELS[config.data]
    small = config.data == "digits"
    shape = (1, 8, 8) if small else (1, 28, 28)
    m, s = (0.0, 1.0) if small else (config.mean, 2 * config.std)
    cell = 1 / (levels - 1) if config.noise == "gaussian" else 1 / levels / s
    scores = ScoreFlow(
        network(config), StandardNormal(*shape), sde, level=config.level * cell,
        solver=LevelSteps(sde, config.ode_steps, bend=cell / 5),
    )  # fmt: skip
    law = UniformTime if config.times == "uniform" else UniformLogLevel
    scores.times = law(sde, scores.start)
    scores.weight = plain_weight if config.weight == "plain" else log_level_rate
    flow = Flow(Affine(torch.full(shape, m), torch.full(shape, s)), scores)
    if config.noise == "gaussian":
        return GreyScores(flow, None, levels)
    learned = dequantizer(shape) if config.noise == "variational" else None
    return GreyScores(flow, Dequantized(flow, learned, levels), levels)


def plain_weight(sde: SDE, t: Tensor) -> Tensor:
    """Return 2: the plain loss ‖ε̂ − ε‖²."""
    return torch.full_like(t, 2.0)


# Training and judging


def fit(
    model: GreyScores, x: Tensor, test: Tensor, config: Config, run: Writer, seed: int
) -> GreyScores:
    """Train; return the model with averaged weights."""
    rng = torch.Generator(run.device).manual_seed(seed)
    ema = Average(model, config.average)
    data: Iterator[Tensor] = stream(x, config.batch, rng=rng)
    steps = train(
        model, data, steps=config.steps, lr=config.lr,
        schedule=cosine(config.steps, warmup=min(200, config.steps // 4)),
        optimizer=partial(AdamW, weight_decay=config.weight_decay, fused=True),
        clip=1000.0, ema=ema, precision=config.precision, rng=rng,
        progress=run.progress,
    )  # fmt: skip
    seen, every = cast(GreyScores, ema.model), max(config.steps // 25, 1)
    for step in steps:
        if step.number % every == 0:
            losses = {"train": look(seen, x[: len(test)]), "test": look(seen, test)}
            run.log(seed=seed, step=step.number, **losses)
    return seen.eval()


@torch.no_grad()
def look(model: GreyScores, x: Tensor) -> float:
    """Return the mean bits of the walk, always with the same noise."""
    rng = torch.Generator(x.device).manual_seed(0)
    bits = [model.walk_bits(part, rng=rng) for _ in range(4) for part in x.split(2000)]
    return torch.cat(bits).mean().item()


def judge(
    model: GreyScores, seen: Tensor, test: Tensor, config: Config
) -> dict[str, float]:
    """Return bits per dimension of both models, with standard errors over images."""
    rng = torch.Generator(test.device).manual_seed(0)

    def mean(bits: Tensor) -> tuple[float, float]:
        each = bits.double().mean(0)
        return each.mean().item(), (each.std() / math.sqrt(len(each))).item()

    def all_bits(x: Tensor, draws: int) -> Tensor:
        rows = [[model.bits(part, rng=rng) for part in x.split(500)]
                for _ in range(draws)]  # fmt: skip
        return torch.stack([torch.cat(row) for row in rows])

    walk = torch.stack([model.walk_bits(test, rng=rng)
                        for _ in range(config.walk_draws)])  # fmt: skip
    bits = all_bits(test, config.draws)
    found = {"parameters": float(sum(p.numel() for p in model.parameters()))}
    found["bits"], found["bits_se"] = mean(bits)
    found["walk_bits"], found["walk_se"] = mean(walk)
    found["train_bits"], _ = mean(all_bits(seen[: len(test)], 1))
    return found | {"ode_gap": ode_gap(model, test[:200], config)}


def ode_gap(model: GreyScores, x: Tensor, config: Config) -> float:
    """Return the bits that twice the steps of the integrator would add."""
    own, found = model.scores.solver, []
    for steps in (config.ode_steps, 2 * config.ode_steps):
        bend = cast(LevelSteps, own).bend
        model.scores.solver = LevelSteps(model.scores.sde, steps, bend=bend)
        rng = torch.Generator(x.device).manual_seed(1)
        found.append(model.bits(x, rng=rng).double().mean().item())
    model.scores.solver = own
    return found[1] - found[0]


def main(config: Config, run: Writer) -> None:
    """Train and judge one model for each seed."""
    torch.set_float32_matmul_precision("high")  # TF32, where there is such a thing
    source = IMAGES[config.data]
    x, test = (source(s).x[: config.rows].to(run.device) for s in ("train", "test"))
    for seed in config.seeds:
        torch.manual_seed(seed)
        model = fit(build(config).to(run.device), x, test, config, run, seed)
        torch.set_float32_matmul_precision("highest")  # a density is judged in full
        for name, value in judge(model, x, test, config).items():
            run.metric(seed, name, value)
        if config.ship and seed == config.seeds[0]:
            run.weights(light(model.state_dict()))


def light(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights on the CPU, in half precision where they pass 4 MB."""
    size = sum(w.numel() * w.element_size() for w in weights.values())
    return {k: (w.half() if size > 3.9e6 else w).cpu() for k, w in weights.items()}
