"""Which number format the matrix products run in."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from horovod_transformer.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(wanted: str, device: torch.device) -> str:
    """Resolve `auto` to what is fast on the device, and check what was asked for.

    `auto` takes bf16 on GPUs that have it (Ampere and newer) and fp32 elsewhere: on a CPU without
    matrix units for it, bf16 runs hundreds of times slower than fp32.

    Raises:
        UserError: The device cannot do it.
    """
    if wanted == "auto":
        fast = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
        return "bf16" if fast else "fp32"
    if wanted == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("training.precision = bf16: this GPU has no bfloat16; use fp16, fp32 or auto")
    return wanted


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Run matrix products in the given precision; weights and gradients stay float32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


class LossScale:
    """Dynamic loss scaling (Micikevicius et al. 2018, arXiv:1710.03740): keeps fp16 gradients from vanishing.

    The factor is halved when a gradient overflows and doubled after a long time without.

    Attributes:
        factor: What the loss is multiplied with; 1 for ever unless the precision is fp16.
    """

    GROWTH_INTERVAL = 2000  # good updates before the factor is doubled

    def __init__(self, precision: str) -> None:
        self._dynamic = precision == "fp16"
        self.factor = 2.0**16 if self._dynamic else 1.0
        self._good_updates = 0

    def update(self, finite: bool) -> None:
        """Take note of one update's gradients; every rank must be told the same."""
        if not self._dynamic:
            return
        if not finite:
            self.factor = max(1.0, self.factor / 2)
            self._good_updates = 0
            return
        self._good_updates += 1
        if self._good_updates == self.GROWTH_INTERVAL:
            self.factor *= 2
            self._good_updates = 0

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"factor": self.factor, "good_updates": self._good_updates}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from `state()`."""
        if self._dynamic:
            self.factor = float(state["factor"])
            self._good_updates = int(state["good_updates"])
