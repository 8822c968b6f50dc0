"""One writer per folder: who is refused, who takes over, and who stops."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from horovod_transformer.errors import UserError
from horovod_transformer.system import locks as folder_lock
from horovod_transformer.system.locks import FolderLock, LockLostError

HOLDER = """
import sys, time
from pathlib import Path
from horovod_transformer.system.locks import FolderLock
FolderLock(Path(sys.argv[1], ".lock"), "it", *sys.argv[2:3], attempt=len(sys.argv[2:])).acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path, root):
    """Another process that holds the lock of the folder; `holder(job)` starts it."""
    started = []

    def start(job=""):
        words = [sys.executable, "-c", HOLDER, str(tmp_path), *filter(None, [job])]
        process = subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def foreign(tmp_path, host="elsewhere", job=None, pid=1):
    """The lock of a process on another machine."""
    lock = tmp_path / ".lock"
    lock.write_text(
        json.dumps({"job": job, "attempt": 0, "host": host, "pid": pid, "started": 1.0, "token": "theirs"})
    )
    return lock


def test_a_folder_is_free_again_after_its_release(tmp_path):
    for _ in range(2):
        lock = FolderLock(tmp_path / ".lock", "it")
        lock.acquire()
        lock.require()
        lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_living_process_is_not_disturbed(tmp_path, holder):
    other = holder()
    with pytest.raises(UserError, match=rf"process {other.pid} on .* is writing here; wait for it, end it"):
        FolderLock(tmp_path / ".lock", "it").acquire()


def test_a_dead_process_is_followed_at_once(tmp_path, holder):
    other = holder()
    other.send_signal(signal.SIGKILL)
    other.wait()
    said = []
    lock = FolderLock(tmp_path / ".lock", "it")
    lock.acquire(said.append)
    lock.require()
    (line,) = said  # nothing of waiting
    assert "taken over" in line


def test_a_dead_process_that_nobody_asked_for_is_dead(tmp_path, holder):
    """As in a container whose first process does not collect those whose parents are gone."""
    other = holder()
    other.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    lock = FolderLock(tmp_path / ".lock", "it")
    lock.acquire()
    lock.require()
    assert psutil.Process(other.pid).status() == psutil.STATUS_ZOMBIE


def test_another_process_of_the_same_number_is_not_the_owner(tmp_path):
    lock = FolderLock(tmp_path / ".lock", "it")
    foreign(tmp_path, host=lock._mine["host"], pid=os.getpid())
    lock.acquire()
    lock.require()


def test_the_same_job_takes_over_and_the_former_owner_notices(tmp_path, holder):
    first = FolderLock(tmp_path / ".lock", "it", "slurm-7")
    first.acquire()
    first.require()
    holder("slurm-7")
    with pytest.raises(LockLostError, match="was taken over by job slurm-7, process .* this process stops"):
        first.require()
    # Giving up what one no longer has takes nothing from the new owner.
    first.release()
    assert (tmp_path / ".lock").exists()


def test_another_machine_is_taken_over_after_its_silence(tmp_path):
    foreign(tmp_path, job="slurm-6")
    said = []
    began = time.monotonic()
    lock = FolderLock(tmp_path / ".lock", "it", "slurm-7", silence=1.0)
    lock.acquire(said.append)
    lock.require()
    assert time.monotonic() - began >= 1.0
    assert said == [
        "it: job slurm-6, process 1 on elsewhere wrote here; waiting 1 s for a sign of life",
        "it: taken over from job slurm-6, process 1 on elsewhere, which has ended",
    ]


def test_another_machine_that_gives_a_sign_of_life_is_not_disturbed(tmp_path):
    lock = foreign(tmp_path)
    os.utime(lock, (1, 1))

    def touch(_):
        os.utime(lock)

    with pytest.raises(UserError, match="process 1 on elsewhere is writing here"):
        FolderLock(tmp_path / ".lock", "it", silence=5.0).acquire(touch)


def test_an_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "TOUCH_EVERY_S", 0.05)
    lock = FolderLock(tmp_path / ".lock", "it")
    lock.acquire()
    os.utime(lock.path, (1, 1))
    limit = time.monotonic() + 60
    while lock.path.stat().st_mtime < 2 and time.monotonic() < limit:
        time.sleep(0.02)
    assert lock.path.stat().st_mtime > 2
    lock.release()


def test_two_steps_of_one_start_are_two_writers(tmp_path, holder):
    holder("slurm-7")
    with pytest.raises(UserError, match="job slurm-7, process .* is writing here"):
        FolderLock(tmp_path / ".lock", "it", "slurm-7", attempt=1).acquire()


def test_of_many_at_once_one_wins(tmp_path, root):
    foreign(tmp_path, host=socket.gethostname(), pid=2**22 + 1)
    words = [sys.executable, "-c", HOLDER, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    tries = [subprocess.Popen(words, cwd=root, **pipes) for _ in range(6)]
    try:
        limit = time.monotonic() + 300
        while sum(process.poll() is None for process in tries) > 1 and time.monotonic() < limit:
            time.sleep(0.05)
        winners = [process for process in tries if process.poll() is None]
        assert len(winners) == 1
        assert winners[0].stdout.readline() == "held\n"
        losers = [process.stderr.read() for process in tries if process not in winners]
        assert all("is writing here" in text for text in losers)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    finally:
        for process in tries:
            process.kill()
            process.wait()


def test_a_lock_that_is_gone_is_lost(tmp_path):
    lock = FolderLock(tmp_path / ".lock", "it")
    lock.acquire()
    lock.path.unlink()
    with pytest.raises(LockLostError, match="its lock file is gone"):
        lock.require()


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_damaged_lock_holds_nobody_up(tmp_path, text):
    (tmp_path / ".lock").write_text(text)
    lock = FolderLock(tmp_path / ".lock", "it")
    lock.acquire()
    lock.require()


def fails_until(monkeypatch, moment):
    """Let reading fail until then, as a network file system does that is away."""
    read = Path.read_text

    def away(self, *arguments, **options):
        if time.monotonic() < moment:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(self, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", away)


def test_a_file_system_that_is_away_for_a_moment_takes_no_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "TOUCH_EVERY_S", 0.05)
    lock = FolderLock(tmp_path / ".lock", "it", silence=2.0)
    lock.acquire()
    fails_until(monkeypatch, time.monotonic() + 0.5)
    lock.require()
    os.utime(lock.path, (1, 1))
    limit = time.monotonic() + 60
    while lock.path.stat().st_mtime < 2 and time.monotonic() < limit:
        time.sleep(0.02)
    assert lock.path.stat().st_mtime > 2  # it is touched still
    fails_until(monkeypatch, time.monotonic() + 60)
    with pytest.raises(OSError, match="Stale"):
        lock.require()
    lock.release()


def test_without_links_there_is_one_owner_still(tmp_path, monkeypatch, holder):
    def link(*paths):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    lock = FolderLock(tmp_path / ".lock", "it")
    lock.acquire()
    lock.require()
    with pytest.raises(UserError, match="is writing here"):
        FolderLock(tmp_path / ".lock", "it").acquire()
    lock.release()
    assert list(tmp_path.iterdir()) == []
    other = holder()
    with pytest.raises(UserError, match=f"process {other.pid} .* is writing here"):
        FolderLock(tmp_path / ".lock", "it").acquire()
