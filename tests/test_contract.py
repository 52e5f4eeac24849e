"""What every density of the book owes, asked of all of them (book/flows/change.md).

Log-determinants against automatic differentiation, inverses in double and single
precision over the range that training reaches, mass by quadrature, samples against
the density, randomness from ``rng`` alone, and good manners at the door.
"""

import copy
import math

import pytest
import torch
from torch import Generator, Tensor

from pushforward.diffusion import VP, LevelSteps, Preconditioned, ScoreFlow
from pushforward.distributions import Mixture, StandardNormal
from pushforward.flows import (
    ContinuousFlow,
    Flow,
    FlowMatching,
    Knothe,
    Planar,
    glow,
    image_nvp,
    initialize,
    real_nvp,
    spline_flow,
)
from pushforward.metrics import two_sample
from pushforward.model import Density
from pushforward.nn import ResMLP, TimeMLP

Shape = tuple[int, ...]


def shaken(model: Density, scale: float) -> Density:
    """The model with weights away from the identity, as after training."""
    rng = Generator().manual_seed(1)
    with torch.no_grad():
        for w in model.parameters():
            w.add_(scale * torch.randn(w.shape, generator=rng))
    return model


def mixture() -> Mixture:
    cov = torch.tensor([[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.4]]])
    return Mixture(torch.tensor([[-1.0, 0.5], [1.2, -0.7]]), cov)


def with_batch(model: Flow, shape: Shape) -> Flow:
    """The model after its actnorms have seen a batch of images."""
    initialize(model, torch.rand(32, *shape, generator=Generator().manual_seed(2)))
    return model


def score_flow() -> ScoreFlow:
    denoiser = Preconditioned(ResMLP(2, 16, 1), sigma_data=1.0)
    steps = LevelSteps(VP(), 12, bend=0.3)
    return ScoreFlow(denoiser, StandardNormal(2), VP(), level=0.05, solver=steps)


POINTS = {
    "planar": lambda: shaken(Flow(Planar(2, 4), StandardNormal(2)), 0.3),
    "RealNVP": lambda: shaken(real_nvp(2, 4, (16, 16)), 0.1),
    "spline": lambda: shaken(spline_flow(2, 3, (16, 16)), 0.15),
    "Knothe": lambda: Flow(Knothe(mixture()), StandardNormal(2)),
    "continuous": lambda: ContinuousFlow(TimeMLP(2, 16, 16), StandardNormal(2)),
    "matching": lambda: FlowMatching(TimeMLP(2, 16, 16), StandardNormal(2)),
    "diffusion": lambda: shaken(score_flow(), 0.1),
}
IMAGES = {
    "Glow, grey": (lambda: with_batch(glow((1, 8, 8)), (1, 8, 8)), (1, 8, 8)),
    "Glow, colour": (lambda: with_batch(glow((3, 8, 8)), (3, 8, 8)), (3, 8, 8)),
    "RealNVP, grey": (lambda: image_nvp((1, 8, 8)), (1, 8, 8)),
    "RealNVP, colour": (lambda: image_nvp((3, 8, 8)), (3, 8, 8)),
}
SOLVED = ("continuous", "matching", "diffusion")  # by an equation
INVERTIBLE = [name for name in POINTS if name not in SOLVED]


@pytest.fixture(params=POINTS)
def law(request: pytest.FixtureRequest) -> Density:
    torch.manual_seed(0)
    return POINTS[request.param]()


@pytest.fixture(params=INVERTIBLE)
def flow(request: pytest.FixtureRequest) -> Flow:
    torch.manual_seed(0)
    return POINTS[request.param]()


@pytest.fixture(params=IMAGES)
def image_flow(request: pytest.FixtureRequest) -> tuple[Flow, Shape]:
    torch.manual_seed(0)
    make, shape = IMAGES[request.param]
    return shaken(make(), 0.02), shape


def slogdet(flow: Flow, x: Tensor) -> Tensor:
    """Log |det ∂f/∂x| at each row, by automatic differentiation."""
    x = x.clone().requires_grad_()
    z = flow.f(x)[0].flatten(1)
    rows = [torch.autograd.grad(z[:, i].sum(), x, retain_graph=True)[0].flatten(1)
            for i in range(z.shape[1])]  # fmt: skip
    return torch.linalg.slogdet(torch.stack(rows, 1)).logabsdet


def test_log_det_of_points(flow: Flow, rng: Generator) -> None:
    x = 1.5 * torch.randn(50, 2, generator=rng)
    torch.testing.assert_close(flow.f(x)[1], slogdet(flow, x), rtol=1e-9, atol=1e-9)


def test_log_det_of_images(image_flow: tuple[Flow, Shape], rng: Generator) -> None:
    model, shape = image_flow
    x = torch.rand(2, *shape, generator=rng)
    expected = slogdet(model, x)
    torch.testing.assert_close(model.f(x)[1], expected, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("size", [1e-8, 1.0, 30.0])
def test_inverse_in_double_precision(flow: Flow, size: float, rng: Generator) -> None:
    """From noise and back: noise far out is where scales saturate."""
    if isinstance(flow.f, Knothe):
        size = min(size, 8.0)  # its bisection ends forty deviations out
    z = size * torch.randn(200, 2, generator=rng)
    x, there = flow.f.inverse(z)
    back, here = flow.f(x)
    torch.testing.assert_close(back, z, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(here, -there, rtol=1e-8, atol=1e-8)


def test_inverse_in_single_precision(flow: Flow, rng: Generator) -> None:
    model = copy.deepcopy(flow).float()
    x = 2 * torch.randn(200, 2, generator=rng, dtype=torch.float32)
    if isinstance(flow.f, Knothe):
        x = x / 2  # an exact law, never trained: its own range
    torch.testing.assert_close(model.f.inverse(model.f(x)[0])[0], x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["middle", "edges", "dark"])
def test_inverse_of_images(
    image_flow: tuple[Flow, Shape], kind: str, rng: Generator
) -> None:
    """Grey, black-and-white and nearly black images, in both precisions."""
    model, shape = image_flow
    x = torch.rand(4, *shape, generator=rng)
    x = {"middle": x, "edges": x.round() * 0.996, "dark": 1e-6 * x}[kind]
    torch.testing.assert_close(model.f.inverse(model.f(x)[0])[0], x, rtol=0, atol=1e-10)
    single = copy.deepcopy(model).float()
    x = x.float()
    y = single.f.inverse(single.f(x)[0])[0]
    torch.testing.assert_close(y, x, rtol=0, atol=1e-4)


def test_mass_is_one(law: Density) -> None:
    """By quadrature on a square that holds all but a little of it."""
    axis = torch.linspace(-8, 8, 201)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        p = torch.cat([law.log_prob(rows).exp() for rows in grid.split(8192)])
    mass = p.sum() * (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(mass, torch.tensor(1.0), rtol=0, atol=2e-3)


def test_samples_follow_the_density(law: Density, rng: Generator) -> None:
    """Against points drawn from the density on a fine grid."""
    axis = torch.linspace(-6, 6, 161)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        p = torch.cat([law.log_prob(rows).exp() for rows in grid.split(8192)])
    chosen = grid[torch.multinomial(p, 400, replacement=True, generator=rng)]
    jitter = (torch.rand(400, 2, generator=rng) - 0.5) * (axis[1] - axis[0])
    x = law.sample(400, rng=rng)
    assert two_sample(x, chosen + jitter, rng=rng).p > 0.01


def test_a_wrong_density_is_found_out(rng: Generator) -> None:
    """The two-sample test above sees a mixture with the wrong weights."""
    law = mixture()
    x = Mixture(law.means, law.covs, torch.tensor([0.3, 0.7])).sample(400, rng=rng)
    assert two_sample(x, law.sample(400, rng=rng), rng=rng).p < 0.01


def test_sample_is_a_function_of_its_rng(law: Density) -> None:
    state = torch.get_rng_state()
    x, y = (law.sample(5, rng=Generator().manual_seed(1)) for _ in "xy")
    assert torch.equal(x, y)
    assert torch.equal(torch.get_rng_state(), state), "the global state was used"


def test_image_samples_are_images(image_flow: tuple[Flow, Shape]) -> None:
    model, shape = image_flow
    state = torch.get_rng_state()
    x = model.sample(3, rng=Generator().manual_seed(1))
    assert x.shape == (3, *shape)
    assert model.log_prob(x.clamp(0, 1)).shape == (3,)
    assert torch.equal(torch.get_rng_state(), state)


def test_loss_trains_every_parameter(law: Density, rng: Generator) -> None:
    (player,) = law.players()
    if not player.params:
        return  # an exact law has nothing to learn
    loss = player.loss(torch.randn(16, 2, generator=rng), rng=rng)
    assert loss.shape == ()
    grads = torch.autograd.grad(loss, player.params)
    assert all(g.isfinite().all() for g in grads)


BAD = {
    "no rows": torch.zeros(0, 2),
    "NaN": torch.tensor([[0.0, math.nan]]),
    "infinite": torch.tensor([[math.inf, 0.0]]),
    "integers": torch.zeros(3, 2, dtype=torch.long),
    "another precision": torch.zeros(3, 2, dtype=torch.float32),
    "another dimension": torch.zeros(3, 5),
    "one number": torch.zeros(()),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_data_are_refused_by_name(law: Density, what: str) -> None:
    with pytest.raises(ValueError, match=r"^[xz] must"):
        law.log_prob(BAD[what])
