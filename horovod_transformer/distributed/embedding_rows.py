"""The embedding's gradient in two parts, so that nearly all of it leaves when the backward pass begins.

Embedding and output projection are one weight. The projection's gradient is complete as soon as the backward
pass has begun; what the lookup adds to it comes last, but changes only the rows of the tokens it has seen. So
all other rows leave at once, and these few follow at the end, whole, with their numbers: every number travels
in one part alone, and sums of whole numbers stay the same to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

# Rows that follow are not compressed, and a rank receives those of all others: they have to be few.
MOST_ROWS = 1 / 4


def are_few(ranks: int, tokens: int, vocab_size: int) -> bool:
    """Whether it pays to send rows apart.

    Args:
        ranks: That train together.
        tokens: In the last backward pass of each rank, at most; 0 if that is not known.
        vocab_size: Rows of the embedding.
    """
    return 0 < ranks * tokens <= vocab_size * MOST_ROWS


@contextlib.contextmanager
def without(gradient: Tensor, tokens: Tensor) -> Iterator[None]:
    """Within this context the rows of these tokens, each named once, are zero."""
    kept = gradient[tokens]
    gradient[tokens] = 0.0
    try:
        yield
    finally:
        gradient[tokens] = kept


def pack(gradient: Tensor, tokens: Tensor) -> Tensor:
    """The rows of these tokens as bits, int32 (tokens, 1 + C): each token's number, then its row.

    Args:
        gradient: Float32 (V, C), or the bits of whole numbers.
        tokens: Int64, each once.
    """
    return torch.cat([tokens.int()[:, None], gradient[tokens].view(torch.int32)], dim=1)


def add(total: Tensor, packed: Tensor) -> None:
    """Add rows of all ranks, by rank, to what has left before.

    Args:
        total: (V, C), float32 or int32.
        packed: As `pack` returns them, one rank's behind the other's.
    """
    total.index_add_(0, packed[:, 0].long(), packed[:, 1:].contiguous().view(total.dtype))
