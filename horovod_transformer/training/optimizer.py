"""AdamW with decay on matrices only, and the learning rate of each update."""

from __future__ import annotations

import math

import torch
from torch import nn

from horovod_transformer.config import TrainingConfig


def build_optimizer(model: nn.Module, training: TrainingConfig) -> torch.optim.AdamW:
    """Make AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101).

    Matrices (embeddings, linear weights) decay towards zero; biases and norms, which have no
    directions to prefer, do not.
    """
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_eps,
        fused=True,
    )


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
