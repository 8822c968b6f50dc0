"""A run under `horovod-transformer launch` whose ranks are killed and stopped; nobody starts it by hand."""

from __future__ import annotations

import re
import signal
import time
from contextlib import suppress
from typing import Any, ClassVar

import psutil

from tests.chaos.job import JOB_LIMIT_S, Job, last_update, wait
from tests.chaos.kill_test import Kill, KillTest

STALL_TIMEOUT_S = 10.0
# Never two in a row before a new checkpoint: that would rightly end the launch.
PLANS = [
    ("rank 0", "checkpoint"),
    ("rank 1", "start-up"),
    ("rank 1", "training"),
    ("rank 0", "training"),
    ("rank 1", "checkpoint"),
    ("rank 0", "start-up"),
    ("rank 0", "checkpoint"),
    ("rank 1", "stopped"),
    ("rank 1", "checkpoint"),
    ("rank 0", "training"),
]


class LaunchTest(KillTest):
    """As `KillTest`, but the launcher alone brings the run to its end."""

    changes: ClassVar[dict[str, Any]] = {**KillTest.changes, "distributed__stall_timeout": STALL_TIMEOUT_S}

    restarts: ClassVar[int | None] = 0
    _struck_at = 0.0  # on the clock that processes are born by
    _seen = 0  # starts that had told where they begin, at the last strike

    def run_killed(self, number: int) -> None:
        """Strike one process after another of a single job, and let it end."""
        job = Job(self.config, self.folder / "killed", self.table, restarts=number + 2)
        try:
            begin = self.random.randrange(len(PLANS))
            for index in range(number):
                self._strike(job, *PLANS[(begin + index) % len(PLANS)])
            job.finish()
        except (TimeoutError, RuntimeError) as error:
            self.complaints.append(f"{error}:\n{job.output[-3000:]}")
        finally:
            left = job.clean_up()
        if left and not self.complaints:
            self.complaints.append(f"{left} processes outlived the launcher")

    def _strike(self, job: Job, victim: str, moment: str) -> None:
        newest = self._newest_checkpoint()
        if self.kills:
            # The launcher starts the ranks again; nobody else does.
            wait(lambda: self._starts(job) > self._seen or job.ended or moment == "start-up", JOB_LIMIT_S)
            if self._starts(job) > self._seen:
                self.kills[-1].recovery_s = time.monotonic() - self._killed_at
                self.kills[-1].recomputed = max(0, self.kills[-1].at_update - self._resumed_from(job))
        if moment != "start-up":
            wait(lambda: self._newest_checkpoint() > newest or job.ended, JOB_LIMIT_S)
        before = self.unfinished()
        if moment == "checkpoint":
            wait(lambda: self.unfinished() or job.ended, JOB_LIMIT_S, every=0.0002)
        number = int(victim[-1])
        wait(lambda: self._living(job, number) or job.ended, JOB_LIMIT_S, every=0.05)
        process = self._living(job, number)
        if process is None:
            raise RuntimeError(
                f"the job had ended ({job.launcher.returncode}) before {victim} could be struck"
            )
        if moment == "start-up":
            time.sleep(self.random.uniform(0, 1.5))
        elif moment != "checkpoint":
            time.sleep(self.random.uniform(0, 0.2))
        self._seen = self._starts(job)
        process.send_signal(signal.SIGSTOP if moment == "stopped" else signal.SIGKILL)
        self._killed_at, self._struck_at = time.monotonic(), time.time()
        kill = Kill(victim, moment, last_update(self.table), in_mid_write=bool(self.unfinished() - before))
        self.kills.append(kill)
        wait(lambda: not process.is_running() or process.status() == "zombie", 3 * STALL_TIMEOUT_S)
        self.say(f"{len(self.kills)}: {victim} {moment}, update {kill.at_update}")

    def _living(self, job: Job, number: int) -> psutil.Process | None:
        """The process of a rank, but not one that the last strike is still ending."""
        process = job.rank(number)
        with suppress(psutil.NoSuchProcess):
            if process is not None and process.create_time() > self._struck_at:
                return process
        return None

    def _starts(self, job: Job) -> int:
        return len(re.findall(r"resuming after update|starting afresh", job.output))

    def _resumed_from(self, job: Job) -> int:
        found = re.findall(r"resuming after update (\d+) from", job.output)
        return int(found[-1]) if found else 0

    def _newest_checkpoint(self) -> int:
        found = (
            re.fullmatch(r"update_(\d+)\.pt", path.name) for path in self.checkpoints.glob("update_*.pt")
        )
        return max((int(match[1]) for match in found if match), default=0)
