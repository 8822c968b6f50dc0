"""Muon: momentum made orthogonal, for the matrices inside the blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Polynomial whose iteration drives singular values towards 1, from the Muon reference.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
MUON_MOMENTUM = 0.95


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
