"""How wrong are the samples? start, score, step (book/diffusion/convergence.md).

The way forth is dX = −X dt + √2 dB.  Against γ = N(0, I) the law p_t of X_t has the
density f_t, the *relative score* ∇log f_t(x) = x + ∇log p_t(x), and the Fisher
information I_t = E ‖∇log f_t(X_t)‖².  A sampler goes back through the times
T = τ_0 > … > τ_K with one score a step, h = τ_k − τ_{k+1}:

    x ← e^{−h} x + 2 (1 − e^{−h}) (x + s(x, τ_k)) + √(1 − e^{−2h}) z  (eq:cds-step)

Its joint law P, beside that Q of the way forth, costs exactly, for the true score,

    KL(Q ‖ P) = KL(p_0 ‖ γ) − Σ_k (2(e^{h_k} − 1) − 2 tanh(h_k/2)) I_{τ_k}
                                                                     (eq:cds-frozen)

and for any score, with E‖s − ∇log p‖² = ε² on average over the time,

    KL(p_0 ‖ samples) ≤ e^{−2T} KL(p_0 ‖ γ) + (√(T ε²) + √(h I_0))²    (eq:cds-bound)

References:
    Conforti, Durmus, Gentiloni Silveri (2025), KL convergence guarantees for score
        diffusion models under minimal data assumptions.
    Chen, Lee, Lu (2023), Improved analysis of score-based generative modeling.
    Gross (1975), Logarithmic Sobolev inequalities.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from ..distributions import Law, Mixture, StandardNormal
from ..nn import noise_like
from ..objectives import fisher_divergence
from ..objectives.divergences import masses
from .sde import Score, marginal, marginal_score, ornstein_uhlenbeck

__all__ = [
    "Bound",
    "Move",
    "Propagated",
    "Step",
    "chain_kl",
    "early_bound",
    "euler_step",
    "exponential_integrator",
    "frozen_gain",
    "frozen_step",
    "grid_kl",
    "kl_bound",
    "noised_fisher",
    "noised_kl",
    "posterior_gain",
    "posterior_step",
    "propagate",
    "relative_fisher",
    "relative_score",
    "shrinking_steps",
    "tent_score",
]


# Times


def shrinking_steps(T: float, c: float, *, stop: float) -> Tensor:
    """Return times from T to ``stop`` whose steps are at most c min(1, τ), τ their end.

    They are equal down to τ = 1, and in equal ratios from there (eq:cds-steps).

    Args:
        T: The start, above 1.
        c: Size of the steps, positive.
        stop: The end, in (0, 1).

    Raises:
        ValueError: Not 0 < stop < 1 < T, or c ≤ 0.
    """
    if not 0 < stop < 1 < T < math.inf:
        raise ValueError(f"need 0 < stop < 1 < T < ∞, got stop = {stop}, T = {T}")
    if not 0 < c < math.inf:
        raise ValueError(f"c must be positive and finite, got {c}")
    far = math.ceil((T - 1) / c)
    near = math.ceil(-math.log(stop) / math.log1p(c))
    ratios = stop ** (torch.arange(1, near + 1) / near)
    return torch.cat([torch.linspace(T, 1, far + 1), ratios])


def falling(times: Tensor) -> Tensor:
    """Return the steps h_k > 0 of falling times (K + 1,), which end at 0 or above."""
    if times.ndim != 1 or len(times) < 2 or not times.is_floating_point():
        got = f"{tuple(times.shape)} of {times.dtype}"
        raise ValueError(f"times must be real numbers (K + 1,), K ≥ 1, got {got}")
    h = -times.diff()
    if not (times.isfinite().all() and (h > 0).all() and times[-1] >= 0):
        raise ValueError(f"times must fall from T to a time ≥ 0, got {times.tolist()}")
    return h


# Steps


class Step(NamedTuple):
    """Where a sampler goes from x: N(mean, σ² I).

    Attributes:
        mean: Shape of x.
        sigma: σ, ().
    """

    mean: Tensor
    sigma: Tensor


Move = Callable[[Score, Tensor, Tensor, Tensor], Step]  # s, x, t, end ↦ law at end


def relative_score(s: Score, x: Tensor, t: Tensor) -> Tensor:
    """Return x + s(x, t), which is ∇log f_t(x) for the true score.

    Raises:
        ValueError: s(x, t) has not the shape of x.
    """
    out = s(x, t)
    if out.shape != x.shape:
        want, got = tuple(x.shape), tuple(out.shape)
        raise ValueError(f"s must return the shape {want} of x, got {got}")
    return x + out


def frozen_step(s: Score, x: Tensor, t: Tensor, end: Tensor) -> Step:
    """Solve dX = (−X + 2 (x + s(x, t))) dr + √2 dB from x (eq:cds-step)."""
    h = t - end
    pull = -2 * torch.expm1(-h) * relative_score(s, x, t)
    return Step((-h).exp() * x + pull, (-torch.expm1(-2 * h)).sqrt())


def posterior_step(s: Score, x: Tensor, t: Tensor, end: Tensor) -> Step:
    """Go to E[X_end | X_t = x], if s is the true score (eq:cds-posterior)."""
    h = t - end
    pull = 2 * torch.sinh(h) * relative_score(s, x, t)
    return Step((-h).exp() * x + pull, (-torch.expm1(-2 * h)).sqrt())


def euler_step(s: Score, x: Tensor, t: Tensor, end: Tensor) -> Step:
    """Go to x + h (x + 2 s(x, t)) with deviation √(2h), as Euler and Maruyama."""
    h = t - end
    return Step(x + h * (2 * relative_score(s, x, t) - x), (2 * h).sqrt())


def exponential_integrator(
    s: Score,
    x: Tensor,
    times: Tensor,
    *,
    move: Move = frozen_step,
    rng: Generator | None = None,
) -> Iterator[Tensor]:
    """Yield the samples at times[1], times[2], … of the walk back from x.

    Args:
        s: Score of the Ornstein–Uhlenbeck process dX = −X dt + √2 dB.
        x: States at times[0], (n, *shape): draws from N(0, I).
        times: From T down to 0, or to where one stops early, (K + 1,).
        move: A step.
        rng: Source of the noise.

    Raises:
        ValueError: Times that do not fall, or a score of another shape than x.
    """
    falling(times)
    for t, end in pairwise(times):
        mean, sigma = move(s, x, t, end)
        x = mean + sigma * noise_like(x, rng)
        yield x


# The law of the samples, on a grid


class Propagated(NamedTuple):
    """The density of the samples on a grid.

    Attributes:
        density: At the points of the grid, (m,).
        mass: Its integral, (): 1 unless the grid is too narrow or too coarse.
    """

    density: Tensor
    mass: Tensor


def spacing(x: Tensor) -> Tensor:
    """Return the distance of neighbours on an even grid (m,)."""
    if x.ndim != 1 or len(x) < 3 or not torch.allclose(x.diff(), x[1] - x[0]):
        raise ValueError(f"x must be an even grid (m,), got shape {tuple(x.shape)}")
    if not x[1] > x[0]:
        raise ValueError(f"x must rise, got {x[0]} before {x[1]}")
    return x[1] - x[0]


def propagate(
    s: Score, x: Tensor, times: Tensor, *, move: Move = frozen_step
) -> Propagated:
    """Return the law of :func:`exponential_integrator` from N(0, 1), without drawing.

    One step takes the density q to q′(y) = ∫ N(y; mean(x), σ²) q(x) dx: on a grid,
    a product with a matrix.  The trapezoidal rule is exact to rounding as long as
    the grid is wide, and finer than σ/2.

    Args:
        s: The score, on R^1.
        x: Even, rising grid (m,).
        times: Falling, (K + 1,).
        move: A step.

    Raises:
        ValueError: A grid that is uneven or coarser than half a deviation.
    """
    dx = spacing(x)
    falling(times)
    q = (-x.square() / 2).exp() / math.sqrt(2 * math.pi)
    for t, end in pairwise(times):
        mean, sigma = move(s, x[:, None], t, end)
        if dx > sigma / 2:
            top = f"{sigma / 2:.2g}"
            raise ValueError(f"x must be finer than σ/2 = {top}, got {dx:.2g}")
        z = (x[:, None] - mean[:, 0]) / sigma  # (to, from)
        q = (-z.square() / 2).exp() @ q * (dx / (sigma * math.sqrt(2 * math.pi)))
    return Propagated(q, q.sum() * dx)


def grid_kl(p: Law, q: Tensor, x: Tensor) -> Tensor:
    """Return KL(p ‖ q) of a law on R^1 and a density q (m,) on the grid x (m,)."""
    dx = spacing(x)
    if q.shape != x.shape:
        raise ValueError(f"q must be {tuple(x.shape)} like x, got {tuple(q.shape)}")
    log_p = p.log_prob(x[:, None])
    held = log_p > -600  # below, the density is 0
    return (log_p.exp() * (log_p - q.log()))[held].sum() * dx


# What is known of the noised law


def relative_fisher(law: Mixture, times: Tensor, x: Tensor) -> Tensor:
    """Return I_t = E ‖∇log p_t(X_t) + X_t‖² at some times, shape of ``times``.

    Args:
        law: Of the data, on R^1.
        times: (K,), at least 0.
        x: Even grid (m,) that holds the laws p_t.
    """
    sde, gamma = ornstein_uhlenbeck(float(times.max()) + 1), StandardNormal(1)
    laws = (marginal(sde, law, float(t)) for t in times)
    return torch.stack([fisher_divergence(p, gamma.to(x), x) for p in laws])


def noised_fisher(second: float, d: int, t: Tensor) -> Tensor:
    """Return e^{−2t} (M + d/(e^{2t} − 1)) ≥ I_t for any data (eq:cds-noised-fisher).

    Args:
        second: M = E ‖X_0‖².
        d: The dimension.
        t: Times > 0, of any shape.
    """
    return (-2 * t).exp() * (second + d / torch.expm1(2 * t))


def noised_kl(second: float, d: int, t: Tensor) -> Tensor:
    """Return ½ (a² M − d (a² + log(1 − a²))), a = e^{−t} (eq:cds-noised-kl).

    It is at least KL(p_t ‖ γ), whatever the data.  Arguments as above.
    """
    a2 = (-2 * t).exp()
    return (a2 * second - d * (a2 + torch.log1p(-a2))) / 2


def tent_score(lam: float) -> Score:
    """Return the score of p_t, t > 0, if dp_0/dγ ∝ e^{−λ|x|} on R^1 (eq:cds-tent).

    The relative score of p_0 is −λ sign x: it jumps, and its square is λ².  That of
    p_t is −λ e^{−t} E[sign X_0 | X_t = x] (eq:cds-mehler).
    """

    def s(x: Tensor, t: Tensor) -> Tensor:
        a, sigma = (-t).exp(), (-torch.expm1(-2 * t)).sqrt()
        left, right = (torch.special.log_ndtr(sign * a * x / sigma - lam * sigma)
                       - sign * lam * a * x for sign in (-1, 1))  # fmt: skip
        return -lam * a * torch.tanh((right - left) / 2) - x  # (eq:cds-tent)

    return s


# What the samples cost


def frozen_gain(h: Tensor) -> Tensor:
    """Return 2 (e^h − 1) − 2 tanh(h/2) (eq:cds-frozen)."""
    return 2 * torch.expm1(h) - 2 * torch.tanh(h / 2)


def posterior_gain(h: Tensor) -> Tensor:
    """Return ½ (e^{2h} − 1), the most that a step can gain (eq:cds-exact)."""
    return torch.expm1(2 * h) / 2


def step_price(
    law: Mixture, s: Score, x: Tensor, t: Tensor, end: Tensor, move: Move
) -> Tensor:
    """Return E ‖m − 2 sinh(h) ∇log f‖²/2σ² − ½ (e^{2h} − 1) I of one step, ()."""
    sde, h, points = ornstein_uhlenbeck(float(t)), t - end, x[:, None]
    Y = relative_score(marginal_score(sde, law), points, t)
    mean, sigma = move(s, points, t, end)
    if not torch.isclose(sigma.square(), -torch.expm1(-2 * h)):
        raise ValueError(f"move must have deviation √(1 − e^−2h), got {sigma:.3g}")
    miss = mean - (-h).exp() * points - 2 * torch.sinh(h) * Y
    cost = miss.square() / (2 * sigma.square()) - posterior_gain(h) * Y.square()
    return masses(marginal(sde, law, float(t)), x) @ cost[:, 0]


def chain_kl(
    law: Mixture, s: Score, x: Tensor, times: Tensor, *, move: Move = frozen_step
) -> Tensor:
    """Return KL(Q ‖ P) of the joint laws at all times, for any score (eq:cds-exact).

    Args:
        law: Of the data, on R^1.
        s: The score that the sampler uses.
        x: Even grid (m,) that holds the laws p_t.
        times: Falling, (K + 1,).
        move: A step whose deviation is √(1 − e^{−2h}).

    Raises:
        ValueError: Times that do not fall, or a step of another deviation.
    """
    falling(times)
    end = marginal(ornstein_uhlenbeck(float(times[0])), law, float(times[-1]))
    gamma = StandardNormal(1).to(x).log_prob(x[:, None])
    to_gain = masses(end, x) @ (end.log_prob(x[:, None]) - gamma)  # KL(p ‖ γ)
    steps = [step_price(law, s, x, t, to, move) for t, to in pairwise(times)]
    return to_gain + torch.stack(steps).sum()  # (eq:cds-exact)


def each(name: str, value: Tensor, h: Tensor) -> Tensor:
    """Return value if it holds a number ≥ 0 for each step."""
    if value.shape != h.shape or not (value >= 0).all():
        got = f"{tuple(value.shape)}, least {value.min():.3g}"
        raise ValueError(f"{name} must be {tuple(h.shape)} numbers ≥ 0, got {got}")
    return value


class Bound(NamedTuple):
    """Three errors of the samples, in nats.

    Attributes:
        start: Of N(0, I) in the place of p_T.
        score: Σ_k h_k E ‖s − ∇log p‖².
        step: Of freezing the score over a step.
    """

    start: Tensor
    score: Tensor
    step: Tensor

    @property
    def total(self) -> Tensor:
        """Start + (√score + √step)², at least KL(p ‖ samples) (eq:cds-bound)."""
        return self.start + (self.score.sqrt() + self.step.sqrt()).square()

    @property
    def plain(self) -> Tensor:
        """Start + 2 score + 2 step, which is larger and easier to read."""
        return self.start + 2 * self.score + 2 * self.step


def kl_bound(
    times: Tensor, kl: Tensor, fisher: Tensor, errors: Tensor | None = None
) -> Bound:
    """Return the bound for data with finite Fisher information (eq:cds-bound).

    Args:
        times: From T down to 0, (K + 1,).
        kl: KL(p_0 ‖ γ), ().
        fisher: I_0, ().
        errors: E ‖s(X_t, t) − ∇log p_t(X_t)‖² at times[:-1], (K,); 0 by default.

    Raises:
        ValueError: Times that do not fall to 0, negative numbers, wrong shapes.
    """
    h = falling(times)
    if times[-1] != 0:
        raise ValueError(f"times must end at 0, got {times[-1]}; see early_bound")
    if not (kl >= 0 and fisher >= 0):
        raise ValueError(f"kl and fisher must be ≥ 0, got {kl}, {fisher}")
    return Bound((-2 * times[0]).exp() * kl, missed(h, errors), h.max() * fisher)


def missed(h: Tensor, errors: Tensor | None) -> Tensor:
    """Return Σ_k h_k errors_k."""
    return h.new_zeros(()) if errors is None else (h * each("errors", errors, h)).sum()


def early_bound(
    times: Tensor, second: float, d: int, errors: Tensor | None = None
) -> Bound:
    """Return the bound on KL(p_δ ‖ samples) for any data (eq:cds-early).

    Summing by parts, Σ h_k (I_{k+1} − I_k) is at most the last step times I_δ plus
    what the steps shrink times I there; I is bounded by (eq:cds-noised-fisher).

    Args:
        times: From T down to δ > 0, (K + 1,).
        second: M = E ‖X_0‖².
        d: The dimension.
        errors: As in :func:`kl_bound`.

    Raises:
        ValueError: Times that do not fall to δ > 0, M < 0, d < 1, wrong shapes.
    """
    h = falling(times)
    if not times[-1] > 0:
        raise ValueError(f"times must end above 0, got {times[-1]}; see kl_bound")
    if not (second >= 0 and d >= 1):
        raise ValueError(f"need second ≥ 0 and d ≥ 1, got {second}, {d}")
    shrinks = torch.cat([(h[:-1] - h[1:]).clamp(min=0), h[-1:]])
    step = (shrinks * noised_fisher(second, d, times[1:])).sum()  # (eq:cds-early)
    return Bound(noised_kl(second, d, times[0]), missed(h, errors), step)
