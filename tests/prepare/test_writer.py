"""Packing: every token once, as wide as it must be, in blocks of one length."""

from __future__ import annotations

import hashlib
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest

from horovod_transformer.prepare import writer as packing
from horovod_transformer.prepare.writer import SplitWriter, describe_splits, join_books, token_dtype


def write(folder: Path, ids: np.ndarray, block: int, vocab_size: int, at_a_time: int) -> SplitWriter:
    """Write a data set of one split."""
    folder.mkdir()
    split = SplitWriter(folder / "train", len(ids), block, vocab_size, vocab_size - 1)
    for start in range(0, len(ids), at_a_time):
        split.write(ids[start : start + at_a_time])
    split.close()
    describe_splits(folder, {"train": split}, "f" * 64)
    return split


@pytest.mark.parametrize("file_bytes", [packing._FILE_BYTES, 200])
def test_packing_keeps_every_token_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_bytes: int
) -> None:
    monkeypatch.setattr(packing, "_FILE_BYTES", file_bytes)
    monkeypatch.setattr(packing, "_BATCH_BYTES", 100)
    chosen = np.random.default_rng(3)
    files = 0
    for round_number in range(15):
        vocab_size = int(chosen.integers(3, 70_000))
        block = int(chosen.integers(2, 40))
        books = [chosen.integers(0, vocab_size - 1, chosen.integers(0, 100)) for _ in range(5)]
        ids = join_books(books, vocab_size, vocab_size - 1)
        assert (ids == np.concatenate([np.append(book, vocab_size - 1) for book in books])).all()
        folder = tmp_path / str(round_number)
        split = write(folder, ids, block, vocab_size, int(chosen.integers(1, 200)))
        read = datasets.load_from_disk(str(folder))["train"].with_format("numpy")["input_ids"][:]
        read = np.asarray(read, token_dtype(vocab_size)).reshape(-1)
        assert (read[: split.tokens] == ids).all() and split.tokens == len(ids)
        assert len(read) == split.blocks * block == split.tokens + split.padding
        assert (read[split.tokens :] == vocab_size - 1).all() and split.padding < block
        assert split.sha256 == hashlib.sha256(read.tobytes()).hexdigest()
        files += len(list((folder / "train").glob("*.arrow")))
    assert (files > 15) == (file_bytes == 200)


def test_the_folder_is_what_datasets_itself_would_write(tmp_path: Path) -> None:
    split = write(tmp_path / "ours", np.arange(20, dtype="<u2"), 5, 300, 7)
    table = pa.table({"input_ids": pa.array(np.arange(20).reshape(4, 5).tolist(), pa.list_(pa.uint16(), 5))})
    info = datasets.DatasetInfo(features=split.features)
    theirs = datasets.Dataset(table, info=info, split="train", fingerprint=f"{'f' * 16}-train")
    datasets.DatasetDict({"train": theirs}).save_to_disk(str(tmp_path / "theirs"))
    for path in (tmp_path / "theirs").rglob("*"):
        if path.is_file():
            ours = tmp_path / "ours" / path.relative_to(tmp_path / "theirs")
            assert ours.read_bytes() == path.read_bytes(), path.name


def test_batches_are_of_16_megabytes(tmp_path: Path) -> None:
    ids = np.zeros(20 << 20, "<u2")
    write(tmp_path / "x", ids, 1024, 300, 1 << 20)
    with pa.memory_map(str(next((tmp_path / "x" / "train").glob("*.arrow")))) as file:
        sizes = [batch.num_rows * 2048 for batch in pa.ipc.open_stream(file)]
    assert sizes == [16 << 20, 16 << 20, 8 << 20]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(50257, "uint16"), (65536, "uint16"), (65537, "uint32")])
def test_ids_are_as_wide_as_the_vocabulary_needs(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    ids = join_books([np.array([0, 1, vocab_size - 2], dtype=np.uint32)], vocab_size, vocab_size - 1)
    write(tmp_path / "out", ids, 2, vocab_size, 9)
    column = datasets.load_from_disk(str(tmp_path / "out"))["train"].data.column("input_ids")
    assert column.type == pa.list_(getattr(pa, dtype)(), 2)
    assert column.to_pylist() == [[0, 1], [vocab_size - 2, vocab_size - 1]]


@pytest.mark.parametrize("bad", [300, 65536 + 5, -1])
def test_an_id_outside_the_vocabulary_is_never_wrapped(bad: int) -> None:
    with pytest.raises(ValueError, match="do not fit 300"):
        join_books([np.array([1, bad])], 300, 299)
