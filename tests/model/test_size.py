"""The disk that checkpoints take, against real ones; a GPU's memory, against what was measured."""

from __future__ import annotations

import json

import pytest
import torch

from horovod_transformer.checkpoint.format import save_checkpoint
from horovod_transformer.checkpoint.manager import CheckpointManager
from horovod_transformer.config_sections import ModelConfig
from horovod_transformer.model.size import checkpoint_bytes, gpu_bytes, run_bytes
from horovod_transformer.model.transformer import build_model
from tests.conftest import TINY


def contents_of(shape: ModelConfig) -> dict:
    model = build_model(shape)
    optimizer = torch.optim.AdamW(model.parameters())
    model.loss_sums(*[torch.zeros(1, 8, dtype=torch.long)] * 2)[0].backward()
    optimizer.step()
    contents = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": {}}
    return {**contents, "progress": {}, "config": {}, "tokenizer": None}


def test_checkpoint_size_is_that_of_a_real_one(tmp_path):
    shape = TINY.model_copy(update={"d_model": 128, "d_ff": 512})
    path = tmp_path / "x.pt"
    save_checkpoint(path, contents_of(shape))
    assert checkpoint_bytes(shape) == pytest.approx(path.stat().st_size, rel=0.05)


def test_a_run_takes_what_its_folder_has_while_it_writes_another(tmp_path):
    shape = TINY.model_copy(update={"d_model": 128, "d_ff": 512})
    contents, manager = contents_of(shape), CheckpointManager(tmp_path, keep=3)
    for update in range(1, 6):
        manager.save(contents, update, periodic=update > 1, best=update == 1)
        assert manager.wait() is None
    # Each file once, whatever its names.
    there = sum({file.stat().st_ino: file.stat().st_size for file in tmp_path.glob("*.pt")}.values())
    assert run_bytes(shape, 3) == pytest.approx(there * 5 / 4, rel=0.05)


def test_a_gpus_memory_is_what_was_measured(root):
    measured = json.loads((root / "benchmarks/results/2026-11-26-NVIDIA-H200.json").read_text())["speed"]
    for row in (row for row in measured if row["compile"] and row["optimizer"] == "adamw"):
        shape = ModelConfig(max_seq_len=row["block_size"], gradient_checkpointing=row["checkpointing"])
        tokens = row["batch"] * row["block_size"]
        estimate = gpu_bytes(shape, tokens, row["micro_batches"] > 1, 141 * 10**9)
        off = estimate / (row["peak_memory_gib"] * 2**30) - 1
        assert -0.02 < off < (0.13 if row["checkpointing"] else 0.02), row
