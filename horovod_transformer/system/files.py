"""Files that are whole or absent, and names for what an earlier run left: the one copy of each."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO

PARTIAL = ".partial"
# What a file system says that knows no second names for a file, or none across two of them.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EXDEV)


def make_writable(folder: Path) -> None:
    """Make a folder, and find out whether files can be written there before hours go into what they hold.

    Raises:
        OSError: They cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = partial_of(folder / "probe")
    probe.touch()
    probe.unlink()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes the place of `path` only when it is complete.

    It is written aside, forced to the disk, and renamed; then the folder is forced, so that the
    rename itself survives a power failure. After an exception `path` is what it was before.

    Args:
        path: The file; its folder must be there.

    Yields:
        A binary file to write to.

    Raises:
        OSError: It could not be written; nothing of it is left behind.
    """
    with made_aside(path) as partial, open(partial, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def made_aside(path: Path) -> Iterator[Path]:
    """Yield a free name beside `path`; what the block makes there is renamed to `path` at its end.

    After an exception it is removed, and `path` is what it was before.

    Raises:
        OSError: It could not be renamed.
    """
    partial = partial_of(path)
    try:
        partial.unlink(missing_ok=True)
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; see `replacing`."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def may_be_replaced(path: Path, begins: bytes) -> bool:
    """Whether nothing is lost if a file of ours takes this name.

    Args:
        path: The name.
        begins: How such a file of ours begins; an empty one may go, too.
    """
    if not os.path.lexists(path):
        return True
    if not path.is_file():  # a folder, a device, a link that leads nowhere
        return False
    try:
        with open(path, "rb") as file:
            return file.read(len(begins)) in (begins, b"")
    except OSError:
        return False


def read_at_most(file: IO[bytes], most: int) -> bytes:
    """Read a file to its end, which not every file has: `/dev/zero` would fill the memory.

    Raises:
        OSError: It cannot be read, or has more bytes than that.
    """
    content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return content


def partial_of(path: Path) -> Path:
    """Where this process writes `path` until it is complete."""
    return path.with_name(f".{path.name}{PARTIAL}-{os.getpid()}")


def remove_partials(folder: Path) -> None:
    """Remove what killed processes were still writing into a folder."""
    for path in folder.glob(f".*{PARTIAL}-*"):
        path.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name that nobody has: by a hard link, or by a copy where there are no links.

    With a link the file is there whole or not at all.

    Raises:
        FileExistsError: Somebody has the name.
        OSError: The copy could not be written; a part of it may be there.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with open(source, "rb") as file, open(target, "xb") as copy:
            shutil.copyfileobj(file, copy)
            copy.flush()
            os.fsync(copy.fileno())


def sync_folder(folder: Path) -> None:
    """Force a folder's names to the disk, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Force a folder's files and names to the disk, before the folder gets its name."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(Path(parent, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


def archive_path(stem: Path, files: list[Path]) -> Path:
    """Find a free name that tells when these files were last written.

    Args:
        stem: The name without its ending, for example `checkpoints/previous`.
        files: Existing files or folders.

    Returns:
        A path that does not exist, such as `checkpoints/previous-20260131-235959`.
    """
    newest = max(path.stat().st_mtime for path in files)
    name = f"{stem.name}-{datetime.fromtimestamp(newest):%Y%m%d-%H%M%S}"
    for number in itertools.count(1):
        path = stem.with_name(name if number == 1 else f"{name}-{number}")
        if not path.exists():
            return path
    raise AssertionError("unreachable")
