"""Threads that compute side by side on a CPU, each with one thread of torch's own.

Left to itself, torch divides every operation among its threads, and some results then depend on their number:
the gradients of a LayerNorm, matrix products that are cut along their inner side. Here whole passes, matrices
or batches are divided among threads instead, so that no result depends on how many there are. That is
faster for small models, too: threads meet once an update and not in every operation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import nn

Item = TypeVar("Item")
Result = TypeVar("Result")
Module = TypeVar("Module", bound=nn.Module)


class Workers:
    """Several threads, this one among them.

    Autocast and gradient modes are each thread's own: what is called here sets them itself.

    Args:
        number: How many threads compute; 1 leaves all as it is, also how many threads torch uses.
    """

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self._pool: ThreadPoolExecutor | None = None
        if number > 1:
            torch.set_num_threads(1)
            self._pool = ThreadPoolExecutor(number - 1, "worker", lambda: torch.set_num_threads(1))

    def start(self, function: Callable[[], Result]) -> Future[Result]:
        """Call a function in another thread."""
        assert self._pool is not None
        return self._pool.submit(function)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Call a function with each item, and return the results in the items' order."""
        items = list(items)
        results: dict[int, Result] = {}
        numbers = iter(range(len(items)))  # each thread takes the next one when it is free

        def work() -> None:
            for number in numbers:
                results[number] = function(items[number])

        others = [self.start(work) for _ in range(min(self.number, len(items)) - 1)]
        try:
            work()
        finally:
            for other in others:
                other.result()
        return [results[number] for number in range(len(items))]


def twin(module: Module) -> Module:
    """A copy with the same weights in the same memory, and gradients of its own."""
    # What is in the memo is not copied.
    memo: dict[int, object] = {id(buffer): buffer for buffer in module.buffers()}
    memo |= {id(parameter): nn.Parameter(parameter.detach()) for parameter in module.parameters()}
    return copy.deepcopy(module, memo)
