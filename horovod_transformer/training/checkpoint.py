"""Checkpoints: whole or absent, checked when read, and never more than data.

A checkpoint is a dict saved by `torch.save`, with these keys:

    format_version  int, FORMAT_VERSION
    model           state dict of TransformerLM
    optimizer       state dict of the optimizer
    scheduler       dict: what the learning rate schedule was aiming at
    progress        dict: updates done, tokens seen, best validation loss, run name, ...
    config          nested dicts of the whole configuration
    tokenizer       dict for `tokenizer_from_dict`, or None
    checksum        SHA-256 over all of the above, as hex

A folder holds `update_00000500.pt` (the newest few), `last.pt` (the newest of all, the same file
under a second name) and `best_model.pt` (lowest validation loss).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import struct
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from horovod_transformer.errors import UserError
from horovod_transformer.set_aside import name_for_previous

FORMAT_VERSION = 1
KEYS = ("format_version", "model", "optimizer", "scheduler", "progress", "config", "tokenizer")
LAST, BEST = "last.pt", "best_model.pt"
_PARTIAL = ".partial"


def save_checkpoint(path: str | Path, contents: dict[str, Any]) -> None:
    """Write a checkpoint so that `path` holds either all of it or what it held before.

    The file is written aside, forced to the disk, and renamed; then the folder is forced, so that
    the rename itself survives a power failure.

    Args:
        path: The file; its folder is made if need be.
        contents: The keys above but `format_version` and `checksum`, which are added.

    Raises:
        OSError: It could not be written; nothing of it is left behind.
    """
    path = Path(path)
    contents = {"format_version": FORMAT_VERSION, **contents}
    contents["checksum"] = checksum(contents)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{_PARTIAL}-{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            _save_to(file, contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _save_to(file: IO[bytes], contents: dict[str, Any]) -> None:
    """`torch.save`, but "no space left" stays an OSError.

    torch's zip writer makes a RuntimeError about an unexpected position of it.
    """
    writer = _RememberingWriter(file)
    try:
        torch.save(contents, cast(IO[bytes], writer))
    except Exception:
        if writer.error is not None:
            raise writer.error from None
        raise


class _RememberingWriter:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def load_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint and prove that it is what was written.

    The file is untrusted: only tensors and plain values are accepted (`weights_only=True`), so
    nothing in it can run.

    Args:
        path: The file.
        map_location: Device to put tensors on.

    Returns:
        The keys of this module's docstring.

    Raises:
        UserError: The file is missing, unreadable, truncated, altered, not ours, or of a newer
            format.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception:
        # torch raises half a dozen types, by where the damage lies; none is more telling.
        raise UserError(
            f"{path}: is not a readable checkpoint: truncated, damaged, or made by something else"
        ) from None
    if not isinstance(contents, dict) or "format_version" not in contents:
        raise UserError(f"{path}: is a PyTorch file but not a checkpoint of this program")
    version = contents["format_version"]
    if not isinstance(version, int) or version > FORMAT_VERSION:
        shown = version if isinstance(version, int) and version < 10**9 else "unknown"
        raise UserError(
            f"{path}: has checkpoint format {shown}, newer than the {FORMAT_VERSION} this version reads; "
            "update horovod_transformer"
        )
    missing = [key for key in (*KEYS, "checksum") if key not in contents]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}; it is damaged or was made by something else")
    expected = contents.pop("checksum")
    try:
        actual = checksum(contents, largest_tensor=path.stat().st_size)
    except Exception:
        # A list within itself, a number of a million digits, a tensor without data: torch lets them in.
        raise UserError(f"{path}: holds what no checkpoint of this program holds") from None
    if not isinstance(expected, str) or expected != actual:
        raise UserError(f"{path}: its checksum does not match: the file was damaged or altered")
    return contents if str(map_location) == "cpu" else _moved(contents, map_location)


def checksum(contents: Any, largest_tensor: int | None = None) -> str:
    """SHA-256 over nested dicts, lists, tensors and plain values, as hex.

    Covers keys, types, shapes and every byte; independent of how the file format stores them.

    Args:
        contents: What a checkpoint holds, with or without its checksum.
        largest_tensor: Most bytes that a tensor may have. A stored number can stand for billions
            of equal ones, which are not to be unfolded.

    Raises:
        ValueError: A tensor has more.
    """
    digest = hashlib.sha256()
    _feed(digest, {key: value for key, value in contents.items() if key != "checksum"}, largest_tensor)
    return digest.hexdigest()


def _feed(digest: Any, value: Any, largest: int | None) -> None:
    if isinstance(value, Tensor):
        if largest is not None and value.numel() * value.element_size() > largest:
            raise ValueError(f"a tensor of shape {tuple(value.shape)} is larger than its file")
        digest.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
        # reshape: a scalar has no bytes to view.
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, dict):
        digest.update(f"dict {len(value)}".encode())
        for key, item in value.items():
            _feed(digest, key, largest)
            _feed(digest, item, largest)
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)}".encode())
        for item in value:
            _feed(digest, item, largest)
    elif isinstance(value, float):
        digest.update(b"float" + struct.pack("<d", value))
    else:
        digest.update(f"{type(value).__name__} {value!r};".encode())


def snapshot(value: Any) -> Any:
    """Copy nested state to memory of its own, so that training may go on while it is written."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(snapshot(item) for item in value)
    return value


class CheckpointFolder:
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
        failure = self.settle()
        self._pending = self._thread.submit(self._write, snapshot(contents), update, periodic, best)
        return failure

    def settle(self, wait: bool = True) -> OSError | None:
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

    def set_aside(self, after_update: int | None = None) -> Path | None:
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
        aside = name_for_previous(self.folder / "previous", files)
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


def _sync_folder(folder: Path) -> None:
    with _opened(folder) as descriptor, contextlib.suppress(OSError):  # not every file system can
        os.fsync(descriptor)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _moved(value: Any, device: str | torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, device) for item in value)
    return value
