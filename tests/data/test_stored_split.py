"""What `datasets` saves is mapped as `datasets` itself would map it."""

from __future__ import annotations

import pickle

import datasets
import pytest

from horovod_transformer.data.stored_split import open_stored_splits


@pytest.fixture
def saved(tmp_path):
    rows = {"input_ids": [[row, row + 1] for row in range(10)], "title": [str(row) for row in range(10)]}
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)})
    splits["other"] = splits["train"].filter(lambda row: row["input_ids"][0] % 3 == 0)
    splits.save_to_disk(str(tmp_path / "data"), num_shards={"train": 3, "other": 1})
    return tmp_path / "data"


def test_rows_and_files_are_those_of_datasets(saved):
    theirs, ours = datasets.load_from_disk(str(saved)), open_stored_splits(saved)
    assert list(ours) == list(theirs) == ["train", "other"]
    for name, split in ours.items():
        assert split.table.to_pylist() == theirs[name].to_list()
        assert [str(file) for file in split.files] == [f["filename"] for f in theirs[name].cache_files]
    assert [len(split) for split in ours.values()] == [10, 4]
    assert len(ours["train"].files) == 3


def test_a_pickled_split_maps_its_files_again(saved):
    split = open_stored_splits(saved)["train"]
    sent = pickle.dumps(split)
    assert pickle.loads(sent).table.equals(split.table)
    split.files[2].unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(sent)
