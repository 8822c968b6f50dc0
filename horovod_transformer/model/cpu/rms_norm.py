"""RMSNorm, in few passes on a CPU, and with an output that need not be kept for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from horovod_transformer.model.cpu.recomputation import recomputable


class RMSNorm(nn.Module):
    """Numbers divided by their root mean square (Zhang and Sennrich 2019, arXiv:1910.07467), times a weight.

    Computed in float32. On a CPU a linear layer behind it keeps this layer's input instead of its output.

    Args:
        width: Of the last axis.
        eps: Added to the mean square.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise float (..., C) over its last axis; the same dtype."""
        return recomputable(self._normalised, x)

    def _normalised(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and x.device.type == "cpu" and x.dtype == torch.float32:
            return _RMSNorm.apply(x, self.weight, self.eps)
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight.float()).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """Autograd itself would keep three tensors of the input's size, and go through them a dozen times."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        product = grad * normed
        weight_grad = product.flatten(0, -2).sum(0)
        # The part of the gradient that points along the input only makes it longer, which changes nothing.
        along = (product @ weight).div_(x.shape[-1]).unsqueeze(-1)
        x_grad = torch.mul(grad, weight, out=product).addcmul_(normed, along, value=-1).mul_(scale)
        return x_grad, weight_grad, None
