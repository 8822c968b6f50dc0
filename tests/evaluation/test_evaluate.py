"""A whole evaluation as one call."""

from __future__ import annotations

import numpy as np
import pytest

from horovod_transformer.config_sections import GenerationConfig
from horovod_transformer.errors import UserError
from horovod_transformer.evaluation.book_scores import score_books
from horovod_transformer.evaluation.evaluate import EvaluationSettings, evaluate
from horovod_transformer.evaluation.text_quality import MEASURES
from horovod_transformer.generation import load_model_for_generation
from tests.conftest import LINE


@pytest.fixture
def loaded(tiny_checkpoint):
    """A model that recites LINE, its tokenizer, and four books."""
    model, tokenizer, _ = load_model_for_generation(tiny_checkpoint, device="cpu")
    books = [tokenizer.encode_array(text).astype("int64") for text in (LINE, LINE[::-1], LINE * 2, "sea")]
    return model, tokenizer, books


def run(checkpoint, loaded, folder, **settings):
    settings = EvaluationSettings(GenerationConfig(max_new_tokens=7, temperature=0), samples=4, **settings)
    return evaluate(str(checkpoint), *loaded, source="four", data=None, settings=settings, folder=folder)


def test_what_is_found(tiny_checkpoint, loaded, tmp_path):
    found = run(tiny_checkpoint, loaded, tmp_path / "new")
    model, tokenizer, books = loaded
    assert found.books == 4 and found.score == score_books(model, books, tokenizer)
    assert found.interval is None  # four books are too few for one
    assert found.extremes[0] < found.score.bits_per_byte < found.extremes[1]
    assert list(found.quality["model"]) == [measure.key for measure in MEASURES]
    assert len(found.samples) == 4 and found.copies is None and found.xz_bits_per_byte is None
    assert found.settings == {
        "data": "four",
        "samples": 4,
        "prompt_tokens": min(32, model.max_seq_len // 4),
        "max_new_tokens": 7,
        "temperature": 0,
        "top_k": 50,
        "top_p": 0.9,
        "seed": 0,
    }
    assert found.model["checkpoint"] == str(tiny_checkpoint) and found.model["run"] is None
    assert found.model["updates"] == "an unknown number of"
    assert list((tmp_path / "new").iterdir()) == []  # the report is not its business


def test_fewer_books_are_evenly_spread(tiny_checkpoint, loaded, tmp_path):
    model, tokenizer, books = loaded
    found = run(tiny_checkpoint, loaded, tmp_path, most_books=2)
    assert found.books == 2
    assert found.score == score_books(model, [books[0], books[2]], tokenizer)


def test_nothing_is_made_for_a_mistake(tiny_checkpoint, loaded, tmp_path):
    model, tokenizer, _ = loaded
    with pytest.raises(UserError, match="places for a prompt"):
        run(tiny_checkpoint, (model, tokenizer, [np.arange(3)]), tmp_path / "new")
    assert not (tmp_path / "new").exists()
