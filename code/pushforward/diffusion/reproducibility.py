"""Why two networks draw the same image (book/diffusion/reproducibility.md).

Without noise of its own, sampling is a map from noise to images: the flow of

    dx/ds = x − D(x, e^s),   s = ln σ                                (eq:repro-flow)

Where D is the exact denoiser of a law, the map is a function of that law and of
nothing else.  If the law is that of n data y_1, …, y_n, each as likely as the others,

    D(x, σ) = Σ_i r_i y_i,   r = softmax_i(−‖x − y_i‖²/(2σ²))   (eq:empirical-denoiser)

and the flow ends in the data.  What is between these two ends is measured by the
share of noises from which two models draw nearly the same image (eq:rp-score).

References:
    Zhang, Zhou, Lu, Guo, Wang, Shen, Qu (2024), The emergence of reproducibility and
        consistency in diffusion models.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..distributions import Gaussian
from ..ode import Field
from .score import Denoiser

__all__ = [
    "Landing",
    "Similarity",
    "cosine",
    "empirical_denoiser",
    "flow_bound",
    "gaussian_flow",
    "generalization_score",
    "landing",
    "level_flow",
    "mae_score",
    "nearest_similarity",
    "rp_score",
]

Similarity = Callable[[Tensor, Tensor], Tensor]  # of n pairs of images: (n,)

PAIRS = 2**22  # numbers of a block of pairs of images


# The flow


def level_flow(D: Denoiser) -> Field:
    """Return the probability flow as a field of x and s = ln σ (eq:repro-flow).

    Integrated with falling s it decodes noise, with rising s it encodes images.
    """

    def v(x: Tensor, s: Tensor) -> Tensor:
        return x - D(x, s.exp())

    return v


def gaussian_flow(law: Gaussian, x: Tensor, start: float, end: float) -> Tensor:
    """Return where the flow of N(m, Σ) takes x from one level to another.

    It is m + (Σ + end² I)^{1/2} (Σ + start² I)^{−1/2} (x − m) (eq:repro-gaussian).

    Args:
        law: N(m, Σ).
        x: Points (n, d) at the level ``start``.
        start: Noise level ≥ 0.
        end: Noise level ≥ 0.

    Raises:
        ValueError: A negative level.
    """
    if min(start, end) < 0:
        raise ValueError(f"start, end must be levels ≥ 0, got {start}, {end}")
    lam, U = torch.linalg.eigh(law.covs[0])
    stretch = ((lam + end**2) / (lam + start**2)).sqrt()
    return law.means[0] + (x - law.means[0]) @ U * stretch @ U.T  # (eq:repro-gaussian)


def flow_bound(
    sigmas: Tensor, slopes: Tensor, errors: Tensor, *, start: float = 0.0
) -> Tensor:
    """Return how far apart two decoders may end, by the trapezoid rule.

    It is the right side of (eq:repro-bound).

    Args:
        sigmas: Falling levels, all positive, (k,).
        slopes: One-sided Lipschitz constants of one denoiser there, (k,).
        errors: ‖D̂ − D‖ at those levels along paths of the other, (k, n) or (k,).
        start: Distance at the first level.

    Returns:
        The bounds at the last level, (n,) or ().

    Raises:
        ValueError: Levels that do not fall, shapes that do not agree, or negative
            errors.
    """
    if sigmas.ndim != 1 or len(sigmas) < 2 or not (sigmas.diff() < 0).all():
        raise ValueError(f"sigmas must be at least two falling levels, got {sigmas}")
    if not sigmas[-1] > 0:
        raise ValueError(f"sigmas must be positive, the last is {sigmas[-1]:.3g}")
    if slopes.shape != sigmas.shape or errors.shape[:1] != sigmas.shape:
        got = f"{tuple(slopes.shape)} and {tuple(errors.shape)}"
        raise ValueError(f"slopes, errors must have {len(sigmas)} rows, got {got}")
    if not (errors >= 0).all() or start < 0:
        raise ValueError("errors, start must be distances ≥ 0")
    s = -sigmas.log()
    rate = torch.cumulative_trapezoid(slopes - 1, s)
    rate = torch.cat([rate.new_zeros(1), rate])  # ∫ (L − 1) du/u from the start
    growth = (rate[-1] - rate).exp()  # from each level to the end
    terms = errors * growth.reshape(-1, *(1,) * (errors.ndim - 1))
    return growth[0] * start + torch.trapezoid(terms, s, dim=0)  # (eq:repro-bound)


# The law of finitely many data


def data(name: str, Y: Tensor) -> Tensor:
    """Return Y if it is a batch of finite real data, else raise a ``ValueError``."""
    if Y.ndim < 2 or not len(Y) or not Y.is_floating_point():
        got = f"{tuple(Y.shape)} of {Y.dtype}"
        raise ValueError(f"{name} must be real numbers (n, *shape), n ≥ 1, got {got}")
    if not Y.isfinite().all():
        raise ValueError(f"{name} must be finite, got infinities or NaN")
    return Y


def alike(name: str, x: Tensor, Y: Tensor) -> None:
    """Raise a ``ValueError`` unless the rows of x are of the kind of those of Y."""
    if x.shape[1:] != Y.shape[1:] or x.ndim != Y.ndim:
        rows, came = tuple(Y.shape[1:]), tuple(x.shape[1:])
        raise ValueError(f"{name} must have rows of shape {rows}, got {came}")
    if (x.dtype, x.device) != (Y.dtype, Y.device):
        want, got = f"{Y.dtype} on {Y.device}", f"{x.dtype} on {x.device}"
        raise ValueError(f"{name} must be {want} like the data, got {got}")


def squared_distances(x: Tensor, Y: Tensor) -> Tensor:
    """Return ‖x_i − y_j‖², shape (n, N), from differences: small ones are exact."""
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(x.flatten(1), Y.flatten(1), compute_mode=mode).square()


def empirical_denoiser(Y: Tensor, *, chunk: int = 1024) -> Denoiser:
    """Return the best denoiser for the law of finitely many data.

    It is (eq:empirical-denoiser).  No denoiser has a lower loss on them.

    Args:
        Y: The data (N, *shape).
        chunk: Rows of x that are compared with the data at once; the memory grows
            as chunk · N.

    Returns:
        The denoiser, for x (n, *shape) and levels σ ≥ 0, () or (n, 1, …, 1).  At
        σ = 0 it returns the nearest datum, and the mean of several equally near.

    Raises:
        ValueError: No data, or a chunk below 1; when called, an x or σ that does
            not fit.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    rows = data("Y", Y).flatten(1)

    def part(x: Tensor, var: Tensor) -> Tensor:
        sq = squared_distances(x, rows)  # (n, N)
        gap = sq - sq.amin(1, keepdim=True)
        r = (-gap / (2 * var).clamp(min=torch.finfo(x.dtype).tiny)).softmax(1)
        return (r @ rows).view_as(x)  # (eq:empirical-denoiser)

    def D(x: Tensor, sigma: Tensor) -> Tensor:
        alike("x", x, Y)
        if sigma.numel() not in (1, len(x)):
            want, got = f"() or {(len(x), *(1,) * (x.ndim - 1))}", tuple(sigma.shape)
            raise ValueError(f"sigma must be {want}, got {got}")
        var = sigma.square().reshape(-1, 1).expand(len(x), 1)
        blocks = zip(x.split(chunk), var.split(chunk), strict=True)
        return torch.cat([part(a, v) for a, v in blocks])

    return D


class Landing(NamedTuple):
    """Where among the data a trajectory ends.

    Attributes:
        datum: Number of the nearest one, (n,).
        distance: To it, (n,).
        captured: Whether the flow of (eq:empirical-denoiser) from there certainly
            ends in that datum (eq:repro-capture), (n,).
    """

    datum: Tensor
    distance: Tensor
    captured: Tensor


def landing(x: Tensor, Y: Tensor, *, sigma: float = 0.0, chunk: int = 1024) -> Landing:
    """Return the datum at which each point arrives, and whether it must stay there.

    Args:
        x: Points of trajectories at one level, (n, *shape).
        Y: The data (N, *shape).
        sigma: The level ≥ 0.
        chunk: Rows compared at once.

    Raises:
        ValueError: Empty or unlike x and Y, or a negative level.
    """
    alike("x", data("x", x), data("Y", Y))
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma must be a level ≥ 0, got {sigma}")
    parts = [land(rows, Y, sigma) for rows in x.split(chunk)]
    return Landing(*(torch.cat(column) for column in zip(*parts, strict=True)))


def land(x: Tensor, Y: Tensor, sigma: float) -> Landing:
    """Return :func:`landing` of one block of rows."""
    distance, datum = squared_distances(x, Y).min(1)
    sq = squared_distances(Y[datum], Y)  # (n, N), from that datum to the others
    room = sq.where(sq > 0, torch.inf).amin(1).sqrt() / 4  # δ/4; copies do not count
    fade = (-sq / max(4 * sigma**2, torch.finfo(x.dtype).tiny)).exp()
    miss = (sq.sqrt() * fade).sum(1)  # of the denoiser, anywhere within δ/4
    captured = (distance.sqrt() <= room) & (miss < room)  # (eq:repro-capture)
    return Landing(datum, distance.sqrt(), captured)


# Scores


def cosine(a: Tensor, b: Tensor, *, centre: Tensor | float = 0.0) -> Tensor:
    """Return the cosines of the angles between a_i − c and b_i − c, shape (n,).

    Args:
        a: Images, or features of them, (n, *shape).
        b: As many, of the same shape.
        centre: c: what the images have in common, such as the mean image.

    Raises:
        ValueError: Unlike shapes, or a row that equals c and has no direction.
    """
    alike("b", data("b", b), data("a", a))
    if len(a) != len(b):
        raise ValueError(f"b must have {len(a)} rows like a, got {len(b)}")
    u, v = (a - centre).flatten(1), (b - centre).flatten(1)
    for name, w in (("a", u), ("b", v)):
        if not w.norm(dim=1).min() > 0:
            raise ValueError(f"{name} must not equal the centre: it has no direction")
    return torch.nn.functional.cosine_similarity(u, v, dim=1)


def rp_score(
    a: Tensor, b: Tensor, *, threshold: float = 0.9, similarity: Similarity = cosine
) -> float:
    """Return the share of pairs more similar than the threshold (eq:rp-score).

    Args:
        a: What one model draws, (n, *shape).
        b: What the other draws from the same noises, row by row.
        threshold: In [−1, 1].
        similarity: Of pairs; ``partial(cosine, centre=mean)`` for images.

    Raises:
        ValueError: A threshold outside [−1, 1], or pairs that are none.
    """
    return (similarity(a, b) > bounded(threshold)).double().mean().item()


def bounded(threshold: float) -> float:
    """Return a threshold in [−1, 1], else raise a ``ValueError``."""
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [−1, 1], got {threshold}")
    return threshold


def mae_score(a: Tensor, b: Tensor, *, threshold: float = 15 / 255) -> float:
    """Return the share of pairs whose pixels differ by less than this on average.

    Args:
        a: What one model draws, (n, *shape), grey levels in [0, 1].
        b: What the other draws, row by row.
        threshold: Positive; the default is that of Zhang et al.

    Raises:
        ValueError: Unlike shapes, or a threshold that is not positive.
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be positive, got {threshold}")
    alike("b", data("b", b), data("a", a))
    if len(a) != len(b):
        raise ValueError(f"b must have {len(a)} rows like a, got {len(b)}")
    miss = (a - b).abs().flatten(1).mean(1)
    return (miss < threshold).double().mean().item()


def nearest_similarity(
    x: Tensor, Y: Tensor, *, similarity: Similarity = cosine
) -> Tensor:
    """Return the similarity of each row of x to the datum most similar to it, (n,)."""
    alike("x", data("x", x), data("Y", Y))
    block = max(1, PAIRS // x.numel())
    best = x.new_full((len(x),), -math.inf)
    for rows in Y.split(block):
        left = x.repeat_interleave(len(rows), 0)
        right = rows.repeat(len(x), *(1,) * (x.ndim - 1))
        near = similarity(left, right).view(len(x), len(rows)).amax(1)
        best = torch.maximum(best, near)
    return best


def generalization_score(
    x: Tensor, Y: Tensor, *, threshold: float = 0.9, similarity: Similarity = cosine
) -> float:
    """Return the share of x that copies no datum: none is more similar than this.

    Args:
        x: What a model draws, (n, *shape).
        Y: The data it was trained on, (N, *shape).
        threshold: In [−1, 1].
        similarity: Of pairs.

    Raises:
        ValueError: A threshold outside [−1, 1], empty or unlike x and Y.
    """
    near = nearest_similarity(x, Y, similarity=similarity)
    return (near <= bounded(threshold)).double().mean().item()
