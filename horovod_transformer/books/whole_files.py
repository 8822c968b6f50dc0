"""Files that are a book each: pages and e-books, where they lie or in an archive, and texts in an archive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath

from horovod_transformer.books.archives import BadArchiveError, Listing, list_archive, read_archive
from horovod_transformer.books.encoding import PAGE, decode_page, other_kind
from horovod_transformer.books.epub import read_epub, text_bytes_of_epub
from horovod_transformer.books.find_files import (
    E_BOOK,
    PAGES,
    READ_IN_ARCHIVES,
    SUFFIXES,
    describe_kinds,
    is_about,
    kind_of,
    refuse_mixed_splits,
)
from horovod_transformer.books.pages import full_title, read_page
from horovod_transformer.books.readers import (
    Book,
    ReadOptions,
    Unreadable,
    books_of_text,
    cannot_be_read,
    plain,
    read_whole,
)
from horovod_transformer.system.paths import readable


@dataclass
class InArchive:
    """The books of an archive.

    Attributes:
        names: Their names in it, in order.
        text_bytes: About how much text each has.
        taken, passed_over: Number of files by kind.
        about: Names of README and licence files, which are passed over.
    """

    names: list[str]
    text_bytes: list[int]
    taken: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    about: list[str] = field(default_factory=list)


def find_in_archive(path: Path, kind: str) -> InArchive | Unreadable:
    """Decide which files of an archive are books, as in a folder.

    Args:
        path: The archive.
        kind: Its suffix.

    Raises:
        UserError: It has files of several splits.
    """
    origin = readable(path)
    try:
        listing = list_archive(path, kind)
    except BadArchiveError as error:
        return Unreadable(origin, str(error))
    kinds = {name: kind_of(Path(name)) for name in listing.sizes}
    others = Counter(one for one in kinds.values() if one not in READ_IN_ARCHIVES)
    packed = {one: count for one, count in others.items() if one in SUFFIXES}
    if packed:
        return Unreadable(
            origin,
            f"has tables or archives in it ({describe_kinds(packed)}), which are not read there: unpack it",
        )
    names, about = _books_of(listing)
    if not names:
        there = f"it has only {describe_kinds(others)}" if others else "it is empty"
        return Unreadable(origin, f"has no {', '.join(READ_IN_ARCHIVES)} files; {there}")
    refuse_mixed_splits(origin, [(path / name, f"{path.name}/{name}") for name in names], "FOLDER/")
    others += listing.passed_over
    if about:
        others["about"] = len(about)
    return InArchive(
        names, [listing.sizes[name] for name in names], Counter(kinds[name] for name in names), others, about
    )


def _books_of(listing: Listing) -> tuple[list[str], list[str]]:
    """Names of books, and of what accompanies them; what accompanies nothing is a book."""
    read = [name for name in listing.sizes if kind_of(Path(name)) in READ_IN_ARCHIVES]
    about = [name for name in read if is_about(PurePosixPath(name).name, listing.sizes[name])]
    if len(about) == len(read):
        return read, []
    left_out = set(about)
    return [name for name in read if name not in left_out], about


def read_from_archive(
    path: Path, kind: str, options: ReadOptions, start: int, stop: int
) -> Iterator[Book | Unreadable]:
    """Read some books of an archive.

    Args:
        path: The archive.
        kind: Its suffix.
        options: How they are read.
        start, stop: Their places among its books; see `find_in_archive`.
    """
    try:
        names = _books_of(list_archive(path, kind))[0][start:stop]
        for name, content in read_archive(path, kind, names):
            origin = f"{readable(path)}/{readable(name)}"
            if isinstance(content, BadArchiveError):
                yield Unreadable(origin, str(content))
            else:
                yield from _books_of_file(content, name, origin, options)
    except BadArchiveError as error:
        yield Unreadable(readable(path), str(error))


def _books_of_file(
    content: bytes, name: str, origin: str, options: ReadOptions
) -> Iterator[Book | Unreadable]:
    kind, title = kind_of(Path(name)), readable(PurePosixPath(name).stem)
    if kind == E_BOOK:
        yield read_epub(BytesIO(content), len(content), title, origin, options)
    elif kind in PAGES:
        yield _book_of_page(content, title, origin, options)
    else:
        yield from books_of_text(content, title, origin, options)


def check_e_book(path: Path) -> int | Unreadable:
    """Return about how many bytes of text an e-book has, by what its archive says."""
    try:
        with path.open("rb") as file:
            found = text_bytes_of_epub(file, path.stat().st_size)
    except OSError as error:
        found = cannot_be_read(error)
    return Unreadable(readable(path), found) if isinstance(found, str) else found


def read_e_book(path: Path, options: ReadOptions) -> Book | Unreadable:
    """Read an `.epub` file."""
    try:
        with path.open("rb") as file:
            return read_epub(file, path.stat().st_size, readable(path.stem), readable(path), options)
    except OSError as error:
        return Unreadable(readable(path), cannot_be_read(error))


def read_page_file(path: Path, options: ReadOptions) -> Book | Unreadable:
    """Read an `.html` file."""
    try:
        with path.open("rb") as file:
            content = read_whole(file)
    except OSError as error:
        return Unreadable(readable(path), cannot_be_read(error))
    return _book_of_page(content, readable(path.stem), readable(path), options)


def _book_of_page(content: bytes, name: str, origin: str, options: ReadOptions) -> Book | Unreadable:
    kind = other_kind(content)
    if kind not in (None, PAGE, "XML"):
        return Unreadable(origin, f"is no HTML page but {kind}; convert it, or leave it out")
    decoded = decode_page(content, options.encoding)
    if isinstance(decoded, str):
        return Unreadable(origin, decoded)
    page = read_page(decoded[0])
    return Book(plain(full_title(page.title, page.author) or name), page.text, origin, decoded[1])
