"""Archives as folders: which files a `.zip` or a tar has, and their bytes, one file in memory at a time.

Nothing is unpacked to the disk, and nothing is believed: an archive that unpacks to far more than its own
size, has too many files, or names that lead out of it, is refused before its files are read. E-books are
archives, too, and obey the same bounds.
"""

from __future__ import annotations

import gzip
import io
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from horovod_transformer.books.readers import MOST_OF_MEMORY
from horovod_transformer.system.machine import memory_bytes
from horovod_transformer.system.paths import readable

# Text packs to a third or a fifth of its size; beyond a small size nothing honest packs better than this.
MOST_UNPACKED = 100
_ALWAYS_UNPACKED = 32 << 20
MOST_FILES = 100_000
_MOST_DEPTH, _LONGEST_NAME = 32, 1000
# What a zip says of its files, and what a tar says of one file beyond its header, are read in one piece.
_MOST_DIRECTORY_BYTES, _MOST_HEADER_BYTES = 32 << 20, 1 << 20
_PIECE_BYTES = 1 << 20
_BLOCK = tarfile.BLOCKSIZE
# What says more of the file that follows, or of all.
_HEADERS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE),
)
# What damage makes of the standard library's readers.
_BROKEN = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error),
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError, OverflowError),
)


class BadArchiveError(Exception):
    """An archive, or a file of one, that cannot be read; the text says why."""


@dataclass
class Listing:
    """What an archive has.

    Attributes:
        sizes: Bytes of each file, unpacked, by its name; in the order of the names.
        passed_over: How many links and devices it has besides, by kind.
    """

    sizes: dict[str, int]
    passed_over: Counter[str] = field(default_factory=Counter)


def list_archive(path: Path, kind: str) -> Listing:
    """List the files of an archive, without hidden ones; nothing is kept in memory but their names.

    Args:
        path: The archive.
        kind: Its suffix.

    Raises:
        BadArchiveError: It cannot be read, or is beyond the bounds.
    """
    try:
        status = path.stat()
        # A process reads an archive in ranges.
        return _list(str(path), kind, status.st_size, status.st_mtime_ns)
    except _BROKEN as error:
        raise _bad(error) from None


@lru_cache(maxsize=4)
def _list(path: str, kind: str, size: int, mtime_ns: int) -> Listing:
    sizes: dict[str, int] = {}
    passed_over: Counter[str] = Counter()
    if kind == ".zip":
        with open(path, "rb") as file, open_zip(file, size) as archive:
            for entry in archive.infolist():
                # The upper half is the file's mode, where the archive was made on a Unix.
                if stat.S_ISLNK(entry.external_attr >> 16):
                    passed_over["link in an archive"] += 1
                elif not entry.is_dir():
                    _note(entry.filename, entry.file_size, sizes)
    else:
        with _open_tar(path, kind) as tar:
            for info, _ in _walk_tar(tar):
                if info.isreg():
                    _note(info.name, info.size, sizes)
                    if len(sizes) > MOST_FILES:
                        raise BadArchiveError(_too_many())
                elif not info.isdir():
                    link = info.islnk() or info.issym()
                    passed_over["link in an archive" if link else "device in an archive"] += 1
    return Listing(dict(sorted(sizes.items())), passed_over)


def _note(name: str, size: int, sizes: dict[str, int]) -> None:
    _require_inside(name)
    parts = [part for part in name.split("/") if part != "."]
    # macOS packs such a folder beside what one asked for.
    if not any(part.startswith(".") or part == "__MACOSX" for part in parts):
        sizes[name] = size


def _require_inside(name: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or name[1:2] == ":" or "\0" in name:
        raise BadArchiveError(f"has a file by a name that leads out of it ({readable(name)})")
    if len(parts) > _MOST_DEPTH or len(name) > _LONGEST_NAME:
        raise BadArchiveError(f"has folders in folders beyond all measure ({readable(name)})")


def read_archive(
    path: Path, kind: str, names: Collection[str]
) -> Iterator[tuple[str, bytes | BadArchiveError]]:
    """Read files of an archive in the order of their names, or say why one cannot be read.

    A tar is read from its beginning on, and what is wanted of it is kept until it can be sorted.

    Args:
        path: The archive.
        kind: Its suffix.
        names: Names as `list_archive` has them.

    Raises:
        BadArchiveError: The archive as a whole cannot be read.
    """
    try:
        if kind == ".zip":
            with path.open("rb") as file, open_zip(file, path.stat().st_size) as archive:
                most = most_of_a_file()
                for name in sorted(names):
                    yield name, _or_error(archive, name, most)
        else:
            yield from sorted(_read_tar(path, kind, set(names)).items())
    except _BROKEN as error:
        raise _bad(error) from None


def _read_tar(path: Path, kind: str, names: set[str]) -> dict[str, bytes | BadArchiveError]:
    most = most_of_a_file()
    found: dict[str, bytes | BadArchiveError] = {}
    with _open_tar(str(path), kind) as file:
        for info, content in _walk_tar(file, names, most):
            # Of two by one name the later one counts, as when they are unpacked.
            if info.isreg() and info.name in names:
                found[info.name] = BadArchiveError(_too_large(most)) if content is None else content
    return found


def _or_error(archive: zipfile.ZipFile, name: str, most: float) -> bytes | BadArchiveError:
    try:
        return read_member(archive, name, most)
    except BadArchiveError as error:
        return error


def open_zip(file: IO[bytes], size: int) -> zipfile.ZipFile:
    """Open a zip archive and look at what it says of its files.

    Args:
        file: Open for reading.
        size: Its bytes.

    Raises:
        BadArchiveError: It is broken or beyond the bounds.
    """
    try:
        archive = zipfile.ZipFile(_Careful(file))
        infos = archive.infolist()
    except _BROKEN as error:
        raise _bad(error) from None
    if len(infos) > MOST_FILES:
        raise BadArchiveError(_too_many())
    if sum(info.file_size for info in infos) > _most_unpacked(size):
        raise BadArchiveError(_unpacks_too_far(size))
    for info in infos:
        _require_inside(info.filename)
    return archive


def read_member(archive: zipfile.ZipFile, name: str, most: float) -> bytes:
    """Read a file of a zip archive.

    Args:
        archive: Open, see `open_zip`.
        name: The file's name.
        most: Bytes that it may have; see `most_of_a_file`.

    Raises:
        BadArchiveError: It is not there, locked, broken, too large, or not as large as it says.
    """
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise BadArchiveError(f"has no {readable(name)}") from None
    if info.flag_bits & 1:
        raise BadArchiveError("is locked by a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Others unpack without a bound.
        raise BadArchiveError("is packed in another way than zip files usually are; unpack it")
    if info.file_size > most:
        raise BadArchiveError(_too_large(most))
    try:
        with archive.open(info) as file:
            return _read_exactly(file, info.file_size)
    except _BROKEN as error:
        raise _bad(error) from None


class _Careful:
    """A file that refuses to be read in pieces as large as only a forged size makes them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, file.close

    def read(self, size: int = -1) -> bytes:
        if size > _MOST_DIRECTORY_BYTES:
            raise BadArchiveError(
                "says more of its files than is believable; unpack it, or make several of it"
            )
        return self._file.read(size)


class _Counted(io.RawIOBase):
    """What a packed file unpacks to, up to a bound."""

    def __init__(self, file: Any, size: int) -> None:
        self._file, self._size, self._left = file, size, _most_unpacked(size)

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self._left -= len(piece)
        if self._left < 0:
            raise BadArchiveError(_unpacks_too_far(self._size))
        return piece

    def close(self) -> None:
        self._file.close()
        super().close()


def _open_tar(path: str, kind: str) -> IO[bytes]:
    size = Path(path).stat().st_size
    file: Any = open(path, "rb") if kind == ".tar" else gzip.open(path)  # noqa: SIM115
    return _Counted(file, size)  # type: ignore[return-value]


def _walk_tar(
    file: IO[bytes], names: Collection[str] = (), most: float = 0
) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """Go through a tar; yield what it has, and the bytes of those files that are named and not too large.

    `tarfile` itself reads whatever a header says that there is of it, up to all memory.
    """
    said: dict[str, str] = {}
    for _ in range(4 * MOST_FILES):
        header = file.read(_BLOCK)
        if not header.strip(b"\0"):
            return
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        if info.type in _HEADERS:
            if not 0 <= info.size <= _MOST_HEADER_BYTES:
                raise BadArchiveError("says more of a file than is believable")
            content = _read_exactly(file, _padded(info.size))[: info.size]
            if info.type == tarfile.GNUTYPE_LONGNAME:
                said["path"] = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                for key, value in re.findall(rb"\d+ ([^=\n]+)=([^\n]*)\n", content):
                    said[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
            continue
        info.name, info.size = said.get("path", info.name), int(said.get("size", info.size))
        if info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in said):
            info.type = tarfile.CHRTYPE  # a file with holes, as no text is
        said.clear()
        if info.size < 0:
            raise BadArchiveError("is no whole tar archive")
        padded = 0 if info.islnk() or info.issym() or info.isdir() else _padded(info.size)
        if info.isreg() and info.name in names and info.size <= most:
            yield info, _read_exactly(file, padded)[: info.size]
        else:
            while padded:
                padded -= len(_read_exactly(file, min(padded, _PIECE_BYTES)))
            yield info, None
    raise BadArchiveError(_too_many())


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _read_exactly(file: IO[bytes], size: int) -> bytes:
    pieces, left = [], size
    while left:
        piece = file.read(min(left, _PIECE_BYTES))
        if not piece:
            raise BadArchiveError("ends too early; copy or download it again")
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _most_unpacked(size: int) -> int:
    return max(_ALWAYS_UNPACKED, MOST_UNPACKED * size)


def _unpacks_too_far(size: int) -> str:
    return f"unpacks to more than {_most_unpacked(size) / 1e6:,.0f} MB, as no honest archive of its size does"


def _too_many() -> str:
    return f"has more than {MOST_FILES:,} files; unpack it, or make several of it"


def most_of_a_file() -> float:
    """Return how many bytes a file may have to be one text on this machine."""
    return memory_bytes() * MOST_OF_MEMORY


def _too_large(most: float) -> str:
    return f"is larger than {most / 1e9:.1f} GB, too much for one text on this machine; cut it up"


def _bad(error: BaseException) -> BadArchiveError:
    if isinstance(error, OSError) and error.strerror:
        return BadArchiveError(f"cannot be read: {error.strerror}")
    reason = readable(str(error).partition("\n")[0] or type(error).__name__)[:80]
    return BadArchiveError(f"is broken ({reason}); copy or download it again")
