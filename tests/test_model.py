"""The contract of a model, and what importing the package does: nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

import pushforward
from pushforward.distributions import Gaussian, StandardNormal
from pushforward.model import Density, Model, Player
from pushforward.nn import MLP, noise_like

ROOT = Path(pushforward.__file__).parent


class Shift(Density):
    """N(m, I) with m learned: the smallest density."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.linspace(0, 1, d))
        self.base = StandardNormal(d)

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        return self.m + self.base.sample(n, rng=rng)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.base.log_prob(x - self.m)


class Game(Model):
    """The smallest adversary: a shift against a critic."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.g, self.critic = Shift(d), MLP(d, 4, 1)

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        return self.g.sample(n, rng=rng)

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        return -self.critic(self.sample(len(x), rng=rng)).mean()

    def judge(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        return -self.critic(x).mean() - self.loss(x, rng=rng)

    def players(self) -> list[Player]:
        return [
            Player(list(self.critic.parameters()), self.judge, turns=5),
            Player(list(self.g.parameters()), self.loss),
        ]


ZOO = {"Shift": lambda: Shift(3), "Game": lambda: Game(3)}


@pytest.fixture(params=ZOO)
def model(request: pytest.FixtureRequest) -> Model:
    torch.manual_seed(0)
    return ZOO[request.param]()


def test_sample_is_a_function_of_its_rng(model: Model) -> None:
    state = torch.get_rng_state()
    x, y = (model.sample(5, rng=Generator().manual_seed(1)) for _ in "xy")
    assert x.shape == (5, 3)
    assert torch.equal(x, y)
    assert torch.equal(torch.get_rng_state(), state), "the global state was used"


def test_loss_is_a_scalar_with_a_gradient_for_its_player(
    model: Model, rng: Generator
) -> None:
    x = torch.randn(16, 3, generator=rng)
    for player in model.players():
        loss = player.loss(x, rng=rng)
        assert loss.shape == ()
        grads = torch.autograd.grad(loss, player.params)
        assert all(g.isfinite().all() for g in grads)
        assert any((g != 0).any() for g in grads)


def test_players_share_out_the_parameters(model: Model) -> None:
    shared_out = [id(p) for player in model.players() for p in player.params]
    assert sorted(shared_out) == sorted(id(p) for p in model.parameters())


def test_a_player_takes_one_turn_unless_it_says_more() -> None:
    assert [p.turns for p in Game(2).players()] == [5, 1]


def test_a_density_plays_alone_and_lowers_its_negative_log_likelihood(
    rng: Generator,
) -> None:
    """Against the law with the same mean, by its own formula."""
    model, x = Shift(2), torch.randn(40, 2, generator=rng)
    (player,) = model.players()
    truth = Gaussian(model.m.detach(), torch.eye(2)).log_prob(x)
    torch.testing.assert_close(player.loss(x, rng=rng), -truth.mean())
    (grad,) = torch.autograd.grad(player.loss(x, rng=rng), player.params)
    torch.testing.assert_close(grad, model.m.detach() - x.mean(0))


def test_the_default_loss_draws_nothing(rng: Generator) -> None:
    before = rng.get_state()
    Shift(2).loss(noise_like(torch.zeros(4, 2)), rng=rng)
    assert torch.equal(rng.get_state(), before)


@pytest.mark.parametrize("kind", [Model, Density])
def test_the_contract_alone_is_no_model(kind: type[Model]) -> None:
    with pytest.raises(TypeError, match="abstract"):
        kind()


def test_a_model_without_density_has_no_log_prob() -> None:
    assert not isinstance(Game(2), Density)


def python(code: str) -> str:
    """Run a script in a fresh interpreter, warnings shown; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_costs_what_torch_costs() -> None:
    """No module of its own, and none of another library."""
    code = """
import sys, torch
before = set(sys.modules)
import pushforward
print(sorted(set(sys.modules) - before))
"""
    assert python(code) == "['pushforward']"


EDGE = {"plot", "check", "cli", "runs"}
INNER = sorted(
    ".".join(("pushforward", *p.relative_to(ROOT).with_suffix("").parts))
    for p in ROOT.rglob("*.py")
    if p.name != "__init__.py" and p.relative_to(ROOT).parts[0][:-3] not in EDGE
)


def test_importing_every_module_but_the_edge_changes_nothing() -> None:
    """No picture library; no seed, thread, type or mode; layers 0–2 set no filter."""
    pure = [m for m in INNER if m.split(".")[1] not in ("metrics", "train", "data")]
    code = f"""
import importlib, random, sys, warnings
import numpy, torch
def state():
    return (torch.initial_seed(), torch.get_rng_state().tolist(),
            random.getstate(), numpy.random.get_state()[1].tolist(),
            torch.get_num_threads(), torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(), torch.is_grad_enabled())
before, filters = state(), list(warnings.filters)
for name in {pure!r}:
    importlib.import_module(name)
assert warnings.filters == filters, "a warning filter was set"
for name in {INNER!r}:
    importlib.import_module(name)
assert state() == before, "global state was changed"
print(sorted({{"matplotlib", "IPython"}} & set(sys.modules)))
"""
    assert python(code) == "[]"
