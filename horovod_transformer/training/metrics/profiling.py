"""`--profile`: a few updates looked at closely, as a trace and as a table of where their time went."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from horovod_transformer import distributed
from horovod_transformer.training.metrics.phase_timer import PHASES, PhaseTimer

# Updates of a start before the window: caches fill and compilers work in the first, and in the last of them
# the profiler itself warms up.
WAIT, WARM_UP = 5, 2
# The range that the model puts around its head and loss; a part of the forward pass.
HEAD = "head"


@dataclass(frozen=True)
class ProfileRequest:
    """What to profile.

    Attributes:
        updates: Length of the window.
        rank: The rank whose work is recorded.
    """

    updates: int
    rank: int = 0


class UpdateProfiler:
    """Records a window of updates on one rank; on the others, only counts.

    Leaves `profile_rankR.trace.json.gz` in the folder, which https://ui.perfetto.dev opens, and with
    several processes Horovod's own record beside it, `profile_horovod.json`, if Horovod was started
    with `HOROVOD_TIMELINE=DYNAMIC`.

    Args:
        request: What to profile.
        folder: Where the files go.
        device: Where the updates are computed.
        timer: Of the updates; names its phases in the trace.
    """

    def __init__(
        self, request: ProfileRequest, folder: Path, device: torch.device, timer: PhaseTimer
    ) -> None:
        self._request, self._folder, self._device, self._timer = request, folder, device, timer
        self._done, self._open = 0, True
        self._window = WAIT + WARM_UP, WAIT + WARM_UP + request.updates
        self._before: dict[str, float] = {}
        self._profile: profile | None = None
        if distributed.get_rank() == request.rank:
            kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
            window = schedule(wait=WAIT, warmup=WARM_UP, active=request.updates + 1, repeat=1)
            # One window only: nothing to accumulate, but torch warns of what it would drop between two.
            self._profile = profile(activities=kinds, schedule=window, acc_events=True)
            self._profile.start()

    @property
    def trace(self) -> Path:
        """The file of the trace."""
        return self._folder / f"profile_rank{self._request.rank}.trace.json.gz"

    def after_update(self) -> list[str]:
        """Note that an update is done. *Collective.*

        Returns:
            Lines to tell, once the window is over.
        """
        self._done += 1
        begin, end = self._window
        if self._done == begin:
            distributed.start_timeline(self._folder / "profile_horovod.json")
        if self._profile is not None and self._done < end:
            self._timer.enter("other")  # a range must not reach from one update into the next
            self._timer.named_ranges = self._done >= begin
            self._profile.step()
        if self._done == begin:
            self._before = self._totals()
        return self.close() if self._done == end else []

    def close(self) -> list[str]:
        """End the record; a window that was cut short is written as far as it came. *Collective.*

        Returns:
            Lines to tell: where the trace is, and the table.
        """
        if not self._open:
            return []
        self._open = False
        begin, _ = self._window
        if self._done >= begin:
            distributed.stop_timeline()
        running, self._profile = self._profile, None
        if running is None:
            return []
        self._timer.enter("other")
        self._timer.named_ranges = False
        after = self._totals()
        running.stop()
        if self._done <= begin:
            return [f"no profile: the run ended after {self._done} updates, the window begins after {begin}"]
        running.export_chrome_trace(str(self.trace))
        updates = self._done - begin
        seconds = {phase: after[phase] - self._before[phase] for phase in PHASES}
        return [
            f"profile of {updates} updates: {self.trace}",
            *share_table(seconds, self._head_seconds(running), updates),
        ]

    def _totals(self) -> dict[str, float]:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._timer.totals()

    def _head_seconds(self, finished: profile) -> float:
        """The head runs in one thread, so a GPU's kernels can be counted for it."""
        attribute = "device_time_total" if self._device.type == "cuda" else "cpu_time_total"
        found = [getattr(row, attribute) for row in finished.key_averages() if row.key == HEAD]
        return max(found, default=0.0) / 1e6


def share_table(seconds: dict[str, float], head: float, updates: int) -> list[str]:
    """A line for each phase, milliseconds per update and share; the head apart from the forward pass.

    Args:
        seconds: By phase, all updates together.
        head: Seconds of the forward pass that were the head's.
        updates: How many.
    """
    rows: dict[str, float] = {}
    for phase, amount in seconds.items():
        rows[phase] = amount - head if phase == "forward" else amount
        if phase == "forward":
            rows[HEAD] = head
    whole = sum(rows.values()) or 1.0
    names = {"gradient_wait": "waiting for gradients"}
    return [
        f"  {names.get(name, name):<22}{amount / updates * 1000:10.2f} ms{amount / whole:8.1%}"
        for name, amount in rows.items()
    ]
