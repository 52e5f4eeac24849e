"""Learn the denoiser: what the loss weights (book/diffusion/denoising.md).

Data x_0 are noised to x_σ = x_0 + σ z, z ~ N(0, I).  Whatever the weight λ > 0 and
the law of the levels σ > 0, the mean E[x_0 | x_σ] minimises

    E λ(σ) ‖D(x_0 + σ z, σ) − x_0‖²                         (eq:denoising-loss)

A network F may be asked for any sum a x_0 + b z instead, with b ≠ aσ; then

    D(x, σ) = (b x − σ F)/(b − aσ) = c_skip x + c_out F            (eq:dn-forms)

and an error of F, in units of the target, is multiplied by

    κ(σ) = |c_out| √(a² σ_d² + b²),   σ_d the deviation of x_0   (eq:dn-amplification)

which is least for the one form in which input and target have deviation one,

    D(x, σ) = c_skip x + c_out F(c_in x, ¼ ln σ)            (eq:edm-precondition)
    c_skip = σ_d²/(σ² + σ_d²),  c_out = σ σ_d c_in,  c_in = 1/√(σ² + σ_d²)

References:
    Karras, Aittala, Aila, Laine (2022), Elucidating the design space of
        diffusion-based generative models.
    Salimans, Ho (2022), Progressive distillation for fast sampling of diffusion
        models (the form v).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor, nn

from ..distributions import StandardNormal, positive
from ..model import Model
from ..nn import noise_like, randn
from .samplers import Sampler, heun, karras_grid
from .score import Denoiser
from .sde import SDE

__all__ = [
    "Diffusion",
    "Form",
    "Levels",
    "LogNormal",
    "LogUniform",
    "Preconditioned",
    "Target",
    "TimeUniform",
    "Units",
    "Weight",
    "amplification",
    "denoiser_form",
    "denoising_error",
    "edm_form",
    "edm_weight",
    "noise_form",
    "noise_weight",
    "score_form",
    "v_form",
    "velocity_form",
]


# Forms: what the network is asked for


class Target(NamedTuple):
    """What a network is asked for at a level σ: a x_0 + b z, where b ≠ aσ.

    Attributes:
        a: Share of the data, in the shape of σ.
        b: Share of the noise.
    """

    a: Tensor
    b: Tensor

    def value(self, x: Tensor, z: Tensor) -> Tensor:
        """Return the target a x + b z of clean data x under noise z."""
        return self.a * x + self.b * z

    def denoised(self, F: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D at x = x_σ from the prediction F (eq:dn-forms)."""
        lever = self.b - self.a * sigma
        return self.b / lever * x - sigma / lever * F

    def predicted(self, D: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the prediction F that stands for a denoised D at x = x_σ."""
        return self.a * D + self.b * (x - D) / sigma


Form = Callable[[Tensor, float], Target]  # σ and σ_d ↦ what F is asked for


def denoiser_form(sigma: Tensor, sigma_data: float) -> Target:
    """Ask for the data x_0."""
    return Target(torch.ones_like(sigma), torch.zeros_like(sigma))


def noise_form(sigma: Tensor, sigma_data: float) -> Target:
    """Ask for the noise z, often written ε."""
    return Target(torch.zeros_like(sigma), torch.ones_like(sigma))


def score_form(sigma: Tensor, sigma_data: float) -> Target:
    """Ask for −z/σ, whose conditional mean is the score."""
    return Target(torch.zeros_like(sigma), -1 / sigma)


def velocity_form(sigma: Tensor, sigma_data: float) -> Target:
    """Ask for x_0 − z, the velocity of the straight path of flow matching."""
    return Target(torch.ones_like(sigma), -torch.ones_like(sigma))


def v_form(sigma: Tensor, sigma_data: float) -> Target:
    """Ask for v = α z − σ α x_0 with α = 1/√(1 + σ²)."""
    alpha = (1 + sigma.square()).rsqrt()
    return Target(-sigma * alpha, alpha)


def edm_form(sigma: Tensor, sigma_data: float) -> Target:
    """Ask for (σ x_0/σ_d − σ_d z)/√(σ² + σ_d²), which has deviation one."""
    total = (sigma.square() + sigma_data**2).sqrt()
    return Target(sigma / (sigma_data * total), -sigma_data / total)


def amplification(form: Form, sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """Return κ(σ): an error of F, in units of its target, over that of D.

    It is |c_out| √(a² σ_d² + b²) (eq:dn-amplification).

    Raises:
        ValueError: A σ_d that is not positive.
    """
    positive("sigma_data", sigma_data)
    a, b = form(sigma, sigma_data)
    size = (a.square() * sigma_data**2 + b.square()).sqrt()
    return sigma / (b - a * sigma).abs() * size


class Preconditioned(nn.Module):
    """D(x, σ) made of a network that sees inputs of deviation one.

    By default D = c_skip x + c_out F(c_in x, ¼ ln σ) (eq:edm-precondition); in
    another form F is asked for something else, and sees the same.

    Args:
        net: F(x, t), or F(x, t, c) with classes c (n,).
        sigma_data: σ_d, deviation of the data in each coordinate, whose mean is 0.
        form: What F is asked for.

    Raises:
        ValueError: A σ_d that is not positive.
    """

    def __init__(
        self, net: nn.Module, *, sigma_data: float = 0.5, form: Form = edm_form
    ) -> None:
        super().__init__()
        positive("sigma_data", sigma_data)
        self.net, self.sigma_data, self.form = net, sigma_data, form

    def forward(self, x: Tensor, sigma: Tensor, *c: Tensor) -> Tensor:
        """Return D(x, σ), shape (n, *shape).

        Args:
            x: Noised data, (n, *shape).
            sigma: Their levels, positive, () or (n, 1, …, 1).
            c: Classes, for a network that takes them.

        Raises:
            ValueError: Levels of another shape, or not positive and finite (this is
                asked on a CPU only: to look at numbers halts an accelerator); a
                network whose output has not the shape of x.
        """
        admit_levels(sigma, x)
        total = (sigma.square() + self.sigma_data**2).sqrt()
        F = self.net(x / total, sigma.log() / 4, *c)  # (eq:edm-precondition)
        if F.shape != x.shape:
            want, got = tuple(x.shape), tuple(F.shape)
            raise ValueError(f"net must return the shape {want} of x, got {got}")
        target = self.form(sigma, self.sigma_data)
        return target.denoised(F.to(x.dtype), x, sigma)  # F may be of low precision


def admit_levels(sigma: Tensor, x: Tensor) -> None:
    """Raise a ``ValueError`` unless σ can be the noise levels of the rows of x."""
    rows = (len(x),) + (1,) * (x.ndim - 1)
    if sigma.shape not in ((), rows):
        raise ValueError(f"sigma must be () or {rows}, got {tuple(sigma.shape)}")
    if not holds(((sigma > 0) & sigma.isfinite()).all()):
        raise ValueError(
            f"sigma must be positive and finite, got {float(sigma.min()):.4g} to "
            f"{float(sigma.max()):.4g}"
        )


def holds(condition: Tensor) -> bool:
    """Return whether a condition () holds, if looking is free; else hope so."""
    return condition.device.type != "cpu" or bool(condition)


# Levels and weights


class Levels(Protocol):
    """A law of noise levels."""

    def sample(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Draw a level for each row of x, shape (n, 1, …, 1)."""
        ...

    def density(self, sigma: Tensor) -> Tensor:
        """Return the density of ln σ at levels σ > 0, in the shape of σ."""
        ...


@dataclass(frozen=True)
class LogNormal:
    """Noise levels with ln σ ~ N(mean, std²).

    Raises:
        ValueError: A mean that is not finite, or an std that is not positive.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean):
            raise ValueError(f"mean must be finite, got {self.mean}")
        positive("std", self.std)

    def sample(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Draw a level for each row of x, shape (n, 1, …, 1)."""
        return (self.mean + self.std * row_normal(x, rng)).exp()

    def density(self, sigma: Tensor) -> Tensor:
        """Return the density of ln σ at levels σ > 0."""
        u = (sigma.log() - self.mean) / self.std
        return (-u.square() / 2).exp() / (self.std * math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class LogUniform:
    """Noise levels with ln σ uniform between two ends.

    Raises:
        ValueError: Ends that are not positive, finite and in order.
    """

    low: float = 0.002
    high: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            got = f"{self.low}, {self.high}"
            raise ValueError(f"need 0 < low < high < ∞, got {got}")

    def sample(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Draw a level for each row of x, shape (n, 1, …, 1)."""
        share = torch.special.ndtr(row_normal(x, rng))
        return self.low * (self.high / self.low) ** share

    def density(self, sigma: Tensor) -> Tensor:
        """Return the density of ln σ at levels σ > 0."""
        inside = (sigma >= self.low) & (sigma <= self.high)
        return inside.to(sigma.dtype) / math.log(self.high / self.low)


@dataclass(frozen=True)
class TimeUniform:
    """Noise levels σ_t/α_t of an SDE at times t uniform between a start and T.

    Raises:
        ValueError: A start that is not between 0 and T.
    """

    sde: SDE
    start: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.start < self.sde.horizon:
            raise ValueError(f"need 0 < start < {self.sde.horizon}, got {self.start}")

    def sample(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Draw a level for each row of x, shape (n, 1, …, 1)."""
        share = torch.special.ndtr(row_normal(x, rng))
        return self.sde.level(self.start + (self.sde.horizon - self.start) * share)

    def density(self, sigma: Tensor) -> Tensor:
        """Return the density of ln σ at levels σ > 0: dt/d ln σ = 2 σ_t²/g_t²."""
        t = self.sde.time(sigma)
        slope = 2 * (self.sde.sigma(t) / self.sde.diffusion(t)).square()
        inside = (t >= self.start) & (t <= self.sde.horizon)
        return inside * slope / (self.sde.horizon - self.start)


def row_normal(x: Tensor, rng: Generator | None) -> Tensor:
    """Draw a standard normal number for each row of x, shape (n, 1, …, 1)."""
    return randn((len(x),) + (1,) * (x.ndim - 1), x, rng=rng)


Weight = Callable[[Tensor], Tensor]  # λ(σ)


def edm_weight(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """Return (σ² + σ_d²)/(σ σ_d)² = 1/c_out²: every level of F counts the same."""
    return (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()


def noise_weight(sigma: Tensor) -> Tensor:
    """Return 1/σ², with which the loss is the squared error of the noise."""
    return 1 / sigma.square()


# The loss


def denoising_error(
    D: Denoiser, x: Tensor, sigma: Tensor, *, rng: Generator | None = None
) -> Tensor:
    """Return ‖D(x + σ z, σ) − x‖² per coordinate, for a fresh z, shape (n,).

    Args:
        D: The denoiser.
        x: Clean data, (n, *shape).
        sigma: Their levels, () or (n, 1, …, 1).
        rng: Source of z.
    """
    miss = D(x + sigma * noise_like(x, rng), sigma) - x
    return miss.square().flatten(1).mean(1)


class Units(NamedTuple):
    """x = shift + scale y: data x, and y of mean 0 and deviation σ_d within.

    Attributes:
        shift: Mean of the data.
        scale: Their deviation over σ_d.
    """

    shift: float = 0.0
    scale: float = 1.0

    @classmethod
    def of(cls, x: Tensor, sigma_data: float = 0.5) -> "Units":
        """Return the units in which data x (n, *shape) have deviation σ_d."""
        return cls(float(x.mean()), float(x.std()) / sigma_data)

    def inside(self, x: Tensor) -> Tensor:
        """Return y from data x."""
        return (x - self.shift) / self.scale

    def outside(self, y: Tensor) -> Tensor:
        """Return data x from y."""
        return self.shift + self.scale * y


class Diffusion(Model):
    """The law that a learned denoiser draws from noise.

    Args:
        denoiser: D(x, σ).
        base: N(0, I) in the shape of the data.
        noise: Law of the noise levels in training; by default EDM's.
        weight: λ(σ); by default EDM's, with the σ_d of the denoiser (else 0.5).
        sampler: From σ_max z to data.
        steps: N of the grid.
        units: Of the data; the denoiser sees them with mean 0 and deviation σ_d.

    Raises:
        ValueError: Units that are not finite, or of a scale that is not positive.
    """

    # More arguments than six: each is one decision and has a default.
    def __init__(
        self,
        denoiser: nn.Module,
        base: StandardNormal,
        *,
        noise: Levels | None = None,
        weight: Weight | None = None,
        sampler: Sampler = heun,
        steps: int = 18,
        units: Units = Units(),  # noqa: B008 - a tuple
    ) -> None:
        super().__init__()
        positive("scale of units", units.scale)
        if not math.isfinite(units.shift):
            raise ValueError(f"shift of units must be finite, got {units.shift}")
        own = denoiser.sigma_data if isinstance(denoiser, Preconditioned) else 0.5
        self.denoiser, self.base = denoiser, base
        self.noise = noise or LogNormal()
        self.weight = weight or partial(edm_weight, sigma_data=own)
        self.sampler, self.steps, self.units = sampler, steps, units

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return E λ(σ) ‖D(y + σ z, σ) − y‖² per coordinate (eq:denoising-loss).

        Args:
            x: Data (n, *shape); y are the same in the denoiser's units.
            rng: Source of the levels and of the noise, one of each for a row.

        Raises:
            ValueError: Data of another shape, none, or (on a CPU) not finite.
        """
        shape = tuple(self.base.zero.shape)
        if tuple(x.shape[1:]) != shape or not len(x):
            want = ("n", *shape)
            raise ValueError(f"x must have shape {want}, got {tuple(x.shape)}")
        if not holds(x.isfinite().all()):
            raise ValueError("x must be finite, got infinities or NaN")
        sigma = self.noise.sample(x, rng=rng)
        error = denoising_error(self.denoiser, self.units.inside(x), sigma, rng=rng)
        return (self.weight(sigma).flatten() * error).mean()  # (eq:denoising-loss)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        steps: int | None = None,
        sampler: Sampler | None = None,
        rng: Generator | None = None,
    ) -> Tensor:
        """Draw σ_max z and denoise it step by step, shape (n, *shape).

        Args:
            n: How many.
            steps: N of the grid, at least 2; by default the model's own.
            sampler: By default the model's own.
            rng: Source of z.
        """
        z = self.base.sample(n, rng=rng)
        sigmas = karras_grid(self.steps if steps is None else steps).to(z)
        walk = sampler or self.sampler
        return self.units.outside(walk(self.denoiser, sigmas[0] * z, sigmas))
