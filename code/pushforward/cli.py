"""The command line: make runs, sample from them, see what is there.

    pushforward train vae/gauss/mlp --seed 0 1 2
    pushforward sample vae/gauss/mlp -n 64 --out digits.png
    pushforward runs --pending
    pushforward data --fetch

Every command answers ``--help``.  A name that does not exist ends in exit code 2
and the nearest names that do.
"""

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file

from . import files, record, runs
from .train import CheckpointError, NonFiniteLoss

__all__ = ["main"]

T = TypeVar("T")


class Refused(Exception):
    """What was asked makes no sense; the message says what does."""


EPILOGS = {
    "train": """examples:
  pushforward train vae/gauss/mlp            the whole run, on a GPU if any
  pushforward train vae/gauss/mlp --resume   go on with one that was interrupted
  pushforward train vae/gauss/mlp --small    seconds on a CPU; nothing is kept
  pushforward train vae/gauss/mlp --seed 7 --out /tmp/mlp-7""",
    "sample": """examples:
  pushforward sample vae/gauss/mlp -n 64 --out digits.png
  pushforward sample vae/gauss/mlp -n 10000 --out digits.safetensors --seed 1""",
    "runs": """examples:
  pushforward runs                 every run, made or not
  pushforward runs --pending       those that wait for a GPU, and why""",
    "data": """examples:
  pushforward data                 what is here, where, and whether it is whole
  pushforward data mnist --fetch   fetch what is missing, 11.6 MB

Files are looked for in the folder that PUSHFORWARD_DATA names, with one folder
for each data set, then in a cache, into which they are fetched.""",
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(
        prog="pushforward",
        description="Generative models that push noise forward: train and sample.",
        epilog="pushforward COMMAND --help shows options and examples of a command.",
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=summary.capitalize() + ".",
            epilog=EPILOGS[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    sub = command("train", "make a run and keep what it leaves in code/runs")
    sub.add_argument("name", help="name of the run: pushforward runs lists them")
    sub.add_argument("--device", default="auto", help="auto (default), cpu or cuda[:n]")
    sub.add_argument("--small", action="store_true", help="the budget of seconds")
    sub.add_argument("--seed", type=int, nargs="+", help="seeds other than its own")
    sub.add_argument(
        "--resume", action="store_true", help="go on after an interruption"
    )
    sub.add_argument("--out", type=Path, help="folder to write to, not that of the run")
    sub = command("sample", "draw from the model whose weights a run keeps")
    sub.add_argument("name", help="name of the run")
    sub.add_argument("-n", type=int, default=16, help="how many draws (default 16)")
    sub.add_argument("--out", type=Path, required=True, help="a .png or .safetensors")
    sub.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    sub = command("runs", "list the runs and the machines that made them")
    sub.add_argument("--pending", action="store_true", help="what waits for a GPU")
    sub = command("data", "list the data sets, where they are, whether they are whole")
    sub.add_argument("name", nargs="?", help="one of " + ", ".join(files.CATALOGUE))
    sub.add_argument("--fetch", action="store_true", help="fetch what is missing")
    return top


def asked(look: Callable[[str], T], name: str) -> T:
    """Return what a name stands for, or refuse it."""
    try:
        return look(name)
    except (ValueError, FileNotFoundError) as error:
        raise Refused(str(error)) from error


def train(options: argparse.Namespace) -> None:
    """Make a run."""
    made = asked(runs.experiment, options.name)
    config = made.config.small() if options.small else made.config
    if options.seed:
        config = dataclasses.replace(config, seeds=tuple(options.seed))
    keep = options.out is not None or config == made.config
    if not keep:
        print("Nothing will be kept: another budget than the run's needs --out.")
    device = "cpu" if options.small and options.device == "auto" else options.device
    with runs.Writer(
        options.name,
        config,
        device=device,
        path=options.out,
        keep=keep,
        resume=options.resume,
        progress=True,
    ) as run:
        made.main(config, run)
    for metric, values in run.run().metrics.items():
        print(f"{metric:16} " + " ".join(f"{value:.6g}" for value in values))
    where = f", kept in {run.path}" if keep else ""
    print(f"{run.seconds():.0f} s on {record.device_name(run.device)}{where}")


@torch.no_grad()
def sample(options: argparse.Namespace) -> None:
    """Draw from a run's model into a picture or a file of tensors."""
    if options.n < 1:
        raise Refused(f"-n must be positive, got {options.n}")
    if options.out.suffix not in (".png", ".safetensors"):
        raise Refused(f"--out must be a .png or .safetensors, got {options.out}")
    rng = torch.Generator().manual_seed(options.seed)
    x = asked(runs.build, options.name).sample(options.n, rng=rng).contiguous()
    if options.out.suffix == ".safetensors":
        save_file({"x": x}, options.out)
    else:
        picture(x, options.out)
    print(f"{options.n} draws of {options.name} in {options.out}")


def picture(x: torch.Tensor, path: Path) -> None:
    """Draw images as a sheet, points of the plane as dots."""
    from .plot import figure, image_grid, scatter

    if x.ndim == 4:
        fig = image_grid(x, cols=min(10, len(x)))
    else:
        fig, ax = figure(width=4.0, height=4.0)
        scatter(ax, x)
    fig.savefig(path, dpi=150, facecolor="white")


def list_runs(options: argparse.Namespace) -> None:
    """List runs, or those to be made."""
    if options.pending:
        waiting = runs.pending()
        for name, reason in waiting:
            print(f"{name:32} {reason}")
        print(f"{len(waiting)} runs wait for a GPU: pushforward train NAME")
        return
    for name in sorted({*runs.experiments(), *runs.names()}):
        print(f"{name:32} {runs.machine(name)}")


def list_data(options: argparse.Namespace) -> None:
    """List data sets and the state of their files."""
    if options.name not in (None, *files.CATALOGUE):
        near = difflib.get_close_matches(options.name, files.CATALOGUE, n=2, cutoff=0.3)
        raise Refused(
            f"no data set {options.name!r}: did you mean {' or '.join(near)}?"
        )
    for name in [options.name] if options.name else files.CATALOGUE:
        if options.fetch:
            files.fetch(name)
        for file, path, error in files.states(name):
            state = "damaged" if error else "whole" if path else "not here"
            size = f"{file.size / 1e3:,.0f} kB"
            print(f"{name:16} {file.name:28} {size:>10}  {state:9} {path or ''}")


COMMANDS = {"train": train, "sample": sample, "runs": list_runs, "data": list_data}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, 2 for what was asked wrongly, 1 for what went wrong."""
    options: Any = parser().parse_args(arguments)
    try:
        COMMANDS[options.command](options)
    except Refused as error:
        print(f"pushforward: {error}", file=sys.stderr)
        return 2
    except (files.DataError, CheckpointError, NonFiniteLoss) as error:
        print(f"pushforward: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
