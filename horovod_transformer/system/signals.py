"""Signals handled for a while; and one that becomes a request to stop at the next update."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType

# SIGTERM: Slurm's and horovodrun's goodbye. SIGUSR1: Slurm's warning (`--signal=USR1@300`); SIGUSR2:
# submitit's. SIGHUP: the terminal or its connection is gone. SIGINT: the user's Ctrl-C; a second one ends the
# process as usual.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT)


@contextmanager
def handling(
    numbers: Iterable[int], handler: Callable[[int, FrameType | None], None] | signal.Handlers
) -> Iterator[None]:
    """Within this context signals call a handler; afterwards they do what they did before.

    Only the main thread may handle signals: in another one nothing changes.
    """
    before = {}
    with suppress(ValueError):
        for number in numbers:
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def held_back(numbers: Iterable[int] = SIGNALS) -> Iterator[None]:
    """Within this context this thread takes no signals, nor, ever, do the programs and threads it starts.

    A program starts with what its parent holds back, though not with how its parent handles the rest. This
    process itself takes signals in another of its threads meanwhile, or afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def not_ignored(numbers: Iterable[int]) -> list[int]:
    """Those of some signals that this process was not started to ignore, as `nohup` has it with SIGHUP."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def stop_signals() -> list[int]:
    """`SIGNALS`, but for SIGHUP where this process is to outlive its terminal: `nohup` has it ignored."""
    return [number for number in SIGNALS if number != signal.SIGHUP or not_ignored([number])]


class StopRequest:
    """While entered, stop signals are remembered instead of ending the process.

    Attributes:
        signal_name: The signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._interrupted = False
        self._handling = handling(stop_signals(), self._remember)

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def __enter__(self) -> StopRequest:
        self._handling.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handling.__exit__(kind, error, trace)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            # Only after another one: a Ctrl-C may be followed by a launcher's SIGTERM, and overtaken by it.
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        self.signal_name = signal.Signals(number).name
