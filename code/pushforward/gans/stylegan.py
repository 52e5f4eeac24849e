"""StyleGAN2: an image from a style at every scale (book/gans/stylegan.md).

    w = f(z)                                      a law that the data may choose
    s = A w + b                                   a scale for every feature map
    y_j = Σ_i κ_ij * (s_i x_i) / σ_j(s)           the convolution (eq:style-demod)
    E (‖J_wᵀ y‖ − a)²,  J = ∂g/∂w, y ~ N(0, I)    the path length (eq:style-path)

Noise images are coordinates of the latent like any other, so the generator is a
map of one standard normal vector: it draws nothing, and fits into any ``GAN``.

References:
    Karras, Laine, Aittala, Hellsten, Lehtinen, Aila (2020), Analyzing and improving
        the image quality of StyleGAN.
    Karras, Laine, Aila (2019), A style-based generator architecture for generative
        adversarial networks (mapping, mixing, truncation, perceptual path length).
    Karras, Aila, Laine, Lehtinen (2018), Progressive growing of GANs for improved
        quality, stability, and variation (equal rates, minibatch deviation).
    Mescheder, Geiger, Nowozin (2018), Which training methods for GANs do actually
        converge? (the penalty R1 and the game of two numbers).
"""

import functools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import conv2d, leaky_relu, linear, one_hot

from ..distributions import StandardNormal, positive
from ..model import Model, Player
from ..nn import noise_like
from .vanilla import NON_SATURATING, Objective, Penalty, r1_penalty

__all__ = [
    "EqualConv",
    "EqualLinear",
    "Mapping",
    "ModulatedConv",
    "Projection",
    "ResidualDiscriminator",
    "StyleGAN",
    "StyleGenerator",
    "Synthesis",
    "activate",
    "dirac_path",
    "downsample",
    "grouped_conv",
    "minibatch_std",
    "mix",
    "modulated_conv",
    "path_lengths",
    "perceptual_path_length",
    "project",
    "truncate",
    "upsample",
]

TAPS = (0.125, 0.375, 0.375, 0.125)  # of the filter for changes of size


# Changes of size, without aliases


@functools.cache
def shrinking(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix that filters n pixels and keeps every other, (n/2, n).

    Pixels beyond the ends repeat those at the ends.
    """
    seen = 2 * torch.arange(n // 2)[:, None] + torch.arange(-1, 3)  # (n/2, 4)
    rows = one_hot(seen.clamp(0, n - 1), n).to(device, dtype)
    return torch.einsum("ijn,j->in", rows, rows.new_tensor(TAPS))  # (eq:style-taps)


@functools.cache
def growing(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix that puts zeros between n pixels and filters, (2n, n).

    Twice the filter, to make up for the zeros, leaves ¾ of the pixel of which an
    output is a half, and ¼ of the neighbour on that side.
    """
    j = torch.arange(2 * n)
    own, side = j // 2, (j // 2 + 2 * (j % 2) - 1).clamp(0, n - 1)
    rows = 2 * TAPS[1] * one_hot(own, n) + 2 * TAPS[0] * one_hot(side, n)
    return rows.to(device, dtype)  # (eq:style-growing)


def downsample(x: Tensor) -> Tensor:
    """Halve the sides of x (n, c, h, w): filter, then keep every other pixel.

    Raises:
        ValueError: No maps, or a side that is odd.
    """
    if x.ndim != 4 or x.shape[2] % 2 or x.shape[3] % 2:
        raise ValueError(f"x must be (n, c, h, w), h and w even, got {tuple(x.shape)}")
    rows, cols = (shrinking(side, x.dtype, x.device) for side in x.shape[2:])
    return rows @ x @ cols.mT


def upsample(x: Tensor) -> Tensor:
    """Double the sides of x (n, c, h, w): zeros between the pixels, then filter.

    Raises:
        ValueError: No maps.
    """
    if x.ndim != 4:
        raise ValueError(f"x must have shape (n, c, h, w), got {tuple(x.shape)}")
    rows, cols = (growing(side, x.dtype, x.device) for side in x.shape[2:])
    return rows @ x @ cols.mT


# Layers whose weights all learn at one rate


def activate(x: Tensor) -> Tensor:
    """Return √2 times the leaky rectifier, which nearly keeps E x² for normal x."""
    return leaky_relu(x, 0.2) * 2**0.5


class EqualLinear(nn.Module):
    """A linear map whose stored weights are N(0, 1) and are scaled when used.

    Args:
        a: Numbers in.
        b: Numbers out.
        bias: Where the bias starts.
        rate: Factor of the learning rate.

    Raises:
        ValueError: A size or rate that is not positive.
    """

    def __init__(self, a: int, b: int, *, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        positive("a", a)
        positive("b", b)
        positive("rate", rate)
        self.weight = nn.Parameter(torch.randn(b, a) / rate)
        self.bias = nn.Parameter(torch.full((b,), bias / rate))
        self.scale, self.rate = rate / a**0.5, rate

    def forward(self, x: Tensor) -> Tensor:
        """Return the map at x (n, a), shape (n, b)."""
        return linear(x, self.scale * self.weight, self.rate * self.bias)


class EqualConv(nn.Module):
    """A convolution whose stored weights are N(0, 1) and are scaled when used.

    Args:
        a: Maps in.
        b: Maps out.
        size: Side of the kernel, odd.

    Raises:
        ValueError: A number of maps that is not positive, or an even size.
    """

    def __init__(self, a: int, b: int, size: int = 3) -> None:
        super().__init__()
        self.weight = kernels(a, b, size)
        self.bias = nn.Parameter(torch.zeros(b))
        self.scale = 1 / (a * size**2) ** 0.5  # (eq:style-equal)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x (n, a, h, w), shape (n, b, h, w)."""
        size = self.weight.shape[-1]
        return conv2d(x, self.scale * self.weight, self.bias, padding=size // 2)


def kernels(a: int, b: int, size: int) -> nn.Parameter:
    """Return weights v ~ N(0, 1), shape (b, a, size, size)."""
    positive("a", a)
    positive("b", b)
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size must be odd and positive, got {size}")
    return nn.Parameter(torch.randn(b, a, size, size))


class Mapping(nn.Module):
    """f: the latent z, put on a sphere, to the style w.

    Args:
        k: Dimension of z.
        width: Of the hidden layers and of w.
        depth: How many layers.
        rate: Their learning rate, relative to that of the other layers.

    Raises:
        ValueError: No layer, or a size that is not positive.
    """

    def __init__(
        self, k: int, width: int, depth: int = 8, *, rate: float = 0.01
    ) -> None:
        super().__init__()
        positive("depth", depth)
        self.k, self.width = k, width
        sizes = [k] + [width] * depth
        self.layers = nn.ModuleList(
            EqualLinear(a, b, rate=rate) for a, b in pairwise(sizes)
        )

    def forward(self, z: Tensor) -> Tensor:
        """Return w = f(z) for z (n, k), shape (n, width)."""
        w = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            w = activate(layer(w))
        return w


# Modulated convolution


def modulated_conv(
    x: Tensor, weight: Tensor, style: Tensor, *, demodulate: bool = True
) -> Tensor:
    """Scale the maps of x by their style, convolve, divide by the deviation expected.

    Args:
        x: Feature maps, shape (n, a, h, w).
        weight: κ, shape (b, a, size, size).
        style: s, a scale for each map of each image, shape (n, a).
        demodulate: Divide by σ_j(s); else leave the scale as the style made it.

    Returns:
        Shape (n, b, h, w), zeros beyond the border.

    Raises:
        ValueError: Shapes that do not agree.
    """
    n, a = x.shape[:2]
    if style.shape != (n, a) or weight.shape[1] != a:
        got = f"{tuple(style.shape)}, {tuple(weight.shape)}"
        raise ValueError(f"style must be {(n, a)}, weight (b, {a}, k, k), got {got}")
    y = conv2d(x * style[:, :, None, None], weight, padding=weight.shape[-1] // 2)
    if not demodulate:
        return y
    return y * gains(weight, style)[:, :, None, None]


def gains(weight: Tensor, style: Tensor) -> Tensor:
    """Return 1/σ_j(s), σ_j² = Σ_i s_i² Σ_p κ_jip² + 10⁻⁸, shape (n, b)."""
    energy = weight.square().sum((2, 3))  # (b, a)
    return (style.square() @ energy.mT + 1e-8).rsqrt()  # (eq:style-demod)


def grouped_conv(x: Tensor, weight: Tensor, style: Tensor) -> Tensor:
    """Return :func:`modulated_conv` the other way: n kernels, one grouped convolution.

    Each image gets a kernel of its own, modulated and demodulated, and the batch
    becomes one image of n·a maps.
    """
    n, a, h, w = x.shape
    own = weight * style[:, None, :, None, None]  # (n, b, a, size, size)
    own = own * (own.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    size = weight.shape[-1]
    y = conv2d(
        x.reshape(1, n * a, h, w), own.flatten(0, 1), groups=n, padding=size // 2
    )
    return y.view(n, -1, h, w)


class ModulatedConv(nn.Module):
    """A convolution that a style steers.

    Args:
        a: Maps in.
        b: Maps out.
        width: Dimension of w.
        size: Side of the kernel, odd.
        demodulate: Whether the output is brought back to deviation 1.
    """

    def __init__(
        self, a: int, b: int, width: int, size: int = 3, *, demodulate: bool = True
    ) -> None:
        super().__init__()
        self.affine = EqualLinear(width, a, bias=1.0)  # s = Aw + 1
        self.weight = kernels(a, b, size)
        self.scale = 1 / (a * size**2) ** 0.5
        self.demodulate = demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Return the convolution of x (n, a, h, w) steered by w (n, width)."""
        kernel = self.scale * self.weight
        return modulated_conv(x, kernel, self.affine(w), demodulate=self.demodulate)


# The generator


class StyleLayer(nn.Module):
    """A modulated convolution, noise in each pixel, a bias, the rectifier.

    Args:
        a: Maps in.
        b: Maps out.
        width: Dimension of w.
        demodulate: As in :class:`ModulatedConv`.
    """

    def __init__(self, a: int, b: int, width: int, *, demodulate: bool = True) -> None:
        super().__init__()
        self.conv = ModulatedConv(a, b, width, demodulate=demodulate)
        self.strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(b, 1, 1))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        """Return the next maps, shape (n, b, h, w).

        Args:
            x: Maps, (n, a, h, w).
            w: Styles, (n, width).
            noise: One image for all maps, (n, 1, h, w).
        """
        return activate(self.conv(x, w) + self.strength * noise + self.bias)


class Synthesis(nn.Module):
    """g: a style for each layer, and noise, to an image.

    A constant image is convolved twice at each size.  From each size an image is
    read, and these are upsampled and added up: the skips.

    Args:
        width: Dimension of w.
        channels: Maps at each size, from the smallest on; each size doubles it.
        start: Side of the smallest size.
        demodulate: As in :class:`ModulatedConv`.
        noise: Whether the noise images enter.

    Raises:
        ValueError: No channels, or a size that is not positive.
    """

    def __init__(
        self,
        width: int,
        channels: tuple[int, ...],
        *,
        start: int = 7,
        demodulate: bool = True,
        noise: bool = True,
    ) -> None:
        super().__init__()
        if not channels or min(channels) < 1 or start < 2:
            raise ValueError(
                f"channels, start must be sizes ≥ 1, ≥ 2, got {channels}, {start}"
            )
        self.constant = nn.Parameter(torch.randn(1, channels[0], start, start))
        pairs = pairwise((channels[0], *channels))
        layers: list[nn.Module] = []
        for a, b in pairs:  # two layers at each size, but one at the smallest
            layers += [StyleLayer(a, b, width, demodulate=demodulate)] if layers else []
            layers += [StyleLayer(b, b, width, demodulate=demodulate)]
        self.layers = nn.ModuleList(layers)
        self.images = nn.ModuleList(
            ModulatedConv(c, 1, width, 1, demodulate=False) for c in channels
        )
        self.bias = nn.Parameter(torch.zeros(()))
        at = [(i + 1) // 2 for i in range(len(layers))]
        self.sides = [start * 2**i for i in at]  # of each layer's maps
        self.noisy = noise

    def forward(self, w: Tensor, noise: Tensor) -> Tensor:
        """Return images, shape (n, 1, h, h), with data in [0, 1] in mind.

        Args:
            w: Styles, one for all layers (n, width) or one for each, (n, L, width).
            noise: Noise images, flattened and side by side, (n, Σ side²).

        Raises:
            ValueError: Styles for another number of layers.
        """
        layers = len(self.layers)
        w = w[:, None].expand(-1, layers, -1) if w.ndim == 2 else w
        if w.ndim != 3 or w.shape[1] != layers:
            got = tuple(w.shape)
            raise ValueError(f"w must be (n, k) or (n, {layers}, k), got {got}")
        maps = self.constant.expand(len(w), -1, -1, -1)
        pieces = noise.split([side**2 for side in self.sides], 1)
        shown = w.new_zeros(())
        for i, layer in enumerate(self.layers):
            if i % 2:  # the first layer of the next size
                maps, shown = upsample(maps), upsample(shown)
            side = self.sides[i]
            eps = pieces[i].view(-1, 1, side, side) if self.noisy else w.new_zeros(())
            maps = layer(maps, w[:, i], eps)
            if i % 2 == 0:  # the last layer of this size
                shown = shown + self.images[i // 2](maps, w[:, i])
        return (shown + self.bias + 1) / 2


class StyleGenerator(nn.Module):
    """The map of one standard normal vector to an image.

    The vector holds z first, then all noise images, so there is nothing left to
    draw: ``StandardNormal(generator.size)`` is the prior.

    Args:
        mapping: f, from z to w.
        synthesis: g, from w and noise to an image.

    Attributes:
        size: Dimension of the vector.
    """

    def __init__(self, mapping: Mapping, synthesis: Synthesis) -> None:
        super().__init__()
        self.mapping = mapping
        self.synthesis = synthesis
        self.layers = len(synthesis.layers)
        self.size = mapping.k + sum(side**2 for side in synthesis.sides)

    def split(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return z (n, k) and the noise images (n, Σ side²) of a latent (n, size)."""
        if latent.ndim != 2 or latent.shape[1] != self.size:
            got = tuple(latent.shape)
            raise ValueError(f"latent must have shape (n, {self.size}), got {got}")
        return latent[:, : self.mapping.k], latent[:, self.mapping.k :]

    def forward(self, latent: Tensor) -> Tensor:
        """Return the images of latents (n, size), shape (n, 1, h, w)."""
        z, noise = self.split(latent)
        return self.synthesis(self.mapping(z), noise)


# The discriminator


def minibatch_std(x: Tensor, group: int = 4) -> Tensor:
    """Append a map that says how much the images of a group differ.

    Args:
        x: Feature maps, shape (n, c, h, w).
        group: Images in a group; their greatest common divisor with n is taken.

    Returns:
        Shape (n, c + 1, h, w); the last map of an image is a constant, the mean
        over maps and pixels of the standard deviation in the group.
    """
    n, _, h, w = x.shape
    size = math.gcd(n, group)
    rows = x.view(size, n // size, *x.shape[1:])
    std = (rows.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))  # (n / size,)
    return torch.cat([x, std.repeat(size)[:, None, None, None].expand(n, 1, h, w)], 1)


class ResidualBlock(nn.Module):
    """Two convolutions to half the size, beside a filtered shortcut.

    Args:
        a: Maps in.
        b: Maps out.
    """

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.first, self.second = EqualConv(a, a), EqualConv(a, b)
        self.shortcut = EqualConv(a, b, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of half the size, shape (n, b, h/2, w/2)."""
        y = activate(self.second(downsample(activate(self.first(x)))))
        return (y + self.shortcut(downsample(x))) / 2**0.5


class ResidualDiscriminator(nn.Module):
    """D: an image to its log-odds of being data.

    Args:
        channels: Maps at each size, from the largest on; each size halves it.
        start: Side of the smallest size, as in :class:`Synthesis`.
        group: Images in a group of :func:`minibatch_std`.

    Raises:
        ValueError: No channels, or a size that is not positive.
    """

    def __init__(
        self, channels: tuple[int, ...], *, start: int = 7, group: int = 4
    ) -> None:
        super().__init__()
        if not channels or min(channels) < 1 or min(start, group) < 1:
            got = f"{channels}, {start}, {group}"
            raise ValueError(f"channels, start, group must be sizes ≥ 1, got {got}")
        pairs = pairwise(channels)
        self.blocks = nn.Sequential(
            EqualConv(1, channels[0], 1), *(ResidualBlock(a, b) for a, b in pairs)
        )
        c = channels[-1]
        self.mixed = EqualConv(c + 1, c)
        self.hidden = EqualLinear(c * start**2, c)
        self.score = EqualLinear(c, 1)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Return log-odds of images x (n, 1, h, w) with values in [0, 1], (n, 1)."""
        y = minibatch_std(self.blocks(2 * x - 1), self.group)
        y = activate(self.mixed(y)).flatten(1)
        return self.score(activate(self.hidden(y)))


# Path length


def path_lengths(x: Tensor, w: Tensor, *, rng: Generator | None = None) -> Tensor:
    """Return ‖Jᵀy‖ for a draw y ~ N(0, I/pixels), J = ∂x/∂w, shape (n,).

    It is differentiable in the weights.  The pixels are divided out, so that the
    length does not grow with the resolution.

    Args:
        x: Images that were computed from w, shape (n, c, h, w); or points, (n, d).
        w: Styles, shape (n, k), or (n, L, k): the mean over layers of the squares.
        rng: Source of y.
    """
    y = noise_like(x, rng) / math.prod(x.shape[2:]) ** 0.5
    (slope,) = torch.autograd.grad(  # (eq:style-jvp)
        (x * y).sum(), w, create_graph=True
    )
    slope = slope.view(len(w), -1, w.shape[-1])
    return slope.square().sum(-1).mean(-1).sqrt()


# The game


class StyleGAN(Model):
    """A style generator against a discriminator.

    Regularisers look at a share of each batch: as cheap as a look at whole batches
    now and then, with the same mean, and without a counter (eq:style-share).

    Args:
        generator: From one standard normal vector to an image.
        discriminator: From images to log-odds.
        objective: What each player minimises.
        gamma: Weight γ of the penalty R1 (½γ E‖∇D‖² on data); 0: none.
        stretch: Weight of the path length; 0: none.
        mixing: Share of training images with two styles.
        shares: The parts 1/k of a batch that R1 and the path length look at: k, k.

    Raises:
        ValueError: Weights or shares out of range.
    """

    length: Tensor

    def __init__(
        self,
        generator: StyleGenerator,
        discriminator: nn.Module,
        *,
        objective: Objective = NON_SATURATING,
        gamma: float = 1.0,
        stretch: float = 2.0,
        mixing: float = 0.5,
        shares: tuple[int, int] = (8, 4),
    ) -> None:
        super().__init__()
        if min(gamma, stretch) < 0 or not 0 <= mixing <= 1 or min(shares) < 1:
            got = f"{gamma}, {stretch}, {mixing}, {shares}"
            raise ValueError(
                f"gamma, stretch ≥ 0, mixing in [0, 1], shares ≥ 1, got {got}"
            )
        self.generator = generator
        self.discriminator = discriminator
        self.prior = StandardNormal(generator.size)
        self.objective = objective
        self.penalty: Penalty | None = r1_penalty(gamma) if gamma else None
        self.stretch, self.mixing, self.shares = stretch, mixing, shares
        self.register_buffer("length", torch.zeros(()))  # a, the mean of ‖Jᵀy‖

    @torch.no_grad()
    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Draw n images, each of one style, shape (n, 1, h, w)."""
        return self.generator(self.prior.sample(n, rng=rng))

    def styles(self, n: int, *, rng: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return styles (n, L, k), some of them mixed, and noise, for training."""
        layers = self.generator.layers
        z, noise = self.generator.split(self.prior.sample(n, rng=rng))
        w = self.generator.mapping(z)[:, None].expand(-1, layers, -1)
        if not self.mixing:
            return w, noise
        other = self.generator.mapping(noise_like(z, rng))[:, None]
        u = uniform(n, w, rng) / self.mixing  # above 1: no cut
        cut = (1 + u * (layers - 1)).floor().where(u < 1, u.new_tensor(layers))
        first = torch.arange(layers, device=w.device) < cut[:, None]  # (n, L)
        return torch.where(first[..., None], w, other), noise

    def score(self, x: Tensor) -> Tensor:
        """Return D(x), log-odds that x is data, shape (n,)."""
        return self.discriminator(x).flatten()

    def judge(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return the discriminator's loss on data x (n, 1, h, w).

        Raises:
            ValueError: No data, or data of another shape than the samples.
        """
        with torch.no_grad():
            fake = self.generator.synthesis(*self.styles(len(x), rng=rng))
        if fake.shape != x.shape or not len(x):
            want = ("n ≥ 1", *fake.shape[1:])
            raise ValueError(f"x must have shape {want}, got {tuple(x.shape)}")
        loss = self.objective.critic(self.score(x), self.score(fake))
        if self.penalty is None:
            return loss
        m = share(len(x), self.shares[0])
        return loss + self.penalty(self.discriminator, x[:m], fake[:m], rng=rng)

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return the generator's loss; of x only the number of rows matters."""
        w, noise = self.styles(len(x), rng=rng)
        fake = self.generator.synthesis(w, noise)
        loss = self.objective.generator(self.score(fake))
        if not self.stretch:
            return loss
        m = share(len(x), self.shares[1])
        return loss + self.stretch * self.path_penalty(w[:m], noise[:m], rng=rng)

    def path_penalty(
        self, w: Tensor, noise: Tensor, *, rng: Generator | None = None
    ) -> Tensor:
        """Return the mean of (‖Jᵀy‖ − a)², and let a follow the mean length.

        The first mean is taken whole: a goal of 0 would shrink the generator.
        """
        lengths = path_lengths(self.generator.synthesis(w, noise), w, rng=rng)
        if self.training:
            mean = lengths.detach().mean().to(self.length)
            near = torch.lerp(self.length, mean, 0.01)
            self.length.copy_(torch.where(self.length > 0, near, mean))
        return (lengths - self.length).square().mean()  # (eq:style-path)

    def players(self) -> list[Player]:
        """Return the discriminator, who moves first, and the generator."""
        return [
            Player(list(self.discriminator.parameters()), self.judge),
            Player(list(self.generator.parameters()), self.loss),
        ]


def share(n: int, k: int) -> int:
    """Return how many rows a k-th of a batch of n has, at least one."""
    return max(1, n // k)


def uniform(n: int, like: Tensor, rng: Generator | None) -> Tensor:
    """Draw n uniform numbers with the dtype and device of ``like``."""
    device = like.device if rng is None else rng.device
    u = torch.rand(n, generator=rng, dtype=like.dtype, device=device)
    return u.to(like.device)


# What styles are good for


def truncate(w: Tensor, mean: Tensor, psi: float) -> Tensor:
    """Return w̄ + ψ(w − w̄): styles nearer to their mean (eq:style-truncation)."""
    return mean + psi * (w - mean)


def mix(w: Tensor, other: Tensor, layers: int, cut: int) -> Tensor:
    """Return w in the layers before the cut, another style after, (n, L, k).

    Args:
        w: Coarse styles, shape (n, k).
        other: Fine styles, shape (n, k).
        layers: L.
        cut: How many layers follow w, in 0..L.

    Raises:
        ValueError: A cut outside 0..L.
    """
    if not 0 <= cut <= layers:
        raise ValueError(f"cut must lie in 0..{layers}, got {cut}")
    parts = [
        w[:, None].expand(-1, cut, -1),
        other[:, None].expand(-1, layers - cut, -1),
    ]
    return torch.cat(parts, 1)


class Projection(NamedTuple):
    """Where an image lies in the range of a generator.

    Attributes:
        w: Styles, in the shape of those that the search started from.
        images: Their images, shape (n, 1, h, w).
        error: Mean squared error of each image, shape (n,).
    """

    w: Tensor
    images: Tensor
    error: Tensor


def project(
    synthesis: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    start: Tensor,
    noise: Tensor,
    *,
    steps: int = 200,
    lr: float = 0.05,
) -> Projection:
    """Search for the styles whose images are nearest to x, by Adam.

    Args:
        synthesis: g, differentiable.
        x: Images, shape (n, 1, h, w).
        start: Styles to start from: (n, k) to find one style for an image, and
            (n, L, k) to find one for each layer, which fits more.
        noise: Noise images, held fixed, shape (n, Σ side²).
        steps: Of the search.
        lr: Of the search.

    Raises:
        ValueError: Images of another number or shape than those of the start.
    """
    w = start.detach().clone().requires_grad_()
    with torch.no_grad():
        made = synthesis(w, noise).shape
    if made != x.shape:
        got = tuple(x.shape)
        raise ValueError(f"x must be as the images of start, {tuple(made)}, got {got}")
    search = torch.optim.Adam([w], lr=lr)
    for _ in range(steps):
        error = (synthesis(w, noise) - x).square().mean((1, 2, 3))
        (w.grad,) = torch.autograd.grad(error.sum(), [w])
        search.step()
    with torch.no_grad():
        images = synthesis(w, noise)
    return Projection(w.detach(), images, (images - x).square().mean((1, 2, 3)))


@torch.no_grad()
def perceptual_path_length(
    generator: StyleGenerator,
    see: Callable[[Tensor], Tensor],
    n: int,
    *,
    step: float = 1e-3,
    rng: Generator | None = None,
) -> Tensor:
    """Return n draws of the squared speed, in features, of a line from style to style.

    On the line w(t) = (1 − t) w₀ + t w₁ a draw is ‖φ(g(w(t + δ))) − φ(g(w(t)))‖²/δ²,
    at a random t, with the noise images held fixed (eq:style-ppl).

    Args:
        generator: Mapping and synthesis.
        see: φ, from images to features (n, d).
        n: How many draws.
        step: δ.
        rng: Source of latents and times.

    Returns:
        Shape (n,); their mean is the perceptual path length.

    Raises:
        ValueError: A number of draws or a step that is not positive.
    """
    positive("n", n)
    positive("step", step)
    like = generator.synthesis.constant
    latents = StandardNormal(generator.size).to(like)
    z, noise = generator.split(latents.sample(n, rng=rng))
    a, b = generator.mapping(z), generator.mapping(noise_like(z, rng))
    t = uniform(n, a, rng)[:, None]
    ends = (generator.synthesis(torch.lerp(a, b, s), noise) for s in (t, t + step))
    near, far = (see(x) for x in ends)
    return (far - near).square().sum(1) / step**2


# The game of two numbers


def dirac_path(
    objective: Objective,
    gamma: Tensor,
    *,
    start: tuple[float, float] = (1.0, 1.0),
    lr: float = 0.01,
    steps: int = 5000,
) -> Tensor:
    """Play the Dirac-GAN: data at 0, one sample at θ, D(x) = ψx (eq:style-dirac).

    Both players step at once, along the gradients of their losses.

    Args:
        objective: What each player minimises, without the penalty.
        gamma: Weights of R1, one game for each, shape (n,).
        start: θ and ψ at the start.
        lr: Step size of both.
        steps: How many.

    Returns:
        (θ, ψ) after 0, 1, …, ``steps`` steps, shape (steps + 1, n, 2).
    """
    state = gamma.new_tensor(start).expand(len(gamma), 2)
    path = [state]
    for _ in range(steps):
        theta, psi = state.unbind(1)
        theta, psi = theta.clone().requires_grad_(), psi.clone().requires_grad_()
        critic = len(gamma) * objective.critic(0 * psi, psi * theta)
        critic = critic + (gamma * psi.square()).sum() / 2  # ∇D = ψ
        own = len(gamma) * objective.generator(psi * theta)
        down = [torch.autograd.grad(own, theta)[0], torch.autograd.grad(critic, psi)[0]]
        state = state - lr * torch.stack(down, 1)
        path.append(state)
    return torch.stack(path)
