"""`sbatch scripts/train_zaratan.sh configs/config.yaml`, on a real Slurm: runs, and what ends them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from slurm_cluster import NO_GPU, Submitter, tiny_run, wait_for

from horovod_transformer.checkpoint.format import load_checkpoint

pytestmark = pytest.mark.slurm

PROMISED = ("scripts/train_zaratan.sh", "configs/config.yaml")
TWO_GPUS = "--gres=gpu:h100:2"


@pytest.fixture(scope="module")
def run_of_one(
    root: Path, prepared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[float], str]:
    """The losses of 32 updates on one process, without Slurm, and the digest of the weights."""
    folder = tmp_path_factory.mktemp("alone")
    command = [sys.executable, "-m", "src.train", *tiny_run(prepared_data, 32), "--run_name", "alone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [*command, "--output_dir", str(folder)], cwd=root, env=environment, timeout=500, check=True
    )
    losses = Submitter.read_losses(folder / "runs" / "structured" / "alone" / "train.csv")
    return losses, digest_of(folder / "checkpoints")


def digest_of(checkpoints: Path) -> str:
    """The digest of the newest weights."""
    return load_checkpoint(checkpoints / "last.pt")["progress"]["weights"]


def failing_training(folder: Path) -> Path:
    """An environment in which training notes its start in `starts` and does what the file `training` says."""
    python = folder / "failing" / "bin" / "python"
    python.parent.mkdir(parents=True)
    body = (
        f'case "$*" in *src.train*) echo x >> starts; . ./training ;; *) exec {sys.executable} "$@" ;; esac'
    )
    python.write_text(f"#!/bin/bash\n{body}\n")
    python.chmod(0o755)
    return python.parents[1]


@pytest.fixture(scope="module", autouse=True)
def without_progress(
    new_submitter: Callable[[Path], Submitter], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Submitter, str]:
    """A job whose starts fail. Submitted first: Slurm pauses for six seconds between two starts."""
    folder = tmp_path_factory.mktemp("without_progress")
    submitter = new_submitter(folder)
    # Of the starts only the second gets further, and Slurm ends it: the first, third and fourth do not.
    (submitter.checkout / "checkpoints").mkdir()
    further = "touch checkpoints/update_00000004.pt; scontrol requeue $SLURM_JOB_ID; sleep 60"
    (submitter.checkout / "training").write_text(f"[ $(wc -l < starts) != 2 ] || {{ {further}; }}; exit 1")
    environment = str(failing_training(folder))
    little = ("--gres=gpu:h100:1", "--mem=1G")  # for the others are to have their nodes
    return submitter, submitter.submit(*little, *PROMISED, HT_VENV=environment, HT_PROCESSES="1")


def rank_process(job: str, rank: int) -> psutil.Process | None:
    """The process of a rank of a job that trains, if it is there."""
    for process in psutil.process_iter():
        try:
            variables, command = process.environ(), process.cmdline()
        except psutil.Error:
            continue
        mine = (variables.get("SLURM_JOB_ID"), variables.get("SLURM_PROCID")) == (job, str(rank))
        if mine and command[:3] == ["python", "-m", "src.train"]:
            return process
    return None


def test_the_promised_command_trains_on_four_processes(submitter: Submitter, prepared_data: Path) -> None:
    job = submitter.submit(*PROMISED, *tiny_run(prepared_data, 4), **NO_GPU)

    assert submitter.wait(job, "COMPLETED", "FAILED")["ExitCode"] == "0:0", submitter.output(job)
    checkout = submitter.checkout
    for promised in ("checkpoints/best_model.pt", "checkpoints/last.pt", "logs/train_rank3.log"):
        assert (checkout / promised).exists()
    assert submitter.updates(job) == [1, 2, 3, 4]
    run = checkout / "runs" / "structured" / f"slurm-{job}"
    assert json.loads((run / "environment.json").read_text())["world_size"] == 4
    assert "nodes: 1, processes on each: 4, " in submitter.output(job)


def test_two_nodes_near_the_time_limit_save_and_go_on_with_the_weights_of_one(
    submitter: Submitter, prepared_data: Path, run_of_one: tuple[list[float], str]
) -> None:
    # Slowed down, or it could be done between two of the signals that the script sends every five seconds: an
    # update takes a cycle at least.
    slow = {**NO_GPU, "HOROVOD_CYCLE_TIME": "320"}
    job = submitter.submit("--nodes=2", TWO_GPUS, *PROMISED, *tiny_run(prepared_data, 32), **slow)

    # At the worst of times: the ranks are starting up and would die of USR1.
    submitter.wait_for_output(job, "start 1")
    submitter.warn(job)
    submitter.wait_for_output(job, "start 2")
    stopped = re.search(r"stopped after update (\d+) \(SIGUSR1\)", submitter.output(job))
    assert stopped, submitter.output(job)

    ended = submitter.wait(job, "COMPLETED", "FAILED")
    output = submitter.output(job)
    assert (ended["JobState"], ended["Restarts"], ended["NumNodes"]) == ("COMPLETED", "1", "2"), output
    assert "nodes: 2, processes on each: 2, " in output
    assert f"resuming after update {stopped[1]}" in output
    assert submitter.updates(job) == list(range(1, 33))
    assert (submitter.losses(job), digest_of(submitter.checkout / "checkpoints")) == run_of_one
    assert load_checkpoint(submitter.checkout / "checkpoints" / "last.pt")["progress"]["update"] == 32


def test_a_cancelled_job_leaves_a_checkpoint_and_others_go_on_with_fewer_and_more_nodes(
    submitter: Submitter, prepared_data: Path, run_of_one: tuple[list[float], str]
) -> None:
    output_dir = submitter.checkout / "other"
    wanted = [*tiny_run(prepared_data, 32), f"--output_dir={output_dir}"]
    # Slowed down, or it would be done before it can be cancelled.
    slow = {**NO_GPU, "HOROVOD_CYCLE_TIME": "160"}
    job = submitter.submit("--nodes=2", TWO_GPUS, *PROMISED, *wanted, **slow)
    table = output_dir / "runs" / "structured" / f"slurm-{job}" / "train.csv"
    wait_for("updates", lambda: table.exists() and table.read_text().count("\n") > 3)
    submitter.slurm.run("scancel", job)
    wait_for("the end", lambda: not submitter.slurm.run("squeue", "-h", f"--jobs={job}"))

    assert submitter.slurm.job(job)["JobState"] == "CANCELLED"
    assert submitter.slurm.job(job)["Restarts"] == "0"
    stopped = load_checkpoint(output_dir / "checkpoints" / "last.pt")["progress"]["update"]
    log = (output_dir / "logs" / "train_rank0.log").read_text()
    assert f"stopped after update {stopped} (SIGTERM" in log
    assert 3 <= stopped < 32
    assert not (submitter.checkout / "checkpoints").exists()

    # On one node, and then on as many as there are of one and two: the bits of one process.
    less = [*wanted, "--training.max_updates", str(stopped + 1), "--resume", "auto"]
    smaller = submitter.submit(TWO_GPUS, *PROMISED, *less, **NO_GPU)
    assert submitter.wait(smaller, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    assert f"resuming after update {stopped}" in submitter.output(smaller)
    again = [*wanted, "--resume", "auto", "--run_name", f"slurm-{job}"]
    larger = submitter.submit("--nodes=1-2", TWO_GPUS, *PROMISED, *again, **NO_GPU)
    assert submitter.wait(larger, "COMPLETED", "FAILED")["NumNodes"] == "2", submitter.output(larger)
    assert f"resuming after update {stopped + 1}" in submitter.output(larger)
    assert (Submitter.read_losses(table), digest_of(output_dir / "checkpoints")) == run_of_one


def test_two_jobs_do_not_write_into_one_folder(submitter: Submitter, prepared_data: Path) -> None:
    wanted = ["--gres=gpu:h100:1", *PROMISED, *tiny_run(prepared_data, 100_000)]
    job = submitter.submit(*wanted, **NO_GPU)
    wait_for("updates", lambda: len(submitter.updates(job)) > 3)

    other = submitter.submit(*wanted, "--run_name", f"slurm-{job}", **NO_GPU)
    assert submitter.wait(other, "FAILED", "COMPLETED")["ExitCode"] == "2:0"
    assert f"job slurm-{job}, process" in submitter.output(other)
    assert "is writing here; wait for it, end it, or choose another folder" in submitter.output(other)
    submitter.slurm.run("scancel", job)


def test_a_killed_rank_and_a_lost_node_are_queued_again(submitter: Submitter, prepared_data: Path) -> None:
    wanted = [*tiny_run(prepared_data, 24), "--training.save_interval", "3"]
    # Slowed down, or it would be done before the node is lost.
    slow = {**NO_GPU, "HOROVOD_CYCLE_TIME": "120"}
    job = submitter.submit("--nodes=2", "--gres=gpu:h100:1", *PROMISED, *wanted, **slow)

    wait_for("updates", lambda: len(submitter.updates(job)) > 3)
    process = rank_process(job, 1)
    assert process is not None
    process.send_signal(signal.SIGKILL)
    submitter.wait_for_output(job, "start 2")
    # 137, of the killed one; or 143, if the other was still there to be ended by srun.
    assert re.search(r"ended with exit code 1(37|43); queueing it again", submitter.output(job))

    before = max(submitter.updates(job))
    wait_for("more updates", lambda: max(submitter.updates(job), default=0) > before)
    # It comes back by itself (ReturnToService), as a rebooted node does.
    submitter.slurm.run("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    submitter.wait_for_output(job, "start 3")
    ended = submitter.wait(job, "COMPLETED", "FAILED", "NODE_FAIL", timeout=500)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "2"), submitter.output(job)
    assert submitter.updates(job) == list(range(1, 25))
    assert not list(submitter.checkout.glob(".slurm-*"))


def test_a_users_mistake_that_all_ranks_meet_is_not_queued_again(
    submitter: Submitter, prepared_data: Path
) -> None:
    wanted = [*tiny_run(prepared_data, 4), "--data.data_dir", "absent"]
    job = submitter.submit("--nodes=2", "--gres=gpu:h100:1", *PROMISED, *wanted, **NO_GPU)

    ended = submitter.wait(job, "COMPLETED", "FAILED")
    output = submitter.output(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0"), output
    assert output.count("error: absent") == 1


def test_two_starts_in_a_row_without_progress_end_the_job(without_progress: tuple[Submitter, str]) -> None:
    submitter, job = without_progress

    ended = submitter.wait(job, "FAILED", "COMPLETED")
    assert (ended["ExitCode"], ended["Restarts"]) == ("1:0", "3"), submitter.output(job)
    told = "two starts in a row ended (exit code 1) before a new checkpoint, the last one being of update 4;"
    assert told in submitter.output(job).splitlines()[-1]
    assert not list(submitter.checkout.glob(".slurm-*"))


def test_a_job_that_may_not_be_queued_again_says_how_to_go_on(submitter: Submitter, tmp_path: Path) -> None:
    (submitter.checkout / "training").write_text("exit 75")
    environment = str(failing_training(tmp_path))
    job = submitter.submit("--no-requeue", *PROMISED, HT_VENV=environment, HT_PROCESSES="1")

    assert submitter.wait(job, "FAILED", "COMPLETED")["ExitCode"] == "2:0"
    assert "to resume, submit it once more with --resume auto" in submitter.output(job)
