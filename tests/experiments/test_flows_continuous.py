"""code/experiments/flows/continuous.py: every run in small, and what it reports."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Generator

from experiments.flows import continuous as experiment
from experiments.flows.continuous import RUNS, TOYS
from pushforward.flows import FixedSteps, flow_log_prob
from pushforward.objectives import bits_per_dim
from pushforward.runs import Writer


@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_run_goes_through_in_small(name: str) -> None:
    config = RUNS[name].small()
    run = Writer(name, config, device="cpu", keep=False)
    experiment.main(config, run)
    found = run.run()
    assert all(math.isfinite(v[0]) for v in found.metrics.values())
    assert found.history["step"] == [1, 2, 4]
    assert run.kept is not None


def test_the_same_seed_gives_the_same_run() -> None:
    config = RUNS["flows/continuous/moons"].small()
    runs = [
        Writer("flows/continuous/x", config, device="cpu", keep=False) for _ in "ab"
    ]
    for run in runs:
        experiment.main(config, run)
    assert runs[0].run().metrics == runs[1].run().metrics


def test_divergence_and_mass_are_those_of_the_untrained_flow() -> None:
    """A field of zeros leaves N(0, I): its divergence is known by quadrature."""
    config = replace(RUNS["flows/continuous/moons"].small(), points=5_000, grid=60)
    model, law = experiment.build(config), TOYS["moons"]()
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    rng = Generator().manual_seed(0)
    x = law.sample(config.points, rng=rng)
    found = experiment.judge(model, law, x, config, rng)
    side = torch.linspace(-2.5, 2.5, 120)
    grid = torch.cartesian_prod(side, side)
    log_p = law.log_prob(grid)
    exact = (log_p.exp() * (log_p - model.base.log_prob(grid))).sum() * (5 / 119) ** 2
    assert found["kl"] == pytest.approx(exact.item(), abs=4 * found["kl_se"])
    assert found["mass"] == pytest.approx(1.0, abs=2e-4)  # N(0, I) has a tail
    assert (found["nfe"], found["energy"], found["coarse"]) == (7.0, 0.0, 0.0)


def test_bits_are_those_of_the_digits_in_their_unit() -> None:
    """The scale of the data enters: a density in y = (x − c)/s is s⁻⁶⁴ that in x."""
    config = RUNS["flows/continuous/digits"].small()
    model, rng = experiment.build(config), Generator().manual_seed(0)
    run = Writer("flows/continuous/x", config, device="cpu", keep=False)
    law, y = experiment.load(config, run, rng)
    found = experiment.judge(model, law, y, config, Generator().manual_seed(5))
    exact = flow_log_prob(model.v, y, model.base, solver=FixedSteps(10)).detach()
    x = experiment.CENTRE + experiment.SCALE * y
    assert ((x >= 0) & (x < 1)).all()
    log_x = exact - 64 * math.log(experiment.SCALE)
    bits = bits_per_dim(-log_x, 64, 17).mean().item()
    assert found["bits"] == pytest.approx(bits, abs=0.02)  # Hutchinson's noise
