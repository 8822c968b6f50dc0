"""One writer at a time for a folder, also across the machines of a shared file system.

    lock = FolderLock(Path("run/checkpoints/.lock"), "run/checkpoints")
    lock.acquire()
    ...
    lock.require()      # right before what must not happen twice
    ...
    lock.release()

The lock is one small file that names job, host and process of its owner, and is touched while the
owner runs. The package `filelock` holds a lock by the system's flock, which many shared file systems lack or
keep to one machine. And it knows no owner: a refusal could not name one, and a lock that a dead machine or an
earlier start of the same job left could not be taken over.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from horovod_transformer.errors import UserError
from horovod_transformer.system.files import link_or_copy
from horovod_transformer.system.processes import living_process

# The owner touches its lock this often. One on another machine that has not for SILENCE_S is dead.
TOUCH_EVERY_S = 5.0
SILENCE_S = 30.0


class LockLostError(UserError):
    """Another process has taken the folder over; nothing more must be written into it."""


class FolderLock:
    """The right to write into a folder, held from `acquire` to `release`.

    It is taken over at once from a dead process of this machine and from an earlier start of the
    same job; from another machine's owner after a silence, since nobody here can see whether that
    process lives.

    Args:
        path: The lock file; its folder is there.
        what: What is locked, for messages.
        job: Names the job that this process is part of, the same when the job is started again;
            None if there is none.
        attempt: How often that job was started before.
        silence: Seconds without a touch after which a lock of another machine is taken over.
    """

    def __init__(
        self, path: Path, what: str, job: str | None = None, attempt: int = 0, silence: float = SILENCE_S
    ) -> None:
        self.path, self.what = path, what
        self._silence = silence
        self._mine = {
            "job": job,
            "attempt": attempt,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "token": uuid.uuid4().hex,
        }
        self._released = threading.Event()

    def acquire(self, say: Callable[[str], None] = lambda text: None) -> None:
        """Take the lock, or find out who has it.

        Args:
            say: Told in a line if a silent owner is waited for, or a lock is taken over.

        Raises:
            UserError: Somebody else is writing here.
            OSError: Nothing can be written here.
        """
        self._acquire(say)
        threading.Thread(target=self._keep_touching, daemon=True, name="folder lock").start()

    def require(self) -> None:
        """Make sure that the lock is still ours.

        Raises:
            LockLostError: It is another's, or gone.
            OSError: It has not been readable for so long that it may be another's.
        """
        began = time.monotonic()
        while True:
            try:
                owner = self._read()
                break
            except OSError:  # a file system that is away for a moment
                if time.monotonic() - began >= self._silence:
                    raise
                time.sleep(min(1.0, self._silence / 10))
        if owner is None or owner.get("token") != self._mine["token"]:
            by = f"by {_described(owner)}" if owner else "and its lock file is gone"
            raise LockLostError(
                f"{self.what}: was taken over {by}; this process stops before it writes there"
            )

    def release(self) -> None:
        """Give the folder up; harmless if it is not ours."""
        self._released.set()
        with suppress(OSError):  # it is stale then, and taken over
            owner = self._read()
            if owner is not None and owner.get("token") == self._mine["token"]:
                self.path.unlink(missing_ok=True)

    def _acquire(self, say: Callable[[str], None]) -> None:
        waited_for = None
        while not self._create():
            owner = self._read()
            if owner is None:
                continue  # released, or being written: look again
            if self._may_be_taken(owner):
                self._put_away(owner, say)
                continue
            if owner["host"] == self._mine["host"]:
                raise UserError(self._refusal(owner))
            if waited_for != owner["token"]:
                waited_for, touched, began = owner["token"], self._touched(), time.monotonic()
                say(
                    f"{self.what}: {_described(owner)} wrote here; waiting {self._silence:g} s for a "
                    "sign of life"
                )
            if self._touched() != touched:
                raise UserError(self._refusal(owner))
            if time.monotonic() - began >= self._silence:
                self._put_away(owner, say)
                continue
            time.sleep(min(1.0, self._silence / 10))

    def _put_away(self, owner: dict[str, Any], say: Callable[[str], None]) -> None:
        """Remove a lock of which nobody is the owner any more; of many that try, one does."""
        stale = self.path.with_name(f"{self.path.name}-stale-{self._mine['token']}")
        try:
            self.path.rename(stale)
        except FileNotFoundError:
            return
        if self._read(stale) == owner:
            say(f"{self.what}: taken over from {_described(owner)}, which has ended")
        else:
            link_or_copy(stale, self.path)  # somebody was quicker, and this is theirs
        stale.unlink()

    def _create(self) -> bool:
        """Write the lock file if there is none."""
        own = self.path.with_name(f"{self.path.name}-{self._mine['token']}")
        try:
            own.write_text(json.dumps(self._mine))
            link_or_copy(own, self.path)  # nobody reads it half written
        except FileExistsError:
            return False
        finally:
            own.unlink(missing_ok=True)
        return True

    def _may_be_taken(self, owner: dict[str, Any]) -> bool:
        same_job = owner["job"] is not None and owner["job"] == self._mine["job"]
        if same_job and owner["attempt"] < self._mine["attempt"]:
            return True
        return owner["host"] == self._mine["host"] and not _lives(owner)

    def _refusal(self, owner: dict[str, Any]) -> str:
        return (
            f"{self.what}: {_described(owner)} is writing here; wait for it, end it, or choose another folder"
        )

    def _touched(self) -> float:
        try:
            return self.path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _read(self, path: Path | None = None) -> dict[str, Any] | None:
        """What the lock file says; None if there is none. One that is not ours at all counts as dead."""
        try:
            owner = json.loads((path or self.path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            owner = None
        nobody = {
            "job": None,
            "attempt": 0,
            "host": self._mine["host"],
            "pid": -1,
            "started": 0.0,
            "token": None,
        }
        return {**nobody, **owner} if isinstance(owner, dict) else nobody

    def _keep_touching(self) -> None:
        while not self._released.wait(TOUCH_EVERY_S):
            with suppress(OSError):  # a file system that is away for a moment
                owner = self._read()
                if owner is None or owner.get("token") != self._mine["token"]:
                    return  # lost: `require` tells
                os.utime(self.path)


def _described(owner: dict[str, Any]) -> str:
    job = f"job {owner['job']}, " if owner["job"] else ""
    return f"{job}process {owner['pid']} on {owner['host']}"


def _lives(owner: dict[str, Any]) -> bool:
    """Whether the process of this machine that wrote the lock is still there."""
    try:
        process = living_process(int(owner["pid"]))
        return process is not None and abs(process.create_time() - float(owner["started"])) < 1.0
    except (psutil.NoSuchProcess, ValueError, TypeError):
        return False
    except psutil.Error:
        return True
