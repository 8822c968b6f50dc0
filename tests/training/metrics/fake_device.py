"""A CPU that plays the part of a GPU whose numbers are read late."""

from __future__ import annotations

import torch

from horovod_transformer.training.metrics.deferred import DeferredReader

CPU = torch.device("cpu")


class FakeEvent:
    """A mark that the device reaches when it is waited for."""

    def __init__(self) -> None:
        self.waited = 0

    def record(self) -> None:
        self.waited = 0

    def synchronize(self) -> None:
        self.waited += 1


def fake_reader(length: int = 4) -> DeferredReader:
    """A reader with buffers, as for a GPU."""
    return DeferredReader(CPU, length, lambda n: torch.full((n,), -1.0, dtype=torch.float64), FakeEvent)
