"""The one place that calls Horovod's operations."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from horovod_transformer.distributed.host_sums import HostSums
from horovod_transformer.errors import LostRankError

LOOK_EVERY_S = 0.0005  # for an operation's result, on CPUs
# Horovod counts what all ranks gather in 32 bits: 2 GiB would overflow.
GATHER_LIMIT_BYTES = 2**30
_hvd: Any = None  # horovod.torch, once there is more than one process
_host_sets: tuple[Any, Any] | None = None  # see `use_horovod`


def use_horovod(hvd: Any, host_sets: tuple[Any, Any] | None = None) -> None:
    """Let everything here go through `horovod.torch`, which has been started.

    Args:
        hvd: The module.
        host_sets: Horovod's process sets of this rank's host and of this rank's likes, one on each host:
            gradients are then summed in two steps (`host_sums`). None: in one.
    """
    global _hvd, _host_sets
    _hvd, _host_sets = hvd, host_sets


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
    return _wait(_hvd.allreduce_async(values, op=_hvd.Sum, name=f"sum.{name}"), values.device)


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
    return _wait(_hvd.allgather_async(flat, name=f"gather.{name}"), flat.device)


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
    return _wait(handle, flat.device)[0]


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


def _wait(handle: Any, device: torch.device) -> Any:
    """Return an operation's result once it is there.

    On CPUs this waits asleep. Horovod's own waiting keeps a core busy, which the threads that do the work
    want, and the rank that all others wait for.
    """
    while device.type == "cpu" and not _hvd.poll(handle):
        time.sleep(LOOK_EVERY_S)
    return _hvd.synchronize(handle)


def distribute_optimizer(
    optimizer: Optimizer,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    backward_passes: int,
    compression: str | type = "none",
    gradient_groups: int | None = 1,
) -> Optimizer:
    """Make the optimizer sum gradients over ranks during the last of `backward_passes`.

    Gradients go in fixed groups: with more than two ranks Horovod otherwise fuses them in
    whatever order they become ready, and float sums in another order differ in their last bits
    from run to run. Several groups are as repeatable as one, because `setup_horovod` forbids
    Horovod to fuse groups with each other.

    Args:
        optimizer: A plain torch optimizer.
        named_parameters: The model's, to name the collectives alike on every rank.
        backward_passes: Backward passes between two updates.
        compression: `none`, or `fp16` to halve the bytes sent; or a class with the interface of Horovod's
            compressions.
        gradient_groups: See `group_parameters`. None leaves it to Horovod, and gives up
            repeatable sums; `benchmarks/gradient_group.py` measures the difference.

    Returns:
        The Horovod optimizer, or the given one in a lone process.
    """
    if not _hvd:
        return optimizer
    named = list(named_parameters)
    groups = gradient_groups and group_parameters([parameter for _, parameter in named], gradient_groups)
    compression = getattr(_hvd.Compression, compression) if isinstance(compression, str) else compression
    if _host_sets and groups:
        sums = HostSums(groups, backward_passes, compression, _host_steps(*_host_sets), _hvd.local_size())
        return sums.attach_to(optimizer)
    return _hvd.DistributedOptimizer(
        optimizer,
        named_parameters=named,
        backward_passes_per_step=backward_passes,
        compression=compression,
        op=_hvd.Sum,
        groups=groups,
    )


def _host_steps(host: Any, likes: Any) -> list[Callable[[Tensor, str], Tensor]]:
    """The operations of `HostSums`."""

    def share(flat: Tensor, name: str) -> Tensor:
        handle = _hvd.reducescatter_async(flat, op=_hvd.Sum, name=f"share.{name}", process_set=host)
        return _wait(handle, flat.device)

    def between_hosts(flat: Tensor, name: str) -> Tensor:
        handle = _hvd.allreduce_async_(flat, op=_hvd.Sum, name=f"hosts.{name}", process_set=likes)
        return _wait(handle, flat.device)

    def join(flat: Tensor, name: str) -> Tensor:
        return _wait(_hvd.allgather_async(flat, name=f"join.{name}", process_set=host), flat.device)

    return [share, between_hosts, join]


def group_parameters(parameters: Sequence[nn.Parameter], number: int) -> list[list[nn.Parameter]]:
    """Form groups whose gradients are sent together, each as soon as its last one is there.

    The backward pass goes through a model from its end to its beginning, and so do the groups,
    cut into pieces of about the same size. The first parameter is the tied embedding, whose
    gradient is complete only at the very end: it is a group of its own, so that nothing waits
    for it.

    Args:
        parameters: In the order of the forward pass, each once.
        number: Of groups, at most; 1 sends all gradients after the backward pass.
    """
    if number == 1 or len(parameters) == 1:
        return [list(reversed(parameters))]
    first, *others = parameters
    total = sum(parameter.numel() for parameter in others)
    groups: list[list[nn.Parameter]] = [[] for _ in range(number - 1)]
    before = 0
    for parameter in reversed(others):
        # By its middle: a large parameter falls where most of it lies.
        groups[(2 * before + parameter.numel()) * (number - 1) // (2 * total)].append(parameter)
        before += parameter.numel()
    return [group for group in groups if group] + [[first]]


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
