"""Files to books: parquet, JSON lines, plain text, each also compressed where that is usual.

A reader yields `Book`s and, in their places, `Unreadable`s; it never holds more than one book and one
batch of rows, except that a text file is one piece.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from horovod_transformer.config import Config
from horovod_transformer.errors import UserError
from horovod_transformer.paths import readable

# Rows of a parquet file read at a time: a book is some 400 kB, one sentence of `bookcorpus` 70 bytes.
_ROWS_PER_BATCH = 32
# A table whose first rows are nearly all shorter than this is one of sentences.
_ROWS_LOOKED_AT = 1000
_SENTENCE_CHARACTERS = 300
_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True)
class Book:
    """One book.

    Attributes:
        title: The title, or the file's name, or the number of the row.
        text: The whole text, not changed in any way except that `.txt` and `.md` files lose their
            byte-order mark and have `\n` for every line end.
        origin: Where it came from, for messages: file and row (counted from 0).
        reencoded: Whether it was not UTF-8 and was read by `data.encoding`.
    """

    title: str
    text: str
    origin: str
    reencoded: bool = False


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


@dataclass(frozen=True)
class ReadOptions:
    """How files are read; the config's keys of the same names explain each.

    Attributes:
        encoding: What text that is not UTF-8 is read as; None: it is unreadable.
        skip_bad: Whether a file that cannot be opened is `Unreadable` like a bad row, rather than refused.
        text_column, title_column: Names in tables (parquet, JSON lines, the hub).
        separator: What stands between the documents of one text file; None: a file is a document.
        join_rows: How many rows of a table make a document; None: one, and a table of sentences is refused.
    """

    encoding: str | None = None
    skip_bad: bool = False
    text_column: str = "text"
    title_column: str = "title"
    separator: str | None = None
    join_rows: int | None = None

    @classmethod
    def from_config(cls, config: Config) -> ReadOptions:
        """Take the options from the section `data`."""
        data = config.data
        return cls(
            data.encoding,
            data.on_bad_book == "skip",
            data.text_column,
            data.title_column,
            data.separator,
            data.join_rows,
        )


def read_text(
    path: Path, options: ReadOptions, remove: dict[int, int | None] | None = None
) -> Iterator[Book | Unreadable]:
    """Read a text file: one book, or several with `options.separator` between them.

    Args:
        path: The file, perhaps compressed.
        options: Encoding and separator.
        remove: Characters to delete, as `str.translate` takes them.
    """
    origin = readable(path)
    try:
        with _open(path) as file:
            content = file.read()
    except OSError as error:
        yield Unreadable(origin, _cannot_be_read(error))
        return
    decoded = _decode(content, options.encoding)
    if isinstance(decoded, str):
        yield Unreadable(origin, decoded)
        return
    text, reencoded = decoded
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if remove:
        # What is left of "# ACT I" would begin with a space.
        text = re.sub(r"(?m)^ +", "", text.translate(remove))
    title = readable(path.name.removesuffix("".join(path.suffixes[-1:])))
    if path.suffix.lower() in _COMPRESSION:
        title = readable(Path(path.stem).stem)
    if options.separator is None:
        yield Book(title, text, origin, reencoded)
        return
    number = 0
    for part in text.split(options.separator):
        if part.strip():
            yield Book(f"{title} {number}", part, f"{origin}, document {number}", reencoded)
            number += 1


def documents(
    rows: Iterator[Book | Unreadable], options: ReadOptions, where: str
) -> Iterator[Book | Unreadable]:
    """Make documents of a table's rows: join them, or make sure that they are documents.

    Raises:
        UserError: Nobody said how many rows make a document, and the first thousand are sentences.
    """
    if options.join_rows is None:
        yield from _refusing_sentences(rows, where)
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


def read_json_lines(path: Path, options: ReadOptions) -> Iterator[Book | Unreadable]:
    """Read a file with one JSON object per line."""
    return documents(_json_lines(path, options), options, readable(path))


def _json_lines(path: Path, options: ReadOptions) -> Iterator[Book | Unreadable]:
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                origin = f"{readable(path)}, line {number}"
                decoded = _decode(line, options.encoding)
                if isinstance(decoded, str):
                    yield Unreadable(origin, decoded)
                else:
                    yield _json_book(decoded[0], decoded[1], origin, number, options)
    except OSError as error:
        yield Unreadable(f"{readable(path)}, after line {number}", _cannot_be_read(error))


def _json_book(
    line: str, reencoded: bool, origin: str, number: int, options: ReadOptions
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
    return Book(f"line {number}" if title is None else _plain(str(title)), text or "", origin, reencoded)


def _decode(content: bytes, encoding: str | None) -> tuple[str, bool] | str:
    """Return the text and whether it was re-encoded, or what is wrong."""
    try:
        return content.decode("utf-8-sig"), False
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 text (byte {error.start})"
    if encoding is None:
        return f"{problem}; set data.encoding to what it is, such as latin-1 or cp1252, or leave it out"
    try:
        return content.decode(encoding), True
    except UnicodeError:
        return f"{problem}, and not {encoding} (data.encoding)"


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def check_parquet(path: Path, options: ReadOptions) -> int | Unreadable:
    """Check that a parquet file is whole and has texts; return its number of rows."""
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        return Unreadable(readable(path), _broken_parquet(error))
    column = options.text_column
    if schema.names.count(column) != 1:
        names = readable(", ".join(schema.names[:8]))
        return Unreadable(
            readable(path),
            f"has no column `{column}` but {names}; data.text_column names the one with the books",
        )
    kind = schema.field(column).type
    if not _is_text(kind):
        return Unreadable(readable(path), f"the column `{column}` holds {kind}, not strings")
    return rows


def read_parquet(path: Path, options: ReadOptions) -> Iterator[Book | Unreadable]:
    """Read a parquet file, row group by row group: a damaged one costs its own rows."""
    return documents(_parquet_rows(path, options), options, readable(path))


def _parquet_rows(path: Path, options: ReadOptions) -> Iterator[Book | Unreadable]:
    row = 0
    try:
        # Without a buffer size, whole row groups (up to gigabytes of books) would be read at once.
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            names = file.schema_arrow.names
            columns = [options.text_column]
            if names.count(options.title_column) == 1 and options.title_column != options.text_column:
                columns.append(options.title_column)
            end = 0
            for group in range(file.num_row_groups):
                end += file.metadata.row_group(group).num_rows
                try:
                    for batch in file.iter_batches(
                        _ROWS_PER_BATCH, row_groups=[group], columns=columns, use_threads=False
                    ):
                        yield from _books_of_batch(path, batch, row, options)
                        row += len(batch)
                except (pa.ArrowException, OSError) as error:
                    yield Unreadable(f"{readable(path)}, rows {row} to {end - 1}", _broken_parquet(error))
                row = end
    except (pa.ArrowException, OSError) as error:
        yield Unreadable(f"{readable(path)}, after row {row}", _broken_parquet(error))


def _books_of_batch(
    path: Path, batch: pa.RecordBatch, first: int, options: ReadOptions
) -> Iterator[Book | Unreadable]:
    texts = batch.column(options.text_column)
    titles = batch.column(options.title_column) if len(batch.schema.names) > 1 else None
    for index in range(len(batch)):
        row = first + index
        origin = f"{readable(path)}, row {row}"
        title = _title(titles[index]) if titles is not None else None
        try:
            text, reencoded = texts[index].as_py() or "", False
        except UnicodeDecodeError:
            decoded = _decode(_bytes_of(texts[index]), options.encoding)
            if isinstance(decoded, str):
                yield Unreadable(origin, decoded)
                continue
            text, reencoded = decoded
        yield Book(f"row {row}" if title is None else title, text, origin, reencoded)


def _title(value: pa.Scalar) -> str | None:
    try:
        title = value.as_py()
    except UnicodeDecodeError:
        title = _bytes_of(value).decode("utf-8", "backslashreplace")
    return None if title is None else _plain(str(title))


def _bytes_of(value: pa.Scalar) -> bytes:
    if isinstance(value, pa.DictionaryScalar):
        value = value.value
    return value.as_buffer().to_pybytes()


def _broken_parquet(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"cannot be read: {error.strerror}"
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return f"is not a whole parquet file ({reason[:100]}); copy or download it again"


def _open(path: Path) -> Any:
    """Open a file for binary reading, decompressed; errors are OSErrors."""
    compression = _COMPRESSION.get(path.suffix.lower())
    if compression is None:
        return path.open("rb")
    return io.BufferedReader(pa.input_stream(str(path), compression=compression), 1 << 20)


def _cannot_be_read(error: OSError) -> str:
    # Damaged gzip and zstd have no error number.
    return f"cannot be read: {error.strerror or readable(str(error))[:100]}"


def _plain(title: str) -> str:
    """A title that JSON in UTF-8 can hold."""
    return title.encode("utf-8", "replace").decode()
