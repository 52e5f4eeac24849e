"""code/experiments/diffusion/samplers.py: every run in small, and what it measures."""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from experiments.diffusion import samplers as experiment
from experiments.diffusion.samplers import (
    RUNS,
    Guided,
    Judge,
    build,
    contestants,
    packed,
    within,
)
from pushforward.data import Images, digits
from pushforward.diffusion import Counted, exact_denoiser, karras_grid
from pushforward.distributions import StandardNormal, ring
from pushforward.runs import Writer


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripes of ten classes in the place of the large data sets."""
    stripes = torch.zeros(80, 1, 28, 28, dtype=torch.float32)
    stripes[..., ::2] = 1.0
    images = Images(stripes, torch.arange(80) % 10)
    for name in ("mnist", "fashion_mnist"):
        monkeypatch.setitem(experiment.IMAGES, name, lambda split: images)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_run_goes_through_in_small(name: str) -> None:
    config = RUNS[name].small()
    run = Writer(name, config, device="cpu", keep=False)
    experiment.main(config, run)
    found = run.run()
    assert all(math.isfinite(v[0]) for v in found.metrics.values())
    assert {"floor", "accuracy_1", "spread_2", "frechet_2", "churn_3"} <= set(
        found.metrics
    )
    assert found.history["step"] == [1, 2, 3, 4]
    assert run.kept is not None


def test_the_same_seed_gives_the_same_run() -> None:
    config = RUNS["diffusion/samplers/digits"].small()
    runs = [
        Writer("diffusion/samplers/x", config, device="cpu", keep=False) for _ in "ab"
    ]
    for run in runs:
        experiment.main(config, run)
    assert runs[0].run().metrics == runs[1].run().metrics


def test_shipped_weights_stay_small() -> None:
    for config in RUNS.values():
        size = sum(2 * w.numel() for w in build(config).state_dict().values())
        assert size < (1e6 if config.hardware == "cpu" else 3_980_000)


def test_rows_are_an_image_and_its_class() -> None:
    images = digits("train")
    rows = packed(images)
    assert images.y is not None
    torch.testing.assert_close(rows[:, :-1].view_as(images.x), images.x)
    assert torch.equal(rows[:, -1].long(), images.y)
    with pytest.raises(ValueError, match="classes"):
        packed(Images(images.x, None))


class Told(torch.nn.Module):
    """Notes the classes it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, sigma: Tensor, c: Tensor | None = None) -> Tensor:
        if c is not None:
            self.seen.append(c)
        return torch.zeros_like(x)


def test_a_share_of_the_classes_is_hidden(rng: Generator) -> None:
    """With D = 0 the loss is E λ(σ) ‖y‖², whatever the class."""
    told = Told()
    model = Guided(told, StandardNormal(2), classes=10, drop=0.15,  # type: ignore[arg-type]
                   weight=torch.ones_like)  # fmt: skip
    x, c, n = torch.randn(4000, 2, generator=rng), torch.arange(4000) % 10, 4000
    loss = model.loss(torch.cat([x, c[:, None]], 1), rng=rng)
    assert float(loss) == pytest.approx(float(x.square().mean()), rel=1e-4)
    (seen,) = told.seen
    hidden = seen == 10
    assert abs(float(hidden.double().mean()) - 0.15) < 4 * math.sqrt(0.15 * 0.85 / n)
    assert torch.equal(seen[~hidden], c[~hidden])


def test_draws_ask_for_their_class(rng: Generator) -> None:
    model = build(RUNS["diffusion/samplers/digits"].small())
    c = torch.tensor([3, 1, 4])
    with torch.no_grad():
        torch.nn.init.normal_(model.denoiser.net.leave.weight)  # type: ignore[union-attr]
        plain, other, more = (
            model.drawn(k, w, rng=torch.Generator().manual_seed(0))
            for k, w in ((c, 1.0), (c + 1, 1.0), (c, 3.0))
        )
    assert plain.shape == (3, 1, 8, 8)
    assert not torch.allclose(plain, other)
    assert not torch.allclose(plain, more)


def test_budgets_are_kept(rng: Generator) -> None:
    """As many evaluations as were allowed, or one more."""
    D = exact_denoiser(ring())
    for nfe in (5, 17, 35):
        for sampler, steps in contestants(nfe, rng).values():
            counted = Counted(D)
            sampler(counted, 80 * torch.randn(3, 2, generator=rng), karras_grid(steps))
            assert counted.calls in (nfe, nfe + 1)


def test_the_judge_knows_real_images() -> None:
    config = RUNS["diffusion/samplers/digits"]
    judge = Judge(config, torch.device("cpu"))
    real = judge.unseen[: judge.n]
    assert judge.distance(real) == pytest.approx(0.0, abs=1e-4)
    assert judge.accuracy(real) > 0.9
    assert judge.spread(real) == pytest.approx(1.0)
    grey = torch.full_like(real, 0.5)
    assert judge.spread(grey) == pytest.approx(0.0, abs=1e-6)
    assert judge.distance(grey) > 10


def test_variance_within_classes_leaves_their_means_out(rng: Generator) -> None:
    c = torch.arange(4000) % 2
    phi = torch.randn(4000, 3, generator=rng) + 50.0 * c[:, None]
    assert float(within(phi, c)) == pytest.approx(3 * 4000, rel=0.05)


def test_digits_are_learned() -> None:
    """In some hundred steps; chance is one in ten."""
    config = replace(
        RUNS["diffusion/samplers/digits"],
        width=64,
        blocks=2,
        steps=250,
        average=0.98,
        weights=(1.0, 3.0),
        budgets=(),
        grid=8,
        seeds=(0,),
    )
    run = Writer("diffusion/samplers/x", config, device="cpu", keep=False)
    experiment.main(config, run)
    found = run.run().metrics
    assert found["accuracy_1"][0] > 0.4
    assert found["accuracy_3"][0] > found["accuracy_1"][0]


def test_a_configuration_survives_json() -> None:
    for config in RUNS.values():
        for value in dataclasses.asdict(config).values():
            assert isinstance(value, int | float | str | tuple)
