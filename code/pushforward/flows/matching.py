"""Flow matching: regress the velocity of a path one can draw (book/flows/matching.md).

Between noise x_0 ~ π and data x_1 ~ p, drawn together, runs a path

    x_t = a_t x_1 + b_t x_0,   a_0 = b_1 = 0,   a_1 = b_0 = 1        (eq:fm-path)

whose velocity is known as soon as its two ends are drawn.  The mean velocity of
the paths that pass through a point,

    u(x, t) = E[ȧ_t x_1 + ḃ_t x_0 | x_t = x]                     (eq:fm-marginal)

moves the law of x_t from π to p.  Least squares find conditional means, so a
network v learns u without ever seeing it:

    E ‖v(x_t, t) − (ȧ_t x_1 + ḃ_t x_0)‖²,   t ~ U[0, 1]              (eq:fm-loss)

How the two ends are drawn together is a gift, a :data:`Pairing`; so is the path.

References:
    Lipman, Chen, Ben-Hamu, Nickel, Le (2023), Flow matching for generative modeling.
    Liu, Gong, Liu (2023), Flow straight and fast: rectified flow.
    Albergo, Vanden-Eijnden (2023), Building normalizing flows with stochastic
        interpolants.
    Tong, Fatras, Malkin, Huguet, Zhang, Rector-Brooks, Wolf, Bengio (2024),
        Improving and generalizing flow-based generative models with minibatch
        optimal transport.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor, nn

from .. import ot
from ..distributions import Law, Mixture, admit
from ..model import Density
from ..ode import RK4, Field, Tableau, integrate
from .continuous import flow_log_prob, flow_map

__all__ = [
    "Coefficients",
    "FlowMatching",
    "Pairing",
    "Path",
    "given",
    "independent",
    "linear_path",
    "marginal_law",
    "marginal_velocity",
    "matching_loss",
    "minibatch_ot",
    "minibatch_sinkhorn",
    "rectified_map",
    "reflow",
    "stability",
    "straightness",
    "trigonometric_path",
]


# Paths


class Coefficients(NamedTuple):
    """What a path is at a time: x_t = a x_1 + b x_0, and the slopes ȧ, ḃ.

    The last three methods hold where x_0 ~ N(0, I) is independent of x_1.

    Attributes:
        a: Share of the data, in the shape of t.
        b: Share of the noise.
        da: ȧ.
        db: ḃ.
    """

    a: Tensor
    b: Tensor
    da: Tensor
    db: Tensor

    def point(self, z: Tensor, x: Tensor) -> Tensor:
        """Return x_t between noise z and data x (eq:fm-path)."""
        return self.a * x + self.b * z

    def velocity(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the velocity ȧ x + ḃ z of the path between them."""
        return self.da * x + self.db * z

    def denoised(self, v: Tensor, x: Tensor) -> Tensor:
        """Return E[x_1 | x_t = x], where v = u(x, t) (eq:fm-denoiser)."""
        return (self.b * v - self.db * x) / (self.da * self.b - self.a * self.db)

    def score(self, v: Tensor, x: Tensor) -> Tensor:
        """Return ∇ log p_t(x), where v = u(x, t), for b > 0 (eq:fm-score)."""
        turn = self.da * self.b - self.a * self.db
        return (self.a * v - self.da * x) / (self.b * turn)

    def from_denoised(self, mean: Tensor, x: Tensor) -> Tensor:
        """Return u(x, t) from E[x_1 | x_t = x], for b > 0."""
        turn = self.da * self.b - self.a * self.db
        return (self.db * x + turn * mean) / self.b


Path = Callable[[Tensor], Coefficients]


def linear_path(t: Tensor, *, sigma: float = 0.0) -> Coefficients:
    """Return the straight path, a = t and b = 1 − (1 − σ) t.

    Args:
        t: Times in [0, 1], of any shape.
        sigma: What is left of the noise at t = 1, where the law is then that of
            x + σ z: with σ > 0 it is not quite the law of the data.
    """
    one = torch.ones_like(t)
    return Coefficients(t, 1 - (1 - sigma) * t, one, (sigma - 1) * one)


def trigonometric_path(t: Tensor) -> Coefficients:
    """Return the path a = sin(πt/2), b = cos(πt/2), which keeps a variance of one."""
    angle = t * math.pi / 2
    sin, cos = angle.sin(), angle.cos()
    return Coefficients(sin, cos, math.pi / 2 * cos, -math.pi / 2 * sin)


# Pairings: noise and data, drawn together


class Pairing(Protocol):
    """A coupling of noise and data, drawn for a batch."""

    def __call__(
        self, base: Law, x: Tensor, *, rng: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return noise z ~ π and data, paired row by row, from a batch x."""
        ...


def independent(
    base: Law, x: Tensor, *, rng: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Return fresh noise beside the data."""
    return base.sample(len(x), rng=rng), x


def minibatch_ot(
    base: Law, x: Tensor, *, rng: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Return fresh noise, and the batch in the order that is cheapest for it.

    The cost is ‖z − x‖²; an optimal plan of n against n points is a permutation.
    """
    z = base.sample(len(x), rng=rng)
    P = ot.plan(ot.cost(z.flatten(1), x.flatten(1))).P
    return z, x[P.argmax(1)]


def minibatch_sinkhorn(
    base: Law, x: Tensor, *, eps: float, rng: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Return fresh noise, and for each row a datum drawn from the entropic plan.

    Args:
        base: π.
        x: The batch.
        eps: Strength of the entropy, in units of the mean cost of the batch.
        rng: Source of the noise and of the draws.
    """
    z = base.sample(len(x), rng=rng)
    C = ot.cost(z.flatten(1), x.flatten(1))
    a = C.new_full((len(x),), 1 / len(x))
    P = ot.sinkhorn(C, a, a, eps * float(C.mean()), tol=1e-3).P
    device = P.device if rng is None else rng.device
    j = torch.multinomial(P.to(device), 1, generator=rng)[:, 0]
    return z, x[j.to(x.device)]


def given(
    base: Law, x: Tensor, *, rng: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Return the two halves of a batch of pairs x (n, 2, *shape), as they are."""
    if x.ndim < 3 or x.shape[1] != 2:
        raise ValueError(f"x must be pairs (n, 2, *shape), got {tuple(x.shape)}")
    return x[:, 0], x[:, 1]


@torch.no_grad()
def reflow(v: Field, z: Tensor, *, steps: int = 20) -> Tensor:
    """Return noise z beside where the flow takes it, pairs (n, 2, *shape).

    A model that is trained on them, paired as :func:`given`, is the rectified one.
    """
    return torch.stack([z, flow_map(v, z, 0.0, 1.0, steps=steps)], 1)


# The loss


def matching_loss(
    v: Field,
    z: Tensor,
    x: Tensor,
    path: Path = linear_path,
    *,
    rng: Generator | None = None,
) -> Tensor:
    """Return the mean of ‖v(x_t, t) − ẋ_t‖² over a batch of pairs (eq:fm-loss).

    Args:
        v: The field, called with points (n, *shape) and times (n, 1, …, 1).
        z: Noise, (n, *shape).
        x: Data, paired with it row by row.
        path: From noise to data.
        rng: Source of the times, one for each pair.

    Raises:
        ValueError: Noise and data of different shapes.
    """
    if z.shape != x.shape:
        raise ValueError(f"z must be {tuple(x.shape)} like x, got {tuple(z.shape)}")
    device = x.device if rng is None else rng.device
    ones = (1,) * (x.ndim - 1)
    t = torch.rand((len(x), *ones), generator=rng, dtype=x.dtype, device=device)
    at = path(t.to(x.device))
    miss = v(at.point(z, x), t.to(x.device)) - at.velocity(z, x)
    return miss.flatten(1).square().sum(1).mean()  # (eq:fm-loss)


class FlowMatching(Density):
    """The law of the flow of v from π, where v was matched to a path.

    Args:
        v: The field, v(x, t) with x (n, *shape) and t () or (n, 1, …, 1).
        base: π, the law of the noise, on arrays of the shape of the data.
        pairing: How noise and data are drawn together.
        path: What runs between them.
        steps: Of the integrator.
    """

    def __init__(
        self,
        v: nn.Module,
        base: Law,
        *,
        pairing: Pairing = independent,
        path: Path = linear_path,
        steps: int = 20,
    ) -> None:
        super().__init__()
        self.v = v
        self.base = base
        self.pairing = pairing
        self.path = path
        self.steps = steps

    def loss(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """Return (eq:fm-loss) on a batch: data (n, *shape), or what is paired."""
        z, x = self.pairing(self.base, x, rng=rng)
        return matching_loss(self.v, z, x, self.path, rng=rng)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        steps: int | None = None,
        method: Tableau = RK4,
        rng: Generator | None = None,
    ) -> Tensor:
        """Draw z ~ π and follow the field from t = 0 to 1, shape (n, *shape).

        Args:
            n: How many.
            steps: Of the integrator; by default the model's own.
            method: EULER, HEUN or RK4 of :mod:`pushforward.ode`.
            rng: Source of z.
        """
        z = self.base.sample(n, rng=rng)
        count = self.steps if steps is None else steps
        times = torch.linspace(0, 1, count + 1, dtype=z.dtype, device=z.device)
        return integrate(self.v, z, times, method)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) of the flow, with the exact divergence, shape (n,)."""
        x = admit(x, self, self.base)
        return flow_log_prob(self.v, x, self.base, steps=self.steps)


# What is known exactly


def marginal_law(law: Mixture, t: Tensor, path: Path = linear_path) -> Mixture:
    """Return the law of x_t for noise N(0, I) independent of the data, at one time.

    Args:
        law: Of the data.
        t: A time, ().
        path: From noise to data.
    """
    at = path(t)
    eye = torch.eye(law.means.shape[1]).to(law.means)
    covs = at.a**2 * law.covs + at.b**2 * eye
    return Mixture(at.a * law.means, covs, law.log_weights.exp())


def marginal_velocity(law: Mixture, path: Path = linear_path) -> Field:
    """Return u of (eq:fm-marginal) for noise N(0, I) independent of the data.

    Under component j the pair (x_t, ẋ_t) is Gaussian, so E[ẋ_t | x_t, j] is a
    regression; the mean over j has the weights P(j | x_t) (eq:fm-mixture).

    Args:
        law: Of the data.
        path: From noise to data.

    Returns:
        The field, for points (n, d) and times () or (n, 1).
    """
    lam, U = torch.linalg.eigh(law.covs)  # (k, d), (k, d, d)

    def u(x: Tensor, t: Tensor) -> Tensor:
        at = path(t.reshape(-1, 1, 1))
        y = torch.einsum("kij,nki->nkj", U, x[:, None] - at.a * law.means)
        var = at.a**2 * lam + at.b**2  # of x_t along the axes of component j
        log_r = law.log_weights - (y.square() / var + var.log()).sum(-1) / 2
        slope = (at.a * at.da * lam + at.b * at.db) / var
        each = at.da * law.means + torch.einsum("kij,nkj->nki", U, slope * y)
        return torch.einsum("nk,nki->ni", log_r.softmax(-1), each)  # (eq:fm-mixture)

    return u


def rectified_map(S0: Tensor, S1: Tensor) -> Tensor:
    """Return M, where the flow of u takes x to Mx from N(0, S0) to N(0, S1).

    It is the flow between *independent* Gaussians, whatever the path
    (eq:fm-gaussian-map); it is optimal only if S0 and S1 commute.

    Args:
        S0: Covariance of the noise, (d, d), positive definite.
        S1: Covariance of the data, likewise.
    """
    root = ot.sqrtm(S0)
    whiten = torch.linalg.inv(root)
    return root @ ot.sqrtm(whiten @ S1 @ whiten) @ whiten  # (eq:fm-gaussian-map)


# Straightness and stability


def straightness(v: Field, z: Tensor, *, steps: int = 20) -> Tensor:
    """Return ∫ ‖ẋ_t‖² dt − ‖x_1 − x_0‖² along the flow from each z, shape (n,).

    Its mean is S of (eq:fm-straightness), zero for straight lines at even speed.
    """
    d = z[0].numel()

    def joint(state: Tensor, t: Tensor) -> Tensor:
        rate = v(state[:, :d].view_as(z), t).flatten(1)
        return torch.cat([rate, rate.square().sum(1, keepdim=True)], 1)

    start = torch.cat([z.flatten(1), z.new_zeros(len(z), 1)], 1)
    end = flow_map(joint, start, 0.0, 1.0, steps=steps)
    moved = end[:, :d] - start[:, :d]
    return end[:, d] - moved.square().sum(1)  # (eq:fm-straightness)


def stability(L: float) -> float:
    """Return √((e^{2L} − 1)/2L), by which errors of the velocity may grow (eq:fm-w2).

    Args:
        L: One-sided Lipschitz constant of the learned field; it may be negative.
    """
    return math.sqrt(math.expm1(2 * L) / (2 * L)) if L else 1.0
