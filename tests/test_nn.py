"""Blocks of networks, and the one place that draws noise."""

import pytest
import torch
from torch import Generator, nn

from pushforward.nn import MLP, noise_like, randn


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_noise_takes_shape_dtype_and_device(dtype: torch.dtype, rng: Generator) -> None:
    x = torch.zeros(3, 1, 4, dtype=dtype)
    z = noise_like(x, rng)
    assert (z.shape, z.dtype, z.device) == (x.shape, x.dtype, x.device)
    assert randn((5, 2), x, rng=rng).shape == (5, 2)
    assert randn((5, 2), x, rng=rng).dtype == dtype


def test_noise_is_a_function_of_the_rng() -> None:
    x, state = torch.zeros(100), torch.get_rng_state()
    a, b = (noise_like(x, Generator().manual_seed(1)) for _ in "ab")
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), state), "the global state was used"


def test_without_rng_the_global_state_draws() -> None:
    x = torch.zeros(100)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        a = noise_like(x)
        torch.manual_seed(3)
        assert torch.equal(a, torch.randn(100))


def test_noise_is_standard_normal(rng: Generator) -> None:
    """By the Kolmogorov–Smirnov distance, whose 99.99 % point is 2.2/√n."""
    n = 50_000
    z = randn((n,), torch.zeros(()), rng=rng).sort().values
    uniform = torch.special.ndtr(z)
    steps = torch.arange(n) / n
    gap = torch.maximum((uniform - steps).abs(), (uniform - steps - 1 / n).abs())
    assert gap.max() < 2.2 / n**0.5


def test_noise_has_no_graph() -> None:
    assert not noise_like(torch.zeros(3, requires_grad=True)).requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_cpu_generator_draws_the_same_noise_for_a_gpu() -> None:
    x = torch.zeros(10)
    a, b = (Generator().manual_seed(0) for _ in "ab")
    z = noise_like(x.cuda(), a)
    assert z.is_cuda
    assert torch.equal(z.cpu(), noise_like(x, b))


def test_mlp_is_the_composition_of_its_layers(rng: Generator) -> None:
    torch.manual_seed(0)
    net = MLP(3, 5, 4, 2, activation=nn.Tanh)
    h = torch.randn(7, 3, generator=rng)
    x = h
    for i in (0, 2, 4):
        layer = net[i]
        assert isinstance(layer, nn.Linear)
        h = h @ layer.weight.T + layer.bias
        h = h.tanh() if i < 4 else h  # no nonlinearity at the end
    torch.testing.assert_close(net(x), h)
    assert len(net) == 5


def test_mlp_of_two_widths_is_affine() -> None:
    assert [type(m) for m in MLP(3, 2)] == [nn.Linear]


@pytest.mark.parametrize("widths", [(), (3,), (3, 0, 2), (-1, 2)])
def test_bad_widths_are_named(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="widths must be at least two positive"):
        MLP(*widths)
