"""code/experiments/vae/estimation.py: every run in small."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Generator

from experiments.vae import estimation as experiment
from experiments.vae.estimation import RUNS, load, machine
from pushforward.data import Images
from pushforward.runs import Writer
from pushforward.vae import NoisyNet, VampPrior


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripes in the place of the large data set."""
    stripes = torch.zeros(60, 1, 28, 28, dtype=torch.float32)
    stripes[..., ::2] = 1.0
    monkeypatch.setattr(experiment, "binarized_mnist", lambda s: Images(stripes, None))


@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_run_goes_through_in_small(name: str) -> None:
    config = RUNS[name].small()
    run = Writer(name, config, device="cpu", keep=False)
    experiment.main(config, run)
    found = run.run()
    machines = len(config.components) * len(config.sigmas)
    assert len([m for m in found.metrics if m.startswith("nll_")]) == machines
    assert all(math.isfinite(v[0]) for v in found.metrics.values())


def test_the_same_seed_gives_the_same_run() -> None:
    config = RUNS["vae/estimation/digits-prior"].small()
    runs = [Writer("vae/estimation/x", config, device="cpu", keep=False) for _ in "ab"]
    for run in runs:
        experiment.main(config, run)
    assert runs[0].run().metrics == runs[1].run().metrics


def test_a_given_noise_stays_and_a_learned_one_moves() -> None:
    config = replace(RUNS["vae/estimation/digits-noise"].small(), sigmas=(0.0, 0.2))
    run = Writer("vae/estimation/x", config, device="cpu", keep=False)
    experiment.main(config, run)
    found = run.run().metrics
    assert found["sigma_0_0.2"][0] == pytest.approx(0.2, abs=1e-6)
    assert abs(found["sigma_0_0"][0] - 0.25) > 1e-5


def test_machines_have_the_prior_that_was_asked_for() -> None:
    config = RUNS["vae/estimation/digits-prior"]
    x, test = load(config, Generator().manual_seed(0))
    assert x.shape == (1437, 64)
    assert test.shape == (360, 64)
    vae = machine(config, x, 10, 0.0)
    assert isinstance(vae.prior, VampPrior)
    assert vae.prior.inputs.shape == (10, 64)
    assert isinstance(vae.decoder, NoisyNet)
