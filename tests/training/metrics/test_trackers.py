"""Weights & Biases through a stand-in for its client: what it is told, and that it cannot end a run."""

from __future__ import annotations

import sys
import types

import pytest

from horovod_transformer.checkpoint.run_paths import run_paths
from horovod_transformer.config import config_from_dict
from horovod_transformer.errors import UserError
from horovod_transformer.training.metrics.logger import MetricLogger
from horovod_transformer.training.metrics.tables import ValidationMetrics
from horovod_transformer.training.metrics.trackers import TensorBoardTracker, WandbTracker

ROW = ValidationMetrics(
    update=5, loss=2.0, perplexity=7.4, bits_per_byte=None, accuracy=0.5, tokens=9, seconds=1
)


class Client(types.ModuleType):
    """Takes down what it is called with; fails where it is told to."""

    def __init__(self, fails=()):
        super().__init__("wandb")
        self.calls, self.fails = [], fails

    def _called(self, called, /, *arguments, **options):
        self.calls.append((called, *arguments, options))
        if called in self.fails:
            raise ConnectionError(f"no {called}\nand more")
        return self

    def init(self, **options):
        return self._called("init", **options)

    def log(self, values, step):
        return self._called("log", values, step)

    def finish(self):
        return self._called("finish")


@pytest.fixture
def install(monkeypatch):
    def put(client):
        monkeypatch.setitem(sys.modules, "wandb", client)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        return client

    return put


def write(tmp_path, trackers):
    config = config_from_dict(
        {
            "training": {"trackers": trackers},
            "paths": {"log_dir": str(tmp_path / "logs"), "tensorboard_dir": str(tmp_path / "runs")},
        },
        "test",
    )
    logger = MetricLogger(run_paths(config.paths, "run"), 0, 10, config.to_dict(), trackers)
    logger.take_over()
    logger.log_validation(ROW)
    logger.log_validation(ROW)
    logger.close()
    return (tmp_path / "logs" / "train_rank0.log").read_text()


def test_it_is_told_everything_and_stays_offline(install, tmp_path):
    client = install(Client())
    write(tmp_path, ["wandb"])
    (start, *logs, end) = client.calls
    options = start[1]
    assert (options["mode"], options["id"], options["resume"]) == ("offline", "run", "allow")
    assert options["config"]["training"]["trackers"] == ["wandb"]
    values, step, _ = logs[0][1:]
    assert step == 5 and values["validation/loss"] == 2.0 and "validation/bits_per_byte" not in values
    assert len(logs) == 2 and end[0] == "finish"
    assert not list(tmp_path.glob("runs/run/events*"))  # TensorBoard was not asked for


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_broken_one_is_told_once_and_the_run_goes_on(install, tmp_path, fails):
    client = install(Client([fails]))
    log = write(tmp_path, ["tensorboard", "wandb"])
    assert log.count("wandb failed, the run goes on without it: ConnectionError: no") == 1
    assert "and more" not in log and log.count("validation loss 2.0000") == 2
    assert [call[0] for call in client.calls].count(fails) == 1
    assert list(tmp_path.glob("runs/run/events*"))


def test_it_has_to_be_installed(install, tmp_path):
    install(None)
    with pytest.raises(UserError, match="wandb is not installed; run `pip install wandb`"):
        WandbTracker(tmp_path, "run", {}, print)


def test_tensorboard_sorts_what_matters_first(monkeypatch, tmp_path):
    class Events:
        def __init__(self, *_, **__):
            self.scalars = {}

        def add_scalar(self, tag, value, update):
            self.scalars[tag] = (value, update)

        def add_text(self, *_):
            pass

    monkeypatch.setattr(TensorBoardTracker, "load", staticmethod(lambda: Events))
    monkeypatch.setattr(TensorBoardTracker, "_add_hyperparameters", lambda *_: None)
    tracker = TensorBoardTracker(tmp_path, 0, {})
    names = ("tokens_per_second", "accuracy", "learning_rate", "loss")
    tracker.log("train", {"update": 5, **{name: place for place, name in enumerate(names)}})
    tracker.log("validation", vars(ROW))
    first = [tag.partition("_")[2] for tag in sorted(tracker._events.scalars)[:4]]
    assert first == ["training_loss", "validation_loss", "learning_rate", "tokens_per_second"]
    # The names that were promised stay.
    assert (
        tracker._events.scalars["train/loss"] == tracker._events.scalars["overview/1_training_loss"] == (3, 5)
    )
    assert {"train/accuracy", "validation/loss", "validation/perplexity"} <= set(tracker._events.scalars)
