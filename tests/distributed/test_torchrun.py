"""Training under torchrun: what its own supervision makes of ranks that are killed, stopped, or mistaken."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.distributed.test_launch import ENDLESS, assert_ranks_end_with, ranks_of, wait_for

pytestmark = pytest.mark.distributed

TORCHRUN = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2"]
TRAIN = ["-m", "src.train", "--run_name", "run"]


def rows(folder: Path) -> int:
    table = folder / "runs" / "structured" / "run" / "train.csv"
    return len(table.read_text().splitlines()) - 1 if table.exists() else 0


def test_a_killed_rank_is_started_again_and_sigterm_saves(write_config, start_job, outcome_of, tmp_path):
    config = write_config(tmp_path / "config.yaml", **ENDLESS)
    arguments = [*TRAIN, "--config", str(config), "--output_dir", str(tmp_path)]
    with start_job(1, *TORCHRUN, "--max-restarts", "1", *arguments) as job:
        wait_for(lambda: rows(tmp_path) > 8)
        ranks_of(job)[1].kill()
        # Started again by torchrun alone, it resumes without being told to.
        wait_for(lambda: "resuming after update " in job.stdout)
        done = rows(tmp_path)
        wait_for(lambda: rows(tmp_path) > done)
        job.process.send_signal(signal.SIGTERM)
        assert job.wait() == 1
    assert "(SIGTERM); --resume auto resumes there" in job.stdout
    outcome = outcome_of(tmp_path)
    updates = [int(row["update"]) for row in outcome.rows]
    assert updates == list(range(1, outcome.state["progress"]["update"] + 1))


def test_ranks_meet_and_end_with_torchrun(start_job, idle_ranks):
    with start_job(1, *TORCHRUN, str(idle_ranks)) as job:
        wait_for(lambda: job.stdout.count("\n") == 2)
        assert sorted(job.stdout.splitlines()) == ["2 0 0 False 0.5", "2 1 1 False 0.5"]
        assert_ranks_end_with(job)


def test_a_mistake_is_one_line_above_torchruns_own(write_config, run_job, tmp_path):
    config = write_config(tmp_path / "config.yaml")
    arguments = ["--config", str(config), "--output_dir", str(tmp_path), "--data.data_dir", "nowhere"]
    job = run_job(1, *TORCHRUN, *TRAIN, *arguments)
    assert job.process.returncode == 1
    ours = [line for line in job.stderr.splitlines() if line.startswith("error: ")]
    assert len(ours) == 1 and ours[0].startswith("error: nowhere: no prepared data here; ")
