"""book/gans/stylegan.md, against direct sums, explicit Jacobians and closed forms."""

import math

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, interpolate, pad

from pushforward.data import stream
from pushforward.distributions import StandardNormal
from pushforward.gans import (
    GAN,
    NON_SATURATING,
    SATURATING,
    EqualConv,
    EqualLinear,
    Mapping,
    ModulatedConv,
    ResidualDiscriminator,
    StyleGAN,
    StyleGenerator,
    Synthesis,
    activate,
    dirac_path,
    downsample,
    grouped_conv,
    minibatch_std,
    mix,
    modulated_conv,
    path_lengths,
    perceptual_path_length,
    project,
    r1_penalty,
    truncate,
    upsample,
)
from pushforward.train import Average, train


def machine(**options: object) -> StyleGAN:
    """Images of 8 × 8 pixels, three layers."""
    synthesis = Synthesis(6, (5, 4), start=4)
    made = StyleGenerator(Mapping(3, 6, 2), synthesis)
    return StyleGAN(made, ResidualDiscriminator((4, 5), start=4), **options)


def awake(model: StyleGAN) -> StyleGAN:
    """With noise, biases and styles that are not at their neutral start."""
    rng = Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.generator.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=rng))
    return model


# Changes of size


def test_upsampling_is_bilinear_interpolation(rng: Generator) -> None:
    """(eq:style-growing), border included, on a rectangle."""
    x = torch.randn(2, 3, 5, 7, generator=rng)
    torch.testing.assert_close(upsample(x), interpolate(x, scale_factor=2,
                               mode="bilinear"))  # fmt: skip


def test_downsampling_is_a_convolution_with_stride(rng: Generator) -> None:
    """(eq:style-taps) against conv2d on the image with its border repeated."""
    x = torch.randn(2, 1, 6, 8, generator=rng)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    around = pad(x, (1, 1, 1, 1), mode="replicate")
    want = conv2d(around, torch.outer(taps, taps)[None, None], stride=2)
    torch.testing.assert_close(downsample(x), want)


def test_upsampling_is_zeros_and_the_filter_inside(rng: Generator) -> None:
    x = torch.randn(1, 1, 6, 6, generator=rng)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    want = conv_transpose2d(x, torch.outer(taps, taps)[None, None], stride=2, padding=1)
    inside = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(upsample(x)[inside], want[inside])


def test_constants_and_slopes_survive() -> None:
    one = torch.ones(1, 2, 4, 6)
    torch.testing.assert_close(upsample(one), torch.ones(1, 2, 8, 12))
    torch.testing.assert_close(downsample(one), torch.ones(1, 2, 2, 3))
    slope = torch.arange(8.0).expand(1, 1, 8, 8)
    torch.testing.assert_close(
        downsample(slope)[0, 0, 0, 1:-1], torch.tensor([2.5, 4.5])
    )


def test_the_response_is_a_cubed_cosine() -> None:
    """A wave of frequency ω comes out with amplitude cos³(ω/2)."""
    i = torch.arange(64.0)
    for m in (3, 11, 20, 27):
        omega = 2 * math.pi * m / 64
        wave = torch.cos(omega * i).expand(1, 1, 4, 64)
        out = downsample(wave)[0, 0, 0]
        centre = 2 * torch.arange(32.0) + 0.5  # of the four taps
        want = math.cos(omega / 2) ** 3 * torch.cos(omega * centre)
        torch.testing.assert_close(out[1:-1], want[1:-1])


# Equal rates


def test_equal_layers_are_scaled_plain_layers(rng: Generator) -> None:
    """(eq:style-equal): the weight in use is v/√fan-in, with variance 1/fan-in."""
    torch.manual_seed(0)
    dense, conv = EqualLinear(400, 300, bias=0.7, rate=0.1), EqualConv(40, 50, 3)
    x, y = torch.randn(4, 400, generator=rng), torch.randn(2, 40, 5, 5, generator=rng)
    used = dense.weight * 0.1 / 20
    torch.testing.assert_close(dense(x), x @ used.T + 0.7)
    assert abs(used.std() * 20 - 1) < 0.01
    torch.testing.assert_close(conv(y), conv2d(y, conv.weight / 360**0.5, padding=1))
    assert abs(conv.weight.std() - 1) < 0.03


def test_adam_moves_scaled_weights_as_adam_with_a_scaled_rate(rng: Generator) -> None:
    c, target = 0.05, torch.randn(7, generator=rng)
    v = torch.randn(7, generator=rng).requires_grad_()
    w = (c * v.detach()).requires_grad_()
    kwargs = {"betas": (0.5, 0.9), "eps": 1e-30}
    scaled = torch.optim.Adam([v], lr=0.02, **kwargs)
    plain = torch.optim.Adam([w], lr=0.02 * c, **kwargs)
    for _ in range(20):
        for optimizer, weight in ((scaled, c * v), (plain, w)):
            optimizer.zero_grad()
            (weight - target).pow(4).sum().backward()
            optimizer.step()
    torch.testing.assert_close(c * v, w)


def test_the_rectifier_nearly_keeps_the_second_moment(rng: Generator) -> None:
    x = torch.randn(200_000, generator=rng)
    moment = activate(x).square()
    assert (moment.mean() - 1.04).abs() < 4 * moment.std() / 200_000**0.5


def test_the_mapping_sees_a_direction_only(rng: Generator) -> None:
    mapping, z = Mapping(4, 8, 3), torch.randn(5, 4, generator=rng)
    torch.testing.assert_close(mapping(7 * z), mapping(z), atol=1e-7, rtol=0)
    assert (mapping(-z) - mapping(z)).abs().max() > 0.1


# Modulation


def direct(x: Tensor, weight: Tensor, style: Tensor) -> Tensor:
    """(eq:style-demod) by loops over images, maps and taps."""
    n, a, h, w = x.shape
    b, _, k, _ = weight.shape
    around, y = pad(x, (k // 2,) * 4), x.new_zeros(n, b, h, w)
    for m in range(n):
        for j in range(b):
            variance = sum(
                (style[m, i] * weight[j, i]).square().sum() for i in range(a)
            )
            for i in range(a):
                for p in range(k):
                    for q in range(k):
                        tap = style[m, i] * weight[j, i, p, q] / variance**0.5
                        y[m, j] += tap * around[m, i, p : p + h, q : q + w]
    return y


@pytest.mark.parametrize("size", [1, 3])
def test_modulation_agrees_with_direct_sums(size: int, rng: Generator) -> None:
    x = torch.randn(3, 4, 5, 6, generator=rng)
    weight = torch.randn(2, 4, size, size, generator=rng)
    style = torch.randn(3, 4, generator=rng)
    want = direct(x, weight, style)
    torch.testing.assert_close(
        modulated_conv(x, weight, style), want, atol=1e-7, rtol=0
    )
    torch.testing.assert_close(grouped_conv(x, weight, style), want, atol=1e-7, rtol=0)


def test_one_grouped_convolution_is_the_same_to_rounding(rng: Generator) -> None:
    x = torch.randn(8, 16, 7, 7, generator=rng)
    weight, style = torch.randn(12, 16, 3, 3, generator=rng), x[:, :, 0, 0]
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 5e-6)):
        parts = [t.to(dtype) for t in (x, weight, style)]
        gap = modulated_conv(*parts) - grouped_conv(*parts)
        assert gap.abs().max() < tolerance


def test_without_demodulation_the_style_sets_the_scale(rng: Generator) -> None:
    x, weight = torch.randn(2, 3, 4, 4, generator=rng), torch.randn(5, 3, 1, 1)
    style = torch.randn(2, 3, generator=rng)
    got = modulated_conv(x, weight, style, demodulate=False)
    want = torch.einsum("nihw,ni,ji->njhw", x, style, weight[..., 0, 0])
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_demodulated_maps_have_deviation_one(scale: float, rng: Generator) -> None:
    x = torch.randn(40, 16, 12, 12, generator=rng)
    weight = torch.randn(8, 16, 3, 3, generator=rng)
    style = scale * torch.randn(40, 16, generator=rng).exp()
    inside = modulated_conv(x, weight, style)[..., 1:-1, 1:-1]
    assert abs(inside.std() - 1) < 0.02
    assert abs(inside.mean()) < 0.02


def test_a_modulated_layer_starts_neutral(rng: Generator) -> None:
    layer, x = ModulatedConv(4, 5, 6), torch.randn(2, 4, 5, 5, generator=rng)
    plain = modulated_conv(x, layer.weight, torch.ones(2, 4))
    torch.testing.assert_close(layer(x, torch.zeros(2, 6)), plain, atol=1e-6, rtol=0)


# Networks


def test_the_generator_is_a_map_of_one_vector(rng: Generator) -> None:
    """z and every noise image move the picture; nothing else does."""
    made = awake(machine()).generator
    assert made.size == 3 + 16 + 2 * 64
    latent = torch.randn(2, made.size, generator=rng)
    state = torch.get_rng_state()
    x = made(latent)
    assert x.shape == (2, 1, 8, 8)
    torch.testing.assert_close(made(latent), x)
    assert torch.equal(torch.get_rng_state(), state)
    for i in (0, 3, 3 + 16, 3 + 16 + 64):  # z, then the noise of each layer
        other = latent.clone()
        other[:, i] += 1
        assert (made(other) - x).abs().amax((1, 2, 3)).min() > 1e-4


def test_noise_moves_only_what_it_can_reach(rng: Generator) -> None:
    """The last layer's noise is added to each pixel after the convolution."""
    made = awake(machine()).generator
    latent = torch.randn(1, made.size, generator=rng)
    other = latent.clone()
    other[0, 3 + 16 + 64 + 8 * 2 + 5] += 1  # row 2, column 5
    moved = (made(other) - made(latent)).abs()[0, 0] > 1e-12
    assert moved.nonzero().tolist() == [[2, 5]]


def test_noise_can_be_left_out(rng: Generator) -> None:
    torch.manual_seed(0)
    made = StyleGenerator(Mapping(3, 6, 2), Synthesis(6, (5, 4), start=4, noise=False))
    with torch.no_grad():
        for layer in made.synthesis.layers:
            layer.strength.fill_(1.0)
    latent = torch.randn(2, made.size, generator=rng)
    other = torch.cat([latent[:, :3], -latent[:, 3:]], 1)
    assert torch.equal(made(latent), made(other))


def test_the_generator_fits_into_any_gan(rng: Generator) -> None:
    made = machine().generator
    gan = GAN(made, ResidualDiscriminator((4, 5), start=4), StandardNormal(made.size))
    one, two = (gan.sample(3, rng=Generator().manual_seed(1)) for _ in "12")
    assert one.shape == (3, 1, 8, 8)
    assert torch.equal(one, two)


def test_each_layer_hears_its_own_style(rng: Generator) -> None:
    synthesis = awake(machine()).generator.synthesis
    w, noise = torch.randn(2, 3, 6, generator=rng), torch.zeros(2, 16 + 128)
    x = synthesis(w, noise)
    for layer in range(3):
        other = w.clone()
        other[:, layer] += 1
        assert (synthesis(other, noise) - x).abs().max() > 1e-3
    same = w[:, :1].expand(-1, 3, -1)
    torch.testing.assert_close(synthesis(w[:, 0], noise), synthesis(same, noise))


def test_skips_are_images_upsampled_and_added(rng: Generator) -> None:
    """The picture is half of 1 + Σ (image of each size, upsampled)."""
    synthesis = awake(machine()).generator.synthesis
    w, noise = torch.randn(2, 6, generator=rng), torch.zeros(2, 16 + 128)
    seen: list[Tensor] = []
    for part in synthesis.images:
        part.register_forward_hook(lambda *args: seen.append(args[2]))
    x = synthesis(w, noise)
    want = (upsample(seen[0]) + seen[1] + synthesis.bias + 1) / 2
    torch.testing.assert_close(x, want)


def test_the_last_map_is_the_deviation_in_the_group(rng: Generator) -> None:
    x = torch.randn(8, 3, 2, 2, generator=rng)
    y = minibatch_std(x, 4)
    assert torch.equal(y[:, :3], x)
    for first in range(2):  # groups are 0, 2, 4, 6 and 1, 3, 5, 7
        want = x[first::2].std(0, correction=0).mean()
        torch.testing.assert_close(
            y[first::2, 3], want.expand(4, 2, 2), atol=1e-7, rtol=0
        )
    alone = minibatch_std(x[:5], 4)[:, 3]
    assert alone.max() < 2e-4  # gcd(5, 4) = 1


def test_a_residual_block_keeps_the_second_moment(rng: Generator) -> None:
    torch.manual_seed(0)
    net = ResidualDiscriminator((64, 64, 64), start=4)
    x = torch.randn(50, 1, 16, 16, generator=rng)
    smooth = upsample(upsample(x))[..., ::4, ::4]
    y = net.blocks(smooth)
    assert y.shape == (50, 64, 4, 4)
    assert 0.1 < y.square().mean() / smooth.square().mean() < 2


# Path length


def test_the_product_is_that_of_the_explicit_jacobian(rng: Generator) -> None:
    """(eq:style-jvp): ‖Jᵀy‖ with J from torch.func, for the same y."""
    synthesis = awake(machine()).generator.synthesis
    w = torch.randn(2, 3, 6, generator=rng, requires_grad=True)
    noise = torch.randn(2, 16 + 128, generator=rng)
    x = synthesis(w, noise)
    got = path_lengths(x, w, rng=Generator().manual_seed(4))
    y = torch.randn(x.shape, generator=Generator().manual_seed(4)) / 8
    for i in range(2):
        J = torch.func.jacrev(
            lambda v, i=i: synthesis(v[None], noise[i : i + 1])[0, 0]
        )(w[i].detach())  # (8, 8, 3, 6)
        slope = torch.einsum("hwlk,hw->lk", J, y[i, 0])
        torch.testing.assert_close(got[i], slope.square().sum(1).mean().sqrt())


def test_the_mean_square_length_is_the_norm_of_the_jacobian(rng: Generator) -> None:
    W = torch.randn(6, 3, generator=rng)
    w = torch.zeros(50_000, 3, requires_grad=True)
    lengths = path_lengths(w @ W.T, w, rng=rng)
    square = lengths.square()
    assert (square.mean() - W.square().sum()).abs() < 4 * square.std() / 50_000**0.5


def test_the_penalty_reaches_mapping_and_synthesis(rng: Generator) -> None:
    model = awake(machine(mixing=0.0))
    w, noise = model.styles(4, rng=rng)
    model.path_penalty(w, noise, rng=rng).backward()
    for module in (model.generator.mapping, model.generator.synthesis):
        assert any(
            p.grad is not None and p.grad.norm() > 0 for p in module.parameters()
        )


def test_the_goal_follows_the_mean_only_in_training(rng: Generator) -> None:
    """(eq:style-path): a starts at the first mean; then a ← 0.99 a + 0.01 mean."""
    model = awake(machine(mixing=0.0))
    w, noise = model.styles(4, rng=rng)
    x = model.generator.synthesis(w, noise)
    lengths = path_lengths(x, w, rng=Generator().manual_seed(1)).detach()
    got = model.path_penalty(w, noise, rng=Generator().manual_seed(1))
    torch.testing.assert_close(model.length, lengths.mean())
    torch.testing.assert_close(got, lengths.var(correction=0))
    model.length.fill_(3.0)
    got = model.path_penalty(w, noise, rng=Generator().manual_seed(1))
    a = 2.97 + 0.01 * lengths.mean()
    torch.testing.assert_close(model.length, a)
    torch.testing.assert_close(got, (lengths - a).square().mean())
    model.eval()
    model.path_penalty(w, noise, rng=rng)
    torch.testing.assert_close(model.length, a)


# The game


def test_the_losses_are_those_of_the_objective(rng: Generator) -> None:
    model = machine(gamma=0.0, stretch=0.0, mixing=0.0)
    x = torch.rand(6, 1, 8, 8, generator=rng)
    fake = model.sample(6, rng=Generator().manual_seed(2))
    real, made = model.score(x), model.score(fake)
    draws = [Generator().manual_seed(2) for _ in "12"]
    torch.testing.assert_close(
        model.loss(x, rng=draws[0]), NON_SATURATING.generator(made)
    )
    torch.testing.assert_close(
        model.judge(x, rng=draws[1]), NON_SATURATING.critic(real, made)
    )


def test_a_share_of_the_batch_is_penalised(rng: Generator) -> None:
    """(eq:style-share): the first n/k rows, with the whole weight."""
    x = torch.rand(8, 1, 8, 8, generator=rng)
    model = machine(mixing=0.0, gamma=3.0, shares=(2, 4))
    bare = machine(mixing=0.0, gamma=0.0)
    bare.load_state_dict(model.state_dict())
    one, two = (m.judge(x, rng=Generator().manual_seed(2)) for m in (model, bare))
    want = r1_penalty(3.0)(model.discriminator, x[:4], None)
    torch.testing.assert_close(one - two, want)
    assert want > 0
    still = machine(mixing=0.0, stretch=0.0)
    still.load_state_dict(model.state_dict())
    one, two = (m.loss(x, rng=Generator().manual_seed(2)) for m in (model, still))
    draws = Generator().manual_seed(2)
    model.length.zero_()
    w, noise = model.styles(8, rng=draws)
    want = model.path_penalty(w[:2], noise[:2], rng=draws)
    torch.testing.assert_close(one - two, 2 * want)


def test_styles_are_mixed_at_a_random_cut(rng: Generator) -> None:
    """Half of the images have two styles, every cut equally often."""
    model, n = machine(mixing=0.5), 4000
    with torch.no_grad():
        w, _ = model.styles(n, rng=rng)
    changes = (w[:, 1:] - w[:, :-1]).abs().amax(2) > 1e-9  # (n, 2)
    assert changes.sum(1).max() == 1
    for share in changes.double().mean(0):
        assert abs(share - 0.25) < 4 * (0.25 * 0.75 / n) ** 0.5
    plain, _ = machine(mixing=0.0).styles(5, rng=rng)
    assert torch.equal(plain[:, 0], plain[:, 2])


def test_a_mixed_batch_has_the_first_style_first() -> None:
    w, other = torch.zeros(2, 4), torch.ones(2, 4)
    assert mix(w, other, 5, 2)[..., 0].tolist() == [[0, 0, 1, 1, 1]] * 2
    assert torch.equal(mix(w, other, 5, 5), torch.zeros(2, 5, 4))


def test_sampling_and_losses_are_functions_of_their_rng(rng: Generator) -> None:
    model, x = awake(machine()), torch.rand(8, 1, 8, 8, generator=rng)
    model.eval()
    state = torch.get_rng_state()
    for draw in (
        lambda g: model.sample(4, rng=g),
        lambda g: model.loss(x, rng=g),
        lambda g: model.judge(x, rng=g),
    ):
        one, two = (draw(Generator().manual_seed(3)) for _ in "12")
        assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), state)


def test_players_share_out_the_parameters(rng: Generator) -> None:
    model = awake(machine())
    parts = [id(p) for player in model.players() for p in player.params]
    assert sorted(parts) == sorted(id(p) for p in model.parameters())
    x = torch.rand(8, 1, 8, 8, generator=rng)
    for player in model.players():
        grads = torch.autograd.grad(player.loss(x, rng=rng), player.params)
        assert all(g.isfinite().all() for g in grads)


def test_a_resumed_run_ends_in_the_same_weights(tmp_path, rng: Generator) -> None:  # noqa: ANN001
    x = torch.rand(24, 1, 8, 8, generator=rng)

    def play(steps: list[int], **options: object) -> StyleGAN:
        for stop in steps:
            torch.manual_seed(0)
            model, draws = machine(), Generator().manual_seed(1)
            options |= {"ema": Average(model, 0.9)}
            batches = stream(x, 8, rng=draws)
            for _ in train(model, batches, steps=stop, rng=draws, **options):
                pass
        return model

    whole = play([6])
    file = tmp_path / "state.pt"
    resumed = play([4, 6], checkpoint=file, every=1, resume=True)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(),
                    strict=True):  # fmt: skip
        assert torch.equal(a, b)
    assert whole.length > 0


# Uses


def test_truncation_shrinks_towards_the_mean() -> None:
    """(eq:style-truncation): the deviation is multiplied by ψ."""
    w, mean = torch.tensor([[3.0, 1.0]]), torch.tensor([1.0, 1.0])
    assert truncate(w, mean, 0.5).tolist() == [[2.0, 1.0]]
    assert torch.equal(truncate(w, mean, 1.0), w)


def test_projection_finds_least_squares(rng: Generator) -> None:
    """For a linear g the best style solves the normal equations."""
    A = torch.randn(16, 3, generator=rng)
    x = torch.randn(2, 1, 4, 4, generator=rng)

    def linear(w: Tensor, noise: Tensor) -> Tensor:
        return (w @ A.T + noise).view(-1, 1, 4, 4)

    found = project(linear, x, torch.zeros(2, 3), torch.zeros(2, 16), steps=800)
    want = torch.linalg.lstsq(A, x.flatten(1).T).solution.T
    torch.testing.assert_close(found.w, want, atol=1e-5, rtol=0)
    left = (want @ A.T - x.flatten(1)).square().mean(1)
    torch.testing.assert_close(found.error, left, atol=1e-8, rtol=0)
    torch.testing.assert_close(found.images, linear(found.w, torch.zeros(2, 16)))


def test_a_style_for_each_layer_fits_no_worse(rng: Generator) -> None:
    model = awake(machine())
    synthesis, noise = model.generator.synthesis, torch.zeros(2, 16 + 128)
    x, start = torch.rand(2, 1, 8, 8, generator=rng), torch.zeros(2, 6)
    one = project(synthesis, x, start, noise, steps=60)
    many = project(synthesis, x, one.w[:, None].expand(-1, 3, -1), noise, steps=60)
    assert many.w.shape == (2, 3, 6)
    assert (many.error < one.error).all()


class Flat(nn.Module):
    """A generator whose mapping is the identity and whose synthesis is linear."""

    def __init__(self, A: Tensor) -> None:
        super().__init__()
        self.constant, self.size = A, A.shape[1] + 1
        self.mapping, self.synthesis = (lambda z: z), Linear(A)

    def split(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        return latent[:, :-1], latent[:, -1:]


class Linear(nn.Module):
    def __init__(self, A: Tensor) -> None:
        super().__init__()
        self.constant = A

    def forward(self, w: Tensor, noise: Tensor) -> Tensor:
        return w @ self.constant.T + 5 * noise


def test_the_path_length_of_a_linear_map_is_its_norm(rng: Generator) -> None:
    """(eq:style-ppl) is E‖A(w₁ − w₀)‖² = 2‖A‖², whatever the noise."""
    A = torch.randn(4, 3, generator=rng)
    for step in (1e-3, 0.5):
        draws = perceptual_path_length(Flat(A), lambda x: x, 40_000, step=step, rng=rng)
        want = 2 * A.square().sum()
        assert (draws.mean() - want).abs() < 4 * draws.std() / 200


def test_the_path_length_is_a_squared_directional_derivative(rng: Generator) -> None:
    model = awake(machine())
    made = model.generator
    draws = perceptual_path_length(
        made, lambda x: x.flatten(1), 3, step=1e-6, rng=Generator().manual_seed(8)
    )
    again = Generator().manual_seed(8)
    z, noise = made.split(model.prior.sample(3, rng=again))
    w0, w1 = made.mapping(z), made.mapping(torch.randn(3, 3, generator=again))
    t = torch.rand(3, generator=again)[:, None]
    w = torch.lerp(w0, w1, t).detach()
    for i in range(3):
        J = torch.func.jacrev(lambda v, i=i: made.synthesis(v[None], noise[i : i + 1]))(
            w[i]
        )
        speed = (J @ (w1 - w0)[i].detach()).square().sum()
        torch.testing.assert_close(draws[i], speed, rtol=1e-4, atol=0)


# The game of two numbers


def test_the_path_follows_the_closed_field() -> None:
    """(eq:style-dirac) with σ the logistic function, for both objectives."""
    gamma = torch.tensor([0.0, 0.3])
    for objective, sign in ((SATURATING, 1.0), (NON_SATURATING, -1.0)):
        path = dirac_path(objective, gamma, start=(0.5, -1.2), lr=0.1, steps=30)
        theta, psi = torch.full((2,), 0.5), torch.full((2,), -1.2)
        for step in range(31):
            torch.testing.assert_close(path[step], torch.stack([theta, psi], 1))
            slope = torch.sigmoid(psi * theta)
            up = torch.sigmoid(sign * psi * theta) * psi
            theta, psi = theta + 0.1 * up, psi - 0.1 * (slope * theta + gamma * psi)


def test_the_path_is_that_of_networks_and_the_penalty() -> None:
    """One step of a GAN whose discriminator is a linear map, by autograd."""

    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(torch.tensor([[0.7]]))

        def forward(self, z: Tensor) -> Tensor:
            return self.theta.expand(len(z), 1)

    judge = nn.Linear(1, 1, bias=False)
    nn.init.constant_(judge.weight, -0.4)
    gan = GAN(Point(), judge, StandardNormal(1), penalty=r1_penalty(0.8))
    x = torch.zeros(3, 1)
    (up,) = torch.autograd.grad(gan.loss(x), gan.generator.theta)
    (down,) = torch.autograd.grad(gan.judge(x), judge.weight)
    gamma = torch.tensor([0.8])
    path = dirac_path(NON_SATURATING, gamma, start=(0.7, -0.4), lr=1.0, steps=1)
    want = torch.tensor([0.7 - up.item(), -0.4 - down.item()])
    torch.testing.assert_close(path[1, 0], want)


# Complaints


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: downsample(torch.zeros(1, 1, 4, 5)), "even"),
        (lambda: downsample(torch.zeros(4, 4)), "even"),
        (lambda: upsample(torch.zeros(4, 4)), "n, c, h, w"),
        (lambda: EqualLinear(0, 3), "a must be positive"),
        (lambda: EqualLinear(2, 3, rate=0.0), "rate must be positive"),
        (lambda: EqualConv(2, 3, 2), "size must be odd"),
        (lambda: EqualConv(2, 0), "b must be positive"),
        (lambda: Mapping(2, 3, 0), "depth must be positive"),
        (lambda: Synthesis(4, ()), "channels"),
        (lambda: Synthesis(4, (4, 0)), "channels"),
        (lambda: Synthesis(4, (4,), start=1), "start"),
        (lambda: ResidualDiscriminator(()), "channels"),
        (lambda: ResidualDiscriminator((4,), group=0), "group"),
        (lambda: machine(gamma=-1.0), "gamma"),
        (lambda: machine(mixing=1.1), "mixing"),
        (lambda: machine(shares=(0, 1)), "shares"),
        (lambda: machine().generator(torch.zeros(2, 5)), r"\(n, 147\)"),
        (lambda: machine().judge(torch.zeros(2, 1, 8, 9)), "x must have shape"),
        (lambda: machine().judge(torch.zeros(0, 1, 8, 8)), "x must have shape"),
        (lambda: mix(torch.zeros(1, 2), torch.zeros(1, 2), 3, 4), "cut must lie"),
    ],
)
def test_bad_arguments_are_named(call, words: str) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=words):
        call()


def test_bad_shapes_are_named() -> None:
    x, weight = torch.zeros(2, 3, 4, 4), torch.zeros(5, 3, 3, 3)
    with pytest.raises(ValueError, match="style must be"):
        modulated_conv(x, weight, torch.zeros(2, 4))
    with pytest.raises(ValueError, match="weight"):
        modulated_conv(x, torch.zeros(5, 4, 3, 3), torch.zeros(2, 3))
    synthesis = machine().generator.synthesis
    with pytest.raises(ValueError, match="w must be"):
        synthesis(torch.zeros(2, 4, 6), torch.zeros(2, 144))
    with pytest.raises(ValueError, match="x must be as"):
        project(synthesis, torch.zeros(2, 8, 8), torch.zeros(2, 6), torch.zeros(2, 144))
    for bad in ({"n": 0}, {"n": 2, "step": 0.0}):
        with pytest.raises(ValueError, match="positive"):
            perceptual_path_length(machine().generator, nn.Flatten(), **bad)
