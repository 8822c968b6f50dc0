"""Run a command of ours on several processes of this machine."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from horovod_transformer.errors import EXIT_START_AGAIN, StoppedError, UserError


def horovod_is_installed() -> bool:
    """Whether several processes can train together."""
    return importlib.util.find_spec("horovod") is not None


def usual_processes(device: str) -> int:
    """How many processes to show training on: two, but one where Horovod is missing or a GPU would be shared.

    Args:
        device: As `training.device`.
    """
    if not horovod_is_installed():
        return 1
    import torch

    alone = torch.cuda.is_available() and torch.cuda.device_count() == 1
    return 1 if device != "cpu" and alone else 2


def run_verb(processes: int, verb: str, arguments: Sequence[str]) -> None:
    """Run `horovod-transformer VERB ...` on this many processes and wait for its end.

    A signal to stop is the verb's to obey: this waits until it has saved what it must.

    Args:
        processes: 1 runs it plainly, more under `horovod-transformer launch`.
        verb: A verb of the command line.
        arguments: Its arguments.

    Raises:
        StoppedError: A signal has stopped it.
        UserError: It ended badly; what it printed tells more.
    """
    program = [sys.executable, "-m", "horovod_transformer"]
    command = [*program, verb, *arguments]
    if processes > 1:
        command = [*program, "launch", "-np", str(processes), "--", *command]
    with subprocess.Popen(command) as process, _stops_passed_on(process) as stops:
        # Not Popen's own way with Ctrl-C, which is to kill the process after a quarter of a second.
        code = process.wait()
    if code == EXIT_START_AGAIN or (code and stops):
        raise StoppedError(f"`{verb}` was stopped")
    if code:
        raise UserError(
            f"`{verb}` on {processes} process(es) ended with exit code {code}; its output tells why"
        )


@contextmanager
def _stops_passed_on(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Leave it to the process to obey signals that ask to stop; yields those that have come."""
    stops: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        stops.append(number)
        # Of Ctrl-C a terminal tells the process itself, and a second one means "at once": not sent again.
        process.send_signal(signal.SIGTERM)

    before = {}
    with suppress(ValueError):  # only the main thread may handle signals
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                before[number] = signal.signal(number, pass_on)
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
