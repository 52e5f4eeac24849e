"""Training is a game: its moves in closed form, its interruptions, its processes.

Run as a program, this file is the training run that the tests kill and resume, or
one of the two processes that train together.
"""

import errno
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.optim import SGD, Adam

from pushforward import data
from pushforward import train as training
from pushforward.model import Model, Player
from pushforward.train import (
    Average,
    CheckpointError,
    Game,
    NonFiniteLoss,
    Step,
    cosine,
    train,
)


class Toy(Model):
    """One weight vector and a loss that the test chooses."""

    def __init__(self, loss: Callable[..., Tensor], *start: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start))
        self.how = loss

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        return self.w.expand(n, -1)

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        return self.how(self.w, x)


class Duel(Model):
    """Two numbers: b lowers b²/2 − ab in two turns, then a lowers ab in one."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))
        self.b = nn.Parameter(torch.tensor(b))

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        return self.a.expand(n, 1)

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        return self.a * self.b

    def players(self) -> list[Player]:
        cost = lambda x, rng=None: self.b**2 / 2 - self.a * self.b
        return [Player([self.b], cost, turns=2), Player([self.a], self.loss)]


class Noisy(Model):
    """A net with every source of noise: dropout, the rng, the stream."""

    def __init__(self, drop: float = 0.2, noise: float = 0.1) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, 16), nn.Tanh(), nn.Dropout(drop), nn.Linear(16, 2)
        )
        self.noise = noise

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        return torch.zeros(n, 2)

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        eps = torch.randn(x.shape, generator=rng, dtype=x.dtype)
        return (self.net(x + self.noise * eps) - x).square().mean()


def points(n: int = 50) -> Tensor:
    return torch.randn(n, 2, generator=Generator().manual_seed(7))


ZERO = torch.zeros(4, 1)
SUM = lambda w, x: w.sum()  # its gradient is 1 everywhere
sgd = partial(SGD)


def batches(x: Tensor = ZERO) -> data.Stream:
    return data.stream(x, len(x), rng=Generator().manual_seed(0))


def play(model: Model, **options: object) -> list[Step]:
    return list(train(model, batches(), **{"optimizer": sgd, "lr": 0.1, **options}))


def test_a_quadratic_contracts_by_one_minus_lr() -> None:
    """w − m ↦ (1 − lr)(w − m) at each step, m the mean of the batch."""
    x = torch.tensor([[1.0], [2.0], [6.0]])
    model = Toy(lambda w, x: (w - x).square().mean() / 2, 5.0)
    game = train(model, batches(x), steps=7, lr=0.1, optimizer=sgd)
    seen = [(step.number, model.w.item()) for step in game]
    expected = [(k, pytest.approx(3 + 2 * 0.9**k, abs=1e-13)) for k in range(1, 8)]
    assert seen == expected, "a step is yielded after its update"


def test_losses_are_those_before_the_update() -> None:
    model = Toy(SUM, 1.0)
    assert [s.losses for s in play(model, steps=3)] == [
        [pytest.approx(1 - 0.1 * k)] for k in range(3)
    ]


def test_players_take_their_turns_in_order() -> None:
    """(eq:game), the moves written out by hand."""
    model, a, b, lr = Duel(1.0, 0.5), 1.0, 0.5, 0.1
    for _ in train(model, batches(), steps=9, lr=lr, optimizer=sgd):
        for _ in range(2):
            b -= lr * (b - a)
        a -= lr * b
        assert (model.a.item(), model.b.item()) == pytest.approx((a, b), abs=1e-14)


def test_a_player_leaves_no_gradient_on_the_others() -> None:
    model = Duel(1.0, 0.5)
    game = iter(train(model, batches(), steps=1, lr=0.1, optimizer=sgd))
    model.b.requires_grad_(True)
    next(game)
    # b's last gradient is of its own loss, before a moved: not polluted by a's.
    b = 0.5
    for _ in range(2):
        grad = b - 1.0
        b -= 0.1 * grad
    assert model.b.grad.item() == pytest.approx(grad, abs=1e-15)


def test_frozen_weights_stay() -> None:
    model = Duel(1.0, 0.5)
    extra = nn.Parameter(torch.tensor(3.0), requires_grad=False)
    model.register_parameter("extra", extra)
    players = model.players()
    model.players = lambda: [players[0]._replace(params=[model.b, extra]), players[1]]
    play(model, steps=3)
    assert extra.item() == 3


def test_the_first_step_of_adam_is_lr_times_the_sign() -> None:
    model = Toy(lambda w, x: (w * torch.tensor([3.0, -0.5])).sum(), 0.0, 0.0)
    list(train(model, batches(), steps=1, lr=0.01))
    assert model.w.tolist() == pytest.approx([-0.01, 0.01], rel=1e-6)


def test_default_optimizer_is_adam() -> None:
    """Against torch's Adam in a plain loop."""
    torch.manual_seed(0)
    model, twin = Noisy(0.0, 0.0), Noisy(0.0, 0.0)
    twin.load_state_dict(model.state_dict())
    optimizer = Adam(twin.parameters(), lr=0.01)
    x = points(20)
    list(train(model, batches(x), steps=30, lr=0.01))
    for _ in range(30):
        optimizer.zero_grad()
        twin.loss(x).backward()
        optimizer.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_the_schedule_multiplies_the_rate() -> None:
    model, factors = Toy(SUM, 0.0), [1.0, 0.5, 0.0, 2.0]
    play(model, steps=4, schedule=lambda k: factors[k])
    assert model.w.item() == pytest.approx(-0.1 * sum(factors), abs=1e-15)


def test_cosine_rises_in_a_line_and_falls_by_symmetry() -> None:
    up = [cosine(110, warmup=9)(k) for k in range(10)]
    assert up == pytest.approx([(k + 1) / 10 for k in range(10)])
    down = [cosine(100)(k) for k in range(100)]
    assert down[0] == 1
    assert down[50] == pytest.approx(0.5)
    assert sum(down) == pytest.approx(50.5)  # c_k + c_{100−k} = 1
    assert cosine(100)(100) == pytest.approx(0, abs=1e-15)


def test_clipping_bounds_the_norm_of_each_player() -> None:
    model = Toy(lambda w, x: w @ torch.tensor([3.0, 4.0]), 0.0, 0.0)
    play(model, steps=1, clip=1.0)
    assert model.w.tolist() == pytest.approx([-0.1 * 3 / 5, -0.1 * 4 / 5], rel=1e-5)
    model = Toy(lambda w, x: w @ torch.tensor([3.0, 4.0]), 0.0, 0.0)
    play(model, steps=1, clip=6.0)
    assert model.w.tolist() == pytest.approx([-0.3, -0.4], abs=1e-15)


def test_the_average_is_the_geometric_sum() -> None:
    """w_k = w_0 − k lr, so w̄_n = βⁿ w_0 + (1 − β) Σ_k β^{n−k} w_k."""
    model, beta, n = Toy(SUM, 2.0), 0.8, 12
    average = Average(model, beta)
    play(model, steps=n, ema=average)
    expected = beta**n * 2.0 + (1 - beta) * sum(
        beta ** (n - k) * (2.0 - 0.1 * k) for k in range(1, n + 1)
    )
    assert average.model.w.item() == pytest.approx(expected, abs=1e-14)
    assert model.w.item() == pytest.approx(2.0 - 0.1 * n, abs=1e-14)
    assert not average.model.w.requires_grad


def test_a_decay_of_one_minus_one_over_k_is_the_mean() -> None:
    model = Toy(SUM, 2.0)
    average = Average(model, lambda k: 1 - 1 / k)
    play(model, steps=10, ema=average)
    assert average.model.w.item() == pytest.approx(2.0 - 0.1 * 5.5, abs=1e-14)


def test_counters_are_copied_into_the_average() -> None:
    model = Toy(SUM, 2.0)
    model.register_buffer("count", torch.tensor(0))
    average = Average(model, 0.9)
    for _ in train(model, batches(), steps=3, ema=average):
        model.count += 1
    assert average.model.count.item() == 2  # the third came after the average


def test_the_same_rng_gives_the_same_weights_and_the_global_state_stays() -> None:
    def run() -> Tensor:
        torch.manual_seed(0)
        model = Noisy(drop=0.0)
        rng = Generator().manual_seed(1)
        state = torch.get_rng_state()
        list(train(model, data.stream(points(), 8, rng=rng), steps=20, rng=rng))
        assert torch.equal(state, torch.get_rng_state()), "the global rng was used"
        return nn.utils.parameters_to_vector(model.parameters())

    assert torch.equal(run(), run())


def test_each_round_is_in_training_mode() -> None:
    model, seen = Noisy(), []
    inner = model.loss
    model.loss = lambda x, rng=None: seen.append(model.training) or inner(x, rng=rng)
    for _ in train(model, batches(points(4)), steps=2):
        model.eval()
    assert seen == [True, True]


def test_bf16_runs_the_loss_in_low_precision_and_keeps_the_weights() -> None:
    torch.set_default_dtype(torch.float32)
    seen = []

    def loss(w: Tensor, x: Tensor) -> Tensor:
        product = x @ w[:, None]
        seen.append(product.dtype)
        return product.float().sum()

    model = Toy(loss, 1.0, 1 / 3)
    x = torch.full((1, 2), 1 / 3)
    steps = list(
        train(model, batches(x), steps=1, optimizer=sgd, precision="bf16-mixed")
    )
    assert seen == [torch.bfloat16]
    assert model.w.dtype == torch.float32
    error = abs(steps[0].losses[0] - 4 / 9)
    assert 0 < error < 2**-7, "the product has the error of eight bits"


def test_compiled_losses_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def eager(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        calls.append(loss)
        return loss

    monkeypatch.setattr(torch, "compile", eager)
    model = Toy(SUM, 1.0)
    play(model, steps=3, compile=True)
    assert calls == [model.loss]
    assert model.w.item() == pytest.approx(0.7)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler itself
@pytest.mark.skipif("PUSHFORWARD_COMPILE" not in os.environ, reason="16 s when cold")
def test_the_compiler_agrees(rng: Generator) -> None:
    ends = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = Noisy(drop=0.0, noise=0.0)
        list(train(model, batches(points()), steps=20, compile=compiled))
        ends.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


def test_the_bar_shows_steps_and_losses(capfd: pytest.CaptureFixture[str]) -> None:
    play(Toy(SUM, 1.0), steps=3, progress=True)
    assert "3/3" in capfd.readouterr().err
    play(Toy(SUM, 1.0), steps=3)
    assert capfd.readouterr().err == ""


# Losses that are not finite.


def fuse(at: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss that is NaN from the given step on."""
    calls = iter(range(1, 10**6))
    return lambda w, x: w.sum() * (torch.nan if next(calls) >= at else 1.0)


def test_a_nan_stops_before_it_reaches_the_weights(tmp_path: Path) -> None:
    model, path = Toy(fuse(7), 0.0), tmp_path / "run.pt"
    with pytest.raises(NonFiniteLoss) as caught:
        play(model, steps=20, checkpoint=path, every=5)
    told = str(caught.value)
    assert "loss of player 0 is nan at step 7" in told
    assert f"the last good checkpoint is {path} (step 5)" in told
    assert model.w.item() == pytest.approx(-0.6)
    assert torch.load(path, weights_only=True)["number"] == 5


def test_the_player_is_named_and_a_missing_checkpoint_too() -> None:
    model = Duel(1.0, 0.5)
    model.loss = lambda x, rng=None: model.a * math.inf
    with pytest.raises(FloatingPointError, match=r"player 1 .* no checkpoint"):
        play(model, steps=2)


def test_a_late_look_finds_the_step_and_guards_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an accelerator the losses are looked at now and then."""
    late = lambda self, i, loss: self.pending.append((self.number + 1, i, loss))
    monkeypatch.setattr(Game, "watch", late)
    path = tmp_path / "run.pt"
    with pytest.raises(NonFiniteLoss, match=r"at step 7; .*\(step 5\)"):
        play(Toy(fuse(7), 0.0), steps=20, checkpoint=path, every=5)
    assert torch.load(path, weights_only=True)["number"] == 5
    with pytest.raises(NonFiniteLoss, match="at step 2"):
        play(Toy(fuse(2), 0.0), steps=3)


# Interruptions.


def noisy_run(path: Path | None, steps: int, **options: object) -> dict[str, Tensor]:
    """Every kind of state at once; returns all weights at the end."""
    torch.manual_seed(0)
    model = Noisy()
    average = Average(model, 0.9)
    rng = Generator().manual_seed(1)
    order = Generator().manual_seed(2)
    stream = data.stream(points(), 8, rng=order)
    body = options.pop("body", lambda step: None)
    options = {"ema": average, "schedule": cosine(60), "clip": 1.0, **options}
    for step in train(model, stream, steps=steps, rng=rng, checkpoint=path, every=10,
                      **options):  # fmt: skip
        torch.rand(1, generator=rng)  # the body may draw, too
        body(step)
    return {**model.state_dict(), **{"ema." + k: v for k, v in
            average.model.state_dict().items()}}  # fmt: skip


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[k], other[k]) for k in one
    )


@pytest.mark.parametrize("stop", [1, 10, 17, 59])
def test_a_run_that_was_left_ends_in_the_same_bits(tmp_path: Path, stop: int) -> None:
    class Left(Exception):
        pass

    def leave(step: Step) -> None:
        if step.number == stop:
            raise Left

    whole = noisy_run(None, 60)
    path = tmp_path / "run.pt"
    with pytest.raises(Left):
        noisy_run(path, 60, body=leave)
    torch.manual_seed(99)
    assert same(noisy_run(path, 60, resume=True), whole)
    assert same(noisy_run(path, 60, resume=True), whole), "a run that had ended"


def test_a_run_can_be_made_longer(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    noisy_run(path, 20)
    assert same(noisy_run(path, 45, resume=True), noisy_run(None, 45))


def child(*arguments: str, **environment: str) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen([sys.executable, __file__, *arguments], env=env)


def test_a_run_killed_in_a_step_and_in_a_write_ends_in_the_same_bits(
    tmp_path: Path,
) -> None:
    """SIGKILL in the body of step 27, then in the middle of writing step 40."""
    path = str(tmp_path / "run.pt")
    assert child("run", path, "step").wait(300) == -signal.SIGKILL
    assert torch.load(path, weights_only=True)["number"] == 20
    assert child("run", path, "write").wait(300) == -signal.SIGKILL
    assert torch.load(path, weights_only=True)["number"] == 30
    assert same(noisy_run(Path(path), 60, resume=True), noisy_run(None, 60))


def killed_run(path: Path, where: str) -> None:
    """Train towards step 60, and be killed on the way."""
    torch.set_default_dtype(torch.float64)
    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
    inner = training.write_whole

    def write(target: Path, content: memoryview) -> None:
        if where == "write" and write.step == 40:
            part = target.with_name(f".{target.name}.part")
            part.write_bytes(content[: len(content) // 2])
            kill()
        inner(target, content)

    def body(step: Step) -> None:
        write.step = step.number
        if where == "step" and step.number == 27:
            kill()

    training.write_whole = write
    noisy_run(path, 60, resume=True, body=body)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    """The file that is written first is, from step 11 on, a device that is full."""
    path, before = tmp_path / "run.pt", []

    def body(step: Step) -> None:
        if step.number == 11:
            before.append(path.read_bytes())
            (tmp_path / ".run.pt.part").symlink_to("/dev/full")

    with pytest.raises(CheckpointError) as caught:
        noisy_run(path, 60, body=body)
    assert caught.value.errno == errno.ENOSPC
    assert f"{path} was not written at step 20" in str(caught.value)
    assert f"the last good checkpoint is {path} (step 10)" in str(caught.value)
    assert path.read_bytes() == before[0]
    assert os.listdir(tmp_path) == ["run.pt"]
    assert same(noisy_run(path, 60, resume=True), noisy_run(None, 60))


def test_a_folder_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/run\.pt .* no checkpoint"):
        noisy_run(tmp_path / "file" / "run.pt", 60)


def test_a_checkpoint_is_never_unpickled(tmp_path: Path) -> None:
    """A file that would run code is refused."""
    path = tmp_path / "run.pt"
    torch.save({"number": threading.Event}, path)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        noisy_run(path, 60, resume=True)


def test_what_does_not_fit_the_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    noisy_run(path, 10)
    with pytest.raises(ValueError, match="ema must be given as"):
        noisy_run(path, 20, resume=True, ema=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps"),
        ({"every": 0}, "every"),
        ({"lr": 0.0}, "lr"),
        ({"lr": math.inf}, "lr"),
        ({"clip": -1.0}, "clip"),
        ({"resume": True}, "resume"),
        ({"precision": "17"}, "[Pp]recision"),
        ({"checkpoint": "x.pt", "batches": iter([ZERO])}, "Stream"),
    ],
)
def test_bad_arguments_are_refused_at_the_door(options: dict, message: str) -> None:
    """Before the first step is asked for."""
    given = {"batches": batches(), "steps": 1, **options}
    with pytest.raises(ValueError, match=message):
        train(Toy(SUM, 1.0), **given)


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_a_bad_decay_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="decay"):
        Average(Toy(SUM, 1.0), decay)


def test_a_bad_warmup_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup"):
        cosine(10, warmup=10)


def test_importing_and_training_leave_the_process_as_it_was() -> None:
    assert child("quiet").wait(300) == 0


def quiet() -> None:
    """Compare the global state around an import, and around a run.

    Warning filters are looked at around the run alone: they come with the
    imports of other libraries, and ours adds none.
    """
    state = lambda: (
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_grad_enabled(),
        list(warnings.filters),
    )
    model = Toy(SUM, 1.0)
    before = state()
    list(train(model, batches(), steps=2))
    assert state() == before


# Two processes.


def test_two_processes_train_as_one_on_the_joined_batch(tmp_path: Path) -> None:
    """Also: their noise differs, and they resume together to the same bits."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
              "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}  # fmt: skip
    pair = [
        child("join", str(tmp_path), **common, RANK=str(r), LOCAL_RANK=str(r))
        for r in range(2)
    ]
    assert [p.wait(300) for p in pair] == [0, 0]
    one, other = (torch.load(tmp_path / f"{r}.pt") for r in range(2))
    alone = joint_run(seed=0)
    for key, weight in alone.items():
        torch.testing.assert_close(one["weights"][key], weight, rtol=1e-12, atol=1e-12)
    assert same(one["weights"], other["weights"])
    assert not torch.equal(one["noise"], other["noise"]), "each has noise of its own"
    assert same(one["whole"], one["resumed"])
    assert same(one["whole"], other["whole"])


def joint_run(seed: int, fabric: object = None) -> dict[str, Tensor]:
    """Without noise: the joined batch decides alone.  The seed is of the weights."""
    torch.manual_seed(seed)
    model = Noisy(drop=0.0, noise=0.0)
    rank, world = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    rng = Generator().manual_seed(1)
    stream = data.stream(points(), 8, rng=rng, rank=rank, world=world)
    list(train(model, stream, steps=25, clip=0.5, fabric=fabric))
    return model.state_dict()


def joined(folder: Path) -> None:
    """One of two processes, each with weights of its own at the start."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    rank = fabric.global_rank
    results = {"weights": joint_run(rank, fabric)}

    def noisy(path: Path | None, steps: int, **options: object) -> dict[str, Tensor]:
        torch.manual_seed(rank)
        model, rng = Noisy(), Generator().manual_seed(1)
        stream = data.stream(points(), 8, rng=rng, rank=rank, world=2)
        list(train(model, stream, steps=steps, rng=rng, fabric=fabric, checkpoint=path,
                   **options))  # fmt: skip
        return model.state_dict()

    results["whole"] = noisy(None, 20)
    noisy(folder / "run.pt", 13)
    fabric.barrier()
    results["resumed"] = noisy(folder / "run.pt", 20, resume=True)
    game = Game(Noisy(), batches(), fabric, Generator().manual_seed(1), None, None)
    game.join()
    results["noise"] = torch.rand(3, generator=game.rng)
    torch.save(results, folder / f"{rank}.pt")


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "run":
        killed_run(Path(rest[0]), rest[1])
    elif what == "join":
        joined(Path(rest[0]))
    else:
        quiet()
