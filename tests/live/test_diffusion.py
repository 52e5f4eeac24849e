"""The walk back in the page, and the package's (eq:sde-family), fed the same noise."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from pushforward.diffusion import (
    VP,
    Preconditioned,
    backward,
    denoiser_score,
    marginal_score,
    reverse_drift,
    sde,
)
from pushforward.distributions import Mixture, ring
from pushforward.metrics import energy_distance
from pushforward.nn import ResMLP

N = 30  # walkers
WAY = VP()
Field = Callable[[Tensor, Tensor], Tensor]


def rounded(module: nn.Module) -> nn.Module:
    """Return a network with random weights that 32 bits hold."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for p in module.parameters():
            nn.init.normal_(p, std=0.3)
    return module.float().double().requires_grad_(False)


@pytest.fixture
def law() -> Mixture:
    exact = ring(r=1.5, s=0.15)
    means = exact.means.float().double()
    return Mixture(means, 0.15**2 * torch.eye(2).double().expand(8, 2, 2))


@pytest.fixture
def net() -> nn.Module:
    return rounded(ResMLP(2, 8, 2))


@pytest.fixture
def data(law: Mixture, net: nn.Module) -> dict[str, Any]:
    """Return what the page's cell exports."""
    sample = law.sample(N, rng=Generator().manual_seed(2)).float()
    return {"means": law.means, "variance": 0.15**2, "sample": sample, "floor": 0.0,
            "betas": [WAY.beta_min, WAY.beta_max],
            "net": dict(net.state_dict()), "sigma_data": 1.07}  # fmt: skip


@pytest.fixture
def scores(law: Mixture, net: nn.Module) -> dict[str, Field]:
    denoiser = Preconditioned(net, sigma_data=1.07)
    return {"exact": marginal_score(WAY, law), "network": denoiser_score(WAY, denoiser)}


def clouds(found: Any) -> Tensor:
    return found.tensor("clouds").unflatten(1, (N, 2))


def scripted(found: Any, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Make the package draw the page's noise; return the start of the walk."""
    noise = found.tensor("noise").view(-1, N, 2)
    draws = iter(noise[1:])
    monkeypatch.setattr(sde, "noise_like", lambda x, rng=None: next(draws))
    return noise[0]


@pytest.mark.parametrize("score", ["exact", "network"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("drift", ["right", "half"])
def test_walk(
    score: str, eta: float, drift: str, data: dict[str, Any], scores: dict[str, Field],
    figure: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    state = {"score": score, "eta": eta, "drift": drift, "steps": 25}
    found = figure("diffusion")(state, data)
    x, times = scripted(found, monkeypatch), found.tensor("times")
    pull = None if drift == "right" else 0.5
    walk = [x, *backward(WAY, scores[score], x, times, eta=eta, pull=pull)]
    torch.testing.assert_close(clouds(found), torch.stack(walk), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_loop_of_the_slides(
    eta: float, data: dict[str, Any], scores: dict[str, Field],
    figure: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    found = figure("diffusion")({"drift": "loop", "eta": eta, "steps": 25}, data)
    x, times = scripted(found, monkeypatch), found.tensor("times")
    move, walk = reverse_drift(WAY, scores["exact"], eta=eta, pull=0.5), [x]
    for t, end in pairwise(times):  # X = h β (X + ∇log p) + √(2hβ) Z, as printed
        h, z = t - end, sde.noise_like(x)
        x = h * move(x, t) + eta * (2 * h * WAY.beta(t)).sqrt() * z
        walk.append(x)
    torch.testing.assert_close(clouds(found), torch.stack(walk), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("even", [False, True])
def test_times(even: bool, data: dict[str, Any], figure: Callable[[str], Any]) -> None:
    found = figure("diffusion")({"even": even, "steps": 10}, data)
    u = torch.linspace(0, 1 - 0.001**0.5, 11, dtype=torch.float64)
    flat = torch.linspace(1, 0.001, 11, dtype=torch.float64)
    torch.testing.assert_close(found.tensor("times"), flat if even else (1 - u) ** 2)


@pytest.mark.parametrize("part", [0.0, 0.6, 1.0])
def test_moments_and_distance(
    part: float, law: Mixture, data: dict[str, Any], figure: Callable[[str], Any]
) -> None:
    found = figure("diffusion")({"part": part, "steps": 20}, data)
    cloud, t = clouds(found)[found["k"]], found.tensor("times")[found["k"]]
    assert found["k"] == round(20 * part)
    rms = cloud.square().mean().sqrt()
    assert found["found"][found["k"]] == pytest.approx(float(rms), abs=1e-10)
    p = sde.marginal(WAY, law, float(t))
    exact = (p.cov().trace() / 2).sqrt()
    assert found["exact"][found["k"]] == pytest.approx(float(exact), abs=1e-7)
    truth = found.tensor("truth").view(N, 2)
    want = energy_distance(cloud, truth, unbiased=False)
    assert found["energy"] == pytest.approx(float(want), abs=1e-8)
    near = torch.cdist(cloud, p.means).min(1).values
    width = near.square().mean().div(2).sqrt()
    assert found["width"] == pytest.approx(float(width), abs=1e-7)
    near = torch.cdist(truth, p.means).min(1).values
    width = near.square().mean().div(2).sqrt()
    assert found["widthOfTruth"] == pytest.approx(float(width), abs=1e-7)


def test_the_exact_sample_is_the_data_at_its_time(
    data: dict[str, Any], figure: Callable[[str], Any]
) -> None:
    """(truth − α x)/σ is the same normal noise at every time."""

    def noise(part: float) -> Tensor:
        found = figure("diffusion")({"part": part, "steps": 20}, data)
        t = found.tensor("times")[found["k"]]
        x = data["sample"].double().flatten()
        return (found.tensor("truth") - WAY.alpha(t) * x) / WAY.sigma(t)

    z = noise(0.3)
    torch.testing.assert_close(noise(0.8), z, rtol=0, atol=1e-9)
    assert abs(z.mean()) < 4 / len(z) ** 0.5
    assert abs(z.square().mean() - 1) < 4 * (2 / len(z)) ** 0.5


def test_a_time_is_written_in_one_way(
    data: dict[str, Any], figure: Callable[[str], Any]
) -> None:
    ends = [figure("diffusion").says({"even": e}, data)[:13] for e in (False, True)]
    assert ends == ["t = 0.00100 a"] * 2


def test_noise_is_normal(data: dict[str, Any], figure: Callable[[str], Any]) -> None:
    found = figure("diffusion")({"steps": 80}, data)
    z = found.tensor("noise").sort().values
    n = len(z)
    steps = torch.arange(n + 1) / n
    cdf = torch.special.ndtr(z)
    gap = torch.maximum((cdf - steps[:-1]).abs(), (cdf - steps[1:]).abs()).max()
    assert n == 81 * N * 2
    assert float(gap) < 1.95 / n**0.5  # Kolmogorov's test at one in a thousand
    again = figure("diffusion")({"steps": 80, "eta": 0.3}, data)["noise"]
    assert again == found["noise"]
