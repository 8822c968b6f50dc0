"""Ranges of the source's files: what one process reads at a time, cut so that all of them join to the whole.

The ranges follow from the files alone: neither the number of processes nor what was done before
moves a cut.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from horovod_transformer.books.cleaning import clean
from horovod_transformer.books.encoding import byte_by_byte, marked_as
from horovod_transformer.books.find_files import ARCHIVES, E_BOOK, PAGES
from horovod_transformer.books.parquet import RowGroups, read_parquet
from horovod_transformer.books.readers import Book, ReadOptions, Unreadable, read_json_lines, read_text
from horovod_transformer.books.whole_files import read_e_book, read_from_archive, read_page_file
from horovod_transformer.errors import UserError
from horovod_transformer.system.paths import readable

PLAY, BAD = "play of the sample", "unreadable"
# A row group that is decompressed from its start for each of its ranges is not cut finer than this.
_RANGES_OF_A_GROUP = 8
# Text that a compressed byte is taken for.
_UNPACKED = 3
# The plays are Markdown; its marks would be a quarter of what a small model learns.
_MARKDOWN_MARKS = str.maketrans("", "", "*_#")


@dataclass(frozen=True)
class FileRange:
    """A file, or a range of one.

    Attributes:
        path: The file as it is opened.
        kind: Its suffix (see `find_files.kind_of`), `PLAY`, or `BAD` for what cannot be read.
        start, stop: Rows of a parquet file, places among the books of an archive, bytes of others.
        size, mtime_ns: Of the file when it was listed; it must not change.
        text_bytes: About how much text there is.
        reason: Why it cannot be read, if it is `BAD`.
    """

    path: str
    kind: str
    start: int
    stop: int
    size: int
    mtime_ns: int
    text_bytes: int
    reason: str = ""


def read_range(file_range: FileRange, options: ReadOptions) -> Iterator[Book | Unreadable]:
    """Read and clean the books of a range and, in their places, name what cannot be read.

    Raises:
        UserError: The file has changed since it was listed, or is a table of sentences.
    """
    yield from clean_books(_read(file_range, options), options)


def clean_books(books: Iterator[Book | Unreadable], options: ReadOptions) -> Iterator[Book | Unreadable]:
    """Clean books as `options.clean` says, and hand on what cannot be read."""
    for book in books:
        if isinstance(book, Book):
            text, cut = clean(book.text, options.clean)
            yield replace(book, text=text, cut=cut) if cut else book
        else:
            yield book


def _read(file_range: FileRange, options: ReadOptions) -> Iterator[Book | Unreadable]:
    path = Path(file_range.path)
    if file_range.kind == BAD:
        yield Unreadable(readable(path), file_range.reason)
        return
    _require_unchanged(file_range)
    if file_range.kind == ".parquet":
        yield from read_parquet(path, options, file_range.start, file_range.stop)
    elif file_range.kind.startswith(".jsonl"):
        yield from read_json_lines(path, options, file_range.start, _stop(file_range))
    elif file_range.kind in ARCHIVES:
        yield from read_from_archive(path, file_range.kind, options, file_range.start, file_range.stop)
    elif file_range.kind == E_BOOK:
        yield read_e_book(path, options)
    elif file_range.kind in PAGES:
        yield read_page_file(path, options)
    elif file_range.kind == PLAY:
        yield from read_text(path, ReadOptions(), remove=_MARKDOWN_MARKS)
    else:
        yield from read_text(path, options, file_range.start, _stop(file_range))
    _require_unchanged(file_range)


def cut_file(
    path: Path, kind: str, status: os.stat_result, groups: RowGroups, options: ReadOptions, size: int
) -> list[FileRange]:
    """Cut a file into ranges of about `size` bytes of text, where its kind allows it.

    Args:
        path: The file.
        kind: Its suffix.
        status: Its size and time of change.
        groups: Of a parquet file its row groups; of an archive or an e-book its books with their text.
        options: How it is read, which decides where a document ends.
        size: Bytes.
    """
    if kind == E_BOOK:
        edges, weights = [0, status.st_size], [sum(text for _, text in groups)]
    elif kind in ARCHIVES:
        edges = _row_edges(groups, 1, size)
        weights = [sum(text for _, text in groups[start:stop]) for start, stop in _pairs(edges)]
    elif kind == ".parquet":
        edges = _row_edges(groups, options.join_rows or 1, size)
        rows = edges[-1]
        total = sum(text for _, text in groups)
        weights = [total * (stop - start) // max(1, rows) for start, stop in _pairs(edges)]
    else:
        edges = _byte_edges(path, kind, status.st_size, options, size)
        factor = _UNPACKED if kind.endswith((".gz", ".zst")) else 1
        weights = [(stop - start) * factor for start, stop in _pairs(edges)]
    return [
        FileRange(str(path), kind, start, stop, status.st_size, status.st_mtime_ns, weight)
        for (start, stop), weight in zip(_pairs(edges), weights, strict=True)
    ]


def _pairs(edges: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(edges, edges[1:], strict=False))


def _row_edges(groups: RowGroups, join_rows: int, size: int) -> list[int]:
    """Rows at which a parquet file is cut, with its first (0) and its end."""
    edges, row, text = [0], 0, 0
    for rows, group_text in groups:
        pieces = 1
        if group_text > 2 * size:
            pieces = min(_RANGES_OF_A_GROUP, -(-group_text // size))
        for piece in range(1, pieces + 1):
            text += group_text // pieces
            end = row + rows * piece // pieces
            end -= end % join_rows
            if text >= size and end > edges[-1]:
                edges.append(end)
                text = 0
        row += rows
    if edges[-1] < row or row == 0:
        edges.append(row)
    return edges


def _byte_edges(path: Path, kind: str, length: int, options: ReadOptions, size: int) -> list[int]:
    """Bytes at which a text file is cut, with its first (0) and its end."""
    whole = [0, length]
    if length <= 2 * size:
        return whole
    if kind == ".jsonl" and options.join_rows in (None, 1):
        # The reader takes lines of bytes, too, whatever their encoding.
        pattern, separator = re.compile(rb"\n"), b"\n"
    elif kind in (".txt", ".md") and (found := _separator(options)) is not None:
        pattern, separator = found
    else:
        return whole
    edges = [0]
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if marked_as(content[:4]):
                return whole  # not every byte of it is a character
            while (cut := _next_cut(content, pattern, len(separator), edges[-1] + size)) is not None:
                if length - cut < size // 2:
                    break
                edges.append(cut)
    except (OSError, ValueError):
        return whole  # reading it will say what is wrong
    return [*edges, length]


def _separator(options: ReadOptions) -> tuple[re.Pattern[bytes], bytes] | None:
    r"""How the separator of documents is found among bytes; None where only decoding tells.

    The reader looks for it after every line end has become `\n`: here any of them is one.
    """
    separator = options.separator
    if separator is None or "\r" in separator:
        return None
    if options.encoding is not None and not (separator.isascii() and byte_by_byte(options.encoding)):
        return None
    try:
        content = separator.encode()
    except UnicodeEncodeError:
        return None
    line_end = rb"(?>\r\n|\r|(?<!\r)\n)"
    return re.compile(line_end.join(re.escape(piece) for piece in content.split(b"\n"))), content


def _next_cut(content: mmap.mmap, pattern: re.Pattern[bytes], length: int, place: int) -> int | None:
    """Find the end of the first separator from `place` on that a reader from the start would find, too.

    Where separators overlap ("\n\n" in three line ends) it depends on the start which of them are found.
    So only such a one counts before which none begins that reaches into it.
    """
    while (found := pattern.search(content, place)) is not None:
        before = found.start()
        # A line end may be two bytes long.
        earlier = max(0, before - 2 * length)
        near = content[earlier : found.end()]
        others = (pattern.match(near, start) for start in range(before - earlier))
        if not any(other is not None and other.end() > before - earlier for other in others):
            return found.end()
        place = found.end()
    return None


def _stop(file_range: FileRange) -> int | None:
    """Where to stop; a compressed file's length unpacked is not known."""
    return None if file_range.start == 0 and file_range.stop == file_range.size else file_range.stop


def _require_unchanged(file_range: FileRange) -> None:
    try:
        status = os.stat(file_range.path)
    except OSError:
        return  # gone: reading it says so
    if (status.st_size, status.st_mtime_ns) != (file_range.size, file_range.mtime_ns):
        raise UserError(f"{readable(file_range.path)}: has changed while it was being prepared; run it again")
