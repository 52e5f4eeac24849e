"""code/experiments/diffusion/denoising.py: every run in small, and what it measures."""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch
from torch import Generator

from experiments.diffusion import denoising as experiment
from experiments.diffusion.denoising import RUNS, build, judge_levels
from pushforward.data import Images, digits
from pushforward.diffusion import Units, heun
from pushforward.metrics import Classifier
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
    assert found.history["step"] == [1, 2, 3, 4]
    judged = {"floor", "heun_2", "euler_2", "test_0.5", "train_20", "copy_share"}
    assert judged <= set(found.metrics)
    assert (run.kept is not None) == config.ship


def test_the_same_seed_gives_the_same_run() -> None:
    config = RUNS["diffusion/denoising/digits-plain"].small()
    runs = [Writer("diffusion/x", config, device="cpu", keep=False) for _ in "ab"]
    for run in runs:
        experiment.main(config, run)
    assert runs[0].run().metrics == runs[1].run().metrics


def test_the_three_trainings_differ_in_form_and_loss_alone() -> None:
    for data in ("digits", "mnist"):
        base = dataclasses.asdict(RUNS[f"diffusion/denoising/{data}"])
        for name in (f"{data}-plain", f"{data}-form"):
            if f"diffusion/denoising/{name}" in RUNS:
                other = dataclasses.asdict(RUNS[f"diffusion/denoising/{name}"])
                changed = {k for k in base if base[k] != other[k]}
                assert changed <= {"form", "noise", "weight", "ship"}


def test_shipped_weights_stay_below_their_limits() -> None:
    for name, config in RUNS.items():
        state = experiment.light(build(config).state_dict())
        size = sum(w.numel() * w.element_size() for w in state.values())
        assert size < (1e6 if "digits" in name else 3.98e6) or not config.ship


def test_the_constants_of_the_digits_are_those_of_the_data() -> None:
    config = RUNS["diffusion/denoising/digits"]
    units = Units.of(digits("train").x, 0.5)
    assert units.shift == pytest.approx(config.mean, abs=1e-4)
    assert units.scale == pytest.approx(config.std / 0.5, abs=2e-4)


def test_an_untrained_network_leaves_what_the_best_multiple_leaves(
    rng: Generator,
) -> None:
    """F = 0: the errors are one at each level, on data of the right deviation."""
    config = replace(RUNS["diffusion/denoising/digits"], repeats=5)
    x = config.mean + config.std * torch.randn(400, 1, 8, 8, generator=rng)
    found = judge_levels(build(config), x, x, config, 0)
    assert len(found) == 2 * len(config.levels)
    assert all(value == pytest.approx(1, abs=0.03) for value in found.values())


def test_draws_are_images_and_a_seed_has_its_noise() -> None:
    torch.manual_seed(0)
    model = build(RUNS["diffusion/denoising/digits"].small())
    a, b = (experiment.draws(model, 5, k, heun, seed=3) for k in (2, 4))
    assert a.shape == (5, 1, 8, 8)
    assert 0 <= a.min() < a.max() <= 1
    again = experiment.draws(model, 5, 2, heun, seed=3)
    assert torch.equal(a, again)
    assert not torch.equal(a, b)


def test_digits_are_learned() -> None:
    """In a few hundred steps the denoiser halves what the best multiple leaves."""
    config = replace(
        RUNS["diffusion/denoising/digits"],
        steps=300, average=0.98, samples=60, euler=(), heun=(5,), repeats=1, seeds=(0,),
    )  # fmt: skip
    run = Writer("diffusion/x", config, device="cpu", keep=False)
    experiment.main(config, run)
    found = run.run().metrics
    assert found["test_0.5"][0] < 0.6
    assert found["test_20"][0] < 0.95
    assert found["test_0.01"][0] == pytest.approx(1, abs=0.1)


def test_the_judge_is_the_classifier_of_the_data() -> None:
    for data in experiment.IMAGES:
        name = f"metrics/{experiment.JUDGES[data]}"
        side = 8 if data == "digits" else 28
        Classifier(side).load_state_dict(experiment.runs.load(name).weights())


def test_a_configuration_survives_json() -> None:
    for config in RUNS.values():
        for value in dataclasses.asdict(config).values():
            assert isinstance(value, int | float | str | tuple)
