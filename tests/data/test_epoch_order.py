"""Orders of an epoch: each block once, every place as likely, no trace of another epoch, never changed.

The statistics are of fixed seeds: they come out the same each time.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from horovod_transformer.data.epoch_order import (
    BIJECTION,
    TABLE,
    TABLE_LIMIT,
    derive_seed,
    epoch_order,
    usual_order,
)

KINDS = [TABLE, BIJECTION]
HUGE = 195_000_000


def whole(kind: str, blocks: int, seed: int = 1, epoch: int = 0) -> np.ndarray:
    return np.array(epoch_order(kind, blocks, seed, epoch).blocks_at(range(blocks)))


def assert_even(counts: np.ndarray, expected: float, free: int) -> None:
    """Chi-square: counts differ from what they should be as chance has it, neither more nor less."""
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - free) < 4 * np.sqrt(2 * free)


@pytest.mark.parametrize("kind", KINDS)
# Squares and their neighbours, where the two digits' bases change.
@pytest.mark.parametrize("blocks", [*range(1, 40), 99, 100, 101, 4095, 4096, 4097, 65_537])
def test_every_block_comes_once(kind: str, blocks: int) -> None:
    order = epoch_order(kind, blocks, 1, 0)
    found = whole(kind, blocks)
    assert np.array_equal(np.sort(found), np.arange(blocks))
    assert found[order.place_of_last] == blocks - 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_piece_is_a_piece_of_the_whole(kind: str) -> None:
    order = epoch_order(kind, 1000, 1, 0)
    assert order.blocks_at(range(300, 420)) == whole(kind, 1000)[300:420].tolist()
    assert order.blocks_at(range(7, 7)) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks", [3, 12, 25])
def test_every_block_is_as_likely_at_every_place(kind: str, blocks: int) -> None:
    counts = np.zeros((blocks, blocks))
    for seed in range(600):
        counts[np.arange(blocks), whole(kind, blocks, seed)] += 1
    assert_even(counts, 600 / blocks, (blocks - 1) ** 2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_order_of_five_is_as_likely(kind: str) -> None:
    found = [tuple(whole(kind, 5, 1, epoch)) for epoch in range(2400)]
    counts = np.unique(found, axis=0, return_counts=True)[1]
    assert len(counts) == 120
    assert_even(counts, 20, 119)


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_are_not_kept_together(kind: str) -> None:
    """How far apart in the corpus two blocks are that stand side by side, over the whole circle."""
    counts = np.zeros(100)
    for seed in range(5):
        order = whole(kind, 10_000, seed)
        counts += np.bincount(np.diff(order) % 10_000 // 100, minlength=100)
    assert_even(counts, counts.sum() / 100, 99)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", [(1, 1), (2, 0)], ids=["another epoch", "another seed"])
def test_an_order_says_nothing_about_another(kind: str, other: tuple[int, int]) -> None:
    blocks = 10_000
    one, two = whole(kind, blocks, 1, 0), whole(kind, blocks, *other)
    assert (one == two).sum() < 10  # one by chance
    assert abs(np.corrcoef(one, two)[0, 1]) < 4 / np.sqrt(blocks)
    # Where the same block stands in both: 20 x 20 fields of the square, filled alike.
    fields = np.zeros((20, 20))
    np.add.at(fields, (np.argsort(one) * 20 // blocks, np.argsort(two) * 20 // blocks), 1)
    assert_even(fields, blocks / 400, 361)


def test_many_blocks_take_neither_time_nor_memory() -> None:
    tracemalloc.start()
    order = epoch_order(BIJECTION, HUGE, 1337, 0)
    indices = order.blocks_at(range(HUGE - 4096, HUGE))
    assert order.blocks_at(range(order.place_of_last, order.place_of_last + 1)) == [HUGE - 1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(indices)) == 4096 and all(index in range(HUGE) for index in indices)
    assert peak < 1 << 20


def test_the_number_of_blocks_decides_what_a_fresh_run_takes() -> None:
    assert usual_order(1) == usual_order(TABLE_LIMIT) == TABLE
    assert usual_order(TABLE_LIMIT + 1) == usual_order(HUGE) == BIJECTION


def test_orders_are_the_same_for_ever() -> None:
    # A run resumed after an upgrade must see the order it began with.
    assert derive_seed(1337, "order", 0) == 2729756825838703290
    assert epoch_order(TABLE, 23, 1337, 0).blocks_at(range(6)) == [16, 13, 12, 7, 20, 22]
    assert epoch_order(BIJECTION, 23, 1337, 0).blocks_at(range(6)) == [0, 2, 21, 18, 10, 6]
    assert epoch_order(BIJECTION, HUGE, 1337, 1).blocks_at(range(3)) == [105_019_710, 194_957_377, 736_183]
