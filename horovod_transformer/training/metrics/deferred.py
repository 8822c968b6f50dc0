"""A few numbers from the device, read while it is already at the next update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class DeferredReader:
    """Copies numbers to the host in the background, to be read when they are wanted.

    On a GPU they go through pinned memory: only whoever reads them waits, and only until the GPU has
    come past the copy. Two buffers are used in turn, so that many copies may be unread at a time.
    On a CPU numbers are there at once.

    Args:
        device: Where the numbers are.
        length: How many at a time.
        new_buffer: Makes a buffer on the host; another one for tests.
        new_event: Makes a mark in the device's stream; another one for tests.
    """

    def __init__(
        self,
        device: torch.device,
        length: int,
        new_buffer: Callable[[int], Tensor] | None = None,
        new_event: Callable[[], Any] | None = None,
    ) -> None:
        self._buffers: list[tuple[Tensor, Any]] | None = None
        if device.type == "cuda" or new_buffer is not None:
            make_buffer, make_event = new_buffer or _pinned, new_event or torch.cuda.Event
            self._buffers = [(make_buffer(length), make_event()) for _ in range(2)]
        self._unread: list[Tensor] = []

    def begin(self, numbers: Tensor) -> Callable[[], list[float]]:
        """Begin to copy float64 numbers, (length,).

        Returns:
            A function that waits for them and returns them; to be called once.
        """
        if self._buffers is None:
            return numbers.tolist
        buffer, event = self._buffers.pop(0)
        self._buffers.append((buffer, event))
        assert all(buffer is not unread for unread in self._unread), "the copy before the last was never read"
        self._unread.append(buffer)
        buffer.copy_(numbers, non_blocking=True)
        event.record()

        def read() -> list[float]:
            event.synchronize()
            self._unread = [unread for unread in self._unread if unread is not buffer]
            return buffer.tolist()

        return read


def _pinned(length: int) -> Tensor:
    return torch.empty(length, dtype=torch.float64, pin_memory=True)
