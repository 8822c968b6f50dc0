"""Held-out blocks that say little are named, and others are not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from horovod_transformer.data.dataset import BlockDataset
from horovod_transformer.data.held_out import held_out_warnings, surprise


class Split:
    """Blocks as `BlockDataset` reads them, without a file."""

    def __init__(self, rows: np.ndarray) -> None:
        values = pa.array(rows.reshape(-1).astype(np.uint16))
        column = pa.FixedSizeListArray.from_arrays(values, rows.shape[1])
        self.table = pa.table({"input_ids": column})
        self.files: list[str] = []


def blocks(number: int, first: int, seed: int) -> BlockDataset:
    """Blocks of words that come as often as in a language (Zipf), from one of two vocabularies."""
    random = np.random.default_rng(seed)
    rows = first + np.minimum(random.zipf(1.3, (number, 64)) - 1, 499)
    return BlockDataset(Split(rows), 0, 1000, "made up")  # type: ignore[arg-type]


ENGLISH, FRENCH = 0, 500


def test_other_books_of_the_same_kind_are_no_surprise() -> None:
    train, validation = blocks(600, ENGLISH, 0), blocks(60, ENGLISH, 1)
    assert surprise(train, validation) == pytest.approx(1.0, abs=0.02)
    assert held_out_warnings(train, validation) == []


def test_books_in_another_language_are_named() -> None:
    (line,) = held_out_warnings(blocks(600, ENGLISH, 0), blocks(60, FRENCH, 1))
    assert "of another kind" in line and "data.split_seed" in line


def test_few_held_out_blocks_are_named_with_their_number() -> None:
    (line,) = held_out_warnings(blocks(600, ENGLISH, 0), blocks(29, ENGLISH, 1))
    assert line.startswith("only 29 held-out blocks:") and "data.validation_fraction" in line


def test_half_of_the_text_held_out_is_named_with_its_share() -> None:
    (line,) = held_out_warnings(blocks(100, ENGLISH, 0), blocks(100, ENGLISH, 1))
    assert line.startswith("50% of the blocks are held out")


def test_a_single_training_block_is_too_little_to_compare_with() -> None:
    assert surprise(blocks(1, ENGLISH, 0), blocks(1, FRENCH, 1)) == 1.0
