"""Two starts in one folder, and two starts of one launch."""

from __future__ import annotations

import json
import os

import pytest

from tests.distributed.test_jobs import train_command, wait_for_update

pytestmark = pytest.mark.distributed

ENDLESS = {"training__max_updates": 5000, "training__epochs": 5000, "training__save_interval": 5}
SHORT = {"training__max_updates": 12, "training__eval_interval": 100, "training__keep_checkpoints": 9}


def updates_in(folder):
    files = folder.glob("runs/run/checkpoints/update_*.pt")
    return sorted(int(path.stem.removeprefix("update_")) for path in files)


def test_a_second_start_leaves_the_first_ones_files_alone(write_config, start_job, run_job, tmp_path):
    config = write_config(tmp_path / "config.yaml", **ENDLESS)
    with start_job(1, *train_command(config, tmp_path)) as first:
        wait_for_update(first, tmp_path, 12)
        second = run_job(1, *train_command(config, tmp_path))
        assert second.process.returncode == 2
        told = second.stderr.splitlines()[-1]
        assert told.startswith("error: ") and f"process {first.process.pid} on " in told
        assert "is writing here; wait for it, end it, or choose another folder" in told
        assert first.process.poll() is None
        assert [path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()] == ["run", "structured"]


def test_an_owner_that_lost_its_folder_stops_before_it_writes(write_config, start_job, tmp_path):
    config = write_config(tmp_path / "config.yaml", **ENDLESS)
    with start_job(1, *train_command(config, tmp_path)) as job:
        wait_for_update(job, tmp_path, 12)
        # As when another machine took it over after a silence.
        lock = tmp_path / "runs" / ".run.lock"
        owner = {**json.loads(lock.read_text()), "host": "elsewhere", "token": "another"}
        aside = lock.with_name("aside")
        aside.write_text(json.dumps(owner))
        os.replace(aside, lock)
        assert job.wait() == 2
    told = job.stderr.splitlines()[-1]
    assert "was taken over by process" in told and "stops before it writes there" in told
    # The new owner's lock is left alone.
    assert json.loads(lock.read_text()) == owner


def test_a_lock_file_that_was_removed_costs_nothing(write_config, start_job, tmp_path):
    config = write_config(tmp_path / "config.yaml", **{**ENDLESS, "training__max_updates": 120})
    with start_job(1, *train_command(config, tmp_path)) as job:
        wait_for_update(job, tmp_path, 12)
        (tmp_path / "runs" / ".run.lock").unlink()
        assert job.wait(timeout=120) == 0, job.stderr
    assert "the lock file was removed, but nobody else writes here: made again" in job.stdout
    assert 120 in updates_in(tmp_path) and not (tmp_path / "runs" / ".run.lock").exists()


def test_a_later_start_of_a_launch_resumes(write_config, run_job, outcome_of, tmp_path):
    """`--resume PATH` in a requeued job: the first start rewinds, the second resumes what the first did."""
    first = write_config(tmp_path / "first.yaml", **SHORT, training__lr_decay_updates=20)
    assert run_job(1, *train_command(first, tmp_path)).process.returncode == 0
    assert updates_in(tmp_path) == [4, 8, 12]
    older = tmp_path / "runs/run/checkpoints/update_00000008.pt"
    command = train_command(first, tmp_path, "--resume", str(older))
    write_config(first, **{**SHORT, "training__max_updates": 10}, training__lr_decay_updates=20)
    rewound = run_job(1, *command, SLURM_JOB_ID="77")
    assert "resuming after update 8" in rewound.stdout, rewound.stderr
    assert updates_in(tmp_path) == [4, 8, 10]
    write_config(first, **SHORT, training__lr_decay_updates=20)
    again = run_job(1, *command, SLURM_JOB_ID="77", SLURM_RESTART_COUNT="1")
    assert "resuming after update 10" in again.stdout, again.stderr
    # Another job that says the same is taken at its word.
    other = run_job(1, *command, SLURM_JOB_ID="78", SLURM_RESTART_COUNT="1")
    assert "resuming after update 8" in other.stdout, other.stderr
    assert [int(row["update"]) for row in outcome_of(tmp_path).rows] == list(range(1, 13))


def test_a_gpus_memory_that_is_too_small_is_one_line(write_config, run_job, tmp_path):
    config = write_config(tmp_path / "config.yaml", **SHORT)
    script = f"""
import runpy, sys, torch
from horovod_transformer.training.step import UpdateStep
def too_much(*arguments, **more):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
UpdateStep._backward = too_much
sys.argv = {["src.train", *train_command(config, tmp_path)[2:]]!r}
runpy.run_module("src.train", run_name="__main__")
"""
    job = run_job(1, "-c", script)
    assert job.process.returncode == 2
    assert "Traceback" not in job.stderr
    told = job.stderr.splitlines()[-1]
    assert "training.per_gpu_batch_size = 4; halve it" in told and "model.gradient_checkpointing" in told


def test_accumulation_steps_say_what_they_tie_the_run_to(write_config, run_job, tmp_path):
    config = write_config(
        tmp_path / "config.yaml",
        **SHORT,
        training__global_batch_size=None,
        training__gradient_accumulation_steps=2,
    )
    job = run_job(1, *train_command(config, tmp_path))
    assert job.process.returncode == 0, job.stderr
    assert "another number of them is another global batch and another curve" in job.stdout


def test_two_runs_train_in_one_folder_at_once(write_config, start_job, run_job, outcome_of, tmp_path):
    endless = write_config(tmp_path / "endless.yaml", **ENDLESS)
    short = write_config(tmp_path / "short.yaml", **SHORT)
    last = tmp_path / "checkpoints" / "last.pt"
    with start_job(1, *train_command(endless, tmp_path)) as first:
        wait_for_update(first, tmp_path, 6)
        second = run_job(1, *train_command(short, tmp_path, "--run_name", "other"))
        assert second.process.returncode == 0, second.stderr
        assert last.resolve().parts[-3] in ("other", "run")
        reached = int(outcome_of(tmp_path).rows[-1]["update"])
        wait_for_update(first, tmp_path, reached + 3)
        assert first.process.poll() is None
    assert outcome_of(tmp_path, "other").column("update") == list(range(1, 13))
