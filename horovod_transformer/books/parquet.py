"""Parquet to books: a range of rows, a few of them in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from horovod_transformer.books.encoding import decode
from horovod_transformer.books.readers import Book, ReadOptions, Unreadable, documents, plain
from horovod_transformer.system.paths import readable

# Text read at a time, and the bounds of that in rows: a book is some 400 kB, a sentence 70 bytes.
_BATCH_BYTES = 4 << 20
_MOST_ROWS, _FEWEST_ROWS = 4096, 8

RowGroups = list[tuple[int, int]]
"""For each row group its number of rows and the bytes of its texts."""


def check_parquet(path: Path, options: ReadOptions) -> RowGroups | Unreadable:
    """Check that a parquet file is whole and has texts, without reading these; return its row groups."""
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
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
    # Of nested columns each leaf is counted, so that a name and not a place finds the texts.
    leaf = next(n for n in range(metadata.num_columns) if metadata.schema.column(n).path == column)
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    return [(group.num_rows, group.column(leaf).total_uncompressed_size) for group in groups]


def read_parquet(path: Path, options: ReadOptions, start: int, stop: int) -> Iterator[Book | Unreadable]:
    """Read the rows from `start` up to `stop`, row group by row group: a damaged one costs its own rows."""
    return documents(_rows(path, options, start, stop), options, readable(path), start == 0)


def _rows(path: Path, options: ReadOptions, start: int, stop: int) -> Iterator[Book | Unreadable]:
    row = start
    try:
        with _open(path) as file:
            names = file.schema_arrow.names
            columns = [options.text_column]
            if names.count(options.title_column) == 1 and options.title_column != options.text_column:
                columns.append(options.title_column)
            end = 0
            for group in range(file.num_row_groups):
                metadata = file.metadata.row_group(group)
                first, end = end, end + metadata.num_rows
                if end <= start or first >= stop:
                    continue
                last = min(end, stop)
                row = first
                per_row = max(1, metadata.total_byte_size // max(1, metadata.num_rows))
                size = min(max(_BATCH_BYTES // per_row, _FEWEST_ROWS), _MOST_ROWS)
                try:
                    for batch in file.iter_batches(
                        size, row_groups=[group], columns=columns, use_threads=False
                    ):
                        # A range begins or ends within this row group: what is before it is passed over.
                        skipped = max(0, start - row)
                        wanted = batch.slice(skipped, max(0, last - row - skipped))
                        yield from _books_of_batch(path, wanted, row + skipped, options)
                        row += len(batch)
                        if row >= last:
                            break
                except (pa.ArrowException, OSError) as error:
                    bad = f"{readable(path)}, rows {max(row, start)} to {last - 1}"
                    yield Unreadable(bad, _broken_parquet(error))
                row = last
    except (pa.ArrowException, OSError) as error:
        yield Unreadable(f"{readable(path)}, after row {row}", _broken_parquet(error))


def _open(path: Path) -> pq.ParquetFile:
    # For each batch Arrow asks for room for the rest of the page, a quarter of a gigabyte perhaps, and fills
    # some megabytes of it. With the system's allocator only these take memory; Arrow's own keeps what was
    # ever filled, and grows from batch to batch. A file keeps the allocator that it was opened with.
    usual = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        # Without a buffer size, whole row groups (up to gigabytes of books) would be read at once. Checksums
        # are looked at where there are any.
        return pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
    finally:
        pa.set_memory_pool(usual)


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
            decoded = decode(_bytes_of(texts[index]), options.encoding)
            if isinstance(decoded, str):
                yield Unreadable(origin, decoded)
                continue
            text, reencoded = decoded
        yield Book(f"row {row}" if title is None else title, text, origin, reencoded)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _title(value: pa.Scalar) -> str | None:
    try:
        title = value.as_py()
    except UnicodeDecodeError:
        title = _bytes_of(value).decode("utf-8", "backslashreplace")
    return None if title is None else plain(str(title))


def _bytes_of(value: pa.Scalar) -> bytes:
    if isinstance(value, pa.DictionaryScalar):
        value = value.value
    return value.as_buffer().to_pybytes()


def _broken_parquet(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"cannot be read: {error.strerror}"
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return f"is not a whole parquet file ({reason[:100]}); copy or download it again"
