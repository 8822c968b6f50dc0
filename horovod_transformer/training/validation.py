"""Loss on held-out blocks, shared out among all ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader

from horovod_transformer import distributed
from horovod_transformer.data.loader import iterate_batches
from horovod_transformer.metrics import perplexity
from horovod_transformer.model.transformer import TransformerLM
from horovod_transformer.precision import autocast


@dataclass(frozen=True)
class Validation:
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


@torch.no_grad()
def validate(
    model: TransformerLM,
    loader: DataLoader,
    device: torch.device,
    precision: str,
    on_batch: Callable[[], None] = lambda: None,
) -> Validation:
    """Score the blocks of `loader`, each rank its own share. *Collective.*

    Args:
        model: Left in the mode it was in.
        loader: This rank's blocks, see `data.loader.validation_loader`; may be empty.
        device: Where the model is.
        precision: fp32, bf16 or fp16.
        on_batch: Called after each batch.

    Raises:
        UserError: A row is not what it should be.
    """
    was_training = model.training
    model.eval()
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    for batch in iterate_batches(loader):
        with autocast(precision, device):
            loss, number, correct = model.loss_sums(batch["input_ids"].to(device), batch["labels"].to(device))
        totals += torch.stack([loss.double(), number.double(), correct.double()])
        on_batch()
    model.train(was_training)
    loss_sum, tokens, right = distributed.allreduce(totals, "validation").tolist()
    return Validation(loss_sum / max(1, tokens), right / max(1, tokens), int(tokens))
