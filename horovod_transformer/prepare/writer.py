"""Books' token ids to blocks of one length, as a Hugging Face data set on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

# Bytes of tokens per record batch: small enough to map and copy piece by piece.
_BATCH_BYTES = 16 << 20
# What `datasets` puts into one file.
_FILE_BYTES = 500_000_000


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest little-endian type that holds every id: uint16 up to 65,536 ids, else uint32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def join_books(books: Sequence[np.ndarray], vocab_size: int, eos_token_id: int) -> np.ndarray:
    """Put books one after the other, each followed by an end-of-text token.

    Args:
        books: Ids of any integer type, each of shape [tokens].
        vocab_size: Number of ids.
        eos_token_id: The end-of-text token.

    Returns:
        Ids of the type `token_dtype` gives, shape [tokens].

    Raises:
        ValueError: An id is outside the vocabulary; nothing is wrapped around or cut off.
    """
    # Copied once, in the type they are kept in: a single book may have hundreds of millions.
    ids = np.full(sum(len(book) + 1 for book in books), eos_token_id, token_dtype(vocab_size))
    start = 0
    for book in books:
        if len(book) and not (book.min() >= 0 and book.max() < vocab_size):
            raise ValueError(f"token ids {book.min()} to {book.max()} do not fit {vocab_size} entries")
        ids[start : start + len(book)] = book
        start += len(book) + 1
    return ids


class SplitWriter:
    """Writes the blocks of a split as a stream of Arrow record batches, in constant memory.

    The column `input_ids` is an Arrow fixed-size list, so that a reader can take blocks from the mapped file
    without copying. The last block is filled with end-of-text tokens and `padding` says how many there
    are, so that no token of a book is lost.

    Args:
        folder: Made, and filled with files as `datasets` names and divides them.
        tokens: How many tokens will be written.
        block_size: Tokens per block.
        vocab_size: Number of ids.
        eos_token_id: The end-of-text token.

    Attributes:
        tokens, blocks, padding: Counts; end-of-text tokens count as tokens, padding does not.
        sha256: Digest of all blocks as little-endian bytes, after `close`.
    """

    def __init__(
        self, folder: Path, tokens: int, block_size: int, vocab_size: int, eos_token_id: int
    ) -> None:
        from datasets import Features, Sequence, Value

        self.folder, self.tokens, self.block_size = folder, tokens, block_size
        self.dtype = token_dtype(vocab_size)
        self.padding = -tokens % block_size
        self.blocks = (tokens + self.padding) // block_size
        self.sha256 = ""
        self.features = Features({"input_ids": Sequence(Value(self.dtype.name), length=block_size)})
        self._end = eos_token_id
        self._digest = hashlib.sha256()
        block_bytes = block_size * self.dtype.itemsize
        self._files = self.blocks * block_bytes // _FILE_BYTES + 1
        rows = min(max(1, _BATCH_BYTES // block_bytes), max(1, self.blocks))
        self._buffer = np.empty(rows * block_size, self.dtype)
        self._filled = self._written = 0
        self._file = -1
        self._left = 0
        self._stream: Any = None
        self._sink: IO[bytes]
        folder.mkdir()
        self._next_file()

    def write(self, ids: np.ndarray) -> None:
        """Append ids of the right type, shape [tokens]."""
        self._written += len(ids)
        assert self._written <= self.tokens + self.padding, f"more than {self.tokens} tokens"
        while len(ids):
            room = min(len(self._buffer), self._left * self.block_size) - self._filled
            taken = ids[:room]
            self._buffer[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            ids = ids[len(taken) :]
            if len(taken) == room:
                self._flush()

    def close(self) -> None:
        """Fill the last block and close the file."""
        self.write(np.full(self.padding, self._end, self.dtype))
        assert self._written == self.tokens + self.padding, f"less than {self.tokens} tokens"
        if self._filled:
            self._flush()
        while self._file < self._files:
            self._next_file()
        self.sha256 = self._digest.hexdigest()

    def describe(self, name: str, fingerprint: str) -> None:
        """Write the small files by which `datasets` knows a split; after `close`."""
        state: dict[str, Any] = {
            "_data_files": [{"filename": self._name(number)} for number in range(self._files)],
            "_fingerprint": f"{fingerprint[:16]}-{name}",
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": name,
        }
        info = {
            "citation": "",
            "description": "",
            "features": self.features.to_dict(),
            "homepage": "",
            "license": "",
        }
        (self.folder / "state.json").write_text(json.dumps(state, indent=2))
        (self.folder / "dataset_info.json").write_text(json.dumps(info, indent=2))

    def _name(self, number: int) -> str:
        return f"data-{number:05d}-of-{self._files:05d}.arrow"

    def _next_file(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._sink.close()
            self._stream = None
        self._file += 1
        if self._file < self._files:
            # The first files have a block more if they do not come out even.
            self._left = self.blocks // self._files + (self._file < self.blocks % self._files)
            self._sink = (self.folder / self._name(self._file)).open("wb")
            self._stream = pa.ipc.new_stream(self._sink, self.features.arrow_schema)

    def _flush(self) -> None:
        ids = self._buffer[: self._filled]
        self._digest.update(ids.data)
        kind = pa.list_(pa.from_numpy_dtype(self.dtype), self.block_size)
        values = pa.Array.from_buffers(kind.value_type, len(ids), [None, pa.py_buffer(ids)])
        blocks = pa.FixedSizeListArray.from_arrays(values, type=kind)
        self._stream.write_batch(pa.record_batch([blocks], schema=self.features.arrow_schema))
        self._filled = 0
        self._left -= len(blocks)
        if not self._left and self._file < self._files - 1:
            self._next_file()


def describe_splits(folder: Path, splits: Mapping[str, SplitWriter], fingerprint: str) -> None:
    """Write what makes a folder of closed splits a `DatasetDict`.

    Args:
        folder: Where `datasets.load_from_disk` shall read.
        splits: Closed splits by name; each lies in the folder of its name.
        fingerprint: Identifies the data.
    """
    for name, split in splits.items():
        split.describe(name, fingerprint)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
