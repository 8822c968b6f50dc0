"""Who holds a lock, and whether that process still lives.

A process is known by what nobody repeats or sets: the boot of its machine, its pid namespace (a container has
one of its own), its number there, and its start in clock ticks since the boot. Host names are given twice,
numbers again and again, and clocks are set.
"""

from __future__ import annotations

import enum
import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import psutil

from horovod_transformer.system.processes import living_process

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Life(enum.Enum):
    """What can be seen of a process from here."""

    LIVES = enum.auto()
    ENDED = enum.auto()
    UNSEEN = enum.auto()  # on another machine, in another container, or hidden from this user


@dataclass(frozen=True)
class LockOwner:
    """A process that holds a lock, as its lock file describes it.

    Attributes:
        token: Made up for each lock; None for a lock file that nobody can have written like that.
        host, pid: For people, who look for the process.
        job: Names the job that it is part of, the same when the job is started again; None without one.
        attempt: How often that job was started before.
        started: Seconds since 1970, by the clock of then; what earlier versions compared.
        boot, namespace: Where the number counts; None where the system tells neither, and in locks of
            earlier versions.
        ticks: When the process started, in clock ticks since the boot.
    """

    token: str | None = None
    host: str = "?"
    pid: int = 0
    job: str | None = None
    attempt: int = 0
    started: float = 0.0
    boot: str | None = None
    namespace: str | None = None
    ticks: int | None = None

    @classmethod
    def this_process(cls, job: str | None, attempt: int) -> LockOwner:
        """Describe this process, as the owner of one more lock."""
        boot, namespace = _where_numbers_count()
        pid, started = os.getpid(), psutil.Process().create_time()
        ticks = None if namespace is None else _state_and_ticks(pid)[1]
        return cls(uuid.uuid4().hex, socket.gethostname(), pid, job, attempt, started, boot, namespace, ticks)

    @classmethod
    def from_text(cls, text: str) -> LockOwner:
        """Read a lock file; one that is damaged names no owner."""
        try:
            values = json.loads(text)
            owner = cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})
            sound = isinstance(owner.token, str) and 0 < owner.pid < 2**31 and owner.attempt >= 0
            float(owner.started)
        except (ValueError, TypeError, KeyError):
            return cls()
        return owner if sound else cls()

    def to_text(self) -> str:
        """What its lock file holds."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        if self.token is None:
            return "an unknown process (the lock file is damaged)"
        boot, namespace = _where_numbers_count()
        elsewhere = ", in another container" if self.boot == boot and self.namespace != namespace else ""
        return f"{f'job {self.job}, ' if self.job else ''}process {self.pid} on {self.host}{elsewhere}"

    @property
    def machine(self) -> str:
        """The same for all owners whose clock is the same."""
        return self.boot or self.host

    def is_earlier_start_of(self, other: LockOwner) -> bool:
        """Whether the same job has been started again since, as `other`."""
        return self.job is not None and self.job == other.job and self.attempt < other.attempt

    def life(self) -> Life:
        """Whether the process still lives, as far as this one can see."""
        if self.token is None:
            return Life.UNSEEN
        if self.boot is None or self.namespace is None:
            return self._life_without_boot()
        if (self.boot, self.namespace) != _where_numbers_count():
            return Life.UNSEEN
        try:
            os.kill(self.pid, 0)  # sends nothing
        except ProcessLookupError:
            return Life.ENDED
        except PermissionError:
            pass  # it is another user's
        try:
            state, ticks = _state_and_ticks(self.pid)
        except OSError:
            return Life.UNSEEN  # systems may hide other users' processes
        # One that nobody has waited for keeps its number, in some containers for ever.
        return Life.LIVES if ticks == self.ticks and state not in "ZXx" else Life.ENDED

    def _life_without_boot(self) -> Life:
        """Of an earlier version's lock: a process may be told to live, but not to have ended."""
        if self.host != socket.gethostname():
            return Life.UNSEEN
        try:
            process = living_process(self.pid)
            same = process is not None and abs(process.create_time() - float(self.started)) < 1.0
        except psutil.Error:
            return Life.UNSEEN
        return Life.LIVES if same else Life.UNSEEN


def _where_numbers_count() -> tuple[str | None, str | None]:
    """This machine's boot and this process's pid namespace; None for what the system does not tell."""
    try:
        # /proc may be another namespace's: numbers there are not those of `kill`.
        if os.readlink("/proc/self") != str(os.getpid()):
            return None, None
        return _BOOT_ID.read_text().strip(), os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        return None, None


def _state_and_ticks(pid: int) -> tuple[str, int]:
    """State and start of a process of this namespace, as Linux writes them in `/proc/PID/stat`.

    Raises:
        OSError: There is none, or it is hidden.
    """
    stat = Path(f"/proc/{pid}/stat").read_bytes().decode("latin-1")
    after_name = stat.rpartition(")")[2].split()  # the name may hold blanks and brackets
    return after_name[0], int(after_name[19])
