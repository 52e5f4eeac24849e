"""The RealNVP in the page, coupling by coupling, and the package's (eq:coupling)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.func import jacrev, vmap

from pushforward.flows import AffineCoupling, Chain, Flow, Inverse, real_nvp

K = 8  # as many as the slider has


@pytest.fixture
def flow() -> Flow:
    """Return a flow far from the identity, with weights that 32 bits hold."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = real_nvp(2, K, (6, 5))
        for p in flow.parameters():
            nn.init.normal_(p, std=0.4)
    return flow.float().double().requires_grad_(False)


@pytest.fixture
def data(flow: Flow) -> dict[str, Any]:
    """Return what the page's cell exports."""
    rng = Generator().manual_seed(1)
    points, noise = torch.randn(2, 30, 2, generator=rng).float()
    couplings = [f for f in flow.f.maps if isinstance(f, AffineCoupling)]
    layers = [{"kept": int(f.kept), **f.net.state_dict()} for f in couplings]
    return {"points": points, "noise": noise, "upper": 10, "exact": 0.0,
            "bound": couplings[0].bound, "layers": layers}  # fmt: skip


class Part(nn.Module):
    """A network whose coupling has λs and λt in the place of s and t."""

    def __init__(self, f: AffineCoupling, part: float) -> None:
        super().__init__()
        self.f, self.part = f, part

    def forward(self, kept: Tensor) -> Tensor:
        s, t = self.f.scale_shift(self.f.net(kept))
        return torch.cat([(self.part * s / self.f.bound).atanh(), self.part * t], 1)


def shown(flow: Flow, k: float, way: str) -> Chain:
    """Return the map of the first k steps, the last of them in part."""
    maps = list(flow.f.maps) if way == "noise" else list(flow.f.maps)[::-1]
    parts = [min(1.0, k - i) for i in range(K) if i < k]
    masks = [torch.arange(2) == int(f.kept) for f in maps]
    steps = [
        AffineCoupling(mask, Part(f, part)) if part < 1 else f
        for f, mask, part in zip(maps, masks, parts, strict=False)
    ]
    return Chain(steps if way == "noise" else [Inverse(f) for f in steps]).double()


@pytest.mark.parametrize("way", ["data", "noise"])
@pytest.mark.parametrize("k", [0, 1, 2, 2.35, 5, 6.8, 8])
def test_each_coupling(
    k: float, way: str, flow: Flow, data: dict[str, Any], figure: Callable[[str], Any]
) -> None:
    found = figure("realnvp")({"k": k, "way": way}, data)
    f = shown(flow, k, way)
    start = data["points" if way == "noise" else "noise"].double()
    want, log_det = f(start)
    torch.testing.assert_close(found.tensor("cloud").mT, want)
    assert found["logDet"] == pytest.approx(float(log_det.mean()), abs=1e-9)
    if k > 0:
        J = vmap(jacrev(lambda p: f(p[None])[0][0]))(start)
        volume = torch.linalg.slogdet(J).logabsdet.mean()
        assert found["logDet"] == pytest.approx(float(volume), abs=1e-9)


@pytest.mark.parametrize("way", ["data", "noise"])
@pytest.mark.parametrize("k", [0, 1, 2.35, 8])
def test_likelihood_of_the_couplings_so_far(
    k: float, way: str, flow: Flow, data: dict[str, Any], figure: Callable[[str], Any]
) -> None:
    found = figure("realnvp")({"k": k, "way": way}, data)
    f, points = shown(flow, k, way), data["points"].double()
    model = Flow(f if way == "noise" else Inverse(f), flow.base)
    want = -model.log_prob(points).mean()
    assert found["nll"] == pytest.approx(float(want), abs=1e-9)
    assert found["curve"][0] == pytest.approx(-float(flow.base.log_prob(points).mean()))
    whole = -flow.log_prob(points).mean()
    assert found["curve"][-1] == pytest.approx(float(whole), abs=1e-9)


def test_the_grid_is_carried_like_the_points(
    flow: Flow, data: dict[str, Any], figure: Callable[[str], Any]
) -> None:
    square = figure("realnvp")({"k": 0}, data).tensor("grid").mT
    bent = figure("realnvp")({"k": K}, data).tensor("grid").mT
    torch.testing.assert_close(bent, flow.f.inverse(square)[0])


def test_first_state(data: dict[str, Any], figure: Callable[[str], Any]) -> None:
    shown = figure("realnvp").first(data)
    assert len(shown["pictures"]) == 2
    assert shown["says"].startswith("8 of 8")
    assert max(c["max"] for c in shown["controls"] if "max" in c) == K
