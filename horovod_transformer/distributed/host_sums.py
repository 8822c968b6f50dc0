"""Sums of gradients in two steps: within each host, then between hosts.

A ring over all ranks sends nearly twice each gradient out of every host. Here the ranks of a host first add
theirs up, each rank a share of the numbers (reduce-scatter); then the ranks that hold the same share, one on
each host, add these up (all-reduce); at last the ranks of a host put the shares together (all-gather). Only
the second step leaves the host (Mikami et al., Massively Distributed SGD, 2018, arXiv:1811.05233).

Horovod has this for NCCL (HOROVOD_TORUS_ALLREDUCE). This is for Gloo, out of Horovod's process sets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class HostSums:
    """Adds a model's gradients up over all ranks, group by group, during the last backward pass of an update.

    The three operations of a group start one after the other in a thread of their own, and those of the next
    group after them: Horovod never has two to fuse, which would change the order in which numbers are added.

    Args:
        groups: Parameters whose gradients travel together, in the order of the backward pass.
        passes: Backward passes in an update.
        compression: With the interface of Horovod's compressions.
        steps: The three operations; each takes a flat tensor and a name.
        ranks_per_host: Into how many shares a group is cut.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[nn.Parameter]],
        passes: int,
        compression: Any,
        steps: Sequence[Callable[[Tensor, str], Tensor]],
        ranks_per_host: int,
    ) -> None:
        self._groups = [list(group) for group in groups]
        self._passes = passes
        self._compression = compression
        self._steps = list(steps)
        self._ranks_per_host = ranks_per_host
        self._thread = ThreadPoolExecutor(1, "sums")
        self._begin_update()
        for number, group in enumerate(self._groups):
            for parameter in group:
                parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._count(number))

    def attach_to(self, optimizer: Optimizer) -> Optimizer:
        """Give a plain optimizer two methods of Horovod's: `synchronize` and `skip_synchronize`."""
        optimizer.synchronize = self.synchronize  # type: ignore[attr-defined]
        optimizer.skip_synchronize = contextlib.nullcontext  # type: ignore[attr-defined]
        return optimizer

    def synchronize(self) -> None:
        """Wait for the sums; then each gradient holds that of all ranks. *Collective.*"""
        for number in range(len(self._sums), len(self._groups)):  # a parameter had no gradient in some pass
            self._send(number)
        for number, (future, context) in self._sums.items():
            summed = self._compression.decompress(future.result(), context)
            start = 0
            for parameter in self._groups[number]:
                parameter.grad = summed[start : start + parameter.numel()].view_as(parameter)
                start += parameter.numel()
        self._begin_update()

    def _begin_update(self) -> None:
        self._left = [len(group) * self._passes for group in self._groups]
        self._sums: dict[int, tuple[Future[Tensor], Any]] = {}

    def _count(self, number: int) -> None:
        self._left[number] -= 1
        # In one order on all ranks, also where a later group is ready first.
        while len(self._sums) < len(self._groups) and self._left[len(self._sums)] == 0:
            self._send(len(self._sums))

    def _send(self, number: int) -> None:
        group = self._groups[number]
        grads = [torch.zeros_like(each) if each.grad is None else each.grad for each in group]
        rest = -sum(grad.numel() for grad in grads) % self._ranks_per_host  # to shares of one size
        flat = torch.cat([grad.reshape(-1) for grad in grads] + [grads[0].new_zeros(rest)])
        compressed, context = self._compression.compress(flat)
        self._sums[number] = self._thread.submit(self._sum, compressed, str(number)), context

    def _sum(self, flat: Tensor, name: str) -> Tensor:
        for step in self._steps:
            flat = step(flat, name)
        return flat
