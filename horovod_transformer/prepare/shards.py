"""Shards of work: ranges of the source's files that one process tokenizes, and what it leaves behind on disk.

A finished shard is two files in the folder beside the prepared data: its tokens, flat, and an Arrow file
with a row for each book. They are named by a hash of all that decides what is in them, so that a shard
built by an earlier run, by another process or on another machine is as good as a new one. The command line
and the documents call shards units: `prepare --units`, the folder `.units`.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from horovod_transformer.books.ranges import FileRange
from horovod_transformer.books.readers import ReadOptions
from horovod_transformer.prepare.duplicates import BookTable
from horovod_transformer.system.files import replacing

# Part of every name: what an older version of this code left is made again.
_VERSION = 3
_DETAILS = b"details"
_NUMBERS = ("characters", "words", "bytes", "tokens")


@dataclass(frozen=True)
class Shard:
    """Consecutive ranges of the source's files, which one process tokenizes.

    Attributes:
        ranges: What is read, in order.
        key: A hash of the ranges and of how they are read.
    """

    ranges: tuple[FileRange, ...]
    key: str

    @property
    def text_bytes(self) -> int:
        """About how much text there is."""
        return sum(file_range.text_bytes for file_range in self.ranges)


def plan_shards(
    ranges: Sequence[FileRange], size: int, options: ReadOptions, min_characters: int
) -> list[Shard]:
    """Group small ranges, so that a shard has about `size` bytes of text.

    The same files and settings give the same shards on every node.
    """
    shards: list[Shard] = []
    together: list[FileRange] = []
    text = 0
    settings = {**asdict(options), "min_characters": min_characters, "version": _VERSION}
    del settings["skip_bad"]  # what is bad is listed either way

    def finish() -> None:
        said = json.dumps([settings, [asdict(file_range) for file_range in together]], sort_keys=True)
        shards.append(Shard(tuple(together), hashlib.sha256(said.encode()).hexdigest()[:24]))
        together.clear()

    for file_range in ranges:
        if together and text + file_range.text_bytes > size * 3 // 2:
            finish()
            text = 0
        together.append(file_range)
        text += file_range.text_bytes
        if text >= size:
            finish()
            text = 0
    if together:
        finish()
    return shards


@dataclass
class ShardRecord:
    """What a shard's books are, as they are read; packed, as there may be a million of them.

    Attributes:
        digests: 32 bytes of each book.
        characters, words, bytes, tokens: See `BookTable`.
        reencoded: 1 for each book that was not UTF-8.
        titles: Titles.
        details: Counts and lists of the whole shard: `unreadable` (how many), `first_unreadable` (origin and
            reason of the first of them), `first_reencoded` (place, origin, and a line to look at),
            `cleaned` (of each step of cleaning how many books, and characters of them), `seconds` of each
            step.
    """

    digests: bytearray = field(default_factory=bytearray)
    characters: array = field(default_factory=lambda: array("q"))
    words: array = field(default_factory=lambda: array("q"))
    bytes: array = field(default_factory=lambda: array("q"))
    tokens: array = field(default_factory=lambda: array("q"))
    reencoded: bytearray = field(default_factory=bytearray)
    titles: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(
        default_factory=lambda: {
            "unreadable": 0,
            "first_unreadable": [],
            "first_reencoded": [],
            "cleaned": {},
            "seconds": {},
        }
    )


class ShardFiles:
    """The files of a shard in the folder of shards.

    Args:
        folder: That folder.
        shard: The shard.
        made_with: Tells tokenizers apart; empty for a survey, which has no tokens.
        dtype: Of a token.
    """

    def __init__(self, folder: Path, shard: Shard, made_with: str, dtype: np.dtype) -> None:
        stem = f"{shard.key}-{made_with[:12]}" if made_with else shard.key
        self.books = folder / f"{stem}.arrow"
        self.tokens = folder / f"{stem}.tokens"
        self.lock = folder / f"{stem}.lock"
        self.dtype = dtype
        self.has_tokens = bool(made_with)

    def finished(self) -> bool:
        """Whether both files are there and whole."""
        try:
            with pa.memory_map(str(self.books)) as source, pa.ipc.open_file(source) as file:
                details = json.loads(file.schema.metadata[_DETAILS])
            return not self.has_tokens or self.tokens.stat().st_size == details["token_bytes"]
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
            return False

    def write_books(self, record: ShardRecord) -> None:
        """Write the Arrow file: the last of the two, by which a shard is known to be finished."""
        digests = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(32), len(record.characters), [None, pa.py_buffer(record.digests)]
        )
        numbers = [pa.array(np.frombuffer(getattr(record, name), np.int64)) for name in _NUMBERS]
        reencoded = pa.array(np.frombuffer(record.reencoded, np.uint8))
        record.details["token_bytes"] = sum(record.tokens) * self.dtype.itemsize
        table = pa.table(
            [digests, *numbers, reencoded, pa.array(record.titles, pa.large_string())],
            names=["digest", *_NUMBERS, "reencoded", "title"],
        ).replace_schema_metadata({_DETAILS: json.dumps(record.details)})
        with replacing(self.books) as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    def read_details(self) -> dict[str, Any]:
        """Return the details of `UnitRecord`."""
        with pa.memory_map(str(self.books)) as source, pa.ipc.open_file(source) as file:
            return json.loads(file.schema.metadata[_DETAILS])

    def read_titles(self, places: Iterable[int]) -> list[str]:
        """Return the titles of some of the books."""
        with pa.memory_map(str(self.books)) as source, pa.ipc.open_file(source) as file:
            titles = file.read_all().column("title")
            return [titles[place].as_py() for place in places]

    def read_into(self, table: BookTable, start: int) -> None:
        """Copy what `BookTable` has of this shard's books to where they begin."""
        with pa.memory_map(str(self.books)) as source, pa.ipc.open_file(source) as file:
            for number in range(file.num_record_batches):
                batch = file.get_record_batch(number)
                rows = slice(start, start + len(batch))
                for name in _NUMBERS:
                    getattr(table, name)[rows] = batch.column(name).to_numpy()
                table.reencoded[rows] = batch.column("reencoded").to_numpy()
                raw = np.frombuffer(batch.column("digest").buffers()[1], np.uint8)
                table.digests[rows] = raw[: 32 * len(batch)].reshape(-1, 32)
                start += len(batch)

    def count_books(self) -> int:
        """Return the number of books."""
        with pa.memory_map(str(self.books)) as source, pa.ipc.open_file(source) as file:
            return sum(file.get_record_batch(number).num_rows for number in range(file.num_record_batches))


def read_books(files: Sequence[ShardFiles]) -> tuple[BookTable, np.ndarray]:
    """Join what finished shards say about their books.

    Returns:
        The books, and int64 [shards + 1]: where each shard's books begin and the last one's end.
    """
    starts = np.cumsum([0, *(one.count_books() for one in files)])
    total = int(starts[-1])
    numbers = {name: np.empty(total, np.int64) for name in _NUMBERS}
    table = BookTable(digests=np.empty((total, 32), np.uint8), reencoded=np.empty(total, bool), **numbers)
    for one, start in zip(files, starts.tolist(), strict=False):
        one.read_into(table, start)
    return table, starts
