"""Ordinary differential equations dx/dt = v(x, t), and divergences (book/back/api.md).

    integrate(v, x, times)               fixed steps, order 4 unless asked otherwise
    adaptive(v, x, 0.0, 1.0)             steps chosen so that the error is small
    divergence(v, x, t)                  v and div v, by d backward passes
    hutchinson(v, x, t, eps)             v and εᵀ (∂v/∂x) ε, by one

A Runge–Kutta method is its tableau.  From x at time t a step of length h goes to

    k_i = v(x + h Σ_j a_ij k_j, t + c_i h),    x′ = x + h Σ_i b_i k_i.

A field v takes points (n, *shape) and a time, a scalar tensor, to velocities of
the points' shape.  Divergences ask that each row of v depends on its row of x only.

References:
    Hairer, Nørsett, Wanner (1993), Solving ordinary differential equations I,
        sections II.1 to II.5.
    Dormand, Prince (1980), A family of embedded Runge–Kutta formulae.
    Hutchinson (1990), A stochastic estimator of the trace of the influence matrix.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from .nn import noise_like

__all__ = [
    "DOPRI5",
    "EULER",
    "HEUN",
    "RK4",
    "Solution",
    "Tableau",
    "adaptive",
    "divergence",
    "hutchinson",
    "integrate",
    "path",
    "signs_like",
]

Field = Callable[[Tensor, Tensor], Tensor]


class Tableau(NamedTuple):
    """An explicit Runge–Kutta method.

    Attributes:
        order: p: the error after time 1 is O(h^p).
        a: Row i says from which slopes point i is made: a_i1, …, a_i,i−1.
        b: Weights of the slopes in the step.
        low: Weights of a step of order p − 1, whose distance to the other step
            estimates the error; empty if there is none.
    """

    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    low: tuple[float, ...] = ()

    @property
    def c(self) -> tuple[float, ...]:
        """When each slope is taken, as a fraction of the step: c_i = Σ_j a_ij."""
        return tuple(sum(row) for row in self.a)


EULER = Tableau(1, ((),), (1.0,))
HEUN = Tableau(2, ((), (1.0,)), (1 / 2, 1 / 2))  # the trapezoid, its end by Euler
RK4 = Tableau(4, ((), (1 / 2,), (0, 1 / 2), (0, 0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
DOPRI5 = Tableau(  # its last slope is the first of the next step
    5,
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0),
    (5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
)


class Solution(NamedTuple):
    """Where an adaptive integration ended, and what it took.

    Attributes:
        x: The end point.
        steps: Steps taken.
        rejected: Steps tried and undone.
        evaluations: Calls of the field.
    """

    x: Tensor
    steps: int
    rejected: int
    evaluations: int


def combine(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    """Return Σ_i w_i k_i; slopes of weight 0 cost nothing."""
    total = torch.zeros_like(slopes[0])
    for w, k in zip(weights, slopes, strict=True):
        if w:
            total = total + w * k
    return total


def slopes(
    v: Field, x: Tensor, t: Tensor, h: Tensor, method: Tableau, first: Tensor
) -> list[Tensor]:
    """Return k_1, k_2, … of a step; k_1 = v(x, t) is given."""
    k = [first]
    for row, c in zip(method.a[1:], method.c[1:], strict=True):
        k.append(v(x + h * combine(row, k), t + c * h))
    return k


def path(v: Field, x: Tensor, times: Tensor, method: Tableau = RK4) -> Iterator[Tensor]:
    """Yield the states at times[1], times[2], … of the solution from x at times[0].

    Args:
        v: The field.
        x: Where the solution starts, shape (n, *shape).
        times: At least two, finite, rising or falling; each pair is one step.
        method: The Runge–Kutta method.

    Raises:
        ValueError: Times that do not rise or fall throughout.
    """
    gaps = times.diff() if times.ndim == 1 else times.new_empty(0)
    if not len(gaps) or not ((gaps > 0).all() or (gaps < 0).all()):
        raise ValueError(f"times must rise or fall throughout, got {times}")
    return walk(v, x, times, method)


def walk(v: Field, x: Tensor, times: Tensor, method: Tableau) -> Iterator[Tensor]:
    """Yield the states of :func:`path`, whose arguments are good."""
    for t, end in pairwise(times):
        h = end - t
        x = x + h * combine(method.b, slopes(v, x, t, h, method, v(x, t)))
        yield x


def integrate(v: Field, x: Tensor, times: Tensor, method: Tableau = RK4) -> Tensor:
    """Return the last state of :func:`path`, shape (n, *shape)."""
    *_, end = path(v, x, times, method)
    return end


def adaptive(
    v: Field,
    x: Tensor,
    start: float,
    end: float,
    *,
    tol: float = 1e-6,
    steps: int = 10_000,
) -> Solution:
    """Integrate by Dormand and Prince, in steps as long as the tolerance allows.

    A step is kept if its estimated error, in root mean square over all entries and
    relative to 1 + |x|, is at most ``tol``.

    Args:
        v: The field.
        x: State at the start, (n, *shape).
        start: First time.
        end: Last time, before or after the start.
        tol: Tolerance of a step.
        steps: How many may be tried.

    Raises:
        ValueError: A tolerance that is not positive, or times that are not finite.
        ArithmeticError: The steps became too many or too short, as the field is
            stiff or not finite; the message says at which time.
    """
    if not (0 < tol < math.inf and math.isfinite(end - start)):
        raise ValueError(f"tol must be positive, times finite: {tol}, {start}, {end}")
    t, k = start, v(x, x.new_tensor(start))
    h = (end - start) * min(1.0, 0.1 * tol**0.2 / (relative(k, x) + 1e-9))
    taken = rejected = 0
    while t != end:
        if taken + rejected == steps or t + h == t:
            raise ArithmeticError(f"{taken} steps reach t = {t}, the next is {h:.1e}")
        h = h if abs(h) < abs(end - t) else end - t
        y, error, last = attempt(v, x, t, h, k)
        if error <= tol:
            x, k, taken = y, last, taken + 1
            t = end if h == end - t else t + h
        else:
            rejected += 1
        h *= stretch(error / tol)
    return Solution(x, taken, rejected, 1 + 6 * (taken + rejected))


def attempt(
    v: Field, x: Tensor, t: float, h: float, k: Tensor
) -> tuple[Tensor, float, Tensor]:
    """Return where a step of Dormand and Prince leads, its error, its last slope."""
    ks = slopes(v, x, x.new_tensor(t), x.new_tensor(h), DOPRI5, k)
    gap = tuple(b - low for b, low in zip(DOPRI5.b, DOPRI5.low, strict=True))
    y = x + h * combine(DOPRI5.b, ks)
    return y, relative(h * combine(gap, ks), torch.maximum(x.abs(), y.abs())), ks[-1]


def relative(error: Tensor, x: Tensor) -> float:
    """Return the root mean square of an error relative to 1 + |x|."""
    return (error / (1 + x.abs())).detach().square().mean().sqrt().item()


def stretch(ratio: float) -> float:
    """Return the next step over this one, whose error was ``ratio`` tolerances.

    The estimate is O(h⁵), so the step that just passes is ratio^(−1/5) times this
    one; nine tenths of it are taken, and never a leap.
    """
    if not math.isfinite(ratio):
        return 0.2
    return min(5.0, max(0.2, 0.9 * max(ratio, 1e-12) ** -0.2))


# Divergences.


def divergence(v: Field, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return v(x, t) and div v = Σ_i ∂v_i/∂x_i, shapes (n, *shape) and (n,).

    One backward pass for each of the d coordinates.  Where gradients are recorded
    the divergence can be differentiated in turn.
    """
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        value = v(x, t)
        columns = value.flatten(1).unbind(1)
        div = torch.zeros_like(columns[0])
        for i, column in enumerate(columns):
            div = div + pulled(column.sum(), x).flatten(1)[:, i]
    return (value, div) if torch.is_grad_enabled() else (value.detach(), div.detach())


def hutchinson(v: Field, x: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Return v(x, t) and εᵀ (∂v/∂x) ε, whose mean over ε is div v.

    Args:
        v: The field.
        x: Points (n, *shape).
        t: The time.
        eps: Noise of mean 0 and covariance I, in the shape of x: signs have the
            least variance.  Along one solution it must stay the same.
    """
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        value = v(x, t)
        div = (pulled((value * eps).sum(), x) * eps).flatten(1).sum(1)
    return (value, div) if torch.is_grad_enabled() else (value.detach(), div.detach())


def signs_like(x: Tensor, *, rng: Generator | None = None) -> Tensor:
    """Draw ±1 with equal probabilities, in the shape, dtype and device of x."""
    return torch.where(noise_like(x, rng) < 0, -1.0, 1.0).to(x)


def pulled(total: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of a sum by x, zero where it does not depend on x."""
    if not total.requires_grad:
        return torch.zeros_like(x)
    (grad,) = torch.autograd.grad(
        total, x, create_graph=True, allow_unused=True, materialize_grads=True
    )
    return grad
