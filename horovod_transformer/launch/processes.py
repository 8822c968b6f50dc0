"""The processes of one job on this machine: started together, and ended when one fails.

PyTorch has the same, but importing torch takes longer than all the rest of starting them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

POLL_S = 0.05
# After SIGTERM, as long as torchrun gives them; then they are killed.
PATIENCE_S = 30.0


class RankProcesses:
    """Ranks 0 to N - 1, each leading a session of its own.

    Args:
        command: The program, by its path, and its arguments.
        environments: Each rank's whole environment.
        logs: An empty folder for what all but rank 0 print; rank 0 has the terminal.

    Raises:
        OSError: They cannot be started; none is left then.
    """

    def __init__(self, command: Sequence[str], environments: Sequence[Mapping[str, str]], logs: Path) -> None:
        self._logs = logs
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank, environment in enumerate(environments):
                with ExitStack() as files:
                    # The error stream's first: what a rank has said last there tells most.
                    error, output = (
                        files.enter_context(path.open("wb")) if rank else None for path in self.outputs(rank)
                    )
                    self._processes.append(
                        subprocess.Popen(
                            command, env=environment, stdout=output, stderr=error, start_new_session=True
                        )
                    )
        except BaseException:
            self.end()
            raise

    def outputs(self, rank: int) -> tuple[Path, Path]:
        """Where a rank's standard error and standard output go."""
        return self._logs / f"{rank}.err", self._logs / f"{rank}.out"

    def send(self, number: int) -> None:
        """Send a signal to every rank that runs, and to what it has started."""
        for process in self._processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)

    def wait(self) -> dict[int, int]:
        """Wait until all have ended well, or one has not; then end the others.

        Returns:
            The exit codes that are not 0, by rank, in the order in which they were seen; minus n if signal n
            ended a rank.
        """
        while not (failed := self._failed()) and any(each.poll() is None for each in self._processes):
            time.sleep(POLL_S)
        self.end()
        return failed | self._failed()

    def end(self) -> None:
        """End those that still run: SIGTERM, and SIGKILL half a minute later."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self.send(number)
            deadline = time.monotonic() + PATIENCE_S
            for process in self._processes:
                # One that hangs in the kernel outlives SIGKILL: it is left.
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))

    def _failed(self) -> dict[int, int]:
        codes = {rank: process.poll() for rank, process in enumerate(self._processes)}
        return {rank: code for rank, code in codes.items() if code}
