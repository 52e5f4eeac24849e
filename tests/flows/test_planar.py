"""book/flows/planar.md, equation by equation."""

import math

import pytest
import torch
from torch import Generator, Tensor

from pushforward.data import stream
from pushforward.distributions import StandardNormal
from pushforward.flows import (
    ENERGIES,
    Boltzmann,
    Flow,
    Inverse,
    Planar,
    Stretch,
    anneal,
    log_partition,
)
from pushforward.flows.planar import bend, invertible, unbend
from pushforward.metrics import two_sample
from pushforward.train import train


@pytest.fixture
def f() -> Planar:
    """Six layers in the plane with steep, and partly forbidden, parameters."""
    torch.manual_seed(0)
    f = Planar(2, 6)
    with torch.no_grad():
        f.u.mul_(20)
        f.w.mul_(3)
        f.b.normal_()
    return f


def slogdet(f: Planar, z: Tensor, c: Tensor | None = None) -> Tensor:
    """Log |det| of noise → data at each row, by automatic differentiation."""
    z = z.clone().requires_grad_()
    x = f.inverse(z, c)[0]
    rows = [torch.autograd.grad(x[:, i].sum(), z, retain_graph=True)[0]
            for i in range(x.shape[1])]  # fmt: skip
    return torch.linalg.slogdet(torch.stack(rows, 1)).logabsdet


def test_one_layer_is_the_formula(rng: Generator) -> None:
    """(eq:planar), one row by hand."""
    layer = invertible(torch.tensor([0.5, 0.1]), torch.tensor([1.0, -2.0]),
                       torch.tensor(0.3))  # fmt: skip
    x, _ = bend(torch.tensor([[0.7, 0.2]]), layer)
    moved = torch.tensor([0.7, 0.2]) + layer.u * math.tanh(0.7 - 0.4 + 0.3)
    torch.testing.assert_close(x[0], moved)


@pytest.mark.parametrize("wu", [-40.0, -3.0, -1.0, 0.0, 2.0, 30.0])
def test_the_shift_reaches_every_value_above_minus_one(wu: float) -> None:
    """(eq:planar-invertible): wᵀû = −1 + log(1 + e^(wᵀu)), û − u along w."""
    w = torch.tensor([1.0, 2.0])
    u = torch.tensor([2.0, -1.0]) + wu * w / 5
    layer = invertible(u, w, torch.tensor(0.0))
    torch.testing.assert_close(layer.m, torch.tensor(math.log1p(math.exp(wu))))
    torch.testing.assert_close(w @ layer.u, layer.m - 1)
    torch.testing.assert_close((layer.u - u) @ torch.tensor([2.0, -1.0]),
                               torch.tensor(0.0))  # fmt: skip


def test_log_det_is_that_of_the_jacobian(f: Planar, rng: Generator) -> None:
    """(eq:planar-log-det), summed over the layers."""
    z = 2 * torch.randn(100, 2, generator=rng)
    torch.testing.assert_close(f.inverse(z)[1], slogdet(f, z), rtol=1e-9, atol=1e-9)


def test_log_det_keeps_its_digits_next_to_the_forbidden_value() -> None:
    """At tanh = 0 it is log m, even where 1 + wᵀu rounds to zero."""
    w = torch.tensor([1.0, 0.0])
    layer = invertible(torch.tensor([-50.0, 0.0]), w, torch.tensor(0.0))
    _, term = bend(torch.zeros(1, 2), layer)
    torch.testing.assert_close(term, torch.tensor([-50.0]))


def test_forward_undoes_inverse(f: Planar, rng: Generator) -> None:
    """(eq:planar-inverse), for small noise and for noise far out."""
    z = torch.cat([torch.randn(200, 2, generator=rng) * s for s in (1e-6, 1.0, 100.0)])
    x, there = f.inverse(z)
    back, here = f(x)
    torch.testing.assert_close(back, z, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(here, -there, rtol=1e-9, atol=1e-9)


def test_single_precision_inverse(f: Planar, rng: Generator) -> None:
    """Bends as steep as training makes them, wᵀu up to about 10."""
    f = f.float()
    with torch.no_grad():
        f.u.div_(4)
    z = torch.randn(500, 2, generator=rng, dtype=torch.float32)
    torch.testing.assert_close(f(f.inverse(z)[0])[0], z, rtol=0, atol=1e-4)


def test_the_root_passes_its_gradient(rng: Generator) -> None:
    """By the implicit function theorem, against finite differences."""
    u, w, b, x = (torch.randn(s, generator=rng, requires_grad=True)
                  for s in [(3,), (3,), (), (4, 3)])  # fmt: skip

    def values(u: Tensor, w: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return unbend(x, invertible(u, w, b))

    assert torch.autograd.gradcheck(values, (u, w, b, x))


def test_a_context_gives_each_row_its_own_layers(f: Planar, rng: Generator) -> None:
    z = torch.randn(3, 2, generator=rng)
    c = 0.3 * torch.randn(3, 6 * 5, generator=rng)
    x, term = f.inverse(z, c)
    torch.testing.assert_close(term, slogdet(f, z, c))
    torch.testing.assert_close(f(x, c)[0], z)
    one = Planar(2, 6)
    with torch.no_grad():
        rows = c[1].view(6, 5)
        one.u.copy_(f.u + rows[:, :2])
        one.w.copy_(f.w + rows[:, 2:4])
        one.b.copy_(f.b + rows[:, 4])
    torch.testing.assert_close(one.inverse(z[1:2])[0], x[1:2])


def test_no_layer_is_the_identity(rng: Generator) -> None:
    z = torch.randn(3, 4, generator=rng)
    x, term = Planar(4, 0).inverse(z)
    assert torch.equal(x, z)
    assert torch.equal(term, torch.zeros(3))


def test_dimension_one_works(rng: Generator) -> None:
    f, z = Planar(1, 3), torch.randn(5, 1, generator=rng)
    torch.testing.assert_close(f(f.inverse(z)[0])[0], z)


def test_mass_is_one(f: Planar) -> None:
    """By quadrature; the bends of small scale are kept mild."""
    with torch.no_grad():
        f.u.div_(10)
    axis = torch.linspace(-9, 9, 301)
    flow = Flow(f, StandardNormal(2))
    with torch.no_grad():
        p = flow.log_prob(torch.cartesian_prod(axis, axis)).exp()
    mass = p.sum() * (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(mass, torch.tensor(1.0), rtol=0, atol=1e-4)


def test_samples_follow_the_density(f: Planar, rng: Generator) -> None:
    """Draws against points resampled from the density on a fine grid."""
    with torch.no_grad():
        f.u.div_(10)
    flow = Flow(f, StandardNormal(2))
    axis = torch.linspace(-7, 7, 281)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        p = flow.log_prob(grid).exp()
    chosen = grid[torch.multinomial(p, 400, replacement=True, generator=rng)]
    jitter = (torch.rand(400, 2, generator=rng) - 0.5) * (axis[1] - axis[0])
    x = flow.sample(400, rng=rng)
    assert two_sample(x, chosen + jitter, rng=rng).p > 0.01


@pytest.mark.parametrize(("d", "layers"), [(0, 1), (2, -1)])
def test_impossible_sizes_are_refused(d: int, layers: int) -> None:
    with pytest.raises(ValueError, match="d must be ≥ 1 and layers ≥ 0"):
        Planar(d, layers)


def test_a_context_of_another_width_is_refused(f: Planar) -> None:
    with pytest.raises(ValueError, match=r"c must be \(n, 30\)"):
        f.inverse(torch.zeros(2, 2), torch.zeros(2, 29))


def test_free_energy_of_a_gaussian_is_its_divergence(rng: Generator) -> None:
    """(eq:planar-free-energy) at β = 1 with U = −log N(m, I): ‖m‖²/2 by quadrature."""
    m = torch.tensor([1.0, -2.0])
    base = StandardNormal(2)
    fit = Boltzmann(Flow(Planar(2, 0), base), lambda x: -base.log_prob(x - m))
    axis = torch.linspace(-9, 9, 181)
    grid = torch.cartesian_prod(axis, axis)
    w = base.log_prob(grid).exp() * (axis[1] - axis[0]) ** 2
    mean = sum(fit.loss(p[None]) * q for p, q in zip(grid[w > 1e-9], w[w > 1e-9],
                                                      strict=True))  # fmt: skip
    torch.testing.assert_close(mean, m.square().sum() / 2, rtol=1e-5, atol=1e-5)


def test_beta_weighs_the_energy(rng: Generator) -> None:
    fit = Boltzmann(Flow(Planar(2, 0), StandardNormal(2)), lambda x: x.square().sum(1))
    z = torch.randn(7, 2, generator=rng)
    full, fit.beta = fit.loss(z), 0.25
    entropy = StandardNormal(2).log_prob(z).mean()
    torch.testing.assert_close(fit.loss(z) - entropy, 0.25 * (full - entropy))


def test_weights_average_to_the_partition_function(rng: Generator) -> None:
    fit = Boltzmann(Flow(Planar(2, 0), StandardNormal(2)),
                    lambda x: (x - 0.3).square().sum(1))  # fmt: skip
    log_w = fit.log_weights(100_000, rng=rng)
    w = log_w.exp()
    assert (w.mean() - math.pi).abs() < 4 * w.std() / len(w) ** 0.5


def test_log_partition_of_a_gaussian() -> None:
    value = log_partition(lambda x: (x - 0.5).square().sum(1) / 2)
    torch.testing.assert_close(value, torch.tensor(math.log(2 * math.pi)))


@pytest.mark.parametrize("name", ENERGIES)
def test_log_partition_does_not_depend_on_the_square(name: str) -> None:
    a = log_partition(ENERGIES[name])
    b = log_partition(ENERGIES[name], side=7.0, nodes=1001)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_energies_by_hand() -> None:
    """Table 1 of the paper, at points where a few terms survive."""
    x = torch.tensor([[2.0, 0.0], [0.0, 0.4], [-2.0, 0.35]])
    far = math.exp(-0.5 * (4 / 0.6) ** 2)
    torch.testing.assert_close(ENERGIES["U1"](x[:1]), -torch.tensor([math.log1p(far)]))
    torch.testing.assert_close(ENERGIES["U2"](x[1:2]), torch.tensor([0.5]))
    bump = 3 * math.exp(-0.5 * 25)
    both = math.exp(-0.5) + math.exp(-0.5 * ((0.35 + bump) / 0.35) ** 2)
    torch.testing.assert_close(ENERGIES["U3"](x[2:]), -torch.tensor([math.log(both)]))
    step = 3 / (1 + math.exp(10))
    both = math.exp(-0.5 * (0.35 / 0.4) ** 2)
    both += math.exp(-0.5 * ((0.35 + step) / 0.35) ** 2)
    torch.testing.assert_close(ENERGIES["U4"](x[2:]), -torch.tensor([math.log(both)]))


def test_walls_keep_the_wave_in() -> None:
    x = torch.tensor([[0.0, 0.0], [3.9, 0.0]])
    inside, outside = ENERGIES["U2"](x)
    wave = math.sin(math.pi / 2 * 3.9)
    torch.testing.assert_close(outside, torch.tensor(0.5 * (wave / 0.4) ** 2 + 2.0))
    torch.testing.assert_close(inside, torch.tensor(0.0))


def test_annealing_starts_cold_and_ends_at_one() -> None:
    assert anneal(0, 100) == 0.01
    assert anneal(50, 100) == pytest.approx(0.51)
    assert anneal(99, 100) == anneal(500, 100) == 1.0


def test_a_short_fit_halves_the_divergence(rng: Generator) -> None:
    """Four layers, 300 steps, U₂: against log Z by quadrature."""
    torch.manual_seed(0)
    fit = Boltzmann(Flow(Planar(2, 4), StandardNormal(2)), ENERGIES["U2"])
    log_z = log_partition(ENERGIES["U2"], nodes=401)
    before = log_z - fit.log_weights(20_000, rng=rng).mean()
    for _ in train(fit, stream(StandardNormal(2), 128, rng=rng), steps=300, lr=2e-2,
                   rng=rng):  # fmt: skip
        pass
    after = log_z - fit.log_weights(20_000, rng=rng).mean()
    assert 0 < after < before / 2


def test_the_flow_turned_round_is_the_same_pair(f: Planar, rng: Generator) -> None:
    z = torch.randn(3, 2, generator=rng)
    assert torch.equal(Inverse(f)(z)[0], f.inverse(z)[0])


def test_the_base_of_a_fit_knows_its_log_determinant(rng: Generator) -> None:
    f = Stretch(3)
    with torch.no_grad():
        f.m.copy_(torch.tensor([1.0, 2.0, 3.0]))
        f.log_s.copy_(torch.tensor([0.1, -0.4, 0.7]))
    z = torch.randn(5, 3, generator=rng)
    x, there = f.inverse(z)
    back, here = f(x)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(there, torch.full((5,), 0.4))
    torch.testing.assert_close(here, -there)
