"""The one place that knows Horovod: starting it, and the collectives that training needs.

Every function also works in a lone process, where nothing is exchanged and Horovod need not even
be installed. A function marked *collective* must be called by all ranks, in the same order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from horovod_transformer.errors import UserError

# Horovod's background thread wakes this often (milliseconds) to look for work. Its default of
# 1 ms takes a quarter of a CPU run's speed: the thread competes with the ranks for the cores.
CPU_CYCLE_TIME_MS = "10"
# Seconds a Gloo operation waits for the other ranks; it also covers start-up, which takes 27 s
# for 8 ranks on two cores, too close to Gloo's own 30.
GLOO_TIMEOUT_S = "90"

T = TypeVar("T")

_hvd: Any = None  # horovod.torch, once there is more than one process


def setup_horovod(require_distributed: bool = False) -> tuple[int, int, int, bool]:
    """Join the Horovod job this process was launched into, or carry on alone. *Collective.*

    Picks this rank's GPU, and on a CPU its number of threads.

    Args:
        require_distributed: Treat a lone process as a mistake.

    Returns:
        World size, rank, local rank (rank within this machine), and whether a GPU is used.

    Raises:
        UserError: The process is alone though it must not be, was started by a launcher that
            Horovod does not know, or Horovod or its GPU support is missing.
    """
    global _hvd
    announced = int(os.environ.get("HOROVOD_SIZE", "1"))
    use_cuda = torch.cuda.is_available()
    if announced > 1:
        if _hvd is None:
            _hvd = _start_horovod(announced, use_cuda)
    else:
        _refuse_foreign_launchers()
        if require_distributed:
            raise UserError(
                "this is a single process, but distributed training was asked for; launch it with "
                "`horovodrun -np 2 python ...` (2 is the number of processes)"
            )
    if use_cuda:
        index = local_device_index(get_local_rank(), torch.cuda.device_count())
        torch.cuda.set_device(index)
        mine = str(torch.cuda.get_device_properties(index).uuid)
        require_own_devices(_hvd.allgather_object(mine, name="device") if _hvd else [mine])
    set_threads(None)
    return get_world_size(), get_rank(), get_local_rank(), use_cuda


def _start_horovod(announced: int, use_cuda: bool) -> Any:
    if importlib.util.find_spec("horovod") is None:
        raise UserError("launched for several processes, but Horovod is not installed; run `make install`")
    # Horovod reads these once, when it starts.
    os.environ.setdefault("HOROVOD_GLOO_TIMEOUT_SECONDS", GLOO_TIMEOUT_S)
    if not use_cuda:
        os.environ.setdefault("HOROVOD_CYCLE_TIME", CPU_CYCLE_TIME_MS)
    import horovod.torch as hvd

    hvd.init()
    if hvd.size() != announced:
        # Otherwise each process would train alone and overwrite the others' files.
        raise UserError(f"the launcher announced {announced} processes but Horovod found {hvd.size()}")
    if use_cuda and not hvd.nccl_built():
        raise UserError(
            "this machine has a GPU but Horovod was built without NCCL; "
            "rebuild it with `REBUILD=1 HOROVOD_BUILD=cuda make install`"
        )
    return hvd


def _refuse_foreign_launchers() -> None:
    """N processes that do not know of each other would each train alone, on the same files."""
    for variable, launcher in (
        ("OMPI_COMM_WORLD_SIZE", "mpirun"),
        ("PMI_SIZE", "mpiexec"),
        ("SLURM_STEP_NUM_TASKS", "srun"),
        ("WORLD_SIZE", "torchrun"),
    ):
        if os.environ.get(variable, "1") not in ("", "1"):
            raise UserError(
                f"{launcher} started {os.environ[variable]} processes ({variable}) that Horovod does not "
                "know of; launch with `horovodrun -np N python ...`"
            )


def local_device_index(local_rank: int, visible: int) -> int:
    """Choose this rank's GPU, however the launcher shows them.

    Args:
        local_rank: Rank within this machine.
        visible: GPUs this process can see: all of the machine's, or only its own.

    Raises:
        UserError: More ranks than GPUs.
    """
    if visible == 1:
        return 0
    if local_rank >= visible:
        raise UserError(
            f"this machine shows {visible} GPUs, but rank {local_rank} of it (counted from 0) needs one "
            "of its own; start at most one process per GPU"
        )
    return local_rank


def require_own_devices(uuids: Sequence[str]) -> None:
    """Refuse two ranks on one GPU: NCCL would end in an error that names neither.

    Args:
        uuids: The GPU of each rank, by rank.

    Raises:
        UserError: Two ranks have the same one.
    """
    for rank, uuid in enumerate(uuids):
        first = uuids.index(uuid)
        if first != rank:
            raise UserError(
                f"ranks {first} and {rank} would share one GPU; start one process per GPU, and if you set "
                "CUDA_VISIBLE_DEVICES yourself, give each rank another one"
            )


def set_threads(threads: int | None) -> None:
    """Set torch's CPU threads of this rank; None shares the cores out among the machine's ranks.

    `OMP_NUM_THREADS` in the environment wins over the sharing, an explicit number over both.
    """
    if threads is None:
        if os.environ.get("OMP_NUM_THREADS"):
            return
        # Slurm gives each task its own cores; elsewhere the ranks of a machine share them.
        own = os.environ.get("SLURM_CPUS_PER_TASK")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = min(int(own), cores) if own and own.isdigit() else cores // get_local_size()
    torch.set_num_threads(max(1, threads))


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

    For a loss use `sum_over_ranks` on (sum, count) instead: ranks may hold different numbers of
    tokens.

    Args:
        value: This rank's number.
        name: The same string on every rank; tells concurrent averages apart.
    """
    number = torch.as_tensor(value, dtype=torch.float64).detach().reshape(1).cpu()
    return float(_hvd.allreduce(number, op=_hvd.Average, name=f"metric.{name}") if _hvd else number)


def sum_over_ranks(values: Tensor, name: str) -> Tensor:
    """Add a tensor up over all ranks; float64 or int64 keeps it exact enough. *Collective.*"""
    return _hvd.allreduce(values, op=_hvd.Sum, name=f"sum.{name}") if _hvd else values


def start_sum_over_ranks(values: Tensor, name: str) -> tuple[Any, Tensor]:
    """Begin `sum_over_ranks` in the background; `finish_sum_over_ranks` waits for it. *Collective.*"""
    return (_hvd.allreduce_async_(values, op=_hvd.Sum, name=f"sum.{name}") if _hvd else None), values


def finish_sum_over_ranks(pending: tuple[Any, Tensor]) -> Tensor:
    """Wait for a sum that was begun, and return it."""
    handle, values = pending
    return _hvd.synchronize(handle) if handle is not None else values


def wait_for_all() -> None:
    """Return when every rank has come here. *Collective.*"""
    if _hvd:
        _hvd.barrier()


def broadcast(value: Any) -> Any:
    """Give rank 0's value to every rank: tensors in dicts, lists and dataclasses. *Collective.*

    Tensors travel as tensors, one at a time; what the other ranks pass is not looked at. Unlike
    `hvd.broadcast_optimizer_state` this never takes an optimizer step to make state appear.

    Returns:
        Rank 0's value; on other ranks a copy with tensors on the CPU.
    """
    if not _hvd:
        return value
    tensors: list[Tensor] = []
    # The outline has each tensor replaced by its place in the list, with its shape and dtype.
    mine = _outline(value, tensors) if is_main_process() else None
    # Named: Horovod would name it by its type, which differs between ranks, and wait for ever.
    outline = _hvd.broadcast_object(mine, root_rank=0, name="outline")
    slots: dict[int, Tensor] = dict(enumerate(tensors))
    return _fill(outline, slots)


def together(action: Callable[[], T]) -> T:
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
    mistakes = _hvd.allgather_object(mistake, name="mistake") if _hvd else [mistake]
    for rank, text in enumerate(mistakes):
        if text is not None:
            raise UserError(text if text == mistakes[0] else f"on rank {rank}: {text}")
    return cast(T, result)


def from_main_process(action: Callable[[], T]) -> T:
    """Do something on rank 0 alone and give its result to every rank. *Collective.*

    Raises:
        UserError: It was a user's mistake, on every rank.
    """
    outcome: tuple[T | None, str | None] = (None, None)
    if is_main_process():
        try:
            outcome = (action(), None)
        except UserError as error:
            outcome = (None, str(error))
    result, mistake = broadcast(outcome)
    if mistake is not None:
        raise UserError(mistake)
    return result


@contextlib.contextmanager
def lost_ranks_explained() -> Iterator[None]:
    """Within this context a rank that others abandon says so in one line, without a traceback.

    Raises:
        UserError: Another rank has ended; what it printed tells why.
    """
    try:
        yield
    except RuntimeError as error:
        # Other internal errors of Horovod, such as shapes that differ between ranks, are bugs of ours.
        signs = ("has been shut down", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
        if type(error).__name__ == "HorovodInternalError" and any(sign in str(error) for sign in signs):
            raise UserError("another process of this job has ended; what it printed tells why") from None
        raise


class _Slot:
    def __init__(self, place: int, tensor: Tensor) -> None:
        self.place, self.shape, self.dtype = place, tensor.shape, tensor.dtype


def _outline(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors.append(value)
        return _Slot(len(tensors) - 1, value)
    if isinstance(value, dict):
        return {key: _outline(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_outline(item, tensors) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **_outline(vars(value), tensors))
    return value


def _fill(outline: Any, tensors: dict[int, Tensor]) -> Any:
    if isinstance(outline, _Slot):
        tensor = tensors.get(outline.place)
        if tensor is None:
            tensor = torch.empty(outline.shape, dtype=outline.dtype)
        if tensor.numel():
            # A flat view: Horovod has no scalars.
            flat = tensor.detach().contiguous().reshape(-1)
            tensor = _hvd.broadcast(flat, root_rank=0, name=f"broadcast.{outline.place}").reshape(
                outline.shape
            )
        return tensor
    if isinstance(outline, dict):
        return {key: _fill(item, tensors) for key, item in outline.items()}
    if isinstance(outline, list | tuple):
        return type(outline)(_fill(item, tensors) for item in outline)
    if dataclasses.is_dataclass(outline) and not isinstance(outline, type):
        return dataclasses.replace(outline, **_fill(vars(outline), tensors))
    return outline


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the names and exact bytes of a model's parameters, as hex."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_equal_weights(model: nn.Module, when: str) -> str:
    """Prove that every rank holds the same weights, bit for bit. *Collective.*

    Args:
        model: The model to compare.
        when: What just happened, for the message.

    Returns:
        The common digest.

    Raises:
        RuntimeError: Ranks differ; the message names them. They would drift apart in silence.
    """
    mine = weights_digest(model)
    digests = _hvd.allgather_object(mine, name="digest") if _hvd else [mine]
    different = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if different:
        raise RuntimeError(f"after {when} the weights of ranks {different} differ from those of rank 0")
    return mine


def distribute_optimizer(
    optimizer: Optimizer,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    backward_passes: int,
    compression: str = "none",
    num_groups: int | None = 1,
) -> Optimizer:
    """Make the optimizer sum gradients over ranks during the last of `backward_passes`.

    All gradients go as one group: with more than two ranks Horovod otherwise fuses them in
    whatever order they become ready, and float sums in another order differ in their last bits
    from run to run.

    Args:
        optimizer: A plain torch optimizer.
        named_parameters: The model's, to name the collectives alike on every rank.
        backward_passes: Backward passes between two updates.
        compression: `none`, or `fp16` to halve the bytes sent.
        num_groups: How many groups gradients are sent in; None leaves it to Horovod, and gives up
            repeatable sums. `benchmarks/gradient_group.py` measures the difference.

    Returns:
        The Horovod optimizer, or the given one in a lone process.
    """
    if not _hvd:
        return optimizer
    return _hvd.DistributedOptimizer(
        optimizer,
        named_parameters=list(named_parameters),
        backward_passes_per_step=backward_passes,
        compression=_hvd.Compression.fp16 if compression == "fp16" else _hvd.Compression.none,
        op=_hvd.Sum,
        num_groups=num_groups,
    )


def finish_gradient_sum(optimizer: Optimizer) -> None:
    """Wait until all gradients hold the sum over ranks. *Collective.*"""
    if _hvd:
        optimizer.synchronize()  # type: ignore[attr-defined]


def gradients_already_summed(optimizer: Optimizer) -> contextlib.AbstractContextManager[None]:
    """Within this context `optimizer.step()` does not sum gradients a second time."""
    return optimizer.skip_synchronize() if _hvd else contextlib.nullcontext()  # type: ignore[attr-defined]
