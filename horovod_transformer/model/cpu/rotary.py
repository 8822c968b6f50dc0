"""The rotation of queries and keys on a CPU: no number is touched more often than need be.

Written as a formula it reads and writes all numbers some eight times, and its backward pass as often again.
This takes half of that (docs/log.md, 2026-11-29).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotated(qkv: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Return queries and keys turned, and values, as a new tensor of the same shape; see `model.rotary`.

    The values are copied, too: the old tensor can go, and training holds no more memory than without.

    Args:
        qkv: Float (B, T, 3, H, D).
        cosines: Broadcast to (B, T, 2, H, D/2).
        sines: The same.
    """
    if torch.is_grad_enabled() and qkv.requires_grad:
        return _Rotation.apply(qkv, cosines, sines)
    return _turn(qkv, cosines, sines, 1)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        return _turn(qkv, cosines, sines, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        # The transpose of a rotation turns back.
        cosines, sines = ctx.saved_tensors
        return _turn(grad, cosines, sines, -1), None, None


def _turn(qkv: Tensor, cosines: Tensor, sines: Tensor, direction: int) -> Tensor:
    turned = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    turned[:, :, 2] = qkv[:, :, 2]
    first, second = qkv[:, :, :2].chunk(2, dim=-1)
    new_first, new_second = turned[:, :, :2].chunk(2, dim=-1)
    torch.mul(first, cosines, out=new_first).addcmul_(second, sines, value=-direction)
    torch.mul(second, cosines, out=new_second).addcmul_(first, sines, value=direction)
    return turned
