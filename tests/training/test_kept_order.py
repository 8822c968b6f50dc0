"""A resumed run keeps the order of blocks that it began with, whatever a fresh one would take."""

from __future__ import annotations

import pytest
import torch

from horovod_transformer import distributed
from horovod_transformer.checkpoint.format import load_checkpoint, save_checkpoint
from horovod_transformer.config import config_from_dict
from horovod_transformer.data import epoch_order
from horovod_transformer.data.epoch_order import BIJECTION, TABLE
from horovod_transformer.errors import UserError
from horovod_transformer.training.run import run_distributed_training
from tests.distributed.conftest import BASE, TRAIN_BLOCKS, write_corpus

# 8 blocks an update over 53: the second half begins in the second epoch.
HALF, UPDATES = 7, 14
LIMITS = {TABLE: TRAIN_BLOCKS, BIJECTION: TRAIN_BLOCKS - 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "data")


@pytest.fixture
def train(corpus, monkeypatch):
    """Train up to an update where a fresh run would take this order; return the last checkpoint."""

    def run(folder, order, until, **arguments):
        monkeypatch.setattr(epoch_order, "TABLE_LIMIT", LIMITS[order])
        values = {**BASE, "data": {"data_dir": str(corpus), "num_workers": 0}}
        changes = {"max_updates": until, "lr_decay_updates": UPDATES, "device": "cpu", "trackers": []}
        config = config_from_dict(values, "test")
        config = config.with_overrides({f"training.{key}": value for key, value in changes.items()})
        run_distributed_training(config, 0, 1, 0, run_name="run", output_dir=folder, **arguments)
        return load_checkpoint(folder / "checkpoints" / "last.pt")

    distributed.setup_horovod(device="cpu")
    return run


@pytest.mark.parametrize("order", [TABLE, BIJECTION])
def test_a_resumed_run_keeps_its_order(train, tmp_path, order):
    straight = train(tmp_path / "straight", order, UPDATES)
    train(tmp_path / "halves", order, HALF)
    other = BIJECTION if order == TABLE else TABLE
    resumed = train(tmp_path / "halves", other, UPDATES, resume_checkpoint="auto")
    weights = [contents["model"] for contents in (straight, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert straight["progress"] == resumed["progress"]
    # The key was not there before there was a second order.
    found = straight["progress"]["identity"].get("order")
    assert found == (None if order == TABLE else BIJECTION)


def test_new_weights_are_trained_in_the_order_of_a_fresh_run(train, tmp_path):
    train(tmp_path / "one", TABLE, HALF)
    started = train(tmp_path / "two", BIJECTION, 2, init_from=tmp_path / "one/checkpoints/last.pt")
    assert started["progress"]["identity"]["order"] == BIJECTION


@pytest.mark.parametrize("strange", ["sorted", 3, None, ["table"]])
def test_an_order_that_is_not_known_is_a_mistake(train, tmp_path, strange):
    contents = train(tmp_path, TABLE, 2)
    contents["progress"]["identity"]["order"] = strange
    save_checkpoint(tmp_path / "strange.pt", contents)
    with pytest.raises(UserError, match="strange.pt: was trained with blocks in the order") as error:
        train(tmp_path, TABLE, 4, resume_checkpoint=tmp_path / "strange.pt")
    assert "\n" not in str(error.value)
