"""code/experiments/flows/matching.py: every run in small, and what it measures."""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch
from torch import Generator

from experiments.flows import matching as experiment
from experiments.flows.matching import RUNS, build, judge_plane, likelihood, noise
from pushforward.data import Images
from pushforward.distributions import TwoMoons
from pushforward.runs import Writer


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripes in the place of the large data sets."""
    stripes = torch.zeros(80, 1, 28, 28, dtype=torch.float32)
    stripes[..., ::2] = 1.0
    for name in ("mnist", "fashion_mnist"):
        monkeypatch.setitem(
            experiment.IMAGES, name, lambda split: Images(stripes, None)
        )


@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_run_goes_through_in_small(name: str) -> None:
    config = RUNS[name].small()
    run = Writer(name, config, device="cpu", keep=False)
    experiment.main(config, run)
    found = run.run()
    assert all(math.isfinite(v[0]) for v in found.metrics.values())
    assert found.history["step"] == list(range(1, 4 * (1 + config.reflows) + 1))
    judged = {"cost", "gap_2"} if config.data == "moons" else {"bits", "floor"}
    assert judged <= set(found.metrics)
    assert (run.kept is not None) == config.ship


def test_the_same_seed_gives_the_same_run() -> None:
    config = RUNS["flows/matching/reflow"].small()
    runs = [Writer("flows/matching/x", config, device="cpu", keep=False) for _ in "ab"]
    for run in runs:
        experiment.main(config, run)
    assert runs[0].run().metrics == runs[1].run().metrics


def test_shipped_weights_stay_below_four_megabytes() -> None:
    for config in RUNS.values():
        state = experiment.light(build(config).state_dict())
        size = sum(w.numel() * w.element_size() for w in state.values())
        assert size < 3_980_000 or not config.ship


def test_the_noise_of_images_has_the_mean_and_deviation_one_half(
    rng: Generator,
) -> None:
    law = noise(RUNS["flows/matching/digits"])
    z = law.sample(2000, rng=rng)
    assert z.shape == (2000, 1, 8, 8)
    assert z.mean() == pytest.approx(0.5, abs=0.01)
    assert z.std() == pytest.approx(0.5, abs=0.01)
    exact = torch.distributions.Normal(0.5, 0.5).log_prob(z).sum((1, 2, 3))
    torch.testing.assert_close(law.log_prob(z), exact)


def test_bits_of_a_still_field_are_those_of_the_noise(rng: Generator) -> None:
    config = replace(RUNS["flows/matching/digits"].small(), probes=2)
    model = build(config)  # its last layer is zero
    held = torch.rand(30, 1, 8, 8, generator=rng)
    found = likelihood(model, held, config, 0)
    nats = torch.distributions.Normal(0.5, 0.5).log_prob(held).sum((1, 2, 3)).mean()
    assert found["log_prob"] == pytest.approx(float(nats), rel=1e-5)
    bits = (-float(nats) / 64 + math.log(17)) / math.log(2)
    assert found["bits"] == pytest.approx(bits, rel=1e-5)
    assert found["probe_se"] == pytest.approx(0.0, abs=1e-6)


def test_a_still_flow_is_straight_and_free(rng: Generator) -> None:
    config = replace(RUNS["flows/matching/independent"], euler=(1, 5))
    model = build(config)
    for p in model.v.parameters():
        torch.nn.init.zeros_(p)
    found = judge_plane(model, TwoMoons().sample(300, rng=rng), config, 0)
    assert found["cost"] == found["straightness"] == found["gap_1"] == 0.0
    assert found["energy_5"] == found["energy_flow"] > 0.1


def test_moons_are_learned() -> None:
    """In some hundred steps; at first the energy distance is above 0.3."""
    config = replace(
        RUNS["flows/matching/independent"], steps=300, samples=400, seeds=(0,)
    )
    run = Writer("flows/matching/x", config, device="cpu", keep=False)
    experiment.main(config, run)
    found = run.run().metrics
    assert found["energy_flow"][0] < 0.05
    assert found["gap_50"][0] < found["gap_5"][0] < found["gap_1"][0]


def test_a_configuration_survives_json() -> None:
    for config in RUNS.values():
        for value in dataclasses.asdict(config).values():
            assert isinstance(value, int | float | str | tuple)
