"""A start that fails before its first update leaves what an earlier run left as it was."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys

import pytest
import torch
import yaml

from horovod_transformer.commands.config_keys import config_keys
from horovod_transformer.config import config_from_dict
from horovod_transformer.errors import UserError
from horovod_transformer.training import setup, trainer
from tests.distributed.conftest import BASE


def files_of(folder):
    """Every file of a run with its time and content, but for the log, to which lines are added."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def out_of_memory(*arguments, **more):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def fails(monkeypatch, name):
    """A way to fail: what to change in the config, and what the mistake says."""
    if name == "tracker":
        monkeypatch.setitem(sys.modules, "wandb", None)
        return {"training.trackers": ["wandb"]}, "wandb is not installed"
    if name == "log folder":
        return {"paths.log_dir": "/dev/null"}, "cannot write the run's records"
    if name == "tables folder":
        return {"paths.tensorboard_dir": "/dev/null"}, "cannot write the run's records"
    if name == "compiler":
        monkeypatch.setenv("CXX", "/nonexistent")
        return {"training.compile": "on"}, "training.compile = on: there is no /nonexistent"
    monkeypatch.setattr(setup.UpdateStep, "start", out_of_memory)
    return {}, "memory is too small"


@pytest.mark.parametrize("name", ["tracker", "log folder", "tables folder", "compiler", "first update"])
@pytest.mark.parametrize("resume", [None, "update_00000002.pt"])
def test_nothing_is_moved(train, tmp_path, monkeypatch, name, resume):
    train(run_name="run")
    before = files_of(tmp_path)
    with monkeypatch.context() as broken:
        changes, told = fails(broken, name)
        chosen = resume and tmp_path / "runs/run/checkpoints" / resume
        with pytest.raises(UserError, match=told):
            train(changes, run_name="run", resume_checkpoint=chosen)
    assert files_of(tmp_path) == before
    outcome = train({"training.max_updates": 6}, resume_checkpoint="auto")
    assert (outcome["run_name"], outcome["update"]) == ("run", 6)


def test_a_start_that_trains_archives_what_was_there(train, tmp_path, capsys):
    train(run_name="run")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("runs/run/checkpoints/*.pt")}
    train(run_name="run")
    (archive,) = tmp_path.glob("runs/run.previous-*")
    assert {path.name: path.read_bytes() for path in archive.glob("checkpoints/*.pt")} == before
    assert f"archived the earlier run's checkpoints in {archive}" in capsys.readouterr().out
    assert len((archive / "tables/train.csv").read_text().splitlines()) == 5
    assert len(list(archive.glob("events*"))) == 1


def test_with_a_folder_of_checkpoints_that_runs_share_it_is_archived_there(train, tmp_path):
    shared = {f"paths.{name}_dir": name for name in ("checkpoint", "log", "tensorboard")}
    train(shared, run_name="run")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("checkpoint/*.pt")}
    train(shared, run_name="run")
    (archive,) = tmp_path.glob("checkpoint/previous-*")
    assert {path.name: path.read_bytes() for path in archive.iterdir()} == before
    (tables,) = tmp_path.glob("tensorboard/structured/run.previous-*")
    assert len((tables / "train.csv").read_text().splitlines()) == 5
    assert len(list(tmp_path.glob("tensorboard/run.previous-*/events*"))) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "log", "tensorboard"]


def test_an_older_checkpoint_is_resumed_though_no_update_is_left(train, tmp_path):
    train(run_name="run")
    older = tmp_path / "runs/run/checkpoints/update_00000002.pt"
    assert train({"training.max_updates": 2}, resume_checkpoint=older)["update"] == 2
    assert sorted(path.name for path in older.parent.glob("update_*.pt")) == [older.name]


@pytest.mark.parametrize(("interval", "told"), [(1, "then --resume .*/last.pt$"), (100, "then start anew")])
def test_advice_after_a_divergence_can_be_followed(train, tmp_path, interval, told):
    changes = {"training.learning_rate": 1e30, "training.warmup_updates": 1, "training.max_updates": 20}
    changes |= {"training.max_skipped_updates": 3, "training.save_interval": interval}
    with pytest.raises(UserError, match=f"training diverged: .*{told}"):
        train(changes)
    assert (tmp_path / "checkpoints" / "last.pt").is_file() == (interval == 1)


def test_weights_that_became_nan_in_the_last_update_are_no_finished_run(train, tmp_path):
    changes = {"training.weight_decay": 1e308, "training.max_updates": 2, "training.save_interval": 1}
    with pytest.raises(UserError, match="training diverged: the validation loss after update 2 is nan"):
        train(changes)
    assert not (tmp_path / "checkpoints" / "best_model.pt").exists()


def test_a_start_that_fails_late_gives_its_folders_and_its_log_back(train, tmp_path, monkeypatch):
    """In a notebook the next run follows in the same process."""
    with monkeypatch.context() as broken:
        broken.setattr(trainer, "SampleWriter", out_of_memory)
        with pytest.raises(UserError, match="the GPU's memory is too small for training.per_gpu_batch_size"):
            train(run_name="next")
    assert not logging.getLogger("horovod_transformer.training").handlers
    assert not list(tmp_path.rglob("*.*"))
    train(run_name="next")
    log = (tmp_path / "logs" / "train_rank0.log").read_text()
    assert log.count("run next: ") == 1


def raising(error):
    def fails(*arguments, **more):
        raise error

    return fails


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),  # a worker of the loader
    ],
    ids=repr,
)
@pytest.mark.parametrize("place", ["build_model", "UpdateStep"])
def test_a_machine_without_memory_is_one_line(train, monkeypatch, error, place):
    monkeypatch.setattr(setup, place, raising(error))
    with pytest.raises(
        UserError, match="this machine's memory is too small for .*, or make the model smaller$"
    ):
        train()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EAGAIN])
def test_a_limit_of_the_system_is_one_line(train, monkeypatch, number):
    monkeypatch.setattr(setup, "UpdateStep", raising(OSError(number, os.strerror(number))))
    with pytest.raises(
        UserError, match="the system allows no more open files or processes .*data.num_workers = 0"
    ):
        train()


def test_too_few_open_files_is_one_line(corpus, tmp_path, run_python):
    """Whichever is one too many: a worker of the loader takes some, a table one."""
    program = ["-c", "import resource, sys, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)); "]
    program[1] += "sys.argv[0] = 'src.train'; runpy.run_module('src.train', run_name='__main__')"
    values = {**BASE, "data": {"data_dir": str(corpus), "num_workers": 8}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    done = run_python(*program, "--config", str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path))
    assert done.returncode == 2, done.stderr
    # A half-made loader of torch's complains when it is collected, after that.
    assert re.search("^error: .*Too many open files", done.stderr, re.MULTILINE)


def test_a_bug_keeps_its_traceback(train, monkeypatch):
    monkeypatch.setattr(setup, "build_model", raising(RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        train()


def test_a_model_that_no_memory_holds_is_one_line(train):
    for changes in ({"model.d_ff": 2_000_000_000}, {"model.n_layers": 2**31 - 1}, {"model.d_model": 2**30}):
        said = r"parameters takes [\d,]+ GB, this machine has .* its context of [\d,]+ tokens"
        with pytest.raises(UserError, match=said):
            train(changes)


@pytest.mark.parametrize("key", [name for name, key in config_keys().items() if key.kind.startswith("int")])
def test_a_whole_number_of_any_size_is_read_or_refused_in_a_line(key):
    for number in (2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**400):
        try:
            config = config_from_dict({}, "test").with_overrides({key: str(number)})
        except UserError as error:
            # Rules across keys name them without their section.
            named = (key, key.rpartition(".")[2], "d_model", "global_batch_size")
            assert any(name in str(error) for name in named)
            assert "\n" not in str(error)
        else:
            section, _, name = key.partition(".")
            assert number < 2**63 and config.to_dict()[section][name] == number


def test_home_is_known_in_paths_to_checkpoints(train, tmp_path, monkeypatch):
    train(run_name="run")
    monkeypatch.setenv("HOME", str(tmp_path / "runs/run/checkpoints"))
    older = "~/update_00000002.pt"
    assert train({"training.max_updates": 3}, resume_checkpoint=older)["update"] == 3
    assert train({"training.max_updates": 1}, init_from=older, run_name="other")["update"] == 1
    with pytest.raises(UserError, match="--resume"):
        train(resume_checkpoint="~no-such-user/last.pt")
