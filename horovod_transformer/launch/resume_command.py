"""The command that resumes a run which was stopped, whole, with its launcher: to be copied into a shell."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from horovod_transformer.launch.subcommand import program_as_typed
from horovod_transformer.system.launch_environment import this_process

# With a value each; what takes their place is said anew.
_REPLACED = ("--resume", "--init_from", "--init-from", "--run_name", "--run-name")
_LAUNCHERS = ("horovodrun", "torchrun", "horovod-transformer")


def resume_command(run: str) -> str:
    """Return the command that goes on with this run as it was started: alone, or by which launcher.

    Args:
        run: Its name.
    """
    return shlex.join(resuming(_started_as(), run))


def resuming(words: Sequence[str], run: str) -> list[str]:
    """A command line of training, with or without a launcher's, changed so that it resumes a run."""
    kept = []
    following = iter(words)
    for word in following:
        if word in _REPLACED:
            next(following, None)
        elif word.partition("=")[0] not in _REPLACED:
            kept.append(word)
    return [*kept, "--resume", "auto", "--run_name", run]


def _started_as() -> list[str]:
    """The command line of this process's launcher, or one that does the same where that is out of sight."""
    own, launch = sys.orig_argv, this_process()
    if launch.size == 1 and launch.launcher == "none":
        return _as_typed(own)
    step = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    srun = ["srun", f"--ntasks={step}"] if step.isdigit() and int(step) > 1 else []
    for ancestor in psutil.Process().parents():
        try:
            words = _as_typed(ancestor.cmdline())
        except psutil.Error:
            continue
        # One that has started a script would hand nothing on to the training in it.
        if _is_launcher(words) and words[len(words) + 1 - len(sys.argv) :] == sys.argv[1:]:
            return [*srun, *words]
    return [*(srun or ["horovod-transformer", "launch", "-np", str(launch.size), "--"]), *_as_typed(own)]


def _is_launcher(words: Sequence[str]) -> bool:
    return bool(words) and (
        Path(words[0]).name in _LAUNCHERS or list(words[1:3]) == ["-m", "horovod_transformer"]
    )


def _as_typed(words: Sequence[str]) -> list[str]:
    """A process's command line without a script's interpreter, and without the folder of what $PATH finds."""
    words = list(words)
    if len(words) > 1 and Path(words[1]).name in _LAUNCHERS and Path(words[0]).name.startswith("python"):
        del words[0]
    elif words[1:3] == ["-m", "horovod_transformer"] and program_as_typed() == "horovod-transformer":
        words[:3] = ["horovod-transformer"]
    if words and shutil.which(Path(words[0]).name) == words[0]:
        words[0] = Path(words[0]).name
    return words
