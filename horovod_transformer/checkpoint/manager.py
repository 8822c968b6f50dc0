"""The checkpoints of one run: written in the background, pruned, archived, found again.

A folder holds `update_00000500.pt` (the newest few), `last.pt` (the newest of all, the same file
under a second name) and `best_model.pt` (lowest validation loss).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from horovod_transformer.checkpoint.format import _PARTIAL, _sync_folder, load_checkpoint, save_checkpoint
from horovod_transformer.errors import UserError
from horovod_transformer.files import archive_path

LAST, BEST = "last.pt", "best_model.pt"


def snapshot(value: Any) -> Any:
    """Copy nested state to memory of its own, so that training may go on while it is written."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(snapshot(item) for item in value)
    return value


class CheckpointManager:
    """The checkpoints of one run, on rank 0: written in the background, pruned, found again.

    Args:
        folder: Where they lie; made when first written to.
        keep: How many periodic checkpoints to keep.
        keep_every: Keep those of every so many updates for ever.
    """

    def __init__(self, folder: str | Path, keep: int = 2, keep_every: int | None = None) -> None:
        self.folder = Path(folder)
        self._keep = keep
        self._keep_every = keep_every
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, contents: dict[str, Any], update: int, periodic: bool, best: bool) -> OSError | None:
        """Copy the state to memory, and write it in the background.

        Waits for the previous write first: there is one copy in memory at most.

        Args:
            contents: As for `save_checkpoint`.
            update: Updates done.
            periodic: Write `update_N.pt` and `last.pt`.
            best: Write `best_model.pt`.

        Returns:
            Why the previous write failed, if it did; the files before it are untouched.
        """
        failure = self.wait()
        self._pending = self._thread.submit(self._write, snapshot(contents), update, periodic, best)
        return failure

    def wait(self, wait: bool = True) -> OSError | None:
        """Look how the last write went.

        Args:
            wait: Wait until it has ended; otherwise one still going on is left alone.

        Returns:
            Why it failed, told once; None if it went well or goes on.
        """
        if self._pending is None or not (wait or self._pending.done()):
            return None
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except OSError as error:
            return error
        return None

    def _write(self, contents: dict[str, Any], update: int, periodic: bool, best: bool) -> None:
        if not periodic:
            save_checkpoint(self.folder / BEST, contents)
            return
        newest = self.folder / f"update_{update:08d}.pt"
        save_checkpoint(newest, contents)
        for name in [LAST, BEST] if best else [LAST]:
            _give_second_name(newest, self.folder / name)
        self._prune()

    def _prune(self) -> None:
        numbered = _numbered(self.folder)
        for update, path in numbered[: -self._keep]:
            if not (self._keep_every and update % self._keep_every == 0):
                path.unlink(missing_ok=True)

    def clear_leftovers(self) -> None:
        """Remove what a killed process was still writing."""
        for path in self.folder.glob(f".*{_PARTIAL}-*"):
            path.unlink(missing_ok=True)

    def require_writable(self) -> None:
        """Find out now rather than at the first checkpoint.

        Raises:
            UserError: Nothing can be written there.
        """
        probe = self.folder / f".probe{_PARTIAL}-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(f"{self.folder}: cannot write checkpoints here: {error.strerror}") from None

    def archive(self, after_update: int | None = None) -> Path | None:
        """Move checkpoints into a subfolder, so that a run that starts anew overwrites nothing.

        Args:
            after_update: Move only the periodic ones of later updates; None moves all.

        Returns:
            The subfolder, or None if there was nothing to move.
        """
        if after_update is None:
            files = [path for path in self.folder.glob("*.pt") if path.is_file()]
        else:
            files = [path for update, path in _numbered(self.folder) if update > after_update]
        if not files:
            return None
        aside = archive_path(self.folder / "previous", files)
        aside.mkdir(parents=True)
        for path in files:
            path.rename(aside / path.name)
        return aside


def newest_good_checkpoint(folder: str | Path) -> tuple[Path, dict[str, Any], list[str]] | None:
    """Find the checkpoint to resume from, passing over broken ones.

    Args:
        folder: A run's checkpoint folder.

    Returns:
        Path, contents and one line for each newer file that was broken; None if the folder has no
        checkpoint at all.

    Raises:
        UserError: There are checkpoints but none is good. Starting afresh is for the user to say.
    """
    folder = Path(folder)
    complaints: list[str] = []
    # last.pt is the newest numbered one under another name, unless a kill came between the two.
    numbered = [path for _, path in reversed(_numbered(folder))]
    candidates = [*numbered[:1], folder / LAST, *numbered[1:], folder / BEST]
    for path in candidates:
        if not path.is_file():
            continue
        try:
            return path, load_checkpoint(path), complaints
        except UserError as error:
            complaints.append(str(error))
    if complaints:
        raise UserError(f"{folder}: no checkpoint here is good; the newest: {complaints[0]}")
    return None


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    found = []
    for path in folder.glob("update_*.pt"):
        match = re.fullmatch(r"update_(\d+)\.pt", path.name)
        if match:
            found.append((int(match[1]), path))
    return sorted(found)


def _give_second_name(path: Path, name: Path) -> None:
    """Make `name` the same file as `path`, replacing in one step what it was."""
    partial = name.with_name(f".{name.name}{_PARTIAL}-{os.getpid()}")
    partial.unlink(missing_ok=True)
    try:
        try:
            os.link(path, partial)
        except OSError as error:
            # Some file systems know no second names.
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
                raise
            shutil.copyfile(path, partial)
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, name)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(name.parent)
