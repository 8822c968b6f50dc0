"""How well a model predicts whole held-out books, in bits per byte, beside a compressor."""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from horovod_transformer.data.loading import BlockDataset
from horovod_transformer.model import TransformerLM
from horovod_transformer.tokenizer import Tokenizer

# Windows scored in one forward pass.
BATCH = 16


@dataclass(frozen=True)
class BookScore:
    """What a model needs to write down some text.

    Attributes:
        nats: Summed loss of all tokens, end-of-text included.
        tokens: Number of them.
        bytes: UTF-8 length of the text.
    """

    nats: float
    tokens: int
    bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text, the figure that tokenizers and compressors share."""
        return self.nats / math.log(2) / max(1, self.bytes)


def books_of(blocks: BlockDataset, tokenizer: Tokenizer) -> list[np.ndarray]:
    """Put the books of a split together again: one array of token ids per book, no end-of-text."""
    stream = np.concatenate([blocks[i]["input_ids"].numpy() for i in range(len(blocks))])
    stream = stream[: len(stream) - blocks.padding]
    ends = np.flatnonzero(stream == tokenizer.eos_token_id)
    return [
        book[:-1] if len(book) and book[-1] == tokenizer.eos_token_id else book
        for book in np.split(stream, ends + 1)
        if len(book)
    ]


@torch.no_grad()
def score_books(model: TransformerLM, books: Sequence[np.ndarray], tokenizer: Tokenizer) -> BookScore:
    """Predict every token of every book, each from at least half a context of what came before.

    A window of the model's context moves on by half its length; only the half not scored before
    counts. A book starts after an end-of-text token and ends with one.

    Args:
        model: The model.
        books: Token ids of each book.
        tokenizer: Gives the end-of-text token and the books' length in bytes.
    """
    was_training = model.training
    model.eval()
    device = model.token_embedding.weight.device
    nats, tokens = 0.0, 0
    windows = [
        window for book in books for window in _windows(book, model.max_seq_len, tokenizer.eos_token_id)
    ]
    # Windows of one length go together; nearly all have the full length.
    windows.sort(key=lambda window: len(window[0]))
    for batch in _batches(windows):
        input_ids = torch.from_numpy(np.stack([ids for ids, _ in batch])).to(device)
        labels = input_ids.clone()
        for row, (_, seen) in enumerate(batch):
            labels[row, :seen] = -100
        loss, number, _ = model.loss_sums(input_ids, labels)
        nats += float(loss)
        tokens += int(number)
    model.train(was_training)
    return BookScore(nats, tokens, sum(len(tokenizer.decode_bytes(book.tolist())) for book in books))


def _windows(book: np.ndarray, context: int, end: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield windows over a book and how many of each one's first tokens are not to be scored."""
    stream = np.concatenate([[end], book, [end]]).astype(np.int64)
    start, scored = 0, 1
    while scored < len(stream):
        window = stream[start : start + context]
        yield window, scored - start
        scored = start + len(window)
        start = max(start + 1, scored - context // 2)


def _batches(
    windows: list[tuple[np.ndarray, int]],
) -> Iterator[list[tuple[np.ndarray, int]]]:
    batch: list[tuple[np.ndarray, int]] = []
    for window in windows:
        if batch and (len(batch) == BATCH or len(batch[0][0]) != len(window[0])):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def xz_bits_per_byte(known: bytes, new: bytes) -> float:
    """What `xz -9` needs for `new` when it has seen `known`, in bits per byte of `new`."""
    without, together = (len(lzma.compress(data, preset=9)) for data in (known, known + new))
    return 8 * (together - without) / max(1, len(new))
