"""A conversation at the terminal."""

from __future__ import annotations

import pytest

from horovod_transformer.config import Config
from horovod_transformer.config_sections import GenerationConfig
from horovod_transformer.generation import (
    interactive_generation,
    load_model_for_generation,
    terminal,
)

BOOK = "The sea was calm — so said the captain, né à Brême."


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    return load_model_for_generation(tiny_checkpoint, device="cpu")


def converse(monkeypatch, loaded, lines, **options):
    lines = iter(lines)

    def answer(_prompt: str) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        if line == "^C":
            raise KeyboardInterrupt
        return line

    monkeypatch.setattr("builtins.input", answer)
    model, tokenizer, config = loaded
    interactive_generation(model, tokenizer, options.pop("config", config), **options)
    return list(lines)


def test_a_conversation(monkeypatch, loaded, capsys):
    lines = [
        "The sea",
        "/max_new_tokens 99",
        "/num_samples 1",
        "",
        "/temperature hot",
        "/top_k",
        "/dance",
        "/help",
    ]
    left = converse(monkeypatch, loaded, [*lines, "/quit", "never read"])
    out = capsys.readouterr().out
    assert left == ["never read"]
    # First by the checkpoint's settings: two samples of seven tokens.
    assert out.count("The sea was") == 3 and out.count(BOOK) == 1
    assert "max_new_tokens = 99\nnum_samples = 1\n" in out
    assert "/temperature: generation.temperature = 'hot': should be a valid number" in out
    assert "temperature = 0.0\ntop_k = 50\n" in out
    assert "no such command: /dance; /help lists" in out
    assert "/quit" in out.split("/dance")[1]


@pytest.mark.parametrize("end", [[], ["^C"], ["/quit "]])
def test_ways_to_leave(monkeypatch, loaded, capsys, end):
    converse(monkeypatch, loaded, ["/temperature 0.5", *end])
    assert capsys.readouterr().out.endswith("\n")


def test_ctrl_c_while_writing_leaves_too(monkeypatch, loaded):
    def interrupted(*_arguments, **_settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal, "Writing", interrupted)
    assert converse(monkeypatch, loaded, ["The sea", "never read"]) == ["never read"]


def test_a_conversation_with_a_seed_repeats(monkeypatch, loaded, capsys):
    hot = Config(generation=GenerationConfig(temperature=3, top_k=0, top_p=1, max_new_tokens=20))
    spoken = []
    for seed in (1, 1, 2):
        converse(monkeypatch, loaded, ["The", "The"], config=hot, seed=seed)
        spoken.append(capsys.readouterr().out)
    assert spoken[0] == spoken[1] != spoken[2]
    first, second = spoken[0].split("\n\n")[:2]
    assert first.split("\n", 1)[1] != second
