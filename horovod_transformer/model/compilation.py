"""`torch.compile`: when it is used, and how."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from horovod_transformer.errors import UserError
from horovod_transformer.system.signals import held_back

# Several runs in one process share the code that is kept; torch's own limit of 8 is soon reached.
SHAPES_KEPT = 64

_compiling = ExitStack()


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
    another order: its last bits would differ. More shapes than `SHAPES_KEPT` are an error rather
    than a silent return to slow code.
    """
    with held_back():  # torch may start its workers as soon as it is imported
        import torch._dynamo  # takes seconds

        callbacks = torch._dynamo.callback.callback_handler
        if _hold_signals_back not in callbacks.start_callbacks:
            callbacks.register_start_callback(_hold_signals_back)
            callbacks.register_end_callback(_let_signals_through)
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES_KEPT)
        return torch.compile(function, dynamic=False, fullgraph=True)


def _hold_signals_back(*about: Any) -> None:
    """A compilation begins, so compilers and torch's workers may be started; they outlive a stop signal.

    Slurm sends it to every process of a job. A compiler that dies ends the run before it is saved, or worse:
    torch learns with a compiler what the CPU can do, and would make slower code with other last bits. A
    compiler that is a script of some shells (dash) still dies: they let through what was held back.
    """
    _compiling.enter_context(held_back())


def _let_signals_through(*about: Any) -> None:
    _compiling.close()
