"""A job array through `train_zaratan.sh`, on a real Slurm: one task is queued again, the rest left alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from slurm_cluster import Submitter, wait_for

pytestmark = pytest.mark.slurm

# What each task does instead of training. The last one has the array's own job id, by which Slurm would queue
# all of them again.
TASKS = """\
echo $SLURM_ARRAY_TASK_ID >> starts
again() { [ -n "${SLURM_RESTART_COUNT:-}" ]; }
case $SLURM_ARRAY_TASK_ID in
0) exit 0 ;;
1) until [ -e let_go ]; do sleep 0.2; done ;;
2) sleep 60 ;;
3) again && exit 0; until [ -e told ]; do sleep 0.2; done; exit 75 ;;
esac
"""


def stand_in(folder: Path) -> str:
    """A virtual environment whose Python does what TASKS says when it is to train."""
    python = folder / "stand-in" / "bin" / "python"
    python.parent.mkdir(parents=True)
    body = f'case "$*" in *src.train*) . ./training ;; *) exec {sys.executable} "$@" ;; esac'
    python.write_text(f"#!/bin/bash\n{body}\n")
    python.chmod(0o755)
    return str(python.parents[1])


def test_only_the_task_itself_is_queued_again(submitter: Submitter, tmp_path: Path) -> None:
    (submitter.checkout / "training").write_text(TASKS)
    options = ("--array=0-3", "--gres=gpu:h100:1", "--mem=1G", "--ntasks-per-node=1", "--cpus-per-task=1")
    command = (*options, "scripts/train_zaratan.sh", "configs/config.yaml")
    job = submitter.submit(*command, HT_VENV=stand_in(tmp_path), HT_PROCESSES="1")
    slurm, starts = submitter.slurm, submitter.checkout / "starts"

    def state(task: int) -> tuple[str, str]:
        found = slurm.job(f"{job}_{task}")
        return found["JobState"], found["Restarts"]

    wait_for("all tasks to start", lambda: starts.exists() and len(starts.read_text().split()) == 4)
    assert slurm.job(f"{job}_3")["JobId"] == job  # the array's own id
    wait_for("task 0 to be done", lambda: state(0)[0] == "COMPLETED")
    slurm.run("scancel", f"{job}_2")
    wait_for("task 2 to be cancelled", lambda: state(2)[0] == "CANCELLED")
    (submitter.checkout / "told").touch()
    wait_for("task 3 to be queued again and done", lambda: state(3) == ("COMPLETED", "1"))
    assert [state(task) for task in (0, 1, 2)] == [("COMPLETED", "0"), ("RUNNING", "0"), ("CANCELLED", "0")]
    (submitter.checkout / "let_go").touch()
    wait_for("task 1 to be done", lambda: state(1) == ("COMPLETED", "0"))
    assert sorted(starts.read_text().split()) == ["0", "1", "2", "3", "3"]
