"""How fast a run is, how much of the hardware it uses, and how much memory it takes."""

from __future__ import annotations

import resource
import time
from collections import deque

import torch

# Dense peak of the matrix units in FLOP/s, by words in the device's name, the first that fit: NVIDIA's
# data sheets, without sparsity; fp32 is multiplied in TF32 (`precision.set_arithmetic`). Other cards have
# no figure here.
PEAK_FLOPS = (
    (("H100", "PCIe"), {"bf16": 756e12, "fp16": 756e12, "fp32": 378e12}),
    (("H100", "NVL"), {"bf16": 835e12, "fp16": 835e12, "fp32": 417.5e12}),
    (("H100",), {"bf16": 989e12, "fp16": 989e12, "fp32": 494.5e12}),
    (("H200", "NVL"), {"bf16": 835e12, "fp16": 835e12, "fp32": 417.5e12}),
    (("H200",), {"bf16": 989e12, "fp16": 989e12, "fp32": 494.5e12}),
    (("A100",), {"bf16": 312e12, "fp16": 312e12, "fp32": 156e12}),
)


def peak_flops(name: str, precision: str) -> float | None:
    """A card's peak in FLOP/s for a precision, or None where it is not known.

    Args:
        name: As the driver calls it, such as `NVIDIA H100 80GB HBM3`; empty for a CPU.
        precision: fp32, bf16 or fp16.
    """
    fits = (peaks for words, peaks in PEAK_FLOPS if all(word in name for word in words))
    return next(fits, {}).get(precision)


def peak_memory_gib(device: torch.device) -> float:
    """Most memory used so far, GiB: the GPU's allocations, or on a CPU this process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Throughput:
    """Measures updates over a sliding window, and the time since the start.

    Args:
        flops: Per token.
        peak: All ranks' peak together in FLOP/s, or None.
        window: Updates to average over.

    Attributes:
        updates: Measured so far.
    """

    def __init__(self, flops: float, peak: float | None, window: int = 20) -> None:
        self._flops, self._peak = flops, peak
        self._updates: deque[tuple[int, float]] = deque(maxlen=window)
        self._began = self._update_began = time.monotonic()
        self.updates = 0

    def start_update(self) -> None:
        """Begin to measure an update; validation and checkpoints are left out."""
        self._update_began = time.monotonic()

    def end_update(self, tokens: int) -> None:
        """Count an update of so many tokens over all ranks."""
        self.updates += 1
        self._updates.append((tokens, time.monotonic() - self._update_began))

    @property
    def tokens_per_second(self) -> float:
        """Over all ranks, averaged over the window."""
        return sum(tokens for tokens, _ in self._updates) / self._window_seconds

    @property
    def seconds(self) -> float:
        """Since the start of the run, validation and all."""
        return max(1e-9, time.monotonic() - self._began)

    @property
    def _window_seconds(self) -> float:
        return max(1e-9, sum(seconds for _, seconds in self._updates))

    @property
    def updates_per_second(self) -> float:
        """Averaged over the window."""
        return len(self._updates) / self._window_seconds

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation: of what the hardware could do, the share that the model needed."""
        return self.tokens_per_second * self._flops / self._peak if self._peak else None
