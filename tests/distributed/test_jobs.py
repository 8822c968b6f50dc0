"""`horovodrun ... python -m src.train` as a user types it: what it leaves, how it dies, how it resumes."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

from tests.conftest import PATIENCE_S

pytestmark = pytest.mark.distributed

LONG = {"training__max_updates": 60, "training__epochs": 40, "model__dropout": 0.1}
ENDLESS = {"training__max_updates": 5000, "training__epochs": 5000}


def train_command(config, folder, *more):
    return [
        "-m",
        "src.train",
        "--config",
        str(config),
        "--output_dir",
        str(folder),
        "--run_name",
        "run",
        *more,
    ]


def wait_for_update(job, folder, update):
    """Return once the run has recorded this update."""
    table = folder / "runs" / "structured" / "run" / "train.csv"
    limit = time.monotonic() + PATIENCE_S
    while time.monotonic() < limit:
        rows = table.read_text().splitlines()[1:] if table.exists() else []
        if rows and int(rows[-1].split(",")[0]) >= update:
            return
        assert job.process.poll() is None, f"ended early\n{job.stdout}\n{job.stderr}"
        time.sleep(0.01)
    pytest.fail(f"update {update} never came\n{job.stdout}\n{job.stderr}")


@pytest.fixture(scope="module")
def config(write_config, tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config") / "config.yaml", **LONG)


@pytest.fixture(scope="module")
def straight(config, run_job, tmp_path_factory):
    """A finished run of 60 updates on two processes, and its folder."""
    folder = tmp_path_factory.mktemp("straight")
    job = run_job(2, *train_command(config, folder))
    assert job.process.returncode == 0, f"{job.stdout}\n{job.stderr}"
    return job, folder


def test_the_loss_falls(straight, outcome_of):
    losses = outcome_of(straight[1]).column("loss")
    assert len(losses) == 60
    assert sum(losses[-10:]) < sum(losses[:10]) - 10 * 0.5


def test_everything_is_where_it_is_promised(straight):
    folder = straight[1]
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoints", "logs", "runs"]
    promised = ["best_model.pt", "last.pt"]
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == promised
    own = folder / "runs" / "run" / "checkpoints"
    assert sorted(p.name for p in own.glob("*.pt")) == [*promised, "update_00000056.pt", "update_00000060.pt"]
    assert all((folder / "checkpoints" / name).samefile(own / name) for name in promised)
    assert sorted(p.name for p in (folder / "logs").iterdir()) == ["train_rank0.log", "train_rank1.log"]
    assert "validation loss" in (folder / "logs" / "train_rank0.log").read_text()
    assert list((folder / "runs" / "run").glob("events.out.tfevents.*"))
    assert sorted(p.name for p in (folder / "runs" / "structured" / "run").iterdir()) == [
        "config.yaml",
        "environment.json",
        "report.html",
        "train.csv",
        "val.csv",
    ]


def test_tensorboard_shows_the_table(straight, outcome_of):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(straight[1] / "runs" / "run"))
    events.Reload()
    shown = [event.value for event in events.Scalars("train/loss")]
    assert shown == pytest.approx(outcome_of(straight[1]).column("loss"), rel=1e-6)
    assert {"validation/loss", "validation/bits_per_byte"} <= set(events.Tags()["scalars"])


def test_only_rank_0_talks(straight):
    lines = straight[0].stdout.splitlines() + straight[0].stderr.splitlines()
    assert any(line.startswith("[0]<stdout>:done: 60 updates") for line in lines)
    assert not [line for line in lines if line.startswith("[1]")]


def test_a_killed_job_resumes_where_it_was(
    config, straight, start_job, run_job, outcome_of, assert_same_run, tmp_path
):
    # As when the node dies: no process has time for a last word, checkpoint or flush.
    with start_job(2, *train_command(config, tmp_path)) as job:
        wait_for_update(job, tmp_path, 25)
        job.kill()
    rows = outcome_of(tmp_path).rows
    assert 25 <= len(rows) < 60
    resumed = run_job(2, *train_command(config, tmp_path, "--resume", "auto"))
    assert resumed.process.returncode == 0, resumed.stderr
    assert "resuming after update" in resumed.stdout
    assert_same_run(outcome_of(straight[1]), outcome_of(tmp_path))


@pytest.mark.parametrize("loaders", [0, 2])
def test_a_killed_rank_ends_the_job(write_config, start_job, tmp_path, loaders):
    config = write_config(tmp_path / "config.yaml", **ENDLESS, data__num_workers=loaders)
    with start_job(2, *train_command(config, tmp_path)) as job:
        wait_for_update(job, tmp_path, 3)
        os.kill(job.rank_pid(1), signal.SIGKILL)
        assert job.wait() != 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_to_every_process_is_a_clean_stop(write_config, start_job, outcome_of, tmp_path, name):
    # Slurm signals all processes of a step, loader processes too.
    config = write_config(tmp_path / "config.yaml", **ENDLESS, data__num_workers=2)
    with start_job(1, *train_command(config, tmp_path)) as job:
        wait_for_update(job, tmp_path, 3)
        loaders = psutil.Process(job.process.pid).children(recursive=True)
        assert len(loaders) >= 2
        for process in [*loaders, psutil.Process(job.process.pid)]:
            process.send_signal(getattr(signal, name))
        assert job.wait() == 75, job.stderr
    assert f"({name}); --resume auto resumes there" in job.stdout
    assert "Traceback" not in job.stderr
    outcome = outcome_of(tmp_path)
    assert int(outcome.rows[-1]["update"]) == outcome.state["progress"]["update"] < 5000


def test_horovodruns_own_sigterm_is_a_clean_stop(write_config, start_job, outcome_of, tmp_path):
    config = write_config(tmp_path / "config.yaml", **ENDLESS, data__num_workers=1)
    with start_job(2, *train_command(config, tmp_path)) as job:
        wait_for_update(job, tmp_path, 3)
        job.process.send_signal(signal.SIGTERM)
        job.wait()
    outcome = outcome_of(tmp_path)
    assert int(outcome.rows[-1]["update"]) == outcome.state["progress"]["update"] < 5000
    assert "stopped after update" in (tmp_path / "logs" / "train_rank0.log").read_text()


@pytest.mark.parametrize("wanted", ["continue", "stop"])
def test_a_full_disk_is_told_and_answered_as_configured(write_config, run_job, tmp_path, wanted):
    # No file may grow beyond 150 kB: the tables fit, the checkpoint does not.
    limits = {"training__on_checkpoint_failure": wanted, "training__eval_interval": 100}
    config = write_config(tmp_path / "config.yaml", **limits)
    script = f"""
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
sys.argv = {["src.train", *train_command(config, tmp_path)[2:]]!r}
runpy.run_module("src.train", run_name="__main__")
"""
    job = run_job(1, "-c", script)
    told = "a checkpoint could not be written: [Errno 27] File too large; earlier checkpoints are untouched"
    assert told in job.stdout
    assert job.process.returncode == 2
    assert "Traceback" not in job.stderr
    last_line = job.stderr.splitlines()[-1]
    assert last_line.startswith("error: the checkpoint of update ") and last_line.endswith(
        "make room, then start again: there is no earlier one"
    )
    rows = (tmp_path / "runs" / "structured" / "run" / "train.csv").read_text().splitlines()[1:]
    assert len(rows) == 20 if wanted == "continue" else len(rows) < 20
    assert not (tmp_path / "checkpoints").exists()
    assert not list((tmp_path / "runs" / "run" / "checkpoints").iterdir())
