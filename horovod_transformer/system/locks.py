"""One writer at a time for a folder, also across the machines of a shared file system.

    lock = FolderLock(Path("run/checkpoints/.lock"), "run/checkpoints")
    lock.acquire()
    ...
    lock.require()      # right before what must not happen twice
    ...
    lock.release()

The lock is one small file that names its owner, and is touched while the owner runs. The package
`filelock` holds a lock by the system's flock, which many shared file systems lack or keep to one machine. And
it knows no owner: a refusal could not name one, and a lock that a dead machine left could not be taken over.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from horovod_transformer.errors import UserError
from horovod_transformer.system.files import link_or_copy
from horovod_transformer.system.lock_owner import Life, LockOwner

# The owner touches its lock this often. One that cannot be seen and has not for SILENCE_S is dead.
TOUCH_EVERY_S = 5.0
SILENCE_S = 30.0

# Machine -> when the lock of its that turned out to be silent was last touched.
_last_touches: dict[str, float] = {}


class LockLostError(UserError):
    """Another process has taken the folder over; nothing more must be written into it."""


class Look(NamedTuple):
    """What a look at a lock file shows: its owner, and when that touched it last."""

    owner: LockOwner
    touched: float


class FolderLock:
    """The right to write into a folder, held from `acquire` to `release`.

    A living owner keeps it. It is taken over at once from a process that is seen to have ended, and after a
    silence from one that cannot be seen: on another machine, in another container. A silence is counted in
    looks that the file system answered: while it stalls, the owner's touches do not get through, either.

    Args:
        path: The lock file; its folder is there.
        what: What is locked, for messages.
        job: Names the job that this process is part of, the same when the job is started again; None if
            there is none. An earlier start of the job may be about to end: that is waited for, as long as
            for a sign of life.
        attempt: How often that job was started before.
        silence: Seconds without a touch after which an owner that cannot be seen is dead.
    """

    def __init__(
        self, path: Path, what: str, job: str | None = None, attempt: int = 0, silence: float = SILENCE_S
    ) -> None:
        self.path, self.what = path, what
        self._silence = silence
        self._interval = min(1.0, silence / 10)
        self._looks = round(silence / self._interval)
        self._mine = LockOwner.this_process(job, attempt)
        self._say: Callable[[str], None] = lambda text: None
        self._mutex = threading.Lock()
        self._released = threading.Event()
        self._lost: str | None = None
        self._held_at = 0.0

    def acquire(self, say: Callable[[str], None] = lambda text: None) -> None:
        """Take the lock, or find out who has it.

        Args:
            say: Told in a line if an owner is waited for or followed, and later on if the lock file was
                removed and is made again.

        Raises:
            UserError: Somebody else is writing here.
            OSError: Nothing can be written here.
        """
        self._say = say
        while True:
            found = self._look()
            if found is not None and (stale := self._wait_for_end(found)):
                self._put_away(stale)
            if self._create():
                break
            time.sleep(self._interval / 10)  # somebody was quicker
        threading.Thread(target=self._keep_touching, daemon=True, name="folder lock").start()

    def require(self) -> None:
        """Make sure that the lock is ours; one whose file was removed is nobody's, and is made again.

        Raises:
            LockLostError: It is another's.
            OSError: It has not been readable for so long that it may be another's.
        """
        began = time.monotonic()
        while True:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                return self._hold()
            except OSError:  # a file system that is away for a moment
                if time.monotonic() - began >= self._silence:
                    raise
                time.sleep(self._interval)

    def release(self) -> None:
        """Give the folder up; harmless if it is not ours."""
        with self._mutex, suppress(OSError):  # it is stale then, and taken over
            self._released.set()
            found = self._look()
            if found is not None and found.owner.token == self._mine.token:
                self.path.unlink(missing_ok=True)

    def _wait_for_end(self, found: Look) -> Look | None:
        """Wait until it is certain that a lock's owner is dead.

        Returns:
            The lock as it was then; None if it is no longer that owner's.

        Raises:
            UserError: The owner lives.
        """
        owner, silent = found.owner, 0
        for looks in itertools.count():
            life = owner.life()
            if life is Life.ENDED:
                self._say(f"{self.what}: taken over from {owner}, which has ended")
                return found
            if life is Life.UNSEEN and (silent >= self._looks or _fell_silent_with_another(found)):
                _last_touches[owner.machine] = found.touched
                self._say(f"{self.what}: taken over from {owner}, which has given no sign of life")
                return found
            lives = life is Life.LIVES or (looks > 0 and silent == 0)
            # An earlier start of the same job may be on its way out.
            if lives and not (owner.is_earlier_start_of(self._mine) and looks < self._looks):
                raise UserError(
                    f"{self.what}: {owner} is writing here; wait for it, end it, or choose another folder"
                )
            if looks == 0:
                awaited = "its end" if lives else "a sign of life"
                self._say(f"{self.what}: {owner} wrote here; waiting {self._silence:g} s for {awaited}")
            before, now = found, self._next_look()
            if now is None or now.owner != owner:
                return None
            found, silent = now, silent + 1 if now == before else 0
        raise AssertionError("unreachable")

    def _next_look(self) -> Look | None:
        """Look at the lock file in a moment; a look that gets no answer is none."""
        for tries in itertools.count(1):
            time.sleep(self._interval)
            try:
                return self._look()
            except OSError:
                if tries >= self._looks:
                    raise
        raise AssertionError("unreachable")

    def _look(self, path: Path | None = None) -> Look | None:
        """Read the lock file; None if there is none."""
        try:
            # Opening a file asks a network file system; `stat` may be answered from this machine's memory.
            with open(path or self.path, encoding="utf-8", errors="replace") as file:
                return Look(LockOwner.from_text(file.read()), os.fstat(file.fileno()).st_mtime)
        except FileNotFoundError:
            return None

    def _put_away(self, stale: Look) -> None:
        """Remove the lock of a dead owner; of many that try, one does."""
        aside = self.path.with_name(f"{self.path.name}-stale-{self._mine.token}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        if self._look(aside) != stale:
            with suppress(FileExistsError):  # its owner has noticed, and made another
                link_or_copy(aside, self.path)  # somebody was quicker, and this is theirs
        aside.unlink()

    def _create(self) -> bool:
        """Write the lock file if there is none."""
        own = self.path.with_name(f"{self.path.name}-{self._mine.token}")
        try:
            own.write_text(self._mine.to_text(), encoding="utf-8")
            link_or_copy(own, self.path)  # nobody reads it half written
        except FileExistsError:
            return False
        finally:
            own.unlink(missing_ok=True)
        self._held_at = _now()
        return True

    def _hold(self) -> None:
        """Find the lock ours, or make it again if its file was removed.

        Raises:
            LockLostError: It is another's, or may have been meanwhile.
            OSError: The file system does not answer.
        """
        with self._mutex:
            while not self._released.is_set() and self._lost is None:
                found = self._look()
                token = found.owner.token if found else None
                if token == self._mine.token:
                    self._held_at = _now()
                    return
                if found and token is not None:
                    self._lost = f"by {found.owner}"
                elif _now() - self._held_at >= self._silence:
                    # As after a machine was asleep: another may have come, and gone.
                    self._lost = "meanwhile, as it seems: its lock file is gone"
                elif found:
                    self._put_away(found)  # damaged
                elif self._create():
                    self._say(
                        f"{self.what}: the lock file was removed, but nobody else writes here: made again"
                    )
        if self._lost is not None:
            raise LockLostError(
                f"{self.what}: was taken over {self._lost}; this process stops before it writes there"
            )

    def _keep_touching(self) -> None:
        while not self._released.wait(TOUCH_EVERY_S):
            try:
                self._hold()
                os.utime(self.path)
            except LockLostError:
                return  # `require` tells
            except OSError:
                pass  # a file system that is away for a moment


def _fell_silent_with_another(found: Look) -> bool:
    """Whether another lock of that machine was last touched then, too, and was waited for in vain."""
    last = _last_touches.get(found.owner.machine)
    return last is not None and abs(found.touched - last) <= 2 * TOUCH_EVERY_S


def _now() -> float:
    """Seconds of a clock that nobody sets; where the system has one that runs while it is asleep, of that."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
