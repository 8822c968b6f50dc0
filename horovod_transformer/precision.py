"""Which number format the matrix products run in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.utils.deterministic

from horovod_transformer.errors import UserError
from horovod_transformer.system.machine import cpu_flags

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


# By their names in Linux's list of a CPU's flags, the faster one first.
CPU_BF16_UNITS = {"amx_bf16": "AMX-BF16", "avx512_bf16": "AVX512-BF16"}


@dataclass(frozen=True)
class PrecisionChoice:
    """What the products run in, and why.

    Attributes:
        name: fp32, bf16 or fp16.
        reason: For the user.
        asked_for: The config names it; otherwise `auto` has found it.
        lacking: Who has no bf16 products, for the user; empty if all ranks have them.
    """

    name: str
    reason: str
    asked_for: bool = False
    lacking: str = ""

    def resuming(self, before: str, path: Path) -> PrecisionChoice:
        """The choice of a run that resumes a checkpoint: its precision, unless another is asked for.

        Args:
            before: The precision it was trained with.
            path: The checkpoint.

        Raises:
            UserError: It was trained in bf16, and a rank has no products for it.
        """
        if self.asked_for:
            return self
        if before == "bf16" and self.lacking:
            raise UserError(
                f"{path}: was trained in bf16, but {self.lacking}; resume it where every rank has one, or "
                "in another precision with --training.precision fp32"
            )
        return replace(self, name=before, reason="as the resumed checkpoint was trained")


def choose_precision(wanted: str, device_type: str, units: Sequence[str]) -> PrecisionChoice:
    """Choose for all ranks alike: `auto` takes bf16 where every rank has fast products for it.

    That is on GPUs from Ampere on and on CPUs with AMX-BF16 or AVX512-BF16; elsewhere it takes fp32: on
    a CPU without, bf16 is emulated, hundreds of times slower.

    Args:
        wanted: As `training.precision`.
        device_type: `cpu` or `cuda`, the same on all ranks.
        units: What each rank multiplies bf16 with, by rank, as `bf16_unit` names it.

    Raises:
        UserError: bf16 is asked for, and a rank's GPU cannot do it at all.
    """
    without = [rank for rank, unit in enumerate(units) if not unit]
    lacking = ""
    if without:
        known = "no bf16 matrix unit"
        if device_type == "cpu":
            known = f"no unit for bf16 ({' or '.join(CPU_BF16_UNITS.values())})"
        lacking = f"the {device_type.upper().replace('CUDA', 'GPU')} of rank {without[0]} has {known}"
    if wanted == "bf16" and lacking and device_type == "cuda":
        raise UserError(f"training.precision = bf16: {lacking}; use fp16, fp32 or auto")
    if wanted != "auto":
        slow = f", slowly: {lacking}" if wanted == "bf16" and lacking else ""
        return PrecisionChoice(wanted, f"as training.precision says{slow}", True, lacking)
    if lacking:
        return PrecisionChoice("fp32", lacking, lacking=lacking)
    return PrecisionChoice("bf16", f"every rank has {' or '.join(dict.fromkeys(units))}")


def bf16_unit(device: torch.device) -> str:
    """Name what multiplies bf16 matrices fast on this rank's device; empty if nothing does."""
    if device.type == "cuda":
        return "tensor cores" if torch.cuda.is_bf16_supported(including_emulation=False) else ""
    return cpu_bf16_unit(cpu_flags()) if torch.backends.mkldnn.is_available() else ""


def cpu_bf16_unit(flags: Collection[str]) -> str:
    """Name the bf16 unit of a CPU with these flags (Linux's names); empty if it has none."""
    return next((name for flag, name in CPU_BF16_UNITS.items() if flag in flags), "")


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
