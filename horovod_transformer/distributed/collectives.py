"""The one place that calls Horovod's operations."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from horovod_transformer.errors import LostRankError, UserError
from horovod_transformer.nested import convert_all

T = TypeVar("T")

# Seconds between two meetings of the ranks while they wait for rank 0: far below every time-out.
MEET_EVERY_S = 0.5
LOOK_EVERY_S = 0.0005  # for an operation's result, on CPUs
_hvd: Any = None  # horovod.torch, once there is more than one process


def use_horovod(hvd: Any) -> None:
    """Let everything here go through `horovod.torch`, which has been started."""
    global _hvd
    _hvd = hvd


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


def allgather(flat: Tensor, name: str) -> Tensor:
    """Join every rank's tensor, by rank. *Collective.*

    Args:
        flat: Contiguous, one axis, of any length; 0 is one, too. It travels as bytes: every dtype
            will do, also those that Horovod does not know, such as bfloat16.
        name: The same string on every rank.
    """
    if not _hvd:
        return flat
    handle = _hvd.allgather_async(flat.view(torch.uint8), name=f"gather.{name}")
    return _wait(handle, flat.device).view(flat.dtype)


def gather_objects(value: T, name: str) -> list[T]:
    """Give every rank's value to every rank, by rank. *Collective.*"""
    return _hvd.allgather_object(value, name=name) if _hvd else [value]


def broadcast(value: Any) -> Any:
    """Give rank 0's value to every rank: tensors in dicts, lists and dataclasses. *Collective.*

    Tensors travel as tensors; what the other ranks pass is not looked at. Unlike
    `hvd.broadcast_optimizer_state` this never takes an optimizer step to make state appear.

    Returns:
        Rank 0's value itself; on other ranks a copy with tensors on the CPU.
    """
    if not _hvd:
        return value
    tensors: list[Tensor] = []
    # The outline has each tensor replaced by its shape and dtype.
    mine = _outline(value, tensors) if is_main_process() else None
    # Named: Horovod would name it by its type, which differs between ranks, and wait for ever.
    outline = _hvd.broadcast_object(mine, root_rank=0, name="outline")
    if not is_main_process():
        value = _with_room(outline, tensors)
    # All are under way before the first is waited for: one after the other, each would take a cycle of
    # Horovod's. A flat view: Horovod has no scalars.
    handles = [
        _hvd.broadcast_async_(tensor.detach().contiguous().view(-1), root_rank=0, name=f"broadcast.{place}")
        for place, tensor in enumerate(tensors)
        if tensor.numel()
    ]
    for handle in handles:
        _wait(handle, torch.device("cpu"))
    return value


def raise_on_all_ranks(action: Callable[[], T]) -> T:
    """Do something on every rank; if it is a user's mistake on any, it is on all. *Collective.*

    Without this a rank that meets a mistake leaves, and the others wait for it.

    Raises:
        UserError: The lowest rank's mistake, on every rank.
    """
    result, mistake = None, None
    try:
        result = action()
    except UserError as error:
        mistake = str(error)
    mistakes = gather_objects(mistake, "mistake")
    for rank, text in enumerate(mistakes):
        if text is not None:
            raise UserError(text if text == mistakes[0] else f"on rank {rank}: {text}")
    return cast(T, result)


def run_on_rank0(action: Callable[[], T], on_wait: Callable[[], None] = lambda: None) -> T:
    """Do something on rank 0 alone and give its result to every rank. *Collective.*

    It may take as long as it likes: the ranks meet every half a second until it is done, so no
    collective times out on a healthy job, and a rank or a link that is lost is still noticed.

    Args:
        action: Runs in a thread of rank 0, so it must not call a collective.
        on_wait: Called on every rank each time they meet.

    Raises:
        UserError: It was a user's mistake, on every rank.
    """
    result: T | None = None
    failure: BaseException | None = None
    threads = torch.get_num_threads()

    def act() -> None:
        nonlocal result, failure
        torch.set_num_threads(threads)  # a new thread would begin with all cores
        try:
            result = action()
        except BaseException as error:
            failure = error

    # A daemon: Ctrl-C must not leave it at work on the folder.
    worker = threading.Thread(target=act, name="rank 0", daemon=True)
    if is_main_process():
        worker.start()
    busy = True
    while busy:
        if is_main_process():
            worker.join(MEET_EVERY_S)
        mine = torch.tensor([int(worker.is_alive())])
        busy = bool(allreduce(mine, "busy").item())
        on_wait()
    if failure is not None and not isinstance(failure, UserError):
        raise failure  # a bug: the other ranks learn of it when this one has ended
    result, mistake = broadcast((result, None if failure is None else str(failure)))
    if mistake is not None:
        raise UserError(mistake)
    return cast(T, result)


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


class _Slot:
    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.dtype = tensor.shape, tensor.dtype


def _outline(value: Any, tensors: list[Tensor]) -> Any:
    """Replace every tensor by a slot, and put it on the list."""

    def take(tensor: Tensor) -> _Slot:
        tensors.append(tensor)
        return _Slot(tensor)

    return convert_all(value, Tensor, take)


def _with_room(outline: Any, tensors: list[Tensor]) -> Any:
    """Replace every slot by an empty tensor, and put that on the list: in the order of `_outline`'s."""

    def make(slot: _Slot) -> Tensor:
        tensors.append(torch.empty(slot.shape, dtype=slot.dtype))
        return tensors[-1]

    return convert_all(outline, _Slot, make)


def _wait(handle: Any, device: torch.device) -> Tensor:
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
    compression: str = "none",
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
        compression: `none`, or `fp16` to halve the bytes sent.
        gradient_groups: See `group_parameters`. None leaves it to Horovod, and gives up
            repeatable sums; `benchmarks/gradient_group.py` measures the difference.

    Returns:
        The Horovod optimizer, or the given one in a lone process.
    """
    if not _hvd:
        return optimizer
    named = list(named_parameters)
    groups = gradient_groups and group_parameters([parameter for _, parameter in named], gradient_groups)
    return _hvd.DistributedOptimizer(
        optimizer,
        named_parameters=named,
        backward_passes_per_step=backward_passes,
        compression=_hvd.Compression.fp16 if compression == "fp16" else _hvd.Compression.none,
        op=_hvd.Sum,
        groups=groups,
    )


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
