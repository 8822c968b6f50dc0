"""Logits on a CPU: all chunks of them in the same memory, with few passes over it.

A new piece of 100 MB costs a page fault for each 4 KB, a product writes rows that begin at odd addresses a
fifth to a third more slowly, and the passes over a chunk add up (docs/log.md, 2026-11-26).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from horovod_transformer.model.cpu.head_products import put_logits


def works_in_place(device: torch.device, compiled: bool) -> bool:
    """Whether to use `LogitsInPlace`: a GPU reuses memory by itself, and its passes may be compiled."""
    return device.type == "cpu" and not compiled


class LogitsInPlace:
    """Chunks of logits, each over the one before.

    Attributes:
        projection: (V, C), as given.

    Args:
        projection: In the format in which products are computed; logits are float32.
        columns: What a row has room for, at least V: so that rows begin at round addresses.
        rows: Of a chunk, at most.
    """

    def __init__(self, projection: Tensor, columns: int, rows: int) -> None:
        self.projection = projection
        self._vocab_size, dtype = projection.shape[0], projection.dtype
        self._logits = torch.empty(rows, columns)
        # Where the products put them, and their gradient for the products.
        self._half = None if dtype == torch.float32 else torch.empty(rows, columns, dtype=dtype)

    def loss_and_grad(
        self, hidden: Tensor, target: Tensor, count: Tensor, scale: Tensor | None, with_grad: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Compute a chunk of logits, its summed loss and the gradient of that.

        Args:
            hidden: (rows, C), in the projection's format.
            target: Token ids, int64 (rows, 1).
            count: Bool (rows,): which rows count.
            scale: What to multiply the gradient with, float32 scalar; None is 1.
            with_grad: Whether the gradient is wanted.

        Returns:
            The summed loss in nats (float32 scalar), how many rows' likeliest token is the label (int64
            scalar), and the gradient of the logits, (rows, V) in the projection's format, or None. The next
            call overwrites it.
        """
        logits = self._logits[: hidden.shape[0]]
        tokens = logits[:, : self._vocab_size]
        half = None if self._half is None else self._half[: hidden.shape[0], : self._vocab_size]
        put_logits(tokens if half is None else half, hidden, self.projection)
        if half is not None:
            tokens.copy_(half)

        largest = tokens.amax(dim=1, keepdim=True)
        target_logit = tokens.gather(1, target)
        # Looking for an index takes seven times as long as for a value: only where the label may be the one.
        # The index it must be, for in half precision a label often ties with another token.
        (likely,) = (count & (target_logit == largest).squeeze(1)).nonzero(as_tuple=True)
        correct = (tokens[likely].argmax(dim=1) == target[likely, 0]).sum()
        logits[:, self._vocab_size :] = -math.inf
        # Row by row, and a row fits into the caches; each is read before it is written.
        torch.softmax(logits, dim=1, out=logits)
        # The likeliest token's exponential is 1, so its probability is one by the sum of all.
        row_loss = (largest - target_logit - tokens.amax(dim=1, keepdim=True).log()).squeeze(1)
        summed = row_loss.masked_fill(~count, 0.0).sum()
        if not with_grad:
            return summed, correct, None

        # d loss / d logits = softmax - one_hot(label), and nothing for rows left out.
        tokens.scatter_(1, target, tokens.gather(1, target) - 1)
        tokens.index_fill_(0, (~count).nonzero().squeeze(1), 0.0)  # few rows; a mask would look at all
        if scale is not None:
            tokens *= scale
        return summed, correct, tokens if half is None else half.copy_(tokens)
