"""Samplers beside their peers: ``python code/benchmarks/diffusion.py``.

One small network, a batch of 256 points in the plane, 18 levels from 80 to 0.002, in
single precision.  Everybody starts from the same points and goes through the same
levels; the certificate is the distance of the end points to those of the same method
written plainly in double precision.  azula's multistep method integrates the straight
line through two denoised points exactly, and is another method of order two.
"""

import importlib.util
import os
import sys
import types
from collections.abc import Callable
from itertools import pairwise
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from interleave import Thunk, machine, table
from torch import Tensor

from pushforward.diffusion import euler, heun, karras_grid, multistep
from pushforward.nn import ResMLP

torch.set_num_threads(1)
BATCH, N, REPEATS, OWN = 256, 18, 4, 0.5
LEVELS = karras_grid(N)[:-1]  # without the last 0, where azula divides by it
STEPS = N - 1
Walk = Callable[[Tensor], Tensor]


class Denoiser:
    """D of a small network, as plainly as it can be written."""

    def __init__(self) -> None:
        self.net = ResMLP(2, 128, 2).requires_grad_(False)
        torch.nn.init.normal_(self.net.leave.weight, std=0.05)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D(x, σ) for σ () or (n, 1)."""
        v = sigma * sigma
        total = (v + OWN**2).sqrt()
        F = self.net(x / total, sigma.log() / 4)
        return OWN**2 / (v + OWN**2) * x + sigma * OWN / total * F


def plain_euler(D: Any, x: Tensor) -> Tensor:
    """Return the end of Euler's steps, as tutorials write them."""
    for s, e in pairwise(LEVELS.to(x)):
        x = x + (e - s) * (x - D(x, s)) / s
    return x


def plain_heun(D: Any, x: Tensor) -> Tensor:
    """Return the end of Heun's steps, as tutorials write them."""
    for s, e in pairwise(LEVELS.to(x)):
        d = (x - D(x, s)) / s
        y = x + (e - s) * d
        x = x + (e - s) * (d + (y - D(y, e)) / e) / 2
    return x


def plain_multistep(D: Any, x: Tensor) -> Tensor:
    """Return the end of DPM-Solver++(2M), as its paper writes it."""
    old, last = None, None
    for s, e in pairwise(LEVELS.to(x)):
        d, h = D(x, s), (s / e).log()
        mean = d if old is None else d + h / (2 * last) * (d - old)
        x = e / s * x - torch.expm1(-h) * mean
        old, last = d, h
    return x


# Peers


def bare(name: str) -> bool:
    """Make a package importable without running its __init__; tell if it is here."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return False
    package = types.ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations or [])
    sys.modules[name] = package
    return True


def k_diffusion(D: Denoiser) -> dict[str, Walk]:
    """Return its three samplers."""
    if not bare("k_diffusion"):
        return {}
    sys.modules["torchvision"] = types.ModuleType("torchvision")
    transforms = types.ModuleType("torchvision.transforms")
    transforms.functional = types.ModuleType("functional")  # type: ignore[attr-defined]
    sys.modules["torchvision.transforms"] = transforms
    for name, attribute in (("torchdiffeq", "odeint"), ("torchsde", "BrownianTree")):
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = types.ModuleType(name)
            setattr(sys.modules[name], attribute, None)
    from k_diffusion import sampling

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return D(x, sigma[:, None])

    names = {"euler": "sample_euler", "heun": "sample_heun", "2m": "sample_dpmpp_2m"}
    walks: dict[str, Walk] = {}
    for key, name in names.items():
        sampler = getattr(sampling, name)
        walks[key] = lambda x, f=sampler: f(model, x, LEVELS.to(x), disable=True)
    return walks


def diffusers(D: Denoiser) -> dict[str, Walk]:
    """Return its schedulers in the loop of its manual; EDM's make D from F."""
    if importlib.util.find_spec("diffusers") is None:
        return {}
    from diffusers import (
        EDMDPMSolverMultistepScheduler,
        EDMEulerScheduler,
        HeunDiscreteScheduler,
    )

    levels = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": OWN}

    def loop(make: Callable[[], Any]) -> Walk:
        scheduler = make()

        def walk(x: Tensor) -> Tensor:
            scheduler.set_timesteps(N)
            for t in scheduler.timesteps[:-1]:
                F = D.net(scheduler.scale_model_input(x, t), t)
                x = scheduler.step(F, t, x).prev_sample
            return x

        return walk

    second = HeunDiscreteScheduler()

    def by_heun(x: Tensor) -> Tensor:
        second.set_timesteps(N)
        inner = LEVELS[1:].repeat_interleave(2)
        second.sigmas = torch.cat([LEVELS[:1], inner, torch.zeros(1)]).to(x)
        for i, t in enumerate(second.timesteps[: 2 * STEPS]):
            s = second.sigmas[i]
            x = second.step((x - D(x, s)) / s, t, x).prev_sample
        return x

    return {
        "euler": loop(lambda: EDMEulerScheduler(**levels)),
        "heun": by_heun,
        "2m": loop(lambda: EDMDPMSolverMultistepScheduler(**levels)),
    }


def azula(D: Denoiser) -> dict[str, Walk]:
    """Return its samplers, on a schedule whose even times are our levels."""
    if importlib.util.find_spec("azula") is None:
        return {}
    from azula.denoise import Denoiser as Base
    from azula.denoise import DiracPosterior
    from azula.noise import Schedule
    from azula.sample import EulerSampler, HeunSampler, xEABSampler

    class Karras(Schedule):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return self.alpha(t), self.sigma(t)

        def alpha(self, t: Tensor) -> Tensor:
            return torch.ones_like(t)

        def sigma(self, t: Tensor) -> Tensor:
            top, low = 80.0 ** (1 / 7), 0.002 ** (1 / 7)
            return (low + t * (top - low)) ** 7

    class Exact(Base):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = Karras()

        def forward(self, x: Tensor, t: Tensor, **options: Any) -> DiracPosterior:
            return DiracPosterior(D(x, self.schedule.sigma(t)))

    options = {"steps": STEPS, "silent": True}
    return {
        "euler": EulerSampler(Exact(), **options),
        "heun": HeunSampler(Exact(), **options),
        "2m": xEABSampler(Exact(), order=2, **options),
    }


def smalldiffusion(D: Denoiser) -> dict[str, Walk]:
    """Return its one sampler of the three."""
    if not bare("smalldiffusion"):
        return {}
    accelerate = types.ModuleType("accelerate")
    accelerate.Accelerator = object  # type: ignore[attr-defined]
    sys.modules.setdefault("accelerate", accelerate)
    from smalldiffusion.diffusion import samples

    class Model:
        def eval(self) -> None:
            pass

        def rand_input(self, n: int) -> Tensor:
            return torch.randn(n, 2)

        def predict_eps_cfg(self, x: Tensor, s: Tensor, *_: Any) -> Tensor:
            return (x - D(x, s)) / s

    def walk(x: Tensor) -> Tensor:
        *_, end = samples(Model(), LEVELS, xt=x, batchsize=len(x))
        return end

    return {"euler": walk}


PEERS = {  # k-diffusion last: it needs stand-ins that others would stumble over
    "diffusers": diffusers,
    "azula": azula,
    "smalldiffusion": smalldiffusion,
    "k-diffusion": k_diffusion,
}
OURS = {"euler": euler, "heun": heun, "2m": multistep}
PLAIN = {"euler": plain_euler, "heun": plain_heun, "2m": plain_multistep}
TITLES = {"euler": "Euler, DDIM", "heun": "Heun", "2m": "DPM-Solver++(2M)"}


def repeated(walk: Walk, x: Tensor) -> Thunk:
    """Return some walks from the same points as one thunk."""

    @torch.no_grad()
    def thunk() -> Tensor:
        for _ in range(REPEATS):
            end = walk(x)
        return end

    return thunk


def main() -> None:
    """Print a table for each method."""
    torch.manual_seed(0)
    D, x = Denoiser(), 80 * torch.randn(BATCH, 2)
    found = {name: peer(D) for name, peer in PEERS.items()}
    print(machine())
    for key, title in TITLES.items():
        D.net.double()
        with torch.no_grad():
            truth = PLAIN[key](D, x.double())
        D.net.float()
        thunks: dict[str, Thunk | None] = {
            "ours": repeated(lambda x, f=OURS[key]: f(D, x, LEVELS), x),
            "plain PyTorch": repeated(lambda x, f=PLAIN[key]: f(D, x), x),
        }
        for name, walks in found.items():
            if walks and key not in walks:
                continue
            thunks[name] = repeated(walks[key], x) if walks else None
        calls = REPEATS * STEPS * (2 if key == "heun" else 1)
        print(
            table(
                f"{title}: {calls} evaluations, batch {BATCH}",
                thunks,
                certify=lambda y, z=truth: f"{(y - z).norm(dim=1).mean():.1e} off",
                rounds=15,
            )
        )


if __name__ == "__main__":
    main()
