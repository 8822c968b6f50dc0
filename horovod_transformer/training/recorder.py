"""What a run learns from each update's result: counted, recorded, and a reason to end if it has diverged."""

from __future__ import annotations

import torch

from horovod_transformer.config import TrainingConfig
from horovod_transformer.data.sampler import UpdatePlan
from horovod_transformer.errors import UserError
from horovod_transformer.metrics import bits_per_byte, perplexity
from horovod_transformer.training.metrics.logger import MetricLogger, UpdateMetrics
from horovod_transformer.training.metrics.phase_timer import PhaseTimer
from horovod_transformer.training.metrics.throughput import Throughput, peak_memory_gib
from horovod_transformer.training.resume import TrainState
from horovod_transformer.training.step import UpdateResult

# After so many updates of a start the speed is known, and with it how long the run will take.
SPEED_KNOWN_AFTER = 20


class Bookkeeping:
    """Takes down updates, in their order, which may be later than they were started.

    Args:
        training: Tells how often to record, and how many skipped updates in a row are too many.
        plan: Of the updates.
        total: Updates of the run.
        state: Its counts of skipped updates are kept here.
        logger: Records.
        throughput: Speed, for the records.
        timer: Time shares, for the records.
        device: Where the updates are computed.
        bytes_per_token: Of the training text, or None.
    """

    def __init__(
        self,
        training: TrainingConfig,
        plan: UpdatePlan,
        total: int,
        state: TrainState,
        logger: MetricLogger,
        throughput: Throughput,
        timer: PhaseTimer,
        device: torch.device,
        bytes_per_token: float | None,
    ) -> None:
        self._training, self._plan, self._total, self._state = training, plan, total, state
        self._logger, self._throughput, self._timer = logger, throughput, timer
        self._device, self._bytes_per_token = device, bytes_per_token

    def take_down(self, update: int, tokens: int, rate: float, result: UpdateResult, newest: str) -> None:
        """Count an update, record it when it is its turn, and move the progress bar.

        Args:
            update: Its number, from 1.
            tokens: Predicted from the first update to this one.
            rate: Its learning rate.
            result: What it did; the same on every rank.
            newest: The checkpoint to name if training has diverged.

        Raises:
            UserError: Training diverged: too many updates in a row could not be made.
        """
        state = self._state
        state.skipped_updates += result.skipped
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if result.skipped else 0
        if update % self._training.log_interval == 0 or update == self._total or result.skipped:
            self._record(update, tokens, rate, result)
        if result.skipped:
            self._logger.say(f"update {update}: gradients were not finite, weights left as they were")
        self._logger.advance(update, result.loss, self._throughput.tokens_per_second)
        if state.skipped_in_a_row >= self._training.max_skipped_updates:
            raise UserError(
                f"training diverged: the gradients of {state.skipped_in_a_row} updates in a row, up to "
                f"update {update}, were not finite (learning rate {rate:.3g}, loss {result.loss:.4g}); "
                f"lower training.learning_rate or lengthen the warmup, then --resume {newest}"
            )

    def tell_the_speed(self) -> None:
        """Say, once in a start, how long the rest of the run will take."""
        speed, left = self._throughput, self._total - self._state.update
        if speed.updates == SPEED_KNOWN_AFTER:
            hours = left / speed.updates_per_second / 3600
            self._logger.say(
                f"at {speed.tokens_per_second:,.0f} tokens/s the remaining {left:,} updates take "
                f"{hours:.1f} h" + (f" ({hours * 60:.0f} minutes)" if hours < 2 else "")
            )

    def _record(self, update: int, tokens: int, rate: float, result: UpdateResult) -> None:
        passes = update * self._plan.global_batch_size / self._plan.blocks
        speed = self._throughput
        self._logger.log_update(
            UpdateMetrics(
                update=update,
                epoch=min(passes, self._plan.epochs),
                loss=result.loss,
                perplexity=perplexity(result.loss),
                bits_per_byte=bits_per_byte(result.loss, self._bytes_per_token),
                accuracy=result.accuracy,
                learning_rate=rate,
                gradient_norm=result.gradient_norm,
                tokens=tokens,
                skipped_updates=self._state.skipped_updates,
                updates_per_second=speed.updates_per_second,
                tokens_per_second=speed.tokens_per_second,
                mfu=speed.mfu,
                memory_gib=peak_memory_gib(self._device),
                seconds=speed.seconds,
                **{f"time_{phase}": seconds for phase, seconds in self._timer.take().items()},
            )
        )
