"""A folder that is whole or absent: filled under another name, then renamed into place.

with new_folder(Path("data/v1"), "data.data_dir") as unfinished:
    ...write into `unfinished`...
# here data/v1 is complete on disk; after an exception there is no trace
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

from horovod_transformer.errors import UserError
from horovod_transformer.system.files import sync_folder, sync_tree
from horovod_transformer.system.launch_environment import this_process
from horovod_transformer.system.locks import FolderLock
from horovod_transformer.system.processes import living_process
from horovod_transformer.system.signals import handling

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def new_folder(
    target: Path, option: str, replace: bool = False, check: Callable[[], None] = lambda: None
) -> Iterator[Path]:
    """Give a folder to fill, and put it in the place of `target` when the block ends well.

    While it is filled it lies beside the target, named after machine and process. When the block
    raises, or SIGTERM or Ctrl-C comes, it is removed; after a kill -9 `clear_leftovers` does that.

    Args:
        target: Where the folder goes. Missing parents are made; an empty folder there is fine.
        option: The config key or option that names it, for messages.
        replace: Whether a filled folder at the target goes; it does only after the new one is complete.
        check: Called right before the new folder takes its place; what it raises keeps it from that.

    Raises:
        UserError: The place cannot be written to, or the disk is full.
    """
    target = target.resolve()
    mark = f"{socket.gethostname()}-{os.getpid()}"
    unfinished = target.with_name(f"{target.name}.unfinished-{mark}")
    with _explained(target, option), _terminate_as_exception() as signals:
        _make_parents(target, option)
        unfinished.mkdir()
        try:
            yield unfinished
            sync_tree(unfinished)
            check()
            if signals:
                raise KeyboardInterrupt  # Python drops one that is raised in a finalizer
            _put_in_place(unfinished, target, replace, mark)
        finally:
            # Nothing is there any more if all went well.
            shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def lock_for(target: Path, option: str, say: Callable[[str], None]) -> Iterator[FolderLock]:
    """Keep other processes from making the same folder while the block runs.

    Args:
        target: The folder.
        option: The config key or option that names it, for messages.
        say: Told in a line if a silent owner is waited for, or a lock is taken over.

    Raises:
        UserError: One is at it, or the place cannot be written to.
    """
    target = target.resolve()
    # The target itself appears only when it is complete: the lock lies beside it.
    with _explained(target, option), _terminate_as_exception():
        _make_parents(target, option)
        launch = this_process()
        lock = FolderLock(target.with_name(f".{target.name}.lock"), str(target), launch.job, launch.attempt)
        lock.acquire(say)
        try:
            yield lock
        finally:
            lock.release()


@contextmanager
def explained(target: Path, option: str) -> Iterator[None]:
    """Make the folder's parents, and turn what the file system refuses in the block into one line.

    Raises:
        UserError: The place cannot be written to, or the disk is full.
    """
    with _explained(target, option), _terminate_as_exception():
        _make_parents(target.resolve(), option)
        yield


def clear_leftovers(target: Path, option: str, say: Callable[[str], None]) -> None:
    """Tidy up after tries that were killed: remove what is unfinished, bring back what was archived.

    What another machine left (on a shared file system) may still be in use: it stays.

    Args:
        target: The folder that those tries were to make.
        option: The config key or option that names it, for messages.
        say: Told in a line what was found.

    Raises:
        UserError: The leftovers cannot be removed.
    """
    target = target.resolve()
    with _explained(target, option):
        for kind in ("replaced", "unfinished"):
            for leftover in sorted(target.parent.glob(f"{glob.escape(target.name)}.{kind}-*")):
                host, _, pid = leftover.name.rpartition(f".{kind}-")[2].rpartition("-")
                if host != socket.gethostname() or not pid.isdecimal() or _runs(int(pid)):
                    say(f"{leftover}: belongs to another process ({host} {pid}); remove it if that has ended")
                elif kind == "replaced" and not target.exists():
                    leftover.rename(target)
                    say(f"{target}: brought back, the try to replace it was cut short")
                else:
                    shutil.rmtree(leftover)
                    say(f"{leftover}: removed, an earlier try was cut short")


def _make_parents(target: Path, option: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{target}: a part of this path is a file ({option})") from None


def _put_in_place(unfinished: Path, target: Path, replace: bool, mark: str) -> None:
    replaced = None
    if replace and target.exists():
        replaced = target.with_name(f"{target.name}.replaced-{mark}")
        target.rename(replaced)
    try:
        # Refuses a target that is not empty: two tries at once cannot mix their files.
        unfinished.rename(target)
    except BaseException:
        if replaced and not target.exists():
            replaced.rename(target)
        raise
    sync_folder(target.parent)
    if replaced:
        shutil.rmtree(replaced)


@contextmanager
def _explained(target: Path, option: str) -> Iterator[None]:
    """Turn the file system's refusals into one line."""
    try:
        yield
    except ConnectionError:
        raise  # a closed pipe or a network, not the file system
    except OSError as error:
        if error.errno in _DISK_FULL:
            reason = "the disk (or your quota) is full; make room, or choose another place"
        elif error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            reason = "something else has been put here meanwhile; nothing was changed, run it again"
        else:
            reason = f"cannot be written: {error.strerror or error}; choose another place"
        raise UserError(f"{target}: {reason} ({option})") from error


@contextmanager
def _terminate_as_exception() -> Iterator[list[int]]:
    """Let SIGTERM unwind the stack, as Ctrl-C does, so that clean-up happens; yields those that came."""
    came: list[int] = []

    def leave(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    with handling((signal.SIGTERM, signal.SIGINT), leave):
        yield came


def _runs(pid: int) -> bool:
    if pid == os.getpid():
        return False  # we have not made ours yet: it is from an earlier process of this number
    try:
        return living_process(pid) is not None
    except psutil.Error:
        return True
