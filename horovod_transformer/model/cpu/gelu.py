"""GPT-2's activation."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from horovod_transformer.model.cpu.recomputation import recomputable

# 0.5 (1 + tanh(z)) is sigmoid(2 z), here with z = sqrt(2 / pi) (x + 0.044715 x^3).
LINEAR = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715 * LINEAR
# Of fewer numbers, the calls take longer than the work.
MANY_NUMBERS = 2**16
# Numbers worked on at a time in bf16: as float32 they are 1 MB, which stays in a core's caches.
PIECE = 2**18


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form (Hendrycks and Gimpel 2016, section 2), elementwise.

    On a CPU the same by way of the sigmoid, in float32 in a quarter to three quarters of torch's time, in
    bf16 in half of it: it differs by rounding, in float32 at most 1e-6. A linear layer behind it keeps `x`
    instead of the result.
    """
    return recomputable(_gelu, x)


def _gelu(x: Tensor) -> Tensor:
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.numel() < MANY_NUMBERS:
        return F.gelu(x, approximate="tanh")
    if x.dtype not in (torch.float32, torch.bfloat16):
        return F.gelu(x, approximate="tanh")
    return _GeluBySigmoid.apply(x)


class _GeluBySigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        if x.dtype == torch.float32:
            return _by_sigmoid(x)
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        for part, target in zip(x.flatten().split(PIECE), result.view(-1).split(PIECE), strict=True):
            target.copy_(_by_sigmoid(part.float()))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.gelu_backward(grad, x, approximate="tanh")


def _by_sigmoid(x: Tensor) -> Tensor:
    return torch.addcmul(x.new_tensor(LINEAR), x, x, value=CUBIC).mul_(x).sigmoid_().mul_(x)
