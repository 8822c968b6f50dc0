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
    if (
        wanted == "bf16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise UserError("training.precision = bf16: this GPU has no bfloat16; use fp16, fp32 or auto")
    return wanted


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Run matrix products in the given precision; weights and gradients stay float32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])
