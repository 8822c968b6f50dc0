"""Launchers are recognised by their variables; what makes no sense is one line."""

from __future__ import annotations

import pytest

from horovod_transformer.errors import UserError
from horovod_transformer.system.launch_environment import Launch, read_launch, start_timeout

TORCHRUN = {
    "WORLD_SIZE": "4",
    "RANK": "3",
    "GROUP_WORLD_SIZE": "2",
    "TORCHELASTIC_RUN_ID": "x",
    "TORCHELASTIC_RESTART_COUNT": "2",
}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_RESTART_COUNT": "1",
}


@pytest.mark.parametrize(
    ("environment", "launch"),
    [
        ({}, Launch()),
        ({"HOROVOD_SIZE": "3", "HOROVOD_RANK": "1"}, Launch("horovodrun", 3, 1)),
        ({"HOROVOD_SIZE": "1", "HOROVOD_RANK": "0"}, Launch("horovodrun")),
        (TORCHRUN, Launch("torchrun", 4, 3, "torchrun-x", 2)),
        (SRUN, Launch("srun", 2, 1, "slurm-7", 1)),
        # A batch script without srun, and an interactive step, are one process each.
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}, Launch(job="slurm-7")),
        ({"SLURM_STEP_NUM_TASKS": "1", "HOROVOD_SIZE": "2", "HOROVOD_RANK": "0"}, Launch("horovodrun", 2, 0)),
        (
            {"WORLD_SIZE": "1", "RANK": "0", "TORCHELASTIC_RUN_ID": "none", "SLURM_RESTART_COUNT": "3"},
            Launch(attempt=3),
        ),
        # srun that starts one torchrun a node; srun's own PMI.
        ({**SRUN, **TORCHRUN}, Launch("torchrun", 4, 3, "torchrun-x", 3)),
        ({**SRUN, "PMI_SIZE": "2", "PMI_RANK": "1"}, Launch("srun", 2, 1, "slurm-7", 1)),
    ],
)
def test_a_launcher_is_recognised(environment, launch):
    assert read_launch(environment) == launch


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        (
            {"HOROVOD_SIZE": "2", "HOROVOD_RANK": "0", "WORLD_SIZE": "4", "RANK": "1"},
            "two launchers have started this process, horovodrun (HOROVOD_SIZE=2) and torchrun (WORLD_SIZE",
        ),
        # Each of two tasks is a torchrun of its own: two jobs on the same files.
        ({**SRUN, **TORCHRUN, "GROUP_WORLD_SIZE": "1"}, "two launchers have started this process, torchrun"),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, "mpirun started 4 processes"),
        ({"PMI_SIZE": "4", "PMI_RANK": "0"}, "mpiexec started 4 processes"),
        # One of many, but left without its rank: it would train alone.
        ({"HOROVOD_SIZE": "2"}, "HOROVOD_SIZE=2 says that this is one of 2 processes, but HOROVOD_RANK"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 says that this is one of 2 processes, but RANK does not say"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS=2 says that this is one of 2"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "WORLD_SIZE=2 says that this is one of 2"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE=two is no whole number"),
    ],
)
def test_what_makes_no_sense_is_refused(environment, told):
    with pytest.raises(UserError, match="^" + told.replace("(", r"\(").replace(")", r"\)")) as refused:
        read_launch(environment)
    assert "\n" not in str(refused.value)


def test_many_ranks_are_given_longer_to_come(monkeypatch):
    monkeypatch.delenv("HOROVOD_START_TIMEOUT", raising=False)
    assert [start_timeout(size) for size in (1, 2, 512)] == [120, 121, 376]
    monkeypatch.setenv("HOROVOD_START_TIMEOUT", "7")
    assert start_timeout(512) == 7
