"""`train --dry-run`: what a run would be, from the same figures as the run itself, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from horovod_transformer.config import load_config
from horovod_transformer.data.dataset import open_prepared_data
from horovod_transformer.data.loader import plan_batches
from horovod_transformer.prepare.prepare import prepare
from horovod_transformer.training import dry_run
from horovod_transformer.training.run_summary import RunSummary

TINY = {
    "model.vocab_size": "280",
    "model.d_model": "16",
    "model.n_layers": "1",
    "model.n_heads": "2",
    "model.d_ff": "32",
    "model.max_seq_len": "32",
    "training.epochs": "4",
    "training.global_batch_size": "4",
    "training.per_gpu_batch_size": "2",
}


def write_books(folder: Path) -> None:
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.txt").write_text(f"The {number} old houses by the river were empty. " * 300)


def test_it_says_what_the_run_says_and_how_long_it_would_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_books(tmp_path / "books")
    where = {
        "data.source": str(tmp_path / "books"),
        "data.data_dir": str(tmp_path / "data"),
        "data.tokenizer": "bpe",
    }
    config = load_config("configs/config.yaml", {**TINY, **where})
    prepare(config, progress=False)
    data = open_prepared_data(config)
    monkeypatch.setattr(dry_run, "measure_tokens_per_second", lambda *_: 128.0)
    lines = dry_run.describe_run(config.model, config.training, config.distributed, data)
    plan = plan_batches(config.training, data.train, 1, exact=True)
    summary = RunSummary.of(config.model, config.training, plan, data.folder)
    assert all(line in lines for line in summary.introduction(config.training, plan))
    assert lines[-1].startswith("time: 1.00 s an update, 128 tokens/s (measured, one process of ")


def test_a_model_is_measured_as_it_would_train() -> None:
    from horovod_transformer.training.speed import measure_tokens_per_second

    config = load_config("configs/config.yaml", {**TINY, "training.device": "cpu"})
    speed = measure_tokens_per_second(config.model, config.training, 0.05)
    # An update of 128 tokens of so small a model takes some milliseconds.
    assert 100 < speed < 10**7
