"""Cross-entropy over a large vocabulary without ever holding all logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED_LABEL = -100
# Rows of logits alive at once. 512 rows x 50,257 columns are 103 MB in float32; fewer rows are
# slower at that width (docs/log.md), more only take memory.
CHUNK_ROWS = 512


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, gradient_scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Next-token loss of an output projection, computed a few hundred rows at a time.

    The full logits of 16 blocks of 512 tokens over GPT-2's vocabulary take 1.6 GB, and their
    gradient as much again. Here each chunk's gradient is formed in the forward pass, while its
    logits are at hand, so one chunk of them is alive at any time and the matrix product is not
    repeated in the backward pass.

    Args:
        hidden: Final hidden states, float of shape (rows, d_model).
        weight: Output projection, float of shape (vocab_size, d_model).
        labels: The token that follows each row, int64 of shape (rows,); -100 rows do not count.
        gradient_scale: What the caller is going to multiply the loss with before `backward`. The
            gradient is formed with it at once: in fp16 most of it would be lost without.

    Returns:
        The summed loss in nats (float32 scalar, differentiable), the number of rows that count
        and the number of them whose likeliest token is the label (int64 scalars). Of tokens that
        are likeliest alike the one with the lowest id counts, as in `argmax` and greedy generation.
    """
    return _ChunkedCrossEntropy.apply(hidden, weight, labels, gradient_scale, torch.is_grad_enabled())


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, gradient_scale: float, with_gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        counted = labels != IGNORED_LABEL
        targets = labels.masked_fill(~counted, 0)
        loss = hidden.new_zeros((), dtype=torch.float32)
        correct = labels.new_zeros(())
        hidden_gradient = torch.empty_like(hidden) if with_gradient else None
        weight_gradient = torch.zeros_like(weight) if with_gradient else None

        for start in range(0, hidden.shape[0], CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            count, target = counted[rows], targets[rows, None]
            logits = torch.nn.functional.linear(hidden[rows], weight).float()
            # The index and not the value: in half precision a label often ties with another token.
            largest, likeliest = logits.max(dim=1, keepdim=True)
            target_logit = logits.gather(1, target)
            correct += ((likeliest == target).squeeze(1) & count).sum()
            exponentials = logits.sub_(largest).exp_()
            total = exponentials.sum(dim=1, keepdim=True)
            row_loss = (total.log() + largest - target_logit).squeeze(1)
            loss += row_loss.masked_fill(~count, 0.0).sum()
            if with_gradient:
                # d loss / d logits = softmax - one_hot(label), and nothing for rows left out.
                assert hidden_gradient is not None and weight_gradient is not None
                slope = exponentials.div_(total)
                slope.scatter_add_(1, target, -torch.ones_like(target_logit))
                slope = slope.masked_fill_(~count[:, None], 0.0)
                if gradient_scale != 1.0:
                    slope *= gradient_scale
                slope = slope.to(weight.dtype)
                hidden_gradient[rows] = slope @ weight
                if slope.dtype == weight_gradient.dtype and not torch.is_autocast_enabled(slope.device.type):
                    weight_gradient.addmm_(slope.t(), hidden[rows])
                else:
                    # Under autocast the product comes in half precision; the sum stays in float32.
                    weight_gradient += slope.t() @ hidden[rows]

        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.gradient_scale = gradient_scale
        number = counted.sum()
        ctx.mark_non_differentiable(number, correct)
        return loss, number, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scale = gradients[0]
        if ctx.gradient_scale != 1.0:
            scale = scale / ctx.gradient_scale
        return hidden_gradient * scale, weight_gradient * scale, None, None, None
