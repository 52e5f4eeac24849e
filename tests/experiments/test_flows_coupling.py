"""code/experiments/flows/coupling.py: every run in small, and its yardsticks."""

import math

import pytest
import torch

from experiments.flows import coupling as experiment
from experiments.flows.coupling import RUNS, build, standard_moons
from pushforward.data import Images
from pushforward.flows import Dequantized
from pushforward.runs import Writer


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripes in the place of the large data set."""
    stripes = torch.zeros(60, 1, 28, 28, dtype=torch.float32)
    stripes[..., ::2] = 1.0
    monkeypatch.setattr(experiment, "mnist", lambda split: Images(stripes, None))


@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_run_goes_through_in_small(name: str) -> None:
    config = RUNS[name].small()
    run = Writer(name, config, device="cpu", keep=False)
    experiment.main(config, run)
    found = run.run()
    assert all(math.isfinite(v[0]) for v in found.metrics.values())
    assert found.metrics["inverse"][0] < 1e-4
    assert found.history["step"] == [2, 4]
    assert (run.kept is not None) == config.ship


def test_the_same_seed_gives_the_same_run() -> None:
    config = RUNS["flows/coupling/digits"].small()
    runs = [Writer("flows/coupling/x", config, device="cpu", keep=False) for _ in "ab"]
    for run in runs:
        experiment.main(config, run)
    assert runs[0].run().metrics == runs[1].run().metrics


def test_moons_are_standardised_and_keep_their_mass() -> None:
    law = standard_moons()
    x = law.sample(20_000, rng=torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(0), torch.zeros(2), rtol=0, atol=0.04)
    torch.testing.assert_close(x.std(0), torch.ones(2), rtol=0, atol=0.02)
    side = torch.linspace(-3, 3, 201)
    logs = [law.log_prob(p) for p in torch.cartesian_prod(side, side).split(4000)]
    mass = torch.cat(logs).exp().sum() * (side[1] - side[0]) ** 2
    assert mass.item() == pytest.approx(1.0, abs=1e-3)


def test_untrained_images_cost_more_than_uniform_ones() -> None:
    """At the start both noises are nearly uniform, so the bits agree."""
    x = torch.full((64, 1, 8, 8), 0.5)
    torch.manual_seed(0)
    bits = {}
    for name in ("digits", "digits-uniform"):
        model = build(RUNS[f"flows/coupling/{name}"])
        assert isinstance(model, Dequantized)
        with torch.no_grad():
            bits[name] = model.bits_per_dim(x, samples=4).mean().item()
    assert bits["digits"] == pytest.approx(bits["digits-uniform"], abs=0.05)
