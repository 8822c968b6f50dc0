"""A job one of whose ranks hangs ends by itself, soon, and says why; one that was suspended continues."""

from __future__ import annotations

import re
import signal
import time
from contextlib import suppress

import psutil
import pytest
import yaml

from tests.chaos.job import Job, last_update, wait
from tests.conftest import PATIENCE_S
from tests.distributed.conftest import make_config, write_corpus

STALL_TIMEOUT_S = 8


@pytest.fixture
def endless_job(tmp_path):
    """A job of two ranks that has made three updates and would make 5,000."""
    corpus = write_corpus(tmp_path / "corpus")
    changes = {"training__max_updates": 5000, "training__epochs": 5000}
    config = make_config(corpus, **changes, distributed__stall_timeout=STALL_TIMEOUT_S)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    table = tmp_path / "run" / "runs" / "structured" / "run" / "train.csv"
    job = Job(path, tmp_path / "run", table)
    try:
        wait(lambda: last_update(table) >= 3 or job.ended, PATIENCE_S)
        assert not job.ended, job.output
        yield job
    finally:
        job.clean_up()


@pytest.mark.distributed
@pytest.mark.parametrize("number", [0, 1])
def test_a_stopped_rank_ends_the_job(endless_job, number):
    # As a node that swaps itself to death, or a file system that never answers.
    endless_job.rank(number).send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    wait(lambda: endless_job.ended, PATIENCE_S)
    seconds = time.monotonic() - stopped
    print(f"rank {number} stopped; the job ended after {seconds:.1f} s")
    assert endless_job.launcher.returncode != 0
    assert seconds > STALL_TIMEOUT_S - 1
    said = re.findall(r"rank (\d): no progress for 8 s \(distributed\.stall_timeout\)", endless_job.output)
    assert said and set(said) <= {"0", "1"}
    wait(lambda: not endless_job.processes(), 60)


@pytest.mark.distributed
def test_a_suspended_job_continues(endless_job, tmp_path):
    # As `scontrol suspend` does: every process of the job sleeps, the watching ones, too.
    processes = endless_job.processes()
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # a helper that has just ended by itself
            process.suspend()
    table = tmp_path / "run" / "runs" / "structured" / "run" / "train.csv"
    asleep_at = last_update(table)
    time.sleep(STALL_TIMEOUT_S + 4)
    assert last_update(table) == asleep_at
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.resume()
    wait(lambda: last_update(table) > asleep_at + 20 or endless_job.ended, PATIENCE_S)
    assert not endless_job.ended, endless_job.output
