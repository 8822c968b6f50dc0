"""State copied to memory of its own, so that training goes on while it is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from horovod_transformer.nested import convert_all


class Snapshots:
    """Copies one after the other into the same memory, without making the host wait for a GPU.

    Memory of a GPU goes to pinned buffers that are kept for the next time: pinning is slow, and copies to
    ordinary memory are slow and held up by the host, tensor by tensor. The copies stay in the stream in which
    training goes on: the next update cannot change what has not been copied, and no more is gained from a
    stream of their own, for they take a fraction of an update. On a CPU each copy is a fresh one.

    Args:
        is_far: Whether a tensor is on a GPU; another answer for tests.
        new_buffer: Makes host memory like a tensor; another one for tests.
        new_event: Makes a mark in the GPU's stream; another one for tests.
    """

    def __init__(
        self,
        is_far: Callable[[Tensor], bool] = lambda tensor: tensor.is_cuda,
        new_buffer: Callable[[Tensor], Tensor] | None = None,
        new_event: Callable[[], Any] | None = None,
    ) -> None:
        self._is_far = is_far
        self._new_buffer, self._new_event = new_buffer or _pinned_like, new_event or torch.cuda.Event
        self._buffers: list[Tensor] = []

    def take(self, value: Any) -> tuple[Any, Callable[[], None]]:
        """Begin to copy nested state; what was taken before is overwritten.

        Returns:
            The copy, and a function that waits, in any thread, until it is whole.
        """
        before, self._buffers = iter(self._buffers), []

        def copy(tensor: Tensor) -> Tensor:
            tensor = tensor.detach()
            if not self._is_far(tensor):
                return tensor.to("cpu", copy=True)
            # State of the same structure has its tensors in the same order.
            buffer = next(before, None)
            if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
                buffer = self._new_buffer(tensor)
            self._buffers.append(buffer)
            return buffer.copy_(tensor, non_blocking=True)

        copied = convert_all(value, Tensor, copy)
        if not self._buffers:
            return copied, lambda: None
        event = self._new_event()
        event.record()
        return copied, event.synchronize


def _pinned_like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
