"""Blocks of networks, and the one place that draws noise."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, nn

from pushforward.nn import (
    MLP,
    Attention,
    ResMLP,
    TimeBlock,
    TimeEmbedding,
    TimeMLP,
    UNet,
    noise_like,
    randn,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_noise_takes_shape_dtype_and_device(dtype: torch.dtype, rng: Generator) -> None:
    x = torch.zeros(3, 1, 4, dtype=dtype)
    z = noise_like(x, rng)
    assert (z.shape, z.dtype, z.device) == (x.shape, x.dtype, x.device)
    assert randn((5, 2), x, rng=rng).shape == (5, 2)
    assert randn((5, 2), x, rng=rng).dtype == dtype


def test_noise_is_a_function_of_the_rng() -> None:
    x, state = torch.zeros(100), torch.get_rng_state()
    a, b = (noise_like(x, Generator().manual_seed(1)) for _ in "ab")
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), state), "the global state was used"


def test_without_rng_the_global_state_draws() -> None:
    x = torch.zeros(100)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        a = noise_like(x)
        torch.manual_seed(3)
        assert torch.equal(a, torch.randn(100))


def test_noise_is_standard_normal(rng: Generator) -> None:
    """By the Kolmogorov–Smirnov distance, whose 99.99 % point is 2.2/√n."""
    n = 50_000
    z = randn((n,), torch.zeros(()), rng=rng).sort().values
    uniform = torch.special.ndtr(z)
    steps = torch.arange(n) / n
    gap = torch.maximum((uniform - steps).abs(), (uniform - steps - 1 / n).abs())
    assert gap.max() < 2.2 / n**0.5


def test_noise_has_no_graph() -> None:
    assert not noise_like(torch.zeros(3, requires_grad=True)).requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_cpu_generator_draws_the_same_noise_for_a_gpu() -> None:
    x = torch.zeros(10)
    a, b = (Generator().manual_seed(0) for _ in "ab")
    z = noise_like(x.cuda(), a)
    assert z.is_cuda
    assert torch.equal(z.cpu(), noise_like(x, b))


def test_mlp_is_the_composition_of_its_layers(rng: Generator) -> None:
    torch.manual_seed(0)
    net = MLP(3, 5, 4, 2, activation=nn.Tanh)
    h = torch.randn(7, 3, generator=rng)
    x = h
    for i in (0, 2, 4):
        layer = net[i]
        assert isinstance(layer, nn.Linear)
        h = h @ layer.weight.T + layer.bias
        h = h.tanh() if i < 4 else h  # no nonlinearity at the end
    torch.testing.assert_close(net(x), h)
    assert len(net) == 5


def test_mlp_of_two_widths_is_affine() -> None:
    assert [type(m) for m in MLP(3, 2)] == [nn.Linear]


@pytest.mark.parametrize("widths", [(), (3,), (3, 0, 2), (-1, 2)])
def test_bad_widths_are_named(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="widths must be at least two positive"):
        MLP(*widths)


def woken(net: UNet) -> UNet:
    """The net with the layers that begin at zero set to something."""
    torch.manual_seed(1)
    for p in net.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return net


def unet(**options: Any) -> UNet:
    torch.manual_seed(0)
    return woken(UNet(1, **{"width": 8, "factors": (1, 2), "heads": 2, **options}))


@pytest.mark.parametrize("side", [8, 28, 32, 7])
@pytest.mark.parametrize("factors", [(1,), (1, 2), (1, 2, 2)])
def test_a_unet_keeps_the_shape(
    side: int, factors: tuple[int, ...], rng: Generator
) -> None:
    net = unet(factors=factors, blocks=1)
    x = torch.randn(2, 1, side, side, generator=rng)
    assert net(x, torch.tensor(0.3)).shape == x.shape


def test_a_unet_is_zero_at_first(rng: Generator) -> None:
    x = torch.randn(2, 3, 8, 8, generator=rng)
    net = UNet(3, width=8, heads=0)
    assert torch.equal(net(x, torch.tensor(0.3)), torch.zeros_like(x))


def test_a_unet_treats_each_row_by_itself_with_its_own_time(rng: Generator) -> None:
    """In every accepted shape of the time, and as the divergences demand."""
    net, x = unet(classes=3), torch.randn(3, 1, 8, 8, generator=rng)
    t, c = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 2, 3])
    rows = torch.cat([net(x[i : i + 1], t[i], c[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(x, t, c), rows)
    torch.testing.assert_close(net(x, t[:, None, None, None], c), rows)
    same = net(x, t[:1].expand(3))
    torch.testing.assert_close(net(x, t[0]), same)
    assert (net(x, t[1]) - same).abs().max() > 1e-3, "the time is not seen"


def test_no_class_is_the_unknown_class(rng: Generator) -> None:
    net, x, t = unet(classes=3), torch.randn(2, 1, 8, 8, generator=rng), torch.rand(2)
    unknown, known = torch.full((2,), 3), torch.tensor([0, 1])
    torch.testing.assert_close(net(x, t), net(x, t, unknown))
    assert (net(x, t, known) - net(x, t)).abs().max() > 1e-3


def test_every_weight_of_a_unet_is_used(rng: Generator) -> None:
    net, x = unet(classes=2), torch.randn(4, 1, 12, 12, generator=rng)
    loss = net(x, torch.rand(4), torch.tensor([0, 1, 2, 2])).square().sum()
    for p, g in zip(net.parameters(), torch.autograd.grad(loss, [*net.parameters()]),
                    strict=True):  # fmt: skip
        assert g.abs().sum() > 0, tuple(p.shape)


def test_far_pixels_are_seen_by_attention_alone(rng: Generator) -> None:
    """In a net of one size, whose convolutions reach six pixels and no further."""
    x = torch.randn(1, 1, 16, 16, generator=rng)
    y = x.clone()
    y[..., -1, -1] += 1.0
    for heads, seen in ((2, True), (0, False)):
        net = unet(factors=(1,), blocks=1, heads=heads).eval()
        for m in net.modules():  # a mean over all pixels would see them too
            if isinstance(m, nn.GroupNorm):
                m.forward = lambda h: h  # type: ignore[method-assign]
        t = torch.tensor(0.5)
        assert bool((net(x, t) - net(y, t))[..., 0, 0].any()) == seen


def test_attention_is_that_of_torch(rng: Generator) -> None:
    layer = Attention(16, 4)
    nn.init.normal_(layer.write.weight)
    x = torch.randn(2, 16, 3, 5, generator=rng)
    parts = layer.read(layer.norm(x)).reshape(2, 3, 4, 4, 15).mT.unbind(1)
    looked = nn.functional.scaled_dot_product_attention(*parts)
    exact = x + layer.write(looked.mT.reshape(2, 16, 3, 5))
    torch.testing.assert_close(layer(x), exact)


def test_the_time_embedding_tells_near_times_apart() -> None:
    """Also in half precision, where the angles themselves would be too coarse."""
    torch.manual_seed(0)
    net = TimeEmbedding(32)
    net.net = nn.Linear(32, 32)  # type: ignore[assignment]
    nn.init.eye_(net.net.weight)
    nn.init.zeros_(net.net.bias)
    net.bfloat16()
    t = torch.tensor([0.9, 0.901])
    waves = net(t)
    angle = t[:, None].double() * 1000 ** torch.linspace(0, 1, 16)
    exact = torch.cat([angle.cos(), angle.sin()], 1)
    assert (waves.double() - exact).abs().max() < 0.01
    assert (waves[0] - waves[1]).abs().max() > 0.5


def test_a_unet_runs_in_half_precision_and_channels_last(rng: Generator) -> None:
    net = unet(classes=2).float()
    x = torch.randn(4, 1, 16, 16, generator=rng, dtype=torch.float32)
    t, c = torch.rand(4, dtype=torch.float32), torch.tensor([0, 1, 2, 0])
    exact = net(x, t, c)
    scale = exact.std()
    with torch.autocast("cpu", torch.bfloat16):
        assert (net(x, t, c) - exact).abs().max() < 0.1 * scale
    last = net.to(memory_format=torch.channels_last)
    found = last(x.to(memory_format=torch.channels_last), t, c)
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-4)
    half = net.bfloat16()(x.bfloat16(), t, c)
    assert half.dtype == torch.bfloat16
    assert (half - exact).abs().max() < 0.1 * scale


def test_a_unet_can_be_differentiated_twice(rng: Generator) -> None:
    net = unet(blocks=1)
    x = torch.randn(1, 1, 4, 4, generator=rng, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: net(y, torch.tensor(0.4)), x)
    (g,) = torch.autograd.grad(net(x, torch.tensor(0.4)).sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.square().sum(), x)
    assert h.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [({"width": 12}, "width must be a multiple of 8"),
     ({"width": 16, "heads": 3}, "multiple of 8 and heads"),
     ({"factors": ()}, "factors, blocks must be ≥ 1"),
     ({"blocks": 0}, "blocks must be ≥ 1")],
)  # fmt: skip
def test_bad_sizes_of_a_unet_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        UNet(1, **options)


def test_bad_calls_of_a_unet_are_named() -> None:
    net, x = UNet(1, width=8, heads=0), torch.zeros(3, 1, 8, 8)
    with pytest.raises(ValueError, match=r"x must be \(n, c, h, w\) and t"):
        net(x, torch.zeros(2))
    with pytest.raises(ValueError, match=r"x must be \(n, c, h, w\) and t"):
        net(x[0], torch.zeros(()))
    with pytest.raises(ValueError, match="c must be None"):
        net(x, torch.zeros(()), torch.zeros(3, dtype=torch.long))
    labelled = UNet(1, width=8, heads=0, classes=2)
    with pytest.raises(ValueError, match=r"c must have shape \(3,\), got \(2,\)"):
        labelled(x, torch.zeros(()), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="width must be even"):
        TimeEmbedding(3)


def test_a_time_mlp_is_a_perceptron_of_point_and_angles(rng: Generator) -> None:
    """One time for all points, or one for each; by hand, with numpy's cosines."""
    torch.manual_seed(0)
    v, x = (
        TimeMLP(3, 5, frequencies=2, activation=nn.Tanh),
        torch.randn(4, 3, generator=rng),
    )
    t = torch.rand(4, 1, generator=rng)
    angle = np.pi * t.numpy() * np.array([1, 2])
    row = np.concatenate([x.numpy(), np.cos(angle), np.sin(angle)], 1)
    first, _, last = v.net
    hidden = torch.tanh(torch.from_numpy(row) @ first.weight.mT + first.bias)
    torch.testing.assert_close(v(x, t), hidden @ last.weight.mT + last.bias)
    together = torch.cat([v(x[i : i + 1], t[i, 0]) for i in range(4)])
    torch.testing.assert_close(v(x, t), together)


def test_a_time_mlp_refuses_what_makes_no_field() -> None:
    for sizes in ((0, 4), (2, 0)):
        with pytest.raises(ValueError, match="must be"):
            TimeMLP(*sizes)
    with pytest.raises(ValueError, match="frequencies must be"):
        TimeMLP(2, 4, frequencies=0)
    with pytest.raises(ValueError, match=r"t must be \(\) or \(3, 1\), got \(3,\)"):
        TimeMLP(2, 4)(torch.zeros(3, 2), torch.zeros(3))


def test_a_time_block_scales_and_shifts_its_second_normalisation(
    rng: Generator,
) -> None:
    """Scale 0 and shift 0 leave it as it is; so h ↦ (1 + scale) h + shift."""
    torch.manual_seed(0)
    block = TimeBlock(8, 16, 4)
    last, linear = block.leave[2], block.modulate[1]
    assert isinstance(last, nn.Conv2d)
    assert isinstance(linear, nn.Linear)
    nn.init.normal_(last.weight, std=0.1)
    x = torch.randn(2, 8, 5, 5, generator=rng)
    h = block.norm(block.enter(x))
    e = torch.zeros(2, 4)
    nn.init.zeros_(linear.bias)
    plain = block.skip(x) + last(nn.functional.silu(h))
    torch.testing.assert_close(block(x, e), plain)
    with torch.no_grad():
        linear.bias[:16], linear.bias[16:] = 0.5, -0.25
    moved = block.skip(x) + last(nn.functional.silu(1.5 * h - 0.25))
    torch.testing.assert_close(block(x, e), moved)


def test_a_residual_perceptron_by_hand(rng: Generator) -> None:
    """Enter, add the time, add each block, leave; whatever the shape of a datum."""
    torch.manual_seed(0)
    net = ResMLP(6, 8, 2)
    x, t = torch.randn(4, 1, 2, 3, generator=rng), torch.randn(4, generator=rng)
    assert net(x, t).equal(torch.zeros_like(x)), "it is silent at first"
    nn.init.normal_(net.leave.weight)
    h = x.flatten(1) @ net.enter.weight.mT + net.enter.bias + net.time(t)
    for block in net.blocks:
        _, (a, _, b) = block
        inner = nn.functional.silu(nn.functional.silu(h) @ a.weight.mT + a.bias)
        h = h + inner @ b.weight.mT + b.bias
    expected = (h @ net.leave.weight.mT + net.leave.bias).view_as(x)
    torch.testing.assert_close(net(x, t), expected)
    torch.testing.assert_close(net(x, t.view(4, 1, 1, 1)), expected)
    each = torch.cat([net(x[i : i + 1], t[i]) for i in range(4)])
    torch.testing.assert_close(each, expected)


def test_a_residual_perceptron_tells_noise_levels_apart() -> None:
    """The logarithms of levels from .002 to 80, a quarter of them: no period."""
    torch.manual_seed(0)
    t = torch.linspace(0.002, 80, 2001).log() / 4
    e = ResMLP(2, 32).time
    angle = t[:, None] * e.top ** torch.linspace(0, 1, 16)
    waves = torch.cat([angle.cos(), angle.sin()], 1)
    far = (t[:, None] - t).abs() > 0.5
    assert torch.cdist(waves, waves)[far].min() > 0.5


def test_a_residual_perceptron_knows_classes(rng: Generator) -> None:
    torch.manual_seed(0)
    net, x, t = (
        ResMLP(2, 8, 1, classes=3),
        torch.randn(5, 2, generator=rng),
        torch.zeros(()),
    )
    nn.init.normal_(net.leave.weight)
    c = torch.tensor([0, 1, 2, 3, 3])
    out = net(x, t, c)
    assert out[3:].equal(net(x, t)[3:]), "the last class is the unknown one"
    assert not out[:3].isclose(net(x, t)[:3]).any()


def test_a_residual_perceptron_refuses_what_makes_no_field() -> None:
    with pytest.raises(ValueError, match="d, blocks must be"):
        ResMLP(0)
    with pytest.raises(ValueError, match="width must be even"):
        ResMLP(2, 5)
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"t must be \(\) or \(3,\), got \(2,\)"):
        ResMLP(2, 8)(x, torch.zeros(2))
    with pytest.raises(ValueError, match="c must be None"):
        ResMLP(2, 8)(x, torch.zeros(()), torch.zeros(3, dtype=torch.long))
