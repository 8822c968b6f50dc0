"""Results that are read one update late change nothing; tried on a CPU, where a GPU's part is played."""

from __future__ import annotations

import csv
import os
import signal

import pytest
import torch

from horovod_transformer.checkpoint.format import load_checkpoint
from horovod_transformer.config import config_from_dict
from horovod_transformer.errors import UserError
from horovod_transformer.training.metrics.tables import CLOCK_COLUMNS
from horovod_transformer.training.resume import StartRequest
from horovod_transformer.training.trainer import Trainer
from tests.distributed.conftest import make_config, write_corpus
from tests.training.metrics.fake_device import fake_reader


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "v1")


def train(corpus, folder, late, bad=(), stop_at=None, resume=None, **dotted):
    """Train in this process; the gradients of the `bad` updates are not finite; returns what is left."""
    base = {"training__max_updates": 14, "training__save_interval": 5, "training__sample_interval": None}
    config = config_from_dict(make_config(corpus, **{**base, **dotted}), "test").with_paths_in(folder)
    trainer = Trainer(config, StartRequest(resume, None, "run"))
    try:
        if late:
            trainer.step.defers_results, trainer.step._reader = True, fake_reader()

        def spoil(gradient):
            if trainer.state.update == stop_at:
                os.kill(os.getpid(), signal.SIGUSR1)
            return gradient * float("nan") if trainer.state.update in bad else gradient

        trainer.model.final_norm.bias.register_hook(spoil)
        outcome = trainer.train()
    finally:
        trainer.close()
    tables = {}
    for name in ("train.csv", "val.csv"):
        with open(folder / "runs" / "structured" / "run" / name, newline="") as file:
            tables[name] = [
                {k: v for k, v in r.items() if k not in CLOCK_COLUMNS} for r in csv.DictReader(file)
            ]
    contents = load_checkpoint(folder / "checkpoints" / "last.pt")
    return outcome, tables, {key: contents[key] for key in ("model", "optimizer", "progress")}


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_curve_is_the_same_to_the_bit(corpus, tmp_path, optimizer):
    # Skipped are the first, one before a checkpoint and one before a validation.
    settings = {"bad": (0, 4, 8, 9), "training__optimizer": optimizer, "training__eval_interval": 4}
    (_, tables, state), (_, late_tables, late_state) = (
        train(corpus, tmp_path / str(late), late, **settings) for late in (False, True)
    )
    assert late_tables == tables and len(tables["train.csv"]) == 14
    assert [row["skipped_updates"] for row in tables["train.csv"]][::4] == ["1", "2", "3", "4"]
    assert late_state.pop("progress") == (progress := state.pop("progress"))
    assert_same(late_state, state)
    assert progress["skipped_updates"] == 4


@pytest.mark.parametrize("late", [False, True])
def test_divergence_ends_the_run_at_the_same_update(corpus, tmp_path, late):
    with pytest.raises(UserError, match="of 3 updates in a row, up to update 7, were not finite"):
        train(
            corpus, tmp_path, late, bad=(4, 5, 6), training__max_skipped_updates=3, training__save_interval=50
        )


@pytest.mark.parametrize("stop_at", [3, 4, 7])
def test_a_stopped_run_resumes_to_the_bit(corpus, tmp_path, stop_at):
    straight = train(corpus, tmp_path / "straight", False, bad=(5, 8))
    folder = tmp_path / "stopped"
    outcome, _, _ = train(corpus, folder, True, bad=(5, 8), stop_at=stop_at)
    # The request goes out with the next update, and is read one later.
    assert stop_at + 2 <= outcome["update"] <= stop_at + 3 and not outcome["finished"]
    _, tables, state = train(corpus, folder, True, bad=(5, 8), resume="auto")
    assert tables["train.csv"] == straight[1]["train.csv"]
    assert_same(state["model"], straight[2]["model"])
    assert_same(state["optimizer"], straight[2]["optimizer"])


def test_two_copies_may_be_unread_and_no_third():
    reader = fake_reader(2)
    numbers = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.float64)
    first, second = reader.begin(numbers[0]), reader.begin(numbers[1])
    with pytest.raises(AssertionError, match="never read"):
        reader.begin(numbers[2])
    assert first() == [1.0, 2.0]
    assert second() == [3.0, 4.0]
    assert [event.waited for _, event in reader._buffers] == [1, 1]
    assert reader.begin(numbers[2])() == [5.0, 6.0]
