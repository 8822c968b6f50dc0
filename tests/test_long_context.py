"""The four commands with rotary positions and a context of 2,048 tokens, as a user types them."""

from __future__ import annotations

import json

import pytest
import yaml

CONTEXT = 2048
CONFIG = {
    "model": {
        "vocab_size": 300, "d_model": 32, "n_layers": 1, "n_heads": 2, "d_ff": 64, "max_seq_len": CONTEXT,
        "positions": "rotary", "rope_theta": 50000.0,
    },
    "training": {
        "max_updates": 3, "global_batch_size": 2, "per_gpu_batch_size": 1, "eval_blocks": 2,
        "precision": "fp32", "learning_rate": 0.01,
    },
    "data": {"source": "books", "tokenizer": "bpe", "data_dir": "data", "validation_fraction": 0.3},
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    (folder / "long.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "books").mkdir()
    for book in range(6):
        lines = [
            f"The sea of day {book * 1000 + day} was calm, said {day % 7} sailors." for day in range(600)
        ]
        (folder / f"books/{book}.txt").write_text("\n".join(lines))
    return folder


def test_prepare_train_evaluate_generate_and_go_on_past_the_context(home, run_python):
    def run(*arguments: str):
        done = run_python("-m", *arguments, cwd=home)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert f"blocks of {CONTEXT}" in run("horovod_transformer", "prepare", "--config", "long.yaml")
    output = run("horovod_transformer", "train", "--config", "long.yaml", "--run_name", "long")
    assert "done: 3 updates" in output
    checkpoint = "checkpoints/last.pt"
    run("horovod_transformer", "evaluate", "--checkpoint", checkpoint, "--books", "1", "--samples", "0")
    (result,) = home.glob("runs/long/evaluation/*.json")
    assert json.loads(result.read_text())
    # A prompt of some thousand tokens fills the context, and the text outgrows it.
    prompt = "The sea was calm, and the moon came up. " * 100
    text = run(
        "horovod_transformer", "generate", "--checkpoint", checkpoint, "--prompt", prompt,
        "--max_new_tokens", "1500", "--temperature", "0",
    )  # fmt: skip
    assert text.startswith(prompt[:100]) and len(text) > len(prompt) + 500
