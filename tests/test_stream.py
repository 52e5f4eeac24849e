"""Streams are what they say, and are taken up where they were left."""

from functools import partial

import pytest
import torch

from pushforward.data import Images, dequantize
from pushforward.distributions import StandardNormal, ring
from pushforward.stream import Stream, stream


def test_an_epoch_meets_every_row_once(rng: torch.Generator) -> None:
    x = torch.arange(12.0)[:, None]
    batches = stream(x, 4, rng=rng)
    epochs = [torch.cat([next(batches) for _ in range(3)])[:, 0] for _ in range(2)]
    assert all(torch.equal(e.sort().values, x[:, 0]) for e in epochs)
    assert not torch.equal(*epochs), "the order of an epoch is its own"


def test_every_batch_is_full(rng: torch.Generator) -> None:
    batches = stream(torch.rand(10, 2, generator=rng), 4, rng=rng)
    assert {len(next(batches)) for _ in range(20)} == {4}


def test_a_law_gives_fresh_draws(rng: torch.Generator) -> None:
    batches = stream(ring(), 5, rng=torch.Generator().manual_seed(3))
    again = torch.Generator().manual_seed(3)
    for _ in range(3):
        assert torch.equal(next(batches), ring().sample(5, rng=again))


@pytest.mark.parametrize(
    "source", [torch.arange(14.0).reshape(7, 2), StandardNormal(2)]
)
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_stream_is_taken_up_where_it_was_left(source: object, steps: int) -> None:
    def start(seed: int) -> Stream:
        return stream(source, 3, rng=torch.Generator().manual_seed(seed))

    one, other = start(0), start(1)
    for _ in range(steps):
        next(one)
    other.load_state_dict(one.state_dict())
    assert all(torch.equal(next(one), next(other)) for _ in range(6))


def test_a_changed_stream_is_taken_up_too() -> None:
    def start(seed: int) -> Stream:
        rng = torch.Generator().manual_seed(seed)
        x = torch.arange(8.0)[:, None] / 7
        spread = partial(dequantize, levels=8, rng=rng)
        return stream(x, 3, rng=rng).map(spread)

    one, other = start(0), start(1)
    next(one)
    other.load_state_dict(one.state_dict())
    batches = [next(one) for _ in range(4)]
    assert all(torch.equal(b, next(other)) for b in batches)
    assert torch.cat(batches).unique().numel() == 12, "fresh noise each time"


def test_the_state_of_other_data_is_refused(rng: torch.Generator) -> None:
    batches = stream(torch.zeros(5, 2), 2, rng=rng)
    next(batches)
    with pytest.raises(ValueError, match="5 rows"):
        stream(torch.zeros(6, 2), 2, rng=rng).load_state_dict(batches.state_dict())


@pytest.mark.parametrize(
    "source", [torch.arange(24.0).reshape(12, 2), StandardNormal(2)]
)
def test_ranks_share_the_batch_of_one_process(source: object) -> None:
    def start(rank: int, world: int) -> Stream:
        rng = torch.Generator().manual_seed(0)
        return stream(source, 6, rng=rng, rank=rank, world=world)

    alone, ranks = start(0, 1), [start(r, 3) for r in range(3)]
    for _ in range(5):
        assert torch.equal(next(alone), torch.cat([next(r) for r in ranks]))


GOOD_X = torch.zeros(8, 2)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (torch.zeros(8), {}, r"source must be \(n, \*shape\)"),
        (torch.zeros(0, 2), {"size": 1}, "not empty"),
        (torch.tensor([[1.0], [torch.nan]]), {"size": 1}, "finite"),
        (torch.tensor([[1.0], [torch.inf]]), {"size": 1}, "finite"),
        (GOOD_X, {"size": 9}, "size must be at most 8"),
        (GOOD_X, {"size": 0}, "size must be positive"),
        (GOOD_X, {"world": 3}, "multiple of 3"),
        (GOOD_X, {"rank": 2, "world": 2}, "rank must lie"),
        (Images(GOOD_X, None), {}, r"images\.x"),
        ([1, 2], {}, "tensor or a law"),
    ],
)
def test_bad_sources_are_refused(source: object, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stream(source, **{"size": 4, **options})
