"""Runs behind book/vae/estimation.md: learned priors and learned noise.

    pushforward train vae/estimation/digits-prior     a minute, one processor core
    pushforward train vae/estimation/digits-noise     a minute, one processor core
    pushforward train vae/estimation/vamp-1000        minutes, one GPU

A run trains one machine for each number of pseudo-data (0: a standard normal prior)
and each noise level (0: learned), on the first rows of the training images.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Generator, Tensor

from pushforward.data import binarized_mnist, dequantize, digits, stream
from pushforward.distributions import Law, StandardNormal
from pushforward.nn import MLP
from pushforward.runs import Writer
from pushforward.train import cosine, train
from pushforward.vae import (
    VAE,
    BernoulliNet,
    Conditional,
    GaussianNet,
    NoisyNet,
    VampPrior,
)


@dataclass(frozen=True)
class Config:
    """What a run does; the defaults are those of vae/estimation/vamp-60000."""

    data: str = "binarized-mnist"  # or digits: grey levels, Gaussian decoder
    rows: int = 60_000  # how many training images are used
    k: int = 40  # latents
    hidden: tuple[int, ...] = (500, 300)
    components: tuple[int, ...] = (0, 1, 10, 100, 500)  # pseudo-data; 0: N(0, I)
    sigmas: tuple[float, ...] = (0.0,)  # noise levels of the decoder; 0: learned
    steps: int = 15_000
    batch: int = 256
    lr: float = 1e-3
    samples: int = 1000  # K of the importance-weighted estimate
    images: int = 2000  # how many test images it is made on
    seeds: tuple[int, ...] = (0,)
    hardware: str = "gpu"

    def small(self) -> "Config":
        """Return the same run in seconds: everything happens, little is learned."""
        return replace(
            self, rows=40, hidden=(8,), components=(*self.components[:1], 3),
            sigmas=self.sigmas[:2], steps=4, batch=8, samples=5, images=10,
            seeds=(0,), hardware="cpu",
        )  # fmt: skip


DIGITS = Config(
    data="digits", rows=1437, k=8, hidden=(200,), components=(0, 10, 100), steps=3000,
    batch=100, lr=2e-3, samples=500, images=360, seeds=(0, 1), hardware="cpu",
)  # fmt: skip
RUNS = {
    "vae/estimation/vamp-1000": Config(rows=1000),
    "vae/estimation/vamp-10000": Config(rows=10_000),
    "vae/estimation/vamp-60000": Config(),
    "vae/estimation/digits-prior": DIGITS,
    "vae/estimation/digits-noise": replace(
        DIGITS, components=(0,), sigmas=(0.0, 0.05, 0.2, 0.4)
    ),
}


def load(config: Config, rng: Generator) -> tuple[Tensor, Tensor]:
    """Return flat images for training, and test images with their noise added."""
    if config.data == "binarized-mnist":
        parts = [binarized_mnist(s).x for s in ("train", "valid")]
        train, test = torch.cat(parts), binarized_mnist("test").x
    else:
        train = digits("train").x
        test = dequantize(digits("test").x, 17, rng=rng)
    return train[: config.rows].flatten(1), test[: config.images].flatten(1)


def machine(config: Config, x: Tensor, components: int, sigma: float) -> VAE:
    """Return an untrained VAE whose pseudo-data start at the first images x."""
    d, k, h = x.shape[1], config.k, config.hidden
    encoder = GaussianNet(MLP(d, *h, 2 * k))
    net = MLP(k, *reversed(h), d)
    decoder: Conditional = BernoulliNet(net)
    if config.data == "digits":
        noisy = NoisyNet(net, sigma=sigma or 0.25, floor=1e-3)
        noisy.rho.requires_grad_(not sigma)
        decoder = noisy
    start = x[:components] + 0.01 * torch.randn(min(components, len(x)), d).to(x)
    prior: Law = VampPrior(encoder, start) if components else StandardNormal(k)
    return VAE(encoder, decoder, prior)


def batches(config: Config, x: Tensor, rng: Generator) -> Iterator[Tensor]:
    """Return batches, grey levels with fresh noise each time."""
    rows = stream(x, min(config.batch, len(x)), rng=rng)
    fill = partial(dequantize, levels=17, rng=rng)
    return rows.map(fill) if config.data == "digits" else rows


def one(config: Config, components: int, sigma: float, seed: int, run: Writer) -> None:
    """Train one machine and record how it does on training and on test images."""
    torch.manual_seed(seed)  # the weights
    rng = Generator(run.device).manual_seed(seed)
    x, test = (part.to(run.device) for part in load(config, Generator().manual_seed(0)))
    vae = machine(config, x, components, sigma).to(run.device)
    loop = train(vae, batches(config, x, rng), steps=config.steps, lr=config.lr,
                 schedule=cosine(config.steps), rng=rng)  # fmt: skip
    tag = f"{components}_{sigma:g}"
    for step in loop:
        if step.number % max(config.steps // 20, 1) == 0:
            run.log(seed=seed, step=step.number, **{f"loss_{tag}": step.losses[0]})
    vae.eval()
    seen = next(batches(replace(config, batch=config.images), x, rng))
    with torch.no_grad():
        run.metric(seed, f"train_{tag}", -vae.elbo(seen, rng=rng).mean())
        run.metric(seed, f"test_{tag}", -vae.elbo(test, rng=rng).mean())
    log_p = vae.log_prob_iw(test, samples=config.samples, rng=rng)
    run.metric(seed, f"nll_{tag}", -log_p.mean())
    if isinstance(vae.decoder, NoisyNet):
        run.metric(seed, f"sigma_{tag}", vae.decoder.sigma.detach())


def main(config: Config, run: Writer) -> None:
    """Train every machine of the run."""
    for seed in config.seeds:
        for components in config.components:
            for sigma in config.sigmas:
                one(config, components, sigma, seed, run)
