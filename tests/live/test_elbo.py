"""The bound of the linear VAE in the page, and the package's (eq:vae-elbo)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from pushforward.distributions import StandardNormal
from pushforward.vae import VAE, LinearGaussian, gaussian_kl

STATES = [
    {"slope": 0.2, "spread": 0.8, "w": 1.2, "sigma": 0.7, "x1": 1.4, "x2": 0.5},
    {"slope": 1.1, "spread": 0.3, "w": 1.9, "sigma": 0.35, "x1": -2.5, "x2": 1.75},
    {"slope": -0.7, "spread": 1.4, "w": 0.1, "sigma": 1.5, "x1": 0.0, "x2": -3.0},
]


@pytest.fixture
def data() -> dict[str, Tensor]:
    rng = Generator().manual_seed(0)
    return {
        "z": torch.randn(20, generator=rng),
        "eps": torch.randn(20, 2, generator=rng),
    }


def model(state: dict[str, float]) -> tuple[LinearGaussian, Tensor, Normal]:
    """Return the law, the datum and the encoding that a state stands for."""
    s = {k: torch.tensor(v, dtype=torch.float64) for k, v in state.items()}
    u = torch.tensor([0.8, 0.6], dtype=torch.float64)
    law = LinearGaussian(torch.zeros(2).double(), s["w"] * u[:, None], s["sigma"])
    x = torch.stack([s["x1"], s["x2"]])[None]
    return law, x, Normal((s["slope"] * (x @ u))[:, None], s["spread"])


def divergence(q: Normal, p: MultivariateNormal) -> Tensor:
    """Return KL(q ‖ p) by torch's formula for two Gaussians."""
    wide = MultivariateNormal(q.mean, q.variance.expand_as(q.mean).diag_embed())
    return kl_divergence(wide, p)


@pytest.mark.parametrize("state", STATES)
def test_evidence_bound_and_gap(
    state: dict[str, float], data: dict[str, Tensor], figure: Callable[[str], Any]
) -> None:
    found = figure("elbo")(state, data)
    law, x, q = model(state)
    exact = law.marginal().log_prob(x)
    assert found["evidence"] == pytest.approx(float(exact), abs=1e-10)
    gap = divergence(q, law.posterior(x))  # log p(x) = ELBO + KL (thm:vae-elbo)
    assert found["gap"] == pytest.approx(float(gap), abs=1e-10)
    bound = float(exact - gap)  # (eq:vae-elbo)
    assert found["elbo"] == pytest.approx(bound, abs=1e-10)
    rate = float(gaussian_kl(q.mean, q.stddev).sum())  # (eq:vae-gaussian-kl)
    assert found["rate"] == pytest.approx(rate, abs=1e-10)


@pytest.mark.parametrize("state", STATES)
def test_the_bound_is_the_mean_of_the_package(
    state: dict[str, float], data: dict[str, Tensor], figure: Callable[[str], Any]
) -> None:
    found = figure("elbo")(state, data)
    law, x, q = model(state)
    n = 20_000
    guess = Independent(Normal(q.mean.expand(n, 1), q.stddev), 1)
    vae = VAE(lambda x: guess, law.decoder, StandardNormal(1).double())
    draws = vae.elbo(x.expand(n, 2), rng=Generator().manual_seed(1))
    assert abs(found["elbo"] - float(draws.mean())) < 4 * float(draws.std()) / n**0.5


@pytest.mark.parametrize("state", STATES)
def test_curves(
    state: dict[str, float], data: dict[str, Tensor], figure: Callable[[str], Any]
) -> None:
    found = figure("elbo")(state, data)
    law, x, q = model(state)
    z = found.tensor("z")[:, None]
    posterior, exact = law.posterior(x), law.marginal().log_prob(x)
    bounds = exact - divergence(Normal(z, q.stddev), posterior)
    for name, want in (
        ("prior", StandardNormal(1).double().log_prob(z).exp()),
        ("posterior", posterior.log_prob(z).exp()),
        ("guess", q.log_prob(z)[:, 0].exp()),
        ("bounds", bounds),
    ):
        torch.testing.assert_close(found.tensor(name), want)
    assert max(found["bounds"]) <= found["evidence"]


def test_the_cloud_is_drawn_from_the_model(
    data: dict[str, Tensor], figure: Callable[[str], Any]
) -> None:
    found = figure("elbo")(STATES[1], data)
    law, _, _ = model(STATES[1])
    means = law.decoder(data["z"].double()[:, None]).mean
    want = means + law.sigma * data["eps"].double()
    torch.testing.assert_close(found.tensor("cloud").mT, want)


@pytest.mark.parametrize("state", STATES)
def test_the_button_closes_the_gap(
    state: dict[str, float], data: dict[str, Tensor], figure: Callable[[str], Any]
) -> None:
    elbo = figure("elbo")
    states = elbo.states(state, data, "exact")
    gaps = [elbo({**state, **s}, data)["gap"] for s in (*states[::10], states[-1])]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] == pytest.approx(0, abs=1e-12)
