"""From noise to data in few evaluations (book/diffusion/samplers.md).

In the coordinates x_t/α_t and σ = σ_t/α_t the probability flow of every noising is

    dx/dσ = (x − D(x, σ))/σ                                           (eq:edm-ode)

and between two levels s > e it slides towards a mean of the denoiser,

    x_e = D̄ + (e/s) (x_s − D̄),   D̄ = mean of D(x_σ, σ), uniform in 1/σ
                                                              (eq:sampler-average)

A sampler is a guess at D̄ (:func:`euler`, :func:`heun`, :func:`exponential`,
:func:`multistep`), perhaps with noise on the way (:func:`ddim`, :func:`churn`).
All take the denoiser, the points at the first level, and falling levels, of which
the last may be 0.  They record gradients where those are on; samples need none, so
call them under ``torch.no_grad()``.

References:
    Song, Meng, Ermon (2021), Denoising diffusion implicit models.
    Lu, Zhou, Bao, Chen, Li, Zhu (2022), DPM-Solver++: fast solver for guided sampling
        of diffusion probabilistic models.
    Karras, Aittala, Aila, Laine (2022), Elucidating the design space of
        diffusion-based generative models.
    Ho, Salimans (2022), Classifier-free diffusion guidance.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Generator, Tensor

from ..nn import noise_like
from .score import Denoiser

__all__ = [
    "Counted",
    "Sampler",
    "churn",
    "ddim",
    "euler",
    "exponential",
    "guided",
    "heun",
    "karras_grid",
    "multistep",
]

Sampler = Callable[[Denoiser, Tensor, Tensor], Tensor]  # D, x at sigmas[0], sigmas ↦ x


# Grids


def karras_grid(
    steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """Return σ_0 = σ_max > … > σ_{N−1} = σ_min, then 0, shape (N + 1,) (eq:edm-grid).

    Raises:
        ValueError: Fewer than two steps, or levels that do not fall.
    """
    if steps < 2 or not 0 < sigma_min < sigma_max < math.inf or not 0 < rho < math.inf:
        got = f"{steps}, {sigma_min}, {sigma_max}, {rho}"
        raise ValueError(f"need steps ≥ 2, 0 < sigma_min < sigma_max, ρ > 0, got {got}")
    top, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    grid = torch.linspace(top, low, steps) ** rho  # (eq:edm-grid)
    return torch.cat([grid, torch.zeros(1)])


def levels(x: Tensor, sigmas: Tensor) -> list[tuple[Tensor, float]]:
    """Return each level as what D is given and as a number, read once for all steps.

    Args:
        x: Points, (n, *shape); says dtype and device.
        sigmas: The levels.

    Raises:
        ValueError: x is no batch of finite real points, or the levels are not at
            least two finite numbers that fall, positive except perhaps the last.
    """
    if x.ndim < 2 or not len(x) or not x.is_floating_point():
        got = f"{tuple(x.shape)} of {x.dtype}"
        raise ValueError(f"x must be real points (n, *shape), got {got}")
    if not x.isfinite().all():
        raise ValueError("x must be finite, got infinities or NaN")
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(f"sigmas must be (N + 1,), N ≥ 1, got {tuple(sigmas.shape)}")
    values = sigmas.tolist()
    falling = all(math.inf > s > e for s, e in pairwise(values))
    if not falling or values[-1] < 0:
        raise ValueError(f"sigmas must fall, and be > 0 but for a last 0, got {values}")
    return list(zip(sigmas.to(x).unbind(), values, strict=True))


def denoised(D: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """Return D(x, σ), which must be like x."""
    d = D(x, sigma)
    if d.shape != x.shape or d.dtype != x.dtype:
        want, got = f"{tuple(x.shape)} {x.dtype}", f"{tuple(d.shape)} {d.dtype}"
        raise ValueError(f"D must return {want} like x, got {got}")
    return d


class Counted:
    """A denoiser that counts its evaluations.

    Attributes:
        calls: How often it was called.
    """

    def __init__(self, D: Denoiser) -> None:
        self.D = D
        self.calls = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D(x, σ)."""
        self.calls += 1
        return self.D(x, sigma)


# Along the flow


def euler(D: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """Follow (eq:edm-ode) by Euler's steps: D̄ is D at the start of the step.

    It is DDIM without noise, of order 1, with N evaluations.

    Args:
        D: The denoiser.
        x: Points at the first level, (n, *shape): σ_0 z for the default grid.
        sigmas: Falling levels, (N + 1,).

    Returns:
        The points at the last level.

    Raises:
        ValueError: Points or levels that are none, or a D of another shape.
    """
    for (at, s), (_, e) in pairwise(levels(x, sigmas)):
        x = torch.lerp(denoised(D, x, at), x, e / s)
    return x


def heun(D: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """Follow (eq:edm-ode) by Heun's steps, the last to 0 by Euler's.

    Slopes at both ends of a step are averaged; the end is guessed by Euler.  Order 2,
    with 2N − 1 evaluations if the last level is 0, else 2N.  Arguments as in
    :func:`euler`.
    """
    for start, end in pairwise(levels(x, sigmas)):
        x = heun_step(D, x, start, end)
    return x


def heun_step(
    D: Denoiser, x: Tensor, start: tuple[Tensor, float], end: tuple[Tensor, float]
) -> Tensor:
    """Return x after one step of Heun's, from one level to another."""
    (at, s), (to, e) = start, end
    d = denoised(D, x, at)
    if e > 0:
        y = torch.lerp(d, x, e / s)
        d = torch.lerp(d, denoised(D, y, to), s / (2 * e))  # (eq:sampler-heun)
    return torch.lerp(d, x, e / s)


def exponential(D: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """Follow (eq:edm-ode) as if D were linear in log σ over each step.

    As :func:`heun`, at the same cost, but D̄ stays between the two values of D,
    however long the step.
    """
    for (at, s), (to, e) in pairwise(levels(x, sigmas)):
        d = denoised(D, x, at)
        if e > 0:
            y, h = torch.lerp(d, x, e / s), math.log(s / e)
            w = -1 / math.expm1(-h) - 1 / h  # (eq:sampler-exponential)
            d = torch.lerp(d, denoised(D, y, to), w)
        x = torch.lerp(d, x, e / s)
    return x


def multistep(D: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """Follow (eq:edm-ode) by DPM-Solver++(2M): D̄ from this D and the one before.

    Order 2, with N evaluations; the first step, and a last one to 0, are Euler's.
    Arguments as in :func:`euler`.
    """
    old, before = x, 0.0
    for (at, s), (_, e) in pairwise(levels(x, sigmas)):
        d = mean = denoised(D, x, at)
        h = math.log(s / e) if e > 0 else math.inf
        if before and e > 0:
            mean = torch.lerp(old, d, 1 + h / (2 * before))  # (eq:sampler-2m)
        x = torch.lerp(mean, x, e / s)
        old, before = d, h
    return x


# With noise on the way


def ddim(
    D: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 0.0,
    rng: Generator | None = None,
) -> Tensor:
    """Slide towards D, and put a share of the noise anew (eq:sampler-ddim).

    Args:
        D: The denoiser.
        x: Points at the first level, (n, *shape).
        sigmas: Falling levels, (N + 1,).
        eta: η in [0, 1]: 0 for Euler's steps, 1 for those of ancestral sampling.
        rng: Source of the noise.

    Raises:
        ValueError: As in :func:`euler`, or an η out of its range.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    for (at, s), (_, e) in pairwise(levels(x, sigmas)):
        up = eta * e * math.sqrt(1 - (e / s) ** 2)
        kept = math.sqrt(e**2 - up**2)
        x = torch.lerp(denoised(D, x, at), x, kept / s)  # (eq:sampler-ddim)
        if up:
            x = torch.add(x, noise_like(x, rng), alpha=up)
    return x


# One argument more than six: each is a number of the paper.
def churn(
    D: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    amount: float,
    *,
    window: tuple[float, float] = (0.0, math.inf),
    inflate: float = 1.0,
    rng: Generator | None = None,
) -> Tensor:
    """Before each of Heun's steps go back up by some fresh noise (eq:sampler-churn).

    Args:
        D: The denoiser.
        x: Points at the first level, (n, *shape).
        sigmas: Falling levels, (N + 1,).
        amount: S_churn ≥ 0: the level grows by γ = min(S_churn/N, √2 − 1) of itself.
        window: S_min and S_max, between which that happens.
        inflate: S_noise, deviation of the noise; more than 1 is not exact.
        rng: Source of the noise.

    Raises:
        ValueError: As in :func:`euler`, or numbers out of their ranges.
    """
    low, high = window
    if not (0 <= amount < math.inf and 0 <= low <= high and 0 < inflate < math.inf):
        got = f"{amount}, {window}, {inflate}"
        raise ValueError(f"need amount ≥ 0, a window, inflate > 0, got {got}")
    grid = levels(x, sigmas)
    gamma = min(amount / (len(grid) - 1), math.sqrt(2) - 1)
    for (at, s), end in pairwise(grid):
        g = gamma if low <= s <= high else 0.0
        if g:
            lift = s * math.sqrt(g * (2 + g))  # (eq:sampler-churn)
            x = torch.add(x, noise_like(x, rng), alpha=inflate * lift)
        x = heun_step(D, x, ((1 + g) * at, (1 + g) * s), end)
    return x


# Guidance


def guided(D: Callable[..., Tensor], c: Tensor, weight: float) -> Denoiser:
    """Return (x, σ) ↦ D(x, σ) + w (D(x, σ, c) − D(x, σ)) (eq:sampler-guidance).

    Two evaluations in one, but one for w = 0, no condition, and w = 1, no guidance.

    Args:
        D: A denoiser with and without a condition.
        c: Conditions, (n,).
        weight: w, finite.

    Raises:
        ValueError: A weight that is not finite.
    """
    if not math.isfinite(weight):
        raise ValueError(f"weight must be finite, got {weight}")
    if weight == 0:
        return D
    if weight == 1:
        return lambda x, sigma: D(x, sigma, c)
    return lambda x, sigma: torch.lerp(D(x, sigma), D(x, sigma, c), weight)
