"""The rows of a run's tables: what is known of each update and each validation."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class UpdateMetrics:
    """A row of `train.csv`. Sums and means are over all ranks.

    Attributes:
        update: Optimizer updates done.
        epoch: Passes over the training blocks done.
        loss: Mean loss per token of this update, nats.
        perplexity: exp(loss).
        bits_per_byte: The loss in bits per byte of text; None where bytes are not known.
        accuracy: Share of tokens predicted right.
        learning_rate: Of this update.
        gradient_norm: Global norm before clipping.
        tokens: Tokens predicted since the first update.
        skipped_updates: Updates so far whose gradients were not finite.
        updates_per_second: Averaged over the latest updates.
        tokens_per_second: Likewise.
        mfu: Model FLOPs utilisation, 0 to 1; None on a device whose peak is not known.
        memory_gib: Most memory this process has used.
        seconds: Since this start of the run.
        time_data: Seconds since the row before that this process waited for blocks; the seven `time_` columns
            add up to all of that time. See `phase_timer.PhaseTimer`.
        time_forward: Likewise in the forward pass, the loss and its gradient at the head included.
        time_backward: Likewise in the backward pass.
        time_gradient_wait: Likewise until the last gradients had been summed over the ranks.
        time_optimizer: Likewise clipping and changing the weights.
        time_checkpoint: Likewise held up by checkpoints.
        time_other: Likewise anything else, such as validation.
    """

    update: int
    epoch: float
    loss: float
    perplexity: float
    bits_per_byte: float | None
    accuracy: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    skipped_updates: int
    updates_per_second: float
    tokens_per_second: float
    mfu: float | None
    memory_gib: float
    seconds: float
    time_data: float
    time_forward: float
    time_backward: float
    time_gradient_wait: float
    time_optimizer: float
    time_checkpoint: float
    time_other: float


@dataclass(frozen=True)
class ValidationMetrics:
    """A row of `val.csv`; see `UpdateMetrics`. `seconds` is how long the validation took."""

    update: int
    loss: float
    perplexity: float
    bits_per_byte: float | None
    accuracy: float
    tokens: int
    seconds: float


TRAIN_COLUMNS = [field.name for field in fields(UpdateMetrics)]
VALIDATION_COLUMNS = [field.name for field in fields(ValidationMetrics)]
# The clock decides these; a repeated run differs in them.
CLOCK_COLUMNS = ("updates_per_second", "tokens_per_second", "mfu", "memory_gib", "seconds") + tuple(
    column for column in TRAIN_COLUMNS if column.startswith("time_")
)
