"""Which number format the matrix products run in."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch
import torch.utils.deterministic

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


def set_arithmetic(device: torch.device, precision: str, deterministic: bool) -> None:
    """Choose between exact, fast and repeatable for the whole process, before its first product.

    In fp32 a GPU's matrix units round the factors of a product to TF32 (10 bits of mantissa, sums in
    float32), many times faster than its plain units; CPUs compute in full float32.

    Args:
        device: What is computed on.
        precision: fp32, bf16 or fp16.
        deterministic: Take only algorithms that give the same bits each time, attention's backward
            pass among them; an operation without one is an error. CPUs need none of it.
    """
    on_gpu = device.type == "cuda"
    torch.set_float32_matmul_precision("high" if on_gpu and precision == "fp32" else "highest")
    if on_gpu and deterministic:
        # cuBLAS reads it when it starts; torch refuses to be deterministic without.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(deterministic)  # it loads torch's compiler, which takes a second
    # Nothing here reads memory that it did not write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Run matrix products in the given precision; weights and gradients stay float32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])
