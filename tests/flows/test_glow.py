"""book/flows/glow.md, equation by equation, against Jacobians and quadrature."""

import copy
import itertools
import math
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import Normal
from torch.func import jacrev

from pushforward.data import stream
from pushforward.distributions import Gaussian, StandardNormal, line_mixture
from pushforward.flows import (
    ActNorm,
    Affine,
    AffineCoupling,
    Bijection,
    Chain,
    Dequantized,
    Flow,
    InvertibleConv,
    Permute,
    SigmoidCoupling,
    conv_net,
    glow,
    initialize,
    interpolate,
    residual_net,
    temper,
)
from pushforward.flows.glow import split_prior
from pushforward.metrics import two_sample
from pushforward.nn import randn
from pushforward.train import Average, cosine, train

MIXINGS = ["conv", "shuffle", "reverse"]
HALF = torch.arange(6) < 3


def shaken(model: torch.nn.Module, rng: Generator, size: float = 0.1) -> None:
    """Move all weights at random, so that none is zero."""
    with torch.no_grad():
        for p in model.parameters():
            p += size * randn(tuple(p.shape), p, rng=rng)


def random_glow(
    shape: tuple[int, int, int], rng: Generator, *, size: float = 0.1, **options: object
) -> Flow:
    """A glow that has seen a batch, and has random weights."""
    torch.manual_seed(0)  # the weights
    flow = glow(shape, **{"channels": 8, "steps": 2, **options})
    initialize(flow, torch.randn(64, *shape, generator=rng))
    shaken(flow, rng, size)
    return flow.eval()


def jacobian(f: Bijection, x: Tensor) -> Tensor:
    """Return log |det ∂f/∂x| at one image x, by automatic differentiation."""
    J = jacrev(lambda y: f(y[None])[0].flatten())(x)
    return torch.linalg.slogdet(J.reshape(x.numel(), x.numel())).logabsdet


# Actnorm


def test_actnorm_starts_from_its_first_batch(rng: Generator) -> None:
    """(eq:glow-actnorm-init): mean 0 and variance 1 in each channel, on that batch."""
    x = 3 + torch.tensor([0.1, 1.0, 50.0])[:, None, None] * torch.randn(
        20, 3, 4, 5, generator=rng
    )
    norm = ActNorm(3)
    z, _ = norm(x)
    rows = z.transpose(0, 1).flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(3), rtol=0, atol=1e-12)
    torch.testing.assert_close(rows.var(1, correction=0), torch.ones(3))
    torch.testing.assert_close(norm(x + 7)[0], z + 7 * norm.log_s.exp()[:, None, None])


def test_actnorm_of_points_is_actnorm_of_images_of_one_pixel(rng: Generator) -> None:
    x = 2 + torch.randn(30, 4, generator=rng)
    one, two = ActNorm(4), ActNorm(4)
    torch.testing.assert_close(one(x)[0], two(x[..., None, None])[0][..., 0, 0])


@pytest.mark.parametrize("make", ["actnorm", "conv", "coupling", "split", "permute"])
def test_a_log_determinant_is_that_of_the_jacobian(make: str, rng: Generator) -> None:
    """(eq:glow-actnorm-logdet), (eq:glow-conv-logdet), (eq:glow-coupling)."""
    torch.manual_seed(0)
    f: Bijection = {
        "actnorm": lambda: ActNorm(6),
        "conv": lambda: InvertibleConv(6),
        "coupling": lambda: SigmoidCoupling(HALF, conv_net(3, 6, 8)),
        "split": lambda: split_prior(HALF),
        "permute": lambda: Permute(torch.randperm(6)),
    }[make]()
    x = torch.randn(9, 6, 3, 4, generator=rng)
    f(x)
    shaken(f, rng, 0.4)
    z, log_det = f(x)
    back, log_det_back = f.inverse(z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_det_back, -log_det)
    for i in (0, 5):
        torch.testing.assert_close(log_det[i], jacobian(f, x[i]), rtol=0, atol=1e-10)
    if make not in ("permute",):
        assert log_det.abs().min() > 0.1


def test_actnorm_starts_once(rng: Generator) -> None:
    """Neither a second batch, nor evaluation, nor loaded weights start it again."""
    x = 5 + torch.randn(40, 3, 2, 2, generator=rng)
    norm = ActNorm(3)
    norm(x)
    z, _ = norm(3 * x)
    assert (z.mean() - 0).abs() > 1
    other = ActNorm(3)
    other.load_state_dict(norm.state_dict())
    torch.testing.assert_close(other(3 * x)[0], z, rtol=0, atol=0)
    twin = copy.deepcopy(norm)
    torch.testing.assert_close(twin(3 * x)[0], z, rtol=0, atol=0)


def test_weights_from_before_the_first_batch_wait_for_one(rng: Generator) -> None:
    x = 5 + torch.randn(40, 3, 2, 2, generator=rng)
    norm, empty = ActNorm(3), ActNorm(3).state_dict()
    norm(x)
    norm.load_state_dict(empty)
    torch.testing.assert_close(
        norm(3 * x)[0].mean(), torch.zeros(()), atol=1e-12, rtol=0
    )


def test_an_actnorm_without_a_batch_is_the_identity(rng: Generator) -> None:
    """Sampled or judged before it is trained, it waits for its batch."""
    x = 5 + torch.randn(40, 3, 2, 2, generator=rng)
    norm = ActNorm(3)
    for z, log_det in (norm.inverse(x), norm.eval()(x)):
        torch.testing.assert_close(z, x, rtol=0, atol=0)
        assert not log_det.any()
    assert norm.train()(x)[0].mean().abs() < 1e-12
    flow = glow((1, 4, 4), steps=1, channels=4)
    z = flow.base.sample(2, rng=torch.Generator().manual_seed(1))
    y = flow.sample(2, rng=torch.Generator().manual_seed(1))
    assert y.shape == z.shape
    assert flow.f.maps[1].seen == 0


def test_a_resumed_run_ends_in_the_weights_of_the_whole_one(
    rng: Generator, tmp_path: pytest.TempPathFactory
) -> None:
    """Killed after the first steps, with an average of the weights, bit for bit."""
    x = torch.rand(50, 1, 4, 4, generator=rng)
    ends = []
    for stop in (6, 2):
        torch.manual_seed(0)
        flow = glow((1, 4, 4), levels=1, steps=2, channels=4)
        for steps in dict.fromkeys((stop, 6)):
            torch.manual_seed(0)
            fresh = glow((1, 4, 4), levels=1, steps=2, channels=4)
            flow, ema = fresh, Average(fresh, 0.9)
            source = torch.Generator().manual_seed(1)
            batches = stream(x, 10, rng=source)
            file = tmp_path / f"{stop}.pt"  # type: ignore[operator]
            for _ in train(flow, batches, steps=steps, rng=source, ema=ema,
                           checkpoint=file, every=1, resume=True):  # fmt: skip
                pass
        average = {f"average.{k}": v for k, v in ema.model.state_dict().items()}
        ends.append({**flow.state_dict(), **average})
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


def test_an_average_from_before_the_first_batch_is_of_what_came_after(
    rng: Generator,
) -> None:
    """log s and b of the average are Σ (1 − β) β^(K−k) w_k / (1 − β^K)."""
    x = 3 + 2 * torch.rand(60, 1, 2, 2, generator=rng)
    flow = glow((1, 2, 2), levels=1, steps=1, channels=4)
    ema = Average(flow, 0.9)
    steps = train(flow, stream(x, 20, rng=rng), steps=5, lr=0.1, rng=rng, ema=ema)
    seen = [flow.f.maps[1].b.detach().clone() for _ in steps]
    weights = 0.1 * 0.9 ** torch.arange(4.0, -1, -1)
    mean = (weights[:, None] * torch.stack(seen)).sum(0) / weights.sum()
    norm, zero = ema.model.f.maps[1], torch.zeros(1, 4, 1, 1)
    torch.testing.assert_close(norm.inverse(zero)[0].flatten(), -mean)


def test_a_batch_that_is_constant_in_a_channel_is_refused(rng: Generator) -> None:
    x = torch.randn(7, 3, 2, 2, generator=rng)
    x[:, 1] = 0.25
    with pytest.raises(ValueError, match="channel 1 has deviation 0"):
        ActNorm(3)(x)
    with pytest.raises(ValueError, match=r"shape \(n, 3, …\), got \(7, 2, 2, 2\)"):
        ActNorm(3)(x[:, :2])
    with pytest.raises(ValueError, match="vary in every channel"):
        ActNorm(3)(torch.zeros(1, 3))


# The convolution


def test_the_convolution_starts_as_a_rotation() -> None:
    W = InvertibleConv(12).weight()
    torch.testing.assert_close(W @ W.mT, torch.eye(12))
    x = torch.randn(2, 12, 3, 3)
    torch.testing.assert_close(InvertibleConv(12)(x)[0].norm(), x.norm())


def test_the_convolution_is_a_matrix_at_every_pixel(rng: Generator) -> None:
    """(eq:glow-conv), and (eq:glow-plu) after the factors have moved."""
    conv = InvertibleConv(5)
    shaken(conv, rng, 0.3)
    x = torch.randn(3, 5, 4, 2, generator=rng)
    W = conv.weight()
    torch.testing.assert_close(conv(x)[0], torch.einsum("ij,njhw->nihw", W, x))
    L, U = conv.factors()
    P = torch.eye(5)[conv.order]
    torch.testing.assert_close(W, P @ L @ U)
    assert torch.equal(L, L.tril())
    assert torch.equal(U, U.triu())
    torch.testing.assert_close(torch.linalg.slogdet(W).logabsdet, conv.log_s.sum())


def test_the_signs_of_the_factors_are_fixed(rng: Generator) -> None:
    conv = InvertibleConv(4)
    before = torch.linalg.slogdet(conv.weight()).sign
    shaken(conv, rng, 3.0)
    assert torch.linalg.slogdet(conv.weight()).sign == before


def test_bad_channels_are_named(rng: Generator) -> None:
    x = torch.randn(2, 5, 4, 2, generator=rng)
    with pytest.raises(ValueError, match=r"x must have shape \(n, 4, h, w\)"):
        InvertibleConv(4)(x)
    with pytest.raises(ValueError, match=r"h, w\), got \(2, 5\)"):
        InvertibleConv(5)(x[..., 0, 0])
    with pytest.raises(ValueError, match="permutation of 0, 1"):
        Permute(torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="floor must lie"):
        SigmoidCoupling(HALF, conv_net(3, 6, 4), floor=1.0)


# The coupling


def test_the_scale_lies_between_the_floor_and_one() -> None:
    """(eq:glow-coupling), where the sigmoid is saturated on either side."""
    coupling = SigmoidCoupling(HALF, conv_net(3, 6, 4), floor=0.05)
    h = torch.tensor([-1e4, -2.0, 0.0, 1e4])[None, :, None, None]
    s, t = coupling.scale_shift(torch.cat([h, h], 1))
    exact = 0.05 + 0.95 * Tensor([0.0, 0.5, 1 / (1 + math.exp(-2)), 1.0]).double()
    torch.testing.assert_close(s[0, :, 0, 0], exact, rtol=1e-7, atol=0)
    assert torch.equal(t, h)
    x = torch.ones(1, 4, 1, 1)
    z, log_det = coupling.move(x, torch.cat([h, h], 1))
    torch.testing.assert_close(z, s * (x + t))
    torch.testing.assert_close(log_det[0], s.log().sum())


def test_the_slope_of_the_log_determinant_is_bounded() -> None:
    """With δ = 0, ∂ log s/∂h = 1 − s lies in (0, 1)."""
    coupling = SigmoidCoupling(HALF, conv_net(3, 6, 4), floor=0.0)
    h = torch.linspace(-9, 9, 19)[None, :, None, None]
    slope = torch.func.grad(
        lambda a: coupling.move(torch.zeros_like(h), torch.cat([a, h], 1))[1].sum()
    )(h)
    s, _ = coupling.scale_shift(torch.cat([h, h], 1))
    torch.testing.assert_close(slope, 1 - s)


# The whole map


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8)])
def test_the_log_determinant_of_a_glow(
    shape: tuple[int, int, int], mixing: str, rng: Generator
) -> None:
    flow = random_glow(shape, rng, mixing=mixing, levels=3)
    x = torch.randn(2, *shape, generator=rng)
    _, log_det = flow.f(x)
    assert (log_det[0] - log_det[1]).abs() > 1e-3
    torch.testing.assert_close(log_det[0], jacobian(flow.f, x[0]), rtol=0, atol=1e-8)


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("size", [1e-3, 1.0, 10.0, 1e3])
def test_the_inverse_undoes_a_glow(mixing: str, size: float, rng: Generator) -> None:
    """To 1e-10 of the input in double precision, and to 1e-4 in single.

    Ten deviations away every scale may be at its floor, which costs single precision
    a digit; a thousand deviations away it is not asked.
    """
    flow = random_glow((3, 8, 8), rng, mixing=mixing)
    x = size * torch.randn(5, 3, 8, 8, generator=rng)
    z, log_det = flow.f(x)
    back, log_det_back = flow.f.inverse(z)
    scale = max(size, 1.0)
    assert (back - x).abs().max() < 1e-10 * scale
    torch.testing.assert_close(log_det_back, -log_det)
    if size <= 10:
        single = copy.deepcopy(flow).float()
        back = single.f.inverse(single.f(x.float())[0])[0]
        assert (back - x.float()).abs().max() < 1e-4 * scale**2


def test_the_inverse_survives_training(rng: Generator) -> None:
    torch.manual_seed(0)
    flow = glow((1, 8, 8), steps=2, channels=8)
    y = torch.rand(200, 1, 8, 8, generator=rng) ** 3
    for _ in train(flow, stream(y, 50, rng=rng), steps=40, lr=1e-2, rng=rng, clip=10.0):
        pass
    flow.eval()
    assert (flow.f.inverse(flow.f(y)[0])[0] - y).abs().max() < 1e-10
    single = copy.deepcopy(flow).float()
    z, _ = single.f(y.float())
    assert (single.f.inverse(z)[0] - y.float()).abs().max() < 1e-4


def test_saturated_scales_cost_no_more_than_the_floor_allows(rng: Generator) -> None:
    """Every scale at δ: the inverse stretches by δ^−2 in two steps of one level."""
    flow = random_glow((1, 8, 8), rng, levels=1, size=0.0)
    for m in flow.modules():
        if isinstance(m, SigmoidCoupling):
            m.net[-1].bias.data[:2] = -1e3
    x = torch.randn(5, 1, 8, 8, generator=rng)
    z, log_det = flow.f(x)
    assert log_det.max() < -100
    assert (flow.f.inverse(z)[0] - x).abs().max() < 1e-10
    single = copy.deepcopy(flow).float()
    back = single.f.inverse(single.f(x.float())[0])[0]
    assert (back - x.float()).abs().max() < 1e-4


def small_glow(rng: Generator) -> Flow:
    """A nonlinear flow of images with 2 × 2 pixels: a law on R⁴."""
    flow = random_glow((1, 2, 2), rng, levels=1, steps=3, channels=4, size=0.0)
    for m in flow.modules():
        if isinstance(m, SigmoidCoupling):
            shaken(m, rng, 0.65)
    return flow


class Quadrature(NamedTuple):
    """Points of R⁴ that suit a law, and the volume of their cells."""

    x: Tensor
    cell: float

    def probabilities(self, flow: Flow) -> Tensor:
        """Return p(x) times the volume of a cell, at each point."""
        parts = self.x.split(2**16)
        with torch.no_grad():
            log_p = [flow.log_prob(y.view(-1, 1, 2, 2)) for y in parts]
        return torch.cat(log_p).exp() * self.cell


def quadrature(flow: Flow, rng: Generator, side: int = 23) -> Quadrature:
    """Return a grid in the principal axes of a sample, to 8 deviations."""
    y = flow.sample(5000, rng=rng).flatten(1)
    chol = torch.linalg.cholesky(torch.cov(y.mT))
    line = torch.linspace(-8, 8, side)
    grid = torch.cartesian_prod(line, line, line, line)
    cell = float(line[1] - line[0]) ** 4 * chol.diagonal().prod()
    return Quadrature(y.mean(0) + grid @ chol.mT, float(cell))


def test_a_glow_has_mass_one_and_its_samples_have_its_law(rng: Generator) -> None:
    """By quadrature on R⁴, and by the means of bounded functions."""
    flow = small_glow(rng)
    rule = quadrature(flow, rng)
    p = rule.probabilities(flow)
    assert p.sum().item() == pytest.approx(1.0, abs=1e-3)
    n, y = 40_000, flow.sample(40_000, rng=rng).flatten(1)
    mean, cov = p @ rule.x, torch.cov(rule.x.mT, aweights=p)
    gauss = Gaussian(mean, cov).sample(n, rng=rng)
    far = []
    for w in randn((12, 4), mean, rng=rng):
        drawn, exact = (y @ w + 1).cos(), p @ (rule.x @ w + 1).cos()
        se = drawn.std() / n**0.5
        assert (drawn.mean() - exact).abs() < 4 * se + 1e-3
        far.append((((gauss @ w + 1).cos().mean() - exact) / se).abs().item())
    assert max(far) > 10  # a Gaussian with these moments is found out


def test_a_glow_passes_a_two_sample_test_with_its_own_density(rng: Generator) -> None:
    """Its draws against points of a grid, drawn by their density and blurred."""
    flow, n = small_glow(rng), 400
    rule = quadrature(flow, rng)
    drawn = rule.x[torch.multinomial(rule.probabilities(flow), n, generator=rng)]
    ours = flow.sample(n, rng=rng).flatten(1)
    assert two_sample(ours, drawn, permutations=99, rng=rng).p > 0.02
    assert two_sample(1.3 * ours, drawn, permutations=99, rng=rng).p < 0.02


def test_the_density_factorises_over_the_levels(rng: Generator) -> None:
    """(eq:glow-multiscale), (eq:glow-split): the split is a Gaussian given the rest."""
    flow = random_glow((1, 4, 4), rng, levels=2, steps=1, size=0.3)
    x = torch.randn(6, 1, 4, 4, generator=rng)
    squeeze, norm, conv, coupling, split, first, _ = flow.f.maps
    h, log_det = Chain([squeeze, norm, conv, coupling])(x)
    a, b = h.chunk(2, 1)
    raw, t = split.net(a).chunk(2, 1)
    s = split.bound * raw.tanh()
    law = Normal(-t * (-s).exp(), (-s).exp())
    ends = law.log_prob(b).flatten(1).sum(1)
    deeper = Flow(first.f, StandardNormal(2, 2, 2)).log_prob(a)
    torch.testing.assert_close(flow.log_prob(x), log_det + ends + deeper)
    assert isinstance(split, AffineCoupling)


def test_a_network_answers_in_the_precision_of_the_question(rng: Generator) -> None:
    """In an autocast the flow keeps its digits; only its networks lose some."""
    flow = random_glow((1, 8, 8), rng).float()
    x = torch.randn(4, 1, 8, 8, generator=rng).float()
    exact, log_det = flow.f(x)
    with torch.autocast("cpu", torch.bfloat16):
        z, rough = flow.f(x)
        answer = flow.f.maps[3].net(x.view(4, 4, 4, 4)[:, :2])
        plain = InvertibleConv(4).float()
        torch.testing.assert_close(plain(x.view(4, 4, 4, 4))[0].norm(), x.norm())
    assert answer.dtype == z.dtype == rough.dtype == torch.float32
    assert 0 < (z - exact).abs().max() < 0.1
    assert (rough - log_det).abs().max() < 0.5


@pytest.mark.parametrize("net", [conv_net, partial(residual_net, blocks=1)])
def test_a_network_starts_at_zero(net: object, rng: Generator) -> None:
    out = net(3, 10, 8)(torch.randn(2, 3, 4, 4, generator=rng))  # type: ignore[operator]
    assert out.shape == (2, 10, 4, 4)
    assert not out.any()


def test_a_glow_learns_a_gaussian(rng: Generator) -> None:
    """Its loss comes down to the entropy of a correlated law on 2 × 2 images."""
    A = torch.randn(4, 4, generator=rng)
    law = Gaussian(torch.ones(4), A @ A.mT + 0.1 * torch.eye(4))
    torch.manual_seed(0)
    flow = glow((1, 2, 2), levels=1, steps=3, channels=8)
    draws = stream(law, 200, rng=rng).map(lambda x: x.view(-1, 1, 2, 2))
    for _ in train(flow, draws, steps=200, lr=2e-2, rng=rng, schedule=cosine(200)):
        pass
    x = law.sample(4000, rng=rng)
    with torch.no_grad():
        gap = law.log_prob(x) - flow.eval().log_prob(x.view(-1, 1, 2, 2))
    assert -4 * gap.std() / 4000**0.5 < gap.mean() < 0.1


BAD = {
    "sides that are odd": {"shape": (1, 6, 8), "levels": 2},
    "no level": {"levels": 0},
    "no step": {"steps": 0},
    "no channel": {"shape": (0, 8, 8)},
    "another mixing": {"mixing": "stir"},
}


@pytest.mark.parametrize("options", BAD.values(), ids=BAD)
def test_a_bad_glow_is_refused(options: dict) -> None:
    options = {"shape": (1, 8, 8), **options}
    shape = options.pop("shape")
    with pytest.raises(ValueError, match="must"):
        glow(shape, **options)


def test_initialize_gives_the_mode_back(rng: Generator) -> None:
    model = Dequantized(glow((1, 4, 4), steps=1, channels=4), None, 2).eval()
    x = (torch.rand(30, 1, 4, 4, generator=rng) < 0.5).double()
    initialize(model, x, rng=rng)
    assert not model.training
    assert not any(m.training for m in model.modules())
    assert model.sample(3, rng=rng).shape == (3, 1, 4, 4)
    before = model.flow.f.maps[1].b.clone()
    initialize(model, 1 - x, rng=rng)
    assert torch.equal(model.flow.f.maps[1].b, before)


# Temperature and interpolation


def test_a_tempered_linear_flow_has_the_tempered_density(rng: Generator) -> None:
    """(eq:glow-temper): p_T ∝ p^(1/T²) where the determinant is constant."""
    f = Chain([Affine(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]))])
    flow, T = Flow(f, StandardNormal(2)), 0.6
    cool = temper(flow, T)
    x = torch.randn(50, 2, generator=rng)
    gap = cool.log_prob(x) - flow.log_prob(x) / T**2
    torch.testing.assert_close(gap, gap[:1].expand(50))
    y = cool.sample(50_000, rng=rng)
    exact = T * torch.tensor([0.5, 3.0])
    assert ((y.std(0) - exact).abs() < 4 * exact / 1e5**0.5).all()


def test_a_tempered_nonlinear_flow_has_not(rng: Generator) -> None:
    flow, T = small_glow(rng), 0.6
    x = flow.sample(50, rng=rng)
    cool = temper(flow, T)
    assert (cool.log_prob(x) - flow.log_prob(x) / T**2).std() > 0.1
    rule = quadrature(cool, rng)
    assert rule.probabilities(cool).sum().item() == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(ValueError, match="temperature must be positive"):
        temper(flow, 0.0)


def test_a_path_is_an_arc_of_noise(rng: Generator) -> None:
    """(eq:glow-arc) and (eq:glow-line), in the noise of the path."""
    flow = random_glow((1, 4, 4), rng)
    x, y = flow.sample(3, rng=rng), flow.sample(3, rng=rng)
    start, end = flow.f(x)[0], flow.f(y)[0]
    for straight, middle in ((False, 0.5**0.5), (True, 0.5)):
        path = interpolate(flow, x, y, 5, straight=straight)
        assert path.shape == (5, 3, 1, 4, 4)
        torch.testing.assert_close(path[0], x)
        torch.testing.assert_close(path[-1], y)
        torch.testing.assert_close(flow.f(path[2])[0], middle * (start + end))
    with pytest.raises(ValueError, match="one shape and n ≥ 2"):
        interpolate(flow, x, y[:2], 5)
    with pytest.raises(ValueError, match="one shape and n ≥ 2"):
        interpolate(flow, x, y, 1)


def test_the_counterexample_of_the_page() -> None:
    """The flow of a symmetric mixture sends cold noise to the valley between modes."""
    law = line_mixture((-2.0, 2.0), 0.5)
    x = torch.linspace(-6, 6, 4001)[:, None]
    p = law.log_prob(x).exp()
    u = torch.cumulative_trapezoid(p, x[:, 0])
    z = torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12))
    centre = x[1:][z.abs().argmin()]
    assert centre.abs() < 2e-3
    assert law.log_prob(centre[None])[0] < law.log_prob(torch.tensor([[2.0]]))[0] - 5


def test_all_pairs_of_mixings_differ(rng: Generator) -> None:
    flows = [random_glow((1, 4, 4), rng, mixing=m, size=0.0) for m in MIXINGS]
    x = torch.randn(3, 1, 4, 4, generator=rng)
    for f, g in itertools.combinations(flows, 2):
        assert not torch.allclose(f.f(x)[0], g.f(x)[0])
