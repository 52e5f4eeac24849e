"""Classifiers whose features measure samples, and how small a distance can be.

The floor is the Fréchet distance between two disjoint samples of real images: no
model can be told from the data below it (book/back/metrics.md).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from pushforward.data import Images, digits, fashion_mnist, mnist, stream
from pushforward.metrics import (
    Classifier,
    covariance,
    features,
    frechet_bias,
    frechet_distance,
)
from pushforward.model import Model
from pushforward.nn import noise_like, randn
from pushforward.runs import Writer
from pushforward.train import cosine, train

DATA: dict[str, Callable[[str], Images]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
}


@dataclass(frozen=True)
class Config:
    """What the classifier sees, and at which sizes the floor is measured.

    Attributes:
        data: One of :data:`DATA`.
        steps: Of training.
        batch: Images in a step.
        lr: Learning rate at the start; it falls along a cosine.
        sizes: Of the samples that are compared; twice the largest must fit in the
            training images.
        test_size: Of the samples of training and of test images.
        repeats: How many pairs of samples make a mean.
        seeds: Of the weights, the batches and the samples.
        hardware: A few minutes on one thread of a CPU.
    """

    data: str = "mnist"
    steps: int = 2000
    batch: int = 128
    lr: float = 2e-3
    sizes: tuple[int, ...] = (500, 1000, 2000, 5000, 10_000)
    test_size: int = 10_000
    repeats: int = 20
    seeds: tuple[int, ...] = (0, 1, 2)
    hardware: str = "cpu"

    @classmethod
    def small(cls) -> "Config":
        """Return a budget of seconds."""
        return replace(
            RUNS["metrics/digits"], steps=60, sizes=(100, 200), repeats=2, seeds=(0,)
        )


RUNS = {
    "metrics/digits": Config(
        data="digits", steps=1000, sizes=(100, 200, 400, 700), test_size=360, repeats=40
    ),
    "metrics/mnist": Config(),
    "metrics/fashion": Config(data="fashion_mnist"),
}


class Labelled(Model):
    """The game of a classifier: row numbers in, cross-entropy out."""

    def __init__(self, net: Classifier, images: Images) -> None:
        super().__init__()
        if images.y is None:
            raise ValueError("images must have labels")
        self.net, self.x, self.y = net, images.x, images.y

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Raise: a classifier draws nothing."""
        raise TypeError("a classifier draws nothing")

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return the cross-entropy on the images of numbers x (n, 1), in nats."""
        rows = x[:, 0]
        return cross_entropy(self.net(self.x[rows]), self.y[rows])


def main(config: Config, run: Writer) -> None:
    """Train a classifier for each seed and measure with it; ship the first."""
    source = DATA[config.data]
    seen, unseen = (on(source(split), run.device) for split in ("train", "test"))
    for seed in config.seeds:
        net = fit(config, seen, seed, run)
        rng = torch.Generator().manual_seed(seed)
        right = net(unseen.x).argmax(1) == unseen.y
        values = {
            "accuracy": right.double().mean().item(),
            **floors(config, features(net, seen.x), rng=rng),
            **landmarks(config, net, seen.x, unseen.x, rng=rng),
        }
        for name, value in values.items():
            run.metric(seed, name, value)
        if seed == config.seeds[0]:
            run.weights(net.state_dict())


def on(images: Images, device: torch.device) -> Images:
    """Return the images on a device."""
    return Images(
        images.x.to(device), None if images.y is None else images.y.to(device)
    )


def fit(config: Config, seen: Images, seed: int, run: Writer) -> Classifier:
    """Return a trained classifier, its features in per cent of their variance."""
    torch.manual_seed(seed)
    model = Labelled(Classifier(seen.x.shape[-1]).to(seen.x), seen)
    rng = torch.Generator().manual_seed(seed)
    rows = stream(torch.arange(len(seen.x))[:, None], config.batch, rng=rng)
    options = {"lr": config.lr, "schedule": cosine(config.steps), **run.training(seed)}
    for step in train(model, rows, steps=config.steps, **options):
        if step.number % 100 == 0:
            run.log(seed=seed, step=step.number, loss=step.losses[0])
    net = model.net.requires_grad_(False)
    net.scale *= variance(features(net, seen.x)) ** 0.5 / 10
    return net


def variance(phi: Tensor) -> float:
    """Return the total variance of features (n, d)."""
    return phi.double().var(0).sum().item()


def floors(config: Config, phi: Tensor, *, rng: Generator) -> dict[str, float]:
    """Return the distances of disjoint samples of the training images."""
    values = {"bias_constant": frechet_bias(phi).item()}
    for n in config.sizes:
        orders = (
            torch.randperm(len(phi), generator=rng) for _ in range(config.repeats)
        )
        pairs = ((phi[order[:n]], phi[order[n : 2 * n]]) for order in orders)
        drawn = torch.stack([frechet_distance(x, y) for x, y in pairs])
        values[f"floor_{n}"] = drawn.mean().item()
        values[f"floor_sd_{n}"] = drawn.std().item()
    means = [values[f"floor_{n}"] for n in config.sizes]
    return values | {"slope": slope(config.sizes, means)}


def slope(sizes: tuple[int, ...], means: list[float]) -> float:
    """Return the least-squares slope of log mean over log size."""
    t, y = torch.tensor([sizes, means], dtype=torch.float64).log()
    t = t - t.mean()
    return (t @ y / t.square().sum()).item()


def landmarks(
    config: Config, net: Classifier, seen: Tensor, unseen: Tensor, *, rng: Generator
) -> dict[str, float]:
    """Return distances to the test images that say what a number means."""
    n = config.test_size
    order = torch.randperm(len(seen), generator=rng).to(seen.device)
    real = seen[order[:n]]
    candidates = {
        "train": real,
        "noise_0.05": (real + 0.05 * noise_like(real, rng)).clamp(0, 1),
        "noise_0.2": (real + 0.2 * noise_like(real, rng)).clamp(0, 1),
        "gaussian": gaussian_images(seen, n, rng=rng),
    }
    test = features(net, unseen[:n])
    return {
        name: frechet_distance(features(net, x), test).item()
        for name, x in candidates.items()
    }


def gaussian_images(x: Tensor, n: int, *, rng: Generator) -> Tensor:
    """Draw n images from the Gaussian with the moments of x, cut to [0, 1]."""
    flat = x.flatten(1).double()
    lam, axes = torch.linalg.eigh(covariance(flat))
    z = randn((n, len(lam)), flat, rng=rng) * lam.clamp(min=0).sqrt()
    return (flat.mean(0) + z @ axes.T).clamp(0, 1).to(x).reshape(n, *x.shape[1:])
