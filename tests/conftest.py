"""Fixtures that several test files share: small models, a tokenizer, a trained checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Seconds until what a test waits for counts as stuck. Beside other work a program may take a minute to start.
PATIENCE_S = 300.0

ROOT = Path(__file__).resolve().parent.parent
# `src` is not installed; a test may be started from any folder.
sys.path.insert(0, str(ROOT))
# What a shell starts in the background ignores Ctrl-C, and so would all that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

from horovod_transformer.config import Config, config_from_dict  # noqa: E402
from horovod_transformer.config_sections import ModelConfig  # noqa: E402
from horovod_transformer.model.transformer import TransformerLM, build_model  # noqa: E402
from horovod_transformer.tokenizer import Tokenizer, train_bpe  # noqa: E402

torch.set_num_threads(1)

TINY = ModelConfig(vocab_size=300, d_model=32, n_layers=2, n_heads=2, d_ff=64, max_seq_len=32)
# Heads wider than d_model / n_heads, two of queries to one of keys and values, with norms of their own.
TINY_LLAMA = ModelConfig.model_validate(
    {**TINY.model_dump(), "architecture": "llama", "positions": "rotary", "n_heads": 4, "n_kv_heads": 2}
    | {"head_dim": 12, "qk_norm": True}
)

# A whole book, with characters of two and three bytes; about 45 tokens.
LINE = "The sea was calm — so said the captain, né à Brême."


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository root, from which the documented commands are typed."""
    return ROOT


@pytest.fixture
def run_python(root: Path):
    """Run `python ARGUMENTS` from the repository root as a user does; returns the finished process."""

    def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        options = {
            "cwd": root,
            "env": environment,
            "timeout": 2 * PATIENCE_S,
            "stdin": subprocess.DEVNULL,
            **options,
        }
        if "input" in options:
            del options["stdin"]
        return subprocess.run(
            [sys.executable, *arguments], capture_output=True, **{"encoding": "utf-8", **options}
        )

    return run


@pytest.fixture
def tiny_model() -> TransformerLM:
    """A fresh model of 27 thousand parameters, the same in every test."""
    torch.manual_seed(0)
    return build_model(TINY)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE of a few dozen merges."""
    return train_bpe([LINE], 260)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:
    """A checkpoint of a tiny model that has learned `LINE` by heart, as training would have written it.

    Read it only; copy it to change it.
    """
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_tokenizer)


@pytest.fixture(scope="session")
def rotary_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:
    """The same with rotary positions."""
    folder = tmp_path_factory.mktemp("rotary")
    return write_tiny_checkpoint(folder, tiny_tokenizer, positions="rotary", rope_theta=500.0)


def write_tiny_checkpoint(folder: Path, tokenizer: Tokenizer, **model: object) -> Path:
    """Train a tiny model, changed as `model` says, and save it."""
    from horovod_transformer.checkpoint.format import save_checkpoint

    config = config_from_dict(
        {
            "model": {**TINY.model_dump(), "vocab_size": tokenizer.vocab_size, **model},
            "generation": {"max_new_tokens": 7, "temperature": 0, "num_samples": 2},
        },
        "tiny checkpoint",
    )
    path = folder / "best_model.pt"
    save_checkpoint(path, tiny_checkpoint_contents(train_by_heart(config, tokenizer), config, tokenizer))
    return path


def train_by_heart(config: Config, tokenizer: Tokenizer) -> TransformerLM:
    """Train a model on a book that is one sentence, until it can recite it."""
    torch.manual_seed(0)
    model = build_model(config.model)
    end = [tokenizer.eos_token_id]
    windows = torch.tensor(end + tokenizer.encode(LINE) + end).unfold(0, 24, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss, count, _ = model.loss_sums(windows, windows)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def tiny_checkpoint_contents(model: TransformerLM, config: Config, tokenizer: Tokenizer) -> dict:
    """What training puts into a checkpoint, as far as generation reads it."""
    return {
        "model": model.state_dict(),
        "config": config.to_dict(),
        "tokenizer": tokenizer.to_dict(),
        "progress": {},
        "optimizer": {},
        "scheduler": {},
    }


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever runs a whole program is slow: it loads PyTorch anew, which takes seconds."""
    for item in items:
        if "run_python" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
