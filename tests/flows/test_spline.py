"""book/flows/spline.md, equation by equation."""

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.func import jacrev, vmap

from pushforward.distributions import StandardNormal
from pushforward.flows import Spline, SplineCoupling, spline, spline_flow
from pushforward.nn import MLP

K, B = 8, 4.0


def random(n: int, scale: float, rng: Generator, K: int = K) -> Spline:
    """Return n splines; a large ``scale`` drives their parameters to the limits."""
    return spline(scale * torch.randn(n, 3 * K - 1, generator=rng), B)


def knots(s: Spline) -> tuple[Tensor, Tensor]:
    """Return the K + 1 knots and their images."""
    left, right = s.table[..., :2, :1], s.table[..., :2, :] + s.table[..., 2:4, :]
    x, y = torch.cat([left, right], -1).unbind(-2)
    return x, y


def each(s: Spline, at: Tensor) -> Spline:
    """Repeat every spline for the points at (n, m) of its row."""
    return s._replace(table=s.table[:, None].expand(*at.shape, 6, -1))


# One spline


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_knots_divide_the_box(scale: float, rng: Generator) -> None:
    """(eq:spline-knots): sizes above the floor that fill the box exactly."""
    s = random(200, scale, rng)
    size = s.table[..., 2:4, :]
    torch.testing.assert_close(size.sum(-1), torch.full((200, 2), 2 * B))
    assert size.min() > 2 * B * 0.1 / K - 1e-12
    x, y = knots(s)
    for ends in (x, y):
        torch.testing.assert_close(ends[:, 0], torch.full((200,), -B), rtol=0, atol=0)
        torch.testing.assert_close(ends[:, -1], torch.full((200,), B))
        torch.testing.assert_close(ends[:, 1:-1], s.table[:, int(ends is y), 1:])
    d0, d1 = s.table[:, 4], s.table[:, 5]
    assert (d0[:, 0] == 1).all()
    assert (d1[:, -1] == 1).all()
    torch.testing.assert_close(d0[:, 1:], d1[:, :-1], rtol=0, atol=0)


def test_zero_is_the_identity(rng: Generator) -> None:
    x = 3 * torch.randn(500, generator=rng)
    s = spline(torch.zeros(500, 3 * K - 1), B)
    for verb in (s.forward, s.inverse):
        y, log = verb(x)
        torch.testing.assert_close(y, x, rtol=0, atol=1e-14)
        torch.testing.assert_close(log, torch.zeros(500), rtol=0, atol=1e-14)


def test_spline_is_the_quotient_of_gregory_and_delbourgo(rng: Generator) -> None:
    """(eq:spline) and (eq:spline-slope), in exact rational arithmetic."""
    n = 300
    s = random(n, 1.5, rng)
    x = B * (2 * torch.rand(n, generator=rng) - 1)
    y, log = s.forward(x)
    for i in range(n):
        k = int((x[i] >= s.table[i, 0, 1:]).sum())
        left, low, w, h, d0, d1 = map(Fraction, s.table[i, :, k].tolist())
        xi, m = (Fraction(x[i].item()) - left) / w, h / w
        bottom = m + (d1 + d0 - 2 * m) * xi * (1 - xi)
        want = low + h * (m * xi**2 + d0 * xi * (1 - xi)) / bottom
        top = d1 * xi**2 + 2 * m * xi * (1 - xi) + d0 * (1 - xi) ** 2
        assert y[i].item() == pytest.approx(float(want), abs=1e-13)
        assert log[i].exp().item() == pytest.approx(
            float(m**2 * top / bottom**2), rel=1e-12
        )


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_values_and_slopes_at_the_knots_are_those_that_were_chosen(
    scale: float, rng: Generator
) -> None:
    s = random(100, scale, rng)
    x, y = knots(s)
    inner = x[:, 1:-1]
    value, log = each(s, inner).forward(inner)
    torch.testing.assert_close(value, y[:, 1:-1])
    torch.testing.assert_close(log.exp(), s.table[:, 4, 1:])
    below = inner - 1e-11  # C¹: the slope from the left is that from the right
    value, log = each(s, below).forward(below)
    torch.testing.assert_close(value, y[:, 1:-1], rtol=0, atol=1e-9)
    torch.testing.assert_close(log.exp(), s.table[:, 4, 1:], rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_slope_is_the_derivative(scale: float, rng: Generator) -> None:
    """(eq:spline-slope), against automatic differentiation, both ways."""
    s = random(3000, scale, rng)
    x = (3 * torch.randn(3000, generator=rng)).requires_grad_()
    for verb in (s.forward, s.inverse):
        y, log = verb(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(log, slope.log(), rtol=1e-9, atol=1e-10)


def test_inverse_against_bisection(rng: Generator) -> None:
    """(eq:spline-inverse)."""
    s = random(500, 2.0, rng)
    y = 2.5 * torch.randn(500, generator=rng)
    low, high = torch.full((500,), -20.0), torch.full((500,), 20.0)
    for _ in range(70):
        middle = (low + high) / 2
        above = s.forward(middle)[0] > y
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    x, log = s.inverse(y)
    torch.testing.assert_close(x, low, rtol=0, atol=1e-11)
    torch.testing.assert_close(log, -s.forward(x)[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("dtype", "scale", "tolerance"),
    [
        (torch.float64, 1.0, 1e-11),
        (torch.float64, 100.0, 1e-10),
        (torch.float32, 0.5, 1e-4),
    ],
)
def test_inverse_holds_everywhere(
    dtype: torch.dtype, scale: float, tolerance: float, rng: Generator
) -> None:
    """At knots, at the ends of the box, outside it, and at saturated parameters."""
    s = spline((scale * torch.randn(400, 3 * K - 1, generator=rng)).to(dtype), B)
    ends = torch.tensor([-B, B, -B - 1e-9, B + 1e-9, 0.0, -1e-300, 1e5, -1e5, 1e-5])
    between = 3 * torch.randn(400, 60, generator=rng)
    x = torch.cat([knots(s)[0].double(), ends.expand(400, -1), between], 1).to(dtype)
    y, log = each(s, x).forward(x)
    back, log_back = each(s, y).inverse(y)
    assert ((back - x).abs() <= tolerance * x.abs().clamp(min=1)).all()
    assert y.isfinite().all()
    assert (log + log_back).abs().max() < 100 * tolerance
    far = x.abs() > B
    assert (log[far].abs() < tolerance).all()
    torch.testing.assert_close(y[far], x[far], rtol=tolerance, atol=0)


def test_the_inverse_loses_no_digit() -> None:
    """Where the textbook's quotient 2c/(−b − √(b² − 4ac)) cancels."""
    d0, d1, s = 0.05, 20.0, 0.05
    eta = 1 - torch.logspace(-6, -1, 60, dtype=torch.float32)
    six = torch.tensor([0.0, 0.0, 20.0, 1.0, d0, d1], dtype=torch.float32)
    table = torch.stack([six, six], -1)  # two bins; the knot lies outside
    table[:2, 1] = 30.0
    ours = Spline(table.expand(60, 6, 2), 40.0).inverse(eta)[0].double() / 20
    e = eta.double()
    p = d0 * (1 - e) - d1 * e
    r = (p**2 + 4 * s**2 * e * (1 - e)).sqrt()
    exact = (r - p) / (2 * s * (1 - e) + r - p)
    bottom = d0 + d1 - 2 * s
    b, c, a = d0 - eta * bottom, -s * eta, s - d0 + eta * bottom
    textbook = 2 * c / (-b - (b.square() - 4 * a * c).sqrt())
    assert (ours - exact).abs().max() < 2e-7
    assert (textbook.double() - exact).abs().max() > 2e-6


def test_a_point_that_rounds_out_of_its_bin_has_an_inverse() -> None:
    """Knots are sums, so η may exceed 1 by rounding; the root must not see it."""
    first = torch.tensor([0.0, 0.0, 1 / 70, 1.0, 1.0, 0.02], dtype=torch.float32)
    table = torch.stack([first, first], -1)
    table[:2, 1] = torch.tensor([1 / 70, 1 + 1e-6])
    at = torch.tensor([1 + 3e-7, 1 + 6e-7], dtype=torch.float32)
    x, log = Spline(table.expand(2, 6, 2), 4.0).inverse(at)
    torch.testing.assert_close(x, torch.full((2,), 1 / 70, dtype=torch.float32))
    assert log.isfinite().all()


def test_gradients_are_finite_at_the_limits(rng: Generator) -> None:
    u = (50 * torch.randn(300, 3 * K - 1, generator=rng)).requires_grad_()
    x = torch.cat([torch.linspace(-6, 6, 298), torch.tensor([-B, B])])
    for verb in (spline(u, B).forward, spline(u, B).inverse):
        y, log = verb(x)
        (g,) = torch.autograd.grad(y.sum() + log.sum(), u, retain_graph=True)
        assert g.isfinite().all()


# The coupling


@pytest.mark.parametrize("context", [0, 2])
def test_coupling_log_det_is_that_of_the_jacobian(context: int, rng: Generator) -> None:
    torch.manual_seed(0)
    mask = torch.tensor([True, False, True, False, False])
    f = SplineCoupling(mask, MLP(2 + context, 16, 3 * (3 * 5 - 1)))
    x = torch.randn(7, 5, generator=rng)
    c = torch.randn(7, context, generator=rng) if context else None
    z, log_det = f(x, c)
    torch.testing.assert_close(z[:, mask], x[:, mask], rtol=0, atol=0)

    def one(p: Tensor, q: Tensor) -> Tensor:
        return f(p[None], q[None] if context else None)[0][0]

    jacobian = vmap(jacrev(one))(x, x if c is None else c)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian).logabsdet)
    back, log_back = f.inverse(z, c)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_back, -log_det, rtol=0, atol=1e-11)


def test_each_coordinate_has_its_own_spline(rng: Generator) -> None:
    """The network's numbers are read coordinate by coordinate."""
    f = SplineCoupling(torch.tensor([True, False, False]), nn.Identity())
    h, x = torch.randn(6, 22, generator=rng), torch.randn(6, 2, generator=rng)
    y, log = f.move(x, h)
    parts = [spline(h[:, 11 * j : 11 * (j + 1)], 4.0).forward(x[:, j]) for j in (0, 1)]
    torch.testing.assert_close(y, torch.stack([p[0] for p in parts], 1))
    torch.testing.assert_close(log, parts[0][1] + parts[1][1])


def test_images_are_moved_pixel_by_pixel(rng: Generator) -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(2, 2 * 11, 3, padding=1)
    f = SplineCoupling(torch.tensor([True, True, False, False]), net)
    x = torch.randn(3, 4, 5, 6, generator=rng)
    z, log_det = f(x)
    h = net(x[:, :2])
    parts = spline(h.view(3, 2, 11, 5, 6).permute(0, 1, 3, 4, 2), 4.0).forward(x[:, 2:])
    torch.testing.assert_close(z[:, 2:], parts[0])
    torch.testing.assert_close(log_det, parts[1].sum((1, 2, 3)))
    torch.testing.assert_close(f.inverse(z)[0], x)


def woken(d: int, layers: int = 4, **options: int) -> nn.Module:
    torch.manual_seed(1)
    flow = spline_flow(d, layers, (16,), **options)
    for p in flow.parameters():
        if p.abs().max() == 0:
            nn.init.normal_(p, std=0.07)
    return flow


def test_spline_flow_starts_as_the_identity(rng: Generator) -> None:
    x = torch.randn(9, 3, generator=rng)
    torch.testing.assert_close(
        spline_flow(3).log_prob(x), StandardNormal(3).log_prob(x)
    )


@pytest.mark.parametrize("context", [0, 2])
def test_density_has_mass_one(context: int) -> None:
    """By quadrature on a square, tails included."""
    flow = woken(2, context=context)
    side = torch.linspace(-8, 8, 321)
    x = torch.cartesian_prod(side, side)
    c = torch.tensor([[0.5, -1.0]]).expand(len(x), -1) if context else None
    with torch.no_grad():
        mass = flow.log_prob(x, c).exp().sum() * (side[1] - side[0]) ** 2
    torch.testing.assert_close(mass, torch.tensor(1.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("d", [2, 5])
def test_flow_comes_back(d: int, rng: Generator) -> None:
    x = 2 * torch.randn(2000, d, generator=rng)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        flow, y = woken(d).to(dtype), x.to(dtype)
        with torch.no_grad():
            z, log_det = flow.f(y)
            back, log_back = flow.f.inverse(z)
        assert (back - y).abs().max() < tolerance
        assert (log_det + log_back).abs().max() < 10 * tolerance
    draw = flow.sample(10, rng=rng)
    assert draw.shape == (10, d)


def test_moments_of_samples_are_those_of_the_density(rng: Generator) -> None:
    flow, n = woken(2), 20_000
    side = torch.linspace(-8, 8, 321)
    x = torch.cartesian_prod(side, side)
    with torch.no_grad():
        w = flow.log_prob(x).exp()
        want = (w[:, None] * x).sum(0) / w.sum()
        draw = flow.sample(n, rng=rng)
    assert ((draw.mean(0) - want).abs() < 4 * draw.std(0) / n**0.5 + 1e-3).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spline(torch.zeros(2, 9), 4.0), "3K − 1"),
        (lambda: spline(torch.zeros(2, 2), 4.0), "K ≥ 2"),
        (lambda: spline(torch.zeros(2, 11), 0.0), "box"),
        (lambda: SplineCoupling(torch.tensor([True, True]), MLP(1, 11)), "mask"),
        (
            lambda: SplineCoupling(torch.tensor([True, False]), MLP(1, 11), box=-1.0),
            "box",
        ),
        (
            lambda: SplineCoupling(torch.tensor([True, False, False]), MLP(1, 11))(
                torch.zeros(4, 3)
            ),
            "net must return",
        ),
        (lambda: spline_flow(1), "d ≥ 2"),
        (lambda: spline_flow(2, 0), "layers ≥ 1"),
        (lambda: spline_flow(2, bins=1), "bins ≥ 2"),
        (lambda: spline_flow(2).log_prob(torch.zeros(3, 4)), "x must"),
    ],
)
def test_what_makes_no_sense_is_refused(
    call: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call()
