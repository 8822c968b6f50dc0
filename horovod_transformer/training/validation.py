"""Loss on held-out blocks, shared out among all ranks; and when a run computes it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from horovod_transformer import distributed
from horovod_transformer.data.loader import iterate_batches
from horovod_transformer.distributed.workers import Workers
from horovod_transformer.errors import UserError
from horovod_transformer.metrics import bits_per_byte, perplexity
from horovod_transformer.model.transformer import TransformerLM
from horovod_transformer.precision import autocast
from horovod_transformer.training.due import Every
from horovod_transformer.training.exact_sums import exactly
from horovod_transformer.training.metrics.logger import MetricLogger
from horovod_transformer.training.metrics.tables import ValidationMetrics
from horovod_transformer.training.resume import TrainState


@dataclass(frozen=True)
class HeldOutLoss:
    """Figures over all ranks' blocks, each token counting the same.

    Attributes:
        loss: Mean loss per token, nats.
        accuracy: Share of tokens predicted right.
        tokens: Tokens predicted.
    """

    loss: float
    accuracy: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity(self.loss)


def validate(
    model: TransformerLM,
    loader: DataLoader,
    device: torch.device,
    precision: str,
    on_batch: Callable[[], None] = lambda: None,
    workers: Workers | None = None,
) -> HeldOutLoss:
    """Score the blocks of `loader`, each rank its own share. *Collective.*

    Args:
        model: Left in the mode it was in.
        loader: This rank's blocks, see `data.loader.validation_loader`; may be empty.
        device: Where the model is.
        precision: fp32, bf16 or fp16.
        on_batch: Called after each batch.
        workers: Threads to share the batches out to.

    Raises:
        UserError: A row is not what it should be.
    """
    workers = workers or Workers()

    def score(batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad(), autocast(precision, device):
            loss, number, correct = model.loss_sums(batch["input_ids"].to(device), batch["labels"].to(device))
        return torch.stack([exactly(loss), number.double(), correct.double()])

    was_training = model.training
    model.eval()
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    batches = iterate_batches(loader)
    while some := list(islice(batches, workers.number)):
        for sums in workers.map(score, some):
            totals += sums
            on_batch()
    model.train(was_training)
    loss_sum, tokens, right = distributed.allreduce(totals, "validation").tolist()
    return HeldOutLoss(loss_sum / max(1, tokens), right / max(1, tokens), int(tokens))


class Validator:
    """Validates a run when that is due, and knows whether its model is the best so far.

    Args:
        model: The model.
        loader: This rank's share of the held-out blocks.
        device: Where the model is.
        precision: fp32, bf16 or fp16.
        every: When validation is due.
        state: The best loss and the update of the last validation are kept here.
        logger: Records the figures.
        bytes_per_token: Of the validation text, or None.
        on_batch: Called after each batch.
        workers: Threads to share the batches out to.
    """

    def __init__(
        self,
        model: TransformerLM,
        loader: DataLoader,
        device: torch.device,
        precision: str,
        every: Every,
        state: TrainState,
        logger: MetricLogger,
        bytes_per_token: float | None,
        on_batch: Callable[[], None],
        workers: Workers,
    ) -> None:
        self._model, self._loader, self._device, self._precision = model, loader, device, precision
        self.every, self._state, self._logger = every, state, logger
        self._bytes_per_token, self._on_batch, self._workers = bytes_per_token, on_batch, workers

    @property
    def is_due(self) -> bool:
        """Whether validation is due after the state's update, and was not done there already."""
        return self._state.validated_at != self._state.update and self.every.is_due(self._state.update)

    def validate_if_due(self) -> bool:
        """Validate if that is due. *Collective.*

        Returns:
            Whether the loss is the lowest so far.

        Raises:
            RuntimeError: The ranks' weights differ.
            UserError: The loss is not finite.
        """
        state, began = self._state, time.monotonic()
        if not self.is_due:
            return False
        weights = distributed.require_equal_weights(self._model, f"update {state.update}")
        figures = validate(
            self._model, self._loader, self._device, self._precision, self._on_batch, self._workers
        )
        state.validated_at = state.update
        best = figures.loss < state.best_validation_loss  # false for NaN
        if best:
            state.best_validation_loss = figures.loss
        self._logger.log_validation(
            ValidationMetrics(
                update=state.update,
                loss=figures.loss,
                perplexity=figures.perplexity,
                bits_per_byte=bits_per_byte(figures.loss, self._bytes_per_token),
                accuracy=figures.accuracy,
                tokens=figures.tokens,
                seconds=time.monotonic() - began,
                weights=weights,
            )
        )
        if not math.isfinite(figures.loss):
            raise UserError(
                f"training diverged: the validation loss after update {state.update} is {figures.loss}; "
                "lower training.learning_rate or training.weight_decay and resume from an earlier checkpoint"
            )
        return best
