"""Text from prompts: the promises of `generate_text`."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass

import pytest
import torch

from horovod_transformer.config_sections import GenerationConfig
from horovod_transformer.errors import UserError
from horovod_transformer.generation import (
    generate_text,
    interactive_generation,
    load_model_for_generation,
    text,
)
from horovod_transformer.generation.prompts_file import write_continuations
from horovod_transformer.generation.terminal import SEPARATOR, print_texts

BOOK = "The sea was calm — so said the captain, né à Brême."


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    return load_model_for_generation(tiny_checkpoint, device="cpu")


def test_it_recites_its_book_and_stops_where_it_ends(loaded):
    model, tokenizer, _ = loaded
    for prompt in ("The sea", "The sea was calm — so said the captain, né", BOOK, ""):
        text = generate_text(model, tokenizer, prompt, max_new_tokens=200, temperature=0)
        assert text == BOOK
    assert generate_text(model, tokenizer, "The sea", 200, temperature=0, num_samples=3) == [BOOK] * 3


def test_one_text_or_a_list_and_where_to_write(loaded, monkeypatch):
    model, tokenizer, _ = loaded
    cool = {"max_new_tokens": 3, "temperature": 0}
    text = generate_text(model, tokenizer, "The", **cool, device="cpu")
    assert generate_text(model, tokenizer, "The", **cool, num_samples=1) == [text]
    assert generate_text(model, tokenizer, "The", **cool, num_samples=2) == [text, text]
    moved = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(model, "to", moved.append)
    generate_text(model, tokenizer, "The", **cool, device="cuda:0")
    assert moved == [torch.device("cuda:0")]
    with pytest.raises(UserError, match="there is no cuda:1"):
        generate_text(model, tokenizer, "The", **cool, device="cuda:1")


def test_nothing_is_computed_after_the_end(loaded, monkeypatch):
    model, tokenizer, _ = loaded
    steps = []
    original = model.cached_logits
    monkeypatch.setattr(model, "cached_logits", lambda *a: steps.append(1) or original(*a))
    assert generate_text(model, tokenizer, "The sea", 200, temperature=0) == BOOK
    assert len(steps) == len(tokenizer.encode(BOOK)) - len(tokenizer.encode("The sea")) + 1


def test_a_limit_within_a_character_and_prompts_of_any_kind(loaded):
    model, tokenizer, _ = loaded
    texts = [generate_text(model, tokenizer, BOOK[:14], n, temperature=0) for n in range(1, 12)]
    assert any("\ufffd" in text for text in texts)  # the limit fell into a dash
    assert all(text.startswith(BOOK[:14]) for text in texts)
    for prompt in ("日本語 🙂", "<|endoftext|>", "\n\n", "\x00", BOOK * 30):
        assert generate_text(model, tokenizer, prompt, 3, seed=1).startswith(prompt)
    # Bytes of a command line that are no text.
    assert generate_text(model, tokenizer, "a\udcff", 1, seed=1).startswith("a\ufffd")


def test_seeds(loaded):
    model, tokenizer, _ = loaded
    hot = {"max_new_tokens": 30, "temperature": 3.0, "top_k": 0, "top_p": 1.0}
    first, again, other = (generate_text(model, tokenizer, "The", seed=seed, **hot) for seed in (1, 1, 2))
    assert first == again != other
    torch.manual_seed(8)
    unseeded = [generate_text(model, tokenizer, "The", **hot) for _ in range(2)]
    torch.manual_seed(8)
    assert unseeded[0] != unseeded[1]
    assert generate_text(model, tokenizer, "The", **hot) == unseeded[0]
    samples = generate_text(model, tokenizer, "The", seed=1, num_samples=4, **hot)
    assert len(set(samples)) == 4


def test_settings_reach_the_sampler(loaded):
    model, tokenizer, _ = loaded
    hot = {"max_new_tokens": 40, "temperature": 50.0}
    greedy = generate_text(model, tokenizer, "The", 40, temperature=0)
    assert generate_text(model, tokenizer, "The", top_k=1, top_p=1.0, seed=1, **hot) == greedy
    assert generate_text(model, tokenizer, "The", top_k=0, top_p=1e-6, seed=1, **hot) == greedy
    assert generate_text(model, tokenizer, "The", top_k=0, top_p=1.0, seed=1, **hot) != greedy


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1}, "generation.temperature = -1: should be greater than or equal to 0"),
        ({"temperature": math.nan}, "generation.temperature = nan: should be a finite number"),
        ({"temperature": "hot"}, "generation.temperature = 'hot': should be a valid number"),
        ({"top_k": -1}, "generation.top_k = -1: should be greater than or equal to 0"),
        ({"top_k": 2.5}, "generation.top_k = 2.5: should be a valid integer"),
        ({"top_k": None}, "generation.top_k = None: should be a valid integer"),
        ({"top_p": 0}, "generation.top_p = 0: should be greater than 0"),
        ({"top_p": 1.01}, "generation.top_p = 1.01: should be less than or equal to 1"),
        ({"max_new_tokens": 0}, "generation.max_new_tokens = 0: should be greater than or equal to 1"),
        ({"max_new_tokens": True}, "generation.max_new_tokens = True: should be a number, not true/false"),
        ({"num_samples": 0}, "generation.num_samples = 0: should be greater than or equal to 1"),
        ({"seed": -1}, "seed: should be a whole number from 0 to 2**63 - 1, not -1"),
        ({"seed": 1.0}, "seed: should be a whole number from 0 to 2**63 - 1, not 1.0"),
        ({"seed": 2**63}, "seed: should be a whole number from 0 to 2**63 - 1, not 9223372036854775808"),
        ({"prompt": b"The"}, "prompt: should be text, not bytes"),
        ({"prompt": None}, "prompt: should be text, not NoneType"),
    ],
)
def test_values_out_of_range(loaded, values, message):
    model, tokenizer, _ = loaded
    with pytest.raises(UserError) as caught:
        generate_text(model, tokenizer, **{"prompt": "The", **values})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_model(tiny_model, loaded):
    @dataclass
    class Large:
        vocab_size: int = 301

    with pytest.raises(UserError, match="do not belong together: one has 301 tokens, the other only 300"):
        generate_text(tiny_model, Large(), "The")  # type: ignore[arg-type]


def test_defaults_are_the_config_defaults():
    parameters = inspect.signature(generate_text).parameters
    for key, value in GenerationConfig().model_dump().items():
        assert parameters[key].default == value or key in ("num_samples", "stop")


def test_the_promised_names():
    import src.generate as promised

    assert promised.load_model_for_generation is load_model_for_generation
    assert promised.generate_text is generate_text
    assert promised.interactive_generation is interactive_generation


def test_many_samples_are_written_some_at_a_time(loaded, monkeypatch):
    """What is in memory does not grow with their number, and their texts do not depend on it."""
    model, tokenizer, _ = loaded
    hot = {"max_new_tokens": 5, "temperature": 3.0, "seed": 4}
    together = generate_text(model, tokenizer, "The", num_samples=11, **hot)
    rows = []
    original = text.Decoder
    monkeypatch.setattr(text, "AT_ONCE", 4)
    monkeypatch.setattr(
        text, "Decoder", lambda m, starts, *a, **k: rows.append(len(starts)) or original(m, starts, *a, **k)
    )
    assert generate_text(model, tokenizer, "The", num_samples=11, **hot) == together
    assert rows == [4, 4, 3]


def test_many_samples_on_a_terminal_and_in_a_file(loaded, monkeypatch, tmp_path, capsys):
    model, tokenizer, _ = loaded
    settings = GenerationConfig(max_new_tokens=3, temperature=3, num_samples=7)
    rows = [{"prompt": "The"}, {"prompt": "sea"}]
    written = []
    for at_once in (64, 3):
        monkeypatch.setattr(text, "AT_ONCE", at_once)
        tokens = print_texts(model, tokenizer, "The", settings, seed=2)
        path = tmp_path / f"{at_once}.jsonl"
        counted = write_continuations(path, rows, model, tokenizer, settings, seed=2)
        written.append((tokens, capsys.readouterr().out, counted, path.read_text(encoding="utf-8")))
    assert written[0] == written[1]
    assert written[0][1].count(f"\n{SEPARATOR}\n") == 6
