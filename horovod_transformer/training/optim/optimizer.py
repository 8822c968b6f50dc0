"""AdamW or Muon, with decay on matrices only."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from horovod_transformer.config_sections import TrainingConfig
from horovod_transformer.training.optim.eager_adamw import EagerAdamW
from horovod_transformer.training.optim.muon import MuonAdamW


def build_optimizer(model: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """Make the optimizer that `training.optimizer` names.

    Matrices (embeddings, linear weights) decay towards zero; biases and norms, which have no
    directions to prefer, do not. Under `muon` the matrices inside the transformer blocks are
    Muon's, and everything else is AdamW's (Loshchilov & Hutter 2019, arXiv:1711.05101).
    """
    vectors, matrices, inner = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            vectors.append(parameter)
        elif training.optimizer == "muon" and name.startswith("blocks."):
            inner.append(parameter)
        else:
            matrices.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": training.weight_decay, "muon": False},
        {"params": vectors, "weight_decay": 0.0, "muon": False},
    ]
    if inner:
        groups.append({"params": inner, "weight_decay": training.weight_decay, "muon": True})
    kind = MuonAdamW if inner else EagerAdamW
    return kind(
        groups,
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_eps,
        fused=True,
    )
