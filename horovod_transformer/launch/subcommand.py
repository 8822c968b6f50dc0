"""Run a command of ours on several processes of this machine."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

from horovod_transformer.errors import EXIT_START_AGAIN, StoppedError, UserError
from horovod_transformer.system.console import counted
from horovod_transformer.system.signals import handling, not_ignored


def run_subcommand(
    processes: int, name: str, arguments: Sequence[str], output: IO[bytes] | None = None
) -> None:
    """Run `horovod-transformer NAME ...` on this many processes and wait for its end.

    Signals that ask to stop are passed on to the subcommand; this waits until it has saved what it must.

    Args:
        processes: 1 runs it plainly, more under `horovod-transformer launch`.
        name: A subcommand of the command line.
        arguments: Its arguments.
        output: A file that takes what it prints; None: the screen.

    Raises:
        StoppedError: A signal has stopped it.
        UserError: It ended badly; what it printed tells more.
    """
    program = [sys.executable, "-m", "horovod_transformer"]
    command = [*program, name, *arguments]
    if processes > 1:
        command = [*program, "launch", "-np", str(processes), "--", *command]
    with (
        subprocess.Popen(command, stdout=output, stderr=output) as process,
        _stops_passed_on(process) as stops,
    ):
        # Not Popen's own way with Ctrl-C, which is to kill the process after a quarter of a second.
        code = process.wait()
    if code == EXIT_START_AGAIN or (code and stops):
        raise StoppedError(f"`{name}` was stopped")
    if code:
        raise UserError(
            f"`{name}` on {counted(processes, 'process', 'processes')} ended with exit code {code}; "
            "its output tells why"
        )


def program_as_typed() -> str:
    """How a command to be copied names this program: by its name if $PATH finds it, else by its path."""
    script = Path(sys.executable).with_name("horovod-transformer")
    if shutil.which(script.name) == str(script):
        return script.name
    if script.is_file():
        return shlex.quote(os.path.relpath(script) if script.is_relative_to(Path.cwd()) else str(script))
    return shlex.join([sys.executable, "-m", "horovod_transformer"])


@contextmanager
def _stops_passed_on(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Leave it to the process to obey signals that ask to stop; yields those that have come."""
    stops: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        stops.append(number)
        # Of Ctrl-C a terminal tells the process itself, and a second one means "at once": not sent again.
        process.send_signal(signal.SIGTERM)

    with handling(not_ignored((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)), pass_on):
        yield stops
