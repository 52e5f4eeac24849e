"""code/experiments/gans/stylegan.py: every run in small, and what it measures."""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from experiments.gans import stylegan as experiment
from experiments.gans.stylegan import RUNS, build, deviations, distance, speeds
from pushforward.data import Images
from pushforward.metrics import frechet_distance
from pushforward.runs import Writer


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noisy stripes in the place of the large data sets."""
    rng = Generator().manual_seed(0)
    stripes = 0.5 * torch.rand(60, 1, 28, 28, generator=rng, dtype=torch.float32)
    stripes[..., ::2] += 0.5
    for name in ("mnist", "fashion_mnist"):
        monkeypatch.setitem(experiment.DATA, name, lambda split: Images(stripes, None))


@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_run_goes_through_in_small(name: str) -> None:
    config = RUNS[name].small()
    run = Writer(name, config, device="cpu", keep=False)
    experiment.main(config, run)
    found = run.run()
    assert all(math.isfinite(v[0]) for v in found.metrics.values())
    assert found.history["step"] == [2, 4]
    assert (run.kept is not None) == config.ship
    if config.paired:
        ratio = found.metrics["whole_ppl"][0] / found.metrics["ppl"][0]
        assert found.metrics["ppl_ratio"][0] == pytest.approx(ratio)


def test_the_same_seed_gives_the_same_run() -> None:
    config = RUNS["gans/stylegan/digits"].small()
    runs = [Writer("gans/stylegan/x", config, device="cpu", keep=False) for _ in "ab"]
    for run in runs:
        experiment.main(config, run)
    assert runs[0].run().metrics == runs[1].run().metrics


def test_parts_are_left_out_one_at_a_time() -> None:
    whole = build(RUNS["gans/stylegan/digits"])
    layers = whole.generator.synthesis.layers
    assert whole.penalty is not None
    assert whole.stretch > 0
    assert whole.mixing > 0
    assert all(layer.conv.demodulate for layer in layers)
    for part, gone in {
        "r1": lambda m: m.penalty is None,
        "path-length": lambda m: m.stretch == 0,
        "mixing": lambda m: m.mixing == 0,
        "noise": lambda m: not m.generator.synthesis.noisy,
        "demodulation": lambda m: (
            not any(layer.conv.demodulate for layer in m.generator.synthesis.layers)
        ),
    }.items():
        model = build(replace(RUNS["gans/stylegan/digits"], without=(part,)))
        assert gone(model)
        assert not gone(whole)
    with pytest.raises(ValueError, match="without"):
        build(replace(RUNS["gans/stylegan/digits"], without=("skips",)))


@pytest.mark.parametrize("name", sorted(RUNS))
def test_pictures_have_the_size_of_the_data(name: str) -> None:
    side = 8 if RUNS[name].data == "digits" else 28
    model = build(RUNS[name].small())
    assert model.sample(2, rng=Generator().manual_seed(0)).shape == (2, 1, side, side)
    kept = [w.numel() for w in build(RUNS[name]).state_dict().values()]
    assert 2 * sum(kept) < 4e6 or not RUNS[name].ship


def test_the_distance_is_that_of_fresh_samples() -> None:
    """Of a model that returns the test images themselves it is zero."""
    config = replace(RUNS["gans/stylegan/digits"].small(), samples=60, repeats=1)
    test = torch.rand(60, 1, 8, 8, generator=Generator().manual_seed(0))
    model = build(config)
    model.sample = lambda n, rng: test[:n]  # type: ignore[method-assign]
    see = lambda x: x.flatten(1)[:, :5]
    rng = Generator().manual_seed(1)
    assert distance(model, test, see, config, rng) < 1e-4
    model.sample = lambda n, rng: 1 - test[:n]  # type: ignore[method-assign]
    far = frechet_distance(see(1 - test), see(test)).item()
    assert distance(model, test, see, config, rng) == pytest.approx(far, rel=1e-4)


def test_speeds_and_deviations_are_those_of_the_generator() -> None:
    config = RUNS["gans/stylegan/digits"].small()
    torch.manual_seed(0)
    model = build(config)
    seen: list[Tensor] = []
    for layer in model.generator.synthesis.layers:
        layer.conv.register_forward_hook(lambda *args: seen.append(args[2]))
    found = deviations(model, 50, Generator().manual_seed(0))
    stds = [y.std().item() for y in seen]
    assert found == {"least_std": min(stds), "largest_std": max(stds)}
    still = build(config)
    with torch.no_grad():
        for part in still.generator.synthesis.images:
            part.weight.zero_()
            part.weight += 1e-3
    fast = speeds(model, lambda x: x.flatten(1), 200, Generator().manual_seed(0))
    slow = speeds(still, lambda x: x.flatten(1), 200, Generator().manual_seed(0))
    assert slow["ppl"] < 0.01 * fast["ppl"]
    assert 0 < fast["unequal"] < 2


def test_digits_are_learned() -> None:
    """In 40 steps the distance falls by a third."""
    config = replace(
        RUNS["gans/stylegan/digits"],
        steps=40,
        seeds=(0,),
        repeats=2,
        lines=50,
        average=0.9,
    )
    run = Writer("gans/stylegan/x", config, device="cpu", keep=False)
    experiment.main(config, run)
    torch.manual_seed(0)
    start = experiment.judge(config, build(config), experiment.digits("test").x)
    assert run.run().metrics["frechet"][0] < 0.67 * start["frechet"]


def test_a_configuration_survives_json() -> None:
    for config in RUNS.values():
        assert all(
            isinstance(v, int | float | str | tuple)
            for v in dataclasses.asdict(config).values()
        )
