"""Cross-entropy over a large vocabulary without ever holding all logits."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from horovod_transformer.model.chunk_size import padded_columns, rows_per_chunk
from horovod_transformer.model.compilation import compile_for_fixed_shapes
from horovod_transformer.model.cpu.cross_entropy import LogitsInPlace, works_in_place
from horovod_transformer.model.cpu.head_products import add_weight_grad, grad_of_hidden

IGNORED_LABEL = -100


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, gradient_scale: float = 1.0, compiled: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Next-token loss of an output projection, computed some rows at a time.

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
        compiled: Let `torch.compile` fuse what happens to a chunk between its matrix products.

    Returns:
        The summed loss in nats (float32 scalar, differentiable), the number of rows that count
        and the number of them whose likeliest token is the label (int64 scalars). If several
        tokens are equally likely, the one with the lowest id counts, as in `argmax` and greedy
        generation.
    """
    return _ChunkedCrossEntropy.apply(
        hidden, weight, labels, gradient_scale, compiled, torch.is_grad_enabled()
    )


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        gradient_scale: float,
        compiled: bool,
        with_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = hidden.device
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else weight.dtype
        columns = padded_columns(weight.shape[0])
        chunk_rows = rows_per_chunk(device, columns)
        counted = labels != IGNORED_LABEL
        targets = labels.masked_fill(~counted, 0)
        # A tensor: compiled code takes a number for a constant, and this one changes.
        scale = hidden.new_full((), gradient_scale, dtype=torch.float32) if gradient_scale != 1.0 else None

        # Products are cast by hand, once and not chunk by chunk.
        with torch.autocast(device.type, enabled=False):
            head: LogitsInPlace | Logits
            if works_in_place(device, compiled):
                head = LogitsInPlace(weight.to(dtype), columns, min(chunk_rows, len(hidden)))
            else:
                head = Logits(weight.to(dtype), columns, compiled)
            loss = hidden.new_zeros((), dtype=torch.float32)
            correct = labels.new_zeros(())
            hidden_grad = torch.empty_like(hidden) if with_grad else None
            weight_grad = weight.new_zeros(head.projection.shape) if with_grad else None
            for start in range(0, len(hidden), chunk_rows):
                rows = slice(start, start + chunk_rows)
                part = hidden[rows].to(dtype)
                chunk_loss, chunk_correct, logits_grad = head.loss_and_grad(
                    part, targets[rows, None], counted[rows], scale, with_grad
                )
                loss += chunk_loss
                correct += chunk_correct
                if logits_grad is not None:
                    assert hidden_grad is not None and weight_grad is not None
                    hidden_grad[rows] = grad_of_hidden(logits_grad, head.projection)
                    add_weight_grad(weight_grad, logits_grad, part)
                del logits_grad  # before the next chunk's logits take as much again

        if weight_grad is not None:
            weight_grad = weight_grad[: weight.shape[0]]
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.gradient_scale = gradient_scale
        number = counted.sum()
        ctx.mark_non_differentiable(number, correct)
        return loss, number, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = grads[0]
        if ctx.gradient_scale != 1.0:
            scale = scale / ctx.gradient_scale
        # In place: at 124M parameters a copy is 154 MB. A second backward pass is refused by autograd itself.
        return hidden_grad.mul_(scale), weight_grad.mul_(scale), None, None, None, None


class Logits:
    """Chunks of logits, each in new memory; `LogitsInPlace` is the same for a CPU.

    Attributes:
        projection: (columns, C), padded with rows of zeros: their logits are zero, too, and stay so in the
            gradient.

    Args:
        projection: (V, C), in the format in which products are computed.
        columns: At least V.
        compiled: Let `torch.compile` fuse what follows the product.
    """

    def __init__(self, projection: Tensor, columns: int, compiled: bool) -> None:
        self._vocab_size = projection.shape[0]
        padding = columns - self._vocab_size
        self.projection = F.pad(projection, (0, 0, 0, padding)) if padding else projection
        self._loss_and_grad = _compiled_loss_and_grad() if compiled else _loss_and_grad

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
            scalar), and the gradient of the logits, (rows, columns) in the projection's format, or None.
        """
        logits = F.linear(hidden, self.projection)
        return self._loss_and_grad(logits, self._vocab_size, target, count, scale, with_grad)


def _loss_and_grad(
    logits: Tensor, vocab_size: int, target: Tensor, count: Tensor, scale: Tensor | None, with_grad: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Turn logits, float (rows, columns), into their loss and its gradient; overwrites them if float32.

    Args and result are those of `Logits.loss_and_grad`; columns beyond `vocab_size` hold zeros.
    """
    wide = logits.float()
    tokens = wide[:, :vocab_size]
    # The index and not the value: in half precision a label often ties with another token.
    largest, likeliest = tokens.max(dim=1, keepdim=True)
    target_logit = tokens.gather(1, target)
    correct = ((likeliest == target).squeeze(1) & count).sum()
    exponentials = tokens.sub_(largest).exp_()
    total = exponentials.sum(dim=1, keepdim=True)
    row_loss = (total.log() + largest - target_logit).squeeze(1)
    summed = row_loss.masked_fill(~count, 0.0).sum()
    if not with_grad:
        return summed, correct, None
    # d loss / d logits = softmax - one_hot(label), and nothing for rows left out.
    grad = exponentials.div_(total)
    grad.scatter_(1, target, grad.gather(1, target) - 1)
    grad.masked_fill_(~count[:, None], 0.0)
    if scale is not None:
        grad *= scale
    return summed, correct, wide.to(logits.dtype)


def _loss_and_grad_to_fuse(
    logits: Tensor, vocab_size: int, target: Tensor, count: Tensor, scale: Tensor | None, with_grad: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`_loss_and_grad` as a compiler wants it, and with the logits left as they are.

    Nothing is written in place and nothing scattered: that would divide the work among several kernels. Nor
    is the likeliest token's index looked for; a comparison is cheaper (docs/log.md, 2026-11-26).
    """
    columns = torch.arange(logits.shape[1], device=logits.device)
    wide = logits.float().masked_fill(columns >= vocab_size, -math.inf)
    largest = wide.amax(dim=1, keepdim=True)
    target_logit = wide.gather(1, target)
    # Of equally likely tokens the first one counts.
    beaten = ((wide == target_logit) & (columns < target)).any(dim=1)
    correct = ((target_logit == largest).squeeze(1) & ~beaten & count).sum()
    exponentials = (wide - largest).exp()
    total = exponentials.sum(dim=1, keepdim=True)
    row_loss = (total.log() + largest - target_logit).squeeze(1)
    summed = row_loss.masked_fill(~count, 0.0).sum()
    if not with_grad:
        return summed, correct, None
    grad = (exponentials / total - (columns == target).float()).masked_fill(~count[:, None], 0.0)
    if scale is not None:
        grad = grad * scale
    return summed, correct, grad.to(logits.dtype)


@functools.cache
def _compiled_loss_and_grad() -> Callable[..., tuple[Tensor, Tensor, Tensor | None]]:
    return compile_for_fixed_shapes(_loss_and_grad_to_fuse)
