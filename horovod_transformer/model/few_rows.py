"""Products of a few rows with a matrix of weights, on a CPU: what writing token after token consists of.

They take as long as reading the weights takes. MKL, which `F.linear` calls, reads large ones at half the
memory's bandwidth, and several times for some rows; oneDNN does better (docs/log.md, 2026-11-26).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# oneDNN is the faster one up to so many rows, and from so many weights on: less fit into the caches,
# and a call of it costs some 30 microseconds.
FEW_ROWS = 32
MANY_WEIGHTS = 2**19


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`; for a few rows and many weights in fp32 on a CPU, without gradient, by oneDNN.

    Args:
        x: Float (..., K).
        weight: Float (N, K).
        bias: Float (N,), or None.

    Returns:
        Float (..., N).
    """
    if torch.is_grad_enabled() or x.numel() > FEW_ROWS * x.shape[-1] or weight.numel() < MANY_WEIGHTS:
        return F.linear(x, weight, bias)
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    if not torch.backends.mkldnn.is_available():
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map float (..., K) to float (..., N)."""
        return linear(x, self.weight, self.bias)
