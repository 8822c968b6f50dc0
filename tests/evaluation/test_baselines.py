"""What a model is measured beside."""

from __future__ import annotations

import math

import numpy as np
import pytest

from horovod_transformer.evaluation import baselines
from horovod_transformer.evaluation.baselines import (
    OtherModel,
    bits_of_frequencies,
    bits_of_guessing,
    score_with,
)
from horovod_transformer.evaluation.book_scores import BookScore, score_each
from horovod_transformer.generation import load_model_for_generation
from horovod_transformer.tokenizer import train_bpe
from tests.conftest import LINE


class Blocks:
    """A split of prepared data, as far as tokens are counted in it."""

    def __init__(self, rows):
        self._rows = np.array(rows, dtype=np.uint16)

    def __len__(self):
        return len(self._rows)

    def rows(self, indices):
        return self._rows[list(indices)]


def test_guessing_takes_the_logarithm_of_the_vocabulary():
    assert bits_of_guessing(BookScore(nats=1, tokens=10, bytes=40), 256) == 2


def test_frequencies_by_hand(tiny_tokenizer):
    end = tiny_tokenizer.eos_token_id
    books = [np.array([1, 1, 2])]
    score = BookScore(nats=1, tokens=4, bytes=8)
    # 1 was met five times, 2 twice, the end once, the others never: each counts once more.
    blocks = Blocks([[1, 1, 1, 1], [1, 2, 2, end]])
    whole = 8 + end + 1
    bits = -2 * math.log2(6 / whole) - math.log2(3 / whole) - math.log2(2 / whole)
    assert bits_of_frequencies(books, tiny_tokenizer, score, blocks) == pytest.approx(bits / 8)
    # Without training blocks the books themselves are counted: 1 twice, 2 and the end once.
    whole = 4 + end + 1
    bits = -2 * math.log2(3 / whole) - 2 * math.log2(2 / whole)
    assert bits_of_frequencies(books, tiny_tokenizer, score, None) == pytest.approx(bits / 8)


def test_of_many_blocks_some_are_counted(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(baselines, "COUNTED_BLOCKS", 10)
    monkeypatch.setattr(baselines, "_BLOCKS_AT_ONCE", 3)
    rows = baselines._spread_rows(Blocks([[place] for place in range(95)]))
    assert np.concatenate(rows).ravel().tolist() == list(range(0, 95, 10))


def test_another_model_reads_the_same_text_in_its_own_tokens(tiny_checkpoint):
    model, tokenizer, _ = load_model_for_generation(tiny_checkpoint, device="cpu")
    books = [tokenizer.encode_array(LINE).astype("int64")]
    other = OtherModel("x.pt", model, tokenizer)
    assert score_with(other, books, tokenizer, "fp32") == score_each(model, books, tokenizer, "fp32")
    foreign = train_bpe([LINE[::-1] * 3], 258)
    encoded = [foreign.encode_array(LINE).astype("int64")]
    (score,) = score_with(other, encoded, foreign, "fp32")
    assert score == score_each(model, books, tokenizer, "fp32")[0]
