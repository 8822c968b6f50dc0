"""A checkpoint becomes a model, its tokenizer and its config."""

from __future__ import annotations

import math

import pytest
import torch

from horovod_transformer.checkpoint.format import load_checkpoint, save_checkpoint
from horovod_transformer.config_sections import GenerationConfig
from horovod_transformer.errors import UserError
from horovod_transformer.generation import (
    generate_text,
    load_model_for_generation,
)


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    return load_model_for_generation(tiny_checkpoint, device="cpu")


def test_loading_gives_back_what_was_saved(loaded, tiny_checkpoint, tiny_tokenizer):
    model, tokenizer, config = loaded
    contents = load_checkpoint(tiny_checkpoint)
    assert not model.training
    assert all(torch.equal(value, contents["model"][key]) for key, value in model.state_dict().items())
    assert tokenizer.to_dict() == tiny_tokenizer.to_dict()
    assert config.to_dict() == contents["config"]


def test_loading_does_not_load_torchs_compiler(run_python, tiny_checkpoint):
    # It takes longer to import than the weights of the default model take to read.
    program = (
        "import sys; from horovod_transformer.generation import load_model_for_generation as load; "
        "load(sys.argv[1], device='cpu'); print('torch._dynamo' in sys.modules)"
    )
    done = run_python("-c", program, str(tiny_checkpoint))
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_a_config_brings_generation_settings_and_nothing_else(tiny_checkpoint, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model: {max_seq_len: 64, dropout: 0.1}\ntraining: {seed: 5}\ngeneration: {top_k: 3}\n")
    model, _, config = load_model_for_generation(tiny_checkpoint, file, "cpu")
    assert config.generation == GenerationConfig(top_k=3)
    assert (model.max_seq_len, config.model.max_seq_len, config.training.seed) == (32, 32, 1337)


@pytest.mark.parametrize(
    ("key", "value", "stored"),
    [
        ("vocab_size", 50257, 260),
        ("d_model", 24, 32),
        ("n_heads", 4, 2),
        ("n_layers", 3, 2),
        ("d_ff", 128, 64),
    ],
)
def test_a_config_of_another_model_is_refused(tiny_checkpoint, tmp_path, key, value, stored):
    file = tmp_path / "other.yaml"
    file.write_text(f"model: {{{key}: {value}}}\n")
    with pytest.raises(UserError) as caught:
        load_model_for_generation(tiny_checkpoint, file, "cpu")
    assert f"other.yaml: model.{key} = {value}, but {tiny_checkpoint} was trained with {stored};" in str(
        caught.value
    )


def test_damaged_weights_are_told_apart(tiny_checkpoint, tmp_path):
    def refusal(change) -> str:
        contents = load_checkpoint(tiny_checkpoint)
        change(contents)
        save_checkpoint(tmp_path / "changed.pt", contents)
        with pytest.raises(UserError) as caught:
            load_model_for_generation(tmp_path / "changed.pt", device="cpu")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    for wrong in (math.nan, math.inf, -math.inf):
        assert "weights are NaN or infinite" in refusal(
            lambda contents, wrong=wrong: contents["model"]["final_norm.bias"][3:4].fill_(wrong)
        )
    assert "do not fit the config stored beside them: Missing key(s)" in refusal(
        lambda contents: contents["model"].pop("final_norm.bias")
    )
    assert "size mismatch for blocks.0.feed_forward.expand" in refusal(
        lambda contents: contents["config"]["model"].update(d_ff=128)
    )
    assert "do not fit" in refusal(lambda contents: contents.update(model=7))
    assert "model.n_layers = 0" in refusal(lambda contents: contents["config"]["model"].update(n_layers=0))
    # At once, not after a million layers have been laid out.
    assert "weights for 1000000 layers" in refusal(
        lambda contents: contents["config"]["model"].update(n_layers=10**6)
    )
    for kind in (torch.float16, torch.float64, torch.float8_e4m3fn, torch.complex64):
        assert f"holds weights as {str(kind).removeprefix('torch.')}; a checkpoint has float32" in refusal(
            lambda contents, kind=kind: contents["model"].update(
                {name: weight.to(kind) for name, weight in contents["model"].items()}
            )
        )
    # Without a tokenizer only GPT-2's 50,257 tokens remain.
    assert "holds no tokenizer" in refusal(
        lambda contents: (contents.update(tokenizer=None), contents["config"]["data"].update(tokenizer="bpe"))
    )


def test_a_gpu_that_is_not_there(tiny_checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model, tokenizer, _ = load_model_for_generation(tiny_checkpoint, device="cuda")
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "no GPU" in warning
    assert generate_text(model, tokenizer, "The", 3).startswith("The")
    load_model_for_generation(tiny_checkpoint)
    load_model_for_generation(tiny_checkpoint, device=torch.device("cpu"))
    assert capsys.readouterr().err == ""


def test_devices_that_do_not_exist(tiny_checkpoint, monkeypatch):
    for name in ("gpu", "meta", "", "cuda:x", 1.5):
        with pytest.raises(UserError, match="device: should be cpu, cuda or cuda:N"):
            load_model_for_generation(tiny_checkpoint, device=name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="there is no cuda:2; torch sees 2"):
        load_model_for_generation(tiny_checkpoint, device="cuda:2")
