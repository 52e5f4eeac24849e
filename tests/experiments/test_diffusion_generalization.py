"""code/experiments/diffusion/generalization.py: every run in small, and its errors."""

import dataclasses
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Generator

from experiments.diffusion import generalization as experiment
from experiments.diffusion.generalization import (
    RUNS,
    Config,
    Halves,
    Pictures,
    build,
    errors,
    halves,
    linear_errors,
    repeated,
)
from pushforward.diffusion import BiasFree
from pushforward.runs import Writer

DIGITS = "diffusion/generalization/digits"


def made(name: str, config: Any) -> Writer:
    run = Writer(name, config, device="cpu", keep=False)
    experiment.main(config, run)
    return run


@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_run_goes_through_in_small(name: str) -> None:
    config = RUNS[name].small()
    run = made(name, config)
    found = run.run()
    assert all(math.isfinite(v[0]) for v in found.metrics.values())
    assert len(found.history["step"]) == 3
    if isinstance(config, Halves):
        assert {"agree_8", "copies_20", "seen_8_0.1", "copies_real"} <= {*found.metrics}
    else:
        assert {"slope_mse_disks", "linear_alpha3_0.12"} <= {*found.metrics}
    assert run.kept is not None


def test_the_same_seed_gives_the_same_run() -> None:
    config = RUNS[DIGITS].small()
    assert made("a/b", config).run().metrics == made("a/b", config).run().metrics


def test_the_two_sets_have_no_image_in_common() -> None:
    a, b = halves(Halves(), torch.device("cpu"))
    both = torch.cat([a, b])
    assert both.shape == (1796, 1, 8, 8)
    assert both.std() == pytest.approx(0.5, abs=1e-3)
    gap = torch.cdist(a.flatten(1).double(), b.flatten(1).double())
    assert gap.min() > 1e-3


def test_few_images_fill_a_batch_evenly() -> None:
    x = torch.arange(3.0)[:, None]
    assert repeated(x, 7).flatten().tolist() == [0, 1, 2] * 3


def test_errors_are_those_of_the_noise_where_nothing_is_done(rng: Generator) -> None:
    x = torch.zeros(600, 1, 8, 8)
    found = errors(lambda y, _: y, x, (0.1, 2.0), rng)
    assert found == pytest.approx([0.01, 4.0], rel=0.03)


def test_the_linear_error_of_white_images() -> None:
    x = torch.randn(4000, 1, 3, 3, generator=Generator().manual_seed(0))
    assert linear_errors(x, (0.5,)) == pytest.approx([0.25 / 1.25], rel=0.02)


def test_shipped_weights_stay_below_four_megabytes() -> None:
    for name, config in RUNS.items():
        if isinstance(config, Config) and config.ship:
            size = 2 * sum(p.numel() for p in build(config).parameters())
            limit = 1_000_000 if config.hardware == "cpu" else 3_900_000
            assert len(config.ship) * size < limit, name


def test_a_kind_of_images_has_its_lift(rng: Generator) -> None:
    config = replace(Config(), size=16)
    for kind in config.kinds:
        assert Pictures(kind, config).sample(3, rng=rng).shape == (3, 1, 16, 16)
    rough, smooth = (
        Pictures(1.0, replace(config, lift=lift)).sample(200, rng=rng)
        for lift in (0.0, 2.0)
    )
    bends = [x.diff(n=2, dim=3).square().mean() for x in (rough, smooth)]
    assert bends[1] < 0.7 * bends[0]


def test_the_kept_weights_are_a_network() -> None:
    config = RUNS["diffusion/generalization/c-alpha-small"].small()
    run = made("a/b", config)
    from safetensors.torch import load

    state = load(run.kept)
    net = BiasFree(width=config.width, levels=config.levels)
    own = {k[2:]: w for k, w in state.items() if k.startswith("0.")}
    net.load_state_dict(own)
    assert len(state) == 2 * len(own)


def test_a_configuration_survives_json() -> None:
    for config in RUNS.values():
        for value in dataclasses.asdict(config).values():
            assert isinstance(value, int | float | str | tuple)
