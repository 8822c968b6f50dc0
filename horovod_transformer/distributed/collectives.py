"""Horovod's operations, all but those on gradients (`gradients`)."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from horovod_transformer.errors import LostRankError

LOOK_EVERY_S = 0.0005  # for an operation's result, on CPUs
# Horovod counts what all ranks gather in 32 bits: 2 GiB would overflow.
GATHER_LIMIT_BYTES = 2**30
_hvd: Any = None  # horovod.torch, once there is more than one process
_host_sets: HostSets | None = None  # see `use_horovod`


@dataclass(frozen=True)
class HostSets:
    """Ranks by host, for sums of gradients in steps, see `host_sums`.

    Attributes:
        host: Horovod's process set of this rank's host.
        likes: That of the ranks with this rank's place, one on each host.
        ranks: How many ranks a host has.
        hosts: How many hosts there are.
    """

    host: Any
    likes: Any
    ranks: int
    hosts: int


def use_horovod(hvd: Any, host_sets: HostSets | None = None) -> None:
    """Let everything here go through `horovod.torch`, which has been started.

    Args:
        hvd: The module.
        host_sets: None where gradients are summed over all ranks in one step.
    """
    global _hvd, _host_sets
    _hvd, _host_sets = hvd, host_sets


def get_host_sets() -> HostSets | None:
    """What `use_horovod` was given."""
    return _host_sets


def get_hvd() -> Any:
    """The module `horovod.torch`; None in a lone process."""
    return _hvd


def built_operations() -> list[str]:
    """What the installed Horovod was built with: `Gloo`, `NCCL`, `MPI`.

    Raises:
        ImportError, OSError: Horovod cannot be loaded.
    """
    import horovod.torch as hvd

    built = {"Gloo": hvd.gloo_built(), "NCCL": hvd.nccl_built(), "MPI": hvd.mpi_built()}
    return [name for name, there in built.items() if there]


def lacks_nccl() -> bool:
    """Whether there are several processes and a Horovod that cannot join their GPUs."""
    return bool(_hvd) and not _hvd.nccl_built()


def get_world_size() -> int:
    """Number of processes that train together."""
    return _hvd.size() if _hvd else 1


def get_rank() -> int:
    """This process's number, from 0."""
    return _hvd.rank() if _hvd else 0


def get_local_rank() -> int:
    """This process's number among those on the same machine, from 0."""
    return _hvd.local_rank() if _hvd else 0


def get_local_size() -> int:
    """Number of processes on this machine."""
    return _hvd.local_size() if _hvd else 1


def get_hosts() -> int:
    """Number of machines with a rank of this one's place; for a first rank, of all machines."""
    return _hvd.cross_size() if _hvd else 1


def is_main_process() -> bool:
    """Whether this is rank 0, the one that talks and writes files."""
    return get_rank() == 0


def metric_average(value: float | Tensor, name: str) -> float:
    """Average one number over all ranks, each counting the same. *Collective.*

    For a loss use `allreduce` on (sum, count) instead: ranks may hold different numbers of
    tokens.

    Args:
        value: This rank's number.
        name: The same string on every rank; tells concurrent averages apart.
    """
    number = torch.as_tensor(value, dtype=torch.float64).detach().reshape(1).cpu()
    return float(_hvd.allreduce(number, op=_hvd.Average, name=f"metric.{name}") if _hvd else number)


def allreduce(values: Tensor, name: str) -> Tensor:
    """Add a tensor up over all ranks; float64 or int64 keeps it exact enough. *Collective.*"""
    if not _hvd:
        return values
    return wait(_hvd.allreduce_async(values, op=_hvd.Sum, name=f"sum.{name}"), values.device)


def allgather(flat: Tensor, name: str, lengths: Sequence[int]) -> Tensor:
    """Join every rank's tensor, by rank. *Collective.*

    Args:
        flat: Contiguous, one axis, of any length; 0 is one, too. It travels as bytes: every dtype
            will do, also those that Horovod does not know, such as bfloat16.
        name: The same string on every rank.
        lengths: Of every rank's tensor, by rank.
    """
    if not _hvd:
        return flat
    mine = flat.view(torch.uint8)
    sizes = [length * flat.element_size() for length in lengths]
    if sum(sizes) <= GATHER_LIMIT_BYTES:
        return allgather_bytes(mine, name).view(flat.dtype)
    joined = mine.new_empty(sum(sizes))
    places = joined.split(sizes)
    step = max(1, GATHER_LIMIT_BYTES // len(sizes))
    for start in range(0, max(sizes), step):
        parts = [place[start : start + step] for place in places]
        gathered = allgather_bytes(mine[start : start + step], name)
        for part, got in zip(parts, gathered.split([part.numel() for part in parts]), strict=True):
            part.copy_(got)
    return joined.view(flat.dtype)


def allgather_bytes(flat: Tensor, name: str) -> Tensor:
    """As `allgather`, for bytes: at most `GATHER_LIMIT_BYTES` from all ranks together. *Collective.*"""
    return wait(_hvd.allgather_async(flat, name=f"gather.{name}"), flat.device)


def hand_on(flat: Tensor, name: str) -> Tensor:
    """Give a tensor to the next rank and take the one of the rank before. *Collective.*

    Args:
        flat: On the CPU, one axis, of any length. The last rank's goes nowhere.
        name: The same string on every rank.

    Returns:
        Of the same dtype; on rank 0 empty.
    """
    counts = torch.zeros(get_world_size(), dtype=torch.int32)
    if get_rank() + 1 < get_world_size():
        counts[get_rank() + 1] = len(flat)
    handle = _hvd.alltoall_async(flat[: int(counts.sum())], splits=counts, name=f"hand on.{name}")
    return wait(handle, flat.device)[0]


def gather_to_rank0(flat: Tensor, name: str) -> list[Tensor]:
    """Give every rank's tensor to rank 0, by rank; other ranks get none. *Collective.*

    Args:
        flat: Contiguous, one axis, of one length on all ranks; any dtype, as in `allgather`.
        name: The same string on every rank.
    """
    if not _hvd:
        return [flat]
    mine, ranks = flat.view(torch.uint8), get_world_size()
    # Horovod counts what a rank receives in 32 bits.
    pieces = mine.split(max(1, GATHER_LIMIT_BYTES // ranks)) if len(mine) else ()
    received = []
    for piece in pieces:
        counts = torch.zeros(ranks, dtype=torch.int32)
        counts[0] = len(piece)
        handle = _hvd.alltoall_async(piece, splits=counts, name=f"to rank 0.{name}")
        received.append(wait(handle, flat.device)[0])
    if not is_main_process():
        return []
    if not received:
        return [flat] * ranks
    rows = [torch.cat(parts) for parts in zip(*(each.chunk(ranks) for each in received), strict=True)]
    return [row.view(flat.dtype) for row in rows]


@contextlib.contextmanager
def lost_ranks_explained() -> Iterator[None]:
    """Within this context a rank that others abandon says so in one line, without a traceback.

    Raises:
        LostRankError: Another rank has ended; what it printed tells why.
    """
    try:
        yield
    except RuntimeError as error:
        # Other internal errors of Horovod, such as shapes that differ between ranks, are bugs of ours.
        signs = ("has been shut down", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
        if type(error).__name__ == "HorovodInternalError" and any(sign in str(error) for sign in signs):
            raise LostRankError("another process of this job has ended; what it printed tells why") from None
        raise


def wait(handle: Any, device: torch.device) -> Any:
    """Return an operation's result once it is there.

    On CPUs this waits asleep. Horovod's own waiting keeps a core busy, which the threads that do the work
    want, and the rank that all others wait for.
    """
    while device.type == "cpu" and not _hvd.poll(handle):
        time.sleep(LOOK_EVERY_S)
    return _hvd.synchronize(handle)


def start_timeline(path: Path) -> None:
    """Begin Horovod's own record of what it does. *Collective.*

    Nothing happens unless Horovod was started with `HOROVOD_TIMELINE=DYNAMIC`.

    Args:
        path: The file; rank 0 writes it.
    """
    if _hvd and os.environ.get("HOROVOD_TIMELINE") == "DYNAMIC":
        _hvd.start_timeline(str(path))


def stop_timeline() -> None:
    """End what `start_timeline` began. *Collective.*"""
    if _hvd and os.environ.get("HOROVOD_TIMELINE") == "DYNAMIC":
        _hvd.stop_timeline()


def synchronize(optimizer: Optimizer) -> None:
    """Wait until all gradients hold the sum over ranks. *Collective.*"""
    if _hvd:
        optimizer.synchronize()  # type: ignore[attr-defined]


def skip_synchronize(optimizer: Optimizer) -> contextlib.AbstractContextManager[None]:
    """Within this context `optimizer.step()` does not sum gradients a second time."""
    return optimizer.skip_synchronize() if _hvd else contextlib.nullcontext()  # type: ignore[attr-defined]
