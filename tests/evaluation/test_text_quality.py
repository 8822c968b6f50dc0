"""The four qualities on texts whose numbers can be worked out by hand, and the page that shows them."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch

from horovod_transformer.config import GenerationConfig
from horovod_transformer.errors import UserError
from horovod_transformer.evaluation.book_scores import BookScore
from horovod_transformer.evaluation.report import Evaluation, table_lines, to_html, to_json, write_report
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


# --- the report


HOSTILE = "</p><script>alert(1)</script><img src=x onerror='a'>&amp;\"\x00\x1b[31m"


def hostile_evaluation(tokenizer) -> Evaluation:
    ids = tokenizer.encode(HOSTILE)
    sample = Sample(ids, ids, True, ids, False)
    values = {measure.key: Value(None) for measure in MEASURES} | {"coherence": Value(-0.5, 0.25)}
    return Evaluation(
        model={"checkpoint": HOSTILE, "updates": HOSTILE, "parameters": 1234567, "context": 8},
        settings={HOSTILE: HOSTILE},
        books=1,
        score=BookScore(nats=math.nan, tokens=10, bytes=20, correct=5),
        xz_bits_per_byte=None,
        quality={"model": values, "human": values},
        samples=[sample] * 12,
    )


def test_page_escapes_what_it_shows(tiny_tokenizer):
    page = to_html(to_json(hostile_evaluation(tiny_tokenizer), tiny_tokenizer))
    assert "<script" not in page and "<img" not in page and "\x00" not in page and "\x1b" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "&amp;amp;" in page
    # Nothing is fetched: the policy forbids it, and there is nothing to fetch.
    assert "default-src 'none'" in page
    assert not re.search(r"(?<!\w)(src|href)\s*=(?!x)|url\(|@import|https?:", page.split("</style>")[0])
    assert "1,234,567 parameters" in page and "−0.500" in page
    assert page.count("<section>") == 8 and "8 of 12" in page


def test_tags_of_the_page_close(tiny_tokenizer):
    from html.parser import HTMLParser

    class Checker(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open = []

        def handle_starttag(self, tag, attrs):
            if tag != "meta":
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    checker = Checker()
    checker.feed(to_html(to_json(hostile_evaluation(tiny_tokenizer), tiny_tokenizer)))
    assert checker.open == []


def test_json_is_strict_and_files_are_whole(tiny_tokenizer, tmp_path):
    json_path, page_path = write_report(hostile_evaluation(tiny_tokenizer), tiny_tokenizer, tmp_path / "new")
    values = json.loads(json_path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert values["prediction"]["loss"] is None and values["prediction"]["accuracy"] == 0.5
    assert len(values["samples"]) == 12 and values["samples"][0]["prompt"] == HOSTILE
    assert {path.name for path in json_path.parent.iterdir()} == {json_path.name, page_path.name}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(hostile_evaluation(tiny_tokenizer), tiny_tokenizer, tmp_path / "file")


def test_table_for_the_terminal(tiny_tokenizer):
    lines = table_lines(to_json(hostile_evaluation(tiny_tokenizer), tiny_tokenizer))
    assert len(lines) == 1 + len(MEASURES)
    assert lines[1].split() == ["coherence", "lexical", "cohesion", *["−0.500", "±", "0.250"] * 2]
    assert len({len(line) for line in lines}) == 1


def test_torch_is_left_alone(reciter):
    """Sampling draws from a generator of its own: evaluation does not disturb a program's own randomness."""
    model, tokenizer = reciter
    torch.manual_seed(5)
    before = torch.get_rng_state()
    passages = draw_passages([np.array(tokenizer.encode(LINE))], 2, 4, 5, 0)
    write_samples(model, tokenizer, passages, GenerationConfig(temperature=1.0, max_new_tokens=3), 0)
    assert torch.equal(before, torch.get_rng_state())
