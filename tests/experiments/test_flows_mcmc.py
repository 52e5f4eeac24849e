"""code/experiments/flows/mcmc.py: every run in small, its targets, its counting."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from torch import Generator
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from experiments.flows import mcmc as experiment
from experiments.flows.mcmc import RUNS, Modes, build, library, target, worth
from pushforward.runs import Writer


def run(name: str) -> Writer:
    config = RUNS[name].small()
    writer = Writer(name, config, device="cpu", keep=False)
    experiment.main(config, writer)
    return writer


@pytest.mark.parametrize("name", sorted(set(RUNS) - {"flows/mcmc/nuts"}))
def test_every_run_goes_through_in_small(name: str) -> None:
    writer = run(name)
    found = writer.run()
    assert all(math.isfinite(v[0]) for v in found.metrics.values())
    assert (writer.kept is not None) == writer.config.ship
    if writer.config.task == "adapt":
        assert found.history["step"] == [1, 2, 4]
        assert 0 <= found.metrics["error"][0] <= 1
        burnt = 3 * writer.config.burn  # MALA alone, not yet in the frozen steps
        assert found.metrics["train_gradients"][0] > burnt
        steps = writer.config.keep * (writer.config.repeats + 1)
        assert found.metrics["gradients"][0] == steps


def test_the_library_goes_through_in_small() -> None:
    found = run("flows/mcmc/nuts").run()
    assert all(math.isfinite(v[0]) for v in found.metrics.values())
    assert found.metrics["gradients"][0] > 10


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyro.infer", None)  # as if it were not there
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps pyro-ppl"):
        library()


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = (run("flows/mcmc/modes").run().metrics for _ in "ab")
    timed = {"seconds", "train_seconds"}
    assert {k: v for k, v in first.items() if k not in timed} == {
        k: v for k, v in second.items() if k not in timed
    }


@pytest.mark.parametrize("name", ["flows/mcmc/modes", "flows/mcmc/mixture"])
def test_a_target_is_the_mixture_that_it_names(name: str, rng: Generator) -> None:
    """Up to a constant, against torch.distributions."""
    law = target(RUNS[name], torch.device("cpu"))
    k, d = law.means.shape
    scale = torch.full((k, d), law.variance**0.5)
    exact = MixtureSameFamily(
        Categorical(law.weights), Independent(Normal(law.means, scale), 1)
    )
    near = torch.randint(k, (50,), generator=rng)
    x = law.means[near] + torch.randn(50, d, generator=rng)
    gap = law.log_prob(x) - exact.log_prob(x)
    torch.testing.assert_close(gap, gap[:1].expand(50), atol=1e-3, rtol=0)
    assert float(law.weights.sum()) == pytest.approx(1.0)


def test_the_mixture_is_that_of_the_paper() -> None:
    law = target(RUNS["flows/mcmc/mixture"], torch.device("cpu"))
    assert law.means.shape == (2, 100)
    assert law.means[0].tolist() == [2.5] * 99 + [0.0]
    assert torch.equal(law.means[1], -law.means[0])
    assert law.weights.tolist() == [0.25, 0.75]
    assert law.variance == 0.5


def test_values_and_gradients_are_counted() -> None:
    law = Modes(torch.zeros(1, 2), 1.0, torch.ones(1))
    law.log_prob(torch.zeros(5, 2))
    law.log_prob(torch.zeros(3, 2, requires_grad=True))
    assert (law.values, law.gradients) == (8, 3)


def test_shares_are_those_of_the_nearest_modes() -> None:
    law = target(RUNS["flows/mcmc/modes"], torch.device("cpu"))
    x = law.means[[0, 0, 1, 2]].view(2, 2, 2) + 0.5
    assert law.nearest(x).tolist() == [[0, 0], [1, 2]]
    assert law.shares(x).tolist() == [0.5, 0.25, 0.25]


def test_a_chain_that_never_moves_is_worth_one() -> None:
    assert worth(torch.ones(50, 1, 1)) == 1.0


def test_a_flow_starts_as_a_wide_normal(rng: Generator) -> None:
    config = replace(RUNS["flows/mcmc/modes"], hidden=(8,))
    model = build(config)
    x = torch.randn(20, 2, generator=rng)
    exact = Normal(0.0, config.scale).log_prob(x).sum(-1)
    torch.testing.assert_close(model.log_prob(x), exact)
