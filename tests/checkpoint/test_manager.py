"""The checkpoints of one run: written in the background, pruned, archived, found again."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from horovod_transformer.checkpoint.format import load_checkpoint, save_checkpoint
from horovod_transformer.checkpoint.manager import CheckpointManager
from horovod_transformer.errors import UserError


def contents_of(update=0, size=4):
    return {
        "model": {"weight": torch.full((size,), float(update)), "half": torch.ones(2, dtype=torch.bfloat16)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "avg": torch.arange(6.0).reshape(2, 3).t()}}},
        "scheduler": {"decay_updates": 10},
        "progress": {"update": update, "best": math.inf, "nothing": torch.zeros(0), "pair": (1, 2.5)},
        "config": {"model": {"d_model": 4}, "data": {"source": ["né", None, True]}},
        "tokenizer": None,
    }


def test_a_place_that_cannot_be_a_folder_fails_as_an_oserror(tmp_path):
    (tmp_path / "file").write_text("")
    folder = CheckpointManager(tmp_path / "file" / "checkpoints")
    folder.save(contents_of(), 1, periodic=True, best=False)
    assert isinstance(folder.wait(), OSError)


def names(folder):
    return sorted(path.name for path in Path(folder).glob("*.pt"))


def test_the_newest_few_and_the_chosen_ones_are_kept(tmp_path):
    folder = CheckpointManager(tmp_path, keep=2, keep_every=4)
    for update in range(1, 12):
        folder.save(contents_of(update), update, periodic=True, best=update == 3)
    assert folder.wait() is None
    kept = [f"update_{update:08d}.pt" for update in (4, 8, 10, 11)]
    assert names(tmp_path) == ["best_model.pt", "last.pt", *kept]
    # The best one outlives its numbered name.
    assert load_checkpoint(tmp_path / "best_model.pt")["progress"]["update"] == 3
    assert load_checkpoint(tmp_path / "last.pt")["progress"]["update"] == 11
    assert os.path.samefile(tmp_path / "last.pt", tmp_path / kept[-1])


def test_a_best_model_between_saves_touches_nothing_else(tmp_path):
    folder = CheckpointManager(tmp_path)
    folder.save(contents_of(5), 5, periodic=True, best=False)
    folder.save(contents_of(7), 7, periodic=False, best=True)
    folder.wait()
    assert names(tmp_path) == ["best_model.pt", "last.pt", "update_00000005.pt"]
    assert load_checkpoint(tmp_path / "best_model.pt")["progress"]["update"] == 7


def test_training_may_continue_while_a_checkpoint_is_written(tmp_path):
    folder, contents = CheckpointManager(tmp_path), contents_of(1, size=3_000_000)
    folder.save(contents, 1, periodic=True, best=False)
    contents["model"]["weight"].fill_(-1.0)
    assert folder.wait() is None
    assert set(load_checkpoint(tmp_path / "last.pt")["model"]["weight"].tolist()) == {1.0}


@pytest.fixture
def filled(tmp_path):
    folder = CheckpointManager(tmp_path, keep=3)
    for update in (1, 2, 3):
        folder.save(contents_of(update), update, periodic=True, best=update == 1)
    folder.wait()
    return tmp_path


def test_the_newest_good_one_is_found_past_broken_ones(filled):
    path, contents, complaints = CheckpointManager(filled).newest_good()
    assert (path.name, contents["progress"]["update"], complaints) == ("update_00000003.pt", 3, [])
    # last.pt is the same file under another name: both break.
    with open(filled / "last.pt", "r+b") as file:
        file.truncate(900)
    path, contents, complaints = CheckpointManager(filled).newest_good()
    assert (path.name, contents["progress"]["update"]) == ("update_00000002.pt", 2)
    assert len(complaints) == 2 and "update_00000003.pt" in complaints[0]
    for update in (2, 1):
        (filled / f"update_{update:08d}.pt").unlink()
    (filled / "update_00000002.pt").write_bytes(b"junk")
    path, contents, complaints = CheckpointManager(filled).newest_good()
    # best_model.pt is the last resort.
    assert (path.name, contents["progress"]["update"], len(complaints)) == ("best_model.pt", 1, 3)
    (filled / "best_model.pt").write_bytes(b"junk")
    with pytest.raises(UserError, match="no checkpoint here is good; the newest: .*update_00000003.pt"):
        CheckpointManager(filled).newest_good()


def test_an_empty_folder_has_none(tmp_path):
    (tmp_path / "update_x.pt").write_text("")
    assert CheckpointManager(tmp_path).newest_good() is None
    assert CheckpointManager(tmp_path / "missing").newest_good() is None


def test_an_earlier_runs_files_are_archived_again_and_again(filled):
    for number in range(3):
        archive = CheckpointManager(filled).archive()
        assert names(filled) == []
        assert "update_00000003.pt" in names(archive)
        assert len([path for path in filled.iterdir() if path.is_dir()]) == number + 1
        save_checkpoint(filled / "update_00000003.pt", contents_of(3))
    for path in filled.glob("*.pt"):
        path.unlink()
    assert CheckpointManager(filled).archive() is None
