"""What a run learns from each update's result: counted, recorded, and a reason to end if it has diverged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from horovod_transformer.data.sampler import BatchPlan
from horovod_transformer.errors import UserError
from horovod_transformer.metrics import bits_per_byte, perplexity
from horovod_transformer.reports.formats import duration
from horovod_transformer.system.console import counted
from horovod_transformer.training.due import Every
from horovod_transformer.training.metrics.logger import MetricLogger
from horovod_transformer.training.metrics.phase_timer import OF_AN_UPDATE, PhaseTimer
from horovod_transformer.training.metrics.tables import UpdateMetrics
from horovod_transformer.training.metrics.throughput import Throughput, peak_memory_gib
from horovod_transformer.training.results import FinishedUpdate
from horovod_transformer.training.resume import TrainState

# After this many updates of a start the speed is known, and with it how long the run will take.
SPEED_KNOWN_AFTER = 20
# The first updates wait for what starts slowly: compilers, caches, connections.
WARM_UP = 5


class UpdateRecorder:
    """Records updates in their order, which may be later than they were started.

    Args:
        plan: Of the updates.
        every: When a row is due.
        total: Updates of the run.
        max_skipped: This many skipped updates in a row end the run.
        newest: The checkpoint to resume if training has diverged; it need not be there yet.
        state: Its counts of skipped updates are kept here.
        logger: Records.
        throughput: Speed, for the records.
        timer: Where the time went, for the records.
        device: Where the updates are computed.
        bytes_per_token: Of the training text, or None.
        about_waiting: Puts into words what share of an update is waiting for other processes.
    """

    def __init__(
        self,
        plan: BatchPlan,
        every: Every,
        total: int,
        max_skipped: int,
        newest: Path,
        state: TrainState,
        logger: MetricLogger,
        throughput: Throughput,
        timer: PhaseTimer,
        device: torch.device,
        bytes_per_token: float | None,
        about_waiting: Callable[[float], str],
    ) -> None:
        self._plan, self._every, self._total, self._state = plan, every, total, state
        self._max_skipped, self._newest = max_skipped, newest
        self._logger, self._throughput, self._timer = logger, throughput, timer
        self._device, self._bytes_per_token = device, bytes_per_token
        self._about_waiting, self._warm_up = about_waiting, timer.totals()

    def record(self, finished: FinishedUpdate) -> None:
        """Count an update, record it when that is due, and move the progress bar.

        Raises:
            UserError: Training diverged: too many updates in a row could not be made.
        """
        state, update, result = self._state, finished.update, finished.result
        state.skipped_updates += result.skipped
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if result.skipped else 0
        if self._every.is_due(update) or result.skipped:
            self._logger.log_update(self._row(finished))
        if result.skipped:
            self._logger.say(
                f"warning: update {update}: gradients were not finite, weights stay as they were"
            )
        self._logger.advance(update, result.loss, self._throughput.tokens_per_second)
        if state.skipped_in_a_row >= self._max_skipped:
            saved = self._newest.is_file()
            again = f"--resume {self._newest}" if saved else "start anew, for nothing was saved yet"
            raise UserError(
                f"training diverged: the gradients of {state.skipped_in_a_row} updates in a row, up to "
                f"update {update}, were not finite (learning rate {finished.learning_rate:.3g}, loss "
                f"{result.loss:.4g}); lower training.learning_rate or lengthen the warmup, then {again}"
            )

    def say_speed(self) -> None:
        """Say, once in a start, how long the rest of the run will take, and what share of it is waiting."""
        speed, left = self._throughput, self._total - self._state.update
        if speed.updates == WARM_UP:
            self._warm_up = self._timer.totals()
        if speed.updates == SPEED_KNOWN_AFTER and left:
            self._logger.say(
                f"at {speed.tokens_per_second:,.0f} tokens/s what is left, {counted(left, 'update')}, takes "
                f"{duration(left / speed.updates_per_second)}"
            )
            if self._plan.world_size > 1:
                self._logger.say(self._about_waiting(self._waiting()))

    def _waiting(self) -> float:
        """The share of the updates since the warm-up that this rank waited for gradients."""
        totals = self._timer.totals()
        seconds = {phase: totals[phase] - self._warm_up[phase] for phase in OF_AN_UPDATE}
        return seconds["gradient_wait"] / max(1e-9, sum(seconds.values()))

    def _row(self, finished: FinishedUpdate) -> UpdateMetrics:
        passes = finished.update * self._plan.global_batch_size / self._plan.blocks
        speed, result = self._throughput, finished.result
        return UpdateMetrics(
            update=finished.update,
            epoch=min(passes, self._plan.epochs),
            loss=result.loss,
            perplexity=perplexity(result.loss),
            bits_per_byte=bits_per_byte(result.loss, self._bytes_per_token),
            accuracy=result.accuracy,
            learning_rate=finished.learning_rate,
            gradient_norm=result.gradient_norm,
            tokens=finished.tokens,
            skipped_updates=self._state.skipped_updates,
            updates_per_second=speed.updates_per_second,
            tokens_per_second=speed.tokens_per_second,
            mfu=speed.mfu,
            memory_gib=peak_memory_gib(self._device),
            seconds=speed.seconds,
            **{f"time_{phase}": seconds for phase, seconds in self._timer.take().items()},
        )
