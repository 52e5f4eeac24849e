"""Noise that grows with time, and the way back (book/diffusion/sde.md).

Data X_0 ~ p_0 are noised by a linear equation on [0, T],

    dX = f_t X dt + g_t dB,   X_t | X_0 ~ N(α_t X_0, σ_t² I)         (eq:sde-marginal)

so that X_t / α_t = X_0 + (σ_t / α_t) Z: time is a noise level σ_t / α_t and a scale.
For every η ≥ 0 the walk back in time

    dX = [−f_t X + ½ (1 + η²) g_t² ∇log p_t(X)] ds + η g_t dB       (eq:sde-family)

has the laws p_t, t = T − s: η = 1 is Anderson's reversal, η = 0 the probability flow

    dX/dt = f_t X − ½ g_t² ∇log p_t(X)                              (eq:sde-flow)

References:
    Anderson (1982), Reverse-time diffusion equation models.
    Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole (2021), Score-based generative
        modeling through stochastic differential equations.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Generator, Tensor

from ..distributions import Mixture, positive
from ..nn import noise_like
from ..ode import Field
from .score import Denoiser

__all__ = [
    "SDE",
    "VE",
    "VP",
    "Score",
    "SubVP",
    "backward",
    "denoiser_score",
    "euler_maruyama",
    "forward",
    "marginal",
    "marginal_score",
    "ornstein_uhlenbeck",
    "probability_flow",
    "reverse_drift",
    "time_grid",
]

Score = Callable[[Tensor, Tensor], Tensor]  # s(x, t), t is () or (n, 1, …, 1)


class SDE(ABC):
    """dX = f_t X dt + g_t dB on [0, T]: five functions of the time.

    They take times of any shape in [0, T] and return tensors of that shape.

    Attributes:
        horizon: T.
        spread: Deviation of the law N(0, spread² I) from which the walk back starts.
    """

    horizon: float
    spread: float

    @abstractmethod
    def rate(self, t: Tensor) -> Tensor:
        """Return f_t: the drift at x is f_t x."""

    @abstractmethod
    def diffusion(self, t: Tensor) -> Tensor:
        """Return g_t."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Return α_t = exp ∫ f, what is left of the data."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Return σ_t, the deviation of X_t given X_0."""

    @abstractmethod
    def time(self, level: Tensor) -> Tensor:
        """Return the time t at which σ_t / α_t is a given noise level."""

    def level(self, t: Tensor) -> Tensor:
        """Return the noise level σ_t / α_t, which grows with t."""
        return self.sigma(t) / self.alpha(t)

    def perturb(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Return X_t = α_t x + σ_t z (eq:sde-marginal)."""
        return self.alpha(t) * x + self.sigma(t) * z


@dataclass(frozen=True)
class VP(SDE):
    """dX = −β_t X dt + √(2 β_t) dB with β_t linear in t (eq:sde-vp).

    It keeps a variance of one.  The defaults are those of Song et al., whose β is
    twice ours.

    Attributes:
        beta_min: β_0.
        beta_max: β_T.
        horizon: T.
    """

    beta_min: float = 0.05
    beta_max: float = 10.0
    horizon: float = 1.0
    spread = 1.0

    def __post_init__(self) -> None:
        positive("beta_min", self.beta_min)
        positive("beta_max", self.beta_max)
        positive("horizon", self.horizon)

    def beta(self, t: Tensor) -> Tensor:
        """Return β_t."""
        return self.beta_min + (self.beta_max - self.beta_min) * t / self.horizon

    def integral(self, t: Tensor) -> Tensor:
        """Return B_t = ∫_0^t β."""
        slope = (self.beta_max - self.beta_min) / self.horizon
        return self.beta_min * t + slope * t.square() / 2

    def rate(self, t: Tensor) -> Tensor:
        """Return −β_t."""
        return -self.beta(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """Return √(2 β_t)."""
        return (2 * self.beta(t)).sqrt()

    def alpha(self, t: Tensor) -> Tensor:
        """Return e^{−B_t}."""
        return (-self.integral(t)).exp()

    def sigma(self, t: Tensor) -> Tensor:
        """Return √(1 − e^{−2 B_t})."""
        return (-torch.expm1(-2 * self.integral(t))).sqrt()

    def time(self, level: Tensor) -> Tensor:
        """Return the t with e^{2 B_t} = 1 + level²."""
        return self.time_of(torch.log1p(level.square()) / 2)

    def time_of(self, B: Tensor) -> Tensor:
        """Return the t with B_t = B, the root of a quadratic polynomial."""
        slope = (self.beta_max - self.beta_min) / self.horizon
        return 2 * B / (self.beta_min + (self.beta_min**2 + 2 * slope * B).sqrt())


def ornstein_uhlenbeck(horizon: float) -> VP:
    """Return dX = −X dt + √2 dB on [0, T], which is VP with β = 1."""
    return VP(1.0, 1.0, horizon)


class SubVP(VP):
    """VP with less noise: σ_t = 1 − e^{−2 B_t}, the square of that of VP."""

    # It keeps the rate and α of VP, and its arguments.

    def diffusion(self, t: Tensor) -> Tensor:
        """Return √(2 β_t (1 − e^{−4 B_t}))."""
        return (-2 * self.beta(t) * torch.expm1(-4 * self.integral(t))).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """Return 1 − e^{−2 B_t}."""
        return -torch.expm1(-2 * self.integral(t))

    def time(self, level: Tensor) -> Tensor:
        """Return the t with 2 sinh B_t = level, as σ_t / α_t = e^{B_t} − e^{−B_t}."""
        return self.time_of(torch.asinh(level / 2))


@dataclass(frozen=True)
class VE(SDE):
    """dX = g_t dB: the level grows from 0, in the end in equal ratios (eq:sde-ve).

    σ_t² = σ_min² ((σ_max / σ_min)^{2t/T} − 1); what there is of X_0 is kept.

    Attributes:
        sigma_min: Where the geometric growth starts.
        sigma_max: The noise level at T is √(σ_max² − σ_min²).
        horizon: T.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    horizon: float = 1.0

    def __post_init__(self) -> None:
        positive("sigma_min", self.sigma_min)
        positive("horizon", self.horizon)
        if not self.sigma_min < self.sigma_max < math.inf:
            got = f"{self.sigma_min}, {self.sigma_max}"
            raise ValueError(f"sigma_max must be above sigma_min, got {got}")

    @property
    def spread(self) -> float:  # type: ignore[override]
        """Deviation at T."""
        return math.sqrt(self.sigma_max**2 - self.sigma_min**2)

    @property
    def growth(self) -> float:
        """2 log(σ_max / σ_min) / T."""
        return 2 * math.log(self.sigma_max / self.sigma_min) / self.horizon

    def rate(self, t: Tensor) -> Tensor:
        """Return 0."""
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """Return g_t, whose square is dσ²/dt."""
        return self.sigma_min * self.growth**0.5 * (self.growth * t / 2).exp()

    def alpha(self, t: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Return σ_t."""
        return self.sigma_min * torch.expm1(self.growth * t).sqrt()

    def time(self, level: Tensor) -> Tensor:
        """Return the t at which σ_t is the level."""
        return torch.log1p((level / self.sigma_min).square()) / self.growth


def within(sde: SDE, t: Tensor) -> Tensor:
    """Return the times t if they lie in [0, T], else raise a ``ValueError``."""
    if not ((t >= 0) & (t <= sde.horizon)).all():
        low, high = t.min().item(), t.max().item()
        raise ValueError(f"times must lie in [0, {sde.horizon}], got {low} to {high}")
    return t


def time_grid(horizon: float, h: float) -> Tensor:
    """Return T, T − h, …, 0, in default precision, shape (T/h + 1,).

    Raises:
        ValueError: h is not positive, or T is not a multiple of h.
    """
    positive("horizon", horizon)
    positive("h", h)
    steps = round(horizon / h)
    if steps < 1 or abs(steps * h - horizon) > 1e-9 * horizon:
        raise ValueError(f"horizon / h must be an integer, got {horizon} / {h}")
    return torch.linspace(horizon, 0, steps + 1)


# Scores


def marginal(sde: SDE, law: Mixture, t: float) -> Mixture:
    """Return p_t, the law of X_t, if X_0 has the law of a mixture (eq:sde-marginal).

    Raises:
        ValueError: A time outside [0, T].
    """
    when = within(sde, law.means.new_tensor(t))
    a, s = sde.alpha(when), sde.sigma(when)
    eye = torch.eye(law.means.shape[1]).to(law.means)
    covs = a.square() * law.covs + s.square() * eye
    return Mixture(a * law.means, covs, law.log_weights.exp())


def marginal_score(sde: SDE, law: Mixture) -> Score:
    """Return (x, t) ↦ ∇ log p_t(x), exact for a mixture; t = 0 is allowed.

    The score raises a ``ValueError`` for times outside [0, T].
    """
    lam, U = torch.linalg.eigh(law.covs)  # (k, d), (k, d, d)

    def s(x: Tensor, t: Tensor) -> Tensor:
        t = within(sde, t).reshape(-1, 1, 1)
        a, v = sde.alpha(t), sde.sigma(t).square()
        y = torch.einsum("kij,nki->nkj", U, x[:, None] - a * law.means)
        var = a.square() * lam + v  # of x along the axes of component j
        log_r = law.log_weights - (y.square() / var + var.log()).sum(-1) / 2
        pull = torch.einsum("kij,nkj->nki", U, -y / var)
        return torch.einsum("nk,nki->ni", log_r.softmax(-1), pull)

    return s


def denoiser_score(sde: SDE, D: Denoiser) -> Score:
    """Return (x, t) ↦ (α D(x/α, σ/α) − x)/σ², the score that D knows, for t > 0."""

    def s(x: Tensor, t: Tensor) -> Tensor:
        a, sigma = sde.alpha(t), sde.sigma(t)
        return (a * D(x / a, sigma / a) - x) / sigma.square()

    return s


# Walks


def probability_flow(sde: SDE, score: Score) -> Field:
    """Return the field of the probability flow (eq:sde-flow), for rising t.

    It raises a ``ValueError`` if the score is not of the shape of x.
    """

    def v(x: Tensor, t: Tensor) -> Tensor:
        return sde.rate(t) * x - sde.diffusion(t).square() / 2 * pulled(score, x, t)

    return v


def reverse_drift(
    sde: SDE, score: Score, *, eta: float = 1.0, pull: float | None = None
) -> Field:
    """Return the drift of the walk back (eq:sde-family), which moves with falling t.

    With η = 1 it is that of Anderson's reversal (eq:sde-reverse).

    Args:
        sde: The way forth.
        score: ∇ log p_t.
        eta: η.
        pull: Share of g² ∇ log p_t in the drift.  Only the default, ½ (1 + η²),
            keeps the laws p_t.

    Raises:
        ValueError: A negative η; when it is called, a score not of the shape of x.
    """
    if not 0 <= eta < math.inf:
        raise ValueError(f"eta must be at least 0 and finite, got {eta}")
    share = (1 + eta**2) / 2 if pull is None else pull

    def drift(x: Tensor, t: Tensor) -> Tensor:
        force = share * sde.diffusion(t).square() * pulled(score, x, t)
        return force - sde.rate(t) * x  # (eq:sde-family)

    return drift


def pulled(score: Score, x: Tensor, t: Tensor) -> Tensor:
    """Return s(x, t) if it has the shape of x, else raise a ``ValueError``."""
    s = score(x, t)
    if s.shape != x.shape:
        want, got = tuple(x.shape), tuple(s.shape)
        raise ValueError(f"score must return {want} like x, got {got}")
    return s


def euler_maruyama(
    drift: Field,
    noise: Callable[[Tensor], Tensor],
    x: Tensor,
    times: Tensor,
    *,
    rng: Generator | None = None,
) -> Iterator[Tensor]:
    """Yield the states at times[1], times[2], … of x ← x + h b(x, t) + √h c(t) z.

    Args:
        drift: b.
        noise: c.
        x: Where the walk starts, (n, *shape).
        times: Rising or falling; h is the length of a gap, so a walk back in time
            has a drift per unit of time passed.
        rng: Source of z.
    """
    for t, end in pairwise(times):
        h = (end - t).abs()
        x = x + h * drift(x, t) + h.sqrt() * noise(t) * noise_like(x, rng)
        yield x


def forward(
    sde: SDE, x: Tensor, times: Tensor, *, rng: Generator | None = None
) -> Iterator[Tensor]:
    """Yield X at times[1], times[2], … from X = x at times[0] (eq:sde-forward).

    By Euler–Maruyama, so each state is right up to the length of the steps.

    Raises:
        ValueError: Times that do not rise, or leave [0, T].
    """
    walk = times_of(sde, times, rising=True)
    return euler_maruyama(lambda x, t: sde.rate(t) * x, sde.diffusion, x, walk, rng=rng)


def backward(
    sde: SDE,
    score: Score,
    x: Tensor,
    times: Tensor,
    *,
    eta: float = 1.0,
    pull: float | None = None,
    rng: Generator | None = None,
) -> Iterator[Tensor]:
    """Yield X at times[1], times[2], … of the walk back (eq:sde-family) from x.

    Args:
        sde: The way forth.
        score: ∇ log p_t.
        x: States at times[0], (n, *shape).
        times: Falling.
        eta: η: 1 for Anderson's reversal, 0 for the probability flow.
        pull: As in :func:`reverse_drift`.
        rng: Source of the noise.

    Raises:
        ValueError: Times that do not fall, or leave [0, T]; a negative η.
    """
    drift = reverse_drift(sde, score, eta=eta, pull=pull)
    walk = times_of(sde, times, rising=False)
    return euler_maruyama(drift, lambda t: eta * sde.diffusion(t), x, walk, rng=rng)


def times_of(sde: SDE, times: Tensor, *, rising: bool) -> Tensor:
    """Return the times of a walk if they are good, else raise a ``ValueError``."""
    gaps = times.diff() if times.ndim == 1 else times.new_empty(0)
    if not len(gaps) or not ((gaps > 0) if rising else (gaps < 0)).all():
        word = "rise" if rising else "fall"
        raise ValueError(f"times must {word} throughout, got {times}")
    return within(sde, times)
