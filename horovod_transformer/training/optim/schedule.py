"""The learning rate of each update."""

from __future__ import annotations

import math

from horovod_transformer.config_sections import TrainingConfig

# Without `training.warmup_updates`: a tenth of the run, and no more than this.
WARMUP_SHARE = 0.1
MOST_WARMUP_UPDATES = 700


def warmup_updates(training: TrainingConfig, decay_updates: int) -> int:
    """Updates in which the learning rate rises; at least 1 unless the config says 0."""
    if training.warmup_updates is not None:
        return training.warmup_updates
    return max(1, min(MOST_WARMUP_UPDATES, round(WARMUP_SHARE * decay_updates)))


def learning_rate(update: int, training: TrainingConfig, decay_updates: int) -> float:
    """Learning rate of one update: linear warmup, then the schedule down to its floor.

    A function of the update alone, so that a resumed run needs no saved schedule.

    Args:
        update: Counted from 0.
        training: Peak, warmup, shape and floor.
        decay_updates: Update at which the floor is reached.
    """
    peak, warmup = training.learning_rate, warmup_updates(training, decay_updates)
    if update < warmup:
        return peak * (update + 1) / warmup
    if training.schedule == "constant":
        return peak
    span = max(1, decay_updates - warmup)
    done = min(1.0, (update - warmup) / span)
    left = 0.5 * (1 + math.cos(math.pi * done)) if training.schedule == "cosine" else 1 - done
    floor = training.min_learning_rate_ratio
    return peak * (floor + (1 - floor) * left)
