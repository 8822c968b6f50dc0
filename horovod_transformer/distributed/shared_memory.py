"""Sums within a host through memory that its ranks share: for CPUs.

Gloo would send everything through the loopback interface, and its reduce-scatter takes five times as long as
an all-reduce of the same tensor (docs/scaling.md).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from horovod_transformer.distributed.host_sums import bits_of

FOLDER = Path("/dev/shm")


class SharedMemory:
    """Sums of groups of gradients over the ranks of a host, which all see the same memory.

    Each rank has a row to put its gradients into; one more row takes the sums, each rank writing a share of
    every group. A rank's row is read by others between the two meetings of a group, and the sums after the
    second one; nobody writes there before it has come to the next update's first meeting, where all ranks
    have taken what they needed.

    Args:
        rows: Tensor (ranks of the host + 1, numbers) in shared memory, float32 or int32.
        place: This rank's, among those of the host.
        sizes: Numbers in each group, multiples of the ranks; more than are put, if need be.
        meet: Returns when every rank of the host has called it with this name. *Collective.*
    """

    def __init__(self, rows: Tensor, place: int, sizes: Sequence[int], meet: Callable[[str], None]) -> None:
        self._place, self._ranks, self._meet = place, len(rows) - 1, meet
        self._groups = rows.split(list(sizes), dim=1)

    def put(self, group: int, gradients: Sequence[Tensor]) -> None:
        """Copy this rank's gradients of a group, float32, into its row."""
        row = self._groups[group][self._place]
        start = 0
        for gradient in gradients:
            row[start : start + gradient.numel()].copy_(bits_of(gradient, row.dtype))
            start += gradient.numel()

    def share(self, group: int) -> Tensor:
        """See `host_sums.Host`."""
        self._meet(f"put.{group}")
        shares = self._groups[group].view(self._ranks + 1, self._ranks, -1)[:, self._place]
        mine = shares[-1]
        torch.add(shares[0], shares[1], out=mine)
        for other in shares[2:-1]:
            mine.add_(other)
        return mine

    def join(self, group: int, share: Tensor) -> Tensor:
        """See `host_sums.Host`."""
        mine = self._groups[group][-1].view(self._ranks, -1)[self._place]
        if share.data_ptr() != mine.data_ptr():
            mine.copy_(share)
        self._meet(f"join.{group}")
        return self._groups[group][-1]


def make_file(size: int) -> str:
    """Make a file in memory that only this user can open, of `size` bytes; return its name.

    Raises:
        OSError: There is no such folder, or no room in it.
    """
    name = f"horovod_transformer-{secrets.token_hex(8)}"
    file = os.open(FOLDER / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(file, 0, size)  # a write beyond what there is would kill the process
    except OSError:
        remove_file(name)
        raise
    finally:
        os.close(file)
    return name


def map_file(name: str, size: int) -> mmap.mmap:
    """Map what `make_file` has made on this host.

    Raises:
        OSError: It is not there, as where ranks have a /dev/shm each, or is not this user's.
    """
    file = os.open(FOLDER / Path(name).name, os.O_RDWR | os.O_NOFOLLOW)
    try:
        found = os.fstat(file)
        if found.st_uid != os.geteuid() or found.st_size != size:
            raise PermissionError(f"{FOLDER / name} is not this job's")
        return mmap.mmap(file, size)
    finally:
        os.close(file)


def remove_file(name: str) -> None:
    """Take the name away; memory that is mapped stays until the last process ends."""
    with contextlib.suppress(FileNotFoundError):
        (FOLDER / name).unlink()
