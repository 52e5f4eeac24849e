"""Continuous flows: the map is the solution of an equation (book/flows/continuous.md).

    dx/dt = v(x, t),   x_0 = z ~ π,   x_1 = x ~ p              (eq:cnf)
    d/dt log p_t(x_t) = −div v(x_t, t)                  (eq:cnf-log-prob)

Noise is at t = 0, data at t = 1.  How the equation is solved, and what is kept
for the gradient, is one object:

    FixedSteps(20)              backpropagation keeps every step
    Adaptive(1e-5)              steps chosen so that the error is small
    Checkpointed(20)            keeps the states between steps, repeats the steps
    Adjoint(FixedSteps(20))     keeps the end point, goes back by (eq:cnf-adjoint)

References:
    Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural ordinary differential
        equations.
    Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud (2019), FFJORD.
    Finlay, Jacobsen, Nurbekyan, Oberman (2020), How to train your neural ODE.
"""

import math
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.autograd.function import once_differentiable

from .. import ode
from ..distributions import Law, admit
from ..model import Density

__all__ = [
    "Adaptive",
    "Adjoint",
    "Checkpointed",
    "ContinuousFlow",
    "FixedSteps",
    "Transport",
    "flow_log_prob",
    "flow_map",
    "hutchinson_variance",
    "saved_bytes",
    "transport",
]

Solver = Callable[[ode.Field, Tensor, float, float], Tensor]  # v, x, start, end ↦ x


# Solvers


@dataclass(frozen=True)
class FixedSteps:
    """Steps of equal length.  Where gradients are recorded, all of them are kept.

    Attributes:
        steps: How many.
        method: The Runge–Kutta method.
    """

    steps: int = 20
    method: ode.Tableau = ode.RK4

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def __call__(self, v: ode.Field, x: Tensor, start: float, end: float) -> Tensor:
        """Return where the solution from x at ``start`` is at ``end``."""
        if start == end:
            return x
        n = self.steps + 1
        times = torch.linspace(start, end, n, dtype=x.dtype, device=x.device)
        return ode.integrate(v, x, times, self.method)


@dataclass(frozen=True)
class Adaptive:
    """The steps of Dormand and Prince, as long as the tolerance allows.

    Attributes:
        tol: Error of a step, in root mean square relative to 1 + |x|.
    """

    tol: float = 1e-5

    def __call__(self, v: ode.Field, x: Tensor, start: float, end: float) -> Tensor:
        """Return where the solution from x at ``start`` is at ``end``."""
        return ode.adaptive(v, x, start, end, tol=self.tol).x


@dataclass(frozen=True)
class Checkpointed:
    """Keeps the states between segments; the way back repeats each segment.

    Its gradient is that of backpropagation, for one more pass through the field.

    Attributes:
        segments: Into which the time is cut.
        solver: Of one segment.
    """

    segments: int = 20
    solver: Solver = FixedSteps(1)

    def __post_init__(self) -> None:
        if self.segments < 1:
            raise ValueError(f"segments must be at least 1, got {self.segments}")

    def __call__(self, v: ode.Field, x: Tensor, start: float, end: float) -> Tensor:
        """Return where the solution from x at ``start`` is at ``end``."""
        params = weights(v)
        cuts = torch.linspace(start, end, self.segments + 1, dtype=torch.float64)
        for a, b in pairwise(cuts.tolist()):
            x = Repeat.apply(self.solver, v, a, b, x, *params)
        return x


@dataclass(frozen=True)
class Adjoint:
    """Keeps the end point alone; the way back solves the adjoint equation.

    Its gradient is the right one up to the error of the solver, on both ways.

    Attributes:
        solver: Of both ways.
    """

    solver: Solver = FixedSteps(20)

    def __call__(self, v: ode.Field, x: Tensor, start: float, end: float) -> Tensor:
        """Return where the solution from x at ``start`` is at ``end``."""
        return Return.apply(self.solver, v, start, end, x, *weights(v))


class Repeat(torch.autograd.Function):
    """A solution whose steps are made again when their gradient is asked for."""

    @staticmethod
    def forward(
        ctx: Any, solver: Solver, v: ode.Field, start: float, end: float,
        x: Tensor, *params: Tensor,
    ) -> Tensor:  # fmt: skip
        """Solve from x at ``start``; keep x."""
        ctx.problem = solver, v, start, end
        ctx.save_for_backward(x)
        return solver(v, x, start, end)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor | None, ...]:
        """Solve again, this time with gradients, and pull ``a`` back."""
        solver, v, start, end = ctx.problem
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            y = solver(v, x, start, end)
        return None, None, None, None, *pulled(y, (x, *weights(v)), a)


class Return(torch.autograd.Function):
    """A solution whose gradient comes from an equation of its own."""

    @staticmethod
    def forward(
        ctx: Any, solver: Solver, v: ode.Field, start: float, end: float,
        x: Tensor, *params: Tensor,
    ) -> Tensor:  # fmt: skip
        """Solve from x at ``start``; keep the end."""
        y = solver(v, x, start, end)
        ctx.problem = solver, v, start, end
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor | None, ...]:
        """Solve for the state, a and the gradient by θ, from the end to the start."""
        solver, v, start, end = ctx.problem
        (y,), params = ctx.saved_tensors, weights(v)
        like = (y, y, *params)

        def field(state: Tensor, t: Tensor) -> Tensor:
            x, a, *_ = unpacked(state, like)
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                slope = v(x, t)
            return packed(slope.detach(), *pulled(slope, (x, *params), -a))

        state = packed(y, a, *map(torch.zeros_like, params))  # (eq:cnf-adjoint)
        _, *grads = unpacked(solver(field, state, end, start), like)
        return None, None, None, None, *grads


def weights(v: ode.Field) -> tuple[nn.Parameter, ...]:
    """Return what is learned of a field, which must say it: a module."""
    if not isinstance(v, nn.Module):
        raise ValueError(f"v must be a module, to name its parameters, got {v}")
    return tuple(p for p in v.parameters() if p.requires_grad)


def pulled(y: Tensor, inputs: tuple[Tensor, ...], a: Tensor) -> tuple[Tensor, ...]:
    """Return (∂y/∂input)ᵀ a for each input, zero where y does not depend on it."""
    if not y.requires_grad:
        return tuple(map(torch.zeros_like, inputs))
    return torch.autograd.grad(y, inputs, a, allow_unused=True, materialize_grads=True)


def packed(*parts: Tensor) -> Tensor:
    """Return arrays as one long row."""
    return torch.cat([part.flatten() for part in parts])


def unpacked(row: Tensor, like: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the parts of a row, in the shapes of others."""
    parts = row.split([part.numel() for part in like])
    return [a.view_as(b) for a, b in zip(parts, like, strict=True)]


def saved_bytes(compute: Callable[[], object]) -> int:
    """Return how many bytes autograd held at its peak, each storage counted once.

    What an operation keeps for its gradient is counted from when it is kept until it
    is let go; so ``compute`` should go forward and back.
    """
    held: Counter[int] = Counter()  # how often each storage is kept
    now = peak = 0

    def release(key: int, size: int) -> None:
        nonlocal now
        held[key] -= 1
        now -= 0 if held[key] else size

    def pack(x: Tensor) -> Kept:
        nonlocal now, peak
        kept, storage = Kept(x.detach()), x.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        now += 0 if held[key] else size
        held[key], peak = held[key] + 1, max(peak, now)
        weakref.finalize(kept, release, key, size).atexit = False
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.x):
        compute()
    return peak


class Kept:
    """A tensor that autograd holds; it is let go when this object is."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


# The flow of a field


class Transport(NamedTuple):
    """Where points are brought, and what that does to volume.

    Attributes:
        x: The end points, (n, *shape).
        log_det: log |det ∂x_end/∂x_start| = ∫ div v dt, shape (n,).
        energy: ∫ ‖v‖² |dt| along the way, shape (n,).
    """

    x: Tensor
    log_det: Tensor
    energy: Tensor


def flow_map(
    v: ode.Field,
    x: Tensor,
    start: float,
    end: float,
    *,
    steps: int = 20,
    solver: Solver | None = None,
) -> Tensor:
    """Return where the solution from x at time ``start`` is at time ``end`` (eq:cnf).

    Args:
        v: The field, (x (n, *shape), t ()) ↦ velocities (n, *shape).
        x: Points, (n, *shape).
        start: Their time.
        end: Before or after the start.
        steps: Of the method of order 4.
        solver: In the place of these steps.

    Raises:
        ValueError: Points or times that are not finite, or points without rows.
    """
    admitted(x, start, end)
    return (solver or FixedSteps(steps))(v, x, start, end)


def transport(
    v: ode.Field,
    x: Tensor,
    start: float,
    end: float,
    *,
    solver: Solver | None = None,
    eps: Tensor | None = None,
) -> Transport:
    """Follow a field, and gather its divergence and its energy on the way.

    Args:
        v: The field, each row of which depends on the same row of x only.
        x: Points, (n, *shape).
        start: Their time.
        end: Before or after the start.
        solver: By default 20 steps of order 4.
        eps: Noise of Hutchinson's estimate of div v, in the shape of x; without it
            the divergence is exact, for d backward passes.

    Raises:
        ValueError: Arguments that are not finite, or shapes that do not agree.
    """
    admitted(x, start, end)
    if eps is not None and eps.shape != x.shape:
        raise ValueError(f"eps must be {tuple(x.shape)}, got {tuple(eps.shape)}")
    state = torch.cat([x.flatten(1), x.new_zeros(len(x), 2)], 1)
    field = Gathering(v, x.shape[1:], eps)
    state = (solver or FixedSteps())(field, state, start, end)
    sign = math.copysign(1.0, end - start)
    return Transport(state[:, :-2].view_as(x), state[:, -2], sign * state[:, -1])


class Gathering(nn.Module):
    """The field (v, div v, ‖v‖²) of the rows (x, ∫ div v, ∫ ‖v‖²).

    Args:
        v: The field.
        shape: Of one x.
        eps: As in :func:`transport`.
    """

    def __init__(self, v: ode.Field, shape: torch.Size, eps: Tensor | None) -> None:
        super().__init__()
        self.v, self.shape, self.eps = v, shape, eps

    def forward(self, state: Tensor, t: Tensor) -> Tensor:
        """Return the slopes of the rows, (n, d + 2)."""
        x = state[:, :-2].unflatten(1, self.shape)
        if self.eps is None:
            value, div = ode.divergence(self.v, x, t)
        else:
            value, div = ode.hutchinson(self.v, x, t, self.eps)
        if value.shape != x.shape:
            want, got = tuple(x.shape), tuple(value.shape)
            raise ValueError(f"v must return velocities {want}, got {got}")
        value = value.flatten(1)
        return torch.cat([value, div[:, None], value.square().sum(1, True)], 1)


def admitted(x: Tensor, start: float, end: float) -> None:
    """Raise a ``ValueError`` unless x are points, and all is finite."""
    if x.ndim < 2 or not x.is_floating_point() or not x.isfinite().all():
        got = f"{tuple(x.shape)} of {x.dtype}"
        raise ValueError(f"x must be finite real points (n, *shape), got {got}")
    if not math.isfinite(end - start):
        raise ValueError(f"start and end must be finite, got {start} and {end}")


def flow_log_prob(
    v: ode.Field,
    x: Tensor,
    base: Law,
    *,
    steps: int = 20,
    solver: Solver | None = None,
    eps: Tensor | None = None,
) -> Tensor:
    """Return log p(x) of the flow of v at data x, shape (n,) (eq:cnf-log-prob).

    Args:
        v: The field.
        x: Data at t = 1, (n, *shape).
        base: π, the law at t = 0.
        steps: Of the method of order 4, from 1 to 0.
        solver: In the place of these steps.
        eps: As in :func:`transport`.  Signs or Gaussian noise make the result an
            unbiased estimate of log p(x); never of p(x).
    """
    way = transport(v, x, 1.0, 0.0, solver=solver or FixedSteps(steps), eps=eps)
    return base.log_prob(way.x) + way.log_det  # (eq:cnf-log-prob)


def hutchinson_variance(J: Tensor, fourth: float = 1.0) -> Tensor:
    """Return Var εᵀJε for independent ε_i, shape (n,) (eq:cnf-hutchinson-variance).

    Args:
        J: Matrices, (n, d, d).
        fourth: E ε_i⁴ of entries with mean 0 and variance 1: 1 for signs, 3 for a
            normal law.

    Raises:
        ValueError: A fourth moment below 1, which no such law has, or other shapes.
    """
    if J.ndim != 3 or J.shape[1] != J.shape[2]:
        raise ValueError(f"J must have shape (n, d, d), got {tuple(J.shape)}")
    if not 1 <= fourth < math.inf:
        raise ValueError(f"fourth must be at least 1, got {fourth}")
    S = (J + J.mT) / 2
    diagonal = S.diagonal(dim1=1, dim2=2).square().sum(1)
    return 2 * (S.square().sum((1, 2)) - diagonal) + (fourth - 1) * diagonal


class ContinuousFlow(Density):
    """The law of x_1, where x_0 ~ π and dx/dt = v(x, t), trained by likelihood.

    Args:
        v: The field, (x (n, *shape), t ()) ↦ velocities (n, *shape).
        base: π.
        steps: Of the method of order 4.
        solver: In the place of these steps; it also says how gradients are made.
        penalty: λ ≥ 0, the price of the energy in the loss: paths become straight.

    Raises:
        ValueError: A penalty below 0.
    """

    def __init__(
        self, v: nn.Module, base: Law, *, steps: int = 20,
        solver: Solver | None = None, penalty: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if not 0 <= penalty < math.inf:
            raise ValueError(f"penalty must be finite and ≥ 0, got {penalty}")
        self.v = v
        self.base = base
        self.solver = solver or FixedSteps(steps)
        self.penalty = penalty

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x), with the exact divergence, shape (n,)."""
        x = admit(x, self, self.base)
        return flow_log_prob(self.v, x, self.base, solver=self.solver)

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return an unbiased estimate of the mean of −log p + λ energy, shape ().

        One sign for each coordinate is drawn for the divergence, and stays the same
        along the solution.
        """
        eps = ode.signs_like(x, rng=rng)
        way = transport(self.v, x, 1.0, 0.0, solver=self.solver, eps=eps)
        nll = -self.base.log_prob(way.x) - way.log_det
        return (nll + self.penalty * way.energy).mean()  # (eq:cnf-loss)

    @torch.no_grad()
    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw z ~ π and follow the field from t = 0 to 1, shape (n, *shape)."""
        z = self.base.sample(n, rng=rng)
        return flow_map(self.v, z, 0.0, 1.0, solver=self.solver)
