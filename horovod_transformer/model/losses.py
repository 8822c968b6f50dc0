"""Cross-entropy over a large vocabulary without ever holding all logits."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from horovod_transformer.model.compilation import compile_for_fixed_shapes
from horovod_transformer.model.cpu.cross_entropy import LogitsInPlace
from horovod_transformer.model.cpu.head_products import add_weight_gradient, gradient_of_hidden

IGNORED_LABEL = -100
# Rows of logits alive at once on a CPU. 512 rows x 50,257 columns are 103 MB in float32; fewer rows are
# slower at that width (docs/log.md), more only take memory.
CHUNK_ROWS = 512
# A GPU is fed with fewer, larger products; its chunk may take this share of its memory.
GPU_CHUNK_ROWS = 8192
GPU_MEMORY_SHARE = 1 / 16
# Products want rows that begin at round addresses, and 50,257 columns do not make such rows.
COLUMNS_MULTIPLE = 64


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
        and the number of them whose likeliest token is the label (int64 scalars). Of tokens that
        are likeliest alike the one with the lowest id counts, as in `argmax` and greedy generation.
    """
    return _ChunkedCrossEntropy.apply(
        hidden, weight, labels, gradient_scale, compiled, torch.is_grad_enabled()
    )


def rows_per_chunk(device: torch.device, columns: int) -> int:
    """How many rows of logits to hold at once.

    It follows from the card's whole memory, not from what is free: the number decides the last
    bits of the sums, and a resumed run must repeat them.

    Args:
        device: Where they are.
        columns: Of the logits.
    """
    if device.type != "cuda":
        return CHUNK_ROWS
    memory = torch.cuda.get_device_properties(device).total_memory
    bytes_per_row = columns * 12  # logits in half and single precision, their gradient, its half
    fitting = int(memory * GPU_MEMORY_SHARE) // bytes_per_row
    return max(CHUNK_ROWS, min(GPU_CHUNK_ROWS, fitting // CHUNK_ROWS * CHUNK_ROWS))


def padded_columns(vocab_size: int) -> int:
    """Columns that a row of logits has room for; those beyond the vocabulary are not looked at."""
    return -(-vocab_size // COLUMNS_MULTIPLE) * COLUMNS_MULTIPLE


def works_in_place(device: torch.device, compiled: bool) -> bool:
    """Whether `LogitsInPlace` computes the chunks: a GPU keeps its blocks, and its passes may be compiled."""
    return device.type == "cpu" and not compiled


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        gradient_scale: float,
        compiled: bool,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        device, vocab_size = hidden.device, weight.shape[0]
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else weight.dtype
        columns = padded_columns(vocab_size)
        chunk_rows = rows_per_chunk(device, columns)
        counted = labels != IGNORED_LABEL
        targets = labels.masked_fill(~counted, 0)
        loss = hidden.new_zeros((), dtype=torch.float32)
        correct = labels.new_zeros(())
        hidden_gradient = torch.empty_like(hidden) if with_gradient else None
        in_place: LogitsInPlace | None = None
        if works_in_place(device, compiled):
            in_place = LogitsInPlace(min(chunk_rows, hidden.shape[0]), vocab_size, columns, dtype)
            columns = vocab_size
        weight_gradient = weight.new_zeros(columns, weight.shape[1]) if with_gradient else None

        # A tensor: compiled code takes a number for a constant, and this one changes.
        scale = hidden.new_full((), gradient_scale, dtype=torch.float32) if gradient_scale != 1.0 else None
        loss_and_slope = _compiled_loss_and_slope() if compiled else _loss_and_slope
        # Products are cast by hand, once and not chunk by chunk.
        with torch.autocast(device.type, enabled=False):
            projection = weight.to(dtype)
            if columns > vocab_size:
                # Rows of zeros: their logits are zero, too, and stay so in the gradient.
                projection = torch.nn.functional.pad(projection, (0, 0, 0, columns - vocab_size))
            for start in range(0, hidden.shape[0], chunk_rows):
                rows = slice(start, start + chunk_rows)
                part = hidden[rows].to(dtype)
                target, count = targets[rows, None], counted[rows]
                if in_place is not None:
                    row_loss, right, slope = in_place.loss_and_slope(
                        part, projection, target, count, scale, with_gradient
                    )
                else:
                    logits = torch.nn.functional.linear(part, projection)
                    row_loss, right, slope = loss_and_slope(
                        logits, vocab_size, target, count, scale, with_gradient
                    )
                    del logits
                loss += row_loss
                correct += right
                if slope is not None:
                    assert hidden_gradient is not None and weight_gradient is not None
                    hidden_gradient[rows] = gradient_of_hidden(slope, projection)
                    add_weight_gradient(weight_gradient, slope, part)
                del slope  # before the next chunk's logits take as much again

        if weight_gradient is not None:
            weight_gradient = weight_gradient[:vocab_size]
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
        # In place: at 124M parameters a copy is 154 MB. A second backward pass is refused by autograd itself.
        return hidden_gradient.mul_(scale), weight_gradient.mul_(scale), None, None, None, None


def _loss_and_slope(
    logits: Tensor,
    vocab_size: int,
    target: Tensor,
    count: Tensor,
    scale: Tensor | None,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Turn a chunk of logits into its summed loss and the gradient of that.

    Args:
        logits: Float (rows, columns); overwritten if float32.
        vocab_size: Columns that are tokens; the others hold zeros.
        target: Token ids, int64 (rows, 1).
        count: Bool (rows,): which rows count.
        scale: What to multiply the gradient with, float32 scalar; None is 1.
        with_gradient: Whether the gradient is wanted.

    Returns:
        The summed loss in nats (float32 scalar), how many rows' likeliest token is the label (int64
        scalar), and the gradient, of the logits' shape and dtype, or None.
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
    if not with_gradient:
        return summed, correct, None
    # d loss / d logits = softmax - one_hot(label), and nothing for rows left out.
    slope = exponentials.div_(total)
    slope.scatter_(1, target, slope.gather(1, target) - 1)
    slope.masked_fill_(~count[:, None], 0.0)
    if scale is not None:
        slope *= scale
    return summed, correct, wide.to(logits.dtype)


def _loss_and_slope_to_fuse(
    logits: Tensor,
    vocab_size: int,
    target: Tensor,
    count: Tensor,
    scale: Tensor | None,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`_loss_and_slope` as a compiler wants it, and with the logits left as they are.

    Nothing is written in place and nothing scattered: that would divide the work among several kernels. Nor
    is the likeliest token's index looked for; a comparison is cheaper (docs/log.md, 2026-11-26).
    """
    columns = torch.arange(logits.shape[1], device=logits.device)
    wide = logits.float().masked_fill(columns >= vocab_size, -math.inf)
    largest = wide.amax(dim=1, keepdim=True)
    target_logit = wide.gather(1, target)
    # Of tokens that are likeliest alike the first one counts.
    beaten = ((wide == target_logit) & (columns < target)).any(dim=1)
    correct = ((target_logit == largest).squeeze(1) & ~beaten & count).sum()
    exponentials = (wide - largest).exp()
    total = exponentials.sum(dim=1, keepdim=True)
    row_loss = (total.log() + largest - target_logit).squeeze(1)
    summed = row_loss.masked_fill(~count, 0.0).sum()
    if not with_gradient:
        return summed, correct, None
    slope = (exponentials / total - (columns == target).float()).masked_fill(~count[:, None], 0.0)
    if scale is not None:
        slope = slope * scale
    return summed, correct, slope.to(logits.dtype)


@functools.cache
def _compiled_loss_and_slope() -> Callable[..., tuple[Tensor, Tensor, Tensor | None]]:
    return compile_for_fixed_shapes(_loss_and_slope_to_fuse)
