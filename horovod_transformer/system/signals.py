"""A signal becomes a request to stop at the next update, so that a checkpoint can be written."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

# SIGTERM: Slurm's and horovodrun's goodbye. SIGUSR1: Slurm's warning (`--signal=USR1@300`).
# SIGINT: the user's Ctrl-C; a second one ends the process as usual.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """While entered, stop signals are remembered instead of ending the process.

    Attributes:
        signal_name: The signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._previous: dict[int, object] = {}

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def __enter__(self) -> StopRequest:
        try:
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._remember)
        except ValueError:
            # Only the main thread may handle signals; in another one there is nothing to catch.
            self._previous.clear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
