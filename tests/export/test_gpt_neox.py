"""Models with rotary positions as GPT-NeoX folders: the same logits and text under `transformers`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from horovod_transformer.__main__ import _dispatch
from horovod_transformer.checkpoint.format import load_checkpoint
from horovod_transformer.commands.command_line import run_command
from horovod_transformer.errors import UserError
from horovod_transformer.export.huggingface import read_folder
from horovod_transformer.generation import generate_text, load_model_for_generation
from horovod_transformer.model.transformer import build_model
from horovod_transformer.training.resume import require_same_model
from tests.export.test_huggingface import their_logits, tokens_for

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def exported(rotary_checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "rotary"
    arguments = ["export", "--checkpoint", str(rotary_checkpoint), "--to", str(folder)]
    assert run_command(_dispatch, arguments) == 0
    return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, exported) -> Path:
    """A GPT-NeoX that transformers made at random, with a tokenizer of ours."""
    torch.manual_seed(3)
    config = transformers.GPTNeoXConfig(
        vocab_size=260, max_position_embeddings=48, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=80, hidden_act="gelu_new", initializer_range=0.2,
        use_parallel_residual=False, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 1.0},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("theirs") / "neox"
    model = transformers.GPTNeoXForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "bias" in name or "norm" in name:
            torch.nn.init.normal_(parameter, mean=float("weight" in name), std=0.2)
    model.save_pretrained(folder)
    shutil.copy(exported / "tokenizer.json", folder)
    return folder


def test_the_same_logits(exported, rotary_checkpoint):
    model, _, _ = load_model_for_generation(rotary_checkpoint, device="cpu")
    tokens = tokens_for(260, 32)
    torch.testing.assert_close(their_logits(exported, tokens), model(tokens)[0], atol=1e-4, rtol=0)


def test_the_same_greedy_text(exported, rotary_checkpoint):
    model, tokenizer, _ = load_model_for_generation(rotary_checkpoint, device="cpu")
    their_model = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    for prompt in ("The sea", "so said", "né"):
        inputs = their_tokenizer(prompt, return_tensors="pt")
        output = their_model.generate(**inputs, max_new_tokens=20, do_sample=False)[0]
        text = their_tokenizer.decode(output, skip_special_tokens=True)
        assert text == generate_text(model, tokenizer, prompt, max_new_tokens=20, temperature=0)


def test_auto_classes_know_what_the_folder_is(exported):
    config = transformers.AutoConfig.from_pretrained(exported)
    assert (config.model_type, config.max_position_embeddings) == ("gpt_neox", 32)
    assert config.rope_parameters["rope_theta"] == 500
    card = (exported / "README.md").read_text()
    assert "tags: [gpt_neox, horovod_transformer]" in card and "GPT-NeoX" in card


def test_an_imported_model_computes_the_same(theirs):
    weights, config, tokenizer = read_folder(theirs)
    model = build_model(config.model).eval()
    model.load_state_dict(weights)
    assert (config.model.positions, config.model.rope_theta) == ("rotary", 300)
    assert tokenizer.vocab_size == 260
    tokens = tokens_for(260, 48)
    logits, _ = model(tokens)
    assert logits.std() > 0.5
    torch.testing.assert_close(their_logits(theirs, tokens), logits, atol=1e-4, rtol=0)


def test_there_and_back_gives_the_same_weights(theirs, exported, rotary_checkpoint, tmp_path, capsys):
    checkpoint, again = tmp_path / "imported.pt", tmp_path / "again"
    assert run_command(_dispatch, ["import", "--from", str(theirs), "--to", str(checkpoint)]) == 0
    assert "train it further with --model.positions rotary" in capsys.readouterr().out
    assert run_command(_dispatch, ["export", "--checkpoint", str(checkpoint), "--to", str(again)]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (theirs, again))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    # And the other way round: what was exported, imported.
    weights, _, _ = read_folder(exported)
    ours = load_checkpoint(rotary_checkpoint)["model"]
    assert weights.keys() == ours.keys() and all(torch.equal(weights[key], ours[key]) for key in ours)


def test_a_run_from_it_has_to_have_its_positions(theirs):
    model = read_folder(theirs)[1].model
    # Nothing is learned for a position, so the context may grow.
    require_same_model(model, model.model_copy(update={"max_seq_len": 4096}), theirs)
    for change in ({"positions": "sinusoidal"}, {"rope_theta": 10000.0}):
        with pytest.raises(UserError, match=f"its model has {next(iter(change))} = "):
            require_same_model(model, model.model_copy(update=change), theirs)


def changed(theirs: Path, folder: Path, **changes: object) -> Path:
    """A copy with other values in its config; None leaves a key out."""
    shutil.copytree(theirs, folder)
    values = {**json.loads((folder / "config.json").read_text()), **changes}
    values = {key: value for key, value in values.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_as_version_4_writes_it(theirs, tmp_path):
    folder = changed(theirs, tmp_path / "4", rope_parameters=None, rotary_pct=1.0, rotary_emb_base=77)
    assert read_folder(folder)[1].model.rope_theta == 77


HALF = {"rope_type": "default", "rope_theta": 1.0, "partial_rotary_factor": 0.5}
SCALED = {"rope_type": "linear", "rope_theta": 1.0, "partial_rotary_factor": 1.0, "factor": 2.0}
REFUSED = {
    "parallel residual": ({"use_parallel_residual": None}, "use_parallel_residual = True"),
    "another activation": ({"hidden_act": None}, "hidden_act = 'gelu'"),
    "no biases": ({"attention_bias": False}, "attention_bias = False"),
    "untied": ({"tie_word_embeddings": None}, "tie_word_embeddings = False"),
    "a part is turned": ({"rope_parameters": HALF}, "partial_rotary_factor = 0.5"),
    "a part is turned, version 4": (
        {"rope_parameters": None},
        "rotary_pct = 0.25; only GPT-NeoX",
    ),
    "scaled": ({"rope_parameters": SCALED}, "rope_type = 'linear'"),
    "scaled, version 4": (
        {"rope_parameters": None, "rotary_pct": 1.0, "rope_scaling": {"type": "linear", "factor": 2}},
        "rope_scaling = ",
    ),
    "no keys and values": ({"rope_parameters": "fast"}, "rope_parameters should hold keys and values"),
    "odd theta": (
        {"rope_parameters": {**HALF, "partial_rotary_factor": 1.0, "rope_theta": "fast"}},
        "model.rope_theta = 'fast'",
    ),
    "odd heads": ({"num_attention_heads": 32}, "d_model / n_heads must be even"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_one_line(theirs, tmp_path, case):
    changes, said = REFUSED[case]
    with pytest.raises(UserError, match="config.json") as refused:
        read_folder(changed(theirs, tmp_path / "folder", **changes))
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_an_output_projection_of_its_own(theirs, tmp_path):
    folder = changed(theirs, tmp_path / "folder")
    tensors = load_file(folder / "model.safetensors")
    same = tensors["gpt_neox.embed_in.weight"].clone()
    save_file({**tensors, "embed_out.weight": same}, folder / "model.safetensors")
    read_folder(folder)
    save_file({**tensors, "embed_out.weight": same + 1}, folder / "model.safetensors")
    with pytest.raises(UserError, match="embed_out.weight is not embed_in.weight"):
        read_folder(folder)
