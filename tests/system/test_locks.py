"""One writer per folder: who is refused, who takes over, and who stops."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest

from horovod_transformer.errors import UserError
from horovod_transformer.system import lock_owner, locks
from horovod_transformer.system.lock_owner import Life, LockOwner
from horovod_transformer.system.locks import FolderLock, LockLostError

HOLDER = """
import sys, time
from pathlib import Path
from horovod_transformer.system import locks
locks.TOUCH_EVERY_S = 0.2
job = sys.argv[2] or None
path, silence = Path(sys.argv[1], ".lock"), float(sys.argv[3])
lock = locks.FolderLock(path, "it", job, attempt=1 if job else 0, silence=silence)
lock.acquire(lambda text: print(text, file=sys.stderr))
print("held", flush=True)
time.sleep(60)
"""
IN_A_CONTAINER = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"]


def has_namespaces() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run([*IN_A_CONTAINER, "true"], capture_output=True).returncode == 0


needs_namespaces = pytest.mark.skipif(not has_namespaces(), reason="pid namespaces need root")


@pytest.fixture
def start(tmp_path, root):
    """Start a process that wants the folder's lock: `start(job, before=[program], silence=seconds)`."""
    started = []

    def start(job="", before=(), silence=30.0):
        words = [*before, sys.executable, "-c", HOLDER, str(tmp_path), job, str(silence)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(words, cwd=root, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def holder(start):
    """As `start`, and wait until it has the lock."""

    def hold(*arguments, **options):
        process = start(*arguments, **options)
        assert process.stdout.readline() == "held\n", process.stderr.read()
        return process

    return hold


@pytest.fixture(autouse=True)
def no_memory_of_other_tests(monkeypatch):
    monkeypatch.setattr(locks, "_last_touches", {})


def foreign(tmp_path, name=".lock", **changes):
    """The lock of a process on another machine."""
    lock = tmp_path / name
    owner = {"host": "elsewhere", "pid": 1, "started": 1.0, "token": "theirs", "boot": "b", "namespace": "n"}
    lock.write_text(json.dumps({"job": None, "attempt": 0, "ticks": 1, **owner, **changes}))
    return lock


def written_by_efaa3e3(tmp_path, **changes):
    """The lock of an earlier version, with all the keys it had."""
    owner = {"job": None, "attempt": 0, "host": socket.gethostname(), "pid": os.getpid(), "token": "theirs"}
    owner |= {"started": psutil.Process().create_time(), **changes}
    (tmp_path / ".lock").write_text(json.dumps(owner))


def take(tmp_path, job=None, attempt=0, silence=0.5, name=".lock"):
    """Take the lock; returns it, what was told, and the seconds it took."""
    told, began = [], time.monotonic()
    lock = FolderLock(tmp_path / name, "it", job, attempt, silence)
    lock.acquire(told.append)
    lock.require()
    return lock, told, time.monotonic() - began


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
    _, told, seconds = take(tmp_path, silence=30.0)
    assert seconds < 10
    (line,) = told
    assert line.startswith(f"it: taken over from process {other.pid} on ") and line.endswith(
        "which has ended"
    )


def test_a_dead_process_that_nobody_asked_for_is_dead(tmp_path, holder):
    """As in a container whose first process does not collect those whose parents are gone."""
    other = holder()
    other.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    take(tmp_path, silence=30.0)
    assert psutil.Process(other.pid).status() == psutil.STATUS_ZOMBIE


def test_another_process_of_the_same_number_is_not_the_owner(tmp_path):
    own = LockOwner.this_process(None, 0)
    foreign(tmp_path, host=own.host, pid=own.pid, boot=own.boot, namespace=own.namespace, ticks=own.ticks - 1)
    assert take(tmp_path, silence=30.0)[2] < 10


@pytest.mark.parametrize("changes", [{"host": "renamed"}, {"started": 1.0}, {"job": "slurm-7"}], ids=str)
def test_a_living_process_is_known_whatever_its_name_and_clock(tmp_path, changes):
    """A laptop is renamed by the network it joins, a clock is set, a job's name is given twice."""
    own = LockOwner.this_process(None, 0)
    same = {key: getattr(own, key) for key in ("host", "pid", "boot", "namespace", "ticks")}
    lock = foreign(tmp_path, **{**same, **changes})
    os.utime(lock, (1, 1))
    with pytest.raises(UserError, match="is writing here"):
        take(tmp_path, "slurm-7", 1)


def test_a_suspended_process_lives(tmp_path, holder):
    other = holder()
    other.send_signal(signal.SIGSTOP)
    os.utime(tmp_path / ".lock", (1, 1))
    with pytest.raises(UserError, match=f"process {other.pid} on .* is writing here"):
        take(tmp_path)


@pytest.mark.parametrize("attempt", [0, 1])
def test_a_living_start_of_the_same_job_keeps_its_folder(tmp_path, holder, attempt):
    """Two launches may bear one name: torchrun's --rdzv-id, or srun twice in a Slurm job."""
    other = holder("slurm-7")
    with pytest.raises(UserError, match=f"job slurm-7, process {other.pid} on .* is writing here"):
        take(tmp_path, "slurm-7", 1 + attempt)
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == other.pid


def test_the_end_of_an_earlier_start_is_waited_for(tmp_path, holder):
    other = holder("slurm-7")
    threading.Timer(1.0, other.kill).start()
    _, told, _ = take(tmp_path, "slurm-7", 2, silence=60.0)
    assert told[0].endswith("wrote here; waiting 60 s for its end")
    assert told[1].endswith("which has ended")


@needs_namespaces
def test_a_process_of_another_container_is_asked_for_a_sign_of_life(tmp_path, start, holder):
    other = holder()
    second = start(before=IN_A_CONTAINER, silence=5.0)
    _, errors = second.communicate(timeout=60)
    assert "another container is writing here; wait for it" in errors.splitlines()[-1]
    assert other.poll() is None
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == other.pid
    other.kill()
    other.wait()
    third = holder(before=IN_A_CONTAINER, silence=1.0)
    third.kill()
    third.wait()
    _, told, _ = take(tmp_path)
    assert told[-1].endswith("in another container, which has given no sign of life")


@needs_namespaces
def test_where_proc_is_another_containers_nothing_is_seen(tmp_path, holder):
    """A number is then another process's there."""
    other = holder(before=["unshare", "--fork", "--pid", "--kill-child"])
    assert json.loads((tmp_path / ".lock").read_text())["namespace"] is None
    with pytest.raises(UserError, match="is writing here"):
        take(tmp_path, silence=5.0)
    assert other.poll() is None


def test_a_process_that_the_system_hides_is_not_dead(tmp_path, monkeypatch):
    own = LockOwner.this_process(None, 0)

    def hidden(pid):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(lock_owner, "_state_and_ticks", hidden)
    assert own.life() is Life.UNSEEN


def test_another_machine_is_taken_over_after_its_silence(tmp_path):
    foreign(tmp_path, job="slurm-6")
    _, told, seconds = take(tmp_path, "slurm-7")
    assert 0.5 <= seconds < 10
    assert told == [
        "it: job slurm-6, process 1 on elsewhere wrote here; waiting 0.5 s for a sign of life",
        "it: taken over from job slurm-6, process 1 on elsewhere, which has given no sign of life",
    ]


def test_another_machine_that_gives_a_sign_of_life_is_not_disturbed(tmp_path):
    lock = foreign(tmp_path, job="slurm-7")
    os.utime(lock, (1, 1))

    def touch(_):
        os.utime(lock)

    with pytest.raises(UserError, match="process 1 on elsewhere is writing here"):
        FolderLock(tmp_path / ".lock", "it", silence=5.0).acquire(touch)


def test_an_earlier_start_on_another_machine_may_fall_silent(tmp_path):
    lock = foreign(tmp_path, job="slurm-7")
    os.utime(lock, (1, 1))
    threading.Timer(0.2, os.utime, [lock]).start()
    _, told, seconds = take(tmp_path, "slurm-7", 1)
    assert seconds >= 0.7
    assert told[-1].endswith("which has given no sign of life")


def test_the_locks_of_one_dead_machine_are_waited_for_once(tmp_path):
    for number, name in enumerate("abc"):
        lock = foreign(tmp_path, name, pid=number + 1)
        os.utime(lock, (1000 + number, 1000 + number))
    living = foreign(tmp_path, "d")
    os.utime(living, (1030, 1030))
    assert take(tmp_path, name="a")[2] >= 0.5
    for name in "bc":
        _, told, seconds = take(tmp_path, name=name, silence=30.0)
        assert seconds < 10 and len(told) == 1
    # A process of that machine that has touched its lock since is another matter.
    assert take(tmp_path, name="d")[2] >= 0.5


class SharedFileSystem:
    """Answers one at a time, and nobody while it stalls."""

    def __init__(self, monkeypatch):
        self.answers = threading.Lock()
        self.looks = 0
        look = FolderLock._look

        def look_there(lock, path=None):
            with self.answers:
                self.looks += 1
                return look(lock, path)

        monkeypatch.setattr(FolderLock, "_look", look_there)

    def touch_until(self, path, ended):
        while not ended.wait(0.1):
            with self.answers:
                os.utime(path)


def test_a_stall_of_the_file_system_is_no_silence(tmp_path, monkeypatch):
    """Who counts seconds takes the folder when the stall ends, before the owner's touch gets through."""
    there, ended = SharedFileSystem(monkeypatch), threading.Event()
    lock = foreign(tmp_path)
    owner = threading.Thread(target=there.touch_until, args=(lock, ended))
    there.answers.acquire()
    owner.start()
    refused = []

    def contend():
        try:
            FolderLock(lock, "it", silence=2.0).acquire()
        except UserError as error:
            refused.append(str(error))

    contender = threading.Thread(target=contend)
    try:
        # It has just looked once, and so has the owner touched, when the stall begins.
        there.answers.release()
        contender.start()
        limit = time.monotonic() + 30
        while not there.looks and time.monotonic() < limit:
            time.sleep(0.001)
        with there.answers:
            time.sleep(3.0)
        contender.join(60)
    finally:
        ended.set()
        owner.join(60)
    assert refused and "is writing here" in refused[0]


def test_looks_that_fail_are_not_counted(tmp_path, monkeypatch):
    look, tries = FolderLock._look, []
    foreign(tmp_path)

    def often_away(self, path=None):
        tries.append(path)
        if path is None and len(tries) % 3 == 2:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return look(self, path)

    monkeypatch.setattr(FolderLock, "_look", often_away)
    assert take(tmp_path)[2] >= 0.7


def test_locks_of_earlier_versions_are_understood(tmp_path):
    written_by_efaa3e3(tmp_path)
    with pytest.raises(UserError, match=f"process {os.getpid()} on .* is writing here"):
        take(tmp_path)
    # Its clock may have been set, its number counted elsewhere: only its silence tells.
    written_by_efaa3e3(tmp_path, started=1.0)
    assert 0.5 <= take(tmp_path)[2] < 10
    written_by_efaa3e3(tmp_path, pid=2**22 + 1)
    locks._last_touches.clear()
    assert 0.5 <= take(tmp_path)[2] < 10


def test_locks_have_the_keys_that_earlier_versions_read(tmp_path):
    lock, _, _ = take(tmp_path, "slurm-7", 2)
    owner = json.loads(lock.path.read_text())
    assert (owner["job"], owner["attempt"], owner["host"]) == ("slurm-7", 2, socket.gethostname())
    assert owner["pid"] == os.getpid() and owner["token"]
    assert abs(owner["started"] - psutil.Process().create_time()) < 1.0


def test_an_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "TOUCH_EVERY_S", 0.05)
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
    own = LockOwner.this_process(None, 0)
    foreign(tmp_path, host=own.host, pid=2**22 + 1, boot=own.boot, namespace=own.namespace)
    words = [sys.executable, "-c", HOLDER, str(tmp_path), "", "30"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    tries = [subprocess.Popen(words, cwd=root, **pipes) for _ in range(6)]
    try:
        limit = time.monotonic() + 60
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


def test_a_lock_that_was_removed_is_nobodys_and_is_made_again(tmp_path):
    lock, told, _ = take(tmp_path, silence=30.0)
    shutil.rmtree(tmp_path)
    lock.require()
    assert json.loads(lock.path.read_text())["token"] == lock._mine.token
    assert told == ["it: the lock file was removed, but nobody else writes here: made again"]
    with pytest.raises(UserError, match="is writing here"):
        take(tmp_path)


def test_a_lock_that_was_removed_is_made_again_before_the_next_save(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "TOUCH_EVERY_S", 0.05)
    lock, told, _ = take(tmp_path, silence=30.0)
    lock.path.unlink()
    limit = time.monotonic() + 30
    while not lock.path.exists() and time.monotonic() < limit:
        time.sleep(0.02)
    assert lock.path.exists() and len(told) == 1
    lock.release()
    time.sleep(0.2)
    assert not lock.path.exists()


def test_a_lock_that_another_has_taken_meanwhile_is_lost(tmp_path, holder):
    lock, _, _ = take(tmp_path)
    lock.path.unlink()
    other = holder()
    with pytest.raises(
        LockLostError, match=f"was taken over by process {other.pid} on .*; this process stops"
    ):
        lock.require()
    # Giving up what one no longer has takes nothing from the new owner.
    lock.release()
    assert lock.path.exists()
    other.kill()
    other.wait()
    lock.path.unlink()
    with pytest.raises(LockLostError):
        lock.require()


def test_a_lock_that_is_gone_after_a_sleep_is_lost(tmp_path):
    """Another may have taken the folder after a silence, written, and ended."""
    lock, _, _ = take(tmp_path, silence=0.5)
    lock.path.unlink()
    time.sleep(0.6)
    with pytest.raises(LockLostError, match="its lock file is gone"):
        lock.require()
    assert not lock.path.exists()


DAMAGED = (
    "",
    "{",
    "[]",
    "\x00\x00",
    '{"pid": "1"}',
    '{"token": "t", "pid": -1}',
    '{"token": "t", "pid": 1e99}',
)


@pytest.mark.parametrize("text", DAMAGED, ids=repr)
def test_a_damaged_lock_holds_nobody_up_for_long(tmp_path, text):
    (tmp_path / ".lock").write_text(text)
    assert take(tmp_path)[2] >= 0.5
    lock, _, _ = take(tmp_path, silence=30.0, name="other")
    lock.path.write_text(text)
    lock.require()
    assert json.loads(lock.path.read_text())["token"] == lock._mine.token


def fails_until(monkeypatch, moment):
    """Let reading fail until then, as a network file system does that is away."""
    look = FolderLock._look

    def away(self, path=None):
        if time.monotonic() < moment:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return look(self, path)

    monkeypatch.setattr(FolderLock, "_look", away)


def test_a_file_system_that_is_away_for_a_moment_takes_no_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "TOUCH_EVERY_S", 0.05)
    lock = FolderLock(tmp_path / ".lock", "it", silence=2.0)
    lock.acquire()
    with monkeypatch.context() as patch:
        fails_until(patch, time.monotonic() + 0.5)
        lock.require()
        os.utime(lock.path, (1, 1))
        limit = time.monotonic() + 60
        while lock.path.stat().st_mtime < 2 and time.monotonic() < limit:
            time.sleep(0.02)
        assert lock.path.stat().st_mtime > 2  # it is touched still
    with monkeypatch.context() as patch:
        fails_until(patch, time.monotonic() + 60)
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
