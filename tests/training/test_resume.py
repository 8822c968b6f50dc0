"""What a run starts from: nothing, another run's weights, or its own checkpoint."""

from __future__ import annotations

import math

import pytest
import torch

from horovod_transformer.checkpoint.format import save_checkpoint
from horovod_transformer.checkpoint.manager import CheckpointManager
from horovod_transformer.config import Config
from horovod_transformer.errors import UserError
from horovod_transformer.training.resume import StartRequest, TrainState, find_start
from tests.conftest import TINY

IDENTITY = {"seed": 7, "global_batch_size": 8, "data": "abc"}


@pytest.fixture
def folder(tmp_path):
    """The checkpoints of a run that stopped after update 6."""
    progress = TrainState("first", IDENTITY, update=6, tokens=60, best_validation_loss=2.5, validated_at=5)
    names = ((4, "update_00000004"), (6, "update_00000006"), (6, "last"), (5, "best_model"))
    for update, name in names:
        contents = {
            "model": {"w": torch.full((2,), float(update))},
            "optimizer": {"state": {}},
            "scheduler": {"decay_updates": 20},
            "progress": {**progress.state_dict(), "update": update},
            "config": Config(model=TINY).to_dict(),
            "tokenizer": None,
        }
        save_checkpoint(tmp_path / "checkpoints" / f"{name}.pt", contents)
    return CheckpointManager(tmp_path / "checkpoints")


def start(folder, resume=None, init_from=None, name=None, model=TINY, decay=20, tokenizer=None, **identity):
    fresh = TrainState(name or "20260101-000000", {**IDENTITY, **identity})
    return find_start(fresh, folder, model, tokenizer, decay, StartRequest(resume, init_from, name))


def test_auto_resumes_everything(folder):
    found = start(folder, "auto")
    assert found.model["w"].tolist() == [6, 6]
    assert found.optimizer == {"state": {}}
    assert found.state == TrainState(
        "first", IDENTITY, update=6, tokens=60, best_validation_loss=2.5, validated_at=5
    )
    assert found.notes == [f"resuming after update 6 from {folder.folder / 'update_00000006.pt'}"]
    assert len(list(folder.folder.glob("*.pt"))) == 4


def test_a_path_is_taken_at_its_word_and_a_name_wins(folder):
    found = start(folder, str(folder.folder / "update_00000004.pt"), name="second")
    assert (found.state.update, found.state.run_name) == (4, "second")


def test_auto_starts_afresh_where_nothing_is(tmp_path):
    found = start(CheckpointManager(tmp_path / "none"), "auto")
    assert (found.model, found.optimizer, found.state.update) == (None, None, 0)
    assert math.isinf(found.state.best_validation_loss)
    assert "starting afresh" in found.notes[0]


def test_auto_tells_of_what_it_passed_over(folder):
    (folder.folder / "update_00000006.pt").unlink()
    (folder.folder / "update_00000007.pt").write_bytes(b"junk")
    found = start(folder, "auto")
    assert found.state.update == 6
    assert found.notes[0].startswith("passed over a broken checkpoint: ")


def test_a_fresh_run_moves_the_earlier_one_aside(folder):
    leftover = folder.folder / ".last.pt.partial-77"
    leftover.write_bytes(b"half")
    found = start(folder)
    assert (found.model, found.state.update) == (None, 0)
    (aside,) = [path for path in folder.folder.iterdir() if path.is_dir()]
    assert list(folder.folder.iterdir()) == [aside]
    assert str(aside) in found.notes[0]
    assert len(list(aside.glob("*.pt"))) == 4


def test_init_from_takes_the_weights_alone(folder):
    found = start(folder, init_from=str(folder.folder / "last.pt"), seed=8, data="other")
    assert found.model["w"].tolist() == [6, 6]
    assert found.optimizer is None
    assert (found.state.update, found.state.data_fingerprint["seed"]) == (0, 8)


def test_another_schedule_is_pointed_out(folder):
    assert start(folder, "auto", decay=50).notes[-1] == (
        "the learning rate schedule now ends at update 50, no longer at 20"
    )


@pytest.mark.parametrize(("key", "value"), [("seed", 8), ("global_batch_size", 16), ("data", "other")])
def test_what_must_not_change_in_mid_run(folder, key, value):
    with pytest.raises(UserError, match=f"was trained with {key} = .*, now it is {value}: .*--init_from"):
        start(folder, "auto", **{key: value})


@pytest.mark.parametrize("key", ["vocab_size", "d_model", "n_layers", "n_heads", "d_ff"])
@pytest.mark.parametrize("way", ["resume", "init_from"])
def test_the_weights_must_fit(folder, key, way):
    model = TINY.model_copy(update={key: 1000})
    with pytest.raises(
        UserError, match=rf"its model has {key} = \d+, but the config says model.{key} = 1000"
    ):
        start(folder, model=model, **{way: str(folder.folder / "last.pt")})


def test_a_longer_context_fits_the_same_weights(folder):
    assert start(folder, "auto", model=TINY.model_copy(update={"max_seq_len": 64})).state.update == 6


def test_a_missing_checkpoint_is_a_mistake(folder):
    with pytest.raises(UserError, match="nowhere.pt: no such checkpoint file"):
        start(folder, "nowhere.pt")


@pytest.mark.parametrize("broken", [{"progress": {"strange": 1}}, {"progress": None}, {"scheduler": {}}])
def test_strange_progress_is_a_mistake(folder, tmp_path, broken):
    contents = {
        "model": {},
        "optimizer": {},
        "scheduler": {"decay_updates": 1},
        "progress": TrainState("r", IDENTITY).state_dict(),
        "config": Config(model=TINY).to_dict(),
        "tokenizer": None,
    }
    save_checkpoint(tmp_path / "strange.pt", {**contents, **broken})
    with pytest.raises(UserError, match="its record of progress is not of this program's making"):
        start(folder, str(tmp_path / "strange.pt"))
