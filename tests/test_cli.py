"""The command line: what it makes, what it says, how it refuses."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pushforward import cli, files, runs
from pushforward.files import CATALOGUE, File, Source
from pushforward.model import Model
from pushforward.runs import Experiment, Writer


@dataclass(frozen=True)
class Config:
    """One number for each seed."""

    scale: float = 3.0
    seeds: tuple[int, ...] = (0, 1)
    hardware: str = "gpu"

    def small(self) -> "Config":
        return replace(self, scale=0.5, seeds=(0,), hardware="cpu")


class Shifted(Model):
    """A law on R^d or on images that is moved by its weight."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(shape))

    def sample(self, n: int, *, rng: torch.Generator | None = None) -> torch.Tensor:
        return self.w + torch.rand((n, *self.w.shape), generator=rng)

    def loss(self, x: torch.Tensor, *, rng: object = None) -> torch.Tensor:
        return (self.w - x).square().mean()


def build(config: Config) -> Model:
    return Shifted(2)


def make(config: Config, run: Writer) -> None:
    for seed in config.seeds:
        run.log(seed=seed, step=1, loss=0.5)
        run.metric(seed, "score", config.scale * seed)
    run.weights({"w": torch.tensor([5.0, 7.0])})


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    module = sys.modules[__name__]
    found = {n: Experiment(n, Config(), make, module) for n in ("toy/a", "toy/b")}
    monkeypatch.setattr(runs, "experiments", lambda: found)
    monkeypatch.setenv("PUSHFORWARD_RUNS", str(tmp_path / "runs"))
    return tmp_path


Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        return code, *capsys.readouterr()

    return run


def test_train_makes_the_run(ask: Ask) -> None:
    code, out, _ = ask("train", "toy/a", "--device", "cpu")
    assert code == 0
    assert out.splitlines()[0].split() == ["score", "0", "3"]
    assert runs.load("toy/a").metrics == {"score": [0.0, 3.0]}
    assert str(runs.folder("toy/a")) in out


def test_another_budget_leaves_the_run_alone(ask: Ask, place: Path) -> None:
    code, out, _ = ask("train", "toy/a", "--small")
    assert code == 0
    assert "Nothing will be kept" in out
    assert not (place / "runs").exists()
    ask("train", "toy/a", "--small", "--out", str(place / "small"))
    assert (place / "small" / "metrics.json").read_text().split() == [
        "{", '"score":', "[", "0.0", "]", "}"
    ]  # fmt: skip
    assert not (place / "runs").exists()


def test_other_seeds_are_another_budget(ask: Ask, place: Path) -> None:
    _, out, _ = ask("train", "toy/a", "--seed", "4", "5", "--device", "cpu")
    assert out.splitlines()[1].split() == ["score", "12", "15"]
    assert "Nothing will be kept" in out
    assert not (place / "runs").exists()


def test_resume_reaches_the_writer(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    class Spy(Writer):
        def __init__(self, *args: object, **options: object) -> None:
            given.append(options)
            super().__init__(*args, **options)

    monkeypatch.setattr(runs, "Writer", Spy)
    ask("train", "toy/a", "--resume", "--device", "cpu")
    ask("train", "toy/a")
    assert [(g["resume"], g["device"]) for g in given] == [
        (True, "cpu"),
        (False, "auto"),
    ]


def test_sample_draws_from_the_weights_that_were_kept(ask: Ask, place: Path) -> None:
    ask("train", "toy/a")
    out = place / "draws.safetensors"
    assert ask("sample", "toy/a", "-n", "5", "--out", str(out), "--seed", "3")[0] == 0
    rng = torch.Generator().manual_seed(3)
    expected = torch.tensor([5.0, 7.0]) + torch.rand((5, 2), generator=rng)
    torch.testing.assert_close(load_file(out)["x"], expected)


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)])
def test_sample_draws_a_picture(
    ask: Ask, place: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    monkeypatch.setattr(runs, "build", lambda name: Shifted(*shape))
    out = place / "draws.png"
    assert ask("sample", "toy/a", "--out", str(out))[0] == 0
    assert out.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "toy/c"], "did you mean toy/b or toy/a?"),
        (["train", "nonsense"], "one of ['toy/a', 'toy/b']"),
        (["sample", "toy/a", "--out", "x.png"], "pushforward train toy/a"),
        (["sample", "toy/a", "--out", "x.gif"], ".png or .safetensors"),
        (["sample", "toy/a", "-n", "0", "--out", "x.png"], "-n must be positive"),
        (["data", "mist"], "did you mean mnist"),
    ],
)
def test_what_makes_no_sense_ends_in_two(
    ask: Ask, arguments: list[str], message: str
) -> None:
    code, out, err = ask(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train"], ["sample", "toy/a"]])
def test_the_parser_ends_in_two(ask: Ask, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        ask(*arguments)
    assert caught.value.code == 2


def test_an_error_of_the_experiment_is_not_hidden(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: Config, run: Writer) -> None:
        raise ValueError("of its own")

    broken = Experiment("toy/a", Config(), fail, sys.modules[__name__])
    monkeypatch.setattr(runs, "experiments", lambda: {"toy/a": broken})
    with pytest.raises(ValueError, match="of its own"):
        ask("train", "toy/a")


def test_runs_are_listed_with_their_machines(ask: Ask) -> None:
    ask("train", "toy/a", "--device", "cpu")
    made, missing = ask("runs")[1].splitlines()
    assert made.split()[0] == "toy/a"
    assert "(CPU)" in made
    assert missing.split() == ["toy/b", "pending"]
    out = ask("runs", "--pending")[1].splitlines()
    assert out[0].startswith("toy/a")
    assert "made on a CPU" in out[0]
    assert out[1].split() == ["toy/b", "missing"]
    assert out[2].startswith("2 runs wait for a GPU")


def test_data_says_what_is_here_and_whole(
    ask: Ask, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b"0 1 1 0\n"
    import hashlib

    file = File("bits.amat", len(body), hashlib.sha256(body).hexdigest())
    monkeypatch.setattr(files, "CATALOGUE", {"bits": Source((), {"train": (file,)})})
    monkeypatch.setenv("PUSHFORWARD_DATA", str(place))
    monkeypatch.setattr(files, "cache", lambda: place / "none")
    assert "not here" in ask("data")[1]
    path = place / "bits" / "bits.amat"
    path.parent.mkdir()
    path.write_bytes(body)
    assert ask("data", "bits")[1].split()[-2:] == ["whole", str(path)]
    assert ask("data", "bits", "--fetch")[0] == 0
    path.write_bytes(b"0 1 1 1\n")
    assert ask("data")[1].split()[-2] == "damaged"
    code, _, err = ask("data", "--fetch")
    assert code == 1
    assert file.sha256 in err


@pytest.mark.parametrize("command", ["", "train", "sample", "runs", "data"])
def test_help_gives_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*command.split(), "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert ("examples:" in out) == bool(command)
    assert max(map(len, out.splitlines())) <= 80


def test_the_program_is_installed() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "pushforward.cli", "train", "no/such"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    assert "no experiment makes 'no/such'" in found.stderr


def test_the_catalogue_is_what_the_loaders_know() -> None:
    assert set(CATALOGUE) == {"mnist", "fashion-mnist", "binarized-mnist"}
