"""What a model is measured beside: guessing, knowing how often each token comes, another model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from horovod_transformer.data.dataset import BlockDataset
from horovod_transformer.evaluation.book_scores import BookScore, score_each
from horovod_transformer.model.transformer import TransformerLM
from horovod_transformer.tokenizer import Tokenizer

# Training blocks in which tokens are counted, evenly spread: frequencies need no more.
COUNTED_BLOCKS = 100_000
_BLOCKS_AT_ONCE = 4096


@dataclass(frozen=True)
class OtherModel:
    """A model to be measured on the same books.

    Attributes:
        checkpoint: The file it comes from.
        model: From `load_model_for_generation`.
        tokenizer: Its own.
    """

    checkpoint: str
    model: TransformerLM
    tokenizer: Tokenizer


def bits_of_guessing(score: BookScore, vocab_size: int) -> float:
    """Bits per byte of a guess: each token has the same chance."""
    return score.tokens * math.log2(vocab_size) / max(1, score.bytes)


def bits_of_frequencies(
    books: Sequence[np.ndarray], tokenizer: Tokenizer, score: BookScore, blocks: BlockDataset | None
) -> float:
    """Bits per byte of a unigram model, which knows only how often each token comes.

    Each token is counted once more than it was met, so that none is impossible (Laplace).

    Args:
        books: Token ids of each book, without end-of-text.
        tokenizer: Says how many tokens there are.
        score: Of a model with this tokenizer on these books: gives their length in bytes.
        blocks: Training blocks to count in; None counts in the books themselves, which flatters it.
    """
    own = [np.append(book, tokenizer.eos_token_id) for book in books]
    size = 1 + max(tokenizer.eos_token_id, *(int(book.max()) for book in own))
    counts = np.zeros(size, dtype=np.int64)
    for ids in own if blocks is None else _spread_rows(blocks):
        found = np.bincount(ids.ravel(), minlength=size)
        counts += found[:size]
    bits = math.log2(counts.sum() + size) - np.log2(counts + 1)
    return math.fsum(float(bits[book].sum()) for book in own) / max(1, score.bytes)


def _spread_rows(blocks: BlockDataset) -> list[np.ndarray]:
    """Blocks, evenly spread over a split, as arrays [blocks, block_size]."""
    chosen = range(0, len(blocks), -(-len(blocks) // COUNTED_BLOCKS))
    starts = range(0, len(chosen), _BLOCKS_AT_ONCE)
    return [blocks.rows(chosen[start : start + _BLOCKS_AT_ONCE]) for start in starts]


def score_with(
    other: OtherModel, books: Sequence[np.ndarray], tokenizer: Tokenizer, precision: str
) -> list[BookScore]:
    """Score the same text with another model, in its own tokens; see `score_each`.

    Args:
        other: The other model.
        books: Token ids of each book, as `tokenizer` has them.
        tokenizer: The one that the books are encoded with.
        precision: fp32, bf16 or fp16.
    """
    again = [other.tokenizer.encode_array(tokenizer.decode(book.tolist())).astype(np.int64) for book in books]
    return score_each(other.model, again, other.tokenizer, precision)
