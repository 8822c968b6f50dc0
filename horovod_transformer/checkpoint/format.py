"""Checkpoints: whole or absent, checked when read, and never more than data.

A checkpoint is a dict saved by `torch.save`, with these keys:

    format_version  int, FORMAT_VERSION
    model           state dict of TransformerLM
    optimizer       state dict of the optimizer
    scheduler       dict: what the learning rate schedule was aiming at
    progress        dict: updates done, tokens seen, best validation loss, run name, ...
    config          nested dicts of the whole configuration
    tokenizer       dict for `tokenizer_from_dict`, or None
    checksum_without_optimizer
                    SHA-256 over all of the above but `optimizer`, as hex
    checksum        SHA-256 over all of the above, as hex
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import mmap
import struct
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from horovod_transformer.errors import UserError
from horovod_transformer.nested import convert_all
from horovod_transformer.system.files import replacing

FORMAT_VERSION = 1
KEYS = ("format_version", "model", "optimizer", "scheduler", "progress", "config", "tokenizer")
PART_CHECKSUM = "checksum_without_optimizer"


def save_checkpoint(path: str | Path, contents: dict[str, Any]) -> None:
    """Write a checkpoint so that `path` holds either all of it or what it held before.

    Args:
        path: The file; its folder is made if need be.
        contents: The keys above but `format_version` and the checksums, which are added.

    Raises:
        OSError: It could not be written; nothing of it is left behind.
    """
    path = Path(path)
    contents = {"format_version": FORMAT_VERSION, **contents}
    contents[PART_CHECKSUM] = checksum(_without_optimizer(contents))
    contents["checksum"] = checksum(contents)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        _save_to(file, contents)


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


def load_checkpoint(
    path: str | Path, map_location: str | torch.device = "cpu", with_optimizer: bool = True
) -> dict[str, Any]:
    """Read a checkpoint and prove that it is what was written.

    The file is untrusted: only tensors and plain values are accepted (`weights_only=True`), so
    nothing in it can run.

    Args:
        path: The file.
        map_location: Device to put tensors on.
        with_optimizer: False leaves out the optimizer's state, two thirds of a file: it is neither
            read nor checked.

    Returns:
        The keys of this module's docstring but the checksums.

    Raises:
        UserError: The file is missing, unreadable, truncated, altered, not ours, or of a newer
            format.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {_why_no_file(path)}")
    # What is mapped need not be read; but torch maps no file whose path is not UTF-8.
    mapped = not with_optimizer and not any("\ud800" <= character <= "\udfff" for character in str(path))
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
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
    missing = [key for key in (*KEYS, PART_CHECKSUM, "checksum") if key not in contents]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}; it is damaged or was made by something else")
    expected = contents["checksum" if with_optimizer else PART_CHECKSUM]
    size = path.stat().st_size
    try:
        if not with_optimizer:
            contents = _copied(_without_optimizer(contents), size)
        actual = checksum(contents, largest_tensor=size)
    except Exception:
        # A list within itself, a number of a million digits, a tensor without data: torch lets them in.
        raise UserError(f"{path}: holds what no checkpoint of this program holds") from None
    if not isinstance(expected, str) or expected != actual:
        raise UserError(f"{path}: its checksum does not match: the file was damaged or altered")
    contents = {key: contents[key] for key in KEYS if with_optimizer or key != "optimizer"}
    if not all(isinstance(contents[key], dict) for key in ("scheduler", "progress")):
        raise UserError(f"{path}: its record of progress is not of this program's making")
    if str(map_location) == "cpu":
        return contents
    return convert_all(contents, Tensor, lambda tensor: tensor.to(map_location))


def _why_no_file(path: Path) -> str:
    if path.is_dir():
        inside = [file for file in (path / "last.pt", path / "checkpoints" / "last.pt") if file.is_file()]
        return "is a folder; name a file" + (f", such as {inside[0]}" if inside else "")
    return f"leads to {path.resolve()}, which is gone" if path.is_symlink() else "no such checkpoint file"


def _without_optimizer(contents: dict[str, Any]) -> dict[str, Any]:
    left_out = ("optimizer", PART_CHECKSUM)
    return {key: value for key, value in contents.items() if key not in left_out}


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
        if largest is not None:
            _require_smaller(value, largest)
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


def _require_smaller(tensor: Tensor, largest: int) -> None:
    if tensor.nbytes > largest:
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is larger than its file")


def _copied(value: Any, largest: int) -> Any:
    """Copy tensors from a mapped file to memory: the file may be pruned while they are in use."""

    def copy(tensor: Tensor) -> Tensor:
        _require_smaller(tensor, largest)
        copied = tensor.clone()
        _forget_pages(tensor)
        return copied

    return convert_all(value, Tensor, copy)


def _forget_pages(tensor: Tensor) -> None:
    """Give back the memory of a mapped file's pages that have been copied; they can be read again.

    Otherwise a model stands in memory twice until the mapping goes.
    """
    with contextlib.suppress(OSError, AttributeError):  # a saving, not a need
        page = mmap.PAGESIZE
        start = -(-tensor.data_ptr() // page) * page
        end = (tensor.data_ptr() + tensor.nbytes) // page * page
        if end > start:
            ctypes.CDLL(None).madvise(
                ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED
            )
