"""The gate of a gated feed-forward network, which keeps nothing but its input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from horovod_transformer.model.cpu.recomputation import recomputable


def swiglu(x: Tensor) -> Tensor:
    """The first half of the numbers, by way of SiLU, times the second half (Shazeer 2020, arXiv:2002.05202).

    On a CPU a linear layer behind it keeps `x` instead of the result.

    Args:
        x: Float (..., 2 F).

    Returns:
        Float (..., F).
    """
    return recomputable(_swiglu, x)


def _swiglu(x: Tensor) -> Tensor:
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        gate, passed = x.chunk(2, dim=-1)
        return F.silu(gate) * passed
    return _SwiGLU.apply(x)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        gate, passed = x.chunk(2, dim=-1)
        return F.silu(gate).mul_(passed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate, passed = x.chunk(2, dim=-1)
        x_grad = torch.empty_like(x)
        gate_grad, passed_grad = x_grad.chunk(2, dim=-1)
        torch.mul(F.silu(gate), grad, out=passed_grad)
        torch.ops.aten.silu_backward.grad_input(grad * passed, gate, grad_input=gate_grad)
        return x_grad
