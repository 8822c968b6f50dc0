"""Where the time of an update goes: measured all the time, so it has to cost next to nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.profiler import record_function

# In the order in which an update goes through them; `other` is the rest: validation, sample texts, records.
PHASES = ("data", "forward", "backward", "gradient_wait", "optimizer", "checkpoint", "other")
# Those of an update alone.
OF_AN_UPDATE = PHASES[:5]
# So many open marks on a GPU are looked through at once.
MARKS_PER_LOOK = 64


class PhaseTimer:
    """Divides this rank's time among `PHASES`; a phase lasts until the next is entered.

    On a CPU the clock is read. A GPU works behind the host's back, so there each phase puts a mark
    into its stream instead (a CUDA event), which is read once the GPU has come past it: nothing
    waits for it, and what the GPU did in the meantime is never counted as waiting.

    Args:
        device: Where the updates are computed.
        new_event: Makes the marks of a GPU; another one for tests.

    Attributes:
        named_ranges: Also name the phases for torch's profiler.
    """

    def __init__(self, device: torch.device, new_event: Callable[[], Any] | None = None) -> None:
        if device.type == "cuda" and new_event is None:
            new_event = _cuda_event
        self._marks: _Clock | _EventMarks = _Clock() if new_event is None else _EventMarks(new_event)
        self._taken = dict.fromkeys(PHASES, 0.0)
        self.named_ranges = False
        self._range: record_function | None = None

    def enter(self, phase: str) -> None:
        """From now on time belongs to this phase."""
        self._marks.enter(phase)
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None
        if self.named_ranges:
            self._range = record_function(phase)
            self._range.__enter__()

    def totals(self) -> dict[str, float]:
        """Seconds of each phase so far; a GPU's latest may be missing."""
        return self._marks.totals()

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last call; a GPU's latest may only be in the next."""
        totals = self.totals()
        taken = {phase: totals[phase] - self._taken[phase] for phase in PHASES}
        self._taken = totals
        return taken


class _Clock:
    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._phase, self._since = "other", time.perf_counter()

    def enter(self, phase: str) -> None:
        now = time.perf_counter()
        self._seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def totals(self) -> dict[str, float]:
        self.enter(self._phase)
        return dict(self._seconds)


class _EventMarks:
    def __init__(self, new_event: Callable[[], Any]) -> None:
        self._new_event = new_event
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._open: deque[tuple[str, Any]] = deque()
        self._spare: list[Any] = []
        self.enter("other")

    def enter(self, phase: str) -> None:
        event = self._spare.pop() if self._spare else self._new_event()
        event.record()
        self._open.append((phase, event))
        if len(self._open) >= MARKS_PER_LOOK:
            self._read()

    def totals(self) -> dict[str, float]:
        self._read()
        return dict(self._seconds)

    def _read(self) -> None:
        """Count the phases that the GPU has left behind."""
        while len(self._open) > 1 and self._open[1][1].query():
            phase, began = self._open.popleft()
            self._seconds[phase] += began.elapsed_time(self._open[0][1]) / 1000
            self._spare.append(began)


def _cuda_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)
