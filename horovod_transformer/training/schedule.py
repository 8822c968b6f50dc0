"""The learning rate of each update."""

from __future__ import annotations

import math

from horovod_transformer.config import TrainingConfig


def learning_rate(update: int, training: TrainingConfig, decay_updates: int) -> float:
    """Learning rate of one update: linear warmup, then the schedule down to its floor.

    A function of the update alone, so that a resumed run needs no saved schedule.

    Args:
        update: Counted from 0.
        training: Peak, warmup, shape and floor.
        decay_updates: Update at which the floor is reached.
    """
    peak = training.learning_rate
    if update < training.warmup_updates:
        return peak * (update + 1) / training.warmup_updates
    if training.schedule == "constant":
        return peak
    span = max(1, decay_updates - training.warmup_updates)
    done = min(1.0, (update - training.warmup_updates) / span)
    left = 0.5 * (1 + math.cos(math.pi * done)) if training.schedule == "cosine" else 1 - done
    floor = training.min_learning_rate_ratio
    return peak * (floor + (1 - floor) * left)
