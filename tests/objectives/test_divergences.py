"""book/objectives/divergences.md, equation by equation."""

import itertools
import math

import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import torch
from torch import Generator, Tensor
from torch.distributions import Normal, kl_divergence

from pushforward.distributions import Gaussian, Law, Mixture, TwoMoons, line_mixture
from pushforward.objectives import divergences as D

ALL = pytest.mark.parametrize("d", D.DIVERGENCES, ids=lambda d: d.name)
SMOOTH = pytest.mark.parametrize(
    "d", [d for d in D.DIVERGENCES if d is not D.TV], ids=lambda d: d.name
)
GRID = torch.linspace(-20, 20, 4001, dtype=torch.float64)


def laws(*shape: int, rng: Generator) -> Tensor:
    """Draw uniform laws on a finite set."""
    e = -torch.rand(shape, generator=rng).log()
    return e / e.sum(-1, keepdim=True)


def relative_entropy(p: Tensor, q: Tensor) -> Tensor:
    """KL by SciPy."""
    return torch.from_numpy(scipy.special.rel_entr(p.numpy(), q.numpy())).sum(-1)


def normal(m: float, s: float) -> Gaussian:
    return Gaussian(torch.tensor([float(m)]), torch.tensor([[float(s**2)]]))


@ALL
def test_the_attributes_belong_to_f(d: D.Divergence) -> None:
    """f(1) = 0, f(0) and lim f(t)/t are the limits, f′ is the derivative."""
    one = torch.tensor(1.0)
    assert d.f(one) == 0
    small, large = torch.tensor(1e-14), torch.tensor(1e14)
    if math.isfinite(d.at_zero):
        torch.testing.assert_close(d.f(small).item(), d.at_zero, rtol=0, atol=1e-6)
    else:
        assert d.f(small) > 30
    if math.isfinite(d.at_infinity):
        ratio = (d.f(large) / large).item()
        torch.testing.assert_close(ratio, d.at_infinity, rtol=0, atol=1e-6)
    else:
        assert d.f(large) / large > 30
    t = torch.tensor([0.01, 0.3, 0.9, 1.7, 40.0]).requires_grad_()
    (slope,) = torch.autograd.grad(d.f(t).sum(), t)
    torch.testing.assert_close(d.slope(t), slope, rtol=1e-12, atol=1e-13)


@ALL
def test_the_conjugate_is_a_supremum(d: D.Divergence) -> None:
    """f*(u) = sup_t (ut − f(t)), by search; ∞ beyond lim f(t)/t."""
    t = torch.linspace(-40, 12, 2_600_001).exp()  # holds 1, the kink of TV
    top = min(d.at_infinity, 1.2)
    for u in (-3.0, -0.7, -0.3, 0.0, 0.4 * top, 0.9 * top):
        found = max((u * t - d.f(t)).max().item(), -d.at_zero)
        exact = d.conjugate(torch.tensor(u)).item()
        assert exact == pytest.approx(found, abs=1e-8)
    if math.isfinite(d.at_infinity):
        assert d.conjugate(torch.tensor(d.at_infinity + 1e-6)) == math.inf


@ALL
def test_perspective_is_the_supremum_over_slopes(
    d: D.Divergence, rng: Generator
) -> None:
    """(eq:perspective): ψ(a, b) = sup_u (au − b f*(u)), zeros included."""
    a, b = 2 * torch.rand(2, 100, generator=rng)
    a[:20], b[10:30] = 0, 0
    u = d.slope(torch.linspace(-30, 30, 60_001).exp())
    if d is D.TV:
        u = torch.linspace(-0.5, 0.5, 3)
    fu = d.conjugate(u)
    supremum = torch.stack([(x * u - y * fu).max() for x, y in zip(a, b, strict=True)])
    exact = D.perspective(a, b, d)
    finite = exact < math.inf
    torch.testing.assert_close(supremum[finite], exact[finite], rtol=1e-6, atol=1e-6)
    assert (supremum[~finite] > 10 * (a + b)[~finite]).all()


def test_each_divergence_is_the_textbook_sum(rng: Generator) -> None:
    """(eq:f-divergence), against SciPy and the formulas of the table."""
    p, q = laws(50, 7, rng=rng), laws(50, 7, rng=rng)
    m = (p + q) / 2
    torch.testing.assert_close(D.kl(p, q), relative_entropy(p, q))
    back = D.f_divergence(p, q, D.REVERSE_KL)
    torch.testing.assert_close(back, relative_entropy(q, p))
    js = (relative_entropy(p, m) + relative_entropy(q, m)) / 2
    torch.testing.assert_close(D.js(p, q), js)
    torch.testing.assert_close(D.tv(p, q), (p - q).clamp(min=0).sum(-1))
    torch.testing.assert_close(D.hellinger(p, q), 1 - (p * q).sqrt().sum(-1))
    torch.testing.assert_close(D.chi2(p, q), (p**2 / q).sum(-1) - 1)


@ALL
def test_disjoint_laws_reach_the_maximum(d: D.Divergence) -> None:
    """D_f ≤ f(0) + lim f(t)/t, with equality when the supports are disjoint."""
    p, q = torch.tensor([0.4, 0.6, 0, 0]), torch.tensor([0, 0, 0.9, 0.1])
    assert D.f_divergence(p, q, d).item() == pytest.approx(d.at_zero + d.at_infinity)
    assert D.f_divergence(p, p, d) == 0


@ALL
def test_the_gradient_survives_a_common_zero(d: D.Divergence) -> None:
    p = torch.tensor([0.4, 0.6, 0.0])
    q = torch.tensor([0.5, 0.5, 0.0]).requires_grad_()
    (grad,) = torch.autograd.grad(D.f_divergence(p, q, d), q)
    assert grad.isfinite().all()


@ALL
def test_a_channel_cannot_increase_a_divergence(
    d: D.Divergence, rng: Generator
) -> None:
    """thm:data-processing; a permutation changes nothing."""
    p, q, K = laws(300, 5, rng=rng), laws(300, 5, rng=rng), laws(300, 5, 4, rng=rng)
    before = D.f_divergence(p, q, d)
    after = D.f_divergence(
        torch.einsum("ni,nij->nj", p, K), torch.einsum("ni,nij->nj", q, K), d
    )
    assert (after <= before + 1e-13).all()
    order = torch.tensor([3, 1, 4, 0, 2])
    moved = D.f_divergence(p[:, order], q[:, order], d)
    torch.testing.assert_close(moved, before)


@ALL
def test_joint_convexity(d: D.Divergence, rng: Generator) -> None:
    p, q = laws(2, 300, 5, rng=rng), laws(2, 300, 5, rng=rng)
    w = torch.rand(300, 1, generator=rng)
    mixed = D.f_divergence(w * p[0] + (1 - w) * p[1], w * q[0] + (1 - w) * q[1], d)
    both = D.f_divergence(p, q, d)
    assert (mixed <= w[:, 0] * both[0] + (1 - w[:, 0]) * both[1] + 1e-13).all()


@ALL
def test_the_witness_attains_the_bound_and_no_other_beats_it(
    d: D.Divergence, rng: Generator
) -> None:
    """(eq:f-variational)."""
    p, q = laws(100, 6, rng=rng), laws(100, 6, rng=rng)
    T = D.witness(p, q, d)
    exact = D.f_divergence(p, q, d)
    torch.testing.assert_close(D.variational_bound(T, p, q, d), exact)
    other = T + 0.1 * torch.randn(T.shape, generator=rng)
    assert (D.variational_bound(other, p, q, d) <= exact + 1e-13).all()


@SMOOTH
def test_optimising_a_witness_finds_the_divergence(d: D.Divergence) -> None:
    """(eq:f-variational), by SciPy's optimiser from the constant witness."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])

    def loss(s: object) -> float:
        T = d.slope(torch.as_tensor(s).exp())  # any slope of f, so f*(T) < ∞
        return -D.variational_bound(T, p, q, d).item()

    best = scipy.optimize.minimize(loss, [0.0] * 3, method="BFGS", tol=1e-9)
    assert -best.fun == pytest.approx(D.f_divergence(p, q, d).item(), abs=1e-9)


@ALL
def test_bound_and_witness_at_zero_weights(d: D.Divergence) -> None:
    """(eq:f-variational) where p, q or both vanish: 0 · ∞ = 0."""
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.2, 0.8, 0.0])
    T = D.witness(p, q, d)
    exact = D.f_divergence(p, q, d)
    torch.testing.assert_close(D.variational_bound(T, p, q, d), exact)
    q = torch.tensor([1.0, 0.0, 0.0])
    for left, right in ((p, q), (q, p)):
        bound = D.variational_bound(D.witness(left, right, d), left, right, d)
        torch.testing.assert_close(bound, D.f_divergence(left, right, d))


@ALL
def test_no_witness_exceeds_the_maximum_of_disjoint_laws(d: D.Divergence) -> None:
    """(eq:f-variational): T must stay where f* < ∞, also where q = 0."""
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for high in (0.1, 0.4, 2.0, 100.0):
        T = torch.tensor([high, -0.4])
        bound = D.variational_bound(T, p, q, d)
        assert bound <= D.f_divergence(p, q, d)
        assert (bound == -math.inf) == (high > d.at_infinity)


def test_the_divergence_is_lower_semicontinuous() -> None:
    """thm:f-variational, part 3: KL → 1 along laws that share one limit."""
    n = torch.tensor([50.0, 400.0])
    p, q = (torch.stack([1 - m, m], 1) for m in (1 / n, (-n).exp()))
    torch.testing.assert_close(D.kl(p, q), 1 + (p * p.log()).sum(1))


def test_the_three_forms_of_total_variation(rng: Generator) -> None:
    """(eq:tv-forms): all events; half L¹; the best coupling by a linear program."""
    p, q = laws(6, rng=rng), laws(6, rng=rng)
    events = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)))
    supremum = (events @ (p - q)).abs().max()
    cost = 1 - torch.eye(6)
    marginals = torch.cat(
        [torch.eye(6).repeat_interleave(6, dim=1), torch.eye(6).repeat(1, 6)]
    )
    A, b, c = (t.numpy() for t in (marginals, torch.cat([p, q]), cost.flatten()))
    lp = scipy.optimize.linprog(c, A_eq=A, b_eq=b)
    coupling = D.maximal_coupling(p, q)
    torch.testing.assert_close(D.tv(p, q), supremum)
    torch.testing.assert_close(coupling.moved, supremum)
    assert lp.fun == pytest.approx(supremum.item(), abs=1e-12)


def test_the_maximal_coupling_is_a_coupling(rng: Generator) -> None:
    """(eq:maximal-coupling)."""
    p, q = laws(9, rng=rng), laws(9, rng=rng)
    P = D.maximal_coupling(p, q).P
    assert (P >= 0).all()
    torch.testing.assert_close(P.sum(1), p)
    torch.testing.assert_close(P.sum(0), q)
    torch.testing.assert_close(D.maximal_coupling(p, p).P, torch.diag(p))


def test_energy_distance_is_twice_cramer_on_the_line(rng: Generator) -> None:
    """(eq:div-energy) = 2 ∫ (F − G)², by the distribution functions."""
    x = torch.rand(20, generator=rng).sort().values
    p, q = laws(20, rng=rng), laws(20, rng=rng)
    C = (x[:, None] - x).abs()
    gap = (p - q).cumsum(0)[:-1]
    torch.testing.assert_close(
        D.energy_distance(p, q, C), 2 * (gap**2 * x.diff()).sum()
    )


LINE = {
    "normal": lambda: normal(0.7, 1.3),
    "mixture": lambda: line_mixture((-1.0, 1.0), weights=(1.0, 3.0)),
}


@pytest.mark.parametrize("name", LINE)
def test_entropy_and_fisher_against_adaptive_quadrature(name: str) -> None:
    p = LINE[name]()

    def density(x: float) -> float:
        return p.log_prob(torch.tensor([[x]])).exp().item()

    def score(x: float) -> float:
        return p.score(torch.tensor([[x]])).item()

    entropy = scipy.integrate.quad(
        lambda x: -density(x) * math.log(density(x)), -12, 12, limit=200
    )[0]
    information = scipy.integrate.quad(
        lambda x: density(x) * score(x) ** 2, -12, 12, limit=200
    )[0]
    assert D.entropy(p, GRID).item() == pytest.approx(entropy, abs=1e-7)
    assert D.fisher(p, GRID).item() == pytest.approx(information, abs=1e-7)


def test_entropy_and_fisher_of_a_gaussian() -> None:
    """h = ½ log 2πeσ², I = 1/σ²; and the divergences in closed form."""
    p, q = normal(0.3, 0.8), normal(-0.4, 1.1)
    h = Normal(0.3, 0.8).entropy()
    torch.testing.assert_close(D.entropy(p, GRID), h, rtol=0, atol=1e-12)
    torch.testing.assert_close(D.fisher(p, GRID), torch.tensor(1 / 0.64))
    c, k = 1 / 1.21 - 1 / 0.64, 0.7 / 1.21  # (log p/q)′ = c (x − 0.3) + k
    exact = torch.tensor(c**2 * 0.64 + k**2)
    torch.testing.assert_close(D.fisher_divergence(p, q, GRID), exact)
    x = torch.linspace(-9, 9, 2001)
    exact = kl_divergence(Normal(0.3, 0.8), Normal(-0.4, 1.1))
    torch.testing.assert_close(D.kl(D.masses(p, x), D.masses(q, x)), exact)


def test_de_bruijn_identity() -> None:
    """thm:de-bruijn: d/dt h(X + √t Z) = ½ I, the left side by autograd in t."""
    t = torch.tensor(0.5, requires_grad=True)
    p = Mixture(torch.tensor([[-1.0], [1.0]]), (1 + t) * torch.ones(2, 1, 1))
    (slope,) = torch.autograd.grad(D.entropy(p, GRID), t)
    assert slope.item() == pytest.approx(D.fisher(p, GRID).item() / 2, abs=1e-12)
    assert slope.item() == pytest.approx(0.206145, abs=5e-7)


def test_girsanov_is_a_ratio_of_gaussian_densities(rng: Generator) -> None:
    """(eq:girsanov), against torch.distributions, with a drift of the path."""
    h = 0.1
    dx = h**0.5 * torch.randn(50, 7, 2, generator=rng)
    b = torch.sin(dx.cumsum(1))
    exact = Normal(h * b, h**0.5).log_prob(dx) - Normal(0, h**0.5).log_prob(dx)
    torch.testing.assert_close(D.path_log_ratio(dx, b, h), exact.sum((1, 2)))


def test_girsanov_by_simulation(rng: Generator) -> None:
    """E_P[dQ/dP] = 1 and KL(Q ‖ P) = ½ ∫ |b|², 4 standard errors."""
    n, h, b = 100_000, 0.1, torch.tensor(0.7)
    dx = h**0.5 * torch.randn(n, 10, 1, generator=rng)
    ratio = D.path_log_ratio(dx, b, h).exp()
    assert (ratio.mean() - 1).abs() < 4 * ratio.std() / n**0.5
    under_q = D.path_log_ratio(dx + h * b, b, h)
    assert (under_q.mean() - 0.245).abs() < 4 * under_q.std() / n**0.5


BAD = {
    "negative": ([-0.1, 1.1], "p must be non-negative"),
    "nan": ([math.nan, 1.0], "p must be non-negative"),
    "sum": ([0.5, 0.4], "p must sum to 1"),
    "shape": ([0.5, 0.25, 0.25], "p and q must be laws on the same set"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_weights_are_named(case: str) -> None:
    p, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        D.kl(torch.tensor(p), torch.tensor([0.5, 0.5]))


def test_bad_grids_and_paths_are_named() -> None:
    with pytest.raises(ValueError, match="x must be an even grid"):
        D.masses(normal(0, 1), torch.tensor([0.0, 1.0, 3.0]))
    with pytest.raises(ValueError, match="p on the grid x must sum to 1"):
        D.masses(normal(0, 1), torch.linspace(-1, 1, 101))
    with pytest.raises(ValueError, match="x must have shape"):
        D.masses(TwoMoons(), GRID)
    with pytest.raises(ValueError, match="dx must have shape"):
        D.path_log_ratio(torch.zeros(3, 2), torch.zeros(3, 2), 0.1)
    with pytest.raises(ValueError, match="h must be positive"):
        D.path_log_ratio(torch.zeros(3, 2, 1), torch.zeros(1), 0.0)


def test_a_law_is_whatever_has_the_two_verbs() -> None:
    assert isinstance(normal(0, 1), Law)
