"""code/experiments/flows/glow.py: every run in small."""

import dataclasses
import math

import pytest
import torch
from torch import Generator

from experiments.flows import glow as experiment
from experiments.flows.glow import RUNS, build, flops
from pushforward.data import Images
from pushforward.runs import Writer


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random levels in the place of the large data set."""
    rng = Generator().manual_seed(0)
    x = torch.randint(256, (40, 1, 28, 28), generator=rng).float() / 255
    monkeypatch.setattr(experiment, "mnist", lambda split: Images(x, None))


@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_run_goes_through_in_small(name: str) -> None:
    """With bfloat16 networks where the run has them; weights in its folder if kept."""
    config = RUNS[name].small()
    run = Writer(name, config, device="cpu", keep=False)
    experiment.main(config, run)
    found = run.run()
    assert all(math.isfinite(v[0]) for v in found.metrics.values())
    assert found.history["step"] == [2, 4]
    assert (run.kept is not None) == config.ship
    if config.tighter:
        assert found.metrics["tighter_bits"][0] < found.metrics["bits"][0] + 0.05


def test_the_mixings_have_equal_networks() -> None:
    """Only the matrices are learned in addition: c² numbers in each step."""
    conv, shuffle, reverse = (
        sum(p.numel() for p in build(RUNS[f"flows/glow/{m}"]).parameters())
        for m in ("conv", "shuffle", "reverse")
    )
    assert shuffle == reverse
    assert conv - shuffle == 4 * (4 * 4 + 4) + 4 * (8 * 8 + 8)


@pytest.mark.parametrize("name", ["flows/glow/conv", "flows/glow/mnist"])
def test_the_budget_counts_the_convolutions(name: str) -> None:
    """The formula of ``flops`` against a count at every convolution of a pass."""
    config = dataclasses.replace(RUNS[name], depth=1, noise=0)
    flow, total = build(config).flow, 0.0

    def count(m: torch.nn.Conv2d, _: object, out: torch.Tensor) -> None:
        nonlocal total
        total += 2 * m.weight[0].numel() * out[0].numel()

    for m in flow.modules():
        if isinstance(m, torch.nn.Conv2d):
            m.register_forward_hook(count)
    x = torch.rand(2, 1, *flow.base.zero.shape[1:])
    flow.log_prob(x)
    split = 2 * 9 * 2 * 4 * (x[0].numel() // 4)  # the law of the channels that end
    assert total == pytest.approx(flops(config) + split)


def test_the_run_of_the_gpu_fits_its_ten_minutes() -> None:
    """At a tenth of 800 TFLOP/s, with twice the forward pass for the backward."""
    config = RUNS["flows/glow/mnist"]
    work = 3 * flops(config) * config.steps * config.batch
    assert len(config.seeds) * work / 80e12 < 400
