"""code/experiments/diffusion/likelihood.py: every run in small, and its bits."""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch
from torch import Generator

from experiments.diffusion import likelihood as experiment
from experiments.diffusion.likelihood import (
    RUNS,
    GreyScores,
    build,
    network,
    pixel_frequencies,
    pixel_law,
)
from pushforward.data import Images, dequantize, digits
from pushforward.diffusion import GreyDenoiser, SubVP, UniformTime
from pushforward.runs import Writer


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripes in the place of the large data set."""
    stripes = torch.zeros(12, 1, 28, 28, dtype=torch.float32)
    stripes[..., ::2] = 1.0
    monkeypatch.setitem(experiment.IMAGES, "mnist", lambda split: Images(stripes, None))


@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_run_goes_through_in_small(name: str) -> None:
    config = RUNS[name].small()
    run = Writer(name, config, device="cpu", keep=False)
    experiment.main(config, run)
    found = run.run()
    assert {"bits", "walk_bits", "train_bits", "ode_gap"} <= set(found.metrics)
    assert all(math.isfinite(v[0]) for v in found.metrics.values())
    assert found.history["step"] == [1, 2, 3, 4]
    assert (run.kept is not None) == config.ship


def test_the_same_seed_gives_the_same_run() -> None:
    config = RUNS["diffusion/likelihood/digits-uniform"].small()
    runs = [Writer("diffusion/likelihood/x", config, device="cpu", keep=False)
            for _ in "ab"]  # fmt: skip
    for run in runs:
        experiment.main(config, run)
    assert runs[0].run().metrics == runs[1].run().metrics


def test_frequencies_and_moments_are_those_of_the_training_digits(
    rng: Generator,
) -> None:
    x = digits("train").x
    share = (x.flatten(1) == 0.5).float().mean(0)
    found = pixel_frequencies().exp()
    torch.testing.assert_close(found.sum(1), torch.ones(64))
    torch.testing.assert_close(found[:, 8], share, atol=2e-3, rtol=0)
    y = torch.cat([dequantize(x, 17, rng=rng).flatten(1) for _ in range(5)])
    law = pixel_law()
    torch.testing.assert_close(law.mean(), y.mean(0), atol=2e-3, rtol=0)
    torch.testing.assert_close(law.cov(), torch.cov(y.T), atol=2e-3, rtol=0)


def independent(x: torch.Tensor) -> torch.Tensor:
    """Bits per dimension of digits whose pixels are independent."""
    index = (16 * x.flatten(1)).round().long()
    log_p = pixel_frequencies()[torch.arange(64), index].sum(1)
    return -log_p / (64 * math.log(2))


def test_a_still_network_has_the_bits_of_independent_pixels(rng: Generator) -> None:
    """Of the flow, and of the bound of the walk; both against exact counting."""
    config = replace(RUNS["diffusion/likelihood/digits"].small(), ode_steps=60)
    model = build(config)
    x = digits("test").x[:60]
    exact = independent(x)
    flow = torch.stack([model.bits(x, rng=rng) for _ in range(2)]).mean(0) - exact
    assert abs(flow.mean()) < 4 * flow.std() / 60**0.5 + 0.02
    walk = torch.stack([model.walk_bits(x, rng=rng) for _ in range(150)]).mean(0)
    gap = walk - exact
    assert abs(gap.mean()) < 4 * gap.std() / 60**0.5
    assert gap.std() / 60**0.5 < 0.05


def test_uniform_filling_counts_the_cells(rng: Generator) -> None:
    """log q of a point is d log L − log-determinant, for uniform noise."""
    model = build(RUNS["diffusion/likelihood/mnist-uniform"].small())
    x = experiment.IMAGES["mnist"]("test").x[:3]
    z, log_q = model.fill(x, rng)
    d, config = 784, RUNS["diffusion/likelihood/mnist-uniform"]
    exact = d * (math.log(256) + math.log(2 * config.std))
    torch.testing.assert_close(log_q, torch.full((3,), exact))
    y = z * 2 * config.std + config.mean
    assert torch.equal((256 * y).floor(), 255 * x)


def test_settings_reach_the_model() -> None:
    plain = build(RUNS["diffusion/likelihood/digits-sub-vp"].small()).scores
    assert isinstance(plain.sde, SubVP)
    assert isinstance(plain.times, UniformTime)
    assert (plain.weight(plain.sde, torch.rand(3)) == 2).all()
    assert plain.level == pytest.approx(0.1 / 16)
    assert isinstance(network(RUNS["diffusion/likelihood/digits"]), GreyDenoiser)
    images = build(RUNS["diffusion/likelihood/mnist"].small())
    assert images.scores.level == pytest.approx(0.03 / 256 / (2 * 0.3069))
    assert images.noise is not None
    assert images.noise.noise is not None


def test_the_learned_noise_is_trained_with_the_scores(rng: Generator) -> None:
    model = build(RUNS["diffusion/likelihood/mnist"].small())
    model.loss(experiment.IMAGES["mnist"]("test").x[:4], rng=rng).backward()
    grads = [p.grad for p in model.noise.noise.parameters()]
    assert any(g is not None and g.abs().sum() > 0 for g in grads)


def test_samples_are_grey_images(rng: Generator) -> None:
    for name in ("digits", "digits-uniform"):
        config = replace(RUNS[f"diffusion/likelihood/{name}"].small(), ode_steps=20)
        model: GreyScores = build(config)
        x = model.sample(5, rng=rng)
        assert x.shape == (5, 1, 8, 8)
        torch.testing.assert_close(16 * x, (16 * x).round())
        assert ((x >= 0) & (x <= 1)).all()


def test_digits_are_learned() -> None:
    """The bound falls below that of independent pixels, with the same noise."""
    config = replace(RUNS["diffusion/likelihood/digits"], steps=150, batch=128,
                     ode_steps=2, draws=1, walk_draws=2)  # fmt: skip
    still = experiment.look(build(config), digits("test").x)
    run = Writer("diffusion/likelihood/x", config, device="cpu", keep=False)
    experiment.main(config, run)
    assert run.run().history["test"][-1] < still - 0.05


def test_shipped_weights_stay_below_four_megabytes() -> None:
    for config in RUNS.values():
        state = experiment.light(build(config).state_dict())
        size = sum(w.numel() * w.element_size() for w in state.values())
        assert size < 3_980_000 or not config.ship


def test_a_configuration_survives_json() -> None:
    for config in RUNS.values():
        for value in dataclasses.asdict(config).values():
            assert isinstance(value, int | float | str | tuple)
