"""What `train_zaratan.sh` asks Slurm to queue again; its programs are stand-ins, Slurm need not be here."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}


@pytest.mark.parametrize(
    ("variables", "queued"),
    [
        (JOB, "requeue 7"),
        # The last task of an array has the array's own id, by which Slurm would queue them all again.
        ({**JOB, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}, "requeue 7_2"),
        ({**JOB, "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "0"}, "requeue 5_0"),
    ],
)
def test_only_the_task_itself_is_queued_again(root, tmp_path, variables, queued):
    scripts, programs = tmp_path / "scripts", tmp_path / "bin"
    for folder in (scripts, programs):
        folder.mkdir()
    for script in ("train_zaratan.sh", "train_slurm.sh"):
        shutil.copy(root / "scripts" / script, scripts)
    (scripts / "slurm_job.sh").write_text("nodes=1 ranks_per_node=1 cores=1\nstart_ranks() { exit 75; }\n")
    for name, script in {"python": "echo 0", "scontrol": f'echo "$@" > {tmp_path}/asked'}.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path), **variables}
    done = subprocess.run(["bash", scripts / "train_zaratan.sh"], env=environment, timeout=300)
    assert done.returncode == 75
    assert (tmp_path / "asked").read_text().strip() == queued
