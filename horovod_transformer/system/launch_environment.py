"""Who started this process, read from the variables that launchers set; the one place that reads them.

Imports nothing heavy: a mistake on the command line should not wait for torch.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass

from horovod_transformer.errors import UserError

# Launcher -> the variables with the number of processes and with this one's rank.
VARIABLES = {
    "horovodrun": ("HOROVOD_SIZE", "HOROVOD_RANK"),
    "torchrun": ("WORLD_SIZE", "RANK"),
    "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "mpirun": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "mpiexec": ("PMI_SIZE", "PMI_RANK"),
}
# Seconds until the last rank must have come. The first `import torch` of a day, from a slow network
# file system, takes a minute or more, and not the same on every machine; the more ranks read it, the longer.
START_TIMEOUT_S = 120
START_TIMEOUT_PER_RANK_S = 0.5


@dataclass(frozen=True)
class Launch:
    """What a launcher says of this process.

    Attributes:
        launcher: `horovodrun`, `torchrun` (`horovod-transformer launch`, too), `srun`, or `none`.
        size: Processes of the job.
        rank: This one's number.
        job: A name that every start of one launch shares, and no other launch: Slurm's job, torchrun's
            run id; None without one.
        attempt: How often Slurm and torchrun have started it before. Agents of torchrun on several
            machines may disagree: `distributed.attempt` is what counts.
    """

    launcher: str = "none"
    size: int = 1
    rank: int = 0
    job: str | None = None
    attempt: int = 0


@functools.cache
def this_process() -> Launch:
    """What this process was started as; read once, before `setup_horovod` adds Horovod's own variables.

    Raises:
        UserError: As `read_launch`.
    """
    return read_launch(os.environ)


def read_launch(environment: Mapping[str, str]) -> Launch:
    """Recognise the launcher.

    Raises:
        UserError: Two launchers contradict each other, a rank is missing, or the launcher is one that
            Horovod is not set up for here.
    """
    # A job of one process is as good as none.
    found = {
        name: (size, variables)
        for name, variables in VARIABLES.items()
        if (size := _number(environment, variables[0], 1)) > 1
    }
    if "srun" in found:
        found.pop("mpiexec", None)  # srun's own PMI plug-in
        if "torchrun" in found and _number(environment, "GROUP_WORLD_SIZE", 1) == found["srun"][0]:
            del found["srun"]  # srun has started torchrun's agents, one a task
    if len(found) > 1:
        told = " and ".join(f"{name} ({size[0]}={number})" for name, (number, size) in found.items())
        raise UserError(
            f"two launchers have started this process, {told}: use one, or unset the other's variables"
        )
    restarts = _number(environment, "SLURM_RESTART_COUNT", 0)
    restarts += _number(environment, "TORCHELASTIC_RESTART_COUNT", 0)
    for name, (size, (size_variable, rank_variable)) in found.items():
        if name in ("mpirun", "mpiexec"):
            raise UserError(
                f"{name} started {size} processes ({size_variable}), which is not supported; launch with "
                "`horovodrun -np N python ...`, torchrun or srun"
            )
        rank = _number(environment, rank_variable, -1)
        if not 0 <= rank < size:
            raise UserError(
                f"{size_variable}={size} says that this is one of {size} processes, but {rank_variable} does "
                f"not say which: launch with {name}, or unset {size_variable}"
            )
        return Launch(name, size, rank, _job(environment), restarts)
    launcher = "horovodrun" if "HOROVOD_RANK" in environment else "none"
    return Launch(launcher, job=_job(environment), attempt=restarts)


def start_timeout(size: int = 1) -> int:
    """Seconds that ranks wait for each other when they start: HOROVOD_START_TIMEOUT, as horovodrun has it.

    Args:
        size: Ranks of the job: many are given longer, unless the variable is set.
    """
    usual = START_TIMEOUT_S + int(START_TIMEOUT_PER_RANK_S * size)
    return _number(os.environ, "HOROVOD_START_TIMEOUT", usual)


def launched_rank() -> int:
    """This process's rank for deciding who speaks; 0 where the launcher is not understood."""
    try:
        return this_process().rank
    except UserError:
        return 0


def _job(environment: Mapping[str, str]) -> str | None:
    run, job = environment.get("TORCHELASTIC_RUN_ID"), environment.get("SLURM_JOB_ID")
    if run and run != "none":  # what torchrun says without --rdzv-id
        return f"torchrun-{run}"
    return f"slurm-{job}" if job else None


def _number(environment: Mapping[str, str], name: str, absent: int) -> int:
    text = environment.get(name, "")
    if not text:
        return absent
    if not text.isdigit():
        raise UserError(f"{name}={text} is no whole number: set it right, or unset it")
    return int(text)
