"""AdamW and Muon, with decay on matrices only, and the learning rate of each update."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from horovod_transformer.config import TrainingConfig

# Polynomial whose iteration drives singular values towards 1, from the Muon reference.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
MUON_MOMENTUM = 0.95


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
    kind = MuonAdamW if inner else torch.optim.AdamW
    return kind(
        groups,
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_eps,
        fused=True,
    )


class MuonAdamW(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for the parameter groups that say `muon`, AdamW for the others.

    Muon replaces a matrix's momentum by the nearest matrix whose singular values are all alike,
    so that every direction learns at the same pace. Its length is made that of a typical AdamW
    update (Liu et al. 2025, arXiv:2502.16982, section 2.2): both share one learning rate.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step of both kinds."""
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self._muon_step(group)
        try:
            self.param_groups = [group for group in groups if not group["muon"]]
            return super().step(closure)
        finally:
            self.param_groups = groups

    def _muon_step(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            state = self.state[parameter]
            if not state:
                # AdamW looks for `step` in every parameter's state when it loads one.
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["momentum"] = torch.zeros_like(parameter)
            state["step"] += 1
            momentum = state["momentum"].lerp_(gradient, 1 - MUON_MOMENTUM)
            update = orthogonalized(gradient.lerp(momentum, MUON_MOMENTUM))
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(parameter.shape)))


def orthogonalized(matrix: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrix, roughly: singular values end between 0.7 and 1.2.

    Args:
        matrix: Float (rows, columns).
    """
    a, b, c = NEWTON_SCHULZ
    # A GPU has bfloat16 matrix units, and the iteration does not need more digits.
    dtype = torch.bfloat16 if matrix.is_cuda else matrix.dtype
    x = matrix.to(dtype)
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.t()
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.t()
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.t() if tall else x).to(matrix.dtype)


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
