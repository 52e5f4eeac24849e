"""book/flows/coupling.md, equation by equation."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.func import jacrev, vmap

from pushforward.distributions import StandardNormal
from pushforward.flows import (
    AffineCoupling,
    Bijection,
    Chain,
    Dequantized,
    FirstChannels,
    Flow,
    Inverse,
    Sigmoid,
    Squeeze,
    dequantizer,
    image_nvp,
    real_nvp,
)
from pushforward.flows.coupling import alternating, image_couplings
from pushforward.nn import MLP

MASKS = {
    "first": [True, True, False, False, False],
    "last": [False, False, False, True, True],
    "mixed": [True, False, True, True, False],
    "one": [True, False, False, False, False],
}


def coupling(name: str, context: int = 0, scale: float = 1.0) -> AffineCoupling:
    """Return a coupling of R⁵ with random weights, ``scale`` times the usual."""
    torch.manual_seed(0)
    mask = torch.tensor(MASKS[name])
    k = int(mask.sum())
    net = MLP(k + context, 16, 2 * (5 - k))
    with torch.no_grad():
        net[-1].weight.mul_(scale)
        net[-1].bias.mul_(scale)
    return AffineCoupling(mask, net)


def wake(model: nn.Module, scale: float = 0.3) -> None:
    """Give every layer that starts at zero random weights."""
    torch.manual_seed(1)
    for p in model.parameters():
        if p.abs().max() == 0:
            nn.init.normal_(p, std=scale)


def log_dets(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return log |det ∂f/∂x| at the rows of x by automatic differentiation."""
    rows = [torch.autograd.functional.jacobian(f, row[None]) for row in x]
    d = x[0].numel()
    return torch.linalg.slogdet(torch.stack(rows).reshape(-1, d, d)).logabsdet


# One coupling


@pytest.mark.parametrize("name", MASKS)
def test_coupling_is_the_formula_of_the_page(name: str, rng: Generator) -> None:
    """(eq:coupling), coordinate by coordinate."""
    f, x = coupling(name), torch.randn(7, 5, generator=rng)
    kept = [j for j in range(5) if MASKS[name][j]]
    moved = [j for j in range(5) if not MASKS[name][j]]
    z, log_det = f(x)
    h = f.net(x[:, kept]).detach()
    for i, row in enumerate(x):
        total = 0.0
        for j in range(5):
            if j in kept:
                assert z[i, j] == row[j]
                continue
            s = 2 * math.tanh(h[i, moved.index(j)])
            t = h[i, len(moved) + moved.index(j)]
            want = row[j] * math.exp(s) + t
            assert z[i, j].item() == pytest.approx(want.item(), rel=1e-13)
            total += s
        assert log_det[i].item() == pytest.approx(total, rel=1e-13)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("context", [0, 3])
def test_log_det_is_that_of_the_jacobian(
    name: str, context: int, rng: Generator
) -> None:
    """(eq:coupling-logdet), against automatic differentiation."""
    f, x = coupling(name, context), torch.randn(6, 5, generator=rng)
    c = torch.randn(1, context, generator=rng) if context else None
    at = None if c is None else c.expand(6, -1)
    z, log_det = f(x, at)
    torch.testing.assert_close(log_det, log_dets(lambda p: f(p, c)[0], x))
    back, log_back = f.inverse(z, at)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-13)
    torch.testing.assert_close(log_back, -log_det, rtol=0, atol=1e-13)
    torch.testing.assert_close(log_back, log_dets(lambda p: f.inverse(p, c)[0], z))


@pytest.mark.parametrize("name", ["first", "mixed"])
def test_the_mask_works_on_the_channels_of_images(name: str, rng: Generator) -> None:
    """An image of 1 × 1 pixels is a point."""
    f, x = coupling(name), torch.randn(4, 5, generator=rng)
    net = nn.Sequential(nn.Flatten(), f.net, nn.Unflatten(1, (-1, 1, 1)))
    g = AffineCoupling(torch.tensor(MASKS[name]), net)
    z, log_det = g(x[..., None, None])
    torch.testing.assert_close(z[..., 0, 0], f(x)[0])
    torch.testing.assert_close(log_det, f(x)[1])


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e3, 1e8])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_inverse_holds_at_large_and_tiny_points_and_saturated_scales(
    size: float, scale: float, rng: Generator
) -> None:
    x = size * torch.randn(200, 5, generator=rng)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        f, y = coupling("mixed", scale=scale).to(dtype), x.to(dtype)
        z = f(y)[0]
        # The shift t swallows what is smaller than its last digit.
        unit = max(1.0, y.abs().max().item(), z.abs().max().item())
        error = (f.inverse(z)[0] - y).abs().max().item()
        assert error < tolerance * unit


def test_scales_are_bounded() -> None:
    f = coupling("first", scale=1e6)
    x = torch.randn(50, 5)
    assert f(x)[1].abs().max() <= 3 * 2.0
    torch.manual_seed(0)
    g = AffineCoupling(torch.tensor(MASKS["first"]), MLP(2, 8, 6), bound=0.1)
    assert g(100 * x)[1].abs().max() <= 3 * 0.1


# Several


def test_real_nvp_starts_as_the_identity(rng: Generator) -> None:
    x = torch.randn(9, 3, generator=rng)
    flow = real_nvp(3)
    z, log_det = flow.f(x)
    torch.testing.assert_close(z, x, rtol=0, atol=0)
    torch.testing.assert_close(flow.log_prob(x), StandardNormal(3).log_prob(x))
    assert (log_det == 0).all()


@pytest.mark.parametrize("d", [2, 3, 6])
def test_log_prob_is_that_of_the_push_forward(d: int, rng: Generator) -> None:
    flow = real_nvp(d, 5, (16,))
    wake(flow)
    x = torch.randn(6, d, generator=rng)
    want = StandardNormal(d).log_prob(flow.f(x)[0])
    want = want + log_dets(lambda p: flow.f(p)[0], x)
    torch.testing.assert_close(flow.log_prob(x), want)
    torch.testing.assert_close(flow.f.inverse(flow.f(x)[0])[0], x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("context", [0, 2])
def test_density_has_mass_one(context: int) -> None:
    """By quadrature on a square."""
    flow = real_nvp(2, 4, (16,), context=context)
    wake(flow, 0.1)
    side = torch.linspace(-10, 10, 401)
    x = torch.cartesian_prod(side, side)
    c = torch.tensor([[0.5, -1.0]]).expand(len(x), -1) if context else None
    with torch.no_grad():
        mass = flow.log_prob(x, c).exp().sum() * (side[1] - side[0]) ** 2
    torch.testing.assert_close(mass, torch.tensor(1.0), rtol=0, atol=1e-5)


def pattern(d: int, layers: int) -> Tensor:
    """Return which output of random couplings depends on which input."""
    flow = real_nvp(d, layers, (16,))
    wake(flow)
    x = torch.randn(5, d, generator=torch.Generator().manual_seed(2))
    return (vmap(jacrev(lambda p: flow.f(p[None])[0][0]))(x) != 0).any(0)


@pytest.mark.parametrize(("d", "needed"), [(2, 2), (3, 3), (4, 3), (7, 3)])
def test_how_many_couplings_let_all_depend_on_all(d: int, needed: int) -> None:
    """Two where one coordinate moves first, else three."""
    assert pattern(d, needed).all()
    assert not pattern(d, needed - 1).all()
    first, moved = alternating(d, 1)[0], ~alternating(d, 1)[0]
    want = torch.eye(d, dtype=torch.bool) | (moved[:, None] & first)
    assert (pattern(d, 1) == want).all()


def test_masks_alternate() -> None:
    a, b, c = alternating(5, 3)
    assert a.tolist() == [True, True, False, False, False]
    assert (b == ~a).all()
    assert (c == a).all()


# Images


def test_squeeze_names_the_four_pixels_of_a_block() -> None:
    x = torch.arange(2 * 3 * 4 * 6, dtype=torch.float64).view(2, 3, 4, 6)
    z, log_det = Squeeze()(x)
    assert z.shape == (2, 12, 2, 3)
    assert (log_det == 0).all()
    for c, i, j in itertools.product(range(3), range(2), range(2)):
        torch.testing.assert_close(z[:, 4 * c + 2 * i + j], x[:, c, i::2, j::2])
    torch.testing.assert_close(Squeeze().inverse(z)[0], x, rtol=0, atol=0)


def test_checkerboard_is_a_channel_mask_after_the_squeeze() -> None:
    """Kept channels 0 and 3 are the pixels with an even sum of coordinates."""
    i, j = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    even = ((i + j) % 2 == 0).double()[None, None]
    z = Squeeze()(even)[0][0]
    assert z[:, 0, 0].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert (z == z[:, :1, :1]).all()


def test_image_masks_are_boards_and_halves_with_their_complements() -> None:
    """The coupling that keeps the even pixels keeps channels 0 and 3 of each four."""
    kept = [f.kept.tolist() for f in image_couplings(8, 5, width=8)]
    assert kept[:2] == [[0, 3, 4, 7], [1, 2, 5, 6]]
    assert kept[2:] == [[0, 1, 2, 3], [4, 5, 6, 7], kept[0]]


def test_first_channels_go_on_and_the_others_stay(rng: Generator) -> None:
    f = FirstChannels(5, coupling("mixed"))
    x = torch.randn(4, 7, generator=rng)
    z, log_det = f(x)
    torch.testing.assert_close(z[:, 5:], x[:, 5:], rtol=0, atol=0)
    torch.testing.assert_close(log_det, log_dets(lambda p: f(p)[0], x))
    back, log_back = f.inverse(z)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_back, -log_det)


def test_sigmoid_against_automatic_differentiation(rng: Generator) -> None:
    x = 5 * torch.randn(6, 3, generator=rng)
    z, log_det = Sigmoid()(x)
    torch.testing.assert_close(log_det, log_dets(lambda p: p.sigmoid(), x))
    back, log_back = Sigmoid().inverse(z)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_back, -log_det)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8)])
def test_images_come_back(shape: tuple[int, int, int], rng: Generator) -> None:
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        flow = image_nvp(shape, 4, width=8)
        wake(flow, 0.02)
        flow = flow.to(dtype)
        x = torch.rand(5, *shape, generator=rng).to(dtype)
        z, log_det = flow.f(x)
        back, log_back = flow.f.inverse(z)
        assert z.shape == x.shape
        assert (z - Chain([flow.f.maps[0]])(x)[0]).abs().max() > 0.1  # it does move
        torch.testing.assert_close(back, x, rtol=0, atol=tolerance)
        torch.testing.assert_close(log_back, -log_det, rtol=1e-4, atol=1e-2 * tolerance)
        assert flow.sample(2, rng=rng).shape == (2, *shape)


def test_the_density_of_images_against_automatic_differentiation(
    rng: Generator,
) -> None:
    flow = image_nvp((1, 8, 8), 4, width=8)
    wake(flow, 0.1)
    x = torch.rand(1, 1, 8, 8, generator=rng)
    want = flow.base.log_prob(flow.f(x)[0]) + log_dets(lambda p: flow.f(p)[0], x)
    torch.testing.assert_close(flow.log_prob(x), want)


def test_every_pixel_depends_on_every_pixel(rng: Generator) -> None:
    flow = image_nvp((1, 8, 8), 4, width=8)
    wake(flow, 0.1)
    x = torch.rand(1, 1, 8, 8, generator=rng).requires_grad_()
    centre = flow.f(x)[0][0, 0, 3, 3]
    (slope,) = torch.autograd.grad(centre, x)
    assert (slope != 0).all()


# Grey levels


def tiny(levels: int, noise: bool = True) -> Dequantized:
    """Return a law of images of two pixels, small enough for quadrature."""
    torch.manual_seed(3)
    flip = [torch.tensor([True, False]), torch.tensor([False, True])]
    couplings: list[list[Bijection]] = [[], []]
    for i in range(3):
        for into, maps in zip((1, 3), couplings, strict=True):
            net = nn.Sequential(nn.Conv2d(into, 8, 1), nn.Tanh(), nn.Conv2d(8, 2, 1))
            maps.append(AffineCoupling(flip[i % 2], net, bound=0.25))
    p, q = (Chain([Inverse(Sigmoid()), *maps]) for maps in couplings)
    base = StandardNormal(2, 1, 1)
    return Dequantized(Flow(p, base), Flow(q, base) if noise else None, levels)


def grid(nodes: int) -> Tensor:
    """Return the midpoints of a partition of the square, (nodes², 2, 1, 1)."""
    t = (torch.arange(nodes) + 0.5) / nodes
    return torch.cartesian_prod(t, t)[..., None, None]


def images(levels: int) -> Tensor:
    """Return all images of two pixels."""
    l = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    return torch.cartesian_prod(l, l)[..., None, None]


@torch.no_grad()
def masses(model: Dequantized, nodes: int = 120) -> Tensor:
    """Return log P(x) of all images, by quadrature of the density on each cell."""
    L, u = model.levels, grid(nodes)
    cells = (L - 1) * images(L)
    logs = [model.flow.log_prob((cell + u) / L).logsumexp(0) for cell in cells]
    return torch.stack(logs) - math.log(len(u)) - 2 * math.log(L)


@pytest.mark.parametrize("noise", [True, False])
def test_the_bound_misses_the_divergence_of_the_noise(
    noise: bool, rng: Generator
) -> None:
    """(eq:coupling-dequantisation): E bound + KL(q ‖ p(· | x)) = log P(x)."""
    model, n = tiny(3, noise), 20_000
    x, exact = images(3), masses(model)
    assert exact.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    u = grid(200)
    for one, log_P in zip(x, exact, strict=True):
        c = one.expand(len(u), 2, 1, 1)
        with torch.no_grad():
            log_q = torch.zeros(len(u))
            if model.noise is not None:
                log_q = model.noise.log_prob(u, c - 0.5)
            log_p = model.flow.log_prob((2 * c + u) / 3) - 2 * math.log(3) - log_P
            gap = (log_q.exp() * (log_q - log_p)).mean()
            draws = model.bound(one.expand(n, 2, 1, 1), rng=rng)
        se = draws.std() / n**0.5
        assert (draws.mean() + gap - log_P).abs() < 4 * se + 1e-4
        assert gap > 0
        assert draws.mean() < log_P + 4 * se


def test_more_draws_tighten_the_bound(rng: Generator) -> None:
    model, n = tiny(3), 2000
    exact, x = masses(model)[4], images(3)[4].expand(n, 2, 1, 1)
    with torch.no_grad():
        one, some, many = (model.bound(x, samples=k, rng=rng) for k in (1, 8, 100))
    assert one.mean() < some.mean() < many.mean() < exact + 4 * many.std() / n**0.5
    assert (many.mean() - exact).abs() < 0.3 * (one.mean() - exact).abs()


def test_the_weights_of_uniform_noise_have_the_mean_P(rng: Generator) -> None:
    """P(x) = E p((l + u)/L)/L^d: what the logarithm is taken of has no bias."""
    model, n = tiny(3, noise=False), 20_000
    for k, exact in zip((0, 4, 7), masses(model)[[0, 4, 7]], strict=True):
        with torch.no_grad():
            w = (model.bound(images(3)[k].expand(n, 2, 1, 1), rng=rng) - exact).exp()
        assert (w.mean() - 1).abs() < 4 * w.std() / n**0.5 + 1e-4


def test_samples_have_the_law_of_the_bound(rng: Generator) -> None:
    model, n = tiny(3), 40_000
    x = model.sample(n, rng=rng)
    level = (2 * x).round()
    torch.testing.assert_close(x, level / 2)
    which = (3 * level[:, 0] + level[:, 1]).flatten().long()
    p = masses(model).exp()
    se = (p * (1 - p) / n).sqrt()
    assert ((torch.bincount(which, minlength=9) / n - p).abs() < 4 * se).all()


def test_noise_that_knows_the_answer_makes_the_bound_exact(rng: Generator) -> None:
    """With p uniform and q uniform nothing is missed, nothing varies."""
    model = tiny(4, noise=False)
    model.flow = Flow(Inverse(Sigmoid()), Logistic())
    torch.testing.assert_close(
        model.bound(images(4), rng=rng), torch.full((16,), -2 * math.log(4))
    )
    bits = model.bits_per_dim(images(4), rng=rng)
    torch.testing.assert_close(bits, torch.full((16,), 2.0))


class Logistic(StandardNormal):
    """The law whose image under the sigmoid is uniform."""

    def __init__(self) -> None:
        super().__init__(2, 1, 1)

    def log_prob(self, z: Tensor) -> Tensor:
        log = nn.functional.logsigmoid
        return (log(z) + log(-z)).flatten(1).sum(1)


def test_dequantizer_draws_in_the_cube_with_its_density(rng: Generator) -> None:
    noise = dequantizer((1, 4, 4), 2, width=8)
    c = torch.rand(200, 1, 4, 4, generator=rng)
    u, log_q = noise.draw(200, c, rng=rng)
    assert ((u > 0) & (u < 1)).all()
    assert (log_q.mean() / 16).abs() < 0.05  # nearly uniform at the start
    wake(noise, 0.1)
    u, log_q = noise.draw(20, c[:20], rng=rng)
    torch.testing.assert_close(noise.log_prob(u, c[:20]), log_q)
    other = noise.log_prob(u, c[20:40])
    assert (other - log_q).abs().min() > 1e-3  # it looks at the image


def test_the_noise_stays_in_its_cell_in_single_precision() -> None:
    model = tiny(256).float()
    assert model.noise is not None
    model.noise = Flow(
        Chain([Inverse(Sigmoid()), Inverse(Far())]), StandardNormal(2, 1, 1)
    )
    x = torch.ones(50, 2, 1, 1, dtype=torch.float32)
    with torch.no_grad():
        y, _ = model.fill(x)
    assert (y < 1).all()


class Far(Bijection):
    """x ↦ x + 30: its sigmoid rounds to one."""

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.float() + 30, torch.zeros(len(x))

    def inverse(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z - 30, torch.zeros(len(z))


# Randomness, and what is refused


def test_draws_come_from_rng_alone() -> None:
    model = Dequantized(image_nvp((1, 4, 4), 2, width=8), dequantizer((1, 4, 4), 1), 17)
    x = torch.ones(3, 1, 4, 4)
    state = torch.get_rng_state()
    for verb in (lambda r: model.sample(3, rng=r), lambda r: model.bound(x, rng=r)):
        a, b = (verb(torch.Generator().manual_seed(5)) for _ in "ab")
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert (torch.get_rng_state() == state).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: AffineCoupling(torch.ones(3, dtype=torch.bool), nn.Identity()),
            "mask",
        ),
        (
            lambda: AffineCoupling(torch.zeros(3, dtype=torch.bool), nn.Identity()),
            "mask",
        ),
        (lambda: AffineCoupling(torch.tensor([1.0, 0.0]), nn.Identity()), "mask"),
        (
            lambda: AffineCoupling(torch.tensor([True, False]), MLP(1, 2), bound=0.0),
            "bound",
        ),
        (
            lambda: AffineCoupling(torch.tensor([True, False]), MLP(1, 3))(
                torch.ones(2, 2)
            ),
            "net must return",
        ),
        (lambda: coupling("first")(torch.ones(2, 4)), "x must be"),
        (lambda: coupling("first")(torch.ones(5)), "x must be"),
        (lambda: coupling("first").inverse(torch.ones(2, 5).long()), "x must be"),
        (lambda: real_nvp(1), "d ≥ 2"),
        (lambda: real_nvp(2, 0), "layers ≥ 1"),
        (lambda: Squeeze()(torch.ones(2, 1, 3, 4)), "even"),
        (lambda: image_nvp((1, 6, 8)), "shape"),
        (lambda: dequantizer((1, 3, 4)), "shape"),
        (lambda: Dequantized(tiny(2).flow, None, 1), "levels"),
        (lambda: tiny(3).bound(images(3), samples=0), "samples"),
        (lambda: tiny(3).bound(images(4)), "multiples of 1/2"),
        (lambda: tiny(3).bound(2 * images(3)), "multiples of 1/2"),
        (lambda: tiny(3).bound(images(3) * torch.nan), "multiples of 1/2"),
        (lambda: tiny(3).bound(images(3)[:0]), "x must be"),
        (lambda: tiny(3).bound(images(3)[..., 0]), "x must be"),
    ],
)
def test_what_makes_no_sense_is_refused(
    call: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call()
