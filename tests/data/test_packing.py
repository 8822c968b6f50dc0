"""Packing: every token once, as wide as it must be, in blocks of one length."""

from __future__ import annotations

import hashlib
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest

from horovod_transformer.data.packing import PackedSplit, save_splits


def test_packing_keeps_every_token_once(tmp_path: Path) -> None:
    chosen = np.random.default_rng(3)
    for round_number in range(30):
        vocab_size = int(chosen.integers(3, 70_000))
        block = int(chosen.integers(2, 40))
        books = [chosen.integers(0, vocab_size - 1, chosen.integers(0, 100)) for _ in range(5)]
        path = tmp_path / str(round_number)
        with PackedSplit(path, block, vocab_size, vocab_size - 1) as split:
            for book in books:
                split.add_book(book.astype(np.uint32))
        ids = np.fromfile(path, dtype=split.dtype)
        wanted = np.concatenate([np.append(book, vocab_size - 1) for book in books])
        assert (ids[: split.tokens] == wanted).all() and split.tokens == len(wanted)
        assert len(ids) == split.blocks * block == split.tokens + split.padding
        assert (ids[split.tokens :] == vocab_size - 1).all() and split.padding < block
        assert split.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(50257, "uint16"), (65536, "uint16"), (65537, "uint32")])
def test_ids_are_as_wide_as_the_vocabulary_needs(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    ids = np.array([0, 1, vocab_size - 2], dtype=np.uint32)
    with PackedSplit(tmp_path / "flat", 2, vocab_size, vocab_size - 1) as split:
        split.add_book(ids)
    save_splits({"train": split}, tmp_path / "out", "f" * 64)
    column = datasets.load_from_disk(str(tmp_path / "out"))["train"].data.column("input_ids")
    assert column.type == pa.list_(getattr(pa, dtype)(), 2)
    assert column.to_pylist() == [[0, 1], [vocab_size - 2, vocab_size - 1]]


@pytest.mark.parametrize("bad", [300, 65536 + 5, -1])
def test_an_id_outside_the_vocabulary_is_never_wrapped(tmp_path: Path, bad: int) -> None:
    with (
        PackedSplit(tmp_path / "flat", 2, 300, 299) as split,
        pytest.raises(ValueError, match="do not fit 300"),
    ):
        split.add_book(np.array([1, bad]))
