"""Other processes of this machine: whether one lives, and how this one ends with its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from multiprocessing import connection

import psutil

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def exit_with(other: int | connection.Connection) -> None:
    """End this process at once when another one ends, even if that is killed.

    Args:
        other: Its number, which takes Linux 5.3 or newer (elsewhere nothing happens); or the reading end of a
            pipe whose other end it holds: closing that ends this process, too.
    """
    try:
        watched = os.pidfd_open(other) if isinstance(other, int) else other
    except (AttributeError, OSError):
        return

    def exit_when_it_has_ended() -> None:
        connection.wait([watched])
        os._exit(1)

    threading.Thread(target=exit_when_it_has_ended, daemon=True, name="parent").start()


def terminate_with_parent() -> None:
    """Let Linux send this process SIGTERM when its parent ends, even if that is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def living_process(pid: int) -> psutil.Process | None:
    """Return the process of this machine that has this number and may still write; None if none does.

    One that has ended keeps its number until its parent asks how. In a container whose first process
    never asks, that is for ever.

    Raises:
        psutil.Error: There is one, and no more can be known.
    """
    try:
        process = psutil.Process(pid)
        return None if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) else process
    except (psutil.NoSuchProcess, ValueError):
        return None
