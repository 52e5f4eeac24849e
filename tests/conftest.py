"""Every test runs in double precision, on one thread, with its own randomness."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pushforward import record

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]

EXPERIMENT = '''
"""A line fitted by gradient descent, as an experiment."""
from dataclasses import dataclass, replace
import torch
from pushforward.data import stream
from pushforward.model import Model
from pushforward.train import train

class Line(Model):
    def __init__(self, d):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(d))
    def sample(self, n, *, rng=None):
        return self.w.expand(n, -1)
    def loss(self, x, *, rng=None):
        noise = torch.randn(x.shape, generator=rng, dtype=x.dtype)
        return (self.w - x - noise).square().mean()

@dataclass(frozen=True)
class Config:
    sizes: tuple[int, ...] = (3, 4)
    d: int = 2
    steps: int = 30
    data: str = "digits"
    seeds: tuple[int, ...] = (0, 1)
    hardware: str = "gpu"
    def small(self):
        return replace(self, steps=2, seeds=(0,), hardware="cpu")

RUNS = {"toy/line": Config(), "toy/line/long": Config(steps=40, hardware="cpu")}

def build(config):
    return Line(config.d)

def main(config, run):
    for seed in config.seeds:
        model = build(config)
        rng = torch.Generator().manual_seed(seed)
        x = torch.randn(20, config.d, generator=rng)
        batches = stream(x, 4, rng=rng)
        for step in train(model, batches, steps=config.steps, rng=rng, lr=0.1,
                          every=5, **run.training(seed)):
            run.log(seed=seed, step=step.number, loss=step.losses[0])
            hook(seed, step.number)
        run.metric(seed, "w", model.w.sum().item())
        run.weights(model.state_dict())

def hook(seed, step):
    pass
'''


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A source folder with one experiment, without runs."""
    file = tmp_path / "experiments" / "toy" / "line.py"
    file.parent.mkdir(parents=True)
    file.write_text(EXPERIMENT)
    monkeypatch.setattr(record, "CODE", tmp_path)
    monkeypatch.setenv("PUSHFORWARD_RUNS", str(tmp_path / "runs"))
    before = {k: v for k, v in sys.modules.items() if k.startswith("experiments")}
    for name in before:
        del sys.modules[name]
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "runs"
    for name in [k for k in sys.modules if k.startswith("experiments")]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture(scope="session")
def built() -> str:
    """What the build said; the site is in _build/html."""
    command = [Path(sys.executable).with_name("jupyter-book"), "build", "."]
    done = subprocess.run(
        [*command, "-W", "--keep-going"],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    return done.stdout
