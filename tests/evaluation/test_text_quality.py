"""The four qualities on texts whose numbers can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from horovod_transformer.config_sections import GenerationConfig
from horovod_transformer.errors import UserError
from horovod_transformer.evaluation.text_quality import (
    MEASURES,
    Sample,
    Value,
    cohesion,
    distinct,
    draw_passages,
    measure_samples,
    repeated,
    self_bleu,
    word_rarity,
    words_of,
    write_samples,
)
from horovod_transformer.generation import load_model_for_generation
from tests.conftest import LINE


def test_words():
    assert words_of("Don't — the Naïve l’été, 3rd_x!") == ["don't", "the", "naïve", "l’été", "rd", "x"]
    assert words_of("12 … \ufffd") == []


@pytest.mark.parametrize(("n", "expected"), [(1, 3 / 7), (2, 4 / 5), (3, 3 / 3), (5, None)])
def test_distinct(n, expected):
    # Bigrams: (a b) (b a) (a b) | (a c) (c c): none reaches over the two texts.
    assert distinct([["a", "b", "a", "b"], ["a", "c", "c"]], n) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [("a b c d e", 0), ("a a a a a a", 2 / 3), ("a b c d a b c d", 1 / 5), ("a b c", None), ("", None)],
)
def test_repeated(words, expected):
    assert repeated(words.split(), 4) == (None if expected is None else pytest.approx(expected))


def test_self_bleu():
    same = "the cat sat on the mat today"
    assert self_bleu([same, same.upper()]) == pytest.approx([100, 100])
    assert max(self_bleu(["one two three four", "five six seven eight"])) == pytest.approx(0)
    # 4-word text against a 5-word one that begins alike up to its third word: clipped precisions
    # 3/4, 2/3, 1/2 and, smoothed, 1/2 of 1/1; brevity penalty exp(1 - 5/4).
    first, _ = self_bleu(["a b c x", "a b c d e"])
    expected = 100 * math.exp(1 - 5 / 4) * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25
    assert first == pytest.approx(expected)
    assert self_bleu(["", same]) == [None, None]


def test_rarity():
    rarity = word_rarity(["the sea", "the land", "the the sky"])
    assert rarity("the") == 0
    assert rarity("sea") == pytest.approx(math.log(4 / 2))
    assert rarity("unseen") == pytest.approx(math.log(4))


def test_cohesion_by_hand():
    # Halves: "sea sea" | "sea ship" and "dog cat" | "dog cat"; across texts nothing is shared.
    texts = [["sea", "sea", "sea", "ship"], ["dog", "cat", "cat", "dog"], ["alone"]]
    assert cohesion(texts, lambda word: 1.0) == [pytest.approx(1 / math.sqrt(2)), pytest.approx(1), None]
    # Words that all texts have alike say nothing of any of them.
    assert cohesion([["and", "and"], ["and", "and"]], lambda word: 1.0) == [0, 0]
    assert cohesion([["and", "and"], ["and", "and"]], lambda word: 0.0) == [0, 0]
    assert cohesion([["one", "text"]], lambda word: 1.0) == [None]


def test_cohesion_of_texts_with_subjects_and_without():
    source = np.random.default_rng(0)
    subjects = [[f"word{topic}x{number}" for number in range(30)] for topic in range(20)]
    staying = [[subject[k] for k in source.integers(0, 30, 60)] for subject in subjects]
    everything = [word for text in staying for word in text]
    wandering = source.permutation(everything).reshape(20, 60).tolist()
    assert Value.mean(cohesion(staying, lambda word: 1.0)).value > 0.3
    wander = Value.mean(cohesion(wandering, lambda word: 1.0))
    assert abs(wander.value) < 4 * wander.standard_error < 0.1


def test_mean():
    value = Value.mean([1.0, None, 2.0, 3.0])
    assert value.value == 2 and value.standard_error == pytest.approx(1 / math.sqrt(3))
    assert Value.mean([5.0]) == Value(5.0, None)
    assert Value.mean([None]) == Value(None, None)


# --- passages and samples


def test_passages():
    books = [np.arange(100), np.arange(1000, 1003), np.arange(2000, 2050)]
    passages = draw_passages(books, 15, prompt_tokens=4, new_tokens=10, seed=3)
    assert passages == draw_passages(books, 15, 4, 10, 3) != draw_passages(books, 15, 4, 10, 4)
    assert len(passages) == 15
    ends = {99, 2049}
    for prompt, following, ended in passages:
        assert len(prompt) == 4 and 1 <= len(following) <= 10
        whole = prompt + following
        assert whole == list(range(whole[0], whole[0] + len(whole)))  # one stretch of one book
        assert ended == (len(following) < 10)
        assert not ended or following[-1] in ends
    # One from each of equal stretches: in the order of the books, none twice, both books met.
    starts = [prompt[0] for prompt, _, _ in passages]
    assert starts == sorted(set(starts)) and starts[0] < 100 and starts[-1] >= 2000


def test_every_place_can_be_drawn():
    book = np.arange(8)
    drawn = {tuple(p[0]) for seed in range(60) for p in draw_passages([book], 2, 3, 2, seed)}
    assert drawn == {(k, k + 1, k + 2) for k in range(5)}


def test_prompts_end_where_words_do(tiny_tokenizer):
    text = "Yesterday ordinary readers wondered everywhere. " * 40
    book = tiny_tokenizer.encode_array(text).astype("int64")
    cut = draw_passages([book], 12, 8, 10, 0)
    whole = draw_passages([book], 12, 8, 10, 0, tiny_tokenizer)
    assert len(whole) == 12 and cut != whole

    def ends_in_a_word(passage):
        prompt, following, _ = (
            tiny_tokenizer.decode(ids) if isinstance(ids, list) else ids for ids in passage
        )
        return not prompt[-1].isspace() and not following[0].isspace()

    assert any(map(ends_in_a_word, cut)) and not any(map(ends_in_a_word, whole))
    # Each is still one stretch of the book, and none reaches into the next one's place.
    starts = [_place_of(passage, book) for passage in whole]
    assert None not in starts and len(whole[0][0]) == 8
    # Where no word ends, they end where they were drawn.
    book = np.full(400, tiny_tokenizer.encode("a")[0])
    assert draw_passages([book], 4, 8, 10, 0, tiny_tokenizer) == draw_passages([book], 4, 8, 10, 0)


def _place_of(passage, book):
    ids = np.array(passage[0] + passage[1])
    found = (start for start in range(len(book)) if (book[start : start + len(ids)] == ids).all())
    return next(found, None)


def test_too_few_places():
    with pytest.raises(UserError, match="only 5 places"):
        draw_passages([np.arange(8), np.arange(2)], 6, 3, 2, 0)


@pytest.fixture(scope="module")
def reciter(tiny_checkpoint):
    model, tokenizer, _ = load_model_for_generation(tiny_checkpoint, device="cpu")
    return model, tokenizer


def test_samples_of_a_model_that_recites(reciter):
    model, tokenizer = reciter
    book = np.array(tokenizer.encode(LINE))
    # More than one batch of prompts.
    passages = draw_passages([book], 20, 8, 200, 0)
    samples = write_samples(
        model, tokenizer, passages, GenerationConfig(temperature=0, max_new_tokens=200), 0
    )
    assert len(samples) == 20
    for sample, (prompt, following, _) in zip(samples, passages, strict=True):
        assert sample.prompt == prompt and sample.human == following and sample.human_ended
        assert tokenizer.eos_token_id not in sample.model
        assert sample.shared_length == min(len(sample.model), len(following))
    # It knows the book by heart, its end too, though not at every position of its context.
    recited = [sample for sample in samples if sample.model == sample.human and sample.model_ended]
    assert len(recited) >= 8


def test_measures_of_equal_texts_are_equal_and_lengths_are_uncut(reciter):
    model, tokenizer = reciter
    book = np.array(tokenizer.encode(LINE))
    ids = book.tolist()
    same = [Sample(ids[k : k + 4], ids[k + 4 : k + 30], False, ids[k + 4 : k + 30], True) for k in (0, 5, 9)]
    measured = measure_samples(model, tokenizer, [book], same)
    assert list(measured["model"]) == [measure.key for measure in MEASURES]
    for key, value in measured["human"].items():
        if key != "ended":
            assert measured["model"][key] == value, key
    assert (measured["model"]["ended"].value, measured["human"]["ended"].value) == (1, 0)
    # A model that stops at once: lengths differ, all else is compared at equal length, here none.
    short = [Sample(s.prompt, s.human, False, [], True) for s in same]
    measured = measure_samples(model, tokenizer, [book], short)
    assert measured["model"]["tokens"].value == 0 and measured["human"]["tokens"].value == 26
    for writer in ("model", "human"):
        assert measured[writer]["distinct_1"].value is None
        assert measured[writer]["relevance"].value is None


def test_relevance_sees_the_prompts(reciter):
    model, tokenizer = reciter
    ids = tokenizer.encode(LINE)
    samples = [Sample(ids[k : k + 4], ids[k + 4 : k + 9], False, ids[5:10], False) for k in range(0, 30, 5)]
    measured = measure_samples(model, tokenizer, [np.array(ids)], samples)
    assert measured["human"]["relevance"].value > 1  # each prompt's own continuation
    assert abs(measured["model"]["relevance"].value) < 0.5 * measured["human"]["relevance"].value


def test_torch_is_left_alone(reciter):
    """Sampling draws from a generator of its own: evaluation does not disturb a program's own randomness."""
    model, tokenizer = reciter
    torch.manual_seed(5)
    before = torch.get_rng_state()
    passages = draw_passages([np.array(tokenizer.encode(LINE))], 2, 4, 5, 0)
    write_samples(model, tokenizer, passages, GenerationConfig(temperature=1.0, max_new_tokens=3), 0)
    assert torch.equal(before, torch.get_rng_state())
