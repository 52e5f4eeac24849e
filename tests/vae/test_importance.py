"""book/vae/importance.md, on models whose evidence is known or a quadrature away."""

import itertools
import math

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.distributions import (
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

from pushforward.distributions import StandardNormal
from pushforward.flows import AffineCoupling, Chain, Flow
from pushforward.nn import MLP
from pushforward.train import train
from pushforward.vae import (
    IWAE,
    VAE,
    EncoderOnly,
    FlowNet,
    FullGaussianNet,
    GaussianNet,
    LinearGaussian,
    NoisyNet,
    Table,
    doubly_log_weights,
    draw,
    effective_size,
    gaussian_chi2,
    importance_bound,
    mean_field_gap,
    resample,
)

LINE = torch.linspace(-9, 9, 1201, dtype=torch.float64)
STEP = (LINE[1] - LINE[0]).item()


def scalar(mean: float = -0.4, std: float = 0.9) -> VAE:
    """One latent, one datum, and a guess that is wrong in place and in width."""
    law = LinearGaussian(torch.zeros(1), torch.ones(1, 1), torch.tensor(0.8))
    start = torch.tensor([[mean, 2 * math.log(std)]])
    return VAE(GaussianNet(Table(start)), law.decoder, StandardNormal(1))


X = torch.tensor([[0.5]], dtype=torch.float64)
EVIDENCE = Normal(torch.zeros_like(X), 1.64**0.5).log_prob(X)[0, 0]  # 1 + 0.8² = 1.64


def weights_on_the_line(vae: VAE) -> tuple[Tensor, Tensor]:
    """Return log w and q at the points of LINE."""
    q = vae.encoder(X)
    log_q = q.log_prob(LINE[:, None, None])
    log_w = vae.log_joint(X, LINE[:, None, None]) - log_q
    return log_w[:, 0], log_q[:, 0].exp()


def second_bound(vae: VAE) -> Tensor:
    """L_2 by a trapezoidal sum over the plane, exact to rounding."""
    log_w, q = weights_on_the_line(vae)
    pairs = log_w[:, None].logaddexp(log_w) - math.log(2)
    return (q[:, None] * q * pairs).sum() * STEP**2


# The bounds


def test_the_evidence_of_the_tests_is_that_of_quadrature() -> None:
    log_w, q = weights_on_the_line(scalar())
    torch.testing.assert_close(((log_w.exp() * q).sum() * STEP).log(), EVIDENCE)


def test_the_bound_is_an_average_of_logarithms_of_averages(rng: Generator) -> None:
    """(eq:iw-bound), group by group."""
    log_w = 3 * torch.randn(12, 5, generator=rng)
    for K in (1, 2, 3, 12):
        groups = [log_w[i : i + K].exp().mean(0).log() for i in range(0, 12, K)]
        found = importance_bound(log_w, K)
        torch.testing.assert_close(found, torch.stack(groups).mean(0))
    torch.testing.assert_close(importance_bound(log_w), log_w.exp().mean(0).log())


def test_the_bound_survives_weights_beyond_the_exponential() -> None:
    log_w = torch.tensor([[-4000.0], [900.0]])
    expected = torch.tensor([900 - math.log(2)])
    torch.testing.assert_close(importance_bound(log_w), expected)


def test_on_one_table_the_bounds_rise(rng: Generator) -> None:
    log_w = 3 * torch.randn(64, 20, generator=rng)
    found = [importance_bound(log_w, 2**i) for i in range(7)]
    assert all((b >= a).all() for a, b in itertools.pairwise(found))


def test_the_second_bound_is_that_of_quadrature(rng: Generator) -> None:
    """(eq:iw-bound) is unbiased for L_2, which lies between the ELBO and log p."""
    n = 100_000
    with torch.no_grad():
        vae = scalar()
        exact = second_bound(vae)
        log_w = vae.log_weights(X, 2 * n, rng=rng)
    pairs = log_w.view(n, 2).logsumexp(1) - math.log(2)
    se = pairs.std() / n**0.5
    assert (importance_bound(log_w, 2)[0] - exact).abs() < 4 * se
    torch.testing.assert_close(importance_bound(log_w, 2)[0], pairs.mean())
    assert log_w.mean() + 10 * se < exact < EVIDENCE - 10 * se


@pytest.mark.parametrize("samples", [0, -1, 5, 7])
def test_groups_must_divide_the_rows(samples: int) -> None:
    with pytest.raises(ValueError, match=f"divide the 6 rows, got {samples}"):
        importance_bound(torch.zeros(6, 2), samples)


@pytest.mark.parametrize("shape", [(0, 3), (4,), (2, 3, 4)])
def test_a_table_of_weights_has_rows(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="log_w must have shape"):
        importance_bound(torch.zeros(shape))


def test_the_effective_size_counts_weights(rng: Generator) -> None:
    """(eq:iw-ess): K when all are equal, 1 when one is all."""
    log_w = torch.zeros(10, 3)
    log_w[:, 1] = torch.randn(10, generator=rng)
    log_w[1:, 2] = -80.0
    w = log_w[:, 1].exp()
    expected = torch.stack([w.new_tensor(10), w.sum() ** 2 / (w**2).sum(), w[0]])
    expected[2] = 1.0
    torch.testing.assert_close(effective_size(log_w - 700), expected)


def gaussians(rng: Generator, wide: float) -> list[MultivariateNormal]:
    A = torch.randn(2, 2, 2, generator=rng) / 2
    covs = A @ A.mT + 0.3 * torch.eye(2)
    covs[1] = wide * covs[0] + 0.1 * covs[1]
    means = 0.4 * torch.randn(2, 1, 2, generator=rng)
    return [MultivariateNormal(m, c) for m, c in zip(means, covs, strict=True)]


def test_chi2_of_gaussians_is_that_of_quadrature(rng: Generator) -> None:
    """(eq:iw-gaussian-chi2)."""
    p, q = gaussians(rng, wide=0.8)
    grid = torch.cartesian_prod(LINE[::4], LINE[::4])
    ratio = (2 * p.log_prob(grid) - q.log_prob(grid)).exp()
    torch.testing.assert_close(
        gaussian_chi2(p, q)[0], ratio.sum() * (4 * STEP) ** 2 - 1, rtol=1e-7, atol=0
    )


def test_chi2_is_infinite_for_a_narrow_guess() -> None:
    p = MultivariateNormal(torch.zeros(3, 2), torch.eye(2))
    scales = torch.tensor([[1.0, 0.49], [1.0, 0.51], [1.0, 1.0]])
    found = gaussian_chi2(p, MultivariateNormal(torch.zeros(3, 2), scales.diag_embed()))
    assert found[0] == math.inf
    assert found[1].item() == pytest.approx(0.51 / 0.02**0.5 - 1)
    assert abs(found[2].item()) < 1e-14


def test_the_gap_falls_as_half_the_variance_over_k(rng: Generator) -> None:
    """K (log p − L_K) → χ²/2; the average itself serves as a control variate."""
    p = MultivariateNormal(torch.zeros(1, 2), torch.tensor([[1.0, 0.4], [0.4, 0.7]]))
    q = MultivariateNormal(torch.full((1, 2), 0.2), torch.diag(torch.tensor([1.2, 1])))
    K, n = 100, 10_000
    z = draw(q, (K * n,), rng=rng)
    v = (p.log_prob(z) - q.log_prob(z)).exp().view(K, n).mean(0)
    gap = K * (v - 1 - v.log())  # the mean of v − 1 is zero
    exact, se = gaussian_chi2(p, q)[0] / 2, gap.std() / n**0.5
    assert exact > 0.15
    assert (gap.mean() - exact).abs() < 4 * se + 4 * exact**2 / K
    assert se < 0.02 * exact


def test_the_kept_latent_has_the_law_of_the_formula(rng: Generator) -> None:
    """(eq:iw-resample) with K = 2, by its first two moments and its divergence."""
    vae, n = scalar(), 100_000
    with torch.no_grad():
        log_w, q = weights_on_the_line(vae)
        wide = VAE(vae.encoder, vae.decoder, vae.prior)
        law = vae.encoder(X)
    w = log_w.exp()
    kept = 2 * q * w * (q / (w[:, None] + w)).sum(1) * STEP  # its density

    def encoder(x: Tensor) -> Distribution:
        return Independent(Normal(law.mean.expand(len(x), 1), law.stddev), 1)

    z = resample(VAE(encoder, wide.decoder, wide.prior), X.expand(n, 1), 2, rng=rng)
    assert z.shape == (n, 1)
    assert kept.sum().item() * STEP == pytest.approx(1.0)
    for power in (1, 2):
        exact = (kept * LINE**power).sum() * STEP
        se = (z**power).std() / n**0.5
        assert ((z**power).mean() - exact).abs() < 4 * se
        assert ((law.mean.item() if power == 1 else 0.9) - exact).abs() > 8 * se


def test_with_one_draw_there_is_nothing_to_choose(rng: Generator) -> None:
    one, two = (torch.Generator().manual_seed(5) for _ in "12")
    vae = scalar()
    kept = resample(vae, X, 1, rng=one)
    torch.testing.assert_close(kept, draw(vae.encoder(X), rng=two).detach())
    with pytest.raises(ValueError, match="samples must be positive"):
        resample(vae, X, 0)


# The gradients


def deep(n: int = 6) -> tuple[VAE, Tensor]:
    torch.manual_seed(0)
    vae = VAE(
        GaussianNet(MLP(3, 7, 4)), NoisyNet(MLP(2, 7, 3)), real_prior(StandardNormal(2))
    )
    return vae, torch.randn(n, 3)


def real_prior(base: StandardNormal) -> Flow:
    mask = torch.tensor([True, False])
    return Flow(Chain([AffineCoupling(mask, MLP(1, 5, 2))]), base)


def twins() -> tuple[Generator, Generator]:
    return torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)


def test_both_kinds_of_weights_have_the_same_values() -> None:
    vae, x = deep()
    one, two = twins()
    torch.testing.assert_close(
        vae.log_weights(x, 5, rng=one), doubly_log_weights(vae, x, 5, rng=two)
    )
    with torch.no_grad():
        doubly_log_weights(vae, x, 5)


def test_decoder_and_prior_keep_their_gradient() -> None:
    vae, x = deep()
    params = [*vae.decoder.parameters(), *vae.prior.parameters()]  # type: ignore
    found = [
        torch.autograd.grad(IWAE(vae, 5, doubly=d).loss(x, rng=g), params)
        for d, g in zip((False, True), twins(), strict=True)
    ]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
        assert a.abs().max() > 0


def test_the_doubly_gradient_is_its_formula() -> None:
    """(eq:iw-doubly) for a Gaussian guess, its sum written out."""
    vae, x = deep()
    one, two = twins()
    params = list(vae.encoder.parameters())  # type: ignore[union-attr]
    found = torch.autograd.grad(-IWAE(vae, 5, doubly=True).loss(x, rng=one), params)
    q = vae.encoder(x)
    z = draw(q, (5,), rng=two)
    point, frozen = z.detach().requires_grad_(), Normal(*map(Tensor.detach, moments(q)))
    log_w = vae.log_joint(x, point) - frozen.log_prob(point).sum(-1)
    (slope,) = torch.autograd.grad(log_w.sum(), point)
    square = log_w.softmax(0).detach()[..., None] ** 2
    expected = torch.autograd.grad((square * slope * z).sum() / len(x), params)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def moments(q: Distribution) -> tuple[Tensor, Tensor]:
    return q.mean, q.stddev


@pytest.mark.parametrize("doubly", [False, True])
def test_both_gradients_are_those_of_the_second_bound(
    doubly: bool, rng: Generator
) -> None:
    """(eq:iw-doubly), and the plain gradient, against the slope of a quadrature."""
    vae, n = scalar(), 200_000
    table = vae.encoder.net.rows  # type: ignore[union-attr]
    (exact,) = torch.autograd.grad(second_bound(vae), table)
    many = Table(table.expand(n, 2))
    copies = VAE(GaussianNet(many), vae.decoder, vae.prior)
    loss = IWAE(copies, 2, doubly=doubly).loss(X.expand(n, 1), rng=rng)
    (draws,) = torch.autograd.grad(-n * loss, many.rows)
    se = draws.std(0) / n**0.5
    assert ((draws.mean(0) - exact[0]).abs() < 4 * se).all()
    assert (exact[0].abs() > 10 * se).all()  # told from zero, and from half of itself


def test_at_the_posterior_the_doubly_gradient_has_no_noise(rng: Generator) -> None:
    law = LinearGaussian(torch.zeros(1), torch.ones(1, 1), torch.tensor(0.8))
    exact = law.posterior(X)
    start = torch.cat([exact.mean, exact.variance.log()], 1)
    noise = {}
    for doubly in (False, True):
        table = Table(start.expand(50, 2))
        vae = VAE(GaussianNet(table), law.decoder, StandardNormal(1))
        loss = IWAE(vae, 4, doubly=doubly).loss(X.expand(50, 1), rng=rng)
        (noise[doubly],) = torch.autograd.grad(50 * loss, table.rows)
    assert noise[True].abs().max() < 1e-13
    assert noise[False].std() > 0.1


def test_the_loss_is_minus_the_bound() -> None:
    vae, x = deep()
    one, two = twins()
    expected = -importance_bound(vae.log_weights(x, 5, rng=two)).mean()
    torch.testing.assert_close(IWAE(vae, 5).loss(x, rng=one), expected)
    assert IWAE(vae, 5).sample(3, rng=one).shape == (3, 3)
    with pytest.raises(ValueError, match="samples must be positive"):
        IWAE(vae, 0)


# The gap, taken apart


def test_a_table_trained_alone_finds_the_best_guess(rng: Generator) -> None:
    """The best diagonal Gaussian of each datum has variances 1/Λⱼⱼ."""
    W = torch.tensor([[1.0, 0.4], [0.2, 0.9], [-0.5, 0.3]])
    law = LinearGaussian(torch.zeros(3), W, torch.tensor(0.7))
    x = law.marginal().sample(4, rng=rng)
    decoder = NoisyNet(nn.Linear(2, 3), sigma=0.7, floor=0.0)
    with torch.no_grad():
        decoder.net.weight.copy_(W)
        decoder.net.bias.zero_()
    vae = VAE(GaussianNet(Table(torch.zeros(4, 4))), decoder, StandardNormal(2))
    before = [p.clone() for p in decoder.parameters()]
    copies = itertools.repeat(x)
    schedule = lambda i: 1 - i / 800
    for _ in train(
        EncoderOnly(vae), copies, steps=800, lr=0.05, schedule=schedule, rng=rng
    ):
        pass
    q = vae.encoder(x)
    best = law.precision().diagonal().rsqrt().expand(4, 2)
    torch.testing.assert_close(q.stddev.detach(), best, rtol=0.05, atol=0)
    torch.testing.assert_close(q.mean.detach(), law.posterior(x).mean, rtol=0, atol=0.1)
    for old, new in zip(before, decoder.parameters(), strict=True):
        assert torch.equal(old, new)
    assert EncoderOnly(vae).sample(2, rng=rng).shape == (2, 3)


def test_a_table_knows_how_many_data_it_has() -> None:
    with pytest.raises(ValueError, match="x must have 4 rows, got 3"):
        Table(torch.zeros(4, 2))(torch.zeros(3, 5))


def test_an_encoder_that_cannot_learn_has_no_game() -> None:
    law = LinearGaussian(torch.zeros(1), torch.ones(1, 1), torch.tensor(0.8))
    with pytest.raises(ValueError, match="encoder must be a Module"):
        EncoderOnly(VAE(law.posterior, law.decoder, StandardNormal(1))).players()


def test_the_diagonal_gap_is_the_least_divergence(rng: Generator) -> None:
    """(eq:iw-mean-field) against torch, and against an ascent from elsewhere."""
    A = torch.randn(3, 3, generator=rng)
    p = MultivariateNormal(torch.zeros(3), precision_matrix=A @ A.mT + torch.eye(3))
    best = p.precision_matrix.diagonal().rsqrt()
    gap = mean_field_gap(p.precision_matrix)

    def miss(mean: Tensor, log_std: Tensor) -> Tensor:
        q = MultivariateNormal(mean, scale_tril=log_std.exp().diag_embed())
        return kl_divergence(q, p)

    torch.testing.assert_close(gap, miss(torch.zeros(3), best.log()))
    free = [torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)]
    ascent = torch.optim.LBFGS(free, max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        ascent.zero_grad()
        value = miss(*free)
        value.backward()
        return value

    ascent.step(closure)
    torch.testing.assert_close(miss(*free).detach(), gap, atol=1e-7, rtol=0)
    assert gap > 0.1


# Richer guesses


def test_a_full_guess_has_the_factor_that_the_network_says(rng: Generator) -> None:
    """(eq:iw-full): μ, then ln L²ⱼⱼ, then the rows below the diagonal."""
    h = torch.tensor([[1.0, 2, 3, math.log(4), 0, math.log(9), 0.5, -0.6, 0.7]])
    law = FullGaussianNet(nn.Identity(), 3)(h)
    L = torch.tensor([[2.0, 0, 0], [0.5, 1, 0], [-0.6, 0.7, 3]])
    torch.testing.assert_close(law.mean, h[:, :3])
    torch.testing.assert_close(law.covariance_matrix, (L @ L.T)[None])
    z = torch.randn(4, 1, 3, generator=rng)
    torch.testing.assert_close(
        law.log_prob(z), MultivariateNormal(h[0, :3], L @ L.T).log_prob(z)
    )


def test_a_full_draw_has_its_covariance(rng: Generator) -> None:
    n = 100_000
    L = torch.tensor([[1.0, 0.0], [-1.5, 0.5]], requires_grad=True)
    z = draw(
        MultivariateNormal(torch.tensor([[3.0, 1.0]]), scale_tril=L), (n,), rng=rng
    )
    cov = (L @ L.T).detach()
    scale = cov.diagonal().sqrt()
    assert z.shape == (n, 1, 2)
    found = torch.cov(z[:, 0].detach().T)
    assert ((found - cov) / scale / scale[:, None]).abs().max() < 4 * (2 / n) ** 0.5
    assert ((z[:, 0].mean(0) - torch.tensor([3.0, 1])) / scale).abs().max() < 4 / n**0.5
    assert torch.autograd.grad(z.sum(), L)[0].abs().sum() > 0


def test_a_full_guess_can_be_the_posterior(rng: Generator) -> None:
    W = torch.randn(5, 2, generator=rng)
    law = LinearGaussian(torch.zeros(5), W, torch.tensor(0.7))
    x, chol = law.marginal().sample(3, rng=rng), law.posterior(torch.zeros(1, 5))
    L = chol.scale_tril[0]
    row = torch.stack([2 * L[0, 0].log(), 2 * L[1, 1].log(), L[1, 0]])
    net = Table(torch.cat([law.posterior(x).mean, row.expand(3, 3)], 1))
    vae = VAE(FullGaussianNet(net, 2), law.decoder, StandardNormal(2))
    exact = law.marginal().log_prob(x)
    torch.testing.assert_close(vae.elbo(x, rng=rng), exact)
    torch.testing.assert_close(vae.log_weights(x, 3, rng=rng), exact.expand(3, 3))


@pytest.mark.parametrize("width", [4, 6])
def test_a_full_guess_wants_the_right_number_of_entries(width: int) -> None:
    with pytest.raises(ValueError, match=r"net must return \(n, 5\)"):
        FullGaussianNet(nn.Identity(), 2)(torch.zeros(1, width))
    with pytest.raises(ValueError, match="k must be positive"):
        FullGaussianNet(nn.Identity(), 0)


class Bend(nn.Module):
    """ζ ↦ z = (s ζ₁, ζ₂ − c ζ₁²), a banana; knows no flow, answers like one."""

    def __init__(self, one_way: bool = False) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.tensor(1.7))
        self.one_way = one_way

    def forward(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.one_way:
            raise AssertionError("the direction without a formula was asked for")
        first = z[:, 0] / self.s
        zeta = torch.stack([first, z[:, 1] + self.by(c) * first**2], 1)
        return zeta, -self.s.log().expand(len(z))

    def inverse(self, zeta: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        second = zeta[:, 1] - self.by(c) * zeta[:, 0] ** 2
        z = torch.stack([self.s * zeta[:, 0], second], 1)
        return z, self.s.log().expand(len(z))

    def by(self, c: Tensor | None) -> Tensor:
        return torch.tensor(0.3) if c is None else c[:, 0]


ROWS = torch.tensor(
    [[0.5, -0.2, 0.3, -0.4, 0.8], [0.0, 0.1, -0.5, 0.2, -0.6]], dtype=torch.float64
)


@pytest.mark.parametrize("width", [4, 5])
def test_a_bent_guess_is_a_density(width: int) -> None:
    """(eq:iw-flow) has mass one and the mean of the push-forward, by quadrature."""
    law = FlowNet(Table(ROWS[:, :width]), Bend(), 2)(torch.zeros(2, 1))
    grid = torch.cartesian_prod(4 * LINE[::2], 4 * LINE[::2])[:, None].expand(-1, 2, 2)
    with torch.no_grad():
        p = law.log_prob(grid).exp() * (8 * STEP) ** 2
    by = ROWS[:, 4] if width == 5 else torch.full((2,), 0.3)
    second = ROWS[:, 1] - by * (ROWS[:, 0] ** 2 + ROWS[:, 2].exp())
    torch.testing.assert_close(p.sum(0), torch.ones(2), atol=1e-6, rtol=0)
    torch.testing.assert_close((p * grid[..., 1]).sum(0), second, atol=1e-5, rtol=0)


def test_the_density_of_a_draw_is_remembered_and_right(rng: Generator) -> None:
    """Both directions of f give one (eq:iw-flow), for each datum its own."""
    law = FlowNet(Table(ROWS), Bend(), 2)(torch.zeros(2, 1))
    for shape in ((), (3,), (2, 3)):
        z = draw(law, shape, rng=rng)
        assert z.shape == (*shape, 2, 2)
        remembered = law.log_prob(z)
        assert remembered is law.log_prob(z)
        torch.testing.assert_close(law.log_prob(z.clone()), remembered)
    alone = FlowNet(Table(ROWS[1:]), Bend(), 2)(torch.zeros(1, 1))
    torch.testing.assert_close(law.log_prob(z)[..., 1:], alone.log_prob(z[..., 1:, :]))


def test_a_bound_asks_for_one_direction_only(rng: Generator) -> None:
    both, one = (
        VAE(
            FlowNet(Table(ROWS), Bend(way), 2),
            NoisyNet(nn.Identity()),
            StandardNormal(2),
        )
        for way in (False, True)
    )
    x = torch.ones(2, 2)
    for ask in (
        lambda vae, g: vae.loss(x, rng=g),
        lambda vae, g: vae.log_weights(x, 4, rng=g),
        lambda vae, g: IWAE(vae, 4).loss(x, rng=g),
        lambda vae, g: vae.log_prob_iw(x, samples=9, chunk=4, rng=g),
    ):
        a, b = twins()
        torch.testing.assert_close(ask(both, a), ask(one, b))


def test_a_flow_has_the_doubly_gradient_too(rng: Generator) -> None:
    """Its mean is the plain gradient's, also in the parameters of the flow."""
    n, x = 40_000, torch.tensor([[1.0, 0.5]])
    means, errors = [], []
    for doubly in (False, True):
        table = Table(ROWS[:1].expand(n, 5))
        vae = VAE(FlowNet(table, Bend(), 2), NoisyNet(nn.Identity(), sigma=0.9),
                  StandardNormal(2))  # fmt: skip
        loss = IWAE(vae, 3, doubly=doubly).loss(x.expand(n, 2), rng=rng)
        (g,) = torch.autograd.grad(n * loss, table.rows)
        means.append(g.mean(0))
        errors.append(g.std(0) / n**0.5)
    assert (
        (means[0] - means[1]).abs() < 4 * (errors[0] ** 2 + errors[1] ** 2).sqrt()
    ).all()
    assert (means[1].abs() > 6 * errors[1]).any()


def test_the_flow_belongs_to_the_encoder() -> None:
    net = FlowNet(Table(ROWS), Bend(), 2)
    assert {"f.s", "net.rows"} == dict(net.named_parameters()).keys()
    with pytest.raises(ValueError, match=r"net must return \(n, 4 or more\)"):
        FlowNet(nn.Identity(), Bend(), 2)(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="f must be a Module"):
        FlowNet(nn.Identity(), lambda z, c: (z, z), 2)  # type: ignore[arg-type]


def test_the_flows_of_the_book_fit_as_guess_and_as_prior(rng: Generator) -> None:
    """The weights average to the evidence by quadrature, flows on both sides."""
    torch.manual_seed(1)
    masks = torch.tensor([[True, False], [False, True]])
    guess = Chain([AffineCoupling(m, MLP(2, 6, 2)) for m in masks])
    encoder = FlowNet(nn.Linear(2, 5), guess, 2)
    vae = VAE(
        encoder, NoisyNet(nn.Identity(), sigma=1.0), real_prior(StandardNormal(2))
    )
    x, n = torch.tensor([[0.4, -0.3]]), 100_000
    z = torch.cartesian_prod(LINE[::6], LINE[::6])
    with torch.no_grad():
        log_joint = vae.log_joint(x, z[:, None])
        exact = log_joint.exp().sum() * (6 * STEP) ** 2
        w = vae.log_weights(x, n, rng=rng).exp()
    assert (w.mean() - exact).abs() < 4 * w.std() / n**0.5
    assert w.std() / n**0.5 < 0.02 * exact
    assert vae.sample(3, rng=rng).shape == (3, 2)
