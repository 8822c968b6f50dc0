"""How well a model predicts: whole held-out books, in bits per byte beside a compressor, and what
its prompt adds to the likelihood of a text."""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from horovod_transformer.data.dataset import BlockDataset
from horovod_transformer.metrics import perplexity
from horovod_transformer.model.transformer import TransformerLM
from horovod_transformer.precision import autocast
from horovod_transformer.system.console import ProgressBar
from horovod_transformer.tokenizer import Tokenizer

# Windows scored in one forward pass.
BATCH = 16
# How far back `xz -9` looks: its dictionary, in bytes. What lies further back does not help it.
XZ_DICTIONARY = 64 << 20
# Draws of the bootstrap.
RESAMPLES = 10_000
DRAWN_AT_ONCE = 4_000_000  # books over all resamples: bounds the memory
# Below this many books a bootstrap says more than is known: of two it gives their lowest and highest figure.
FEWEST_FOR_INTERVAL = 8
# Prompts of other passages that a continuation is tried with.
OTHER_PROMPTS = 4


@dataclass(frozen=True)
class BookScore:
    """What a model needs to write down some text.

    Attributes:
        nats: Summed loss of all tokens, end-of-text included.
        tokens: Number of them.
        bytes: UTF-8 length of the text.
        correct: Tokens that were the model's likeliest.
    """

    nats: float
    tokens: int
    bytes: int
    correct: int = 0

    @property
    def loss(self) -> float:
        """Mean loss per token, nats."""
        return self.nats / max(1, self.tokens)

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity(self.loss)

    @property
    def accuracy(self) -> float:
        """Share of tokens predicted right."""
        return self.correct / max(1, self.tokens)

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


def score_books(
    model: TransformerLM,
    books: Sequence[np.ndarray],
    tokenizer: Tokenizer,
    precision: str = "fp32",
    progress: bool = False,
) -> BookScore:
    """Score books, see `score_each`, and add up."""
    return add_up(score_each(model, books, tokenizer, precision, progress))


def add_up(scores: Sequence[BookScore]) -> BookScore:
    """The score of several texts together: each token counts the same."""
    return BookScore(
        math.fsum(score.nats for score in scores),
        sum(score.tokens for score in scores),
        sum(score.bytes for score in scores),
        sum(score.correct for score in scores),
    )


def interval(scores: Sequence[BookScore]) -> tuple[float, float] | None:
    """Between which bits per byte other books of this kind would probably lie.

    95 % percentile bootstrap over whole books (Efron 1979): tokens of one book are alike, so books
    and not tokens are drawn.

    Returns:
        Lower and upper end; None for fewer than `FEWEST_FOR_INTERVAL` books.
    """
    if len(scores) < FEWEST_FOR_INTERVAL:
        return None
    bits = np.array([score.nats / math.log(2) for score in scores])
    sizes = np.array([score.bytes for score in scores])
    random = np.random.default_rng(0)
    means = np.empty(RESAMPLES)
    at_once = max(1, DRAWN_AT_ONCE // len(scores))
    for start in range(0, RESAMPLES, at_once):
        drawn = random.integers(0, len(scores), (min(at_once, RESAMPLES - start), len(scores)))
        means[start : start + at_once] = bits[drawn].sum(axis=1) / np.maximum(sizes[drawn].sum(axis=1), 1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def lowest_and_highest(scores: Sequence[BookScore]) -> tuple[float, float] | None:
    """Bits per byte of the book predicted best, and of the one predicted worst; None for a single book."""
    bits = [score.bits_per_byte for score in scores]
    return (min(bits), max(bits)) if len(bits) > 1 else None


@torch.no_grad()
def score_each(
    model: TransformerLM,
    books: Sequence[np.ndarray],
    tokenizer: Tokenizer,
    precision: str = "fp32",
    progress: bool = False,
) -> list[BookScore]:
    """Predict every token of every book, each from at least half a context of what came before.

    A window of the model's context moves on by half its length; only the half not scored before
    counts. A book starts after an end-of-text token and ends with one. A book's score does not
    depend on which others are scored: processes may share them out as they like.

    Args:
        model: The model.
        books: Token ids of each book.
        tokenizer: Gives the end-of-text token and the books' length in bytes.
        precision: fp32, bf16 or fp16, as in training.
        progress: Show a bar, or now and then a line, on stderr.
    """
    was_training = model.training
    model.eval()
    device = model.token_embedding.weight.device
    bar = ProgressBar("scoring books", sum(map(len, books)), unit="token") if progress else None
    done = 0
    scores = []
    for book in books:
        nats, tokens, correct = 0.0, 0, 0
        for batch in _batches(list(_windows(book, model.max_seq_len, tokenizer.eos_token_id))):
            input_ids = torch.from_numpy(np.stack([ids for ids, _ in batch])).to(device)
            labels = input_ids.clone()
            for row, (_, seen) in enumerate(batch):
                labels[row, :seen] = -100
            with autocast(precision, device):
                loss, number, right = model.loss_sums(input_ids, labels)
            nats += float(loss)
            tokens += int(number)
            correct += int(right)
            if bar:
                bar.advance(done + min(tokens, len(book)))
        done += len(book)
        scores.append(BookScore(nats, tokens, len(tokenizer.decode_bytes(book.tolist())), correct))
    if bar:
        bar.close()
    model.train(was_training)
    return scores


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


def newest_text(blocks: BlockDataset, tokenizer: Tokenizer, size: int = XZ_DICTIONARY) -> bytes:
    """The last `size` bytes of a split's text, books joined without end-of-text.

    Reads only as many blocks as that takes, so a corpus of any size will do.
    """
    parts: list[bytes] = []
    found = 0
    for index in reversed(range(len(blocks))):
        if found >= size:
            break
        ids = blocks[index]["input_ids"].numpy()
        if index == len(blocks) - 1:
            ids = ids[: len(ids) - blocks.padding]
        parts.append(tokenizer.decode_bytes(ids[ids != tokenizer.eos_token_id].tolist()))
        found += len(parts[-1])
    return b"".join(reversed(parts))[-size:]


def xz_bits_per_byte(known: bytes, new: bytes) -> float:
    """What `xz -9` needs for `new` when it has seen `known`, in bits per byte of `new`."""
    with ThreadPoolExecutor(2) as pool:  # lzma lets other threads run
        without, together = pool.map(lambda text: len(lzma.compress(text, preset=9)), (known, known + new))
    return 8 * (together - without) / max(1, len(new))


def xz_given_training_text(blocks: BlockDataset, books: Sequence[np.ndarray], tokenizer: Tokenizer) -> float:
    """What `xz -9` needs for books when it has seen the training text, in bits per byte.

    Args:
        blocks: The training blocks.
        books: Token ids of each book.
        tokenizer: Turns both into text.
    """
    new = b"".join(tokenizer.decode_bytes(book.tolist()) for book in books)
    return xz_bits_per_byte(newest_text(blocks, tokenizer), new)


def relevance(
    model: TransformerLM, prompts: Sequence[list[int]], continuations: Sequence[list[int]]
) -> tuple[list[float | None], list[float | None]]:
    """What its own prompt adds to the likelihood of a continuation, against other prompts.

    Args:
        model: Gives the likelihoods.
        prompts: Token ids, all of one length, shorter than the model's context.
        continuations: Token ids; what does not fit into the context after the prompt is left out.

    Returns:
        For each continuation the log-likelihood per token after its own prompt less the mean after
        the other prompts, in nats, and 1 if its own prompt is the best of all tried, else 0. None
        where there is nothing to compare.
    """
    number = len(prompts)
    # Spread around the circle of prompts: neighbours come from one book and have a subject in common.
    spread = {round(k * number / (OTHER_PROMPTS + 1)) for k in range(1, OTHER_PROMPTS + 1)}
    shifts = sorted(shift for shift in spread if 0 < shift < number)
    gains: list[float | None] = []
    firsts: list[float | None] = []
    for index, ids in enumerate(continuations):
        if not ids or not shifts:
            gains.append(None)
            firsts.append(None)
            continue
        own, *others = (
            log_likelihood(model, prompts[(index + shift) % number], ids) for shift in (0, *shifts)
        )
        gains.append(own - sum(others) / len(others))
        firsts.append(float(own > max(others)))
    return gains, firsts


@torch.no_grad()
def log_likelihood(model: TransformerLM, prompt: list[int], continuation: list[int]) -> float:
    """Mean log-probability, in nats per token, of a continuation as far as the context reaches."""
    device = model.token_embedding.weight.device
    input_ids = torch.tensor([(prompt + continuation)[: model.max_seq_len]], device=device)
    labels = input_ids.clone()
    labels[:, : len(prompt)] = -100
    was_training = model.training
    model.eval()
    loss, tokens, _ = model.loss_sums(input_ids, labels)
    model.train(was_training)
    return -float(loss) / max(1, int(tokens))
