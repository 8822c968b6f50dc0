"""Blocks become batches, in the order that the plan says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import psutil
import pytest
import torch
import yaml

from horovod_transformer.config import config_from_dict
from horovod_transformer.data import dataset
from horovod_transformer.data import loader as loader_module
from horovod_transformer.data.sampler import BatchPlan
from horovod_transformer.errors import UserError

BLOCK, VOCAB = 6, 50


def split_of(rows, fixed=True):
    length = len(rows[0]) if fixed else -1
    feature = datasets.Sequence(datasets.Value("uint16"), length=length)
    return datasets.Dataset.from_dict(
        {"input_ids": [list(row) for row in rows]}, features=datasets.Features({"input_ids": feature})
    )


def rows_of(number):
    return np.arange(number * BLOCK).reshape(number, BLOCK) % VOCAB


@pytest.fixture
def prepared(tmp_path):
    """Write prepared data; returns its config."""

    def write(train, validation=None, manifest=None, **changes):
        folder = tmp_path / "data"
        splits = {"train": train, "validation": validation or split_of(rows_of(4))}
        datasets.DatasetDict(splits).save_to_disk(str(folder))
        if manifest is not None:
            (folder / "manifest.json").write_text(manifest)
        values = {
            "model": {"vocab_size": VOCAB, "max_seq_len": BLOCK, "d_model": 8, "n_heads": 2},
            "training": {"global_batch_size": 4, "per_gpu_batch_size": 2, "eval_blocks": None},
            "data": {"data_dir": str(folder), "num_workers": 0},
        }
        for key, value in changes.items():
            section, _, name = key.partition("__")
            values[section][name] = value
        return config_from_dict(values, "test")

    return write


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("bad", [50, 65535])
def test_an_impossible_token_is_told_in_one_line(prepared, workers, bad):
    rows = rows_of(8)
    rows[6, 2] = bad
    config = prepared(split_of(rows), data__num_workers=workers)
    data = dataset.open_prepared_data(config)
    plan = loader_module.plan_batches(config.training, data.train, 1)
    loader = loader_module.training_loader(
        data.train, plan, 0, range(plan.total_updates), config.data.num_workers
    )
    told, for_all = None, None
    try:  # `pytest.raises` would keep the loader's processes alive with the traceback
        list(loader_module.iterate_batches(loader))
    except UserError as error:
        told, for_all = str(error), not error.only_here
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()
    assert told == (
        f"{config.data.data_dir}/train, row 6: token id {bad} is outside the vocabulary of 50; "
        "was the data prepared with another tokenizer, or damaged?"
    )
    assert not for_all


@pytest.mark.parametrize("workers", [0, 2])
def test_the_training_loader_follows_the_plan(prepared, workers):
    rows = rows_of(10)
    config = prepared(split_of(rows), data__num_workers=workers, training__epochs=2)
    data = dataset.open_prepared_data(config)
    seen = []
    for rank in range(2):
        plan = loader_module.plan_batches(config.training, data.train, 2)
        loader = loader_module.training_loader(
            data.train, plan, rank, range(1, plan.total_updates), config.data.num_workers
        )
        batches = list(loader_module.iterate_batches(loader))
        assert len(batches) == len(loader) == 4 * plan.micro_batches
        seen.append([batch["input_ids"].tolist() for batch in batches])
    # From the second update on, both ranks' blocks are the line of the plan.
    merged = [row for update in zip(*seen, strict=True) for share in update for row in share]
    line = BatchPlan.of(config.training, 10, BLOCK, 0, 1).block_indices(range(4, 20))
    assert merged == rows[line].tolist()


@pytest.mark.parametrize(("eval_blocks", "expected"), [(None, 11), (4, 4), (99, 11)])
def test_validation_blocks_are_shared_out_once_each(prepared, eval_blocks, expected):
    rows = rows_of(11)
    config = prepared(split_of(rows_of(4)), split_of(rows), training__eval_blocks=eval_blocks)
    data = dataset.open_prepared_data(config)
    plan = loader_module.plan_batches(config.training, data.train, 3)
    seen = [
        row
        for rank in range(3)
        for batch in loader_module.validation_loader(
            data.validation, plan, rank, config.training.eval_blocks, config.data.num_workers
        )
        for row in batch["input_ids"].tolist()
    ]
    assert len(seen) == len({tuple(row) for row in seen}) == expected


def test_exact_sums_validate_the_same_batches_on_any_number_of_ranks(prepared):
    config = prepared(split_of(rows_of(40)), split_of(rows_of(11)), training__global_batch_size=8)
    data = dataset.open_prepared_data(config)
    dealt = []
    for ranks in range(1, 5):
        plan = loader_module.plan_batches(config.training, data.train, ranks, exact=True)
        assert plan.cuts_alike
        loaders = [loader_module.validation_loader(data.validation, plan, rank, 7) for rank in range(ranks)]
        batches = [batch["input_ids"].tolist() for loader in loaders for batch in loader]
        dealt.append(sorted(batches))
    assert sum(map(len, dealt[0])) == 7 and all(batches == dealt[0] for batches in dealt)


def test_more_ranks_than_validation_blocks(prepared):
    config = prepared(split_of(rows_of(4)), split_of(rows_of(1)))
    data = dataset.open_prepared_data(config)
    plan = loader_module.plan_batches(config.training, data.train, 2)
    assert list(loader_module.validation_loader(data.validation, plan, 1)) == []


def test_get_dataloaders_end_with_max_updates(prepared):
    config = prepared(split_of(rows_of(40)), training__max_updates=3)
    train, validation = loader_module.get_dataloaders(config)
    assert sum(len(batch["input_ids"]) for batch in train) == 12
    assert sum(len(batch["input_ids"]) for batch in validation) == 4


KILLED_RANK = """
import sys, time
from horovod_transformer.config import load_config
from horovod_transformer.data.loader import get_dataloaders
train, _ = get_dataloaders(load_config(sys.argv[1]), 0, 1)
batches = iter(train)
next(batches)
print(*(worker.pid for worker in train._iterator._workers), flush=True)
time.sleep(3600)
"""


@pytest.mark.slow
def test_loader_processes_die_with_a_killed_rank(prepared, tmp_path, root):
    config = prepared(split_of(rows_of(400)), data__num_workers=2)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    command = [sys.executable, "-c", KILLED_RANK, str(tmp_path / "config.yaml")]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as rank:
        loaders = [psutil.Process(int(pid)) for pid in rank.stdout.readline().split()]
        assert len(loaders) == 2 and all(loader.ppid() == rank.pid for loader in loaders), (
            "forked by the rank"
        )
        rank.kill()
    _, alive = psutil.wait_procs(loaders, timeout=60)
    assert not alive


@pytest.mark.parametrize(
    ("device", "gpus", "pinned"), [("auto", True, True), ("cpu", True, False), ("auto", False, False)]
)
def test_a_run_on_cpus_leaves_the_gpu_alone(prepared, monkeypatch, device, gpus, pinned):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    config = prepared(split_of(rows_of(9)), training__device=device)
    assert [loader._pin_memory for loader in loader_module.get_dataloaders(config, 0, 1)] == [pinned] * 2


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_processes_are_those_of_none(prepared, workers):
    config = prepared(split_of(rows_of(9)), data__num_workers=workers, training__epochs=2)
    manifest = {"splits": {"train": {"padding": 2}, "validation": {"padding": 0}}}
    (Path(config.data.data_dir) / "manifest.json").write_text(json.dumps(manifest))
    data = dataset.open_prepared_data(config)
    # The last block twice, among others, and an empty batch.
    loader = loader_module.BlockLoader(data.train, [[8, 1, 8], [], [0]], workers)
    batches = list(loader)
    for batch, indices in zip(batches, ([8, 1, 8], [], [0]), strict=True):
        wanted = data.train.__getitems__(indices)
        assert all(torch.equal(batch[key], wanted[key]) for key in ("input_ids", "labels"))
        assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert batches[0]["labels"][:, -1].tolist() == [-100, int(rows_of(9)[1, -1]), -100]
    assert batches[1]["labels"].tolist() == [[-100] * BLOCK]
