"""Runs behind book/diffusion/dynamics.md: one denoiser, three ways to hold its weights.

    pushforward train diffusion/dynamics/digits          forced, minutes, one core
    pushforward train diffusion/dynamics/digits-free     normalised on use, free to grow
    pushforward train diffusion/dynamics/digits-plain    an ordinary residual network
    pushforward train diffusion/dynamics/mnist           minutes, one GPU
    pushforward train diffusion/dynamics/mnist-plain     likewise

Two averages are followed and kept now and then; every other average is made of these
snapshots when the training is over, and judged by the Fréchet distance of its samples
to test images.  Some are followed too, to see how near the reconstruction comes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from pushforward import runs
from pushforward.data import digits, mnist, stream
from pushforward.diffusion.denoising import Diffusion, LogNormal, Preconditioned, Units
from pushforward.diffusion.dynamics import (
    MPMLP,
    MPUNet,
    Snapshots,
    UncertainDiffusion,
    free,
    inverse_root,
    power_decay,
    power_exponent,
    rotation,
)
from pushforward.distributions import StandardNormal
from pushforward.metrics import Classifier, features, frechet_distance
from pushforward.nn import ResMLP, UNet
from pushforward.runs import Writer
from pushforward.train import Average, train

IMAGES = {"digits": digits, "mnist": mnist}
SIDES = {"digits": 8, "mnist": 28}
UNITS = {"digits": Units(0.3054, 0.7517), "mnist": Units(0.1307, 0.6162)}


@dataclass(frozen=True)
class Config:
    """What a run does; the defaults are those of diffusion/dynamics/mnist.

    Attributes:
        data: digits or mnist.
        weights: forced, free or plain.
        width: Units of a layer, or channels at the finest size.
        factors: Channels at each size, in units of ``width``; () for a perceptron.
        blocks: Residual blocks, at each size.
        steps: Of the training.
        batch: Images in a step.
        lr: Learning rate at its top.
        start: Step after which it falls with the inverse root.
        precision: Of the training.
        kept: Relative widths of the two averages that are kept.
        snapshots: How many times they are kept.
        lengths: Relative widths of the averages that are judged.
        followed: Those of them that are followed too.
        samples: Drawn for a judgement.
        rows: How many images of each split are used.
        ship: Keep the weights of the best average of the first seed.
        seeds: Of weights, batches and samples.
        hardware: gpu or cpu.
    """

    data: str = "mnist"
    weights: str = "forced"
    width: int = 64
    factors: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    steps: int = 20_000
    batch: int = 512
    lr: float = 1e-2
    start: int = 2000
    precision: str = "bf16-mixed"
    kept: tuple[float, float] = (0.05, 0.10)
    snapshots: int = 32
    lengths: tuple[float, ...] = tuple(round(0.015 * k, 3) for k in range(1, 20))
    followed: tuple[float, ...] = (0.03, 0.15, 0.255)
    samples: int = 10_000
    rows: int = 60_000
    ship: bool = False
    seeds: tuple[int, ...] = (0,)
    hardware: str = "gpu"

    def small(self) -> "Config":
        """Return the same run in seconds: everything happens, little is learned."""
        return replace(
            self,
            width=8,
            blocks=1,
            steps=12,
            batch=16,
            precision="32",
            snapshots=4,
            lengths=(0.1, 0.15),
            followed=(0.15,),
            samples=70,
            rows=80,
            seeds=(0,),
            hardware="cpu",
        )


DIGITS = Config(
    data="digits", width=128, factors=(), blocks=3, steps=5000, batch=128, lr=2e-2,
    start=1500, precision="32", snapshots=16,
    lengths=(0.02, 0.03, 0.05, 0.075, 0.10, 0.15, 0.20, 0.25),
    followed=(0.15, 0.25), samples=1000, hardware="cpu",
)  # fmt: skip
RUNS = {
    "diffusion/dynamics/digits": replace(DIGITS, ship=True, seeds=(0, 1)),
    "diffusion/dynamics/digits-free": replace(DIGITS, weights="free"),
    "diffusion/dynamics/digits-plain": replace(
        DIGITS, weights="plain", lr=2e-3, seeds=(0, 1)
    ),
    "diffusion/dynamics/mnist": Config(),
    "diffusion/dynamics/mnist-plain": Config(weights="plain", lr=1e-3),
}


# The model


def field(config: Config) -> nn.Module:
    """Return the untrained network."""
    w, f, k = config.width, config.factors, config.blocks
    d = SIDES[config.data] ** 2
    if config.weights == "plain":
        return UNet(1, width=w, factors=f, blocks=k, heads=0) if f else ResMLP(d, w, k)
    net = MPUNet(1, width=w, factors=f, blocks=k) if f else MPMLP(d, w, k)
    return net if config.weights == "forced" else free(net)


def build(config: Config) -> Diffusion:
    """Return the untrained model of a configuration."""
    side = SIDES[config.data]
    return UncertainDiffusion(
        Preconditioned(field(config)),
        StandardNormal(1, side, side),
        noise=LogNormal(-0.4, 1.0),
        units=UNITS[config.data],
    )


def hidden(model: nn.Module) -> list[Tensor]:
    """Return the weight matrices of the residual blocks."""
    names = {"enter", "leave", "blocks", "down", "up"}
    return [
        p.detach().clone()
        for name, p in model.named_parameters()
        if p.ndim > 1 and names & {*name.split(".")} and "modulate" not in name
    ]


# Training


def images(config: Config, split: str, device: torch.device) -> Tensor:
    """Return images (n, 1, h, w) in [0, 1]."""
    return IMAGES[config.data](split).x[: config.rows].float().to(device)


def fit(
    model: Diffusion, data: Iterator[Tensor], config: Config, run: Writer, seed: int
) -> tuple[Snapshots, dict[float, Average]]:
    """Train; return the snapshots, and the averages that were followed."""
    rng = torch.Generator(run.device).manual_seed(seed)
    widths = dict.fromkeys((*config.kept, *config.followed))
    means = {w: Average(model, power_decay(power_exponent(w))) for w in widths}
    steps, shots = config.steps, Snapshots()
    loop = train(
        model,
        data,
        steps=steps,
        lr=config.lr,
        rng=rng,
        schedule=inverse_root(config.start),
        precision=config.precision,
        progress=run.progress,
    )
    marks = {steps * k // config.snapshots for k in range(1, config.snapshots + 1)}
    looks = {max(steps * k // 60, 2) for k in range(1, 61)}
    for step in loop:
        for mean in means.values():
            mean.update(model, step.number)
        if step.number in marks:
            for w in config.kept:
                state = means[w].model.state_dict()
                shots.add(step.number, power_exponent(w), state)
        if step.number + 1 in looks:
            before = hidden(model)
        if step.number in looks:
            moved = motion(before, hidden(model))
            run.log(seed=seed, step=step.number, loss=step.losses[0], **moved)
    return shots, means


def motion(before: list[Tensor], after: list[Tensor]) -> dict[str, Tensor]:
    """Return the size of the hidden weights, and the angle of their last step."""
    rows = torch.cat([w.flatten(1).square().mean(1) for w in after])
    pairs = zip(before, after, strict=True)
    angles = torch.cat([rotation(a, b) for a, b in pairs])
    return {"size": rows.mean().sqrt(), "angle": angles.mean()}


# Judging


@torch.no_grad()
def draws(model: Diffusion, n: int, seed: int) -> Tensor:
    """Return n images, cut to [0, 1], a thousand at a time; a seed has its noise."""
    rng = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    sizes = [min(1000, n - i) for i in range(0, n, 1000)]
    return torch.cat([model.sample(k, rng=rng) for k in sizes]).clamp(0, 1)


def error(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Return the distance of two sets of weights over the size of the second."""
    keys = [k for k, v in exact.items() if v.is_floating_point()]
    miss = sum((found[k] - exact[k].cpu()).double().square().sum() for k in keys)
    size = sum(exact[k].double().square().sum().cpu() for k in keys)
    return float(miss / size) ** 0.5


def judge(
    model: Diffusion, shots: Snapshots, means: dict[float, Average],
    config: Config, seed: int,
) -> dict[str, float]:  # fmt: skip
    """Return the Fréchet distance for each length, and how good the lengths are."""
    device = next(model.parameters()).device
    seen, unseen = (images(config, s, device) for s in ("train", "test"))
    net = Classifier(seen.shape[-1]).to(device)
    net.load_state_dict(runs.load(f"metrics/{config.data}").weights())
    test, n = features(net, unseen), config.samples
    found = {"floor": frechet_distance(features(net, seen[:n]), test).item()}

    def distance() -> float:
        x = draws(model, n, seed)  # the same noise for each average
        return frechet_distance(features(net, x), test).item()

    model.eval()
    found["frechet_last"] = distance()
    for w in config.lengths:
        how, state = shots.solve(power_exponent(w)), shots.average(power_exponent(w))
        model.load_state_dict(state)
        found |= {f"frechet_{w:g}": distance(), f"profile_{w:g}": how.error}
        found[f"gain_{w:g}"] = how.gain
        if w in means and w not in config.kept:
            found[f"gap_{w:g}"] = error(state, means[w].model.state_dict())
    return found


def best(found: dict[str, float], config: Config) -> float:
    """Return the length whose samples are nearest to the test images."""
    return min(config.lengths, key=lambda w: found[f"frechet_{w:g}"])


def main(config: Config, run: Writer) -> None:
    """Train one model for each seed, and judge its averages."""
    torch.set_float32_matmul_precision("high")  # TF32, where there is such a thing
    for seed in config.seeds:
        torch.manual_seed(seed)
        rng: Generator = torch.Generator(run.device).manual_seed(seed)
        seen = images(config, "train", run.device)
        data = stream(seen, config.batch, rng=rng)
        model = build(config).to(run.device)
        shots, means = fit(model, data, config, run, seed)
        found = judge(model, shots, means, config, seed)
        found["best"] = best(found, config)
        found["frechet_best"] = found[f"frechet_{found['best']:g}"]
        for name, value in found.items():
            run.metric(seed, name, value)
        if config.ship and seed == config.seeds[0]:
            state = shots.average(power_exponent(found["best"]))
            run.weights({k: v.half() for k, v in state.items()})
