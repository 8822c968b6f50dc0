"""Text as it is written: pieces, stop strings, many prompts, files of them."""

from __future__ import annotations

import json
import math

import pytest

from horovod_transformer.commands import command_line
from horovod_transformer.commands.command_line import run_command
from horovod_transformer.commands.generate import main
from horovod_transformer.config_sections import GenerationConfig
from horovod_transformer.errors import UserError
from horovod_transformer.generation import (
    Writing,
    generate_text,
    load_model_for_generation,
    prompts_file,
    stream_text,
)
from horovod_transformer.generation.text import _Reader

BOOK = "The sea was calm — so said the captain, né à Brême."
HOT = {"max_new_tokens": 25, "temperature": 3.0, "top_k": 0, "top_p": 1.0}


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    return load_model_for_generation(tiny_checkpoint, device="cpu")[:2]


def test_pieces_are_the_text_and_come_one_by_one(loaded):
    pieces = list(stream_text(*loaded, "The sea", 200, temperature=0))
    assert "The sea" + "".join(pieces) == BOOK
    assert len(pieces) > 20 and "—" in pieces  # three bytes, three tokens, one piece
    for seed in range(5):
        text = generate_text(*loaded, "The", seed=seed, **HOT)
        assert "The" + "".join(stream_text(*loaded, "The", seed=seed, **HOT)) == text


def test_a_piece_is_there_before_the_next_token_is_computed(loaded, monkeypatch):
    model, tokenizer = loaded
    steps = []
    original = model.cached_logits
    monkeypatch.setattr(model, "cached_logits", lambda *a: steps.append(1) or original(*a))
    stream = stream_text(model, tokenizer, "The sea", 20, temperature=0)
    assert steps == []
    assert next(stream) == " " and len(steps) == 1


def test_mistakes_are_told_at_once_and_not_at_the_first_piece(loaded):
    with pytest.raises(UserError, match="generation.top_p = 2"):
        stream_text(*loaded, "The", top_p=2)
    with pytest.raises(UserError, match=r"generation.stop = \[''\]|generation.stop"):
        stream_text(*loaded, "The", stop=[""])


@pytest.mark.parametrize(
    ("chunks", "stop", "pieces"),
    [
        (["ab", "cd"], [], ["ab", "cd", ""]),
        (["ab", "cd", "e"], ["cd"], ["ab", "", "", ""]),
        (["abc", "de"], ["cd"], ["ab", "", ""]),
        (["abc", "xe"], ["cd"], ["ab", "cxe", ""]),
        (["ab", "c"], ["cd"], ["ab", "", "c"]),
        (["aaab"], ["aab"], ["a", ""]),
        (["x\xc3", "\xa9y"], [], ["x", "éy", ""]),
        (["x\xc3"], [], ["x", "\ufffd"]),
        (["x\xc3", "z"], [], ["x", "\ufffdz", ""]),
        (["one two"], ["two", "one"], ["", ""]),
        (["\xe2\x80"], ["\u2014"], ["", "\ufffd"]),
    ],
)
def test_what_is_held_back(chunks, stop, pieces):
    reader = _Reader(stop)
    found = []
    for chunk in chunks:
        found.append(reader.read(chunk.encode("latin-1")) if not reader.stopped else "")
    found.append("" if reader.stopped else reader.close())
    assert found == pieces


def test_stop_strings(loaded):
    cool = {"max_new_tokens": 200, "temperature": 0}
    assert generate_text(*loaded, "The sea", **cool, stop=["said"]) == "The sea was calm — so "
    assert generate_text(*loaded, "The sea", **cool, stop=["never", "calm —", "lm"]) == "The sea was ca"
    assert generate_text(*loaded, "The sea", **cool, stop="said") == "The sea was calm — so "
    # What stands in the prompt does not stop; what only began to match is not lost at the end.
    assert generate_text(*loaded, "The sea", **cool, stop=["sea"]) == BOOK
    assert generate_text(*loaded, "The sea", **cool, stop=["Brême.x"]) == BOOK


def test_nothing_is_computed_after_a_stop_string(loaded):
    model, tokenizer = loaded
    settings = GenerationConfig(max_new_tokens=200, temperature=0, stop=["so"])
    # Short: the model has learned by heart windows of 24 tokens.
    writing = Writing(model, tokenizer, ["The sea", BOOK[33:43]], settings, probabilities=True)
    for _ in writing.pieces():
        pass
    first, second = writing.samples
    assert (first.text, first.ended) == (" was calm — ", "stop")
    assert tokenizer.decode(first.tokens) == " was calm — so"
    assert (second.text, second.ended) == (BOOK[43:], "end")
    assert len(first.log_probabilities) == len(first.tokens)
    assert all(-5 < value <= 0 for value in first.log_probabilities)


def test_a_sample_does_not_depend_on_what_stands_beside_it(loaded):
    model, tokenizer = loaded
    settings = GenerationConfig(num_samples=2, **HOT)
    prompts = ["The", "", "captain, né", "🙂 x"]
    together = Writing(model, tokenizer, prompts, settings, seed=4)
    list(together.pieces())
    for number, prompt in enumerate(prompts):
        alone = Writing(model, tokenizer, [prompt], settings, seed=4, first_row=2 * number)
        list(alone.pieces())
        assert [sample.text for sample in alone.samples] == [
            sample.text for sample in together.samples if sample.prompt == number
        ]
    assert len({sample.text for sample in together.samples}) == 8


# --- files


def run_here(capsys, tiny_checkpoint, *arguments):
    code = run_command(main, ["--checkpoint", str(tiny_checkpoint), "--device", "cpu", *map(str, arguments)])
    return code, capsys.readouterr()


def write_prompts(path, *prompts):
    text = "\n".join(json.dumps({"prompt": p, "id": n}) for n, p in enumerate(prompts)) + "\n\n"
    path.write_text(text, encoding="utf-8-sig")  # with a mark, as some editors write it
    return path


def test_prompts_in_and_texts_out(capsys, tiny_checkpoint, loaded, tmp_path):
    prompts = ["The sea", "", "so said", *["né à"] * 20]
    source, target = write_prompts(tmp_path / "in.jsonl", *prompts), tmp_path / "out.jsonl"
    more = ("--num_samples", 3, "--max_new_tokens", 30, "--probabilities")
    code, captured = run_here(capsys, tiny_checkpoint, "--prompts", source, "--output", target, *more)
    assert code == 0 and captured.out == "" and "tokens/s" in captured.err
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(row["prompt"], row["id"]) for row in rows] == [(p, n) for n, p in enumerate(prompts)]
    for row in rows:
        alone = generate_text(*loaded, row["prompt"], 30, temperature=0)
        assert [row["prompt"] + sample["text"] for sample in row["samples"]] == [alone] * 3
        for sample in row["samples"]:
            assert sample["tokens"] == len(sample["token_texts"]) == len(sample["log_probabilities"])
            assert math.exp(max(sample["log_probabilities"])) <= 1
    assert rows[2]["samples"][0]["ended"] in ("end", "length")
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}


def test_stop_and_penalty_reach_the_command(capsys, tiny_checkpoint):
    cool = ("--prompt", "The sea", "--num_samples", 1, "--max_new_tokens", 99)
    _, captured = run_here(capsys, tiny_checkpoint, *cool, "--stop", "captain", "--stop", "said")
    assert captured.out == "The sea was calm — so \n"
    _, punished = run_here(capsys, tiny_checkpoint, *cool, "--repetition_penalty", "1000")
    assert punished.out != BOOK + "\n"


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        (None, [], "in.jsonl: cannot be read: No such file"),
        (b"", [], "in.jsonl: holds no prompts"),
        (b"\xff\n", [], "in.jsonl: is not text in UTF-8"),
        (b'{"prompt": "a"}\nThe sea\n', [], "line 2: should be a JSON object such as"),
        (b'{"prompt": 5}', [], "line 1: should be"),
        (b'{"prompt": "a", "samples": []}', [], "line 1: has `samples` already"),
        (b'{"prompt": "a"}', ["--output", "{w}/in.jsonl"], "in.jsonl: exists already"),
        (b'{"prompt": "a"}', ["--output", "{w}/no/out"], "its folder does not exist"),
        (b'{"prompt": "a"}', ["--prompt", "b"], "not allowed with argument"),
        (b'{"prompt": "a"}', ["--stop", ""], "generation.stop"),
        (b'{"prompt": "a"}', ["--repetition_penalty", "0"], "generation.repetition_penalty = 0"),
    ],
)
def test_mistakes_are_one_line(capsys, tiny_checkpoint, tmp_path, content, arguments, words):
    if content is not None:
        (tmp_path / "in.jsonl").write_bytes(content)
    before = sorted(tmp_path.iterdir())
    arguments = [word.replace("{w}", str(tmp_path)) for word in arguments]
    output = [] if "--output" in arguments else ["--output", tmp_path / "out.jsonl"]
    code, captured = run_here(
        capsys, tiny_checkpoint, "--prompts", tmp_path / "in.jsonl", *output, *arguments
    )
    assert code == 2 and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert words in captured.err
    assert sorted(tmp_path.iterdir()) == before


def test_half_of_the_pair(capsys, tiny_checkpoint, tmp_path):
    for option in ("--prompts", "--output"):
        code, captured = run_here(capsys, tiny_checkpoint, option, tmp_path / "x")
        assert code == 2 and "belong together" in captured.err


def test_no_file_of_prompts_is_read_for_ever(capsys, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(prompts_file, "_LARGEST_FILE", 1000)
    monkeypatch.setattr(command_line, "_LARGEST_TEXT", 1000)
    for given in (["--prompts", "/dev/zero", "--output", tmp_path / "out"], ["--prompt_file", "/dev/zero"]):
        code, captured = run_here(capsys, tiny_checkpoint, *given)
        assert code == 2 and captured.err == f"error: {given[0]} /dev/zero: cannot be read: File too large\n"


def test_a_link_that_leads_nowhere_is_not_written_over(capsys, tiny_checkpoint, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}')
    (tmp_path / "out").symlink_to("nowhere")
    given = ("--prompts", tmp_path / "in.jsonl", "--output", tmp_path / "out")
    code, captured = run_here(capsys, tiny_checkpoint, *given)
    assert code == 2 and "out: exists already" in captured.err
    assert (tmp_path / "out").is_symlink()


def test_what_a_row_holds_is_handed_on_whole(capsys, tiny_checkpoint, tmp_path):
    """Half a surrogate pair is a character of JSON, though none of UTF-8."""
    row = {"prompt": "The \ud83d sea", "key": "\udc00", "\ud800": "ä"}
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    given = ("--prompts", tmp_path / "in.jsonl", "--output", tmp_path / "out", "--max_new_tokens", 2)
    assert run_here(capsys, tiny_checkpoint, *given)[0] == 0
    written = json.loads((tmp_path / "out").read_text(encoding="utf-8"))
    assert written.pop("samples") and written == row
