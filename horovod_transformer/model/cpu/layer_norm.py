"""LayerNorm whose output need not be kept for the backward pass."""

from __future__ import annotations

from torch import Tensor, nn

from horovod_transformer.model.cpu.recomputation import recomputable


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm`; on a CPU a linear layer behind it keeps this layer's input instead of its output."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise float (..., C) over its last axis."""
        return recomputable(super().forward, x)
