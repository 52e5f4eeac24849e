"""Runs behind book/vae/importance.md: one model, other bounds, guesses and priors.

    pushforward train vae/importance/digits-flow    a minute, one processor core
    pushforward train vae/importance/flow-prior     minutes, one GPU

The data, the networks and the training are those of the chapter before.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn

from experiments.vae import gauss
from experiments.vae.gauss import DIGITS, learning, light, load, mean_bound, networks
from pushforward.distributions import Law, StandardNormal
from pushforward.flows.coupling import real_nvp
from pushforward.flows.planar import Planar
from pushforward.runs import Writer
from pushforward.train import Average
from pushforward.vae import (
    IWAE,
    VAE,
    BernoulliNet,
    Conditional,
    FlowNet,
    FullGaussianNet,
    GaussianNet,
    NoisyNet,
    importance_bound,
)


@dataclass(frozen=True)
class Config(gauss.Config):
    """What a run does; the defaults are those of vae/importance/flow-prior."""

    posterior: str = "diagonal"  # or full, coupling, planar
    maps: int = 0  # maps of a flow posterior
    context: int = 64  # numbers of the encoder that steer the couplings
    prior_maps: int = 8  # couplings of the prior; 0: the standard normal
    width: int = 256  # of the hidden layers of a coupling
    draws: int = 1  # K of the bound that is raised
    doubly: bool = False  # whether the encoder follows the doubly gradient
    seeds: tuple[int, ...] = (0, 1)

    def small(self) -> "Config":
        """Return the same run in seconds: everything happens, little is learned."""
        small = cast(Config, super().small())
        return replace(
            small,
            maps=min(self.maps, 3),
            context=min(self.context, 4),
            prior_maps=min(self.prior_maps, 2),
            width=8,
            draws=min(self.draws, 3),
        )


def like(config: gauss.Config, **changes: Any) -> Config:
    """Return a configuration of the chapter before, with what is new off."""
    old = {k: getattr(config, k) for k in gauss.Config.__dataclass_fields__}
    return replace(Config(**old, prior_maps=0), **changes)


SMALL = like(DIGITS, context=16, width=32, steps=2500, samples=1000, every=500)
BITS = like(
    gauss.RUNS["vae/gauss/mlp"], k=50, hidden=(200, 200), batch=250, steps=40_000,
    every=1000, seeds=(0, 1),
)  # fmt: skip
PLANAR = replace(BITS, k=40, hidden=(400,), batch=500, steps=25_000, seeds=(0,))
RUNS = {
    "vae/importance/flow-prior": Config(),
    "vae/importance/iwae": replace(BITS, draws=50, doubly=True),
    "vae/importance/iwae-plain": replace(BITS, draws=50),
    "vae/importance/planar-0": PLANAR,
    "vae/importance/planar-10": replace(PLANAR, posterior="planar", maps=10),
    "vae/importance/planar-40": replace(PLANAR, posterior="planar", maps=40),
    "vae/importance/digits-diagonal": replace(SMALL, ship=True),
    "vae/importance/digits-full": replace(SMALL, posterior="full"),
    "vae/importance/digits-flow": replace(
        SMALL, posterior="coupling", maps=4, ship=True
    ),
    "vae/importance/digits-prior": replace(SMALL, prior_maps=4, ship=True),
    "vae/importance/digits-iwae": replace(SMALL, draws=10),
    "vae/importance/digits-doubly": replace(SMALL, draws=10, doubly=True),
}


# The model


def outputs(config: Config) -> int:
    """Return how many numbers the encoder network gives for a datum."""
    k, m = config.k, config.maps
    extra = {
        "diagonal": 0,
        "full": k * (k - 1) // 2,
        "coupling": config.context,
        "planar": m * (2 * k + 1),
    }
    return 2 * k + extra[config.posterior]


def encoder(net: nn.Module, config: Config) -> Conditional:
    """Return the guess of a configuration, on top of its network."""
    k, width = config.k, config.width
    if config.posterior == "diagonal":
        return GaussianNet(net)
    if config.posterior == "full":
        return FullGaussianNet(net, k)
    if config.posterior == "planar":
        return FlowNet(net, Planar(k, config.maps), k)
    flow = real_nvp(k, config.maps, (width,), context=config.context)
    return FlowNet(net, flow.f, k)


def prior(config: Config) -> Law:
    """Return a standard normal, or a flow over one."""
    k, width = config.k, config.width
    if not config.prior_maps:
        return StandardNormal(k)
    return real_nvp(k, config.prior_maps, (width, width))


def widen(net: nn.Module, size: int) -> None:
    """Give a network that ends in a linear layer another number of outputs."""
    layers = cast(nn.Sequential, net)
    while not isinstance(layers[-1], nn.Linear):
        layers = cast(nn.Sequential, layers[-1])
    layers[-1] = nn.Linear(layers[-1].in_features, size)


def build(config: Config) -> VAE:
    """Return the untrained model of a configuration."""
    into, out = networks(config)
    if outputs(config) != 2 * config.k:
        widen(into, outputs(config))
    law = BernoulliNet(out) if config.data not in gauss.LEVELS else NoisyNet(out)
    return VAE(encoder(into, config), law, prior(config))


# The run


@torch.no_grad()
def value(vae: VAE, x: Tensor, draws: int, rng: Generator) -> float:
    """Return the mean over images of one draw of L_K, in nats."""
    parts = [
        importance_bound(vae.log_weights(part, draws, rng=rng))
        for part in x.split(max(1, 2000 // draws))
    ]
    return torch.cat(parts).mean().item()


def fit(vae: VAE, splits: list[Tensor], config: Config, run: Writer, seed: int) -> VAE:
    """Train on L_K; return the model that is judged."""
    x, valid, _ = splits
    rng = torch.Generator(run.device).manual_seed(seed)
    game = vae if config.draws == 1 else IWAE(vae, config.draws, doubly=config.doubly)
    ema = Average(game, config.average) if config.average else None
    judged = game if ema is None else ema.model
    seen = judged.vae if isinstance(judged, IWAE) else cast(VAE, judged)
    best, kept = -math.inf, seen.state_dict()
    options = {"ema": ema, "rng": rng, "progress": run.progress}
    for step in learning(cast(VAE, game), x, config, **options):
        if step.number % config.every == 0:
            judged.eval()
            bound = value(seen, valid, config.draws, rng)
            run.log(seed=seed, step=step.number, valid=bound, train=-step.losses[0])
            if bound > best or config.data == "digits":  # too few to choose by them
                best = bound
                kept = {k: v.clone() for k, v in seen.state_dict().items()}
    judged.eval()
    seen.load_state_dict(kept)
    return seen


@torch.no_grad()
def judge(vae: VAE, test: Tensor, config: Config) -> dict[str, float]:
    """Return what is reported of a trained model, in nats."""
    rng = torch.Generator(test.device).manual_seed(0)
    chosen = torch.randperm(len(test), generator=rng, device=test.device)
    some = test[chosen[: config.images]]
    log_prob = vae.log_prob_iw(
        some, samples=config.samples, chunk=config.chunk, rng=rng
    )
    mean = log_prob.mean().item()
    elbo = mean_bound(vae, some, rng, repeats=20)
    return {"log_prob": mean, "nll": -mean, "elbo": elbo, "gap": mean - elbo}


def main(config: Config, run: Writer) -> None:
    """Train and judge one model for each seed."""
    torch.set_float32_matmul_precision("high")  # TF32, where there is such a thing
    for seed in config.seeds:
        torch.manual_seed(seed)
        parts = load(config, torch.Generator().manual_seed(seed))
        splits = [part[: config.rows].to(run.device) for part in parts]
        vae = fit(build(config).to(run.device), splits, config, run, seed)
        for name, found in judge(vae, splits[2], config).items():
            run.metric(seed, name, found)
        if config.ship and seed == config.seeds[0]:
            run.weights(light(vae.state_dict()))
