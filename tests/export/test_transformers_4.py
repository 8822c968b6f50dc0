"""Exports under transformers 4, which `make more` puts beside the environment's own version 5."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from horovod_transformer.__main__ import _dispatch
from horovod_transformer.checkpoint.format import save_checkpoint
from horovod_transformer.commands.command_line import run_command
from horovod_transformer.config import config_from_dict
from horovod_transformer.generation import generate_text, load_model_for_generation
from horovod_transformer.model.transformer import build_model
from horovod_transformer.tokenizer import gpt2_tokenizer
from tests.conftest import TINY, tiny_checkpoint_contents

pytestmark = pytest.mark.more

# What docs/export.md tells a user to do, and the same from ids alone.
LOADING = """
import json, sys
import torch, transformers
folder, prompt = sys.argv[1:]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
inputs = tokenizer(prompt, return_tensors="pt")
ids = inputs["input_ids"]
with torch.no_grad():
    output = model(**inputs, labels=ids)
written = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.eos_token_id)
print(json.dumps({
    "version": transformers.__version__, "inputs": sorted(inputs), "ids": ids.tolist(),
    "n_ctx": getattr(model.config, "n_ctx", None), "positions": model.config.max_position_embeddings,
    "class": type(model).__name__,
    "logits": output.logits.tolist(), "loss": output.loss.item(),
    "text": tokenizer.decode(written[0], skip_special_tokens=True),
}))
"""
SAVING = """
import sys
import torch, transformers
from safetensors.torch import load_file, save_file
torch.manual_seed(3)
if sys.argv[2] == "rotary":
    config = transformers.GPTNeoXConfig(
        vocab_size=260, max_position_embeddings=48, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, hidden_act="gelu_new", intermediate_size=80,
        use_parallel_residual=False, rotary_pct=1.0, tie_word_embeddings=True, rotary_emb_base=300,
    )
    transformers.GPTNeoXForCausalLM(config).save_pretrained(sys.argv[1])
    sys.exit()
config = transformers.GPT2Config(vocab_size=260, n_positions=48, n_embd=32, n_layer=2, n_head=4)
transformers.GPT2LMHeadModel(config).save_pretrained(sys.argv[1])
path = sys.argv[1] + "/model.safetensors"
weights = load_file(path)
key = "transformer.h.1.mlp.c_fc.weight"
if sys.argv[2] != "float32":
    weights[key] = (weights[key] * 100).to(getattr(torch, sys.argv[2]))
    save_file(weights, path, metadata={"format": "pt"})
"""
CASES = ["a tokenizer of its own", "GPT-2's tokenizer", "rotary positions"]


@pytest.fixture(scope="module")
def under_4(root: Path):
    """`under_4(program, *arguments)`: its output, run with the packages that `make more` fetched."""
    packages = root / ".transformers-4"
    if not list(packages.glob("transformers-4.*")):
        pytest.fail(f"{packages} holds no transformers 4; `make more` puts it there", pytrace=False)

    def run(program: str, *arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(packages), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module", params=CASES)
def checkpoint(request, tmp_path_factory, tiny_checkpoint, rotary_checkpoint) -> Path:
    if request.param != CASES[1]:
        return tiny_checkpoint if request.param == CASES[0] else rotary_checkpoint
    path = tmp_path_factory.mktemp("gpt2") / "model.pt"
    torch.manual_seed(5)
    shape = TINY.model_copy(update={"vocab_size": 50257})
    config = config_from_dict({"model": shape.model_dump(), "data": {"tokenizer": "gpt2"}}, "test")
    save_checkpoint(path, tiny_checkpoint_contents(build_model(shape), config, gpt2_tokenizer()))
    return path


def test_an_export_computes_and_writes_what_we_do(checkpoint, under_4, tmp_path):
    folder = tmp_path / "exported"
    assert run_command(_dispatch, ["export", "--checkpoint", str(checkpoint), "--to", str(folder)]) == 0
    prompt = "The sea was calm"
    theirs = json.loads(under_4(LOADING, str(folder), prompt))
    assert theirs["version"].startswith("4.")
    # GPT-2 would add the embedding of token 0 to every position for token_type_ids.
    assert theirs["inputs"] == ["attention_mask", "input_ids"]
    model, tokenizer, config = load_model_for_generation(checkpoint, device="cpu")
    ids = torch.tensor([tokenizer.encode(prompt)])
    assert theirs["ids"] == ids.tolist()
    is_rotary = config.model.positions == "rotary"
    assert theirs["class"] == ("GPTNeoXForCausalLM" if is_rotary else "GPT2LMHeadModel")
    assert theirs["positions"] == model.max_seq_len and theirs["n_ctx"] in (None, model.max_seq_len)
    with torch.no_grad():
        logits, loss = model(ids, labels=ids)
    torch.testing.assert_close(torch.tensor(theirs["logits"]), model(ids)[0].detach(), atol=1e-4, rtol=0)
    assert theirs["loss"] == pytest.approx(loss.item(), abs=1e-4)
    ours = generate_text(model, tokenizer, prompt, max_new_tokens=12, temperature=0)
    assert theirs["text"] == ours


@pytest.mark.parametrize(("dtype", "code"), [("float32", 0), ("int8", 2), ("rotary", 0)])
def test_what_it_saves_is_imported_unless_it_is_quantized(
    under_4, tmp_path, tiny_checkpoint, capsys, dtype, code
):
    under_4(SAVING, str(tmp_path / "theirs"), dtype)
    exported = tmp_path / "exported"
    arguments = ["export", "--checkpoint", str(tiny_checkpoint), "--to", str(exported)]
    assert run_command(_dispatch, arguments) == 0
    (tmp_path / "theirs" / "tokenizer.json").write_bytes((exported / "tokenizer.json").read_bytes())
    capsys.readouterr()
    arguments = ["import", "--from", str(tmp_path / "theirs"), "--to", str(tmp_path / "imported.pt")]
    assert run_command(_dispatch, arguments) == code
    if code:
        assert "is stored as int8; quantized weights cannot be imported" in capsys.readouterr().err
