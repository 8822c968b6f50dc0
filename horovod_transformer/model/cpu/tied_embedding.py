"""The token embedding, which is the output projection as well: one weight with two gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def embed(input_ids: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Look tokens up, and give the weight back for the output projection of the same model.

    Left to itself, autograd writes the lookup's gradient, which is zero for all tokens but a few, into a
    second matrix and adds both into a third: at 124M parameters 309 MB at the height of an update. On a
    CPU the few rows are added to the projection's own gradient instead, with the same bits. A GPU would
    not repeat such sums to the bit, and is left alone.

    Args:
        input_ids: Token ids, int64 (B, T).
        weight: Float (V, C).

    Returns:
        The tokens' vectors, float (B, T, C), and `weight`: what the projection is to use, once.
    """
    if weight.device.type != "cpu" or not torch.is_grad_enabled():
        return F.embedding(input_ids, weight), weight
    return _TiedEmbedding.apply(input_ids, weight)


class _TiedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input_ids: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(input_ids)
        return F.embedding(input_ids, weight), weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, vectors: Tensor, projection: Tensor) -> tuple[None, Tensor]:
        (input_ids,) = ctx.saved_tensors
        # First among themselves, then to the rest: the order in which autograd adds.
        tokens, indices = input_ids.flatten().unique(return_inverse=True)
        rows = vectors.new_zeros(len(tokens), vectors.shape[-1])
        rows.index_add_(0, indices, vectors.flatten(0, -2))
        return None, projection.index_add_(0, tokens, rows)
