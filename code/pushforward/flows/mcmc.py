"""Flows as proposals: i-SIR, Ex²MCMC, FlEx²MCMC (book/flows/mcmc.md).

The target π is known up to a constant, by its log-density.  A proposal λ can be
drawn from, and knows its density.  Between them stands the weight

    w(x) = π(x)/λ(x)                                          (eq:mcmc-weight)

A global kernel picks among N particles, one of which is where the chain stands;
a local kernel follows the gradient; Ex² applies one after the other; FlEx² lets
the proposal be a flow that learns from the chains.

    P_N(x, ·) = law of X^I,  P(I = i) ∝ w(X^i),  X^1 = x       (eq:mcmc-isir)
    K = P_N R                                                   (eq:mcmc-ex2)
    a KL(π ‖ λ_θ) + (1 − a) KL(λ_θ ‖ π)                        (eq:mcmc-flex)

A kernel is a function of the states of m chains, (m, d), and of an ``rng``.

References:
    Samsonov, Lagutin, Gabrié, Durmus, Naumov, Moulines (2022), Local-global MCMC
        kernels: the best of both worlds.
    Andrieu, Doucet, Holenstein (2010), Particle Markov chain Monte Carlo methods.
    Roberts, Tweedie (1996), Exponential convergence of Langevin distributions.
    Hairer, Mattingly (2011), Yet another look at Harris' ergodic theorem.
    Geyer (1992), Practical Markov chain Monte Carlo.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from ..distributions import Law, positive
from ..model import Density
from ..nn import noise_like
from ..stream import Stream
from .change import Draw, Flow

__all__ = [
    "AdaptiveProposal",
    "ChainSize",
    "Chains",
    "Harris",
    "Kernel",
    "LogDensity",
    "Move",
    "Selection",
    "Trajectory",
    "Walk",
    "chain_size",
    "compose",
    "ex2",
    "harris",
    "importance_size",
    "isir",
    "isir_matrix",
    "isir_rate",
    "mala",
    "metropolis_matrix",
    "simulate",
    "sir",
    "sir_law",
]

LogDensity = Callable[[Tensor], Tensor]  # x (n, d) ↦ log π(x) + constant, (n,)


class Move(NamedTuple):
    """One step of m chains.

    Attributes:
        x: New states, shape (m, d).
        moved: Whether a chain has left its state, shape (m,).
    """

    x: Tensor
    moved: Tensor


class Selection(NamedTuple):
    """A choice among N particles, for each of m chains.

    Attributes:
        x: The chosen ones, shape (m, d).
        moved: Whether a fresh particle was chosen, shape (m,).
        log_weights: log w of all, up to a constant, shape (m, N).
    """

    x: Tensor
    moved: Tensor
    log_weights: Tensor


class Walk(NamedTuple):
    """Local steps of m chains, each proposed and then accepted or refused.

    Attributes:
        x: New states, shape (m, d).
        moved: Whether a chain has left its state, shape (m,).
        log_ratio: log of the acceptance ratio of each proposal, (steps, m).
    """

    x: Tensor
    moved: Tensor
    log_ratio: Tensor


class Trajectory(NamedTuple):
    """What m chains went through.

    Attributes:
        x: States after each step, shape (steps, m, d).
        moved: Whether each step left its state, shape (steps, m).
    """

    x: Tensor
    moved: Tensor


class Kernel(Protocol):
    """A Markov kernel, on m chains at once."""

    def __call__(
        self, x: Tensor, *, rng: Generator | None = None
    ) -> Move | Selection | Walk:
        """Return the states (m, d) that follow x (m, d)."""
        ...


def states(x: Tensor) -> Tensor:
    """Return x if it is the states of at least one chain, else raise."""
    if x.ndim != 2 or not x.numel() or not x.is_floating_point():
        got = f"{tuple(x.shape)} of {x.dtype}"
        raise ValueError(f"x must be real states (m, d) of m ≥ 1 chains, got {got}")
    return x


def at_least(name: str, value: int, least: int) -> None:
    """Raise a ``ValueError`` that names the argument unless value ≥ least."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def exponential(like: Tensor, rng: Generator | None = None) -> Tensor:
    """Draw exponential variables of mean one, in the shape of ``like``."""
    device = like.device if rng is None else rng.device
    e = torch.empty(like.shape, dtype=like.dtype, device=device)
    return e.exponential_(generator=rng).to(like.device)


# Importance sampling


def importance_size(log_weights: Tensor) -> Tensor:
    """Return (Σ w)²/Σ w², how many of n weighted draws count (eq:mcmc-size).

    Args:
        log_weights: log w up to a constant, shape (…, n).

    Returns:
        Between 1 and n, shape (…).

    Raises:
        ValueError: No weights, or weights whose largest is zero or not finite.
    """
    check_weights(log_weights)
    total, squares = log_weights.logsumexp(-1), (2 * log_weights).logsumexp(-1)
    return (2 * total - squares).exp()  # (eq:mcmc-size)


def check_weights(log_weights: Tensor) -> None:
    """Raise unless the largest weight of each row is positive and finite."""
    if not log_weights.shape or not log_weights.numel():
        shape = tuple(log_weights.shape)
        raise ValueError(f"log_weights must be (…, n) with n ≥ 1, got {shape}")
    if not log_weights.amax(-1).isfinite().all():
        raise ValueError(
            "log_weights must have a finite largest entry in each row, got "
            f"{log_weights.amax(-1).flatten().tolist()[:8]}: log_target or the "
            "proposal's log_prob is infinite, or not a number"
        )


def draws(proposal: Law, n: int, *, rng: Generator | None = None) -> Draw:
    """Draw n points with their log-densities; a flow knows both in one pass."""
    if isinstance(proposal, Flow | AdaptiveProposal):
        return proposal.draw(n, rng=rng)
    x = proposal.sample(n, rng=rng)
    return Draw(x, proposal.log_prob(x))


def select(log_weights: Tensor, *, rng: Generator | None = None) -> Tensor:
    """Draw an index with probabilities ∝ w in each row (m, N), shape (m,)."""
    check_weights(log_weights)
    return (log_weights - exponential(log_weights, rng).log()).argmax(-1)


@torch.no_grad()
def sir(
    m: int,
    log_target: LogDensity,
    proposal: Law,
    n: int,
    *,
    rng: Generator | None = None,
) -> Selection:
    """Draw m points of almost the law π: each is one of N draws from λ.

    Args:
        m: How many points.
        log_target: log π, up to a constant.
        proposal: λ, positive where π is.
        n: N ≥ 1, particles for each point.
        rng: Source of the draws.
    """
    at_least("m", m, 1)
    at_least("n", n, 1)
    fresh = draws(proposal, m * n, rng=rng)
    log_w = (log_target(fresh.x) - fresh.log_prob).view(m, n)  # (eq:mcmc-weight)
    k = select(log_w, rng=rng)
    x = fresh.x.view(m, n, -1)[torch.arange(m, device=k.device), k]
    return Selection(x, torch.ones_like(k, dtype=torch.bool), log_w)


# The global kernel


@torch.no_grad()
def isir(
    x: Tensor,
    log_target: LogDensity,
    proposal: Law,
    n: int,
    *,
    rng: Generator | None = None,
) -> Selection:
    """Take one step of iterated sampling importance resampling (eq:mcmc-isir).

    Args:
        x: States of the chains, shape (m, d).
        log_target: log π, up to a constant.
        proposal: λ, positive where π is.
        n: N ≥ 2, particles for each chain, its own state among them.
        rng: Source of the draws.

    Raises:
        ValueError: A bad x or n, or a state of weight zero or not finite.
    """
    m, d = states(x).shape
    at_least("n", n, 2)
    fresh = draws(proposal, m * (n - 1), rng=rng)
    particles = torch.cat([x[:, None], fresh.x.view(m, n - 1, d)], 1)  # (m, N, d)
    log_q = torch.cat([proposal.log_prob(x)[:, None], fresh.log_prob.view(m, -1)], 1)
    log_w = log_target(particles.flatten(0, 1)).view(m, n) - log_q  # (eq:mcmc-weight)
    k = select(log_w, rng=rng)  # (eq:mcmc-isir)
    return Selection(particles[torch.arange(m, device=k.device), k], k > 0, log_w)


def isir_rate(bound: float, n: int) -> float:
    """Return ε_N = (N − 1)/(2L + N − 2): P_N ≥ ε_N π (eq:mcmc-rate).

    Args:
        bound: L ≥ 1, of the normalised weight w.
        n: N ≥ 2, particles.
    """
    if not 1 <= bound < math.inf:
        raise ValueError(f"bound must be finite and at least 1, got {bound}")
    at_least("n", n, 2)
    return (n - 1) / (2 * bound + n - 2)  # (eq:mcmc-rate)


# The local kernel


class Point(NamedTuple):
    """States with log π and its gradient: what a Langevin step looks at."""

    x: Tensor
    log_p: Tensor
    slope: Tensor


def look(x: Tensor, log_target: LogDensity) -> Point:
    """Return log π(x) and ∇ log π(x) at states (m, d), by one backward pass."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        log_p = log_target(x)
        (slope,) = torch.autograd.grad(log_p.sum(), x)
    return Point(x.detach(), log_p.detach(), slope)


def log_langevin(start: Point, y: Tensor, step: float) -> Tensor:
    """Return log q(x, y) up to a constant, q(x, ·) = N(x + γ∇log π(x), 2γI)."""
    return -(y - start.x - step * start.slope).square().sum(-1) / (4 * step)


def mala(
    x: Tensor,
    log_target: LogDensity,
    step: float,
    *,
    repeats: int = 1,
    rng: Generator | None = None,
) -> Walk:
    """Take steps of the Metropolis-adjusted Langevin algorithm (eq:mcmc-mala).

    A proposal where log π is −∞, or not a number, is refused.

    Args:
        x: States of the chains, shape (m, d).
        log_target: log π up to a constant, differentiable, row by row.
        step: γ > 0; a proposal moves by γ∇log π(x) + √(2γ) ξ.
        repeats: How many steps; they cost ``repeats`` + 1 gradients.
        rng: Source of the draws.

    Raises:
        ValueError: A bad argument, or a state where log π is not finite.
    """
    positive("step", step)
    at_least("repeats", repeats, 1)
    here = look(states(x), log_target)
    if not here.log_p.isfinite().all():
        raise ValueError("log_target must be finite at the states x of the chains")
    ratios, moved = [], torch.zeros_like(here.log_p, dtype=torch.bool)
    for _ in range(repeats):
        drift = here.x + step * here.slope  # (eq:mcmc-langevin)
        noise = math.sqrt(2 * step) * noise_like(x, rng)
        there = look(drift + noise, log_target)
        back = log_langevin(there, here.x, step)
        forth = log_langevin(here, there.x, step)
        ratios.append(there.log_p - here.log_p + back - forth)  # (eq:mcmc-mala)
        yes = -exponential(here.log_p, rng) < ratios[-1]
        here = accepted(yes, there, here)
        moved = moved | yes
    return Walk(here.x, moved, torch.stack(ratios))


def accepted(yes: Tensor, there: Point, here: Point) -> Point:
    """Return ``there`` for the chains that accept, ``here`` for the others."""
    column = yes[:, None]
    return Point(
        torch.where(column, there.x, here.x),
        torch.where(yes, there.log_p, here.log_p),
        torch.where(column, there.slope, here.slope),
    )


# Both


def compose(*kernels: Kernel) -> Kernel:
    """Return the kernel that applies others in turn: it keeps what they keep.

    Args:
        kernels: At least one; the first is applied first.
    """
    at_least("number of kernels", len(kernels), 1)

    def kernel(x: Tensor, *, rng: Generator | None = None) -> Move:
        moved = torch.zeros(len(states(x)), dtype=torch.bool, device=x.device)
        for part in kernels:
            move = part(x, rng=rng)
            x, moved = move.x, moved | move.moved
        return Move(x, moved)

    return kernel


def ex2(
    log_target: LogDensity, proposal: Law, n: int, step: float, *, repeats: int = 1
) -> Kernel:
    """Return Ex²MCMC: explore by i-SIR, then exploit by MALA (eq:mcmc-ex2).

    Args:
        log_target: log π up to a constant, differentiable.
        proposal: λ.
        n: N ≥ 2, particles of the global step.
        step: γ > 0, of the local steps.
        repeats: How many local steps follow each global one.
    """
    explore = partial(isir, log_target=log_target, proposal=proposal, n=n)
    exploit = partial(mala, log_target=log_target, step=step, repeats=repeats)
    return compose(explore, exploit)  # (eq:mcmc-ex2)


def simulate(
    kernel: Kernel, x: Tensor, steps: int, *, rng: Generator | None = None
) -> Trajectory:
    """Return the states of m chains after each of ``steps`` steps.

    Args:
        kernel: What moves them.
        x: Where they start, shape (m, d).
        steps: At least 1.
        rng: Source of the draws.
    """
    at_least("steps", steps, 1)
    xs, moved = [], []
    for _ in range(steps):
        move = kernel(x, rng=rng)
        x = move.x
        xs.append(x)
        moved.append(move.moved)
    return Trajectory(torch.stack(xs), torch.stack(moved))


# How many independent draws a path is worth


class ChainSize(NamedTuple):
    """What a path is worth, for the mean of each coordinate.

    Attributes:
        size: n/τ, how many independent draws have the same variance, (d,).
        time: τ = 1 + 2 Σ ρ_k, the autocorrelation time in steps, (d,).
        lags: How many autocorrelations were summed, (d,): far fewer than the
            steps of a chain, or τ is not to be trusted.
    """

    size: Tensor
    time: Tensor
    lags: Tensor


def chain_size(path: Tensor) -> ChainSize:
    """Estimate the autocorrelation time by Geyer's initial monotone sequence.

    Deviations are from the mean of all chains, so that chains which disagree do
    not look independent of their past.

    Args:
        path: States (steps, m, d) of m chains, after their burn-in, steps ≥ 4.

    Raises:
        ValueError: A bad shape, entries that are not finite, a coordinate that
            never changes.
    """
    if path.ndim != 3 or len(path) < 4 or not path.numel():
        shape = tuple(path.shape)
        raise ValueError(f"path must be (steps ≥ 4, m, d), got {shape}")
    x = path.detach().double()
    x = x - x.mean((0, 1))
    if not (x.isfinite().all() and (x != 0).any(0).any(0).all()):
        raise ValueError("path must be finite, and vary in each coordinate")
    steps, m = x.shape[:2]
    power = torch.fft.rfft(x, 2 * steps, dim=0).abs().square()
    cov = torch.fft.irfft(power, 2 * steps, dim=0)[:steps].mean(1)  # (steps, d)
    rho = (cov / cov[0])[: steps // 2 * 2]
    pairs = rho[0::2] + rho[1::2]  # positive and falling, for a reversible chain
    alive = (pairs > 0).cumprod(0)
    time = 2 * (pairs.cummin(0).values * alive).sum(0) - 1  # (eq:mcmc-time)
    return ChainSize(steps * m / time, time, 2 * alive.sum(0))


# Kernels on finitely many states, exactly


def law_on_states(name: str, p: Tensor) -> Tensor:
    """Return p if it is positive probabilities (k,), else raise."""
    if p.ndim != 1 or not (p > 0).all() or not abs(float(p.sum()) - 1) < 1e-9:
        raise ValueError(f"{name} must be positive, (k,), of sum 1, got {p}")
    return p


def laplace(w: Tensor) -> tuple[Tensor, Tensor]:
    """Return nodes t and weights for ∫₀^∞ e^(−tw) … dt, at all w (k,).

    The trapezoidal rule in log t converges exponentially for such integrands.
    """
    low, high = math.log(1e-18 / float(w.max())), math.log(50 / float(w.min()))
    count = math.ceil((high - low) / 0.1)
    v = torch.linspace(low, high, count, dtype=w.dtype, device=w.device)
    return v.exp(), v.exp() * (high - low) / (count - 1)


def isir_matrix(target: Tensor, proposal: Tensor, n: int) -> Tensor:
    """Return P_N on k states, exactly, for any N (eq:mcmc-isir-density).

    Args:
        target: π, positive, shape (k,).
        proposal: λ, positive, shape (k,).
        n: N ≥ 2, particles.

    Returns:
        P[x, y], shape (k, k); its rows sum to one up to the quadrature's error.
    """
    at_least("n", n, 2)
    w = law_on_states("target", target) / law_on_states("proposal", proposal)
    t, dt = laplace(w)
    E = (-w[:, None] * t).exp()  # (k, nodes)
    phi = proposal @ E
    fresh = (n - 1) * (E * (dt * phi ** (n - 2))) @ E.mT * target
    stay = w * (E @ (dt * phi ** (n - 1)))  # (eq:mcmc-isir-density)
    return fresh + torch.diag(stay)


def sir_law(target: Tensor, proposal: Tensor, n: int) -> Tensor:
    """Return the law of one draw of SIR with N ≥ 1 particles on k states, (k,)."""
    at_least("n", n, 1)
    w = law_on_states("target", target) / law_on_states("proposal", proposal)
    t, dt = laplace(w)
    E = (-w[:, None] * t).exp()
    return n * target * (E @ (dt * (proposal @ E) ** (n - 1)))  # (eq:mcmc-sir-law)


def metropolis_matrix(target: Tensor, proposal: Tensor) -> Tensor:
    """Return the Metropolis–Hastings kernel on k states (eq:mcmc-metropolis).

    Args:
        target: π, positive, shape (k,).
        proposal: q[x, y], rows of sum one, shape (k, k).
    """
    k = len(law_on_states("target", target))
    if proposal.shape != (k, k) or not ((proposal.sum(1) - 1).abs() < 1e-9).all():
        shape = tuple(proposal.shape)
        raise ValueError(f"proposal must be ({k}, {k}) with rows of sum 1, got {shape}")
    back = target * proposal.mT / target[:, None]
    P = torch.minimum(proposal, back)  # (eq:mcmc-metropolis)
    return P + torch.diag(1 - P.sum(1))


class Harris(NamedTuple):
    """Why a chain forgets where it started, in five numbers.

    Attributes:
        gamma: γ < 1 of the drift PV ≤ γV + K.
        K: Its constant.
        alpha: Mass that P(x, ·) has in common for all x with V(x) ≤ R.
        beta: Weight of V in the norm that contracts.
        rate: The contraction, below 1 where the theorem applies.
    """

    gamma: float
    K: float
    alpha: float
    beta: float
    rate: float


def harris(P: Tensor, V: Tensor, gamma: float, radius: float) -> Harris:
    """Return the constants of Harris' theorem for a chain on k states.

    Args:
        P: Transition matrix, shape (k, k).
        V: Lyapunov function ≥ 0, shape (k,).
        gamma: γ ∈ [0, 1) to be used in the drift.
        radius: R, of the level set {V ≤ R} of the minorisation.

    Raises:
        ValueError: K ≤ 0, R ≤ 2K/(1 − γ), or P(x, ·) have nothing in common there.
    """
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma must lie in [0, 1), got {gamma}")
    K = float((P @ V - gamma * V).max())
    positive("constant K of the drift", K)
    need = 2 * K / (1 - gamma)
    if radius <= need:
        raise ValueError(f"radius must exceed 2K/(1 − γ) = {need:.4g}, got {radius}")
    alpha = float(P[radius >= V].min(0).values.sum())
    positive("mass in common on the level set", alpha)
    low = alpha * torch.linspace(0.001, 0.999, 999, dtype=P.dtype)  # α₀
    beta = low / K
    far = (2 + beta * (radius * gamma + 2 * K)) / (2 + beta * radius)
    rate = torch.maximum(1 - alpha + low, far)  # (eq:mcmc-harris)
    best = int(rate.argmin())
    return Harris(gamma, K, alpha, float(beta[best]), float(rate[best]))


# A proposal that learns from the chains


class AdaptiveProposal(Density):
    """A flow that is fitted to the states of chains and to the target's density.

    Args:
        flow: λ_θ, differentiable in both directions.
        log_target: log π up to a constant, differentiable.
        forward: a ∈ [0, 1], the weight of KL(π ‖ λ_θ), which covers the modes
            that the chains have found; the rest is on KL(λ_θ ‖ π).

    Raises:
        ValueError: ``forward`` outside [0, 1].
    """

    def __init__(
        self, flow: Flow, log_target: LogDensity, forward: float = 0.99
    ) -> None:
        super().__init__()
        if not 0 <= forward <= 1:
            raise ValueError(f"forward must lie in [0, 1], got {forward}")
        self.flow = flow
        self.log_target = log_target
        self.forward_weight = forward

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw n points of the flow, shape (n, d)."""
        return self.flow.sample(n, rng=rng)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log λ_θ(x), shape (n,)."""
        return self.flow.log_prob(x)

    def draw(self, n: int, *, rng: Generator | None = None) -> Draw:
        """Draw n points with their log-density, differentiably."""
        return self.flow.draw(n, rng=rng)

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return a KL(π ‖ λ) + (1 − a) KL(λ ‖ π), up to a constant (eq:mcmc-flex).

        Args:
            x: States of the chains, shape (m, d).
            rng: Source of the m draws of the second divergence.
        """
        a = self.forward_weight
        forward = -self.flow.log_prob(x).mean()
        y, log_q = self.flow.draw(len(x), rng=rng)
        backward = (log_q - self.log_target(y)).mean()
        return a * forward + (1 - a) * backward  # (eq:mcmc-flex)


class Chains(Stream):
    """The states of chains, moved by a kernel before each batch.

    The kernel may use the very model that is being trained on the batches; then
    the chains adapt, and only what they do after the training is π-invariant.

    Args:
        kernel: What moves the chains.
        x: Where they start, shape (m, d).
        rng: Source of the draws.
    """

    def __init__(
        self, kernel: Kernel, x: Tensor, *, rng: Generator | None = None
    ) -> None:
        self.kernel = kernel
        self.x = states(x)
        self.rng = rng

    def __next__(self) -> Tensor:
        """Move the chains once, and return their states (m, d)."""
        self.x = self.kernel(self.x, rng=self.rng).x
        return self.x

    def state_dict(self) -> dict[str, Any]:
        """Return the states and the state of the generator."""
        generator = self.rng or torch.default_generator
        return {"x": self.x.cpu(), "rng": generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the states that were saved."""
        self.x = state["x"].to(self.x)
        (self.rng or torch.default_generator).set_state(state["rng"].cpu())
