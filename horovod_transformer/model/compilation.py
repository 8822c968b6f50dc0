"""`torch.compile`: when it is used, and how."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch

from horovod_transformer.errors import UserError


def choose_compile(wanted: str, device: torch.device) -> tuple[bool, str | None]:
    """Resolve `training.compile`.

    Args:
        wanted: `on`, `off`, or `auto`: on GPUs, where a compiler is there.
        device: Where the model is.

    Returns:
        Whether to compile, and a line for the user if `auto` would have liked to and cannot.

    Raises:
        UserError: `on`, and there is no compiler.
    """
    if wanted == "off" or (wanted == "auto" and device.type != "cuda"):
        return False, None
    # What torch's code generators call: g++ for CPU code, a C compiler for the launchers of GPU kernels.
    programs = (
        [os.environ.get("CC", ""), "gcc", "clang"]
        if device.type == "cuda"
        else [os.environ.get("CXX") or "g++"]
    )
    if any(shutil.which(program) for program in programs if program):
        return True, None
    missing = " or ".join(program for program in programs if program)
    if wanted == "on":
        raise UserError(
            f"training.compile = on: there is no {missing} here, which torch.compile needs; install it, on a "
            "cluster often with `module load gcc`, or set training.compile to off"
        )
    return False, f"not compiled, and slower for it: there is no {missing} here (training.compile = auto)"


def compile_for_fixed_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function once for each shape of its tensors.

    A run has few shapes: full and last micro-batch, in training and in validation. Code for
    flexible shapes would depend on which shapes came first, and a resumed run sees them in
    another order: its last bits would differ. More shapes than torch keeps code for are an error
    rather than a silent return to slow code.
    """
    return torch.compile(function, dynamic=False, fullgraph=True)
