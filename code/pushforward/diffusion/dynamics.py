"""How weights move in training, and how to average them (book/diffusion/dynamics.md).

A power function averages the weights θ of all steps,

    θ̂_γ(t) = (γ + 1)/t^{γ+1} ∫_0^t τ^γ θ(τ) dτ                       (eq:edm2-average)

with a width that grows with the training.  Snapshots of two such averages, kept now
and then, span those of every other width, to an error that is known beforehand:

    min ‖p − Σ_i x_i p_i‖²,  Σ_i x_i = 1                            (eq:edm2-system)

Magnitude-preserving layers keep numbers of size one at size one, and force their
weights back to a sphere before each step, so that the learning rate is the angle by
which weights turn.

References:
    Karras, Aittala, Lehtinen, Hellsten, Aila, Laine (2024), Analyzing and improving
        the training dynamics of diffusion models.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from ..distributions import StandardNormal
from ..nn import resized
from .denoising import Diffusion, denoising_error

__all__ = [
    "MPMLP",
    "Forced",
    "Level",
    "MPConv",
    "MPLinear",
    "MPUNet",
    "PostHoc",
    "Snapshots",
    "UncertainDiffusion",
    "free",
    "inverse_root",
    "mp_cat",
    "mp_silu",
    "mp_sum",
    "normalised",
    "posthoc",
    "power_decay",
    "power_exponent",
    "power_weights",
    "power_width",
    "profile_inner",
    "rotation",
]

GOLDEN = (1 + math.sqrt(5)) / 2
WIDEST = GOLDEN**-2.5  # no power function is wider, relative to the training
SILU = 0.5964692111227136  # √E silu(Z)² of Z ~ N(0, 1)


# Averages whose profile is a power


def exponent(name: str, gamma: float, least: float = -1.0) -> float:
    """Return γ, or raise a ``ValueError`` unless it is finite and above the least."""
    if not least < gamma < math.inf:
        raise ValueError(f"{name} must be finite and above {least:g}, got {gamma}")
    return float(gamma)


def power_width(gamma: float) -> float:
    """Return σ_rel = √(γ + 1) / ((γ + 2) √(γ + 3)) (eq:edm2-width).

    It is the standard deviation of the profile τ^γ on [0, t], in units of t.

    Raises:
        ValueError: γ ≤ −1: the profile cannot be integrated.
    """
    g = exponent("gamma", gamma)
    return math.sqrt(g + 1) / ((g + 2) * math.sqrt(g + 3))


def power_exponent(width: float) -> float:
    """Return the largest γ whose profile has a relative width (eq:edm2-cubic).

    Args:
        width: σ_rel in (0, φ^{−5/2}] with the golden ratio φ: at most 0.3003.

    Raises:
        ValueError: No power function has this width.
    """
    if not 0 < width <= WIDEST * (1 + 1e-12):
        raise ValueError(f"width must lie in (0, {WIDEST:.6f}], got {width}")
    s = width**-2
    third = math.acos(max(-(1 + 18 * s) / (1 + 3 * s) ** 1.5, -1.0)) / 3
    return (2 * math.sqrt(1 + 3 * s) * math.cos(third) - 7) / 3


def power_decay(gamma: float) -> Callable[[int], float]:
    """Return β(t) = (1 − 1/t)^{γ+1} for :class:`.train.Average` (eq:edm2-decay).

    Args:
        gamma: γ > −1; or ``power_exponent(σ_rel)``.

    Raises:
        ValueError: γ ≤ −1, or, later, a step number below 1.
    """
    power = exponent("gamma", gamma) + 1

    def beta(number: int) -> float:
        if number < 1:
            raise ValueError(f"number of a step must be 1, 2, …, got {number}")
        return (1 - 1 / number) ** power

    return beta


def power_weights(n: int, gamma: float) -> Tensor:
    """Return what each of n steps counts in the average, (n,) (eq:edm2-profile).

    Raises:
        ValueError: n < 1, or γ ≤ −1.
    """
    if n < 1:
        raise ValueError(f"n must be a number of steps ≥ 1, got {n}")
    edges = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    return (edges ** (exponent("gamma", gamma) + 1)).diff()


# Any average, after the fact


def profile_inner(s: Tensor, a: Tensor, t: Tensor, b: Tensor) -> Tensor:
    """Return ⟨p_{a,s}, p_{b,t}⟩, the integral of two profiles (eq:edm2-inner).

    Args:
        s: Times of the first profiles, positive.
        a: Their exponents.
        t: Times of the second ones.
        b: Their exponents, a + b > −1; all four broadcast.
    """
    first, last = torch.minimum(s, t), torch.maximum(s, t)
    other = torch.where(s < t, b, a)  # the exponent of the profile that goes on
    return (a + 1) * (b + 1) / (a + b + 1) * (first / last) ** other / last


class PostHoc(NamedTuple):
    """How to combine snapshots to an average that nobody has kept.

    Attributes:
        x: What each snapshot counts, (m,), float64; of sum one.
        error: ‖p − Σ x_i p_i‖ / ‖p‖ in L²(0, t), p being the profile that is wanted.
        gain: Σ |x_i|, by which errors of rounding in the snapshots are multiplied.
    """

    x: Tensor
    error: float
    gain: float


def posthoc(
    times: Tensor, gammas: Tensor, gamma: float, t: float | None = None
) -> PostHoc:
    """Return the combination of snapshots nearest to another average.

    Args:
        times: Of the snapshots, (m,), m ≥ 2; increasing among those of one exponent.
        gammas: Their exponents, (m,), above −1/2.
        gamma: Exponent of the average that is wanted, above −1/2.
        t: Its time, at most that of the last snapshot, which is the default.

    Raises:
        ValueError: Too few snapshots, unsorted times, an exponent whose profile is not
            square integrable, or a time after the last snapshot.
    """
    at, g = grid(times, gammas)
    end, own = at.new_tensor(at.max().item() if t is None else t), at.new_tensor(gamma)
    exponent("gamma", gamma, -0.5)
    if not 0 < end <= at.max():
        raise ValueError(f"t must lie in (0, {at.max():g}], got {t}")
    A = profile_inner(at[:, None], g[:, None], at, g)
    b = profile_inner(at, g, end, own)
    y, w = solve(A, torch.stack([b, torch.ones_like(b)], 1)).unbind(1)
    x = y + (1 - y.sum()) / w.sum() * w  # (eq:edm2-system)
    whole = profile_inner(end, own, end, own)
    miss = (whole - 2 * x @ b + x @ A @ x) / whole
    return PostHoc(x, miss.clamp_min(0).sqrt().item(), x.abs().sum().item())


def grid(times: Tensor, gammas: Tensor) -> tuple[Tensor, Tensor]:
    """Return times and exponents in float64 on the CPU, if they can be solved for."""
    at, g = (torch.as_tensor(v).detach().double().cpu() for v in (times, gammas))
    if at.ndim != 1 or len(at) < 2 or at.shape != g.shape:
        raise ValueError("times and gammas must be (m,) with m ≥ 2 snapshots, got "
                         f"{tuple(at.shape)} and {tuple(g.shape)}")  # fmt: skip
    for one in g.unique().tolist():
        exponent("gammas", one, -0.5)
        rows = torch.cat([at.new_zeros(1), at[g == one]])
        if not (rows.isfinite().all() and (rows.diff() > 0).all()):
            raise ValueError("times must be positive and increase among the snapshots "
                             f"of one exponent, got {rows[1:].tolist()}")  # fmt: skip
    return at, g


def solve(A: Tensor, B: Tensor) -> Tensor:
    """Return the solution of A X = B for a Gram matrix that is nearly singular."""
    unit = A.diagonal().rsqrt()  # profiles of length one
    scaled, right = unit[:, None] * A * unit, unit[:, None] * B
    found = torch.linalg.lstsq(scaled, right, rcond=1e-14, driver="gelsd")
    return unit[:, None] * found.solution


class Snapshots:
    """Copies of averaged weights, of which any other average can be made.

    means = [Average(model, power_decay(g)) for g in gammas]
    for step in train(…):
        for g, mean in zip(gammas, means):
            mean.update(model, step.number)
            if step.number % every == 0:
                shots.add(step.number, g, mean.model.state_dict())
    model.load_state_dict(shots.average(gamma))
    """

    def __init__(self) -> None:
        self.times: list[float] = []
        self.gammas: list[float] = []
        self.states: list[dict[str, Tensor]] = []

    def add(self, t: float, gamma: float, state: Mapping[str, Tensor]) -> None:
        """Keep a copy of the average of exponent γ after t steps, on the CPU."""
        if self.states and state.keys() != self.states[0].keys():
            raise ValueError(
                f"state must have the names of the first one, got {[*state]}"
            )
        self.times.append(float(t))
        self.gammas.append(float(gamma))
        self.states.append({k: v.detach().cpu().clone() for k, v in state.items()})

    def solve(self, gamma: float, t: float | None = None) -> PostHoc:
        """Return how :meth:`average` combines the snapshots: see :func:`posthoc`."""
        times, gammas = torch.tensor([self.times, self.gammas], dtype=torch.float64)
        return posthoc(times, gammas, gamma, t)

    def average(self, gamma: float, t: float | None = None) -> dict[str, Tensor]:
        """Return the average of exponent γ after t steps; integers are the last."""
        x, last = self.solve(gamma, t).x, self.states[-1]
        return {k: combined(x, [s[k] for s in self.states]).to(v)
                if v.is_floating_point() else v.clone()
                for k, v in last.items()}  # fmt: skip


def combined(x: Tensor, parts: list[Tensor]) -> Tensor:
    """Return Σ_i x_i parts_i, added up in double precision."""
    total = torch.zeros_like(parts[0], dtype=torch.float64)
    for weight, part in zip(x.tolist(), parts, strict=True):
        total.add_(part, alpha=weight)
    return total


# Numbers of size one


def normalised(x: Tensor, dims: tuple[int, ...] = (1,)) -> Tensor:
    """Return x with root mean square 1 over some dimensions (eq:edm2-normal).

    Slices smaller than 10⁻⁴ are only divided by that.
    """
    precise = torch.promote_types(x.dtype, torch.float32)
    size = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=precise)
    rms = size * math.sqrt(size.numel() / x.numel())
    return (x / rms.clamp_min(1e-4)).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """Return silu(x) / 0.5965, of mean square one if x ~ N(0, 1) (eq:edm2-silu)."""
    return functional.silu(x) / SILU


def mp_sum(a: Tensor, b: Tensor, t: float = 0.3) -> Tensor:
    """Return ((1 − t) a + t b) / √((1 − t)² + t²) (eq:edm2-sum).

    Raises:
        ValueError: t outside [0, 1].
    """
    return ((1 - share(t)) * a + t * b) / math.hypot(1 - t, t)


def mp_cat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Join channels so that b has the share t of them, by its size (eq:edm2-cat).

    Args:
        a: (n, c, …), of size one.
        b: (n, c', …), of size one.
        t: 0 for a alone, 1 for b alone, ½ to hear both equally, whatever c and c' are.

    Raises:
        ValueError: t outside [0, 1].
    """
    each, other = a.shape[1], b.shape[1]
    scale = math.sqrt(each + other) / math.hypot(1 - share(t), t)
    u, v = scale * (1 - t) / math.sqrt(each), scale * t / math.sqrt(other)
    return torch.cat([u * a, v * b], 1)


def share(t: float) -> float:
    """Return t, or raise a ``ValueError`` unless 0 ≤ t ≤ 1."""
    if not 0 <= t <= 1:
        raise ValueError(f"t must lie in [0, 1], got {t}")
    return t


# Layers


class Forced(nn.Module):
    """Weights of which only the directions of the rows count.

    Rows are normalised where they are used, so that the layer keeps the size of its
    input, and the loss does not feel their length.  In training they are put back to
    length √N first: left alone they would grow.  This happens in the forward pass,
    without a gradient, and is the same in every process.

    Args:
        shape: Of the weights, rows first.

    Attributes:
        forced: Put the rows back; see :func:`free`.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        if len(shape) < 2 or min(shape) < 1:
            raise ValueError(f"sizes of a layer must be positive, got {shape}")
        self.dims = tuple(range(1, len(shape)))
        self.weight = nn.Parameter(normalised(torch.randn(shape), self.dims))
        self.forced = True

    def rows(self) -> Tensor:
        """Return the rows w_i / ‖w_i‖ (eq:edm2-row)."""
        if self.training and self.forced:
            with torch.no_grad():
                self.weight.copy_(normalised(self.weight, self.dims))
        w = self.weight.clone()  # the next call may write before this one's backward
        return normalised(w, self.dims) / math.sqrt(w[0].numel())


class MPLinear(Forced):
    """x ↦ W x with rows of length one and no bias, (n, a) → (n, b).

    Args:
        a: Numbers that come in.
        b: Numbers that go out.
    """

    def __init__(self, a: int, b: int) -> None:
        super().__init__(b, a)

    def forward(self, x: Tensor) -> Tensor:
        """Return W x."""
        return functional.linear(x, self.rows().to(x.dtype))


class MPConv(Forced):
    """A convolution of images with kernels of length one and no bias.

    Args:
        a: Channels that come in.
        b: Channels that go out.
        size: Side of the kernel, odd; the images keep their sides.
    """

    def __init__(self, a: int, b: int, size: int = 3) -> None:
        if size % 2 == 0:
            raise ValueError(f"size of a kernel must be odd, got {size}")
        super().__init__(b, a, size, size)
        self.padding = size // 2

    def forward(self, x: Tensor) -> Tensor:
        """Return the images (n, b, h, w) of x (n, a, h, w)."""
        rows = self.rows().to(x.dtype)
        return functional.conv2d(x, rows, padding=self.padding)


def free(model: nn.Module) -> nn.Module:
    """Let the weights of a model grow: its forced layers only normalise on use."""
    for layer in model.modules():
        if isinstance(layer, Forced):
            layer.forced = False
    return model


def rotation(before: Tensor, after: Tensor) -> Tensor:
    """Return the angles by which rows have turned, radians, (rows,) (eq:edm2-angle)."""
    u, v = (functional.normalize(w.flatten(1), dim=1) for w in (before, after))
    return 2 * torch.asin(((u - v).norm(dim=1) / 2).clamp_max(1))


def inverse_root(start: int) -> Callable[[int], float]:
    """Return the schedule 1 / √max(t/start, 1) of the learning rate.

    Raises:
        ValueError: start < 1.
    """
    if start < 1:
        raise ValueError(f"start must be a step number ≥ 1, got {start}")
    return lambda number: 1 / math.sqrt(max(number / start, 1))


# Networks


class Waves(nn.Module):
    """A number as waves of mean square one, exactly: √2 cos ω t and √2 sin ω t."""

    def __init__(self, width: int, *, top: float = 16.0) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"width must be even and positive, got {width}")
        self.width, self.top = width, top

    def forward(self, t: Tensor) -> Tensor:
        """Return the waves of t (n,), shape (n, width)."""
        precise = torch.promote_types(t.dtype, torch.float32)
        rise = torch.linspace(0, 1, self.width // 2, dtype=precise, device=t.device)
        angle = t.to(precise)[:, None] * self.top**rise
        waves = math.sqrt(2) * torch.cat([angle.cos(), angle.sin()], 1)
        return waves.to(t.dtype)


class MPBlock(nn.Module):
    """A residual block that keeps the size of points or images.

    Args:
        a: Channels that come in.
        b: Channels that go out.
        width: Of the vector that scales the channels.
        layer: Makes the layers, ``layer(a, b)``.
        norm: Bring the input to size one first.
    """

    def __init__(
        self, a: int, b: int, width: int,
        layer: Callable[[int, int], Forced], *, norm: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.skip = layer(a, b) if a != b else nn.Identity()
        self.enter, self.leave = layer(b, b), layer(b, b)
        self.modulate = MPLinear(width, b)
        self.gain = nn.Parameter(torch.zeros(()))
        self.norm = norm

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Return (n, b, …) of x (n, a, …) and the vectors e (n, width)."""
        x = self.skip(x)
        if self.norm:
            x = normalised(x)
        scale = 1 + self.gain * self.modulate(e)
        y = self.enter(mp_silu(x)) * scale.reshape(*scale.shape, *(1,) * (x.ndim - 2))
        return mp_sum(x, self.leave(mp_silu(y)))


class Time(nn.Module):
    """A time as a vector of size about one, of waves and two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(Waves(width), MPLinear(width, width))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the vectors of the rows of x, (n, width)."""
        if t.numel() not in (1, len(x)):
            raise ValueError(f"t must be () or ({len(x)},), got {tuple(t.shape)}")
        return mp_silu(self.net(t.reshape(-1).to(x.dtype).expand(len(x))))


def with_one(x: Tensor) -> Tensor:
    """Append a channel of ones, which does the work of all biases."""
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)


class MPMLP(nn.Module):
    """A field F(x, t) of all the numbers of x that keeps the sizes of its numbers.

    At first F = 0: what it says is multiplied by a learned number.

    Args:
        d: How many numbers a datum has, whatever its shape.
        width: Of the hidden layers, even.
        blocks: Residual blocks of two layers each.

    Raises:
        ValueError: A size that is not positive, or an odd width.
    """

    def __init__(self, d: int, width: int = 256, blocks: int = 2) -> None:
        super().__init__()
        if min(d, blocks) < 1:
            raise ValueError(f"d, blocks must be ≥ 1, got {d}, {blocks}")
        self.time, self.enter = Time(width), MPLinear(d + 1, width)
        self.blocks = nn.ModuleList(
            MPBlock(width, width, width, MPLinear) for _ in range(blocks)
        )
        self.leave = MPLinear(width, d)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return F(x, t) in the shape of x (n, *shape), for t (), (n,) or (n, 1, …)."""
        e, h = self.time(x, t), self.enter(with_one(x.flatten(1)))
        for block in self.blocks:
            h = block(h, e)
        return (self.gain * self.leave(h)).view_as(x)


class MPUNet(nn.Module):
    """A field F(x, t) on images that keeps the sizes of its numbers.

    It goes down to coarser sizes and up again, where each size is joined to what was
    there on the way down.  Sides may be odd.  At first F = 0.

    Args:
        channels: Of the images.
        width: Channels at the finest size, even.
        factors: Channels at each size, finest first, in units of ``width``.
        blocks: Residual blocks at each size, on each way.

    Raises:
        ValueError: A size that is not positive, or an odd width.
    """

    def __init__(
        self, channels: int = 1, *, width: int = 64,
        factors: tuple[int, ...] = (1, 2, 2), blocks: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        if not factors or min(channels, width, blocks, *factors) < 1:
            got = f"{channels}, {width}, {factors}, {blocks}"
            raise ValueError(f"channels, width, factors, blocks must be ≥ 1, got {got}")
        sizes, e = [width * f for f in factors], 4 * width
        self.time, self.enter = Time(e), MPConv(channels + 1, sizes[0])

        def stage(a: int, b: int, norm: bool) -> nn.ModuleList:
            ins = [a] + [b] * (blocks - 1)
            return nn.ModuleList(MPBlock(c, b, e, MPConv, norm=norm) for c in ins)

        pairs = [(sizes[0], sizes[0]), *pairwise(sizes)]
        self.down = nn.ModuleList(stage(a, b, True) for a, b in pairs)
        self.up = nn.ModuleList(stage(a + b, a, False) for a, b in reversed(pairs[1:]))
        self.leave = MPConv(sizes[0], channels)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return F(x, t), (n, channels, h, w), for t (), (n,) or (n, 1, 1, 1)."""
        if x.ndim != 4:
            raise ValueError(f"x must be (n, c, h, w), got {tuple(x.shape)}")
        e, h = self.time(x, t), self.enter(with_one(x))
        seen: list[Tensor] = []
        for i, stage in enumerate(self.down):
            h = functional.avg_pool2d(h, 2, ceil_mode=True) if i else h
            h = through(stage, h, e)
            seen.append(h)
        for stage, skip in zip(self.up, seen[-2::-1], strict=True):
            h = through(stage, mp_cat(resized(h, skip), skip), e)
        return self.gain * self.leave(h)


def through(stage: nn.Module, h: Tensor, e: Tensor) -> Tensor:
    """Return h after the blocks of a stage."""
    assert isinstance(stage, nn.ModuleList)
    for block in stage:
        h = block(h, e)
    return h


# The loss


class Level(nn.Module):
    """u(t), a learned number for each noise level; zero at first.

    Args:
        width: Of the waves in which t is seen, even.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.net = nn.Sequential(Waves(width), nn.Linear(width, 1))
        for p in self.parameters():
            nn.init.zeros_(p)

    def forward(self, t: Tensor) -> Tensor:
        """Return u(t) in the shape of t."""
        return self.net(t.reshape(-1)).reshape(t.shape)


class UncertainDiffusion(Diffusion):
    """A diffusion model that learns what each noise level should count.

    Args:
        denoiser: D(x, σ).
        base: N(0, I) in the shape of the data.
        level: u, as a function of ln σ / 4; by default a :class:`Level`.
        options: Those of :class:`.Diffusion`.
    """

    def __init__(
        self, denoiser: nn.Module, base: StandardNormal,
        *, level: nn.Module | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(denoiser, base, **options)
        self.level = level or Level()

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return E [λ(σ) e^{−u(σ)} ‖D(y + σ z, σ) − y‖² + u(σ)] (eq:edm2-loss).

        Args:
            x: Data (n, *shape); y are the same in the denoiser's units.
            rng: Source of the levels and of the noise, one of each for a row.

        Raises:
            ValueError: Data of another shape, or none.
        """
        shape = tuple(self.base.zero.shape)
        if tuple(x.shape[1:]) != shape or not len(x):
            raise ValueError(f"x must have shape {('n', *shape)}, got {tuple(x.shape)}")
        sigma = self.noise.sample(x, rng=rng)
        error = denoising_error(self.denoiser, self.units.inside(x), sigma, rng=rng)
        u = self.level(sigma.log() / 4).flatten()
        return (self.weight(sigma).flatten() * (-u).exp() * error + u).mean()
