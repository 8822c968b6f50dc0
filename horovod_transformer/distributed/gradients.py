"""How gradients are added up over ranks: by Horovod's optimizer, or in steps by host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from horovod_transformer.distributed import embedding_rows, shared_memory
from horovod_transformer.distributed.collectives import (
    HostSets,
    allgather_bytes,
    get_host_sets,
    get_hvd,
    get_local_rank,
    get_rank,
    wait,
)
from horovod_transformer.distributed.error_feedback import ErrorFeedback
from horovod_transformer.distributed.exchange import gather_objects
from horovod_transformer.distributed.host_sums import Host, HostSums, HostThroughHorovod
from horovod_transformer.distributed.shared_memory import SharedMemory
from horovod_transformer.errors import UserError

# What a rank sends to another host at a time. The whole share at once goes one way and then the other: twice
# as long (docs/scaling.md).
PIECE_BYTES = 2**20


class WholeNumbers:
    """Horovod's `Compression` for gradients whose bits are int32 numbers, which they travel as."""

    @staticmethod
    def compress(tensor: Tensor) -> tuple[Tensor, None]:
        """Give Horovod the numbers behind `parameter.grad`."""
        return tensor.view(torch.int32), None

    @staticmethod
    def decompress(tensor: Tensor, context: None) -> Tensor:
        """Take them back."""
        return tensor.view(torch.float32)


def distribute_optimizer(
    optimizer: Optimizer,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    backward_passes: int,
    compression: str = "none",
    gradient_groups: int | None = 1,
    whole_numbers: bool = False,
    late_tokens: int = 0,
) -> Optimizer:
    """Make the optimizer sum gradients over ranks during the last of `backward_passes`. *Collective.*

    Gradients go in fixed groups: with more than two ranks Horovod otherwise fuses them in
    whatever order they become ready, and float sums in another order differ in their last bits
    from run to run. Several groups are as repeatable as one, because `setup_horovod` forbids
    Horovod to fuse groups with each other.

    Args:
        optimizer: A plain torch optimizer.
        named_parameters: The model's, to name the collectives alike on every rank.
        backward_passes: Backward passes between two updates.
        compression: As `distributed.compression`.
        gradient_groups: See `group_parameters`. None leaves it to Horovod, and gives up
            repeatable sums; `benchmarks/gradient_group.py` measures the difference.
        whole_numbers: Gradients hold the bits of int32 numbers, see `training.exact_sums`.
        late_tokens: In a rank's last backward pass, at most. Where they are few, sums by host on CPUs send
            the gradient of the first parameter, the tied embedding, in two parts: see `embedding_rows`. 0: as
            a whole.

    Returns:
        The optimizer with Horovod's methods `synchronize` and `skip_synchronize`; the given one in a lone
        process. Where the embedding's gradient leaves in two parts it has `send_embedding` as well.

    Raises:
        UserError: The ranks of a host cannot share memory.
    """
    hvd, sets = get_hvd(), get_host_sets()
    if hvd is None:
        return optimizer
    named = list(named_parameters)
    parameters = [parameter for _, parameter in named]
    groups = gradient_groups and group_parameters(parameters, gradient_groups)
    if sets and groups:
        return _sum_by_hosts(
            optimizer, groups, backward_passes, compression, whole_numbers, late_tokens, sets
        )
    # On a single host bfloat16 would save nothing.
    kind = WholeNumbers if whole_numbers else getattr(hvd.Compression, compression.replace("bf16", "none"))
    return hvd.DistributedOptimizer(
        optimizer,
        named_parameters=named,
        backward_passes_per_step=backward_passes,
        compression=kind,
        op=hvd.Sum,
        groups=groups,
    )


def send_embedding(optimizer: Optimizer) -> Callable[[Tensor, Tensor], None] | None:
    """What sends the first part of the embedding's gradient, see `HostSums.send_embedding`; None: nothing."""
    return getattr(optimizer, "send_embedding", None)


def error_feedback(optimizer: Optimizer) -> ErrorFeedback | None:
    """What keeps the remainders of the sums of this optimizer's gradients, if they travel as bfloat16."""
    return getattr(optimizer, "error_feedback", None)


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


def padded(size: int, pieces: int) -> int:
    """The next number, from `size`, that can be cut into equal pieces."""
    return size + -size % pieces


def _sum_by_hosts(
    optimizer: Optimizer,
    groups: Sequence[Sequence[nn.Parameter]],
    passes: int,
    compression: str,
    whole_numbers: bool,
    late_tokens: int,
    sets: HostSets,
) -> Optimizer:
    device = groups[0][0].device
    ranks, vocab_size = sets.ranks * sets.hosts, len(groups[-1][0])
    in_two = (
        len(groups) > 1 and device.type == "cpu" and embedding_rows.are_few(ranks, late_tokens, vocab_size)
    )
    if in_two:
        *others, embedding = groups
        groups = [embedding, *others]
    dtype = torch.int32 if whole_numbers else torch.float32
    # Every share can be cut into a piece for each host.
    pieces = sets.ranks * sets.hosts
    sizes = [padded(sum(parameter.numel() for parameter in group), pieces) for group in groups]
    if device.type == "cpu" and sets.ranks > 1:
        host = share_memory(sizes, dtype, sets)
    else:
        host = HostThroughHorovod(
            dtype, sizes, sets.ranks, partial(_reduce_scatter, sets.host), partial(_all_gather, sets.host)
        )
    between: Callable[[Tensor, int], Tensor]
    if compression == "bf16":
        feedback = ErrorFeedback(
            [size // sets.ranks for size in sizes],
            sets.hosts,
            partial(_exchange, sets),
            lambda piece, name: _exchange(sets, piece.repeat(sets.hosts), name),  # faster than an all-gather
            device,
        )
        optimizer.error_feedback = feedback  # type: ignore[attr-defined]
        between = feedback.sum
    elif compression == "fp16":
        halves = torch.empty(max(sizes) // sets.ranks, dtype=torch.float16, device=device)
        between = partial(_sum_halved, sets.likes, halves)
    else:
        between = partial(_sum, sets.likes)
    gather = _gather_rows if in_two else None
    return HostSums(groups, passes, host, between, gather).attach_to(optimizer)


def share_memory(sizes: Sequence[int], dtype: torch.dtype, sets: HostSets) -> Host:
    """Sums within a host through shared memory. *Collective.*

    Args:
        sizes: Numbers in each group of gradients, zeros at its end included.
        dtype: Of four bytes.
        sets: The ranks of this host, and all others.

    Raises:
        UserError: There is too little of it, or ranks of one host have a /dev/shm each.
    """
    place, first = get_local_rank(), get_rank() - get_local_rank()
    size = 4 * (sets.ranks + 1) * sum(sizes)
    name, problem, memory = "", "", None
    try:
        name = shared_memory.make_file(size) if place == 0 else ""
    except OSError as error:
        problem = str(error)
    made: list[tuple[str, str]] = gather_objects((name, problem), "shared memory")
    try:
        if not any(each for _, each in made):
            memory = shared_memory.map_file(made[first][0], size)
    except OSError as error:
        problem = str(error)
    problems = [each for each in gather_objects(problem, "shared memory mapped") if each]
    if name:
        shared_memory.remove_file(name)
    if problems or memory is None:
        raise UserError(
            f"the ranks of a host cannot share {size / 1e6:,.0f} MB of memory ({problems[0]}): give them "
            "that much in one /dev/shm, or set distributed.hierarchical: off and no compression but fp16"
        )
    rows = torch.frombuffer(memory, dtype=dtype).view(sets.ranks + 1, -1)
    return SharedMemory(rows, place, sizes, partial(_meet, sets.host))


def _meet(ranks: Any, name: str) -> None:
    """Return when all these ranks have come here. *Collective.*"""
    _sum(ranks, torch.zeros(1), name)


def _sum(ranks: Any, flat: Tensor, name: str | int) -> Tensor:
    hvd = get_hvd()
    handle = hvd.allreduce_async_(flat, op=hvd.Sum, name=f"sum by host.{name}", process_set=ranks)
    return wait(handle, flat.device)


def _sum_halved(ranks: Any, halves: Tensor, flat: Tensor, name: str | int) -> Tensor:
    # In memory that is there: new memory for each group would cost more than the arithmetic.
    return flat.copy_(_sum(ranks, halves[: len(flat)].copy_(flat), name))


def _reduce_scatter(ranks: Any, flat: Tensor, name: str) -> Tensor:
    hvd = get_hvd()
    return wait(hvd.reducescatter_async(flat, op=hvd.Sum, name=name, process_set=ranks), flat.device)


def _all_gather(ranks: Any, flat: Tensor, name: str) -> Tensor:
    handle = get_hvd().allgather_async(flat.view(torch.uint8), name=name, process_set=ranks)
    return wait(handle, flat.device).view(flat.dtype)


def _gather_rows(rows: Tensor) -> Tensor:
    gathered = allgather_bytes(rows.view(torch.uint8), "embedding rows")
    return gathered.view(torch.int32)


def _exchange(sets: HostSets, flat: Tensor, name: str) -> Tensor:
    raw = flat.view(torch.uint8).view(sets.hosts, -1)
    handles = []
    for number, piece in enumerate(raw.split(PIECE_BYTES, dim=1)):
        splits = torch.full((sets.hosts,), piece.shape[1], dtype=torch.int32)
        handles.append(
            get_hvd().alltoall_async(
                piece.reshape(-1), splits=splits, name=f"{name}.{number}", process_set=sets.likes
            )
        )
    received = [wait(handle, flat.device)[0].view(sets.hosts, -1) for handle in handles]
    return torch.cat(received, dim=1).view(-1).view(flat.dtype)
