"""How far a sample is from a law, measured by a sample of it (book/back/metrics.md).

    MMD²(μ, ν) = E k(X, X') + E k(Y, Y') − 2 E k(X, Y)                   (eq:mmd)
    D²(μ, ν) = 2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖            (eq:energy-distance)
    F(μ, ν) = W₂²(N(m_X, S_X), N(m_Y, S_Y))                 (eq:frechet-distance)
    E F(μ̂ₙ, ν̂ₙ) ≈ c_F/n,  where μ = ν                           (eq:frechet-bias)
    p = (1 + #{b : T_b ≥ T}) / (1 + B)                       (eq:permutation-p)

Two samples come as x (n, *shape) and y (m, *shape) and are compared in float64,
block by block: time n·m, memory n + m.  MMD², D² and F are squares of distances.
The sliced Wasserstein distance is in ``ot``, bits per dimension in ``objectives``.

References:
    Gretton, Borgwardt, Rasch, Schölkopf, Smola (2012), A kernel two-sample test.
    Székely, Rizzo (2013), Energy statistics.
    Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter (2017), GANs trained by a two
        time-scale update rule converge to a local Nash equilibrium.
    Phipson, Smyth (2010), Permutation p-values should never be zero.
    Theis, van den Oord, Bethge (2016), A note on the evaluation of generative models.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from .distributions import Law, positive
from .ot.gaussian import bures

__all__ = [
    "Classifier",
    "Estimate",
    "Kernel",
    "TwoSample",
    "copy_share",
    "distance_kernel",
    "energy_distance",
    "features",
    "frechet_bias",
    "frechet_distance",
    "gaussian_kernel",
    "median_distance",
    "mmd",
    "nll",
    "parzen_log_prob",
    "polynomial_kernel",
    "two_sample",
]

Kernel = Callable[[Tensor, Tensor], Tensor]  # k(x, y) of (n, d) and (m, d): (n, m)

ROWS = 1024  # of a block of pairs


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Return ‖xᵢ − yⱼ‖, shape (n, m), centred so that products round less."""
    c = y.mean(0)
    return torch.cdist(x - c, y - c)


def gaussian_kernel(bandwidth: float) -> Kernel:
    """Return k(x, y) = exp(−‖x − y‖²/(2 h²)) with bandwidth h (eq:gaussian-kernel)."""
    positive("bandwidth", bandwidth)
    return lambda x, y: (-(distances(x, y) / bandwidth).square() / 2).exp()


def distance_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return −‖x − y‖, positive definite on differences of laws, shape (n, m)."""
    return -distances(x, y)


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return (1 + ⟨x, y⟩/d)³, the kernel of Bińkowski et al. (2018), shape (n, m)."""
    return (1 + x @ y.T / x.shape[1]) ** 3


def median_distance(x: Tensor) -> float:
    """Return the median of ‖xᵢ − xⱼ‖, i < j, over at most 2000 evenly taken rows.

    It is the customary bandwidth of :func:`gaussian_kernel`; give it both samples
    pooled, so that it knows nothing of which point came from where.
    """
    pool = sample("x", x)
    return torch.pdist(pool[:: math.ceil(len(pool) / 2000)]).median().item()


def mmd(x: Tensor, y: Tensor, kernel: Kernel, *, unbiased: bool = True) -> Tensor:
    """Return an estimate of the squared maximum mean discrepancy (eq:mmd).

    Args:
        x: Sample of μ, shape (n, *shape), n ≥ 2.
        y: Sample of ν, shape (m, *shape), m ≥ 2.
        kernel: k, from (n, d) and (m, d) to (n, m).
        unbiased: Leave out the pairs i = j (eq:mmd-unbiased), so that the mean is
            right and the value may be negative; else it is the squared distance of
            the empirical laws.

    Returns:
        A float64 scalar.

    Raises:
        ValueError: Samples that are too small, not finite, or of unlike shapes.
    """
    x, y = pair(x, y)
    within = pair_mean(kernel, x, x, unbiased) + pair_mean(kernel, y, y, unbiased)
    return within - 2 * pair_mean(kernel, x, y, False)


def pair_mean(kernel: Kernel, x: Tensor, y: Tensor, distinct: bool) -> Tensor:
    """Return the mean of k(xᵢ, yⱼ) over all pairs, or over those with i ≠ j."""
    total = x.new_zeros(())
    for i, rows in enumerate(x.split(ROWS)):
        k = kernel(rows, y)
        total = total + k.sum()
        if distinct:
            total = total - k.diagonal(offset=i * ROWS).sum()
    return total / (len(x) * (len(y) - distinct))


def energy_distance(x: Tensor, y: Tensor, *, unbiased: bool = True) -> Tensor:
    """Return an estimate of D² (eq:energy-distance), a float64 scalar.

    It is MMD² with the kernel −‖x − y‖ (eq:energy-mmd); arguments as in
    :func:`mmd`.  SciPy's function of this name returns D, not D².
    """
    return mmd(x, y, distance_kernel, unbiased=unbiased)


def frechet_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return W₂² of the Gaussians fitted to two samples (eq:frechet-distance).

    Args:
        x: Features of one sample, shape (n, d), n ≥ 2.
        y: Features of the other, shape (m, d), m ≥ 2.

    Returns:
        A float64 scalar.  For samples of one law it is about c_F/n, not 0: see
        :func:`frechet_bias`, and compare only values of equal n and m.

    Raises:
        ValueError: Samples that are too small, not finite, or of unlike shapes.
    """
    x, y = pair(x, y)
    return bures(x.mean(0), covariance(x), y.mean(0), covariance(y))


def frechet_bias(x: Tensor) -> Tensor:
    """Return c_F, where n E F → c_F for two samples of one law (eq:frechet-bias).

    Args:
        x: Features from which the moments of the law are taken, shape (n, d).

    Returns:
        A float64 scalar; samples of sizes n and m have the mean c_F (1/n + 1/m)/2.
    """
    x = sample("x", x)
    lam, axes = torch.linalg.eigh(covariance(x))
    sq = ((x - x.mean(0)) @ axes).square()  # (n, d), uᵢ²
    kappa = sq.T @ sq / len(x) - torch.diag(lam**2)  # (d, d), Var(uᵢ uⱼ)
    sums = lam[:, None] + lam
    seen = sums > 1e-12 * lam[-1]  # the law has no width along the others
    return 2 * lam.sum() + (kappa[seen] / sums[seen]).sum()  # (eq:frechet-bias)


def covariance(x: Tensor) -> Tensor:
    """Return Σᵢ (xᵢ − x̄)(xᵢ − x̄)ᵀ / (n − 1), shape (d, d), symmetric."""
    c = x - x.mean(0)
    S = c.T @ c / (len(x) - 1)
    return (S + S.T) / 2


class TwoSample(NamedTuple):
    """What a permutation test says.

    Attributes:
        statistic: T of the samples as they were given.
        p: Under the hypothesis of one law, P(p ≤ α) ≤ α for every α.
    """

    statistic: float
    p: float


def two_sample(
    x: Tensor,
    y: Tensor,
    statistic: Callable[[Tensor, Tensor], Tensor] = energy_distance,
    *,
    permutations: int = 199,
    rng: Generator | None = None,
) -> TwoSample:
    """Test whether two samples come from one law, by relabelling (eq:permutation-p).

    Args:
        x: Sample of μ, shape (n, *shape), n ≥ 2.
        y: Sample of ν, shape (m, *shape), m ≥ 2.
        statistic: T, large when the samples differ; it sees nothing but its arguments.
        permutations: B, how many relabellings; the smallest p is 1/(1 + B).
        rng: Source of the relabellings.

    Raises:
        ValueError: Bad samples, or no permutation.
    """
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, got {permutations}")
    x, y = pair(x, y)
    n, pool = len(x), torch.cat([x, y])
    device = pool.device if rng is None else rng.device
    observed, exceed = float(statistic(x, y)), 0
    for _ in range(permutations):
        order = torch.randperm(len(pool), generator=rng, device=device)
        z = pool[order.to(pool.device)]
        exceed += float(statistic(z[:n], z[n:])) >= observed
    return TwoSample(observed, (1 + exceed) / (1 + permutations))


class Estimate(NamedTuple):
    """A mean over data, and how well the data determine it.

    Attributes:
        mean: The mean.
        se: Its standard error.
    """

    mean: float
    se: float


@torch.no_grad()
def nll(law: Law, x: Tensor, *, batch: int = 1000) -> Estimate:
    """Return the mean of −log p(x) over data, in nats per datum.

    Args:
        law: Whatever has ``log_prob``.
        x: Data that the law was not fitted to, shape (n, *shape), n ≥ 2.
        batch: How many are evaluated at once.

    Raises:
        ValueError: Fewer than two data.
    """
    if len(x) < 2:
        raise ValueError(f"x must hold at least 2 data, got {len(x)}")
    values = torch.cat([-law.log_prob(rows) for rows in x.split(batch)]).double()
    return Estimate(values.mean().item(), (values.std() / len(x) ** 0.5).item())


def parzen_log_prob(x: Tensor, centres: Tensor, bandwidth: float) -> Tensor:
    """Return log 1/m Σⱼ N(x; yⱼ, h²I) at the points x, shape (n,) (eq:parzen).

    Args:
        x: Points, shape (n, *shape).
        centres: The sample y, shape (m, *shape).
        bandwidth: h, in the unit of x.
    """
    positive("bandwidth", bandwidth)
    x, y = pair(x, centres)
    norm = math.log(len(y)) + x.shape[1] * math.log(bandwidth * math.sqrt(2 * math.pi))
    sq = [(distances(rows, y) / bandwidth).square() for rows in x.split(ROWS)]
    return torch.cat([(-s / 2).logsumexp(1) for s in sq]) - norm


def copy_share(x: Tensor, train: Tensor, test: Tensor) -> float:
    """Return the share of x that lies nearer to train than to test (eq:copy-share).

    It is about 1/2 for a model that has learned the law, and 1 for one that copies.

    Args:
        x: Sample of the model, shape (n, *shape).
        train: Data that the model has seen, shape (m, *shape).
        test: Data that it has not seen, as many.

    Raises:
        ValueError: Train and test of different sizes, which would favour one.
    """
    if len(train) != len(test):
        raise ValueError(f"test must have {len(train)} rows, got {len(test)}")
    nearest = []
    for data in (train, test):
        points, y = pair(x, data)
        blocks = points.split(ROWS)
        nearest.append(torch.cat([distances(rows, y).amin(1) for rows in blocks]))
    return (nearest[0] < nearest[1]).double().mean().item()


class Classifier(nn.Module):
    """A small convolutional classifier of grey images, for its features.

    Three convolutions halve the sides; a linear map leaves ``width`` numbers, from
    which another one makes the logits.  Those numbers over ``scale`` are the features.

    Args:
        side: Height and width of the images, at least 2: 28, or 8.
        classes: How many.
        width: Of the features.
    """

    scale: Tensor

    def __init__(self, side: int, *, classes: int = 10, width: int = 64) -> None:
        super().__init__()
        if min(side, classes, width) < 2:
            raise ValueError(
                f"side, classes, width must be ≥ 2, got {side}, {classes}, {width}"
            )
        layers: list[nn.Module] = []
        for a, b in ((1, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.SiLU()]
            side = (side + 1) // 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * side**2, width))
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(width, classes))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images x (n, 1, side, side), shape (n, classes)."""
        return self.head(self.body(x))


@torch.no_grad()
def features(classifier: Classifier, images: Tensor, *, batch: int = 1000) -> Tensor:
    """Return what a classifier sees in images (n, 1, h, w), shape (n, width)."""
    seen = torch.cat([classifier.body(rows) for rows in images.split(batch)])
    return seen / classifier.scale


def sample(name: str, x: Tensor) -> Tensor:
    """Return x as a float64 matrix (n, d); complain by name if it is no sample."""
    if x.ndim < 2 or len(x) < 2:
        raise ValueError(f"{name} must be (n, *shape), n ≥ 2, got {tuple(x.shape)}")
    if not x.isfinite().all():
        raise ValueError(f"{name} must be finite")
    return x.flatten(1).double()


def pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return two samples as float64 matrices (n, d) and (m, d)."""
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"y must have rows of shape {tuple(x.shape[1:])}, got {tuple(y.shape[1:])}"
        )
    return sample("x", x), sample("y", y)
