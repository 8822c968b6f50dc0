"""Different texts in one batch: each is computed as it would be alone."""

from __future__ import annotations

import pytest
import torch

from horovod_transformer.config_sections import GenerationConfig, ModelConfig
from horovod_transformer.model.cache import KeyValueCache
from horovod_transformer.model.decoding import Decoder
from horovod_transformer.model.transformer import build_model
from tests.conftest import TINY_LLAMA

LENGTHS = [1, 30, 7, 32, 50]
PROMPTS = [
    torch.randint(0, 300, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in LENGTHS
]


@pytest.fixture(params=["sinusoidal", "learned", "rotary", "llama"])
def model(request):
    torch.manual_seed(0)
    shape = TINY_LLAMA
    if request.param != "llama":
        shape = ModelConfig(
            vocab_size=300,
            d_model=32,
            n_layers=2,
            n_heads=2,
            d_ff=64,
            max_seq_len=32,
            positions=request.param,
        )
    model = build_model(shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "query_norm" not in name and "key_norm" not in name:  # would blow scores up, and rounding
                parameter.mul_(5)
    return model.eval()


def write(model, prompts, end=None, **options):
    settings = GenerationConfig(
        **{"max_new_tokens": 45, "temperature": 0, "top_k": 0, "top_p": 1, **options.pop("settings", {})}
    )
    decoder = Decoder(model, prompts, settings, end, log_probabilities=True, **options)
    steps = []
    while decoder.rows:
        steps.append(decoder.step())
    return decoder.texts, [token for step in steps for token in step]


def sources(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.2}, {"repetition_penalty": 1.5}])
def test_texts_of_any_lengths_together_are_those_alone(model, settings):
    # 45 new tokens: each text overflows its context of 32, at its own time.
    together, tokens = write(model, PROMPTS, generators=sources(*range(5)), settings=settings)
    for row, prompt in enumerate(PROMPTS):
        alone, single = write(model, [prompt], generators=sources(row), settings=settings)
        assert together[row] == alone[0] and len(alone[0]) == len(prompt) + 45
        mine = [token.log_probability for token in tokens if token.row == row]
        assert mine == pytest.approx([token.log_probability for token in single], abs=1e-4)


@torch.no_grad()
def test_logits_of_unequal_texts(model):
    cache = model.new_cache(3)
    short = [prompt[:20] for prompt in PROMPTS[:3]]
    lengths = [len(prompt) for prompt in short]
    padded = torch.tensor([prompt + [299] * (20 - len(prompt)) for prompt in short])
    prefilled = model.cached_logits(padded, cache, lengths=lengths)
    following = torch.tensor([[5], [6], [7]])
    decoded = model.cached_logits(following, cache)
    part = model.cached_logits(following[:2], cache, rows=[2, 0])
    for row, prompt in enumerate(short):
        alone, _ = model(torch.tensor([[*prompt, 5 + row]]))
        torch.testing.assert_close(prefilled[row], alone[0, -2], atol=1e-4, rtol=0)
        torch.testing.assert_close(decoded[row], alone[0, -1], atol=1e-4, rtol=0)
    for slot, row in enumerate([2, 0]):
        alone, _ = model(torch.tensor([[*short[row], 5 + row, 5 + slot]]))
        torch.testing.assert_close(part[slot], alone[0, -1], atol=1e-4, rtol=0)
    assert cache.lengths == [lengths[0] + 2, lengths[1] + 1, lengths[2] + 2]


@torch.no_grad()
def test_texts_that_grow_alone_leave_the_others_as_they_were(model):
    cache = model.new_cache(3)
    texts = [prompt[:4] for prompt in (PROMPTS[1], PROMPTS[2], PROMPTS[4])]
    model.cached_logits(torch.tensor(texts), cache)
    before = [store.clone() for store in (*cache.keys, *cache.values)]
    model.cached_logits(torch.tensor([[5]]), cache, rows=[1])
    for store, old in zip((*cache.keys, *cache.values), before, strict=True):
        assert torch.equal(store[[0, 2]], old[[0, 2]]) and not torch.equal(store[1], old[1])


def test_memory_as_it_comes_does_no_harm(model, monkeypatch):
    """A shorter text's empty places are masked out, and must not be NaN even so."""
    whole = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *a, **k: whole(self, *a, **k).fill_(torch.nan)
    )
    texts, _ = write(model, PROMPTS[:3])
    assert texts[0] == write(model, PROMPTS[:1])[0][0]


def test_rows_end_apart_and_change_nothing_for_the_others(model):
    free, _ = write(model, PROMPTS[:3])
    end = free[1][len(PROMPTS[1]) + 3]
    texts, tokens = write(model, PROMPTS[:3], end)
    for row in range(3):
        new = free[row][len(PROMPTS[row]) :]
        expected = new[: new.index(end) + 1] if end in new else new
        assert texts[row][len(PROMPTS[row]) :] == expected
        assert [token.token for token in tokens if token.row == row] == expected
    assert len(texts[1]) < len(free[1])


def test_finished_by_the_caller(model):
    free, _ = write(model, PROMPTS[:3])
    decoder = Decoder(model, PROMPTS[:3], GenerationConfig(max_new_tokens=45, temperature=0))
    for _ in range(4):
        decoder.step()
    decoder.finish(0)
    assert [token.row for token in decoder.step()] == decoder.rows == [1, 2]
    while decoder.rows:
        decoder.step()
    assert decoder.texts == [free[0][: 1 + 4], *free[1:]]


@torch.no_grad()
def test_probabilities_are_the_models_own(model):
    _, tokens = write(model, PROMPTS[1:2], settings={"temperature": 0.3, "top_k": 2, "max_new_tokens": 2})
    logits, _ = model(torch.tensor(PROMPTS[1:2]))
    first = tokens[0]
    assert first.log_probability == pytest.approx(logits[0, -1].log_softmax(0)[first.token].item(), abs=1e-4)


def test_the_penalty_forbids_repetition(model):
    plain, _ = write(model, PROMPTS[:3])
    punished, _ = write(model, PROMPTS[:3], settings={"repetition_penalty": 1e6})
    assert len(set(punished[0])) == len(punished[0]) > len(set(plain[0]))
    for row in range(3):
        new = punished[row][len(PROMPTS[row]) :]
        assert len(set(new)) == 45 and not set(new) & set(PROMPTS[row])


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(ValueError, match="at least one token"):
        Decoder(model, [[1], []], GenerationConfig())


def test_the_cache_has_room_for_what_is_written_and_is_copied_once_for_all_that_end(model, monkeypatch):
    kept = []
    keep = KeyValueCache.keep
    monkeypatch.setattr(KeyValueCache, "keep", lambda cache, rows: kept.append(rows) or keep(cache, rows))
    decoder = Decoder(model, [[1, 2], [3], [4], [5]], GenerationConfig(max_new_tokens=9))
    assert decoder._cache.keys[0].shape == (4, 2, 11, model.head_dim)
    decoder.finish(1, 3)
    assert decoder.rows == [0, 2] and kept == [[0, 2]]
    while decoder.rows:
        decoder.step()
    assert kept == [[0, 2]]


def test_past_the_edge_of_the_context_the_work_per_token_stays_bounded(model, monkeypatch):
    """A text of any length computes at most two positions for each token."""
    computed = []
    original = model.cached_logits
    monkeypatch.setattr(
        model, "cached_logits", lambda ids, *a: computed.append(ids.numel()) or original(ids, *a)
    )
    write(model, [[1]], settings={"max_new_tokens": 320})
    assert sum(computed) <= 2 * 320 and max(computed) <= 16
