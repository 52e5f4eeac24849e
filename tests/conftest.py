"""Every test runs in double precision, on one thread, with its own randomness."""

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
