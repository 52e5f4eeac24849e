"""code/experiments/gans/vanilla.py: every run in small, and what judges them."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import Generator, nn

from experiments.gans import vanilla as experiment
from experiments.gans.vanilla import RUNS, Maxout, correlation, judge_ring, parzen
from pushforward.data import Images
from pushforward.distributions import StandardNormal, ring
from pushforward.gans import GAN
from pushforward.metrics import parzen_log_prob
from pushforward.runs import Writer


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise in the place of the large data sets."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.rand(1200, 1, 28, 28, generator=rng, dtype=torch.float32)
    for name in ("fashion_mnist", "mnist"):
        monkeypatch.setattr(experiment, name, lambda split: Images(noise, None))


@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_run_goes_through_in_small(name: str) -> None:
    config = RUNS[name].small()
    run = Writer(name, config, device="cpu", keep=False)
    experiment.main(config, run)
    found = run.run()
    expected = {"modes", "quality", "sliced", "correlation"}
    if config.data != "ring":
        expected = {"frechet", "floor", "copies"}
    assert expected <= set(found.metrics)
    assert ("parzen" in found.metrics) == config.parzen
    assert all(math.isfinite(v[0]) for v in found.metrics.values())
    assert found.history["step"] == [2, 4]
    assert (run.kept is not None) == config.ship


def test_the_same_seed_gives_the_same_run() -> None:
    config = RUNS["gans/vanilla/ring-r1"].small()
    runs = [Writer("gans/vanilla/x", config, device="cpu", keep=False) for _ in "ab"]
    for run in runs:
        experiment.main(config, run)
    assert runs[0].run().metrics == runs[1].run().metrics


def test_a_penalised_game_comes_near_the_ring() -> None:
    """In 150 rounds nearer than an untrained generator, by more than half."""
    config = replace(
        RUNS["gans/vanilla/ring-r1"],
        hidden=(64, 64), steps=150, every=75, lr=2e-3, samples=1000, seeds=(0,),
    )  # fmt: skip
    torch.manual_seed(0)
    before = judge_ring(experiment.build(config), ring(s=0.05), 1000)["sliced"]
    run = Writer("gans/vanilla/x", config, device="cpu", keep=False)
    experiment.main(config, run)
    assert run.run().metrics["sliced"][0] < before / 2


def test_the_judge_of_the_ring_knows_the_truth() -> None:
    class Perfect(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return law.sample(len(z), rng=torch.Generator().manual_seed(1))

    law = ring(s=0.05)
    found = judge_ring(GAN(Perfect(), nn.Linear(2, 1), StandardNormal(2)), law, 5000)
    assert found["modes"] == 8
    assert found["quality"] == pytest.approx(1 - math.exp(-4.5), abs=0.006)
    assert found["sliced"] < 0.06


def test_the_correlation_is_pearsons() -> None:
    a, b = [1.0, 2.0, 4.0], [2.0, 1.0, 5.0]
    x, y = torch.tensor(a), torch.tensor(b)
    x, y = x - x.mean(), y - y.mean()
    exact = float(x @ y / (x.norm() * y.norm()))
    assert correlation(a, b) == pytest.approx(exact, abs=1e-6)
    assert correlation(a, [3.0, 3.0, 3.0]) == 0.0


def test_the_window_is_chosen_on_images_that_are_put_aside(rng: Generator) -> None:
    seen, test = torch.rand(2, 1100, 6, generator=rng)
    y = torch.rand(50, 6, generator=rng)
    found = parzen(y, seen, test)
    h = found["parzen_width"]
    assert found["parzen"] == parzen_log_prob(test, y, h).mean().item()
    score = parzen_log_prob(seen[-1000:], y, h).mean()
    for other in (0.1, 1.0):
        assert parzen_log_prob(seen[-1000:], y, other).mean() <= score
    assert {"parzen_real", "parzen_real_width"} <= set(found)


def test_maxout_takes_the_largest_of_its_pieces(rng: Generator) -> None:
    net, x = Maxout(3, 4, pieces=2), torch.randn(5, 3, generator=rng)
    both = net.linear(x).view(5, 4, 2)
    assert torch.equal(net(x), torch.maximum(both[..., 0], both[..., 1]))


def test_a_configuration_survives_json() -> None:
    for config in RUNS.values():
        values = asdict(config).values()
        assert all(isinstance(v, int | float | str | tuple) for v in values)
