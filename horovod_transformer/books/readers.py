"""Files to books: JSON lines and plain text, each also compressed; and what all readers share.

A reader yields `Book`s and, in their places, `Unreadable`s; it never holds more than one book and one
batch of rows, except that a text file, or the part of it that is read, is one piece.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from horovod_transformer.books.encoding import decode, marked_as, other_kind
from horovod_transformer.config_sections import DataConfig
from horovod_transformer.errors import UserError
from horovod_transformer.system.machine import memory_bytes
from horovod_transformer.system.paths import readable

# A table whose first rows are nearly all shorter than this is one of sentences.
_ROWS_LOOKED_AT = 1000
_SENTENCE_CHARACTERS = 300
# Of a text that is one piece: its bytes, its characters and its tokens are in memory together.
MOST_OF_MEMORY = 1 / 8
PIECE_BYTES = 2**25
_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True)
class Book:
    """One book.

    Attributes:
        title: The title, or the file's name, or the number of the row.
        text: The whole text, not changed in any way except that `.txt` and `.md` files lose their
            byte-order mark and have `\n` for every line end; pages and e-books are made plain text of.
        origin: Where it came from, for messages: file and row (counted from 0).
        reencoded: Whether it was not UTF-8, and was read as a mark or the page says, or by `data.encoding`.
        cut: Characters that each step of cleaning has taken away; see `cleaning`.
    """

    title: str
    text: str
    origin: str
    reencoded: bool = False
    cut: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Unreadable:
    """A file or row that is no book because it cannot be read.

    Attributes:
        origin: Where it is: file and row.
        reason: What is wrong with it, and what to do.
    """

    origin: str
    reason: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}"


NAMED_AT_ONCE = 100


def name_unreadable(first: Sequence[Unreadable], count: int) -> str:
    """Say in one line what cannot be read, and how to go on without it.

    Args:
        first: The first of them; `NAMED_AT_ONCE` are named.
        count: How many there are.
    """
    if count == 1:
        return f"{first[0]} (data.on_bad_book: skip leaves it out)"
    named = ", ".join(bad.origin for bad in first[:NAMED_AT_ONCE])
    more = count - len(first[:NAMED_AT_ONCE])
    return (
        f"data.source: {count} files or rows cannot be read: {named}"
        f"{f' and {more} more' if more > 0 else ''}; the first {first[0].reason}; "
        "data.on_bad_book: skip leaves them out"
    )


@dataclass(frozen=True)
class ReadOptions:
    """How files are read; the config's keys of the same names explain each.

    Attributes:
        encoding: What text that is not UTF-8 is read as; None: it is unreadable.
        skip_bad: Whether a file that cannot be opened is `Unreadable` like a bad row, rather than refused.
        text_column, title_column: Names in tables (parquet, JSON lines, the hub).
        separator: What stands between the documents of one text file; None: a file is a document.
        join_rows: How many rows of a table make a document; None: one, and a table of sentences is refused.
        clean: Steps of cleaning, see `cleaning.STEPS`.
    """

    encoding: str | None = None
    skip_bad: bool = False
    text_column: str = "text"
    title_column: str = "title"
    separator: str | None = None
    join_rows: int | None = None
    clean: tuple[str, ...] = ()

    @classmethod
    def of(cls, data: DataConfig) -> ReadOptions:
        """Take the options from a config's section `data`."""
        return cls(
            data.encoding,
            data.on_bad_book == "skip",
            data.text_column,
            data.title_column,
            data.separator,
            data.join_rows,
            tuple(data.clean),
        )


def read_text(
    path: Path,
    options: ReadOptions,
    start: int = 0,
    stop: int | None = None,
    remove: dict[int, int | None] | None = None,
) -> Iterator[Book | Unreadable]:
    """Read a text file: one book, or several with `options.separator` between them.

    Args:
        path: The file, perhaps compressed.
        options: Encoding and separator.
        start, stop: Which bytes of it; those of a compressed file are counted unpacked.
        remove: Characters to delete, as `str.translate` takes them.
    """
    origin = readable(path)
    try:
        with _open(path) as file:
            if start:
                file.seek(start)
            content = read_whole(file) if stop is None else file.read(stop - start)
    except OSError as error:
        yield Unreadable(origin, cannot_be_read(error))
        return
    title = readable(path.name.removesuffix("".join(path.suffixes[-1:])))
    if path.suffix.lower() in _COMPRESSION:
        title = readable(Path(path.stem).stem)
    books = books_of_text(content, title, origin, options, start, remove)
    del content  # a large book is not to lie here twice while it is worked on
    yield from books


def books_of_text(
    content: bytes,
    title: str,
    origin: str,
    options: ReadOptions,
    start: int = 0,
    remove: dict[int, int | None] | None = None,
) -> Iterator[Book | Unreadable]:
    """Make one book of a text file's bytes, or several with `options.separator` between them.

    Args:
        content: The file, or what follows its byte `start`.
        title: What the book is called; of several each has a number besides.
        origin: The file, for messages.
        options: Encoding and separator.
        start: Where `content` begins in the file.
        remove: Characters to delete, as `str.translate` takes them.
    """
    if start == 0 and (kind := other_kind(content)):
        yield Unreadable(origin, f"is no plain text but {kind}; convert it, or leave it out")
        return
    decoded = decode(content, options.encoding)
    if isinstance(decoded, str):
        yield Unreadable(origin, decoded)
        return
    text, reencoded = decoded
    if start and content.startswith(codecs.BOM_UTF8):
        text = "\ufeff" + text  # it is no mark in the middle of a file
    del content, decoded
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if remove:
        # What is left of "# ACT I" would begin with a space.
        text = re.sub(r"(?m)^ +", "", text.translate(remove))
    if options.separator is None:
        yield Book(title, text, origin, reencoded)
        return
    after = _after(start)
    number = 0
    for part in text.split(options.separator):
        if part.strip():
            yield Book(f"{title} {number}{after}", part, f"{origin}, document {number}{after}", reencoded)
            number += 1


def documents(
    rows: Iterator[Book | Unreadable], options: ReadOptions, where: str, from_the_start: bool = True
) -> Iterator[Book | Unreadable]:
    """Make documents of a table's rows: join them, or make sure that they are documents.

    Args:
        rows: The rows.
        options: How many make a document.
        where: The table, for messages.
        from_the_start: Whether these are its first rows, the ones that are looked at.

    Raises:
        UserError: Nobody said how many rows make a document, and the first thousand are sentences.
    """
    if options.join_rows is None:
        yield from _refusing_sentences(rows, where) if from_the_start else rows
        return
    joined: list[Book] = []
    for row in rows:
        if isinstance(row, Unreadable):
            yield row
            continue
        joined.append(row)
        if len(joined) == options.join_rows:
            yield _join(joined)
            joined = []
    if joined:
        yield _join(joined)


def _join(rows: list[Book]) -> Book:
    if len(rows) == 1:
        return rows[0]
    return Book(
        rows[0].title,
        "\n".join(row.text for row in rows),
        f"{rows[0].origin} and the {len(rows) - 1} rows after it",
        any(row.reencoded for row in rows),
    )


def _refusing_sentences(rows: Iterator[Book | Unreadable], where: str) -> Iterator[Book | Unreadable]:
    seen = short = 0
    for row in rows:
        if seen < _ROWS_LOOKED_AT and isinstance(row, Book) and row.text.strip():
            seen += 1
            short += len(row.text) < _SENTENCE_CHARACTERS
            if seen == _ROWS_LOOKED_AT and short > 0.95 * seen:
                raise UserError(
                    f"{where}: its rows are sentences, not books ({short} of the first {seen:,} have less "
                    f"than {_SENTENCE_CHARACTERS} characters); data.join_rows says how many make a "
                    "document, such as 1000 (1: each is one)"
                )
        yield row


def check_json_lines(path: Path, options: ReadOptions) -> Unreadable | None:
    """Check that the first line is an object with the column of texts."""
    for row in _json_lines(path, options):
        return row if isinstance(row, Unreadable) else None
    return None


def read_json_lines(
    path: Path, options: ReadOptions, start: int = 0, stop: int | None = None
) -> Iterator[Book | Unreadable]:
    """Read a file with one JSON object per line, or the lines that begin in the bytes `start` to `stop`."""
    return documents(_json_lines(path, options, start, stop), options, readable(path), start == 0)


def _json_lines(
    path: Path, options: ReadOptions, start: int = 0, stop: int | None = None
) -> Iterator[Book | Unreadable]:
    number, place, after = 0, start, _after(start)
    try:
        with _open(path) as file:
            if start:
                file.seek(start)
            for number, line in enumerate(file, 1):
                if stop is not None and place >= stop:
                    return
                place += len(line)
                if not line.strip():
                    continue
                if place == len(line) and (mark := marked_as(line)):
                    # Its line ends are no single bytes, whatever data.encoding says.
                    reason = (
                        f"is {mark}; JSON lines are read in UTF-8, so convert it: iconv -f {mark} -t UTF-8"
                    )
                    yield Unreadable(readable(path), reason)
                    return
                where = f"line {number}{after}"
                origin = f"{readable(path)}, {where}"
                decoded = decode(line, options.encoding)
                if isinstance(decoded, str):
                    yield Unreadable(origin, decoded)
                else:
                    yield _json_book(decoded[0], decoded[1], origin, where, options)
    except OSError as error:
        yield Unreadable(f"{readable(path)}, after line {number}{after}", cannot_be_read(error))


def _after(start: int) -> str:
    """Where a count begins; the part of a large file that a process reads need not begin at its top."""
    return f" after byte {start}" if start else ""


def _json_book(
    line: str, reencoded: bool, origin: str, where: str, options: ReadOptions
) -> Book | Unreadable:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Unreadable(origin, f"is no JSON ({str(error)[:60]})")
    if not isinstance(row, dict):
        return Unreadable(origin, f"is not a JSON object but {type(row).__name__}")
    if options.text_column not in row:
        names = readable(", ".join(list(row)[:8]))
        return Unreadable(origin, f"has no `{options.text_column}` but {names} (data.text_column)")
    text, title = row[options.text_column], row.get(options.title_column)
    if not isinstance(text, str | None):
        return Unreadable(origin, f"`{options.text_column}` is {type(text).__name__}, not a string")
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        return Unreadable(
            origin, f"`{options.text_column}` has half of a surrogate pair, which is no character"
        )
    return Book(where if title is None else plain(str(title)), text or "", origin, reencoded)


def _open(path: Path) -> Any:
    """Open a file for binary reading, decompressed; errors are OSErrors."""
    compression = _COMPRESSION.get(path.suffix.lower())
    if compression is None:
        return path.open("rb")
    if path.stat().st_size == 0:
        raise OSError("the archive has no bytes, copy or download it again")
    return io.BufferedReader(pa.input_stream(str(path), compression=compression), 1 << 20)


def read_whole(file: Any) -> bytes:
    """Read to the end, unless that is farther away than memory reaches: a pipe may have no end.

    Raises:
        OSError: The file is too large to be one text on this machine.
    """
    most, size, pieces = memory_bytes() * MOST_OF_MEMORY, 0, []
    while piece := file.read(PIECE_BYTES):
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise OSError(
                f"larger than {most / 1e9:.1f} GB, too much for one text on this machine; cut it up"
            )
    return b"".join(pieces)


def cannot_be_read(error: OSError) -> str:
    """Say why the system or a decompressor could not read a file."""
    # Damaged gzip and zstd have no error number.
    return f"cannot be read: {error.strerror or readable(str(error))[:100]}"


def plain(title: str) -> str:
    """Return a title as JSON in UTF-8 can hold it."""
    return title.encode("utf-8", "replace").decode()
