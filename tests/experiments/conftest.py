"""Experiments run in single precision, as their runs do."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def single_precision(double_precision: None) -> Iterator[None]:
    """Undo the double precision of the other tests."""
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(torch.float64)
