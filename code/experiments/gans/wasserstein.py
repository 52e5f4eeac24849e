"""Runs behind book/gans/wasserstein.md.

    pushforward train gans/wasserstein/ring-gp     minutes, one processor core
    pushforward train gans/wasserstein/mnist       minutes, one GPU

The code is that of the chapter before.
"""

from dataclasses import replace

from .vanilla import RING, Config, build, main

__all__ = ["RUNS", "Config", "build", "main"]

IMAGES = Config(
    objective="wasserstein", penalty="gradient", weight=10.0, turns=5, steps=4000,
    betas=(0.0, 0.9), precision="32",
)  # fmt: skip
TOY = replace(
    RING, objective="wasserstein", turns=5, hidden=(64, 64), steps=1000, every=50,
    seeds=(0, 1, 2),
)  # fmt: skip
RUNS = {
    "gans/wasserstein/mnist": IMAGES,
    "gans/wasserstein/fashion": replace(IMAGES, data="fashion_mnist"),
    "gans/wasserstein/ring-clip": replace(TOY, box=0.15, optimizer="rmsprop"),
    "gans/wasserstein/ring-gp": replace(
        TOY, penalty="gradient", weight=1.0, betas=(0.0, 0.9), ship=True
    ),
}
