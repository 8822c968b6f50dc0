"""The output projection's three products: logits, and the gradients of hidden states and weights.

A vocabulary makes them long: 50,257 columns. On a CPU they are done a few columns at a time where a whole
product is slower (docs/log.md, 2026-11-26 and 2026-11-27).

Shapes: rows of hidden states of C numbers, a vocabulary of V.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from horovod_transformer.model.cpu.linear import mkl_lacks_avx512, onednn_product

# Columns of the vocabulary at a time: by oneDNN in float32, and where a CPU adds a half-precision product to
# a float32 sum: 2,048 x 768 are 3 MB.
ONEDNN_COLUMNS = 1024
HALF_COLUMNS = 2048


def put_logits(logits: Tensor, hidden: Tensor, projection: Tensor) -> None:
    """Write the logits of hidden states.

    Args:
        logits: Where to, (rows, V); its rows may have gaps between them.
        hidden: (rows, C).
        projection: (V, C).
    """
    if not _onednn_is_faster(hidden):
        torch.mm(hidden, projection.t(), out=logits)
        return
    for some in _columns(logits, ONEDNN_COLUMNS):
        logits[:, some] = onednn_product(hidden, projection[some])


def grad_of_hidden(logits_grad: Tensor, projection: Tensor) -> Tensor:
    """Return the gradient of hidden states, (rows, C), from that of their logits, (rows, V)."""
    if not _onednn_is_faster(logits_grad):
        return logits_grad @ projection
    total: Tensor | None = None
    for some in _columns(logits_grad, ONEDNN_COLUMNS):
        product = onednn_product(logits_grad[:, some], projection[some].t())
        total = product if total is None else total.add_(product)
    assert total is not None
    return total


def add_weight_grad(total: Tensor, logits_grad: Tensor, hidden: Tensor) -> None:
    """Add the gradient of the projection to a total, in place.

    Args:
        total: Float32 or the others' dtype, (V, C).
        logits_grad: The gradient of the logits, (rows, V).
        hidden: (rows, C).
    """
    if total.dtype != logits_grad.dtype:
        _add_half(total, logits_grad.t(), hidden)
    elif _onednn_is_faster(logits_grad):
        for some in _columns(logits_grad, ONEDNN_COLUMNS):
            total[some] += onednn_product(logits_grad[:, some].t(), hidden.t())
    else:
        total.addmm_(logits_grad.t(), hidden)


def _add_half(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left @ right`, which comes in half precision, to a float32 total, in place.

    To add two formats a CPU makes a float32 copy of the smaller one first; a few rows at a time, product and
    copy stay in its caches.
    """
    rows = total.shape[0] if total.device.type != "cpu" else min(HALF_COLUMNS, total.shape[0])
    product = left.new_empty(rows, right.shape[1])
    for start in range(0, total.shape[0], rows):
        some = total[start : start + rows]
        some += torch.mm(left[start : start + rows], right, out=product[: len(some)])


def _columns(matrix: Tensor, at_once: int) -> Iterator[slice]:
    for start in range(0, matrix.shape[1], at_once):
        yield slice(start, start + at_once)


def _onednn_is_faster(factor: Tensor) -> bool:
    return (
        factor.device.type == "cpu"
        and factor.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and mkl_lacks_avx512()
    )
