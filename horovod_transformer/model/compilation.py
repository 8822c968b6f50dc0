"""`torch.compile`: when it is used, and how."""

from __future__ import annotations

import ctypes
import getpass
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from horovod_transformer.errors import UserError
from horovod_transformer.system.signals import held_back

# Several runs in one process share the code that is kept; torch's own limit of 8 is soon reached.
SHAPES_KEPT = 64

PROBE_C = "int one(void) { return 1; }\n"
PROBE_CXX = '#include <cmath>\nextern "C" int one() { return 1; }\n'
PROBE_SECONDS = 120
# Less than this for a run's code is none: on a CPU torch begins with a header of 100 MB.
ROOM = 64 << 20

_compiling = ExitStack()


def choose_compile(wanted: str, device: torch.device) -> tuple[bool, str | None]:
    """Resolve `training.compile`.

    Args:
        wanted: `on`, `off`, or `auto`: on GPUs, where a compiler is there.
        device: Where the model is.

    Returns:
        Whether to compile, and a line for the user if `auto` would have liked to and cannot.

    Raises:
        UserError: `on`, and code cannot be made here.
    """
    if wanted == "off" or (wanted == "auto" and device.type != "cuda"):
        return False, None
    problem = why_not(device)
    if problem is None:
        return True, None
    if wanted == "on":
        raise UserError(f"training.compile = on: {problem}; or set training.compile to off")
    return False, f"not compiled, and slower for it: {problem} (training.compile = auto)"


def why_not(device: torch.device) -> str | None:
    """What keeps torch.compile from making code here and loading it; None if nothing does.

    Found out with a function of one line: torch itself would take seconds, and end in a hundred lines.
    """
    # What torch's code generators call: g++ for CPU code, a C compiler for the launchers of GPU kernels.
    gpu = device.type == "cuda"
    programs = [os.environ.get("CC", ""), "gcc", "clang"] if gpu else [os.environ.get("CXX") or "g++"]
    programs = [program for program in programs if program]
    compiler = next((words for program in programs if (words := _command(program))), None)
    if compiler is None:
        return (
            f"there is no {' or '.join(programs)} here, which torch.compile needs; install it, on a cluster "
            "often with `module load gcc`"
        )
    folder = _code_folder()
    advice = f"{folder} is where torch.compile puts its code; TORCHINDUCTOR_CACHE_DIR names another folder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < ROOM:
            return f"the disk is full: {advice}"
        with tempfile.TemporaryDirectory(prefix="probe-", dir=folder) as scratch:
            library = Path(scratch, "probe.so")
            language, source = ("c", PROBE_C) if gpu else ("c++", PROBE_CXX)
            words = [*compiler, "-x", language, "-", "-shared", "-fPIC", "-o", str(library)]
            done = subprocess.run(
                words, input=source, capture_output=True, text=True, errors="replace", timeout=PROBE_SECONDS
            )
            if done.returncode or not library.exists():
                said = re.search(r".*error.*", done.stderr)
                return (
                    f"{' '.join(compiler)} cannot compile a line of code"
                    f"{f' ({said[0].strip()[:100]})' if said else ''}; CC and CXX name others"
                )
            try:
                ctypes.CDLL(str(library))
            except OSError:
                return f"code may not be run from there: {advice}"
    except OSError as error:
        return f"{error.strerror or error}: {advice}"
    except subprocess.TimeoutExpired:
        return f"{' '.join(compiler)} does not come to an end"
    return None


def _command(program: str) -> list[str] | None:
    """The words that call a compiler, such as `ccache g++`; None if there is none."""
    try:
        words = [program] if shutil.which(program) else shlex.split(program)
    except ValueError:
        return None
    return words if words and shutil.which(words[0]) else None


def _code_folder() -> Path:
    """Where torch will put code, as its `cache_dir` has it; importing that takes seconds."""
    try:
        user = re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser())
    except (KeyError, OSError):  # nobody knows this user's name
        user = f"uid_{os.getuid()}"
    return Path(
        os.environ.get("TORCHINDUCTOR_CACHE_DIR") or Path(tempfile.gettempdir(), f"torchinductor_{user}")
    )


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
