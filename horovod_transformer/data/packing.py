"""Token ids of books to blocks of one length, first flat on disk, then as a Hugging Face dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

# Bytes of tokens per record batch: small enough to map and copy piece by piece.
_CHUNK_BYTES = 16 << 20


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest little-endian type that holds every id: uint16 up to 65,536 ids, else uint32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class PackedSplit:
    """Writes the books of a split one after the other into a flat file that is whole blocks long.

    Every book is followed by the end-of-text token. `close` fills the last block with that token
    and `padding` says how many there are, so that no token of a book is lost.

    Attributes:
        path: The flat file.
        block_size: Tokens per block.
        books, tokens, blocks, padding: Counts so far; end-of-text tokens count as tokens, padding
            does not. `blocks` and `padding` hold after `close`.
        sha256: Digest of all blocks as little-endian bytes, after `close`.
    """

    def __init__(self, path: Path, block_size: int, vocab_size: int, eos_token_id: int) -> None:
        self.path = path
        self.block_size = block_size
        self.dtype = token_dtype(vocab_size)
        self.books = self.tokens = self.blocks = self.padding = 0
        self.sha256 = ""
        self._vocab_size = vocab_size
        self._end = np.array([eos_token_id], dtype=self.dtype)
        self._digest = hashlib.sha256()
        self._file = path.open("wb")

    def add_book(self, ids: np.ndarray) -> None:
        """Append a book's ids, of any integer type, shape [tokens].

        Raises:
            ValueError: An id is outside the vocabulary; nothing is wrapped around or cut off.
        """
        if len(ids) and not (ids.min() >= 0 and ids.max() < self._vocab_size):
            raise ValueError(f"token ids {ids.min()} to {ids.max()} do not fit {self._vocab_size} entries")
        self._write(ids.astype(self.dtype))
        self._write(self._end)
        self.books += 1
        self.tokens += len(ids) + 1

    def close(self) -> None:
        """Fill the last block and close the file."""
        self.padding = -self.tokens % self.block_size
        self._write(np.repeat(self._end, self.padding))
        self.blocks = (self.tokens + self.padding) // self.block_size
        self.sha256 = self._digest.hexdigest()
        self._file.close()

    def __enter__(self) -> PackedSplit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()

    def _write(self, ids: np.ndarray) -> None:
        content = ids.tobytes()
        self._digest.update(content)
        self._file.write(content)


def save_splits(splits: Mapping[str, PackedSplit], folder: Path, fingerprint: str) -> None:
    """Write packed splits as a `DatasetDict` with the column `input_ids`, in constant memory.

    The column is an Arrow fixed-size list, so that a reader can take blocks from the mapped file
    without copying. The flat files stay.

    Args:
        splits: Closed splits by name.
        folder: Where `datasets.load_from_disk` shall read.
        fingerprint: Identifies the data; the same data then gives the same files.
    """
    import datasets
    from datasets import Dataset, DatasetDict, Features, Sequence, Value

    with _quiet(datasets):
        dictionary = DatasetDict()
        for name, split in splits.items():
            features = Features({"input_ids": Sequence(Value(split.dtype.name), length=split.block_size)})
            # By the features' own schema, as Dataset compares the two.
            table = pa.Table.from_arrays([_mapped_blocks(split)], schema=features.arrow_schema)
            dictionary[name] = Dataset(
                table,
                info=datasets.DatasetInfo(features=features),
                split=name,
                fingerprint=f"{fingerprint[:16]}-{name}",
            )
        dictionary.save_to_disk(str(folder))


def _mapped_blocks(split: PackedSplit) -> pa.ChunkedArray:
    """Show the flat file as [blocks] lists of `block_size` ids without reading it."""
    kind = pa.list_(pa.from_numpy_dtype(split.dtype), split.block_size)
    ids = np.memmap(split.path, dtype=split.dtype, mode="r").reshape(split.blocks, split.block_size)
    rows = max(1, _CHUNK_BYTES // (split.block_size * split.dtype.itemsize))
    chunks = [
        pa.FixedSizeListArray.from_arrays(pa.array(ids[start : start + rows].reshape(-1)), type=kind)
        for start in range(0, split.blocks, rows)
    ]
    return pa.chunked_array(chunks, type=kind)


@contextmanager
def _quiet(datasets) -> Iterator[None]:
    """Keep the library's progress bars away; ours are enough."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
