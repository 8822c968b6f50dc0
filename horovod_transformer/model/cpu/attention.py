"""Attention in bf16 on a CPU, out of plain matrix products.

CPUs with bf16 units multiply at several times their float32 rate, but torch's fused attention spends its
time between the products there. Whole rows of scores, as many heads at a time as the caches hold, take a
half to a third of its time, though half of the products are of what a position may not see (docs/log.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Scores alive at once: two bytes each.
SCORES = 2**20
# In longer texts the wasted half, which the fused attention leaves out, weighs more.
MOST_TOKENS = 1024


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool
) -> Tensor:
    """`F.scaled_dot_product_attention`; where it is faster, in bf16 on a CPU, by matrix products.

    Args:
        query: Float (B, H, T, D).
        key: Float (B, H, K, D).
        value: The same shape.
        mask: Bool, broadcast to (B, H, T, K), True where a query may see a key; None: see `causal`.
        dropout: Probability of dropping a weight.
        causal: A query sees keys up to its own position; False: all that `mask` lets it see.

    Returns:
        Float (B, H, T, D).
    """
    # The compiler comes first: it must not look further.
    if not torch.compiler.is_compiling() and causal and not dropout and _is_faster(query, key):
        return _CausalAttention.apply(query, key, value)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal
    )


def _is_faster(query: Tensor, key: Tensor) -> bool:
    return (
        query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and query.shape == key.shape
        and query.shape[2] <= MOST_TOKENS
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class _CausalAttention(torch.autograd.Function):
    """Keeps no scores: the backward pass computes them again, which is cheap.

    Products that are told where to write take no notice of autocast.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads = query.shape[:2]
        # (B, H, T, D) -> (B * H, T, D)
        query, key, value = (each.flatten(0, 1).contiguous() for each in (query, key, value))
        ctx.save_for_backward(query, key, value)
        ctx.heads = heads
        mixed = torch.empty_like(query)
        for some, weights in _weights(query, key):
            torch.bmm(weights, value[some], out=mixed[some])
        return mixed.unflatten(0, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = ctx.saved_tensors
        grad = grad.flatten(0, 1).contiguous()
        query_grad, key_grad, value_grad = (torch.empty_like(query) for _ in range(3))
        scale = _scale(query)
        score_grad: Tensor | None = None
        for some, weights in _weights(query, key):
            score_grad = torch.empty_like(weights) if score_grad is None else score_grad[: len(weights)]
            torch.bmm(weights.transpose(1, 2), grad[some], out=value_grad[some])
            torch.bmm(grad[some], value[some].transpose(1, 2), out=score_grad)
            torch._softmax_backward_data(score_grad, weights, -1, weights.dtype, grad_input=score_grad)
            _scaled_bmm(score_grad, key[some], scale, query_grad[some])
            _scaled_bmm(score_grad.transpose(1, 2), query[some], scale, key_grad[some])
        query_grad, key_grad, value_grad = (
            each.unflatten(0, ctx.heads) for each in (query_grad, key_grad, value_grad)
        )
        return query_grad, key_grad, value_grad


def _weights(query: Tensor, key: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Attention's weights, (heads, T, T), some heads at a time; the next ones overwrite them."""
    number, length, _ = query.shape
    at_once = min(number, max(1, SCORES // length**2))
    room = query.new_empty(at_once, length, length)
    unseen = query.new_full((length, length), -math.inf).triu_(1)
    for start in range(0, number, at_once):
        some = slice(start, min(start + at_once, number))
        scores = room[: some.stop - start]
        _scaled_bmm(query[some], key[some].transpose(1, 2), _scale(query), scores)
        scores += unseen
        yield some, torch.softmax(scores, dim=-1, out=scores)


def _scaled_bmm(left: Tensor, right: Tensor, scale: float, out: Tensor) -> None:
    """Batched products, multiplied before they are rounded."""
    torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)


def _scale(query: Tensor) -> float:
    return 1 / math.sqrt(query.shape[-1])
