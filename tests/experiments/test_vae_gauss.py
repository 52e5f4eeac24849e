"""code/experiments/vae/gauss.py: every run in small, and the slides' draw."""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import Independent, Normal

from experiments.vae import gauss as experiment
from experiments.vae.gauss import RUNS, Printed, PrintedNet
from pushforward.data import Images
from pushforward.distributions import StandardNormal
from pushforward.runs import Writer
from pushforward.vae import VAE, draw, gaussian_kl


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripes in the place of the large data sets."""
    stripes = torch.zeros(60, 1, 28, 28, dtype=torch.float32)
    stripes[..., ::2] = 1.0
    for name in ("binarized_mnist", "mnist"):
        monkeypatch.setattr(experiment, name, lambda split: Images(stripes, None))


@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_run_goes_through_in_small(name: str) -> None:
    config = RUNS[name].small()
    run = Writer(name, config, device="cpu", keep=False)
    experiment.main(config, run)
    found = run.run()
    assert found.metrics["nll"][0] == -found.metrics["log_prob"][0]
    assert all(math.isfinite(v[0]) for v in found.metrics.values())
    assert found.history["step"] == [3, 6]
    assert (run.kept is not None) == config.ship


def test_the_same_seed_gives_the_same_run() -> None:
    config = RUNS["vae/gauss/digits-8"].small()
    runs = [Writer("vae/gauss/x", config, device="cpu", keep=False) for _ in "ab"]
    for run in runs:
        experiment.main(config, run)
    assert runs[0].run().metrics == runs[1].run().metrics


def test_digits_are_learned() -> None:
    """In 300 steps the bound on test digits passes that of a Gaussian fit."""
    config = replace(
        RUNS["vae/gauss/digits-8"], steps=300, every=300, samples=50, seeds=(0,)
    )
    run = Writer("vae/gauss/x", config, device="cpu", keep=False)
    experiment.main(config, run)
    found = run.run().metrics
    x, _, test = experiment.load(config, torch.Generator().manual_seed(0))
    fit = Normal(x.mean(), x.std()).log_prob(test).sum((1, 2, 3)).mean()
    assert found["elbo"][0] > fit + 5
    assert found["log_prob"][0] > found["elbo"][0]
    nats = -found["log_prob"][0] / 64 + math.log(17)
    assert found["bits"][0] == pytest.approx(nats / math.log(2), abs=1e-6)


def test_the_printed_draw_has_the_variance_of_the_variance(rng: Generator) -> None:
    """Erratum E3: deviation σ² where the law, and so the rate, says σ."""
    law = Independent(Printed(torch.zeros(2), torch.tensor([0.3, 0.5])), 1)
    z = draw(law, (50_000,), rng=rng)
    exact = torch.tensor([0.09, 0.25])
    assert ((z.std(0) - exact).abs() < 4 * exact / 1e5**0.5).all()


def test_the_printed_objective_is_no_bound(rng: Generator) -> None:
    """It passes log p(x) in the model z ~ N(0, 1), x | z ~ N(z, 1/4)."""

    def decoder(z: Tensor) -> Independent:
        return Independent(Normal(z, 0.5), 1)

    def claimed(x: Tensor) -> Independent:  # what it draws is the posterior
        return Independent(Normal(0.8 * x, 0.2**0.25 * torch.ones_like(x)), 1)

    n, x = 100_000, torch.tensor([[0.7]])
    printed = VAE(PrintedNet(claimed), decoder, StandardNormal(1))
    draws = printed.elbo(x.expand(n, 1), rng=rng)
    log_p = Normal(0.0, 1.25**0.5).log_prob(x[0, 0])
    std = torch.tensor(0.2**0.5)
    excess = gaussian_kl(torch.zeros(()), std) - gaussian_kl(
        torch.zeros(()), std.sqrt()
    )
    assert (draws.mean() - log_p - excess).abs() < 4 * draws.std() / n**0.5
    assert excess > 0.2


def test_a_configuration_survives_json() -> None:
    for config in RUNS.values():
        assert all(
            v is None or isinstance(v, int | float | str | tuple)
            for v in dataclasses.asdict(config).values()
        )
        assert not any(
            isinstance(v, float) and math.isinf(v)
            for v in dataclasses.asdict(config).values()
        )
