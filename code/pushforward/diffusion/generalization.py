"""Why a denoiser does not return its training set (book/diffusion/generalization.md).

A blind denoiser f sees y = x + σ z and no σ.  The best one at a level has

    f*(y) = E[x | y],   ∇f*(y) = σ⁻² Cov[x | y],   MSE* = σ² E tr ∇f*(y)

and whatever a model lacks of it is, over all levels, what its law lacks:

    KL(p ‖ p_f) ≤ ∫ (MSE(f, σ) − MSE*(σ)) σ⁻³ dσ                       (eq:gen-kl)

A network without additive constants is its own Jacobian,

    f(y) = ∇f(y) y = Σ_k λ_k ⟨y, e_k⟩ e_k                       (eq:gen-expansion)

a shrinkage in a basis that depends on y.  In a basis given beforehand the best
factors are λ = c²/(c² + σ²), with the error

    Σ_k σ² c_k² / (c_k² + σ²)                                   (eq:gen-shrinkage)

References:
    Kadkhodaie, Guth, Simoncelli, Mallat (2024), Generalization in diffusion models
        arises from geometry-adaptive harmonic representations.
    Mohan, Kadkhodaie, Simoncelli, Fernandez-Granda (2020), Robust and interpretable
        blind image denoising via bias-free convolutional neural networks.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import avg_pool2d

from .reproducibility import bounded, cosine

__all__ = [
    "AdaptiveBasis",
    "BiasFree",
    "CosineShares",
    "Rescale",
    "adaptive_basis",
    "c_alpha_images",
    "cosine_shares",
    "denoiser_jacobian",
    "disk_images",
    "filtered_noise",
    "kl_from_excess",
    "linear_denoiser",
    "model_variance",
    "psnr",
    "psnr_slope",
    "shrinkage_error",
]

Blind = Callable[[Tensor], Tensor]  # f(y), in the shape of y (n, *shape)


# A network without additive constants


class Rescale(nn.Module):
    """Divide each channel by its size, and subtract nothing.

    In training the size is the root mean square over the batch, otherwise a running
    average of it: a constant, so that the map is linear then.

    Args:
        channels: Of the images.
    """

    size: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))
        self.register_buffer("size", torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return images in the shape of x (n, channels, h, w)."""
        if not self.training:
            return x * (self.gain / self.size)
        size = (x.square().mean((0, 2, 3)) + 1e-8).sqrt()[:, None, None]
        with torch.no_grad():
            self.size.lerp_(size.to(self.size), 0.1)
        return x * (self.gain / size)


def layers(a: int, b: int, convs: int) -> nn.Sequential:
    """Return ``convs`` times a convolution, a rescaling and a ReLU, from a channels."""
    each: list[nn.Module] = []
    for c, d in pairwise([a] + [b] * convs):
        each += [nn.Conv2d(c, d, 3, padding=1, bias=False), Rescale(d), nn.ReLU()]
    return nn.Sequential(*each)


class BiasFree(nn.Module):
    """A blind denoiser with f(a y) = a f(y) for a > 0 (eq:gen-expansion).

    Convolutions, means over 2 × 2 pixels and ReLU, nowhere an additive constant: down
    to coarser sizes and up again, where each size sees what was there on the way down.
    The network makes the noise, and f(y) is what is left of y.

    Args:
        channels: Of the images.
        width: Channels at the finest size; each coarser one has twice as many.
        levels: Sizes; the sides of an image must be multiples of 2^(levels − 1).
        convs: Convolutions at each size, on each way.

    Raises:
        ValueError: A size that is not positive.
    """

    def __init__(
        self, channels: int = 1, *, width: int = 64, levels: int = 3, convs: int = 2
    ) -> None:
        super().__init__()
        if min(channels, width, levels, convs) < 1:
            got = f"{channels}, {width}, {levels}, {convs}"
            raise ValueError(f"channels, width, levels, convs must be ≥ 1, got {got}")
        sizes = [width * 2**i for i in range(levels)]
        self.down = nn.ModuleList(
            layers(a, b, convs) for a, b in pairwise([channels, *sizes])
        )
        pairs = [*pairwise(sizes)][::-1]  # coarse to fine
        self.lift = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 2, stride=2, bias=False) for a, b in pairs
        )
        self.up = nn.ModuleList(layers(2 * a, a, convs) for a, _ in pairs)
        self.leave = nn.Conv2d(width, channels, 3, padding=1, bias=False)

    def forward(self, y: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Return f(y), in the shape of y (n, channels, h, w).

        Args:
            y: Noisy images.
            sigma: Not looked at; with it f may stand where a level is passed, too.

        Raises:
            ValueError: Images whose sides cannot be halved as often as needed.
        """
        if y.ndim != 4 or any(side % 2 ** len(self.up) for side in y.shape[2:]):
            want = f"sides that are multiples of {2 ** len(self.up)}"
            raise ValueError(f"y must be (n, c, h, w) with {want}, got {(*y.shape,)}")
        h, seen = y, []
        for i, block in enumerate(self.down):
            h = block(avg_pool2d(h, 2) if i else h)
            seen.append(h)
        for rise, block, beside in zip(self.lift, self.up, seen[-2::-1], strict=True):
            h = block(torch.cat([rise(h), beside], 1))
        return y - self.leave(h)


# Its Jacobian


def batch(name: str, x: Tensor, d: int | None = None) -> Tensor:
    """Return x if it is a batch of finite real data, else complain by name."""
    if x.ndim < 2 or not x.numel() or not x.is_floating_point():
        got = f"{tuple(x.shape)} of {x.dtype}"
        raise ValueError(f"{name} must be real numbers (n, *shape), got {got}")
    if d is not None and x[0].numel() != d:
        raise ValueError(f"{name} must have {d} numbers a row, got {tuple(x.shape)}")
    if not x.isfinite().all():
        raise ValueError(f"{name} must be finite, got infinities or NaN")
    return x


def denoiser_jacobian(f: Blind, y: Tensor, *, chunk: int | None = None) -> Tensor:
    """Return ∇f at each y: entry (i, j) is ∂f_i/∂y_j, shape (n, d, d).

    Args:
        f: Each of its rows depends on that row of y only: a network in ``eval`` mode.
        y: Points or images (n, *shape), of d numbers each.
        chunk: How many rows of a Jacobian are computed at once; all by default.

    Raises:
        ValueError: y is no batch, or f(y) has another shape.
    """
    batch("y", y)
    if (shape := f(y[:1]).shape) != y[:1].shape:
        raise ValueError(f"f must keep the shape {(*y[:1].shape,)}, got {(*shape,)}")
    d = y[0].numel()
    jacobian = torch.func.jacrev(lambda x: f(x[None])[0], chunk_size=chunk)
    if chunk is None:
        return torch.vmap(jacobian)(y).reshape(-1, d, d)
    return torch.stack([jacobian(x).reshape(d, d) for x in y])


class AdaptiveBasis(NamedTuple):
    """Eigenvectors of a denoiser's Jacobian at an image, and two certificates.

    Attributes:
        values: λ_1 ≥ λ_2 ≥ … of the symmetric part of ∇f(y), shape (d,).
        vectors: e_1, e_2, … as images, orthonormal, shape (d, *shape).
        asymmetry: ‖J − Jᵀ‖/‖J + Jᵀ‖, Frobenius norms: 0 for the best denoiser.
        affinity: ‖f(y) − J y‖/‖f(y)‖: 0 where f is homogeneous.
    """

    values: Tensor
    vectors: Tensor
    asymmetry: float
    affinity: float

    def coefficients(self, x: Tensor) -> Tensor:
        """Return ⟨x, e_k⟩ of an image x (*shape), shape (d,)."""
        return self.vectors.flatten(1) @ x.flatten()


@torch.no_grad()
def adaptive_basis(f: Blind, y: Tensor, *, chunk: int | None = None) -> AdaptiveBasis:
    """Return the basis in which f shrinks the image y (*shape) (eq:gen-expansion).

    Args:
        f: As in :func:`denoiser_jacobian`.
        y: One image, without a batch dimension.
        chunk: As there.
    """
    J = denoiser_jacobian(f, y[None], chunk=chunk)[0]
    values, columns = torch.linalg.eigh((J + J.T) / 2)
    out = f(y[None]).flatten()
    return AdaptiveBasis(
        values.flip(0),
        columns.T.flip(0).reshape(-1, *y.shape),
        float((J - J.T).norm() / (J + J.T).norm()),
        float((out - J @ y.flatten()).norm() / out.norm()),
    )


def level(sigma: float) -> None:
    """Raise a ``ValueError`` unless 0 < σ < ∞."""
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be positive and finite, got {sigma}")


# Errors, and what they say


def curve(sigmas: Tensor, values: Tensor, name: str) -> None:
    """Raise a ``ValueError`` unless the values belong to rising positive levels."""
    if sigmas.ndim != 1 or len(sigmas) < 2 or values.shape != sigmas.shape:
        got = f"{tuple(sigmas.shape)} and {tuple(values.shape)}"
        raise ValueError(f"sigmas, {name} must be of one shape (k,), k ≥ 2, got {got}")
    if not (sigmas > 0).all() or not (sigmas.diff() > 0).all():
        raise ValueError(f"sigmas must be positive and rising, got {sigmas}")
    if not values.isfinite().all():
        raise ValueError(f"{name} must be finite, got {values}")


def kl_from_excess(sigmas: Tensor, excess: Tensor) -> Tensor:
    """Return ∫ excess σ⁻³ dσ by the trapezoid in log σ, a scalar (eq:gen-kl).

    Args:
        sigmas: Rising levels, (k,); what lies outside them is left out.
        excess: MSE(f, σ) − MSE*(σ), summed over the coordinates, (k,).

    Raises:
        ValueError: Levels that are not positive and rising, or unlike shapes.
    """
    curve(sigmas, excess, "excess")
    return torch.trapezoid(excess / sigmas.square(), sigmas.log())


def shrinkage_error(c: Tensor, sigmas: Tensor) -> Tensor:
    """Return Σ_k σ² c_k²/(c_k² + σ²) for each level (eq:gen-shrinkage).

    Args:
        c: Coefficients, or the deviations of Gaussian ones, (d,).
        sigmas: Levels σ > 0, (k,).

    Raises:
        ValueError: Other shapes, or a level that is not positive.
    """
    if c.ndim != 1 or sigmas.ndim != 1:
        got = f"{tuple(c.shape)} and {tuple(sigmas.shape)}"
        raise ValueError(f"c, sigmas must have shapes (d,) and (k,), got {got}")
    if not (sigmas > 0).all():
        raise ValueError(f"sigmas must be positive, got {sigmas}")
    signal = c.square()
    return torch.stack([(v * signal / (v + signal)).sum() for v in sigmas.square()])


def psnr(mse: Tensor) -> Tensor:
    """Return −10 log₁₀ of a mean square error per pixel, for a range of one, in dB."""
    if not (mse > 0).all():
        raise ValueError(f"mse must be positive, got {mse}")
    return -10 * mse.log10()


def psnr_slope(sigmas: Tensor, mse: Tensor) -> Tensor:
    """Return the slope of output over input PSNR, by least squares, a scalar.

    Args:
        sigmas: Rising levels, (k,): the input PSNR is −20 log₁₀ σ.
        mse: Errors at these levels, positive, (k,).

    Raises:
        ValueError: As in :func:`kl_from_excess`, or an error that is not positive.
    """
    curve(sigmas, mse, "mse")
    before, after = psnr(sigmas.square()), psnr(mse)
    centred = before - before.mean()
    return centred @ after / (centred @ centred)


# Two models of one law


def linear_denoiser(x: Tensor, sigma: float) -> Tensor:
    """Return A = S (S + σ²I)⁻¹, with S = Σᵢ xᵢ xᵢᵀ/n: the best y ↦ A y for these x.

    Args:
        x: Data of mean zero (n, d).
        sigma: σ, positive.
    """
    level(sigma)
    if batch("x", x).ndim != 2:
        raise ValueError(f"x must have shape (n, d), got {tuple(x.shape)}")
    S = x.T @ x / len(x)
    eye = torch.eye(len(S), dtype=S.dtype, device=S.device)
    return torch.linalg.solve(S + sigma**2 * eye, S)


def model_variance(lam: Tensor, sigma: float) -> Tensor:
    """Return lim N E‖A y − B y‖², A and B fitted to N data each (eq:gen-variance).

    The data are Gaussian; A and B are those of :func:`linear_denoiser`.

    Args:
        lam: Eigenvalues of their covariance, (d,).
        sigma: σ, positive.
    """
    level(sigma)
    if lam.ndim != 1 or not len(lam) or not (lam >= 0).all():
        raise ValueError(f"lam must be eigenvalues (d,), got {lam}")
    s = lam / (lam + sigma**2)
    undecided = s * (1 - s)  # large where signal and noise are alike
    return 2 * sigma**2 * (undecided.sum() * s.sum() + (undecided * s).sum())


class CosineShares(NamedTuple):
    """How two models agree with one another, and how one of them copies.

    Attributes:
        agree: Mean cosine between a sample of the one and of the other.
        same: Share of such cosines above the threshold.
        nearest: Mean cosine between a sample and the training image nearest to it.
        copies: Share of such cosines above the threshold.
    """

    agree: float
    same: float
    nearest: float
    copies: float


def cosine_shares(
    a: Tensor, b: Tensor, train: Tensor, *, centre: Tensor, threshold: float = 0.9
) -> CosineShares:
    """Compare samples of two models from the same noise, row by row.

    Args:
        a: Samples of the one, (n, *shape).
        b: Samples of the other, likewise.
        train: What the first was trained on, (m, *shape).
        centre: Subtracted from all of them, (*shape): the mean of the data.
        threshold: Cosine above which two images count as one, in [−1, 1].

    Raises:
        ValueError: Shapes that do not agree, or a bad threshold.
    """
    pair = cosine(a, b, centre=centre)
    u, w = ((x - centre).flatten(1) for x in (a, batch("train", train, a[0].numel())))
    near = (nn.functional.normalize(u) @ nn.functional.normalize(w).T).amax(1)
    means = [c.mean().item() for c in (pair, near)]
    shares = [(c > bounded(threshold)).double().mean().item() for c in (pair, near)]
    return CosineShares(means[0], shares[0], means[1], shares[1])


# Images of known regularity


def filtered_noise(
    n: int, shape: tuple[int, ...], decay: float, *, rng: Generator | None = None
) -> Tensor:
    """Draw periodic noise of amplitudes |ω|^(−decay) and variance one (eq:gen-filter).

    Independent uniform numbers are multiplied by max(|ω|, 1)^(−decay) in the Fourier
    domain, ω being the vector of whole frequencies.

    Args:
        n: How many.
        shape: Sizes of a draw.
        decay: Exponent, at least 0.
        rng: Source of the draw, and its device.

    Raises:
        ValueError: A size that is not positive, or a negative exponent.
    """
    if n < 1 or not shape or min(shape) < 1:
        raise ValueError(f"n and shape must be positive, got {n} and {shape}")
    if not 0 <= decay < math.inf:
        raise ValueError(f"decay must be at least 0 and finite, got {decay}")
    device = None if rng is None else rng.device
    u = torch.rand((n, *shape), generator=rng, device=device) - 0.5
    waves = torch.meshgrid(*[torch.fft.fftfreq(s, 1 / s) for s in shape], indexing="ij")
    size = torch.stack(waves).square().sum(0).sqrt().to(u)
    gain = size.clamp(min=1) ** -decay  # (eq:gen-filter)
    axes = tuple(range(1, u.ndim))
    x = torch.fft.ifftn(gain * torch.fft.fftn(u, dim=axes), dim=axes).real
    return x / (gain.square().mean() / 12).sqrt()


def spread(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return images (n, h, w) moved and scaled to the ranges low (n,) to high (n,)."""
    least, most = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    share = (x - least) / (most - least)
    return low[:, None, None] + (high - low)[:, None, None] * share


def c_alpha_images(
    n: int,
    size: int,
    alpha: float,
    *,
    background: float | None = None,
    rng: Generator | None = None,
) -> Tensor:
    """Draw two smooth backgrounds, one above and one below a smooth contour.

    Algorithm 2 of Kadkhodaie et al., with what their program adds: one background is
    bright, the other dark, and the edge is averaged over each pixel.

    Args:
        n: How many.
        size: Height and width.
        alpha: Decay of the contour's amplitudes, |ω|^−α.
        background: Decay of the backgrounds' amplitudes; α by default.
        rng: Source of the draw, and its device.

    Returns:
        Images in [0, 1], shape (n, 1, size, size).

    Raises:
        ValueError: A size below 2, or a decay that is not positive.
    """
    decay = alpha if background is None else background
    if size < 2 or not min(alpha, decay) > 0:
        got = f"{size}, {alpha}, {decay}"
        raise ValueError(f"need size ≥ 2, alpha, background > 0, got {got}")
    height = 0.5 + 0.12 * filtered_noise(n, (size,), alpha, rng=rng)  # (n, size)
    one, two = (filtered_noise(n, (size, size), decay, rng=rng) for _ in "12")
    a, b, coin = torch.rand((3, n), generator=rng, device=height.device)
    bright = spread(one, a, torch.ones_like(a))
    dark = spread(two, torch.zeros_like(b), b)
    rows = torch.arange(size, device=height.device).to(height)[:, None]
    above = (size * height[:, None] - rows).clamp(0, 1)  # share of a pixel, (n, h, w)
    mask = torch.where((coin < 0.5)[:, None, None], above, 1 - above)
    return (mask * bright + (1 - mask) * dark)[:, None]


def disk_images(n: int, size: int, *, rng: Generator | None = None) -> Tensor:
    """Draw disks of any place, radius and two grey values: five numbers each.

    Args:
        n: How many.
        size: Height and width, at least 8.
        rng: Source of the draw, and its device.

    Returns:
        Images in [0, 1], shape (n, 1, size, size); edges are a pixel wide.

    Raises:
        ValueError: No image, or a size below 8.
    """
    if n < 1 or size < 8:
        raise ValueError(f"need n ≥ 1 and size ≥ 8, got {n} and {size}")
    device = None if rng is None else rng.device
    u = torch.rand((5, n, 1, 1), generator=rng, device=device)
    radius = size * (0.12 + 0.23 * u[0])
    row, col = (radius + (size - 2 * radius) * v for v in u[1:3])
    at = torch.arange(size, device=u.device).to(u) + 0.5
    distance = ((at[:, None] - row).square() + (at - col).square()).sqrt()  # (n, h, w)
    mask = (radius - distance + 0.5).clamp(0, 1)
    return (mask * u[3] + (1 - mask) * u[4])[:, None]
