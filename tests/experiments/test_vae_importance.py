"""code/experiments/vae/importance.py: every run in small, and what they share."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from experiments.vae import gauss
from experiments.vae import importance as experiment
from experiments.vae.importance import RUNS, Config, build, judge, outputs, value
from pushforward import runs
from pushforward.data import Images
from pushforward.distributions import StandardNormal
from pushforward.flows import Flow
from pushforward.record import as_json
from pushforward.runs import Writer
from pushforward.vae import VAE, FlowNet, FullGaussianNet, linear_vae, ppca

NEW = asdict(Config()).keys() - asdict(gauss.Config()).keys()


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripes in the place of the large data set."""
    stripes = torch.zeros(60, 1, 28, 28, dtype=torch.float32)
    stripes[..., ::2] = 1.0
    monkeypatch.setattr(gauss, "binarized_mnist", lambda split: Images(stripes, None))


@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_run_goes_through_in_small(name: str) -> None:
    config = RUNS[name].small()
    run = Writer(name, config, device="cpu", keep=False)
    experiment.main(config, run)
    found = run.run()
    assert found.metrics["nll"][0] == -found.metrics["log_prob"][0]
    assert all(math.isfinite(v[0]) for v in found.metrics.values())
    assert found.history["step"] == [3, 6]
    assert (run.kept is not None) == config.ship


@pytest.mark.parametrize("name", sorted(RUNS))
def test_the_shipped_weights_build_the_model(name: str) -> None:
    """And each model has the guess and the prior that its configuration names."""
    config = RUNS[name].small()
    vae = build(config)
    build(config).load_state_dict(vae.state_dict())
    guess = {"full": FullGaussianNet, "coupling": FlowNet, "planar": FlowNet}
    assert isinstance(vae.encoder, guess.get(config.posterior, object))
    assert isinstance(vae.prior, Flow if config.prior_maps else StandardNormal)


def test_the_digits_differ_in_one_thing() -> None:
    plain = RUNS["vae/importance/digits-diagonal"]
    for name, config in RUNS.items():
        if "digits" in name:
            ours, theirs = asdict(config), asdict(plain)
            changed = {k for k in ours if ours[k] != theirs[k]} - {"ship"}
            assert changed <= NEW
            assert (
                replace(config, **{k: theirs[k] for k in changed | {"ship"}}) == plain
            )


@pytest.mark.parametrize(
    ("posterior", "numbers"),
    [("diagonal", 6), ("full", 9), ("coupling", 70), ("planar", 34)],
)
def test_the_encoder_gives_what_the_guess_asks_for(
    posterior: str, numbers: int
) -> None:
    """2k, with k(k − 1)/2 more, the context, or K(2k + 1) of planar layers."""
    config = replace(Config(), k=3, posterior=posterior, maps=4)
    assert outputs(config) == numbers


@pytest.mark.parametrize("name", sorted(n for n in RUNS if RUNS[n].ship))
def test_the_shipped_weights_are_those_that_were_judged(name: str) -> None:
    """A map that computes something else today would load them all the same."""
    if not runs.exists(name):
        pytest.skip(f"{name} is pending: no GPU has made it")
    rng = torch.Generator().manual_seed(0)
    _, _, test = experiment.load(RUNS[name], rng)  # dequantised as by the run
    model = runs.build(name)
    assert isinstance(model, VAE)
    found = judge(model, test, replace(RUNS[name], samples=10))
    assert found["elbo"] == pytest.approx(runs.load(name).metrics["elbo"][0], abs=0.3)


def exact() -> tuple[VAE, Tensor, Tensor]:
    """A linear model whose encoder is the posterior, test images, and log p."""
    rng = torch.Generator().manual_seed(0)
    x, A = (torch.randn(n, 6, generator=rng, dtype=torch.float64) for n in (200, 6))
    law = ppca(x @ A, 2)
    test = law.marginal().sample(50, rng=rng)
    return linear_vae(law), test, law.marginal().log_prob(test).mean()


def test_what_is_reported_is_the_evidence_where_it_is_known() -> None:
    vae, test, log_p = exact()
    found = judge(vae, test, replace(Config(), samples=10, images=50))
    assert found["log_prob"] == pytest.approx(log_p.item(), abs=1e-6)
    assert found["gap"] == pytest.approx(found["log_prob"] - found["elbo"])
    assert abs(found["gap"]) < 0.5
    rng = torch.Generator().manual_seed(0)
    assert value(vae, test, 5, rng) == pytest.approx(log_p.item(), abs=1e-6)


def test_a_configuration_survives_json() -> None:
    for config in RUNS.values():
        assert Config(**{k: tuple(v) if isinstance(v, list) else v
                         for k, v in as_json(config).items()}) == config  # fmt: skip
