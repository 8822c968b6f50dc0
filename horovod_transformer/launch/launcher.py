"""Start a command on several processes of this machine, and start it again when they fail.

What a training run needs beyond its processes: who speaks, which signals pass, which ends are worth another
start. Imports nothing heavy: the ranks wait for it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from horovod_transformer.errors import EXIT_MISTAKE, EXIT_START_AGAIN, UserError
from horovod_transformer.launch.gpus import GpuCount
from horovod_transformer.launch.processes import RankProcesses
from horovod_transformer.system import job_secret
from horovod_transformer.system.console import counted, tell
from horovod_transformer.system.signals import handling, stop_signals

HOST = "127.0.0.1"
PAUSE_S = 2.0  # before another start: ports and devices of the last one are free by then
# What reaches the ranks; a closed terminal ends them as SIGTERM does.
PASSED_ON = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGUSR2: signal.SIGUSR2,
    signal.SIGINT: signal.SIGINT,
    signal.SIGHUP: signal.SIGTERM,
}
SHOWN_LINES = 60  # of a failed rank's output


class Launcher:
    """Runs a command as ranks 0 to N - 1 of one job.

    Args:
        processes: N.
        command: The program and its arguments.
        max_restarts: How often to start again after a failure.

    Raises:
        UserError: There is no such program.
    """

    def __init__(self, processes: int, command: Sequence[str], max_restarts: int = 0) -> None:
        # `python` is this one, whether or not its environment is activated.
        self._path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        program = shutil.which(command[0], path=self._path)
        if program is None:
            raise UserError(f"{command[0]}: no such program; what follows -- is the command to start")
        self._command = [program, *command[1:]]
        self._processes, self._max_restarts = processes, max_restarts
        # A requeued Slurm job starts its command again: that is the same launch.
        self._job = os.environ.get("SLURM_JOB_ID") or uuid.uuid4().hex
        self._signals: list[int] = []
        self._ranks: RankProcesses | None = None

    def run(self) -> int:
        """Start the ranks until they end well, or for good; return the exit code."""
        with handling(stop_signals(), self._pass_on):
            return self._start_until_done()

    def _start_until_done(self) -> int:
        gpus = GpuCount() if self._max_restarts else None
        for attempt in range(self._max_restarts + 1):
            with tempfile.TemporaryDirectory(prefix="launch-") as logs:
                code, told = self._run_once(attempt, logs)
            if self._signals.count(signal.SIGINT) > 1:
                return 128 + signal.SIGINT
            if code == 0 or code == EXIT_MISTAKE:
                return code
            if code == EXIT_START_AGAIN or self._signals:
                return EXIT_START_AGAIN
            tell(f"launch: {told}", sys.stderr)
            if attempt < self._max_restarts:
                again = f"starting again in {PAUSE_S:g} s ({attempt + 1} of {self._max_restarts})"
                tell(f"launch: {again}", sys.stderr)
                time.sleep(PAUSE_S)
                gpus = self._give_up_lost_gpus(gpus)
                if self._signals:
                    return EXIT_START_AGAIN
        return code

    def _give_up_lost_gpus(self, before: GpuCount | None) -> GpuCount:
        """Start fewer ranks next time if the machine shows fewer GPUs than before and not enough for all."""
        assert before is not None
        now = GpuCount()
        left = now.result()
        if left < before.result() and 0 < left < self._processes:
            were, are = counted(before.result(), "GPU"), counted(left, "rank")
            tell(f"launch: of {were} {left} are left: starting {are}, not {self._processes}", sys.stderr)
            self._processes = left
        return now

    def _run_once(self, attempt: int, logs: str) -> tuple[int, str]:
        """Exit code, and how the rank that failed first has ended."""
        with _reserved_port() as port:
            shared = {
                **os.environ,
                "PATH": self._path,
                "WORLD_SIZE": str(self._processes),
                "LOCAL_WORLD_SIZE": str(self._processes),
                "GROUP_WORLD_SIZE": "1",
                "MASTER_ADDR": HOST,
                "MASTER_PORT": str(port),
                "TORCHELASTIC_RUN_ID": self._job,
                "TORCHELASTIC_RESTART_COUNT": str(attempt),
                "TORCHELASTIC_USE_AGENT_STORE": "False",  # rank 0 serves
                job_secret.VARIABLE: job_secret.new_secret(),
            }
            environments = [
                {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(self._processes)
            ]
            try:
                self._ranks = RankProcesses(self._command, environments, Path(logs))
            except OSError as error:  # a script without `#!`, or whose `#!` names nothing; too many processes
                what = error.filename or self._command[0]
                number = counted(self._processes, "process", "processes")
                raise UserError(f"{what}: cannot be started as {number} here: {error.strerror}") from None
            if self._signals:
                # It came while they were being started.
                self._send(PASSED_ON[signal.Signals(self._signals[0])])
            failures = self._ranks.wait()
        if not failures:
            return 0, ""
        rank, code = next(iter(failures.items()))
        if rank:
            _show(rank, *self._ranks.outputs(rank))
        if EXIT_START_AGAIN in failures.values():
            return EXIT_START_AGAIN, ""
        if code < 0:
            return 128 - code, f"rank {rank} was ended by {_signal_name(-code)}"
        return code, f"rank {rank} ended with exit code {code}"

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        at_once = self._signals.count(signal.SIGINT) > 1
        self._send(signal.SIGKILL if at_once else PASSED_ON[signal.Signals(number)])

    def _send(self, number: int) -> None:
        if self._ranks is not None:
            self._ranks.send(number)


@contextmanager
def _reserved_port() -> Iterator[int]:
    """A port that nobody else is given meanwhile; who asks for this one by its number may listen there."""
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind((HOST, 0))
        yield reservation.getsockname()[1]


def _signal_name(number: int) -> str:
    """Real-time signals but the first and the last have no name."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _show(rank: int, *outputs: Path) -> None:
    """Print what a rank has said last: its one line, or its traceback."""
    for output in outputs:
        lines = output.read_text(errors="replace").strip().splitlines()
        if lines:
            shown = lines[-1:] if lines[-1].startswith("error: ") else lines[-SHOWN_LINES:]
            tell("\n".join(f"rank {rank}: {line}" for line in shown), sys.stderr)
            return
