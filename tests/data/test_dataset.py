"""Prepared blocks are opened and checked; bad ones become one line."""

from __future__ import annotations

import json
import pickle

import datasets
import numpy as np
import pytest
import torch

from horovod_transformer.config import config_from_dict
from horovod_transformer.data import dataset
from horovod_transformer.data.dataset import BlockDataset
from horovod_transformer.data.stored_split import StoredSplit
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


def blocks_of(split, padding=0, name="train"):
    return BlockDataset(StoredSplit(split.data.table, []), padding, VOCAB, name)


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


@pytest.mark.parametrize("fixed", [True, False])
def test_batches_hold_the_rows_asked_for(fixed):
    rows = rows_of(7)
    batch = blocks_of(split_of(rows, fixed)).__getitems__([5, 0, 5])
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert batch["input_ids"].tolist() == rows[[5, 0, 5]].tolist()
    assert torch.equal(batch["labels"], batch["input_ids"])


def test_rows_are_found_across_the_chunks_of_a_table():
    parts = [split_of(rows_of(9)[a:b]) for a, b in ((0, 2), (2, 3), (3, 9))]
    whole = blocks_of(datasets.concatenate_datasets(parts), 2)
    assert len(whole) == 9 and len(whole._arrays) > 1
    assert whole.__getitems__(list(range(9)))["input_ids"].tolist() == rows_of(9).tolist()


def test_filling_is_no_label_in_the_last_block_alone():
    blocks = blocks_of(split_of(rows_of(4)), 2)
    batch = blocks.__getitems__([3, 2])
    assert batch["labels"][0].tolist() == [*rows_of(4)[3][:4], -100, -100]
    assert batch["labels"][1].tolist() == list(rows_of(4)[2])
    assert batch["input_ids"].tolist() == rows_of(4)[[3, 2]].tolist()
    assert blocks[3]["labels"][-1] == -100


def test_nothing_asked_for_is_a_block_without_labels():
    batch = blocks_of(split_of(rows_of(4)), 2).__getitems__([])
    assert batch["input_ids"].shape == (1, BLOCK)
    assert batch["labels"].tolist() == [[-100] * BLOCK]


def test_a_pickled_dataset_reads_the_same(prepared):
    data = dataset.open_prepared_data(prepared(split_of(rows_of(500))))
    sent = pickle.dumps(data.train)
    again = pickle.loads(sent)
    assert again.__getitems__([499])["input_ids"].tolist() == [list(rows_of(500)[499])]
    assert len(sent) < rows_of(500).nbytes


def test_blocks_of_different_lengths_are_refused():
    uneven = [split_of(rows, fixed=False) for rows in ([[1, 2, 3], [4, 5, 6, 7, 8]], [[1, 2], [3, 4, 5]])]
    uneven.append(datasets.concatenate_datasets([split_of([[1, 2]], False), split_of([[1, 2, 3]], False)]))
    for split in uneven:
        with pytest.raises(UserError, match=r"^here: .*length"):
            blocks_of(split, name="here")


def test_a_negative_token_is_named():
    split = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3], [4, -5, 49]]})
    with pytest.raises(UserError, match="row 1: token id -5 is outside"):
        blocks_of(split).__getitems__([0, 1])


def test_missing_data_says_how_to_make_it(tmp_path):
    with pytest.raises(UserError, match=r"no prepared data here; run `horovod-transformer prepare"):
        dataset.load_preprocessed_data(tmp_path / "none")


def test_damaged_folders_are_one_line(prepared, tmp_path):
    config = prepared(split_of(rows_of(4)))
    (table,) = (tmp_path / "data" / "train").glob("*.arrow")
    table.write_bytes(table.read_bytes()[:100])
    with pytest.raises(UserError, match="is not readable as prepared data") as told:
        dataset.open_prepared_data(config)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_damaged_manifests_are_one_line(prepared, text):
    with pytest.raises(UserError, match=r"manifest.json: .*prepare the data again"):
        dataset.open_prepared_data(prepared(split_of(rows_of(4)), manifest=text))


def test_data_without_a_split_is_refused(tmp_path):
    datasets.DatasetDict({"train": split_of(rows_of(4))}).save_to_disk(str(tmp_path / "one"))
    with pytest.raises(UserError, match="has no split `validation`"):
        dataset.load_preprocessed_data(tmp_path / "one")


def test_an_empty_split_is_refused(tmp_path):
    # As saved, a split without rows has no file, which `datasets` cannot open.
    splits = {"train": split_of(rows_of(4)), "validation": split_of(rows_of(4)).select([])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(UserError, match="prepare it again"):
        dataset.load_preprocessed_data(tmp_path / "none")


def test_blocks_longer_than_the_model_are_refused(prepared):
    with pytest.raises(UserError, match=r"blocks of 6 tokens do not fit into model.max_seq_len = 4"):
        dataset.open_prepared_data(prepared(split_of(rows_of(4)), model__max_seq_len=4))


def test_padding_comes_from_the_manifest(prepared):
    splits = {"train": {"padding": 3, "tokens": 21, "bytes": 84}, "validation": {"padding": 0}}
    config = prepared(split_of(rows_of(4)), manifest=json.dumps({"splits": splits}))
    data = dataset.open_prepared_data(config)
    assert (data.train.padding, data.validation.padding) == (3, 0)


@pytest.mark.parametrize(
    ("padding", "said"),
    [(None, "does not say"), ("3", "does not say"), (-1, "does not say"), (BLOCK, "6 of 6 tokens")],
)
def test_padding_that_is_not_known_is_not_taken_for_none(prepared, padding, said):
    splits = {"train": {"padding": 0}, "validation": {"padding": padding}}
    with pytest.raises(UserError, match=said):
        dataset.open_prepared_data(prepared(split_of(rows_of(4)), manifest=json.dumps({"splits": splits})))
    with pytest.raises(UserError, match="does not say .* `train`"):
        dataset.open_prepared_data(prepared(split_of(rows_of(4)), manifest='{"format_version": 1}'))


def test_a_manifest_of_a_newer_program_is_refused(prepared):
    with pytest.raises(UserError, match=r"format version 2, this program reads 1 .*update the program"):
        dataset.open_prepared_data(prepared(split_of(rows_of(4)), manifest='{"format_version": 2}'))


def test_home_is_expanded_in_data_dir_too(prepared, tmp_path, monkeypatch):
    config = prepared(split_of(rows_of(4))).with_overrides({"data.data_dir": "~/data"})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(dataset.open_prepared_data(config).train) == 4
    assert len(dataset.load_preprocessed_data("~/data")[0]) == 4
