"""How likely a datum is under a diffusion model (book/diffusion/likelihood.md).

A learned score s drives two models from noise X_T ~ π to time t₀: the walk back

    dX = [−f_t X + g_t² s(X, t)] ds + g_t dB,   t = T − s

and the probability flow.  The flow has a density that can be computed,

    log q(x) = log π(x_T) + ∫ div v(x_t, t) dt                        (eq:lik-ode)

and the walk has a bound, by the theorem of Girsanov,

    KL(p ‖ q) ≤ ½ ∫ g_t² E ‖∇log p_t − s‖² dt + KL(p_T ‖ π)         (eq:lik-bound)

The weight g² of the squared error of the score is, for the error of the noise ε,

    g_t² / σ_t² = d/dt log (σ_t² / α_t²)                             (eq:lik-rate)

so that times with the density ∝ g²/σ² are noise levels drawn evenly on a
logarithmic scale, whatever the equation.

References:
    Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole (2021), Score-based generative
        modeling through stochastic differential equations.
    Song, Durkan, Murray, Ermon (2021), Maximum likelihood training of score-based
        diffusion models.
    Kingma, Salimans, Poole, Ho (2021), Variational diffusion models.
    Liptser, Shiryaev (2001), Statistics of random processes I, chapters 6 and 7.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from ..distributions import LOG_2PI, Gaussian, Mixture, StandardNormal, admit
from ..model import Density
from ..nn import noise_like
from ..objectives import Rule, line_rule
from ..ode import Field, Solution, adaptive, divergence, hutchinson, integrate
from .sde import (
    SDE,
    Score,
    denoiser_score,
    marginal,
    marginal_score,
    probability_flow,
    reverse_drift,
)

__all__ = [
    "GreyDenoiser",
    "LevelSteps",
    "OdeLogProb",
    "PathRatio",
    "ScoreBound",
    "ScoreFlow",
    "TimeLaw",
    "UniformLogLevel",
    "UniformTime",
    "Whitened",
    "euler_density",
    "gaussian_law",
    "girsanov",
    "likelihood_weight",
    "log_level_rate",
    "ode_log_prob",
    "prior_log_prob",
    "score_bound",
]

Solver = Callable[[Field, Tensor, float, float], Solution]  # v, x, start, end


# The density of the flow


class OdeLogProb(NamedTuple):
    """A log-density by the probability flow, and how it was found.

    Attributes:
        log_prob: log q(x), shape (n,).
        z: Where the flow has brought the points at T, shape (n, *shape).
        evaluations: Calls of the field.
    """

    log_prob: Tensor
    z: Tensor
    evaluations: int


@dataclass(frozen=True)
class LevelSteps:
    """Steps of order 4, even in arsinh(level / bend): logarithmic above the bend.

    They do not depend on the batch, so a row's result is its own.

    Attributes:
        sde: Whose levels σ/α.
        steps: How many.
        bend: A level that is small beside the data.
    """

    sde: SDE
    steps: int = 40
    bend: float = 0.1

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.bend < math.inf:
            got = f"{self.steps} and {self.bend}"
            raise ValueError(f"steps ≥ 1 and bend > 0 are needed, got {got}")

    def times(self, start: float, end: float, like: Tensor) -> Tensor:
        """Return the grid from ``start`` to ``end``, shape (steps + 1,)."""
        ends = torch.tensor([start, end], dtype=torch.float64)
        low, high = torch.asinh(self.sde.level(ends) / self.bend).tolist()
        even = torch.linspace(low, high, self.steps + 1, dtype=torch.float64)
        times = self.sde.time(self.bend * even.sinh())
        times[0], times[-1] = ends  # rounding may have moved them
        return times.to(like)

    def __call__(self, v: Field, x: Tensor, start: float, end: float) -> Solution:
        """Return where the solution from x at ``start`` is at ``end``."""
        y = integrate(v, x, self.times(start, end, x))
        return Solution(y, self.steps, 0, 4 * self.steps)


def prior_log_prob(sde: SDE, z: Tensor) -> Tensor:
    """Return log π(z), π = N(0, spread² I), shape (n,)."""
    d, s = z[0].numel(), sde.spread
    return -(z / s).flatten(1).square().sum(1) / 2 - d * (LOG_2PI / 2 + math.log(s))


def ode_log_prob(
    sde: SDE,
    score: Score,
    x: Tensor,
    *,
    start: float = 0.0,
    solver: Solver = adaptive,
    eps: Tensor | None = None,
) -> OdeLogProb:
    """Return log q(x), the density at time ``start`` of the flow from π (eq:lik-ode).

    Args:
        sde: The way to noise.
        score: s(x, t); each row depends on the same row of x only.
        x: Points at time ``start``, (n, *shape).
        start: In [0, T).  The density is that of the flow stopped there.
        solver: By default Dormand and Prince with tolerance 1e-6, whose steps
            depend on the whole batch.
        eps: Noise of Hutchinson's estimate of the divergence, in the shape of x;
            without it the divergence is exact, for d backward passes.

    Raises:
        ValueError: No points, points that are not finite, a time outside [0, T),
            or an eps of another shape.
    """
    if x.ndim < 2 or not len(x) or not x.is_floating_point() or not x.isfinite().all():
        got = f"{tuple(x.shape)} of {x.dtype}"
        raise ValueError(f"x must be finite real points (n, *shape), got {got}")
    if not 0 <= start < sde.horizon:
        raise ValueError(f"start must lie in [0, {sde.horizon}), got {start}")
    if eps is not None and eps.shape != x.shape:
        raise ValueError(f"eps must be {tuple(x.shape)}, got {tuple(eps.shape)}")
    v = probability_flow(sde, score)

    def joint(state: Tensor, t: Tensor) -> Tensor:
        y = state[:, :-1].view(x.shape)
        value, div = divergence(v, y, t) if eps is None else hutchinson(v, y, t, eps)
        return torch.cat([value.flatten(1), div[:, None]], 1)

    state = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], 1)
    end = solver(joint, state, start, sde.horizon)
    z, log_det = end.x[:, :-1].view(x.shape), end.x[:, -1]
    log_prob = prior_log_prob(sde, z) + log_det  # (eq:lik-ode)
    return OdeLogProb(log_prob, z, end.evaluations)


# Laws on paths


class PathRatio(NamedTuple):
    """Paths of a law P, and what another law Q says of them.

    Attributes:
        x: Their ends, (n, *shape).
        log_ratio: log dQ/dP of each path, shape (n,).
        energy: ½ Σ h ‖u‖² along each path, whose mean is KL(P ‖ Q), shape (n,).
    """

    x: Tensor
    log_ratio: Tensor
    energy: Tensor


def girsanov(
    drifts: tuple[Field, Field],
    noise: Callable[[Tensor], Tensor],
    x: Tensor,
    times: Tensor,
    *,
    rng: Generator | None = None,
) -> PathRatio:
    """Walk by the Euler scheme of P and weigh the paths under that of Q.

    With u = (b_Q − b_P)/g a step of length h adds √h ⟨u, z⟩ − ½ h ‖u‖² to the
    logarithm of the ratio (eq:path-ratio), exactly, for these schemes.

    Args:
        drifts: b_P and b_Q, per unit of time passed.
        noise: g > 0, a function of the time.
        x: Where both start, (n, *shape).
        times: Rising or falling.
        rng: Source of the noise.
    """
    log_ratio = energy = x.new_zeros(len(x))
    for t, end in pairwise(times):
        h, z, b = (end - t).abs(), noise_like(x, rng), drifts[0](x, t)
        u = (drifts[1](x, t) - b) / noise(t)
        half = h / 2 * u.flatten(1).square().sum(1)
        energy = energy + half  # (eq:path-kl)
        log_ratio = log_ratio + h.sqrt() * (u * z).flatten(1).sum(1) - half
        x = x + h * b + h.sqrt() * noise(t) * z
    return PathRatio(x, log_ratio, energy)


# The bound


class ScoreBound(NamedTuple):
    """The two terms of (eq:lik-bound), nats.

    Attributes:
        fit: ½ ∫ g² E ‖∇log p_t − s‖² dt, shape ().
        prior: KL(p_T ‖ π), shape ().
    """

    fit: Tensor
    prior: Tensor

    @property
    def total(self) -> Tensor:
        """What KL(p ‖ q) of the walk back does not exceed."""
        return self.fit + self.prior


def score_bound(
    sde: SDE,
    score: Score,
    law: Mixture,
    *,
    start: float = 0.0,
    nodes: int = 64,
    rule: Callable[[Mixture], Rule] = line_rule,
) -> ScoreBound:
    """Return the bound of (eq:lik-bound) where p is a mixture and all is known.

    Args:
        sde: The way to noise.
        score: s(x, t), for times ().
        law: p.
        start: Time at which the walk back ends, in [0, T).
        nodes: Of Gauss' quadrature in the time.
        rule: From a mixture to weighted points; the default is for the line.

    Raises:
        ValueError: A time outside [0, T), or no nodes.
    """
    if not 0 <= start < sde.horizon or nodes < 1:
        want = f"start in [0, {sde.horizon}) and nodes ≥ 1"
        raise ValueError(f"{want} are needed, got {start} and {nodes}")
    exact, fit = marginal_score(sde, law), law.means.new_zeros(())
    for t, w in zip(*time_rule(start, sde.horizon, nodes, law.means), strict=True):
        points = rule(marginal(sde, law, float(t)))
        gap = (exact(points.x, t) - score(points.x, t)).square().sum(1)
        fit = fit + w / 2 * sde.diffusion(t).square() * (points.w @ gap)
    last = marginal(sde, law, sde.horizon)
    points = rule(last)
    log_ratio = last.log_prob(points.x) - prior_log_prob(sde, points.x)
    return ScoreBound(fit, points.w @ log_ratio)  # (eq:lik-bound)


def time_rule(
    start: float, end: float, nodes: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Return times in (start, end) and weights, denser near ``start``, (nodes,) each.

    They are Gauss' for v ∈ [0, 1], t = start + (end − start) v².
    """
    k = torch.arange(1, nodes).to(like)
    b = k / (4 * k.square() - 1).sqrt()
    lam, U = torch.linalg.eigh(torch.diag(b, 1) + torch.diag(b, -1))
    v, w = (lam + 1) / 2, U[0].square()
    return start + (end - start) * v.square(), 2 * (end - start) * v * w


def gaussian_law(
    sde: SDE, score: Score, *, eta: float = 1.0, start: float = 0.0, tol: float = 1e-10
) -> Gaussian:
    """Return the law of the walk back on the line, for a score affine in x.

    The walk starts in π and ends at time ``start``; its mean and variance solve two
    ordinary equations.

    Args:
        sde: The way to noise.
        score: s(x, t) = s(0, t) + x s′(t), for points (n, 1).
        eta: 1 for the walk with all its noise, 0 for the probability flow.
        start: In [0, T).
        tol: Of the integrator.
    """
    drift = reverse_drift(sde, score, eta=eta)

    def moments(state: Tensor, t: Tensor) -> Tensor:
        mean, var = state[:1], state[1:]
        one = torch.ones_like(mean)
        push, high, low = drift(torch.cat([mean, one, 0 * one]), t).split(1)
        spread = 2 * (high - low) * var + eta**2 * sde.diffusion(t).square()
        return -torch.cat([push, spread])  # time falls

    first = torch.tensor([[0.0], [sde.spread**2]], dtype=torch.float64)
    last = adaptive(moments, first, sde.horizon, start, tol=tol).x
    return Gaussian(last[0], last[1:])


def euler_density(
    sde: SDE, score: Score, x: Tensor, times: Tensor, *, eta: float = 1.0
) -> Tensor:
    """Return the density of the Euler walk back at the last time, on a grid.

    Args:
        sde: The way to noise.
        score: s(x, t).
        x: Grid of the line, evenly spaced, (m, 1); the walk starts in π.
        times: Falling.
        eta: η > 0.

    Returns:
        The density at the points x, shape (m,): exact for the Euler scheme, but for
        the sum over the grid that replaces the integral over a step's start.
    """
    drift = reverse_drift(sde, score, eta=eta)
    dx, q = (x[1] - x[0]).abs(), prior_log_prob(sde, x).exp()
    for t, end in pairwise(times):
        h = (end - t).abs()
        mean, s = (x + h * drift(x, t))[:, 0], eta * h.sqrt() * sde.diffusion(t)
        kernel = (-((x - mean) / s).square() / 2).exp() / s / math.sqrt(2 * math.pi)
        q = kernel @ q * dx
    return q


# Weights and times


def log_level_rate(sde: SDE, t: Tensor) -> Tensor:
    """Return g_t²/σ_t² = d/dt log(σ_t²/α_t²), in the shape of t (eq:lik-rate)."""
    return (sde.diffusion(t) / sde.sigma(t)).square()


def likelihood_weight(sde: SDE, t: Tensor) -> Tensor:
    """Return the weight g²/σ² that makes ½ ∫ w E ‖ε̂ − ε‖² dt the bound's integral.

    Raises:
        ValueError: A time outside (0, T].
    """
    inside(sde, t)
    return log_level_rate(sde, t)


def inside(sde: SDE, t: Tensor) -> None:
    """Raise a ``ValueError`` unless 0 < t ≤ T everywhere."""
    if not ((t > 0) & (t <= sde.horizon)).all():
        raise ValueError(f"t must lie in (0, {sde.horizon}], got {t}")


class TimeLaw(ABC):
    """A law of training times on [start, T].

    Args:
        sde: Whose times.
        start: First time, in (0, T).

    Raises:
        ValueError: Another start.
    """

    def __init__(self, sde: SDE, start: float) -> None:
        if not 0 < start < sde.horizon:
            raise ValueError(f"start must lie in (0, {sde.horizon}), got {start}")
        self.sde, self.start = sde, start

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """Return the time below which the share u ∈ [0, 1] of all times lies."""

    @abstractmethod
    def density(self, t: Tensor) -> Tensor:
        """Return the density at times in [start, T]."""

    def sample(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Draw a time for each row of x, shape (n, 1, …, 1).

        Each time has this law; together they are spread evenly, one in each n-th
        part, so that a batch's mean varies less than that of independent draws.
        """
        n = len(x)
        device = x.device if rng is None else rng.device
        shift = torch.rand((), generator=rng, dtype=x.dtype, device=device)
        share = torch.arange(n, dtype=x.dtype, device=x.device) / n
        u = (share + shift.to(x.device)) % 1.0
        return self.quantile(u).view(n, *[1] * (x.ndim - 1))


class UniformTime(TimeLaw):
    """t ~ U[start, T]."""

    def quantile(self, u: Tensor) -> Tensor:
        """Return start + (T − start) u."""
        t = self.start + (self.sde.horizon - self.start) * u
        return t.clamp(max=self.sde.horizon)

    def density(self, t: Tensor) -> Tensor:
        """Return 1/(T − start)."""
        inside(self.sde, t)
        return torch.ones_like(t) / (self.sde.horizon - self.start)


class UniformLogLevel(TimeLaw):
    """log σ_t/α_t is uniform: the density of t is ∝ g²/σ² (eq:lik-rate)."""

    def __init__(self, sde: SDE, start: float) -> None:
        super().__init__(sde, start)
        ends = torch.tensor([start, sde.horizon], dtype=torch.float64)
        self.low, self.high = sde.level(ends).log().tolist()

    def quantile(self, u: Tensor) -> Tensor:
        """Return the time of the level that divides the logarithms as u says."""
        level = (self.low + (self.high - self.low) * u).exp()
        return self.sde.time(level).clamp(self.start, self.sde.horizon)

    def density(self, t: Tensor) -> Tensor:
        """Return g²/σ² over its integral 2 log(level_T / level_start)."""
        inside(self.sde, t)
        return log_level_rate(self.sde, t) / (2 * (self.high - self.low))


# The model


class Whitened(nn.Module):
    """A denoiser that is exact for a Gaussian law, plus what a network adds.

    Along the i-th axis of the covariance, with variance λ_i, and for y = Uᵀ(x − m),

        D = m + U [λ/(λ + σ²) y + σ √(λ/(λ + σ²)) F(y/√(λ + σ²), ¼ log σ)]
                                                                  (eq:lik-whitened)

    so F sees numbers of variance one, and should return such.

    Args:
        net: F(y, t), for y (n, d).
        law: The Gaussian, with the mean and the covariance of the data.
    """

    lam: Tensor
    U: Tensor
    m: Tensor

    def __init__(self, net: nn.Module, law: Gaussian) -> None:
        super().__init__()
        self.net = net
        lam, U = torch.linalg.eigh(law.covs[0])
        self.register_buffer("lam", lam)
        self.register_buffer("U", U)
        self.register_buffer("m", law.means[0])

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D(x, σ), shape (n, *shape), for σ > 0, () or (n, 1, …, 1)."""
        s = sigma.reshape(-1, 1)
        y, total = (x.flatten(1) - self.m) @ self.U, self.lam + s.square()
        F = self.net(y / total.sqrt(), s.log() / 4)
        D = self.lam / total * y + s * (self.lam / total).sqrt() * F
        return (D @ self.U.T + self.m).view_as(x)  # (eq:lik-whitened)


class GreyDenoiser(nn.Module):
    """A denoiser that knows which values data may have: evenly spaced grey levels.

    Given its noised value alone, pixel i has the grey level c_l with probability
    ∝ π_il exp(−(x_i − c_l)²/2σ²).  A network tilts these by what it makes of all,

        r_il ∝ π_il exp(−(x_i − c_l)²/2σ² + F_il),   D_i = Σ_l r_il c_l  (eq:lik-grey)

    so D is exact as σ → 0, where each pixel tells its own level, whatever F is.

    Args:
        net: F(p, t), in the shape of p (n, d L): the first probabilities less π.
        log_prior: log π_il, shape (d, L); the levels are 0, 1/(L − 1), …, 1.
    """

    log_prior: Tensor

    def __init__(self, net: nn.Module, log_prior: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("log_prior", log_prior.log_softmax(-1))

    def log_posterior(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return log r, shape (n, d, L), at x (n, *shape); σ is () or (n, 1, …, 1)."""
        s, L = sigma.reshape(-1, 1, 1), self.log_prior.shape[1]
        gap = x.flatten(1)[..., None] - torch.linspace(0, 1, L).to(x)
        own = self.log_prior - (gap / s).square() / 2
        told = (own.softmax(-1) - self.log_prior.exp()) * L**0.5  # of order one
        tilt = self.net(told.flatten(1), s.flatten().log() / 4)
        return (own + tilt.view_as(own)).log_softmax(-1)  # (eq:lik-grey)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D(x, σ), shape (n, *shape)."""
        r = self.log_posterior(x, sigma).exp()
        return (r @ torch.linspace(0, 1, r.shape[-1]).to(r)).view_as(x)

    def fill(
        self, x: Tensor, level: float, *, rng: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw y = x + level ε; return y and log N(y; x, level² I) − log r(x | y).

        The mean of the second, taken from that of log q(y), leaves a bound of
        log P(x) (eq:lik-decoder).

        Args:
            x: Grey images, multiples of 1/(L − 1) in [0, 1], shape (n, *shape).
            level: A noise level, small beside the distance of grey levels.
            rng: Source of ε.

        Raises:
            ValueError: x holds no such levels.
        """
        noise, top = noise_like(x, rng), self.log_prior.shape[1] - 1
        index = (top * x.flatten(1)).round().long()
        known = (index >= 0) & (index <= top)
        if not (known & ((top * x.flatten(1) - index).abs() < 1e-3)).all():
            raise ValueError(f"x must hold multiples of 1/{top} in [0, 1], got {x}")
        y = x + level * noise
        log_r = self.log_posterior(y, x.new_tensor(level))
        decoder = log_r.gather(-1, index[..., None])[..., 0].sum(1)
        d = index.shape[1]
        log_noise = -noise.flatten(1).square().sum(1) / 2 - d * math.log(level)
        return y, log_noise - d / 2 * LOG_2PI - decoder  # (eq:lik-decoder)


class ScoreFlow(Density):
    """The law of X/α at the time t₀ of a small noise level, X by the flow from π.

    The denoiser knows the score, the score drives the flow, and the flow stops at
    t₀, for samples as for densities: it is one law, with a density in x.

    Args:
        denoiser: D(x, σ).
        base: N(0, I) in the shape of the data.
        sde: The way to noise.
        level: σ/α at t₀; what is finer than this the model does not see.
        times: Law of the training times; by default that of likelihood.
        weight: w(sde, t) of ‖ε̂ − ε‖², which for g²/σ² makes the loss a bound.
        solver: Of the flow; by default 40 steps.

    Raises:
        ValueError: A level outside (0, level_T), or times that start elsewhere.
    """

    # More arguments than six: each is one decision and has a default.
    def __init__(
        self,
        denoiser: nn.Module,
        base: StandardNormal,
        sde: SDE,
        *,
        level: float = 0.01,
        times: TimeLaw | None = None,
        weight: Callable[[SDE, Tensor], Tensor] = log_level_rate,
        solver: Solver | None = None,
    ) -> None:
        super().__init__()
        top = sde.level(torch.tensor(sde.horizon, dtype=torch.float64)).item()
        if not 0 < level < top:
            raise ValueError(f"level must lie in (0, {top:.4g}), got {level}")
        self.denoiser, self.base, self.sde = denoiser, base, sde
        self.level, self.top = level, top
        self.start = sde.time(torch.tensor(level, dtype=torch.float64)).item()
        self.times = times or UniformLogLevel(sde, self.start)
        if self.times.start < self.start * (1 - 1e-6):
            got = f"{self.times.start}"
            raise ValueError(f"times must start at {self.start} or later, got {got}")
        self.weight, self.solver = weight, solver or LevelSteps(sde)

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """Return s(x, t), the score that the denoiser knows."""
        return denoiser_score(self.sde, self.denoiser)(x, t)

    def miss(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return ‖ε̂ − ε‖² at x + level_t ε, shape (n,); t is (n, 1, …, 1)."""
        level = self.sde.level(t)
        gap = (self.denoiser(x + level * noise, level) - x) / level
        return gap.flatten(1).square().sum(1)  # as D − x = level (ε − ε̂)

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return ½ E w ‖ε̂ − ε‖²/density for one time and noise a row (eq:lik-loss)."""
        t = self.times.sample(x, rng=rng)
        share = self.weight(self.sde, t) / self.times.density(t)
        return (share.flatten() / 2 * self.miss(x, t, noise_like(x, rng))).mean()

    def bound(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Draw an estimate of a bound of E[−log q(x + level₀ Z)] (eq:lik-datum).

        Here q is the law of the walk back, not of the flow.

        Returns:
            Nats, shape (n,).
        """
        x = admit(x, self, self.base)
        law = UniformLogLevel(self.sde, self.start)
        t, d = law.sample(x, rng=rng), x[0].numel()
        fit = (law.high - law.low) * self.miss(x, t, noise_like(x, rng))
        entropy = d / 2 * (LOG_2PI + 1) + d * math.log(self.level)
        return fit + self.prior_kl(x) + entropy  # (eq:lik-datum)

    def prior_kl(self, x: Tensor) -> Tensor:
        """Return KL(N(α_T x, σ_T² I) ‖ π), shape (n,)."""
        end = torch.tensor(self.sde.horizon, dtype=torch.float64)
        a, s = self.sde.alpha(end).item(), self.sde.sigma(end).item()
        ratio = (s / self.sde.spread) ** 2
        far = (a / self.sde.spread * x).flatten(1).square().sum(1)
        return (far + x[0].numel() * (ratio - 1 - math.log(ratio))) / 2

    def log_prob(self, x: Tensor, *, eps: Tensor | None = None) -> Tensor:
        """Return log q(x) of the flow, shape (n,).

        Args:
            x: Points (n, *shape).
            eps: Noise of Hutchinson's estimate of the divergence, or None: exact.
        """
        x = admit(x, self, self.base)
        a = self.level_scale()
        found = ode_log_prob(self.sde, self.score, a * x, start=self.start,
                             solver=self.solver, eps=eps)  # fmt: skip
        return found.log_prob + x[0].numel() * math.log(a)

    @torch.no_grad()
    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw x_T ~ π, follow the flow to t₀, divide by α, shape (n, *shape)."""
        z = self.sde.spread * self.base.sample(n, rng=rng)
        v = probability_flow(self.sde, self.score)
        end = self.solver(v, z, self.sde.horizon, self.start)
        return end.x / self.level_scale()

    def level_scale(self) -> float:
        """Return α at t₀."""
        return self.sde.alpha(torch.tensor(self.start, dtype=torch.float64)).item()
