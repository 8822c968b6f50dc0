"""Llama and Qwen3 folders, out and in: the same logits and weights under `transformers`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from horovod_transformer.__main__ import _dispatch
from horovod_transformer.commands.command_line import run_command
from horovod_transformer.config_sections import RopeScaling
from horovod_transformer.errors import UserError
from horovod_transformer.export.huggingface import read_folder
from horovod_transformer.export.llama import their_config
from horovod_transformer.export.tokenizers import tokenizer_json
from horovod_transformer.generation import generate_text, load_model_for_generation
from horovod_transformer.model.transformer import build_model
from tests.conftest import TINY_LLAMA, write_tiny_checkpoint
from tests.export.test_huggingface import their_logits, tokens_for

transformers = pytest.importorskip("transformers")

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FORMS = {
    "llama": {"qk_norm": False, "head_dim": 16, "tie_embeddings": False, "rope_scaling": LLAMA3},
    "qwen3": {},
}


@pytest.fixture(scope="module", params=FORMS)
def ours(request, tmp_path_factory, tiny_tokenizer) -> Path:
    values = {**TINY_LLAMA.model_dump(), **FORMS[request.param], "vocab_size": tiny_tokenizer.vocab_size}
    return write_tiny_checkpoint(tmp_path_factory.mktemp("llama"), tiny_tokenizer, **values)


@pytest.fixture(scope="module")
def exported(ours, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "llama"
    assert run_command(_dispatch, ["export", "--checkpoint", str(ours), "--to", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module", params=["llama", "qwen3, untied, in pieces of bf16"])
def theirs(request, tmp_path_factory, tiny_tokenizer) -> Path:
    """A model that transformers made at random, with a tokenizer of ours."""
    torch.manual_seed(3)
    kind = "Qwen3" if "qwen3" in request.param else "Llama"
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=260, max_position_embeddings=48, hidden_size=36, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=2, head_dim=10, intermediate_size=80,
        initializer_range=0.2, rms_norm_eps=1e-5,
        tie_word_embeddings="untied" not in request.param,
        rope_parameters={"rope_theta": 300.0, **LLAMA3} if kind == "Llama" else
        {"rope_type": "default", "rope_theta": 300.0},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("theirs") / "model"
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    pieces = "pieces" in request.param
    (model.bfloat16() if pieces else model).save_pretrained(
        folder, max_shard_size="50KB" if pieces else "5GB"
    )
    assert (folder / "model.safetensors.index.json").exists() == pieces
    (folder / "tokenizer.json").write_text(tokenizer_json(tiny_tokenizer), encoding="utf-8")
    return folder


def test_the_same_logits_and_greedy_text(exported, ours):
    model, tokenizer, _ = load_model_for_generation(ours, device="cpu")
    tokens = tokens_for(260, 32)
    torch.testing.assert_close(their_logits(exported, tokens), model(tokens)[0], atol=1e-4, rtol=0)
    their_model = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    output = their_model.generate(
        **their_tokenizer("The sea", return_tensors="pt"), max_new_tokens=20, do_sample=False
    )
    text = their_tokenizer.decode(output[0], skip_special_tokens=True)
    assert text == generate_text(model, tokenizer, "The sea", max_new_tokens=20, temperature=0)
    kind = their_model.config.model_type
    card = (exported / "README.md").read_text()
    assert f"tags: [{kind}, horovod_transformer]" in card and f"in the manner of {kind.capitalize()}" in card


def test_an_imported_model_computes_the_same_and_goes_back_equal(theirs, tmp_path):
    weights, config, _ = read_folder(theirs)
    model = build_model(config.model).eval()
    model.load_state_dict(weights)
    tokens = tokens_for(260, 48)
    logits, _ = model(tokens)
    assert logits.std() > 0.5
    whole = transformers.AutoModelForCausalLM.from_pretrained(theirs, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(whole(tokens).logits, logits, atol=1e-4, rtol=0)
    checkpoint, again = tmp_path / "imported.pt", tmp_path / "again"
    assert run_command(_dispatch, ["import", "--from", str(theirs), "--to", str(checkpoint)]) == 0
    assert run_command(_dispatch, ["export", "--checkpoint", str(checkpoint), "--to", str(again)]) == 0
    before = {
        key: value.float() for file in theirs.glob("*.safetensors") for key, value in load_file(file).items()
    }
    after = load_file(again / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_as_version_4_writes_it(theirs, tmp_path):
    folder = tmp_path / "4"
    shutil.copytree(theirs, folder)
    values = json.loads((folder / "config.json").read_text())
    rope = values.pop("rope_parameters")
    values["rope_theta"] = rope.pop("rope_theta")
    values["rope_scaling"] = rope if rope["rope_type"] == "llama3" else None
    (folder / "config.json").write_text(json.dumps(values))
    assert read_folder(folder)[1].model == read_folder(theirs)[1].model


REFUSED = {
    "another activation": ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    "biases": ({"attention_bias": True}, "attention_bias = True"),
    "another scaling": ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type = 'yarn'"),
    "no keys and values": ({"rope_parameters": "fast"}, "rope_parameters should hold keys and values"),
    "sliding windows": ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types: only "),
    "odd groups": ({"num_key_value_heads": 4}, "n_kv_heads must divide n_heads"),
    "another width": ({"head_dim": 12}, "but config.json says"),
    "another depth": ({"num_hidden_layers": 10**9}, "such a model of 1000000000 layers has"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_one_line(theirs, tmp_path, case):
    changes, said = REFUSED[case]
    folder = tmp_path / "folder"
    shutil.copytree(theirs, folder)
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError) as refused:
        read_folder(folder)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_what_transformers_refuses_is_not_exported():
    with pytest.raises(UserError, match="heads do not divide its width, 5 of 32"):
        their_config(TINY_LLAMA.model_copy(update={"qk_norm": False, "n_heads": 5}))
    scaled = TINY_LLAMA.model_copy(update={"rope_scaling": RopeScaling(**LLAMA3)})
    assert their_config(scaled)["rope_parameters"] == {"rope_theta": scaled.rope_theta, **LLAMA3}
