"""code/experiments/flows/planar.py: every run in small."""

import math

import pytest
from safetensors.torch import load

from experiments.flows import planar as experiment
from experiments.flows.planar import RUNS, build
from pushforward.flows import Flow
from pushforward.runs import Writer


@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_run_goes_through_in_small(name: str) -> None:
    config = RUNS[name].small()
    run = Writer(name, config, device="cpu", keep=False)
    experiment.main(config, run)
    found = run.run()
    assert set(found.metrics) == {
        f"{what}_{energy}_{depth}"
        for what in ("kl", "ess") for energy in ("U1", "U2") for depth in (0, 2)
    }  # fmt: skip
    assert all(math.isfinite(v[0]) and v[0] > 0 for v in found.metrics.values())


def test_the_shipped_weights_are_those_of_the_built_flows() -> None:
    config = RUNS["flows/planar/energies"].small()
    run = Writer("flows/planar/x", config, device="cpu", keep=False)
    experiment.main(config, run)
    flows = build(config)
    assert run.kept is not None
    flows.load_state_dict(load(run.kept))
    flow = flows["U2"]
    assert isinstance(flow, Flow)
    assert flow.sample(3).shape == (3, 2)


def test_the_same_seed_gives_the_same_run() -> None:
    config = RUNS["flows/planar/energies"].small()
    runs = [Writer("flows/planar/x", config, device="cpu", keep=False) for _ in "ab"]
    for run in runs:
        experiment.main(config, run)
    assert runs[0].run().metrics == runs[1].run().metrics
