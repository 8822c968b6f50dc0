"""The generic Slurm scripts with the file of a made-up cluster, and with Zaratan's, on a real Slurm."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from slurm_cluster import Submitter, tiny_run

pytestmark = pytest.mark.slurm

CONFIG = "configs/config.yaml"
# What differs between two jobs that are the same otherwise.
OF_ITSELF = {
    "JobId",
    "Command",
    "EligibleTime",
    "AccrueTime",
    "SubmitTime",
    "LastSchedEval",
    "StdErr",
    "StdOut",
}
OF_ITSELF |= {"Priority", "StartTime", "EndTime", "Scheduler", "SuspendTime"}


@pytest.fixture
def made_up(root: Path, submitter: Submitter) -> Path:
    """The made-up site's file, where a user would have put it."""
    return Path(shutil.copy(root / "tests/slurm/made_up_site.sh", submitter.checkout / "lighthouse.sh"))


def submit(
    submitter: Submitter, site: str, *words: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Call `scripts/submit.sh` as a user does."""
    environment = {**submitter.slurm.environment, "OMP_NUM_THREADS": "1", "SITE": site, **variables}
    return subprocess.run(
        ["scripts/submit.sh", *words],
        cwd=submitter.checkout,
        env=environment,
        timeout=120,
        text=True,
        capture_output=True,
    )


def held(submitter: Submitter, site: str, *words: str, **variables: str) -> dict[str, str]:
    """What Slurm knows of a job that is submitted and does not start."""
    finished = submit(submitter, site, "--parsable", "--hold", *words, **variables)
    assert finished.returncode == 0, finished.stderr
    job = submitter.slurm.job(finished.stdout.strip())
    submitter.slurm.run("scancel", job["JobId"])
    return job


def test_another_cluster_trains_with_its_partitions_and_gpus(
    submitter: Submitter, made_up: Path, prepared_data: Path, tmp_path: Path
) -> None:
    scratch = tmp_path / "node scratch"
    wanted = [*tiny_run(prepared_data, 3), "--run_name", "there"]
    words = ["--parsable", "train", CONFIG, *wanted]
    finished = submit(submitter, f"./{made_up.name}", *words, NODE_SCRATCH=str(scratch))
    assert finished.returncode == 0, finished.stderr
    job = finished.stdout.strip()

    ended = submitter.wait(job, "COMPLETED", "FAILED")
    output = submitter.output(job)
    assert ended["ExitCode"] == "0:0", output
    assert (ended["Partition"], ended["TimeLimit"], ended["Comment"]) == (
        "accelerated",
        "01:30:00",
        "lighthouse",
    )
    assert ended["TresPerNode"].endswith("gpu:2") and ended["MinMemoryNode"] == "16G"
    assert "nodes: 1, processes on each: 2, " in output
    run = submitter.checkout / "runs" / "there"
    assert json.loads((run / "tables" / "environment.json").read_text())["world_size"] == 2
    assert (scratch / "ht").is_dir()


def test_what_a_user_says_wins_over_the_site(submitter: Submitter, made_up: Path) -> None:
    site = str(made_up)
    job = held(submitter, site, "--nodes=2", "--gres=gpu:1", "train", CONFIG, SBATCH_PARTITION="gpu")
    assert (job["Partition"], job["NumNodes"].split("-")[0]) == ("gpu", "2")
    assert job["TresPerNode"].endswith("gpu:1") and job["Requeue"] == "1"
    job = held(submitter, site, "check", SBATCH_ACCOUNT="physics", SBATCH_TIMELIMIT="00:05:00")
    assert (job["Account"], job["TimeLimit"], job["NumTasks"]) == ("physics", "00:05:00", "2")
    assert job["MinMemoryNode"] == "8G"
    job = held(submitter, site, "prepare", CONFIG)
    assert (job["Partition"], job["TimeLimit"], job["NumCPUs"]) == ("serial", "04:00:00", "8")


@pytest.mark.parametrize("what", ["train", "prepare", "check"])
def test_zaratans_file_and_zaratans_scripts_say_the_same(submitter: Submitter, what: str) -> None:
    arguments = [] if what == "check" else [CONFIG]
    one = held(submitter, "zaratan", what, *arguments)
    other = submitter.slurm.job(submitter.submit("--hold", f"scripts/{what}_zaratan.sh", *arguments))
    submitter.slurm.run("scancel", other["JobId"])
    apart = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    assert apart <= OF_ITSELF, {key: (one.get(key), other.get(key)) for key in apart - OF_ITSELF}


def one_line(finished: subprocess.CompletedProcess[str]) -> str:
    assert finished.returncode == 2 and not finished.stdout
    (line,) = finished.stderr.splitlines()
    return line


def test_a_mistake_is_one_line(submitter: Submitter, made_up: Path) -> None:
    known = "zaratan, or"
    assert f"which cluster is this? Set SITE to one of these: {known}" in one_line(
        submit(submitter, "", "train", CONFIG)
    )
    assert f"there is no file sites/nowhere.sh; take {known}" in one_line(
        submit(submitter, "nowhere", "train")
    )
    assert "there is no file sweep.sh" in one_line(submit(submitter, "zaratan", "sweep.sh"))
    made_up.write_text("gpus_per_node=several\n")
    assert one_line(submit(submitter, str(made_up), "train")) == (
        f"submit.sh: {made_up}: gpus_per_node should be a whole number, not 'several'"
    )
    assert "what is to be submitted?" in submit(submitter, "zaratan").stderr


def test_a_job_whose_site_is_not_named_says_which_there_are(submitter: Submitter) -> None:
    job = submitter.submit("scripts/train_slurm.sh", CONFIG)
    assert submitter.wait(job, "COMPLETED", "FAILED")["ExitCode"] == "2:0"
    assert submitter.output(job).startswith(
        "train_slurm.sh: which cluster is this? Set SITE to one of these: zar"
    )
    assert submitter.output(job).count("\n") == 1
