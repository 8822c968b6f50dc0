"""Scores of whole books against brute force, and what prompts add."""

from __future__ import annotations

import lzma
import math
import random
import shutil
import subprocess

import numpy as np
import pyarrow as pa
import pytest
import torch

from horovod_transformer.data.dataset import BlockDataset
from horovod_transformer.data.stored_split import StoredSplit
from horovod_transformer.evaluation import book_scores
from horovod_transformer.evaluation.book_scores import (
    BookScore,
    books_of,
    interval,
    log_likelihood,
    lowest_and_highest,
    newest_text,
    relevance,
    score_books,
    score_each,
    xz_bits_per_byte,
    xz_given_training_text,
)
from horovod_transformer.model.transformer import build_model
from horovod_transformer.tokenizer import Tokenizer
from tests.conftest import LINE, TINY

CONTEXT = TINY.max_seq_len


@pytest.fixture
def model(tiny_tokenizer):
    """A fresh model that is sure of itself, so that one token scored wrongly shows."""
    torch.manual_seed(0)
    model = build_model(TINY.model_copy(update={"vocab_size": tiny_tokenizer.vocab_size}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def random_book(tokenizer: Tokenizer, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, tokenizer.eos_token_id, length)


@torch.no_grad()
def brute_force(model, book: np.ndarray, end: int) -> tuple[float, int]:
    """Nats and right guesses of a book, one token at a time, each in a context of its own."""
    stream = [end, *book.tolist(), end]
    half = model.max_seq_len // 2
    nats, correct = 0.0, 0
    for place in range(1, len(stream)):
        # The first window holds tokens 0 to CONTEXT - 1; each later one starts half a context on.
        start = max(0, math.ceil((place + 1 - model.max_seq_len) / half)) * half
        logits, _ = model(torch.tensor([stream[start:place]]))
        probabilities = logits[0, -1].double().log_softmax(0)
        nats -= float(probabilities[stream[place]])
        correct += int(probabilities.argmax()) == stream[place]
    return nats, correct


# --- books


@pytest.mark.parametrize("length", [1, CONTEXT - 2, CONTEXT - 1, CONTEXT, CONTEXT + 1, 3 * CONTEXT + 5])
def test_score_is_that_of_one_token_at_a_time(model, tiny_tokenizer, length):
    book = random_book(tiny_tokenizer, length)
    score = score_books(model, [book], tiny_tokenizer)
    nats, correct = brute_force(model, book, tiny_tokenizer.eos_token_id)
    assert score.tokens == length + 1
    assert score.nats == pytest.approx(nats, rel=1e-5)
    assert score.correct == correct
    assert score.bytes == len(tiny_tokenizer.decode_bytes(book.tolist()))


def test_many_books_add_up(model, tiny_tokenizer):
    books = [random_book(tiny_tokenizer, length, length) for length in (3, 100, 700, 31, 64)]
    together = score_books(model, books, tiny_tokenizer)
    alone = [score_books(model, [book], tiny_tokenizer) for book in books]
    assert together.tokens == sum(len(book) + 1 for book in books)
    assert together.nats == pytest.approx(sum(score.nats for score in alone), rel=1e-5)
    assert together.correct == sum(score.correct for score in alone)
    assert together.bytes == sum(score.bytes for score in alone)


@pytest.mark.parametrize("world_size", [2, 3])
def test_shares_of_many_processes_are_the_same_numbers(model, tiny_tokenizer, world_size):
    books = [random_book(tiny_tokenizer, length, length) for length in (3, 100, 700, 31, 64)]
    alone = score_each(model, books, tiny_tokenizer)
    for rank in range(world_size):
        assert score_each(model, books[rank::world_size], tiny_tokenizer) == alone[rank::world_size]


def test_the_interval_does_not_depend_on_how_many_are_drawn_at_once(monkeypatch):
    scores = [BookScore(bits * 8 * math.log(2), 5, 8 + bits) for bits in range(1, 9)]
    ends = set()
    for at_once in (1, 10_000, 70_000):
        monkeypatch.setattr(book_scores, "DRAWN_AT_ONCE", at_once)
        ends.add(interval(scores))
    assert len(ends) == 1


def test_the_interval_is_over_books():
    assert interval([BookScore(1, 1, 1)] * 7) is None
    same = [BookScore(10 * math.log(2), 5, 20) for _ in range(8)]
    assert interval(same) == pytest.approx((0.5, 0.5))
    # Books of 1 and of 3 bits per byte: the mean of 100 draws has a standard error of 0.1.
    mixed = [BookScore(bits * 8 * math.log(2), 5, 8) for bits in [1, 3] * 50]
    low, high = interval(mixed)
    assert low == pytest.approx(2 - 1.96 * 0.1, abs=0.02) and high == pytest.approx(2 + 1.96 * 0.1, abs=0.02)


def test_of_a_few_books_the_extremes_are_given():
    assert lowest_and_highest([BookScore(1, 1, 1)]) is None
    scores = [BookScore(bits * 8 * math.log(2), 5, 8) for bits in (2.0, 1.0, 3.0)]
    assert lowest_and_highest(scores) == pytest.approx((1.0, 3.0))


def test_an_odd_context_counts_each_token_once_too(tiny_tokenizer):
    model = build_model(TINY.model_copy(update={"max_seq_len": 7}))
    for length in range(1, 40):
        assert score_books(model, [random_book(tiny_tokenizer, length)], tiny_tokenizer).tokens == length + 1


def test_scoring_leaves_the_model_in_its_mode(model, tiny_tokenizer):
    model.train()
    score_books(model, [random_book(tiny_tokenizer, 5)], tiny_tokenizer)
    assert model.training


def test_figures_of_a_score():
    score = BookScore(nats=20 * math.log(2), tokens=10, bytes=40, correct=3)
    assert score.bits_per_byte == pytest.approx(0.5)
    assert score.loss == pytest.approx(2 * math.log(2))
    assert score.perplexity == pytest.approx(4)
    assert score.accuracy == pytest.approx(0.3)


def blocks_of(rows: list[list[int]], padding: int) -> BlockDataset:
    return BlockDataset(StoredSplit(pa.table({"input_ids": rows}), []), padding, 300, "test")


def test_books_are_put_together_from_blocks(tiny_tokenizer):
    end = tiny_tokenizer.eos_token_id
    # The last token of the last block is padding, though it looks like a token.
    blocks = blocks_of([[1, 2, 3, end], [4, end, end, 5], [6, 7, 8, 9]], padding=1)
    assert [book.tolist() for book in books_of(blocks, tiny_tokenizer)] == [[1, 2, 3], [4], [], [5, 6, 7, 8]]


def test_newest_text(tiny_tokenizer):
    end = tiny_tokenizer.eos_token_id
    ids = tiny_tokenizer.encode("abcdefghijk")
    assert len(ids) == 11
    blocks = blocks_of([ids[:4], [*ids[4:7], end], [*ids[7:], *ids[:0]]], padding=1)
    assert newest_text(blocks, tiny_tokenizer) == b"abcdefghij"
    assert newest_text(blocks, tiny_tokenizer, 5) == b"fghij"


def test_xz_is_given_the_training_text(tiny_tokenizer):
    end = tiny_tokenizer.eos_token_id
    known = np.random.default_rng(0).integers(0, end, 3 * CONTEXT)
    blocks = blocks_of([*known.reshape(-1, CONTEXT).tolist(), [end] * CONTEXT], CONTEXT - 1)
    book = known[: 2 * CONTEXT]
    text, new = (tiny_tokenizer.decode_bytes(ids.tolist()) for ids in (known, book))
    given = xz_given_training_text(blocks, [book[:CONTEXT], book[CONTEXT:]], tiny_tokenizer)
    assert given == xz_bits_per_byte(text, new) < xz_bits_per_byte(b"", new) / 2


def test_xz(tmp_path):
    source = random.Random(0)
    noise, other = source.randbytes(4000), source.randbytes(4000)
    assert xz_bits_per_byte(b"", other) == pytest.approx(8, abs=0.1)
    assert xz_bits_per_byte(noise, other) == pytest.approx(8, abs=0.1)
    # What it has seen costs next to nothing.
    assert xz_bits_per_byte(noise, noise) < 0.2
    text = (LINE * 3 + "and nothing else").encode()
    with_known = len(lzma.compress(noise + text, preset=9)) - len(lzma.compress(noise, preset=9))
    assert xz_bits_per_byte(noise, text) == pytest.approx(8 * with_known / len(text))
    if shutil.which("xz"):
        size = len(subprocess.run(["xz", "-9", "-c"], input=noise + text, capture_output=True).stdout)
        assert size == len(lzma.compress(noise + text, preset=9))


# --- prompts


def test_log_likelihood_is_the_mean_over_the_continuation(model):
    prompt, continuation = [5, 6, 7], [8, 9, 10, 11]
    with torch.no_grad():
        logits, _ = model(torch.tensor([prompt + continuation]))
    rows = logits[0].log_softmax(1)
    expected = sum(float(rows[2 + place, token]) for place, token in enumerate(continuation)) / 4
    assert log_likelihood(model, prompt, continuation) == pytest.approx(expected, rel=1e-5)


def test_log_likelihood_leaves_out_what_does_not_fit(model):
    continuation = list(range(1, CONTEXT + 20))
    fitting = continuation[: CONTEXT - 3]
    assert log_likelihood(model, [5, 6, 7], continuation) == log_likelihood(model, [5, 6, 7], fitting)


def pairs(number: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and continuations that belong together by nothing but having been seen so."""
    source = np.random.default_rng(1)
    return source.integers(0, 250, (number, 4)).tolist(), source.integers(0, 250, (number, 6)).tolist()


def test_relevance_of_pairs_learned_by_heart():
    prompts, continuations = pairs(10)
    torch.manual_seed(0)
    model = build_model(TINY)
    gains, firsts = relevance(model, prompts, continuations)
    assert np.mean(gains) == pytest.approx(0, abs=0.05)  # an untrained model makes no difference
    rows = torch.tensor([a + b for a, b in zip(prompts, continuations, strict=True)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        loss, count, _ = model.loss_sums(rows, rows)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    gains, firsts = relevance(model, prompts, continuations)
    assert min(gains) > 0.5 and firsts == [1.0] * 10
    # The same texts after each other's prompts: now the prompts speak against them.
    gains, firsts = relevance(model, prompts[1:] + prompts[:1], continuations)
    assert np.mean(gains) < 0.5 and np.mean(firsts) < 0.5


def test_relevance_of_nothing_is_nothing(model):
    gains, firsts = relevance(model, [[1], [2], [3]], [[4], [], [5]])
    assert gains[1] is None and firsts[1] is None
    assert gains[0] is not None and gains[2] is not None
