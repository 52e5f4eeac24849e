"""code/experiments/flows/spline.py: every run in small, and its yardsticks."""

import math
from dataclasses import replace

import pytest
import torch

from experiments.flows import spline as experiment
from experiments.flows.spline import RUNS, judge, target
from pushforward.runs import Writer


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
    config = RUNS["flows/spline/moons-2"].small()
    runs = [Writer("flows/spline/x", config, device="cpu", keep=False) for _ in "ab"]
    for run in runs:
        experiment.main(config, run)
    first, second = (run.run().metrics for run in runs)
    first.pop("seconds"), second.pop("seconds")
    assert first == second


@pytest.mark.parametrize("name", ["checkerboard", "moons"])
def test_the_divergence_is_that_of_the_entropy(name: str) -> None:
    """KL = NLL − entropy; a flow that is the identity knows its NLL in closed form."""
    config = replace(RUNS[f"flows/spline/{name}-4"], layers=1)
    law = target(config)
    x = law.sample(4000, rng=torch.Generator().manual_seed(0))
    found = judge(experiment.build(config), law, x, 100)
    exact = x.square().sum(1).mean().item() / 2 + math.log(2 * math.pi)
    assert found["nll"] == pytest.approx(exact, rel=1e-5)
    if name == "checkerboard":
        assert found["kl"] == pytest.approx(exact - math.log(8), rel=1e-4)
    assert found["mass"] == pytest.approx(1.0, abs=1e-3)
