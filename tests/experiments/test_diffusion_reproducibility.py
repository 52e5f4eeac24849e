"""code/experiments/diffusion/reproducibility.py: every run in small, and its scores."""

import dataclasses
import math

import pytest
import torch
from torch import Generator, Tensor

from experiments.diffusion import reproducibility as experiment
from experiments.diffusion.reproducibility import NETS, RUNS, decode, judge, network
from pushforward.data import Images
from pushforward.diffusion import empirical_denoiser
from pushforward.runs import Writer


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise in the place of the large data sets."""
    x = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    for name in ("mnist", "fashion_mnist"):
        monkeypatch.setitem(experiment.IMAGES, name, lambda split: Images(x, None))


@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_run_goes_through_in_small(name: str) -> None:
    config = RUNS[name].small()
    run = Writer(name, config, device="cpu", keep=False)
    experiment.main(config, run)
    found = run.run()
    assert all(math.isfinite(v[0]) for v in found.metrics.values())
    assert found.history["step"] == [1, 2, 3, 4]
    columns = {f"{which}_{n}" for which in NETS for n in config.sizes}
    assert columns <= set(found.history)
    assert {"rp_4", "rp_empirical_10", "generalization_real"} <= set(found.metrics)
    assert (run.kept is not None) == bool(config.ship)


def test_the_same_seed_gives_the_same_run() -> None:
    config = RUNS["diffusion/reproducibility/digits"].small()
    runs = [Writer("diffusion/x/y", config, device="cpu", keep=False) for _ in "ab"]
    for run in runs:
        experiment.main(config, run)
    assert runs[0].run().metrics == runs[1].run().metrics


def test_shipped_weights_stay_below_four_megabytes() -> None:
    for config in RUNS.values():
        sizes = [sum(w.numel() for w in network(config, which).state_dict().values())
                 for which in NETS]  # fmt: skip
        assert 2 * sum(sizes) * len(config.ship) < 3_950_000


def test_the_two_networks_differ_in_shape() -> None:
    for config in RUNS.values():
        first, second = (network(config, which).state_dict() for which in NETS)
        assert [w.shape for w in first.values()] != [w.shape for w in second.values()]


def test_images_are_scaled_to_mean_zero_and_deviation_one_half() -> None:
    config = RUNS["diffusion/reproducibility/digits"]
    x = experiment.scaled(config, "train", torch.device("cpu"))
    assert x.shape == (1437, 1, 8, 8)
    assert x.mean() == pytest.approx(0.0, abs=1e-5)
    assert x.std() == pytest.approx(0.5, rel=1e-5)
    test = experiment.scaled(config, "test", torch.device("cpu"))
    assert len(test) == 360
    assert 0 < test.mean().abs() < 0.05  # by the constants of the training set


def test_scores_of_known_draws(rng: Generator) -> None:
    """Three copyists and a stranger: what agrees, what copies, by construction."""
    config = RUNS["diffusion/reproducibility/digits"]
    whole = experiment.scaled(config, "train", torch.device("cpu"))
    x = whole[:8]
    z = torch.randn(16, 1, 8, 8, generator=rng, dtype=torch.float32)
    copies = decode(empirical_denoiser(x), z, config)
    away = torch.cat([copies[:4], -copies[4:]])
    drawn: dict[str, Tensor] = {"first": copies, "second": away, "empirical": copies}
    found = judge(drawn, x, config)
    assert found["rp"] == found["rp_empirical_second"] == 0.25
    assert found["rp_empirical"] == 1.0
    assert found["nearest_empirical"] > 0.9999
    assert found["generalization"] == 0.0
    assert found["generalization_second"] == 0.75


def test_a_configuration_survives_json() -> None:
    for config in RUNS.values():
        for value in dataclasses.asdict(config).values():
            assert isinstance(value, int | float | str | tuple)
