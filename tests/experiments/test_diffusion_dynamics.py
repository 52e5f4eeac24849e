"""code/experiments/diffusion/dynamics.py: every run in small, and what it measures."""

import math

import pytest
import torch
from torch import Tensor

from experiments.diffusion import dynamics as experiment
from experiments.diffusion.dynamics import RUNS, build, draws, error, hidden, motion
from pushforward.data import Images
from pushforward.diffusion.dynamics import Forced
from pushforward.runs import Writer

NAME = "diffusion/dynamics/"


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripes in the place of MNIST."""
    stripes = torch.zeros(80, 1, 28, 28, dtype=torch.float32)
    stripes[..., ::2] = 1.0
    monkeypatch.setitem(experiment.IMAGES, "mnist", lambda split: Images(stripes, None))
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_run_goes_through_in_small(name: str) -> None:
    config = RUNS[name].small()
    run = Writer(name, config, device="cpu", keep=False)
    experiment.main(config, run)
    found = run.run()
    assert all(math.isfinite(v[0]) for v in found.metrics.values())
    assert set(found.history) == {"seed", "step", "loss", "size", "angle"}
    assert found.metrics["best"][0] in config.lengths
    assert found.metrics["profile_0.1"][0] < 1e-6, "a snapshot is kept at this length"
    assert 0 < found.metrics["gap_0.15"][0] < 0.05
    assert (run.kept is not None) == config.ship


def test_the_same_seed_gives_the_same_run() -> None:
    config = RUNS[NAME + "digits"].small()
    runs = [Writer(NAME + "x", config, device="cpu", keep=False) for _ in "ab"]
    for run in runs:
        experiment.main(config, run)
    assert runs[0].run().metrics == runs[1].run().metrics


def test_shipped_weights_stay_below_a_megabyte() -> None:
    for config in RUNS.values():
        size = sum(2 * w.numel() for w in build(config).state_dict().values())
        assert size < 1_000_000 or not config.ship


@pytest.mark.parametrize("kind", ["forced", "free", "plain"])
def test_the_hidden_weights_are_those_of_the_blocks(kind: str) -> None:
    """None of the time, of the modulation or of the loss: two for each layer."""
    config = RUNS[NAME + "digits"].small()
    model = build(experiment.replace(config, weights=kind, blocks=2))
    forced = [m.forced for m in model.modules() if isinstance(m, Forced)]
    assert len(hidden(model)) == 1 + 4 + 1
    assert forced == [kind == "forced"] * len(forced)


def test_motion_sees_sizes_and_angles() -> None:
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    moved = motion([a, a], [a, b])
    torch.testing.assert_close(moved["size"], torch.tensor((4.5 + 12.5) / 2).sqrt())
    torch.testing.assert_close(moved["angle"], torch.tensor(math.pi / 4))


def test_draws_have_their_own_noise_and_errors_are_relative() -> None:
    torch.manual_seed(0)
    model = build(RUNS[NAME + "digits"].small()).eval()
    one, two = (draws(model, 5, seed=3) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == (5, 1, 8, 8)
    assert 0 <= one.min() <= one.max() <= 1
    state: dict[str, Tensor] = {"a": torch.ones(4), "n": torch.tensor(3)}
    assert error({"a": torch.full((4,), 1.1)}, state) == pytest.approx(0.1, rel=1e-5)
