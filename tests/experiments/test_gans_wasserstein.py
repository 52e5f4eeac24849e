"""code/experiments/gans/wasserstein.py: every run in small, and what it promises."""

import math

import pytest
import torch

from experiments.gans import vanilla, wasserstein
from experiments.gans.wasserstein import RUNS, build
from pushforward.data import Images
from pushforward.gans import WASSERSTEIN
from pushforward.runs import Writer


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise in the place of the large data sets."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.rand(1200, 1, 28, 28, generator=rng, dtype=torch.float32)
    for name in ("fashion_mnist", "mnist"):
        monkeypatch.setattr(vanilla, name, lambda split: Images(noise, None))


@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_run_goes_through_in_small(name: str) -> None:
    config = RUNS[name].small()
    run = Writer(name, config, device="cpu", keep=False)
    wasserstein.main(config, run)
    found = run.run()
    assert all(math.isfinite(v[0]) for v in found.metrics.values())
    assert found.history["step"] == [2, 4]


@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_game_is_for_the_distance(name: str) -> None:
    gan = build(RUNS[name].small())
    assert gan.objective is WASSERSTEIN
    assert gan.turns == 5
    assert (gan.penalty is None) == (gan.constraint is not None)


def test_a_boxed_critic_ends_in_its_box() -> None:
    config = RUNS["gans/wasserstein/ring-clip"].small()
    gan = build(config)
    gan.constrain()
    largest = max(w.abs().max().item() for w in gan.discriminator.parameters())
    assert largest == pytest.approx(config.box)
