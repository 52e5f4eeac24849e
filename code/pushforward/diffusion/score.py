"""Scores and denoisers: what noise tells about a law (book/diffusion/score.md).

Noise blurs a law p into p_σ, the law of x_σ = x_0 + σ z.  What the noise did to a
point is known from the law of the noisy points alone:

    E[x_0 | x_σ = x] = x + σ² ∇log p_σ(x)                          (eq:tweedie)
    Cov[x_0 | x_σ = x] = σ² I + σ⁴ ∇²log p_σ(x) = σ² ∂D/∂x     (eq:score-second)

So a denoiser is a score.  Four losses find it, equal up to constants; each function
returns one value for each point, and its mean is the loss:

    explicit_loss    ½ ‖ψ(x) − ∇log p(x)‖²           the truth is known
    denoising_loss   ½ ‖ψ(x_σ) + z/σ‖²               clean data     (eq:dsm-loss)
    implicit_loss    ½ ‖ψ(x)‖² + div ψ(x)            any data  (eq:score-implicit)
    sliced_loss      ½ ‖ψ(x)‖² + vᵀ (∂ψ/∂x) v        one slice   (eq:score-sliced)

A field ψ takes points (n, *shape) to vectors of that shape, row by row.

References:
    Robbins (1956), An empirical Bayes approach to statistics.
    Miyasawa (1961), An empirical Bayes estimator of the mean of a normal population.
    Stein (1981), Estimation of the mean of a multivariate normal distribution.
    Hyvärinen (2005), Estimation of non-normalized statistical models by score matching.
    Vincent (2011), A connection between score matching and denoising autoencoders.
    Song, Garg, Shi, Ermon (2019), Sliced score matching.
    Song, Ermon (2019), Generative modeling by estimating gradients of the data
        distribution.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import softplus

from ..distributions import Mixture, StandardNormal, points
from ..model import Model
from ..nn import noise_like
from ..ode import Field, divergence, hutchinson, pulled

__all__ = [
    "Denoiser",
    "ScoreLadder",
    "TiedAutoencoder",
    "annealed_langevin",
    "antithetic_loss",
    "denoiser_covariance",
    "denoising_loss",
    "exact_denoiser",
    "explicit_loss",
    "implicit_loss",
    "posterior_covariance",
    "sliced_loss",
    "sure",
]

Denoiser = Callable[[Tensor, Tensor], Tensor]  # D(x, σ), σ is () or (n, 1, …, 1)
Still = Callable[[Tensor], Tensor]  # ψ(x), in the shape of x (n, *shape)


# What the posterior knows


def exact_denoiser(law: Mixture) -> Denoiser:
    """Return D(x, σ) = E[x_0 | x_0 + σ z = x], exact for a mixture (eq:tweedie).

    Given its component j, x_0 is Gaussian under the posterior too, so its mean is a
    regression; the mean over j has the weights P(j | x).

    Args:
        law: Of x_0, on R^d.

    Returns:
        The denoiser, for points (n, d) and levels σ ≥ 0, () or (n, 1).  Shapes that
        are neither are a ``ValueError``.
    """
    lam, U = torch.linalg.eigh(law.covs)  # (k, d), (k, d, d)

    def D(x: Tensor, sigma: Tensor) -> Tensor:
        points(x, law.means.shape[1])
        v = shaped(sigma, x).reshape(-1, 1, 1).square()
        y = torch.einsum("kij,nki->nkj", U, x[:, None] - law.means)
        var = lam + v  # of x along the axes of component j
        log_r = law.log_weights - (y.square() / var + var.log()).sum(-1) / 2
        noise = torch.einsum("kij,nkj->nki", U, v / var * y)  # E[σ z | x, j]
        return x - torch.einsum("nk,nki->ni", log_r.softmax(-1), noise)

    return D


def posterior_covariance(law: Mixture, x: Tensor, sigma: float) -> Tensor:
    """Return Cov[x_0 | x_0 + σ z = x], exact for a mixture, shape (n, d, d).

    It is the mean of the covariances given the component, and the covariance of
    the means: no derivative of a density is taken (eq:score-second).

    Args:
        law: Of x_0, on R^d.
        x: Noisy points, (n, d).
        sigma: σ > 0.

    Raises:
        ValueError: Points of another dimension or not finite, or a bad level.
    """
    s = float(level(sigma, finite(x)))
    r = law.log_joint(x, s).softmax(-1)  # (n, k)
    gain = torch.linalg.solve(law.noised(s), law.covs)  # (Σ_j + σ²I)⁻¹ Σ_j
    means = x[:, None] + s**2 * law.pull(x, s)  # E[x_0 | x, j], (n, k, d)
    apart = means - torch.einsum("nk,nkd->nd", r, means)[:, None]
    spread = torch.einsum("nk,nki,nkj->nij", r, apart, apart)
    return s**2 * torch.einsum("nk,kij->nij", r, gain) + spread


def denoiser_covariance(D: Denoiser, x: Tensor, sigma: Tensor | float) -> Tensor:
    """Return σ² ∂D/∂x, which is Cov[x_0 | x] if D is exact (eq:score-second).

    One backward pass for each coordinate.  A learned D is no posterior mean, and
    its Jacobian need be neither symmetric nor positive.

    Args:
        D: The denoiser.
        x: Noisy points (n, *shape) of d numbers each.
        sigma: σ > 0, () or (n, 1, …, 1).

    Returns:
        Matrices (n, d, d); row i holds the derivatives of coordinate i.

    Raises:
        ValueError: Points that are not finite, a bad level, or a D(x) of another shape.
    """
    s = level(sigma, finite(x))
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        value = applied(lambda x: D(x, s), y, "D").flatten(1)
        rows = [pulled(column.sum(), y).detach() for column in value.unbind(1)]
    jacobian = torch.stack([row.flatten(1) for row in rows], 1)
    return s.reshape(-1, 1, 1).square() * jacobian  # (eq:score-second)


# Losses, one value for each point


def explicit_loss(psi: Still, score: Still, x: Tensor) -> Tensor:
    """Return ½ ‖ψ(x) − ∇log p(x)‖², shape (n,), where the score is known.

    Args:
        psi: The field.
        score: ∇log p.
        x: Points drawn from p, (n, *shape).

    Raises:
        ValueError: Points that are not finite, or a field of another shape.
    """
    return half_square(applied(psi, finite(x)) - applied(score, x, "score"))


def denoising_loss(
    psi: Still, x: Tensor, sigma: Tensor | float, *, rng: Generator | None = None
) -> Tensor:
    """Return ½ ‖ψ(x + σ z) + z/σ‖² with one z for each point (eq:dsm-loss).

    Its mean is that of the explicit loss on p_σ, and a constant (thm:dsm).

    Args:
        psi: The field.
        x: Clean points, (n, *shape).
        sigma: σ > 0, () or (n, 1, …, 1).
        rng: Source of z.

    Returns:
        One value for each point, (n,).

    Raises:
        ValueError: Points that are not finite, a bad level, or a field of another
            shape.
    """
    s = level(sigma, finite(x))
    z = noise_like(x, rng)
    return half_square(applied(psi, x + s * z) + z / s)  # (eq:dsm-loss)


def antithetic_loss(
    psi: Still, x: Tensor, sigma: Tensor | float, *, rng: Generator | None = None
) -> Tensor:
    """Return the mean of the denoising losses of z and −z, less ½ ‖z‖²/σ².

    Its mean is that of :func:`denoising_loss` less d/(2σ²), so that its gradient is
    the same; as σ → 0 it stays bounded (eq:score-antithetic).

    Args:
        psi: The field, called twice.
        x: Clean points, (n, *shape).
        sigma: σ > 0, () or (n, 1, …, 1).
        rng: Source of z.

    Returns:
        One value for each point, (n,).

    Raises:
        ValueError: As for :func:`denoising_loss`.
    """
    s = level(sigma, finite(x))
    z = noise_like(x, rng)
    ahead, behind = applied(psi, x + s * z), applied(psi, x - s * z)
    slope = ((ahead - behind) * z / (2 * s)).flatten(1).sum(1)
    return (half_square(ahead) + half_square(behind)) / 2 + slope


def implicit_loss(psi: Still, x: Tensor) -> Tensor:
    """Return ½ ‖ψ(x)‖² + div ψ(x), shape (n,), by d backward passes.

    Args:
        psi: The field (eq:score-implicit).
        x: Points drawn from p, (n, *shape).

    Raises:
        ValueError: Points that are not finite, or a field of another shape.
    """
    value, div = divergence(timed(psi), finite(x), x.new_zeros(()))
    return half_square(value) + div  # (eq:score-implicit)


def sliced_loss(psi: Still, x: Tensor, v: Tensor, *, exact: bool = True) -> Tensor:
    """Return ½ ‖ψ(x)‖² + vᵀ (∂ψ/∂x) v, shape (n,), by one backward pass.

    Args:
        psi: The field (eq:score-sliced).
        x: Points drawn from p, (n, *shape).
        v: Directions of mean 0 and covariance I, in the shape of x:
            ``noise_like`` or ``signs_like``.
        exact: Whether the square is ½ ‖ψ‖², or its slice ½ ⟨v, ψ⟩², as it was first.

    Raises:
        ValueError: Points that are not finite, or a field or directions of another
            shape.
    """
    if v.shape != x.shape:
        raise ValueError(f"v must be {tuple(x.shape)} like x, got {tuple(v.shape)}")
    value, slope = hutchinson(timed(psi), finite(x), x.new_zeros(()), v)
    along = (value * v).flatten(1).sum(1)
    square = half_square(value) if exact else along.square() / 2
    return square + slope  # (eq:score-sliced)


def sure(f: Still, x: Tensor, sigma: Tensor | float, v: Tensor | None = None) -> Tensor:
    """Return Stein's estimate of ‖f(x_σ) − x_0‖², from noisy points (eq:score-sure).

    It is unbiased whatever x_0 is, and may be negative.

    Args:
        f: A denoiser for this level.
        x: Noisy points x_σ, (n, *shape).
        sigma: σ > 0, () or (n, 1, …, 1).
        v: Directions as in :func:`sliced_loss` to estimate the divergence by one
            backward pass; by default it is exact, by one for each coordinate.

    Returns:
        One value for each point, (n,).

    Raises:
        ValueError: As for the losses.
    """
    var = level(sigma, finite(x)).reshape(-1).square()
    if v is not None and v.shape != x.shape:
        raise ValueError(f"v must be {tuple(x.shape)} like x, got {tuple(v.shape)}")
    at = x.new_zeros(())
    field = timed(f, "f")
    value, div = divergence(field, x, at) if v is None else hutchinson(field, x, at, v)
    miss = 2 * half_square(value - x)
    return miss + var * (2 * div - x[0].numel())  # (eq:score-sure)


# Models


def annealed_langevin(
    score: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    step: float = 0.1,
    steps: int = 20,
    rng: Generator | None = None,
) -> Tensor:
    """Walk x ← x + h s(x, σ) + √(2h) z with h = step · σ², at each level in turn.

    Each level's walk has about the law p_σ, the better the smaller ``step`` and the
    longer it is; a level starts where the one before ended.

    Args:
        score: s(x, σ).
        x: Where the walks start, (n, *shape).
        sigmas: Levels, (L,), as a rule falling.
        step: Length of a step in units of σ².
        steps: How many at each level.
        rng: Source of z.

    Raises:
        ValueError: Levels that are not positive, or steps or a length that are not.
    """
    if sigmas.ndim != 1 or not len(sigmas) or not (sigmas > 0).all():
        raise ValueError(f"sigmas must be positive levels (L,), got {sigmas}")
    if steps < 1 or not 0 < step < math.inf:
        raise ValueError(f"steps ≥ 1, step > 0 are needed, got {steps}, {step}")
    for sigma in sigmas:
        h = step * sigma.square()
        for _ in range(steps):
            x = x + h * score(x, sigma) + (2 * h).sqrt() * noise_like(x, rng)
    return x


class ScoreLadder(Model):
    """A score at many levels, s(x, σ) = F(x/√(1 + σ²), ln σ)/σ, from one network.

    Each level counts the same in the loss, as σ² times its denoising loss would be
    d/2 for s = 0 (eq:score-ladder).  Data should have deviation about one.

    Args:
        net: F(x, t), in the shape of x, such as ``nn.ResMLP``.
        base: N(0, I) in the shape of the data.
        sigmas: The ladder, falling levels (L,).
        steps: Of the walk at each level, in sampling.

    Raises:
        ValueError: Levels that are not positive or do not fall.
    """

    sigmas: Tensor

    def __init__(
        self, net: nn.Module, base: StandardNormal, sigmas: Tensor, *, steps: int = 20
    ) -> None:
        super().__init__()
        falling = sigmas.ndim == 1 and len(sigmas) and (sigmas.diff() < 0).all()
        if not falling or not ((sigmas > 0) & sigmas.isfinite()).all():
            raise ValueError(f"sigmas must be falling positive levels, got {sigmas}")
        self.net, self.base, self.steps = net, base, steps
        self.register_buffer("sigmas", sigmas)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return s(x, σ), shape (n, *shape), for σ > 0, () or (n, 1, …, 1)."""
        return self.net(x / (1 + sigma.square()).sqrt(), sigma.log()) / sigma

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return x + σ² s(x, σ) (eq:tweedie)."""
        return x + sigma.square() * self.score(x, sigma)

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return the mean of σ² times the denoising loss, at random levels."""
        device = x.device if rng is None else rng.device
        i = torch.randint(len(self.sigmas), (len(x),), generator=rng, device=device)
        s = self.sigmas[i.to(x.device)].reshape(-1, *(1,) * (x.ndim - 1))
        each = denoising_loss(lambda y: self.score(y, s), x, s, rng=rng)
        return (s.reshape(-1).square() * each).mean()  # (eq:score-ladder)

    @torch.no_grad()
    def sample(self, n: int, *, rng: Generator | None = None) -> Tensor:
        """Walk down the ladder, and denoise at its foot, shape (n, *shape)."""
        x = self.sigmas[0] * self.base.sample(n, rng=rng)
        x = annealed_langevin(self.score, x, self.sigmas, steps=self.steps, rng=rng)
        return self.denoise(x, self.sigmas[-1])


class TiedAutoencoder(Model):
    """r(x) = Wᵀ s(Wx + b) + c, one matrix for both ways (eq:dae-reconstruct).

    To rebuild x from x + σ z by least squares is to fit the score of e^{−E},

        E(x) = (½ ‖x‖² − ⟨c, x⟩ − Σ_j log(1 + e^{⟨W_j, x⟩ + b_j}))/σ²  (eq:dae-energy)

    Args:
        d: Dimension of the data.
        hidden: Rows of W.
        sigma: Of the noise.

    Raises:
        ValueError: A size or a level that is not positive.
    """

    def __init__(self, d: int, hidden: int, sigma: float) -> None:
        super().__init__()
        if min(d, hidden) < 1 or not 0 < sigma < math.inf:
            got = f"{d}, {hidden}, {sigma}"
            raise ValueError(f"d, hidden, sigma must be positive, got {got}")
        self.sigma = sigma
        W = torch.randn(hidden, d) / (10 * d**0.5)  # small: then r is nearly constant
        self.W, self.b = nn.Parameter(W), nn.Parameter(torch.zeros(hidden))
        self.c = nn.Parameter(-W.sum(0) / 2)  # and zero

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction r(x) of points x (n, d)."""
        x = points(x, len(self.c))
        return (x @ self.W.T + self.b).sigmoid() @ self.W + self.c

    def energy(self, x: Tensor) -> Tensor:
        """Return E(x), shape (n,) (eq:dae-energy)."""
        units = softplus(points(x, len(self.c)) @ self.W.T + self.b).sum(1)
        return (x.square().sum(1) / 2 - x @ self.c - units) / self.sigma**2

    def score(self, x: Tensor) -> Tensor:
        """Return −∇E(x) = (r(x) − x)/σ²."""
        return (self(x) - x) / self.sigma**2

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return the mean of ½ ‖r(x + σ z) − x‖² (eq:dae-loss)."""
        return half_square(self(x + self.sigma * noise_like(x, rng)) - x).mean()

    @torch.no_grad()
    def sample(
        self, n: int, *, steps: int = 500, rng: Generator | None = None
    ) -> Tensor:
        """Walk along −∇E from noise around the data, shape (n, d).

        The law is that of e^{−E} up to the error of the steps; how the walks share
        out among far modes is up to their start.
        """
        start = self.c + self.W.sum(0) / 2  # r where all units are undecided
        x = start + noise_like(start.expand(n, -1), rng)
        one = start.new_tensor([self.sigma])
        return annealed_langevin(lambda x, _: self.score(x), x, one, steps=steps,
                                 rng=rng)  # fmt: skip


# Doors


def shaped(sigma: Tensor, x: Tensor) -> Tensor:
    """Return σ if its shape is () or (n, 1, …, 1), else raise a ``ValueError``."""
    rows = (len(x),) + (1,) * (x.ndim - 1)
    if sigma.shape not in ((), rows):
        raise ValueError(f"sigma must be () or {rows}, got {tuple(sigma.shape)}")
    return sigma


def level(sigma: Tensor | float, x: Tensor) -> Tensor:
    """Return σ beside the points x if it is a positive level for them.

    Raises:
        ValueError: Another shape than () or (n, 1, …, 1), or a value outside (0, ∞).
    """
    s = shaped(torch.as_tensor(sigma).to(x), x)
    bad = s[~((s > 0) & s.isfinite())]
    if len(bad):
        raise ValueError(f"sigma must be positive and finite, got {float(bad[0]):g}")
    return s


def finite(x: Tensor) -> Tensor:
    """Return x if it is a batch (n, *shape) of finite real numbers.

    Raises:
        ValueError: It is not.
    """
    if x.ndim < 2 or not x.numel() or not x.is_floating_point():
        got = f"{tuple(x.shape)} of {x.dtype}"
        raise ValueError(f"x must be a batch (n, *shape) of reals, got {got}")
    if not x.isfinite().all():
        raise ValueError("x must be finite, got infinities or NaN")
    return x


def applied(psi: Still, x: Tensor, name: str = "psi") -> Tensor:
    """Return ψ(x) if it has the shape of x, else raise a ``ValueError``."""
    value = psi(x)
    if value.shape != x.shape:
        want, got = tuple(x.shape), tuple(value.shape)
        raise ValueError(f"{name}(x) must have the shape {want} of x, got {got}")
    return value


def timed(psi: Still, name: str = "psi") -> Field:
    """Return ψ as a field that has a time and does not look at it."""
    return lambda x, _: applied(psi, x, name)


def half_square(x: Tensor) -> Tensor:
    """Return ½ ‖x‖² of each row, shape (n,)."""
    return x.flatten(1).square().sum(1) / 2
