"""Ends a rank that makes no progress, so that the job ends with a reason instead of hanging.

A rank that is stopped, or waits for a machine that is gone, cannot end itself: Gloo's time-out
ends the others, and then the launcher waits for ever for the one that never exits. So each rank
has a companion process that expects a sign of life every so often and otherwise kills the rank.
The launcher sees that and ends the whole job.

This file is also the companion's program: it imports nothing but the standard library.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from typing import ClassVar


class Watchdog:
    """Kills this process unless `beat` is called often enough, while entered.

    A process has one at a time: the one of a run takes over from the one of its start-up.

    Args:
        timeout: Seconds between two beats; None watches nothing.
        rank: For the message.
        setting: The name of what sets the time-out, for the message.
    """

    _running: ClassVar[Watchdog | None] = None

    def __init__(self, timeout: float | None, rank: int, setting: str = "distributed.stall_timeout") -> None:
        self._timeout, self._rank, self._setting = timeout, rank, setting
        self._companion: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Watchdog:
        before, Watchdog._running = Watchdog._running, self
        if self._timeout is not None:
            # Isolated and without site-packages: it starts in milliseconds and takes a few MB.
            words = [sys.executable, "-I", "-S", __file__]
            words += [str(os.getpid()), str(self._timeout), str(self._rank), self._setting]
            from horovod_transformer.system.signals import held_back  # not for the companion

            with held_back():  # until the companion has come so far as to ignore them, one would end it
                self._companion = subprocess.Popen(words, stdin=subprocess.PIPE, bufsize=0)
        if before is not None:
            before._end()
        return self

    def beat(self) -> None:
        """Show that the rank is alive and getting on, to whichever watchdog is entered."""
        running = Watchdog._running
        if running is not None and running._companion is not None:
            assert running._companion.stdin is not None
            try:
                running._companion.stdin.write(b".")
            except BrokenPipeError:
                running._companion = None  # somebody ended the companion; the rank runs unwatched

    def __exit__(self, *error: object) -> None:
        self._end()
        if Watchdog._running is self:
            Watchdog._running = None

    def _end(self) -> None:
        if self._companion is not None:
            assert self._companion.stdin is not None
            # Not by closing its input alone: loader processes hold copies of the pipe.
            self._companion.kill()
            self._companion.stdin.close()
            self._companion.wait()
            self._companion = None


def watch(parent: int, timeout: float, rank: str, setting: str) -> None:
    """Read signs of life on stdin until it ends; kill the parent if none comes in time."""
    # Signals meant for the rank reach its whole process group: the rank decides when to end.
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while select.select([0], [], [], timeout)[0]:
        if not os.read(0, 4096):
            return
    if os.getppid() == parent:
        print(
            f"rank {rank}: no progress for {timeout:g} s ({setting}), so it is killed: a "
            "process was stopped, a machine is gone or the network hangs; --resume auto continues from "
            "the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os.kill(parent, signal.SIGKILL)


if __name__ == "__main__":
    watch(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4])
