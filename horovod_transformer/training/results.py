"""What an update did: read at once, or on a GPU one update later, so that the host need not wait for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from horovod_transformer.training.optim.loss_scale import LossScale


@dataclass(frozen=True)
class UpdateResult:
    """What one update did, the same on every rank.

    Attributes:
        loss: Mean loss per token over all ranks and micro-batches, nats.
        accuracy: Share of tokens predicted right.
        tokens: Tokens predicted.
        gradient_norm: Global norm before clipping; not finite if the update was skipped.
        skipped: The gradients were not finite and the weights stayed as they were.
        stop_requested: Some rank asked to stop.
    """

    loss: float
    accuracy: float
    tokens: int
    gradient_norm: float
    skipped: bool
    stop_requested: bool


class StartedUpdate:
    """An update whose result has not been read yet.

    Args:
        tokens: Predicted in it, over all ranks.
        learning_rate: Of it.
        read: Waits for its numbers: loss, right predictions and stop requests, summed, and the norm.
        loss_scale: Learns whether the gradients were finite.
    """

    def __init__(
        self, tokens: int, learning_rate: float, read: Callable[[], list[float]], loss_scale: LossScale
    ) -> None:
        self.tokens, self.learning_rate = tokens, learning_rate
        self._read, self._loss_scale = read, loss_scale

    def result(self) -> UpdateResult:
        """Wait for what the update did; to be called once, in the order of the updates."""
        loss, correct, stops, gradient_norm = self._read()
        finite = gradient_norm < float("inf")  # false for NaN, too
        self._loss_scale.update(finite)
        return UpdateResult(
            loss=loss / self.tokens,
            accuracy=correct / self.tokens,
            tokens=self.tokens,
            gradient_norm=gradient_norm,
            skipped=not finite,
            stop_requested=stops > 0,
        )


@dataclass(frozen=True)
class FinishedUpdate:
    """An update and what it did.

    Attributes:
        update: Its number, from 1.
        tokens: Predicted from the run's first update to this one.
        learning_rate: Of it.
        result: What it did.
    """

    update: int
    tokens: int
    learning_rate: float
    result: UpdateResult


class DeferredResults:
    """Hands on the results of updates in their order, the newest one update late where that saves waiting.

    Args:
        deferred: The newest result may stay unread until the next update has been started.

    Attributes:
        latest: The newest result that was read; None before the first.
        stop_requested: Some rank asked to stop; the updates started so far have then been read.
    """

    def __init__(self, deferred: bool) -> None:
        self._deferred = deferred
        self._unread: deque[tuple[int, int, StartedUpdate]] = deque()
        self.latest: UpdateResult | None = None
        self.stop_requested = False

    def add(self, update: int, tokens: int, started: StartedUpdate, needed_now: bool) -> list[FinishedUpdate]:
        """Take an update that was started, and read what has to be read.

        Args:
            update: Its number, from 1.
            tokens: Predicted from the run's first update to this one.
            started: The update.
            needed_now: Something depends on its result before the next update starts.

        Returns:
            The updates whose results were read, oldest first.
        """
        self._unread.append((update, tokens, started))
        finished = []
        while self._unread and not self._may_wait(needed_now):
            number, so_far, oldest = self._unread.popleft()
            self.latest = oldest.result()
            self.stop_requested = self.stop_requested or self.latest.stop_requested
            finished.append(FinishedUpdate(number, so_far, oldest.learning_rate, self.latest))
        return finished

    def _may_wait(self, needed_now: bool) -> bool:
        """Whether what is unread is the newest result alone, and nobody needs it yet."""
        return self._deferred and len(self._unread) == 1 and not (needed_now or self.stop_requested)
