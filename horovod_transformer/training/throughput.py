"""How fast a run is, how much of the hardware it uses, and how much memory it takes."""

from __future__ import annotations

import resource
import time
from collections import deque

import torch

from horovod_transformer.config import ModelConfig

# Dense peak of the matrix units in FLOP/s, by a word in the device's name: NVIDIA's data sheets,
# without sparsity. fp32 runs on the plain units; other cards have no figure here.
PEAK_FLOPS = {
    "H100": {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12},
    "H200": {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12},
    "A100": {"bf16": 312e12, "fp16": 312e12, "fp32": 19.5e12},
}


def flops_per_token(model: ModelConfig, parameters: int) -> float:
    """Floating-point operations of a forward and backward pass, per token.

    6 per parameter, and 12 x layers x width x context for attention's two products (Chowdhery et
    al. 2022, arXiv:2204.02311, appendix B). The tied embedding counts once, as the output
    projection that it is.
    """
    return 6.0 * parameters + 12.0 * model.n_layers * model.d_model * model.max_seq_len


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The device's peak in FLOP/s for a precision, or None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peaks[precision] for word, peaks in PEAK_FLOPS.items() if word in name), None)


def peak_memory_gib(device: torch.device) -> float:
    """Most memory used so far, GiB: the GPU's allocations, or on a CPU this process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Stopwatch:
    """Measures updates over a sliding window, and the time since the start.

    Args:
        flops: Per token.
        peak: All ranks' peak together in FLOP/s, or None.
        window: Updates to average over.
    """

    def __init__(self, flops: float, peak: float | None, window: int = 20) -> None:
        self._flops, self._peak = flops, peak
        self._updates: deque[tuple[int, float]] = deque(maxlen=window)
        self._began = self._update_began = time.monotonic()

    def start_update(self) -> None:
        """Begin to measure an update; validation and checkpoints are left out."""
        self._update_began = time.monotonic()

    def end_update(self, tokens: int) -> None:
        """Take down an update of so many tokens over all ranks."""
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

    def figures(self) -> dict[str, float | None]:
        """The columns of `train.csv` that the clock decides."""
        speed = self.tokens_per_second
        return {
            "updates_per_second": len(self._updates) / self._window_seconds,
            "tokens_per_second": speed,
            # Model FLOPs utilisation: of what the hardware could do, the share that the model needed.
            "mfu": speed * self._flops / self._peak if self._peak else None,
            "seconds": self.seconds,
        }
