"""Sums of gradients in three steps: within each host, between hosts, and back to the ranks of each host.

A ring over all ranks sends nearly twice each gradient out of every host. Here the ranks of a host first add
theirs up, each rank a share of the numbers; then the ranks that hold the same share, one on each host, add
these up; at last the ranks of a host put the shares together. Only the second step leaves the host (Mikami et
al., Massively Distributed SGD, 2018, arXiv:1811.05233), and only there are numbers compressed.

Horovod has this for NCCL (HOROVOD_TORUS_ALLREDUCE), but not for Gloo, nor with bfloat16.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from horovod_transformer.distributed import embedding_rows


class Host(Protocol):
    """How the ranks of a host add up: for each group of gradients `put`, then `share`, then `join`."""

    def put(self, group: int, gradients: Sequence[Tensor]) -> None:
        """Hand over this rank's gradients of a group."""

    def share(self, group: int) -> Tensor:
        """Return this rank's share of the host's sum, flat; the caller may write into it. *Collective.*"""

    def join(self, group: int, share: Tensor) -> Tensor:
        """Return the host's shares in a row, flat; there may be more numbers than were put. *Collective.*"""


class HostSums:
    """Adds a model's gradients up over all ranks, group by group, during the last backward pass of an update.

    The steps of a group follow each other in a thread of their own, and those of the next group come after
    them: Horovod never has two sums to fuse, which would change the order in which numbers are added.

    Args:
        groups: Parameters whose gradients travel together, in the order of the backward pass.
        passes: Backward passes in an update.
        host: Adds up within the host.
        between_hosts: Adds this rank's share of a group, told by its number, up over hosts. May work in
            place.
        gather_rows: Puts the rows of all ranks, int32 (rows, numbers), behind one another, by rank.
            *Collective.* If given, the first group is the tied embedding alone, and leaves in two parts: see
            `send_embedding`.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[nn.Parameter]],
        passes: int,
        host: Host,
        between_hosts: Callable[[Tensor, int], Tensor],
        gather_rows: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._groups = [list(group) for group in groups]
        self._passes = passes
        self._host = host
        self._between_hosts = between_hosts
        self._gather_rows = gather_rows
        self._late_tokens: Tensor | None = None
        self._thread = ThreadPoolExecutor(1, "sums")
        self._begin_update()
        for number, group in enumerate(self._groups):
            for parameter in group:
                parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._count(number))

    def attach_to(self, optimizer: Optimizer) -> Optimizer:
        """Give a plain optimizer two methods of Horovod's: `synchronize` and `skip_synchronize`."""
        optimizer.synchronize = self.synchronize  # type: ignore[attr-defined]
        optimizer.skip_synchronize = contextlib.nullcontext  # type: ignore[attr-defined]
        if self._gather_rows:
            optimizer.send_embedding = self.send_embedding  # type: ignore[attr-defined]
        return optimizer

    def send_embedding(self, gradient: Tensor, tokens: Tensor) -> None:
        """Send the embedding's gradient but for the rows of some tokens; `synchronize` sends those.

        Args:
            gradient: All that is going to be in `grad` at the end, but for the rows of `tokens`.
            tokens: Int64, each once.
        """
        with embedding_rows.without(gradient, tokens):
            self._send(0, [gradient])
        self._late_tokens = tokens

    def synchronize(self) -> None:
        """Wait for the sums; then each gradient holds that of all ranks. *Collective.*"""
        for number in range(len(self._sums), len(self._groups)):  # a parameter had no gradient in some pass
            self._send(number)
        late_rows = self._send_rows() if self._gather_rows else None
        for group, future in zip(self._groups, self._sums, strict=True):
            summed = future.result()
            sizes = [parameter.numel() for parameter in group]
            for parameter, numbers in zip(group, summed[: sum(sizes)].split(sizes), strict=True):
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                bits_of(parameter.grad, summed.dtype).copy_(numbers)
        if late_rows:
            (embedding,) = self._groups[0]
            assert embedding.grad is not None
            embedding_rows.add(embedding.grad.view(summed.dtype), late_rows.result())
        self._begin_update()

    def _begin_update(self) -> None:
        self._left = [len(group) * self._passes for group in self._groups]
        self._sums: list[Future[Tensor]] = []
        self._late_tokens = None

    def _count(self, number: int) -> None:
        self._left[number] -= 1
        # In one order on all ranks, also where a later group is ready first.
        while len(self._sums) < len(self._groups) and self._left[len(self._sums)] == 0:
            self._send(len(self._sums))

    def _send(self, number: int, gradients: Sequence[Tensor] | None = None) -> None:
        if gradients is None:
            group = self._groups[number]
            gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in group]
        self._host.put(number, gradients)
        self._sums.append(self._thread.submit(self._sum, number))

    def _send_rows(self) -> Future[Tensor]:
        (embedding,) = self._groups[0]
        assert self._gather_rows and embedding.grad is not None
        tokens = self._late_tokens
        if tokens is None:  # all of it has left
            tokens = torch.empty(0, dtype=torch.int64)
        return self._thread.submit(self._gather_rows, embedding_rows.pack(embedding.grad, tokens))

    def _sum(self, number: int) -> Tensor:
        return self._host.join(number, self._between_hosts(self._host.share(number), number))


class HostThroughHorovod:
    """Sums within a host by Horovod's own operations: for GPUs, where NCCL has fast ones.

    Args:
        dtype: Of what is added up: float32, or the int32 whose bits gradients hold.
        sizes: Numbers in each group, multiples of `ranks`; more than are put, if need be.
        ranks: Of the host. A lone one keeps its numbers.
        reduce_scatter: Adds a flat tensor up over the host's ranks and returns this rank's share.
        all_gather: Puts the shares of the host's ranks together. Both also take a name.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        sizes: Sequence[int],
        ranks: int,
        reduce_scatter: Callable[[Tensor, str], Tensor],
        all_gather: Callable[[Tensor, str], Tensor],
    ) -> None:
        self._dtype, self._sizes, self._ranks = dtype, sizes, ranks
        self._reduce_scatter, self._all_gather = reduce_scatter, all_gather
        self._flat: dict[int, Tensor] = {}

    def put(self, group: int, gradients: Sequence[Tensor]) -> None:
        """Copy them in a row, and zeros behind them."""
        if group not in self._flat:  # new memory each time would cost more than the copy
            self._flat[group] = gradients[0].new_zeros(self._sizes[group]).view(self._dtype)
        start = 0
        for gradient in gradients:
            some = self._flat[group][start : start + gradient.numel()]
            start += len(some.copy_(bits_of(gradient, self._dtype)))

    def share(self, group: int) -> Tensor:
        """See `Host`."""
        flat = self._flat[group]
        return flat if self._ranks == 1 else self._reduce_scatter(flat, f"share.{group}")

    def join(self, group: int, share: Tensor) -> Tensor:
        """See `Host`."""
        return share if self._ranks == 1 else self._all_gather(share, f"join.{group}")


def bits_of(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous tensor's memory, flat, as numbers of another type of the same size."""
    return tensor.view(-1).view(dtype)
