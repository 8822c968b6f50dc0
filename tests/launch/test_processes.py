"""A job's processes on one machine: how they are started, signalled and ended."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

from horovod_transformer.launch import processes as rank_processes
from horovod_transformer.launch.processes import RankProcesses
from tests.conftest import PATIENCE_S


@pytest.fixture
def start(tmp_path):
    """`start(script, ranks)` starts a shell script as so many ranks."""
    started = []

    def start_ranks(script, ranks=2):
        environments = [{**os.environ, "RANK": str(rank), "FOLDER": str(tmp_path)} for rank in range(ranks)]
        processes = RankProcesses(["/bin/sh", "-c", script], environments, tmp_path)
        started.append(processes)
        return processes

    yield start_ranks
    for processes in started:
        processes.send(signal.SIGKILL)


def wait_for(path):
    end = time.monotonic() + PATIENCE_S
    while not path.exists() or not path.read_text().strip():
        assert time.monotonic() < end
        time.sleep(0.01)
    return path.read_text().split()


def test_all_end_well(start, tmp_path, capfd):
    ranks = start("echo out $RANK; echo err $RANK >&2", 3)
    assert ranks.wait() == {}
    # Rank 0 has the terminal, the others have their files.
    assert capfd.readouterr() == ("out 0\n", "err 0\n")
    for rank in (1, 2):
        assert [path.read_text() for path in ranks.outputs(rank)] == [f"err {rank}\n", f"out {rank}\n"]


def test_the_first_that_fails_comes_first_and_the_others_are_ended(start):
    failed = start("[ $RANK = 1 ] && exit 7; exec sleep 3600", 3).wait()
    assert list(failed.items()) == [(1, 7), (0, -signal.SIGTERM), (2, -signal.SIGTERM)]


def test_who_has_ended_well_is_no_failure(start):
    assert start("[ $RANK = 0 ] && exit 0; sleep 0.3; exit 3").wait() == {1: 3}


def test_a_signal_reaches_what_a_rank_has_started(start, tmp_path):
    ranks = start("sleep 3600 & echo $! > $FOLDER/child$RANK; wait")
    children = [psutil.Process(int(*wait_for(tmp_path / f"child{rank}"))) for rank in (0, 1)]
    ranks.send(signal.SIGTERM)
    assert list(ranks.wait().values()) == [-signal.SIGTERM] * 2
    gone, _ = psutil.wait_procs(children, timeout=60)
    assert len(gone) == 2 or all(child.status() == psutil.STATUS_ZOMBIE for child in children)


def test_who_does_not_listen_is_killed(start, tmp_path, monkeypatch):
    monkeypatch.setattr(rank_processes, "PATIENCE_S", 0.3)
    deaf = "trap '' TERM; echo deaf > $FOLDER/deaf$RANK; while true; do sleep 0.1; done"
    ranks = start(f"[ $RANK = 0 ] && while [ ! -s $FOLDER/deaf1 ]; do sleep 0.01; done && exit 5; {deaf}")
    assert ranks.wait() == {0: 5, 1: -signal.SIGKILL}


def test_if_one_cannot_be_started_none_is_left(tmp_path):
    environment = {**os.environ, "FOLDER": str(tmp_path)}
    script = "echo $$ > $FOLDER/pid; exec sleep 3600"
    (tmp_path / "1.out").mkdir()  # where the second's output should go
    before = psutil.Process().children()
    with pytest.raises(IsADirectoryError):
        RankProcesses(["/bin/sh", "-c", script], [environment] * 2, tmp_path)
    assert set(psutil.Process().children()) <= set(before)
