"""code/experiments/metrics.py: the classifiers, and the floors measured with them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments import metrics as experiment
from experiments.metrics import (
    DATA,
    RUNS,
    Config,
    Labelled,
    floors,
    gaussian_images,
    slope,
)
from pushforward import data, runs
from pushforward.files import states
from pushforward.metrics import Classifier, features, frechet_bias
from pushforward.runs import Run, Writer


@pytest.fixture(scope="module")
def small() -> Run:
    torch.set_default_dtype(torch.float32)
    config = replace(Config.small(), steps=150)
    run = Writer("metrics/digits", config, device="cpu", keep=False)
    experiment.main(config, run)
    return run.run()


def test_a_classifier_learns(small: Run) -> None:
    """Chance is 0.1; the loss falls from log 10 = 2.3."""
    assert small.metrics["accuracy"][0] > 0.8
    _, losses = small.curve("loss", seed=0)
    assert losses[-1] < 1.0


def test_noise_is_farther_than_the_training_images(small: Run) -> None:
    """The order of landmarks: real < a little noise < more noise."""
    real, little, more = (small.mean(m) for m in ("train", "noise_0.05", "noise_0.2"))
    assert 0 < real < little < more


def test_floors_are_those_of_the_theorem(rng: torch.Generator) -> None:
    """(eq:frechet-bias): disjoint samples of one Gaussian cloud lie at C/n."""
    x = torch.randn(40_000, 4, generator=rng, dtype=torch.float64)
    config = replace(Config.small(), sizes=(500, 2000), repeats=60)
    got = floors(config, x, rng=rng)
    C = (4**2 + 5 * 4) / 2
    assert frechet_bias(x).item() == pytest.approx(C, rel=0.02)
    for n in config.sizes:
        se = got[f"floor_sd_{n}"] / 60**0.5
        assert abs(got[f"floor_{n}"] - C / n) < 4 * se + 0.02 * C / n
    assert got["slope"] == pytest.approx(-1, abs=0.15)


def test_slope_is_the_exponent() -> None:
    assert slope((10, 100, 400), [3 * n**-1.25 for n in (10, 100, 400)]) == (
        pytest.approx(-1.25, abs=1e-12)
    )


def test_gaussian_images_have_the_moments_of_the_data(rng: torch.Generator) -> None:
    x = 0.5 + 0.05 * torch.randn(500, 1, 3, 3, generator=rng)  # nothing to cut
    y = gaussian_images(x, 40_000, rng=rng).flatten(1).double().numpy()
    want = np.cov(x.flatten(1).double().numpy().T)
    np.testing.assert_allclose(np.cov(y.T), want, atol=4 * 0.0025 / 40_000**0.5 * 1.5)
    np.testing.assert_allclose(
        y.mean(0), x.mean(0).flatten(), atol=4 * 0.05 / 40_000**0.5 + 1e-6
    )


def test_a_classifier_draws_nothing() -> None:
    model = Labelled(Classifier(8), data.digits("test"))
    with pytest.raises(TypeError, match="draws nothing"):
        model.sample(1)


def test_labels_are_needed() -> None:
    with pytest.raises(ValueError, match="must have labels"):
        Labelled(Classifier(8), data.Images(torch.zeros(2, 1, 8, 8), None))


@pytest.mark.parametrize("name", RUNS)
def test_shipped_weights_are_those_that_were_measured(name: str) -> None:
    """They classify as well as the run says, and their unit is a per cent."""
    source = RUNS[name].data
    here = [] if source == "digits" else states(source.replace("_", "-"))
    if any(file.path is None for file in here):
        pytest.skip("the images are not here")
    run = runs.load(name)
    seen, unseen = DATA[source]("train"), DATA[source]("test")
    net = Classifier(seen.x.shape[-1])
    net.load_state_dict(run.weights())
    with torch.no_grad():
        right = (net(unseen.x).argmax(1) == unseen.y).double().mean().item()
    assert right == pytest.approx(run.metrics["accuracy"][0], abs=2e-4)
    spread = features(net, seen.x).double().var(0).sum().item()
    assert spread == pytest.approx(100, rel=1e-4)
    assert (run.path / "weights.safetensors").stat().st_size <= 400_000
