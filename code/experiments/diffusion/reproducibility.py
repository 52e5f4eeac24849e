"""Runs behind book/diffusion/reproducibility.md: two networks and the same noise.

    pushforward train diffusion/reproducibility/digits      minutes, one processor core
    pushforward train diffusion/reproducibility/mnist       minutes, one GPU

The run digits-short stops after a tenth of the steps, fashion is mnist's twin.

For each number of data two networks of unlike shapes are trained on the *same* data,
from unlike weights, with unlike batches.  Both then draw from the same noises, and so
does the exact denoiser of the data.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from pushforward import runs
from pushforward.data import digits, fashion_mnist, mnist, stream
from pushforward.diffusion import (
    Denoiser,
    Diffusion,
    Preconditioned,
    cosine,
    empirical_denoiser,
    generalization_score,
    heun,
    karras_grid,
    nearest_similarity,
    rp_score,
)
from pushforward.distributions import StandardNormal
from pushforward.metrics import Classifier, features
from pushforward.nn import ResMLP, UNet
from pushforward.runs import Writer
from pushforward.train import cosine as falling
from pushforward.train import train

IMAGES = {"digits": digits, "mnist": mnist, "fashion_mnist": fashion_mnist}
JUDGES = {"digits": "digits", "mnist": "mnist", "fashion_mnist": "fashion"}
NETS = ("first", "second")


@dataclass(frozen=True)
class Config:
    """What a run does; the defaults are those of diffusion/reproducibility/mnist.

    Attributes:
        data: digits, mnist or fashion_mnist.
        net: unet or mlp.
        first: Width and blocks of the first network.
        second: Of the second.
        sizes: Numbers of data.
        steps: Of each training.
        batch: Rows of a step.
        lr: Learning rate at its top.
        precision: Of the training.
        noises: How many are decoded.
        grid: Steps of Heun's method.
        threshold: Cosine above which two images count as the same.
        ship: Sizes of which both networks are kept.
        seeds: Of weights, batches and noises.
        hardware: gpu or cpu.
    """

    data: str = "mnist"
    net: str = "unet"
    first: tuple[int, int] = (32, 2)
    second: tuple[int, int] = (64, 1)
    sizes: tuple[int, ...] = (64, 256, 1024, 4096, 8192, 32768)
    steps: int = 2500
    batch: int = 256
    lr: float = 1e-3
    precision: str = "bf16-mixed"
    noises: int = 2000
    grid: int = 18
    threshold: float = 0.9
    ship: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0,)
    hardware: str = "gpu"

    def small(self) -> "Config":
        """Return the same run in seconds: everything happens, little is learned."""
        return replace(
            self,
            first=(8, 1),
            second=(16, 1),
            sizes=(4, 10),
            ship=(4,) if self.ship else (),
            steps=4,
            batch=8,
            precision="32",
            noises=12,
            grid=3,
            seeds=(0,),
            hardware="cpu",
        )


DIGITS = Config(
    data="digits", net="mlp", first=(192, 2), second=(160, 4),
    sizes=(8, 32, 128, 512, 898), steps=4000, batch=64, lr=2e-3, precision="32",
    noises=500, ship=(8, 128, 898), hardware="cpu",
)  # fmt: skip
RUNS = {
    "diffusion/reproducibility/digits": DIGITS,
    "diffusion/reproducibility/digits-short": replace(DIGITS, steps=400, ship=()),
    "diffusion/reproducibility/mnist": Config(),
    "diffusion/reproducibility/fashion": Config(data="fashion_mnist"),
}


# Data and networks


def scaled(config: Config, split: str, device: torch.device) -> Tensor:
    """Return images of mean 0 and deviation ½, by the constants of the training set."""
    whole = IMAGES[config.data]("train").x
    x = whole if split == "train" else IMAGES[config.data](split).x
    return ((x - whole.mean()) / (2 * whole.std())).to(device)


def network(config: Config, which: str) -> Preconditioned:
    """Return one of the two untrained networks, as a denoiser."""
    width, blocks = getattr(config, which)
    if config.net == "mlp":
        return Preconditioned(ResMLP(64, width, blocks))
    return Preconditioned(UNet(1, width=width, blocks=blocks))


def fit(config: Config, x: Tensor, which: str, seed: int, run: Writer) -> nn.Module:
    """Train one network on the data x; no two trainings share a draw."""
    own = 1000 * seed + 2 * len(x) + NETS.index(which)
    torch.manual_seed(own)
    rng = torch.Generator(x.device).manual_seed(own)
    denoiser = network(config, which).to(x.device)
    model = Diffusion(denoiser, StandardNormal(*x.shape[1:]).to(x.device))
    copies = -(-config.batch // len(x))  # so that an epoch fills a batch
    batches = stream(x.repeat(copies, 1, 1, 1), config.batch, rng=rng)
    steps = train(
        model,
        batches,
        steps=config.steps,
        lr=config.lr,
        rng=rng,
        schedule=falling(config.steps, warmup=min(100, config.steps // 4)),
        clip=10.0,
        precision=config.precision,
        **run.training(seed, which, len(x)),
    )
    for step in steps:
        if step.number % max(config.steps // 50, 1) == 0:
            column = {f"{which}_{len(x)}": step.losses[0]}
            run.log(seed=seed, step=step.number, **column)
    return denoiser.eval()


# Judging


@torch.no_grad()
def decode(D: Denoiser, z: Tensor, config: Config) -> Tensor:
    """Return the images that a denoiser draws from the noises z, by Heun's method."""
    sigmas = karras_grid(config.grid).to(z)
    return torch.cat([heun(D, sigmas[0] * rows, sigmas) for rows in z.split(500)])


def seer(config: Config, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the map from scaled images to the features of the book's classifier."""
    whole = IMAGES[config.data]("train").x
    mean, std = whole.mean().to(device), whole.std().to(device)
    net = Classifier(whole.shape[-1]).to(device)
    net.load_state_dict(runs.load(f"metrics/{JUDGES[config.data]}").weights())
    return lambda x: features(net, (2 * std * x + mean).clamp(0, 1))


def judge(drawn: dict[str, Tensor], x: Tensor, config: Config) -> dict[str, float]:
    """Return how alike the draws are, and how near to the data they were learned from.

    ``rp``: A and B; ``rp_empirical`` and ``rp_empirical_second``: A, or B, and the
    exact denoiser of the data; ``rp_features``: A and B, by features; ``chance``: A
    and B from unlike noises.
    """
    whole = scaled(config, "train", x.device)
    like = partial(cosine, centre=whole.mean(0))
    score = partial(rp_score, threshold=config.threshold, similarity=like)
    a, b, e = drawn["first"], drawn["second"], drawn["empirical"]
    see = seer(config, x.device)
    feel = partial(cosine, centre=see(whole).mean(0))
    near = partial(nearest_similarity, similarity=like)
    fresh = partial(generalization_score, threshold=config.threshold, similarity=like)
    return {
        "rp": score(a, b),
        "rp_empirical": score(a, e),
        "rp_empirical_second": score(b, e),
        "rp_features": rp_score(
            see(a), see(b), threshold=config.threshold, similarity=feel
        ),
        "chance": score(a, b.roll(1, 0)),
        "cosine": like(a, b).mean().item(),
        "nearest": near(a, x).mean().item(),
        "nearest_empirical": near(e, x).min().item(),
        "generalization": fresh(a, x),
        "generalization_second": fresh(b, x),
    }


def main(config: Config, run: Writer) -> None:
    """Train two networks on each number of data, and compare what they draw."""
    torch.set_float32_matmul_precision("high")  # TF32, where there is such a thing
    whole = scaled(config, "train", run.device)
    kept: dict[str, Tensor] = {}
    for seed in config.seeds:
        rng = torch.Generator(run.device).manual_seed(seed)
        z = StandardNormal(*whole.shape[1:]).to(run.device).sample(
            config.noises, rng=rng
        )  # fmt: skip
        for n in config.sizes:
            x = whole[:n]
            nets = {which: fit(config, x, which, seed, run) for which in NETS}
            if seed == config.seeds[0] and n in config.ship:
                kept |= {f"{which}_{n}.{key}": w.half().cpu() for which in NETS
                         for key, w in nets[which].state_dict().items()}  # fmt: skip
            drawn = {which: decode(net, z, config) for which, net in nets.items()}
            drawn["empirical"] = decode(empirical_denoiser(x), z, config)
            for name, value in judge(drawn, x, config).items():
                run.metric(seed, f"{name}_{n}", value)
        real = scaled(config, "test", run.device)[: config.noises]
        like = partial(cosine, centre=whole.mean(0))
        fresh = generalization_score(
            real, whole[:n], threshold=config.threshold, similarity=like
        )
        run.metric(seed, "generalization_real", fresh)
    if kept:
        run.weights(kept)
