"""One writer at a time: who is refused, who takes over, and that the loser stops before it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from horovod_transformer.errors import UserError
from horovod_transformer.folder_lock import FolderLock

HOLD = """
import sys, pathlib
from horovod_transformer.folder_lock import FolderLock
with FolderLock(pathlib.Path(sys.argv[1]), "the folder"):
    print("held", flush=True)
    sys.stdin.read()
"""


def quiet(text: str) -> None:
    pass


@pytest.fixture
def holder(root: Path, tmp_path: Path):
    """Another process that holds the lock until its input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def as_of_another_host(path: Path, **changes: object) -> None:
    owner = {"host": "far", "pid": 1, "started": 1.0, "job": "", "restart": "0", "token": "t", **changes}
    path.write_text(json.dumps(owner))


def test_a_living_owner_is_named_and_nothing_is_touched(holder: subprocess.Popen, tmp_path: Path) -> None:
    before = (tmp_path / "lock").read_bytes()
    with pytest.raises(UserError, match=f"the folder: process {holder.pid} on .* is at work on it"):
        FolderLock(tmp_path / "lock", "the folder").__enter__()
    assert (tmp_path / "lock").read_bytes() == before and os.listdir(tmp_path) == ["lock"]
    holder.communicate("")
    with FolderLock(tmp_path / "lock", "the folder") as lock:
        lock.require_held()
    assert os.listdir(tmp_path) == []


def test_a_dead_process_of_this_host_loses_at_once(holder: subprocess.Popen, tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    said: list[str] = []
    with FolderLock(tmp_path / "lock", "the folder", say=said.append) as lock:
        lock.require_held()
    assert said and "taken over from process" in said[0]


def test_another_process_with_a_dead_ones_number_is_not_it(tmp_path: Path) -> None:
    here = psutil.Process(os.getppid())
    as_of_another_host(tmp_path / "lock", host=os.uname().nodename, pid=here.pid, started=1.0)
    with FolderLock(tmp_path / "lock", "x", say=quiet):
        pass
    as_of_another_host(tmp_path / "lock", host=os.uname().nodename, pid=here.pid, started=here.create_time())
    with pytest.raises(UserError, match="is at work on it"):
        FolderLock(tmp_path / "lock", "x").__enter__()


def test_another_host_has_its_silence_to_come_back(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    as_of_another_host(path)
    with pytest.raises(UserError, match="process 1 on far is at work .* after 60 s of silence"):
        FolderLock(path, "x", silence_s=60).__enter__()
    os.utime(path, (time.time() - 61,) * 2)
    with FolderLock(path, "x", silence_s=60, say=quiet) as lock:
        lock.require_held()


def test_a_requeued_job_takes_over_from_its_earlier_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    as_of_another_host(tmp_path / "lock", job="77", restart="1")
    with pytest.raises(UserError, match="Slurm job 77"):
        FolderLock(tmp_path / "lock", "x").__enter__()
    as_of_another_host(tmp_path / "lock", job="77", restart="0")
    with FolderLock(tmp_path / "lock", "x", say=quiet):
        pass


def test_who_lost_the_lock_is_told_and_leaves_it(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "lock", "x") as lock:
        as_of_another_host(tmp_path / "lock")
        with pytest.raises(UserError, match="was taken over by process 1 on far; this process stops"):
            lock.require_held()
    assert json.loads((tmp_path / "lock").read_text())["host"] == "far"


def test_of_many_at_once_one_wins(tmp_path: Path) -> None:
    as_of_another_host(tmp_path / "lock")
    os.utime(tmp_path / "lock", (1, 1))
    won, lost, gate = [], [], threading.Barrier(8)
    done = threading.Barrier(8)

    def attempt() -> None:
        gate.wait()
        lock = FolderLock(tmp_path / "lock", "x", say=quiet)
        try:
            lock.__enter__()
        except UserError as error:
            lost.append(str(error))
            done.wait()
            return
        lock.require_held()
        won.append(lock)
        done.wait()
        lock.__exit__(None, None, None)

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(lost) == 7 and os.listdir(tmp_path) == []
