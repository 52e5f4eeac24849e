"""diffusion/dynamics.py: profiles against quadrature, layers against expectations."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from pushforward.diffusion import Diffusion, Preconditioned, Units
from pushforward.diffusion.dynamics import (
    MPMLP,
    SILU,
    WIDEST,
    Forced,
    Level,
    MPConv,
    MPLinear,
    MPUNet,
    Snapshots,
    UncertainDiffusion,
    Waves,
    free,
    inverse_root,
    mp_cat,
    mp_silu,
    mp_sum,
    normalised,
    posthoc,
    power_decay,
    power_exponent,
    power_weights,
    power_width,
    profile_inner,
    rotation,
)
from pushforward.distributions import StandardNormal
from pushforward.model import Model
from pushforward.train import Average, train

POINTS, WEIGHTS = (torch.tensor(v) for v in np.polynomial.legendre.leggauss(60))
PAIR = (power_exponent(0.05), power_exponent(0.10))


def integral(f: Callable[[Tensor], Tensor], a: float, b: float) -> Tensor:
    """Gauss–Legendre quadrature over [a, b]."""
    x = (a + b) / 2 + (b - a) / 2 * POINTS
    return (b - a) / 2 * (f(x) @ WEIGHTS)


def profile(tau: Tensor, gamma: float, t: float) -> Tensor:
    return torch.where(tau <= t, (gamma + 1) * tau**gamma / t ** (gamma + 1), 0.0)


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


# Averages


@pytest.mark.parametrize("gamma", [0.0, 0.7, 3.0, 16.97])
def test_the_width_is_the_deviation_of_the_profile(gamma: float) -> None:
    """(eq:edm2-width), at any t."""
    t = 3.0
    mean = integral(lambda s: s * profile(s, gamma, t), 0, t)
    var = integral(lambda s: (s - mean) ** 2 * profile(s, gamma, t), 0, t)
    assert power_width(gamma) == pytest.approx(float(var.sqrt()) / t, rel=1e-5)


def test_the_exponents_of_the_paper() -> None:
    assert power_exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert power_exponent(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("width", [0.001, 0.05, 0.1, 0.25, 0.3, WIDEST])
def test_the_exponent_is_the_largest_root_of_the_cubic(width: float) -> None:
    """(eq:edm2-cubic) by numpy's polynomial roots."""
    s = width**-2
    root = max(np.roots([1, 7, 16 - s, 12 - s]).real)
    assert power_exponent(width) == pytest.approx(root, rel=1e-7, abs=1e-6)
    assert power_width(power_exponent(width)) == pytest.approx(width, rel=1e-9)


def test_no_power_is_wider_than_the_golden_one() -> None:
    g = torch.linspace(-0.999, 5, 20_001)
    widths = torch.tensor([power_width(v) for v in g.tolist()])
    assert widths.max() == pytest.approx(WIDEST, rel=1e-7)
    assert g[widths.argmax()] == pytest.approx((1 + 5**0.5) / 2 - 2, abs=1e-3)


@pytest.mark.parametrize("gamma", [-0.5, 0.0, 2.5])
def test_the_recursion_has_the_weights_of_the_integral(gamma: float) -> None:
    """(eq:edm2-decay), (eq:edm2-profile): weights constant between the steps."""
    n, beta = 30, power_decay(gamma)
    theta, mean = (
        torch.randn(n, generator=Generator().manual_seed(0)),
        torch.tensor(9.0),
    )
    for k in range(1, n + 1):
        mean = beta(k) * mean + (1 - beta(k)) * theta[k - 1]
    w = power_weights(n, gamma)
    torch.testing.assert_close(mean, w @ theta)
    for k in (1, 7, 30):
        exact = integral(lambda s: profile(s + 1, gamma, n), k - 2, k - 1)
        if k > 1:
            torch.testing.assert_close(w[k - 1], exact)
    assert w.sum() == pytest.approx(1)


def test_zero_is_the_plain_mean_and_the_first_step_forgets() -> None:
    torch.testing.assert_close(power_weights(5, 0.0), torch.full((5,), 0.2))
    assert power_decay(3.0)(1) == 0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: power_width(-1.0), "gamma must be finite and above -1, got -1"),
        (lambda: power_decay(math.nan), "gamma must be finite"),
        (lambda: power_decay(1.0)(0), "number of a step must be 1, 2, …, got 0"),
        (lambda: power_exponent(0.31), r"width must lie in \(0, 0.300283\], got 0.31"),
        (lambda: power_exponent(0.0), r"width must lie in"),
        (lambda: power_weights(0, 1.0), "n must be a number of steps"),
        (lambda: inverse_root(0), "start must be a step number"),
    ],
)
def test_impossible_averages_are_refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()


# Post hoc


def product(s: float, a: float, t: float, b: float, x: Tensor) -> Tensor:
    return profile(x, a, s) * profile(x, b, t)


def test_inner_products_of_profiles_by_quadrature() -> None:
    """(eq:edm2-inner), either one first."""
    s, t = torch.tensor([0.4, 1.0, 0.7]), torch.tensor([1.0, 0.3, 0.7])
    a, b = torch.tensor([2.0, 17.0, 0.0]), torch.tensor([7.0, 1.5, 3.0])
    found = profile_inner(s, a, t, b)
    for i, row in enumerate(zip(*(v.tolist() for v in (s, a, t, b)), strict=True)):
        exact = integral(partial(product, *row), 0, min(row[0], row[2]))
        torch.testing.assert_close(found[i], exact, rtol=1e-9, atol=0)


def both(n: int) -> tuple[Tensor, Tensor]:
    """n snapshots, evenly over [0, 1], of two averages."""
    t = torch.arange(1, n + 1) / n
    return torch.cat([t, t]), torch.tensor(PAIR).repeat_interleave(n)


def miss(gamma: float, n: int) -> float:
    return posthoc(*both(n), gamma).error ** 2


def test_a_snapshot_is_its_own_reconstruction() -> None:
    found = posthoc(*both(5), PAIR[1], t=0.6)
    exact = torch.zeros(10)
    exact[5 + 2] = 1
    torch.testing.assert_close(found.x, exact, atol=1e-6, rtol=0)
    assert found.error < 1e-7
    assert found.gain == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("gamma", "t"), [(10.0, None), (3.0, 0.8), (1.0, 0.55)])
def test_the_error_is_that_of_the_profile(gamma: float, t: float | None) -> None:
    """(eq:edm2-system): by quadrature over the cells; the weights sum to one."""
    times, gammas = both(6)
    found = posthoc(times, gammas, gamma, t)
    end = t or 1.0

    rows = list(zip(found.x.tolist(), gammas.tolist(), times.tolist(), strict=True))

    def gap(s: Tensor) -> Tensor:
        made = sum(x * profile(s, g, u) for x, g, u in rows)
        return (profile(s, gamma, end) - made) ** 2

    edges = sorted({0.0, end, *times.tolist()})
    total = sum(integral(gap, a, b) for a, b in pairwise(edges))
    whole = (gamma + 1) ** 2 / (2 * gamma + 1) / end
    assert found.error**2 == pytest.approx(float(total) / whole, rel=1e-6)
    assert found.x.sum() == pytest.approx(1, abs=1e-10)
    assert found.gain == pytest.approx(float(found.x.norm(p=1)))
    assert found.gain > 1


def test_nothing_else_of_sum_one_is_nearer(rng: Generator) -> None:
    times, gammas = both(4)
    x = posthoc(times, gammas, 3.0).x
    A = profile_inner(times[:, None], gammas[:, None], times, gammas)
    b = profile_inner(times, gammas, torch.tensor(1.0), torch.tensor(3.0))
    for _ in range(20):
        z = torch.randn(8, generator=rng)
        z -= z.mean()  # a change that keeps the sum
        assert abs(z @ (A @ x - b)) < 1e-9 * z.norm() * A.norm()


@pytest.mark.parametrize("width", [0.03, 0.075, 0.15])
def test_the_error_falls_with_the_fourth_power_and_its_constant(width: float) -> None:
    """n⁴ E → (2γ+1)/(2γ−3) (γ−γ₁)²(γ−γ₂)²/720 where γ > 3/2 (eq:edm2-rate)."""
    g, (a, b) = power_exponent(width), PAIR
    limit = (2 * g + 1) / (2 * g - 3) * ((g - a) * (g - b)) ** 2 / 720
    assert miss(g, 128) * 128**4 == pytest.approx(limit, rel=0.01)


@pytest.mark.parametrize("gamma", [0.3, 0.72])
def test_long_averages_converge_with_a_lower_power(gamma: float) -> None:
    """E falls as n^{−(2γ+1)} where γ < 3/2."""
    slope = math.log2(miss(gamma, 64) / miss(gamma, 128))
    assert slope == pytest.approx(2 * gamma + 1, abs=0.04)


def test_the_error_bounds_that_of_any_weights(rng: Generator) -> None:
    """|θ̂ − Σ xᵢ θ̂ᵢ| ≤ error ‖p‖ √T · deviation of θ, for the discrete recursion."""
    n, every, gamma = 600, 100, power_exponent(0.2)
    theta = torch.randn(n, generator=rng).cumsum(0)
    times = torch.arange(every, n + 1, every).repeat(2)
    gammas = torch.tensor(PAIR).repeat_interleave(n // every)
    pairs = zip(times.tolist(), gammas.tolist(), strict=True)
    shots = torch.stack([power_weights(t, g) @ theta[:t] for t, g in pairs])
    found = posthoc(times, gammas, gamma)
    gap = abs(float(found.x @ shots - power_weights(n, gamma) @ theta))
    size = (gamma + 1) / math.sqrt(2 * gamma + 1)
    bound = found.error * size * theta.std(correction=0)
    assert 0.005 * bound < gap < bound


@pytest.mark.parametrize(
    ("times", "gammas", "gamma", "t", "says"),
    [
        ([1.0], [3.0], 3.0, None, "m ≥ 2 snapshots, got"),
        ([1.0, 2.0], [3.0], 3.0, None, "m ≥ 2 snapshots, got"),
        ([2.0, 1.0], [3.0, 3.0], 3.0, None, r"increase .* got \[2.0, 1.0\]"),
        ([1.0, 1.0], [3.0, 3.0], 3.0, None, "times must be positive and increase"),
        ([0.0, 1.0], [3.0, 3.0], 3.0, None, "times must be positive and increase"),
        ([1.0, math.inf], [3.0, 3.0], 3.0, None, "times must be positive"),
        ([1.0, 2.0], [3.0, -0.5], 3.0, None, "gammas must be finite and above -0.5"),
        ([1.0, 2.0], [3.0, 3.0], -0.7, None, "gamma must be finite and above -0.5"),
        ([1.0, 2.0], [3.0, 3.0], 4.0, 2.5, r"t must lie in \(0, 2\], got 2.5"),
    ],
)  # fmt: skip
def test_snapshots_that_cannot_do_are_refused(
    times: list[float], gammas: list[float], gamma: float, t: float | None, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        posthoc(torch.tensor(times), torch.tensor(gammas), gamma, t)


class Counting(Model):
    """A regression with a counter in its state."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)
        self.register_buffer("seen", torch.tensor(0))

    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        return torch.randn(n, 2, generator=rng)

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        self.seen += 1
        return (self.net(x) - x[:, :2].sin()).square().mean()


def test_snapshots_give_the_average_that_was_tracked(rng: Generator) -> None:
    """Real weights of a training: as good as the certificate says."""
    torch.manual_seed(0)
    model, shots = Counting(), Snapshots()
    wanted = Average(model, power_decay(power_exponent(0.15)))
    means = {g: Average(model, power_decay(g)) for g in PAIR}
    data = iter(lambda: torch.randn(16, 3, generator=rng), None)
    theta = []
    for step in train(model, data, steps=160, lr=1e-2):
        wanted.update(model, step.number)
        theta.append(model.net.weight.detach().clone())
        for g, mean in means.items():
            mean.update(model, step.number)
            if step.number % 20 == 0:
                shots.add(step.number, g, mean.model.state_dict())
    found, exact = shots.average(power_exponent(0.15)), wanted.model.state_dict()
    gap = (found["net.weight"] - exact["net.weight"]).norm()
    spread = torch.stack(theta).std(0, correction=0).norm()
    g, error = power_exponent(0.15), shots.solve(power_exponent(0.15)).error
    assert 0 < gap < error * (g + 1) / math.sqrt(2 * g + 1) * spread
    assert found["seen"] == 160
    half = shots.average(PAIR[0], t=80)
    torch.testing.assert_close(half["net.bias"], shots.states[6]["net.bias"])
    with pytest.raises(ValueError, match="state must have the names"):
        shots.add(200, 1.0, {})


# Sizes


def normal_mean(f: Callable[[Tensor], Tensor]) -> float:
    z = torch.linspace(-12, 12, 20_001)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return float(torch.trapezoid(f(z) * density, z))


def test_the_constant_of_silu() -> None:
    """(eq:edm2-silu), by the trapezoidal rule."""
    assert normal_mean(lambda z: (z * torch.sigmoid(z)) ** 2) ** 0.5 == pytest.approx(
        SILU, rel=1e-12
    )
    assert normal_mean(lambda z: mp_silu(z) ** 2) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_sums_and_joins_keep_the_size(t: float, rng: Generator) -> None:
    """(eq:edm2-sum), (eq:edm2-cat): exactly, for orthogonal inputs of size one."""
    Q, _ = torch.linalg.qr(torch.randn(40, 2, generator=rng))
    a, b = Q.T * 40**0.5
    assert rms(mp_sum(a, b, t)) == pytest.approx(1)
    y = mp_sum(a, b, t)
    assert float((1 - t) * (y @ b)) == pytest.approx(float(t * (y @ a)), abs=1e-12)
    u, v = (
        normalised(torch.randn(2, 6, generator=rng)),
        normalised(torch.randn(2, 30, generator=rng)),
    )
    y = mp_cat(u, v, t)
    assert rms(y) == pytest.approx(1)
    parts = y[:, :6].square().sum(1), y[:, 6:].square().sum(1)
    torch.testing.assert_close(parts[0] * t**2, parts[1] * (1 - t) ** 2)


def test_a_share_outside_the_unit_interval_is_refused() -> None:
    for f in (mp_sum, mp_cat):
        with pytest.raises(ValueError, match=r"t must lie in \[0, 1\], got 1.5"):
            f(torch.ones(2, 3), torch.ones(2, 3), 1.5)


def test_normalised_slices(rng: Generator) -> None:
    """(eq:edm2-normal); a slice of zeros stays zero, with a finite slope."""
    x = torch.randn(4, 3, 5, generator=rng)
    torch.testing.assert_close(normalised(x).square().mean(1), torch.ones(4, 5))
    torch.testing.assert_close(
        normalised(x, (1, 2)), x / x.square().mean((1, 2), True).sqrt()
    )
    zero = torch.zeros(1, 3, requires_grad=True)
    normalised(zero).sum().backward()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()
    large = torch.full((1, 4), 5e4, dtype=torch.float16)  # of a norm beyond its range
    assert torch.equal(normalised(large), torch.ones_like(large))
    half = normalised(300 * x.bfloat16())
    assert half.dtype is torch.bfloat16
    torch.testing.assert_close(half.double(), normalised(x), atol=0.03, rtol=0.02)


@pytest.mark.parametrize("make", [lambda: MPLinear(7, 5), lambda: MPConv(3, 4)])
def test_a_forced_layer_has_rows_of_length_one(make: Callable[[], Forced]) -> None:
    """(eq:edm2-row); in training the stored weights have root mean square one."""
    layer = make()
    with torch.no_grad():
        layer.weight.mul_(3)
    kept = layer.weight.detach().clone()
    lengths = layer.eval().rows().flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    assert torch.equal(layer.weight, kept), "evaluation must not write"
    free(layer).train().rows()
    assert torch.equal(layer.weight, kept), "a free layer must not write"
    layer.forced = True
    rows = layer.rows()
    torch.testing.assert_close(
        layer.weight.square().mean(layer.dims), torch.ones(len(rows))
    )
    torch.testing.assert_close(rows, free(layer).rows(), msg="the layer's map changed")


def test_layers_keep_the_expected_size(rng: Generator) -> None:
    """E y² = wᵀ C w, so it is M² for white input, exactly."""
    layer, x = MPLinear(6, 4), torch.randn(50, 6, generator=rng)
    Q, _ = torch.linalg.qr(x)
    white = Q * 50**0.5  # second moment I
    y = layer(white)
    torch.testing.assert_close(y.square().mean(0), torch.ones(4))
    conv = MPConv(3, 5)
    images = torch.randn(4000, 3, 4, 4, generator=rng)
    middle = conv(images)[:, :, 1:3, 1:3].square().mean((1, 2, 3))
    assert abs(middle.mean() - 1) < 4 * middle.std() / 4000**0.5
    assert middle.std() / 4000**0.5 < 0.02


def test_the_convolution_is_that_of_its_rows(rng: Generator) -> None:
    conv, x = MPConv(2, 3).eval(), torch.randn(2, 2, 5, 4, generator=rng)
    w = conv.weight.detach()
    w = w / w.flatten(1).norm(dim=1)[:, None, None, None]
    exact = torch.nn.functional.conv2d(x, w, padding=1)
    torch.testing.assert_close(conv(x), exact)
    with pytest.raises(ValueError, match="size of a kernel must be odd, got 2"):
        MPConv(2, 3, 2)
    with pytest.raises(
        ValueError, match=r"sizes of a layer must be positive, got \(3, 0\)"
    ):
        MPLinear(0, 3)


def test_gradients_are_orthogonal_and_norms_grow_as_pythagoras_says(
    rng: Generator,
) -> None:
    """(eq:edm2-growth) for gradient descent; not if the weights are forced."""
    torch.manual_seed(0)
    for forced in (False, True):
        layer, x = MPLinear(6, 4), torch.randn(20, 6, generator=rng)
        layer.forced = forced
        for _ in range(5):
            layer.rows()
            before = layer.weight.detach().clone()
            loss = (layer(x) - x[:, :4]).square().mean()
            (grad,) = torch.autograd.grad(loss, layer.weight)
            torch.testing.assert_close(
                (grad * before).sum(1), torch.zeros(4), atol=1e-12, rtol=0
            )
            with torch.no_grad():
                layer.weight -= 0.5 * grad
            grown = before.square().sum(1) + 0.25 * grad.square().sum(1)
            torch.testing.assert_close(layer.weight.detach().square().sum(1), grown)
            turned = rotation(before, layer.weight.detach())  # (eq:edm2-angle)
            torch.testing.assert_close(
                turned.tan(), 0.5 * grad.norm(dim=1) / before.norm(dim=1)
            )
        layer.rows()
        grown = layer.weight.detach().square().sum(1) - 6
        assert (grown.abs() < 1e-12).all() if forced else (grown > 0.001).all()


def test_small_angles_are_exact() -> None:
    """Where an arc cosine of the inner product would lose all digits."""
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    c, s = math.cos(1e-9), math.sin(1e-9)
    b = torch.tensor([[c, s], [-5.0, 0.0]])
    torch.testing.assert_close(
        rotation(a, b), torch.tensor([1e-9, math.pi / 2]), rtol=1e-6, atol=0
    )


def test_a_layer_may_be_used_twice_in_one_loss(rng: Generator) -> None:
    layer, x = MPLinear(3, 3), torch.randn(4, 3, generator=rng)
    layer(layer(x)).square().sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.slow
def test_forced_layers_can_be_compiled(rng: Generator) -> None:
    """With the weights written in the graph; gradients as without."""
    x, found = torch.randn(4, 6, generator=rng), []
    for wrap in (lambda f: f, partial(torch.compile, backend="aot_eager")):
        torch.manual_seed(0)
        net = MPMLP(6, 8, 1)
        with torch.no_grad():
            net.gain.fill_(1.0)
            net.enter.weight.mul_(3)
        wrap(lambda x, net=net: net(x, torch.tensor(0.1)).square().sum())(x).backward()
        found.append(
            [
                *(p.detach() for p in net.parameters()),
                *(p.grad for p in net.parameters()),
            ]
        )
    assert rms(found[1][2]) == pytest.approx(1), "the weights were not forced"
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_the_schedule_of_the_inverse_root() -> None:
    f = inverse_root(100)
    assert [f(0), f(100), f(400), f(10_000)] == pytest.approx([1, 1, 0.5, 0.1])


# Networks


def test_waves_have_mean_square_one(rng: Generator) -> None:
    e = Waves(16)(torch.randn(9, generator=rng))
    torch.testing.assert_close(e.square().mean(1), torch.ones(9))
    with pytest.raises(ValueError, match="width must be even and positive, got 3"):
        Waves(3)


def networks() -> list[tuple[nn.Module, tuple[int, ...]]]:
    return [
        (MPMLP(64, 128, 6), (1, 8, 8)),
        (MPUNet(1, width=32, factors=(1, 2), blocks=3), (1, 7, 7)),
        (MPUNet(2, width=32, factors=(1, 1, 2), blocks=1), (2, 12, 9)),
    ]


@pytest.mark.parametrize("i", [0, 1, 2])
def test_every_block_keeps_the_size_of_its_numbers(i: int, rng: Generator) -> None:
    torch.manual_seed(0)
    net, shape = networks()[i]
    sizes: list[float] = []
    for part in net.modules():
        if type(part).__name__ == "MPBlock":
            with torch.no_grad():
                part.gain.fill_(0.5)
            part.register_forward_hook(lambda m, _, y: sizes.append(rms(y)))
    x = torch.randn(64, *shape, generator=rng)
    assert net(x, torch.tensor(0.2)).abs().max() == 0, "F must be zero at first"
    with torch.no_grad():
        net.gain.fill_(1.0)
    y = net(x, 0.3 * torch.randn(64, 1, *[1] * (len(shape) - 1), generator=rng))
    assert y.shape == x.shape
    assert 0.5 < rms(y) < 1.5
    assert 0.8 < min(sizes) <= max(sizes) < 1.25


def test_times_of_all_shapes_are_the_same(rng: Generator) -> None:
    torch.manual_seed(0)
    net, x = MPMLP(4, 8, 2).eval(), torch.randn(3, 2, 2, generator=rng)
    with torch.no_grad():
        net.gain.fill_(1.0)
        for block in net.blocks:
            block.gain.fill_(1.0)
    t = torch.tensor(0.4)
    for same in (t.expand(3), t.expand(3, 1, 1)):
        torch.testing.assert_close(net(x, same), net(x, t))
    assert not torch.allclose(net(x, t), net(x, 2 * t), rtol=0.01)
    with pytest.raises(ValueError, match=r"t must be \(\) or \(3,\), got \(2,\)"):
        net(x, torch.zeros(2))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MPMLP(0, 8), "d, blocks must be ≥ 1, got 0, 2"),
        (lambda: MPMLP(2, 7), "width must be even"),
        (lambda: MPUNet(1, factors=()), "channels, width, factors, blocks must be"),
        (lambda: MPUNet(1, width=8)(torch.zeros(2, 8), torch.zeros(())), "x must be"),
    ],
)
def test_impossible_networks_are_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_the_network_runs_in_bfloat16(rng: Generator) -> None:
    torch.manual_seed(0)
    net = MPUNet(1, width=8, factors=(1, 2), blocks=1).float()
    with torch.no_grad():
        net.gain.fill_(1.0)
    x = torch.randn(4, 1, 8, 8, generator=rng).float()
    exact = net(x, torch.tensor(0.1))
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x, torch.tensor(0.1))
    torch.testing.assert_close(y.float(), exact, atol=0.1, rtol=0.1)
    y.float().square().sum().backward()
    assert net.enter.weight.dtype is torch.float32


# The loss


def model(kind: type[Diffusion], **options: object) -> Diffusion:
    torch.manual_seed(0)
    return kind(Preconditioned(MPMLP(2, 8, 1)), StandardNormal(2), **options)


def test_without_uncertainty_it_is_the_plain_loss(rng: Generator) -> None:
    """(eq:edm2-loss) with u = 0."""
    x = torch.randn(50, 2, generator=rng)
    a, b = (model(k).loss(x, rng=Generator().manual_seed(3))
            for k in (Diffusion, UncertainDiffusion))  # fmt: skip
    torch.testing.assert_close(a, b)
    units = Units(3.0, 0.2)
    c = model(UncertainDiffusion, units=units)
    again = c.loss(units.outside(x), rng=Generator().manual_seed(3))
    torch.testing.assert_close(again, a)
    assert c.sample(3, rng=rng).shape == (3, 2)
    for bad in (x[:, :1], x[:0]):
        with pytest.raises(ValueError, match=r"x must have shape \('n', 2\), got"):
            model(UncertainDiffusion).loss(bad)


def test_the_best_uncertainty_is_the_logarithm_of_the_loss(rng: Generator) -> None:
    """At u = ln λℓ the derivative in u is zero, and that in θ is the one of ln ℓ."""
    x = 0.5 * torch.randn(400, 2, generator=rng)
    u = torch.nn.Parameter(torch.tensor(0.3))

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.u = u

        def forward(self, t: Tensor) -> Tensor:
            return self.u.expand(t.shape)

    plain = model(Diffusion)
    loss = plain.loss(x, rng=Generator().manual_seed(3))
    (slope,) = torch.autograd.grad(loss.log(), plain.denoiser.net.gain)
    learned = model(UncertainDiffusion, level=Constant())
    with torch.no_grad():
        u.copy_(loss.log())
    whole = learned.loss(x, rng=Generator().manual_seed(3))
    in_u, in_theta = torch.autograd.grad(whole, [u, learned.denoiser.net.gain])
    assert whole.item() == pytest.approx(1 + loss.log().item())
    assert in_u.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(in_theta, slope)


def test_the_level_starts_at_zero_and_keeps_the_shape_of_t() -> None:
    level, t = Level(), torch.linspace(-1, 1, 5).reshape(5, 1, 1)
    assert level(t).shape == t.shape
    assert level(t).abs().max() == 0
    assert level(torch.tensor(0.1)).shape == ()
