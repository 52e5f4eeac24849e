"""Runs behind book/gans/vanilla.md: a ring and digits in seconds, images in minutes.

    pushforward train gans/vanilla/ring          a minute, one processor core
    pushforward train gans/vanilla/digits        a minute, one processor core
    pushforward train gans/vanilla/mnist         minutes, one GPU

The runs of book/gans/wasserstein.md are made by the same code.  A ring is judged
by the modes that are found and by the sliced distance SW₁, of which the critic's
gap is, or is not, a good guess; images by a Fréchet distance between features.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn
from torch.optim import Adam, RMSprop

from pushforward import runs
from pushforward.data import Images, digits, fashion_mnist, mnist, stream
from pushforward.distributions import Mixture, StandardNormal, ring
from pushforward.gans import (
    GAN,
    NON_SATURATING,
    SATURATING,
    WASSERSTEIN,
    clip_weights,
    conv_discriminator,
    conv_generator,
    coverage,
    gap,
    gradient_penalty,
    r1_penalty,
)
from pushforward.metrics import (
    Classifier,
    copy_share,
    features,
    frechet_distance,
    parzen_log_prob,
)
from pushforward.nn import MLP
from pushforward.ot import sliced_wasserstein
from pushforward.runs import Writer
from pushforward.train import Average, Step, train

SIDES = {"digits": 8, "mnist": 28, "fashion_mnist": 28}
JUDGES = {"digits": "digits", "mnist": "mnist", "fashion_mnist": "fashion"}
OBJECTIVES = {
    "saturating": SATURATING,
    "non-saturating": NON_SATURATING,
    "wasserstein": WASSERSTEIN,
}


@dataclass(frozen=True)
class Config:
    """What a run does; the defaults are those of gans/vanilla/mnist."""

    data: str = "mnist"  # or fashion_mnist, digits, ring
    objective: str = "non-saturating"  # or saturating, wasserstein
    penalty: str = "r1"  # or gradient, none
    weight: float = 0.5  # of the penalty: γ, or λ
    box: float = 0.0  # half the side of the box for the weights; 0: none
    turns: int = 1  # of the discriminator
    network: str = "conv"  # or perceptron, paper
    k: int = 64  # dimension of the noise
    hidden: tuple[int, ...] = ()  # widths of the perceptrons
    channels: int = 64  # of the convolutions, at full size
    steps: int = 8000
    batch: int = 256
    optimizer: str = "adam"  # or rmsprop
    lr: float = 2e-4
    betas: tuple[float, float] = (0.0, 0.99)  # of Adam
    average: float = 0.999  # decay of the averaged weights; 0: none
    every: int = 500  # steps between two looks
    samples: int = 10_000  # drawn to be judged
    rows: int = 60_000  # how many images of each split are used
    parzen: bool = False  # also the score of Parzen windows
    precision: str = "bf16-mixed"
    ship: bool = False  # whether the weights of the first seed are kept
    seeds: tuple[int, ...] = (0, 1, 2)
    hardware: str = "gpu"

    def small(self) -> "Config":
        """Return the same run in seconds: everything happens, little is learned."""
        return replace(
            self,
            hidden=tuple(min(h, 16) for h in self.hidden),
            channels=8,
            steps=4,
            batch=8,
            every=2,
            samples=40,
            rows=48,
            precision="32",
            seeds=(0,),
            hardware="cpu",
        )


RING = Config(
    data="ring", penalty="none", network="perceptron", k=8, hidden=(128, 128),
    steps=3000, lr=5e-4, betas=(0.5, 0.99), average=0.0, every=150, samples=5000,
    precision="32", seeds=(0, 1, 2, 3, 4), hardware="cpu",
)  # fmt: skip
RUNS = {
    "gans/vanilla/mnist": Config(),
    "gans/vanilla/fashion": Config(data="fashion_mnist"),
    "gans/vanilla/parzen": Config(
        penalty="none", network="paper", k=100, hidden=(1200, 240), steps=60_000,
        batch=100, betas=(0.5, 0.999), average=0.0, every=5000, parzen=True,
        precision="32",
    ),
    "gans/vanilla/ring": replace(RING, ship=True),
    "gans/vanilla/ring-r1": replace(
        RING, penalty="r1", weight=1.0, betas=(0.0, 0.99), ship=True, seeds=(0, 1, 2)
    ),
    "gans/vanilla/digits": Config(
        data="digits", weight=1.0, network="perceptron", k=16, hidden=(128, 128),
        steps=2500, batch=128, lr=5e-4, samples=360, precision="32", ship=True,
        hardware="cpu",
    ),
}  # fmt: skip


# The model


class Maxout(nn.Module):
    """The largest of five linear maps, coordinate by coordinate."""

    def __init__(self, a: int, b: int, pieces: int = 5) -> None:
        super().__init__()
        self.linear, self.pieces = nn.Linear(a, b * pieces), pieces

    def forward(self, x: Tensor) -> Tensor:
        """Return the maxima, shape (n, b)."""
        return self.linear(x).unflatten(1, (-1, self.pieces)).amax(2)


def networks(config: Config) -> tuple[nn.Module, nn.Module]:
    """Return generator and discriminator."""
    k, hidden = config.k, config.hidden
    if config.network == "conv":
        channels = config.channels
        return (
            conv_generator(k, channels=channels),
            conv_discriminator(channels=channels),
        )
    if config.data == "ring":
        shape = partial(MLP, activation=nn.ReLU)
        return shape(k, *hidden, 2), shape(2, *hidden, 1)
    side = SIDES[config.data]
    image = [nn.Sigmoid(), nn.Unflatten(1, (1, side, side))]
    if config.network == "paper":  # rectifiers and maxout, with dropout
        wide, narrow = hidden
        judge = [nn.Dropout(0.2), Maxout(side**2, narrow), nn.Dropout(0.5)]
        judge += [Maxout(narrow, narrow), nn.Dropout(0.5), nn.Linear(narrow, 1)]
        maker = MLP(k, wide, wide, side**2, activation=nn.ReLU)
        return nn.Sequential(maker, *image), nn.Sequential(nn.Flatten(), *judge)
    leaky = partial(nn.LeakyReLU, 0.2)
    maker = MLP(k, *hidden, side**2, activation=leaky)
    critic = MLP(side**2, *reversed(hidden), 1, activation=leaky)
    return nn.Sequential(maker, *image), nn.Sequential(nn.Flatten(), critic)


def build(config: Config) -> GAN:
    """Return the untrained model of a configuration."""
    penalties = {
        "none": None,
        "r1": partial(r1_penalty, config.weight),
        "gradient": partial(gradient_penalty, config.weight),
    }
    make = penalties[config.penalty]
    return GAN(
        *networks(config),
        StandardNormal(config.k),
        objective=OBJECTIVES[config.objective],
        penalty=None if make is None else make(),
        constraint=clip_weights(config.box) if config.box else None,
        turns=config.turns,
    )


# The run


def learning(
    model: GAN, source: Tensor | Mixture, config: Config, **options: Any
) -> Iterator[Step]:
    """Return the training loop of a configuration."""
    adam = partial(Adam, betas=config.betas, fused=True)
    return train(
        model,
        stream(source, config.batch, rng=options["rng"]),
        steps=config.steps,
        lr=config.lr,
        optimizer=RMSprop if config.optimizer == "rmsprop" else adam,
        precision=config.precision,
        **options,
    )


@torch.no_grad()
def look(model: GAN, x: Tensor, rng: Generator) -> dict[str, float]:
    """Return the critic's gap and the sliced distance, between data and samples."""
    y = model.sample(len(x), rng=rng)
    found = {"gap": gap(model.score(x), model.score(y)).item()}
    if x.ndim == 2:
        found["sliced"] = sliced_wasserstein(x, y, p=1, rng=rng).distance.item()
    return found


def correlation(a: list[float], b: list[float]) -> float:
    """Return Pearson's coefficient; 0 where one of the two does not vary."""
    r = torch.corrcoef(torch.tensor([a, b], dtype=torch.float64))[0, 1].item()
    return r if r == r else 0.0


def play(
    model: GAN, source: Tensor | Mixture, config: Config, run: Writer, seed: int
) -> tuple[GAN, list[dict[str, float]]]:
    """Train; return the model to be judged, and what was seen on the way."""
    rng = torch.Generator(run.device).manual_seed(seed)
    ema = Average(model, config.average) if config.average else None
    seen = model if ema is None else cast(GAN, ema.model)
    options = {"ema": ema, "rng": rng, "progress": run.progress}
    path = []
    for step in learning(model, source, config, **options):
        if step.number % config.every == 0:
            model.eval()
            n = min(config.samples, 2000)
            law = source if isinstance(source, Mixture) else None
            x = law.sample(n, rng=rng) if law else cast(Tensor, source)[:n]
            path.append(look(model, x, rng))
            losses = dict(zip(("critic", "generator"), step.losses, strict=True))
            run.log(seed=seed, step=step.number, **losses, **path[-1])
    return seen.eval(), path


def judge_ring(model: GAN, law: Mixture, n: int) -> dict[str, float]:
    """Return modes, quality and distance of a sample."""
    rng = torch.Generator(law.means.device).manual_seed(0)
    y = model.sample(n, rng=rng)
    found = coverage(y, law)
    far = sliced_wasserstein(law.sample(n, rng=rng), y, p=1, rng=rng).distance
    return {"modes": found.modes, "quality": found.quality, "sliced": far.item()}


def judge_images(
    model: GAN, seen: Tensor, unseen: Tensor, config: Config
) -> dict[str, float]:
    """Return the distance to test images, that of real images, and the copies."""
    n = min(config.samples, len(unseen))
    rng = torch.Generator(seen.device).manual_seed(0)
    y = torch.cat([model.sample(len(z), rng=rng) for z in torch.empty(n).split(1000)])
    y, real, test = y.float(), seen[:n], unseen[:n]
    psi = partial(features, classifier(config.data, seen))
    found = {
        "frechet": frechet_distance(psi(y), psi(test)).item(),
        "floor": frechet_distance(psi(real), psi(test)).item(),
        "copies": copy_share(y, real, test),
    }
    return found | (parzen(y, seen, test) if config.parzen else {})


def classifier(data: str, like: Tensor) -> Classifier:
    """Return the trained classifier of a data set, where ``like`` is."""
    net = Classifier(SIDES[data])
    net.load_state_dict(runs.load(f"metrics/{JUDGES[data]}").weights())
    return net.to(like)


def parzen(y: Tensor, seen: Tensor, test: Tensor) -> dict[str, float]:
    """Return the Parzen scores of samples and of real images, in nats.

    The bandwidth is the best for 1000 training images that are put aside.
    """
    aside, real = seen[-1000:], seen[: len(y)]
    found = {}
    for name, centres in (("parzen", y), ("parzen_real", real)):
        widths = torch.logspace(-1, 0, 10).tolist()
        scores = [parzen_log_prob(aside, centres, h).mean().item() for h in widths]
        best = widths[scores.index(max(scores))]
        found[name] = parzen_log_prob(test, centres, best).mean().item()
        found[f"{name}_width"] = best
    return found


def load(config: Config, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return training and test images."""
    sources = {"digits": digits, "mnist": mnist, "fashion_mnist": fashion_mnist}
    splits: list[Images] = [sources[config.data](s) for s in ("train", "test")]
    seen, unseen = (images.x[: config.rows].to(device) for images in splits)
    return seen, unseen


def main(config: Config, run: Writer) -> None:
    """Train and judge one model for each seed."""
    torch.set_float32_matmul_precision("high")  # TF32, where there is such a thing
    law = ring(s=0.05).to(run.device) if config.data == "ring" else None
    images = None if law else load(config, run.device)
    for seed in config.seeds:
        torch.manual_seed(seed)
        model = build(config).to(run.device)
        source = law or cast(tuple[Tensor, Tensor], images)[0]
        seen, path = play(model, source, config, run, seed)
        if law is not None:
            found = judge_ring(seen, law, config.samples)
            columns = ([row[c] for row in path] for c in ("gap", "sliced"))
            found["correlation"] = correlation(*columns)
        else:
            found = judge_images(seen, *cast(tuple[Tensor, Tensor], images), config)
        for name, value in found.items():
            run.metric(seed, name, value)
        if config.ship and seed == config.seeds[0]:
            run.weights(seen.state_dict())
