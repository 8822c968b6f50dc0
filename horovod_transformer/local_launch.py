"""Start a command on several processes of this machine, and start it again when they fail.

It tells the ranks what `torchrun` would, without torch itself: the ranks need most of a second of both
cores to load it, and would wait for a launcher that did so first.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import FrameType

from horovod_transformer.errors import EXIT_MISTAKE, EXIT_START_AGAIN, UserError

POLL_S = 0.05
GRACE_S = 30.0  # from SIGTERM to SIGKILL, for ranks that are to end because another one has
PAUSE_S = 2.0  # before another start: ports and devices of the last one are free by then
# What reaches the ranks; a closed terminal ends them as SIGTERM does.
PASSED_ON = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
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
        self._job = uuid.uuid4().hex
        self._signals: list[int] = []
        self._ranks: list[subprocess.Popen[bytes]] = []

    def run(self) -> int:
        """Start the ranks until they end well, or for good; return the exit code."""
        for number in PASSED_ON:
            signal.signal(number, self._pass_on)
        for attempt in range(self._max_restarts + 1):
            with tempfile.TemporaryDirectory(prefix="launch-") as logs:
                code, told = self._run_once(attempt, Path(logs))
            if self._signals.count(signal.SIGINT) > 1:
                return 128 + signal.SIGINT
            if code == 0 or code == EXIT_MISTAKE:
                return code
            if code == EXIT_START_AGAIN or self._signals:
                return EXIT_START_AGAIN
            print(f"launch: {told}", file=sys.stderr, flush=True)
            if attempt < self._max_restarts:
                again = f"starting again in {PAUSE_S:g} s ({attempt + 1} of {self._max_restarts})"
                print(f"launch: {again}", file=sys.stderr, flush=True)
                time.sleep(PAUSE_S)
                if self._signals:
                    return EXIT_START_AGAIN
        return code

    def _run_once(self, attempt: int, logs: Path) -> tuple[int, str]:
        """Exit code, and how the rank that failed first has ended."""
        with closing(_hold_port()) as held:
            try:
                self._start(attempt, held.getsockname()[1], logs)
                while True:
                    codes = [rank.poll() for rank in self._ranks]
                    if any(codes) or None not in codes:
                        break
                    time.sleep(POLL_S)
            finally:
                self._end()
        if not any(codes):
            return 0, ""
        rank, code = next((rank, code) for rank, code in enumerate(codes) if code)
        if rank:
            _show(rank, logs / f"{rank}.stderr", logs / f"{rank}.stdout")
        if any(each.returncode == EXIT_START_AGAIN for each in self._ranks):
            return EXIT_START_AGAIN, ""
        if code < 0:
            return 128 - code, f"rank {rank} was ended by {signal.Signals(-code).name}"
        return code, f"rank {rank} ended with exit code {code}"

    def _start(self, attempt: int, port: int, logs: Path) -> None:
        shared = {
            "PATH": self._path,
            "WORLD_SIZE": str(self._processes),
            "LOCAL_WORLD_SIZE": str(self._processes),
            "GROUP_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": self._job,
            "TORCHELASTIC_RESTART_COUNT": str(attempt),
        }
        ranks: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(self._processes):
                environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                # Rank 0 has the terminal, progress bar and all; the others are heard if they fail.
                with open(logs / f"{rank}.stdout", "wb") as out, open(logs / f"{rank}.stderr", "wb") as err:
                    ranks.append(
                        subprocess.Popen(
                            self._command,
                            env=environment,
                            stdout=out if rank else None,
                            stderr=err if rank else None,
                            start_new_session=True,
                        )
                    )
        finally:
            self._ranks = ranks
        if self._signals:
            self._send(PASSED_ON[signal.Signals(self._signals[0])])  # it came while they were being started

    def _end(self) -> None:
        """End the ranks that still run, and wait for them."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._send(number)
            end = time.monotonic() + GRACE_S
            while any(rank.poll() is None for rank in self._ranks) and time.monotonic() < end:
                time.sleep(POLL_S)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        at_once = self._signals.count(signal.SIGINT) > 1
        self._send(signal.SIGKILL if at_once else PASSED_ON[signal.Signals(number)])

    def _send(self, number: int) -> None:
        for rank in self._ranks:
            if rank.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(rank.pid, number)  # each rank leads a session of its own


def _hold_port() -> socket.socket:
    """Keep a free port until rank 0 listens on it; two sockets may have one that say SO_REUSEADDR."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def _show(rank: int, *outputs: Path) -> None:
    """Print what a rank has said last: its one line, or its traceback."""
    for output in outputs:
        lines = output.read_text(errors="replace").strip().splitlines()
        if lines:
            shown = lines[-1:] if lines[-1].startswith("error: ") else lines[-SHOWN_LINES:]
            print("\n".join(f"rank {rank}: {line}" for line in shown), file=sys.stderr, flush=True)
            return
