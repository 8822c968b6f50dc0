"""What `train` loads, for start-up is seconds that every rank of every run pays; and what it hands on."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from horovod_transformer import distributed
from horovod_transformer.checkpoint.format import load_checkpoint
from horovod_transformer.commands import train
from horovod_transformer.config import load_config
from horovod_transformer.errors import UserError
from horovod_transformer.model.size import flops_per_update
from horovod_transformer.system.signals import handling
from tests.conftest import PATIENCE_S
from tests.distributed.conftest import BASE, write_corpus

# Each takes a quarter of a second or more, and a run on CPUs needs none.
UNNEEDED = ["datasets", "matplotlib", "pandas", "torch._dynamo"]


@pytest.fixture
def tiny_run(tmp_path):
    """Arguments of a run that lies in `tmp_path`."""
    config = tmp_path / "config.yaml"
    values = {**BASE, "data": {"data_dir": str(write_corpus(tmp_path / "data")), "num_workers": 0}}
    config.write_text(yaml.safe_dump(values))
    return ["--config", str(config), "--output_dir", str(tmp_path)]


def test_a_whole_run_loads_nothing_that_it_does_not_need(run_python, tiny_run):
    program = (
        "import sys; from src.train import main; code = main(sys.argv[1:]); "
        f"print('loaded', code, [name for name in {UNNEEDED} if name in sys.modules])"
    )
    run = [*tiny_run, "--training.max_updates", "6"]
    run += ["--training.optimizer", "muon", "--training.warmup_updates", "1"]
    run += ["--model.gradient_checkpointing", "true"]  # torch's own loads torch._dynamo
    for resume in ([], ["--resume", "auto", "--training.max_updates", "8"]):
        done = run_python("-c", program, *run, *resume)
        assert done.stdout.splitlines()[-1] == "loaded 0 []", done.stdout + done.stderr


def test_horovod_is_told_what_an_update_costs(monkeypatch, root):
    """Without it ranks of long updates would look for each other too often."""
    told = {}

    def setup_horovod(**arguments):
        told.update(arguments)
        raise UserError("enough")

    monkeypatch.setattr(distributed, "setup_horovod", setup_horovod)
    config = str(root / "configs/quickstart.yaml")
    with pytest.raises(UserError, match="enough"):
        train.main(["--config", config, "--training.global_batch_size", "64"])
    resolved = load_config(config, {"training.global_batch_size": "64"})
    expected = flops_per_update(resolved.model, resolved.training, 1)
    assert told["flops_per_update"] == expected > 0


def test_a_page_that_fails_does_not_change_the_exit_code(run_python, tiny_run):
    """A job that is to be started again must not end as if it had failed."""
    program = (
        "import sys; from horovod_transformer.reports import runs; from src.train import main; "
        "runs.run_page = lambda runs: 1 / 0; sys.exit(main(sys.argv[1:]))"
    )
    done = run_python("-c", program, *tiny_run, "--training.max_updates", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no report: ZeroDivisionError: division by zero" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("stopped", ["SIGTERM", "SIGHUP", None])
def test_a_run_outlives_those_who_watch_it(root, tiny_run, tmp_path, stopped):
    """Ctrl-C in `train | tee log`, or a closed terminal, ends `tee`, too; the run has something to save."""
    updates = "100000" if stopped else "30"
    words = [*tiny_run, "--training.max_updates", updates, "--training.epochs", "100000", "--run_name", "run"]
    words += ["--training.eval_interval", "5", "--training.save_interval", "1000000"]
    # Buffered as usual: what cannot be written must not be tried again at the end.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with handling([signal.SIGHUP], signal.SIG_DFL):  # also if all tests run under nohup
        run = subprocess.Popen(
            [sys.executable, "-m", "src.train", *words], cwd=root, env=environment, **pipes
        )
    try:
        assert b"run run: " in run.stdout.readline()
        run.stdout.close()
        run.stderr.close()
        table = tmp_path / "runs" / "structured" / "run" / "val.csv"
        if stopped:
            end = time.monotonic() + PATIENCE_S
            while not (table.exists() and len(table.read_text().splitlines()) > 3):
                assert time.monotonic() < end and run.poll() is None
                time.sleep(0.02)
            run.send_signal(getattr(signal, stopped))
        assert run.wait(PATIENCE_S) == (75 if stopped else 0)
    finally:
        run.kill()
        run.wait()
    saved = load_checkpoint(tmp_path / "checkpoints" / "last.pt")["progress"]["update"]
    rows = list(csv.DictReader(table.with_name("train.csv").open()))
    assert int(rows[-1]["update"]) == saved
    assert saved > 10 if stopped else saved == 30
    assert table.with_name("report.html").is_file()


def test_the_tables_folder_is_no_name_for_a_run(tiny_run):
    with pytest.raises(UserError, match="--run_name structured: that is the folder of all runs' tables"):
        train.main([*tiny_run, "--run_name", "structured"])


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "../up", "a/../../up", "/tmp/elsewhere", "a/", "a//b", "a/.", ".hidden", "a\nb"],
)
def test_a_runs_name_stays_below_runs(tiny_run, tmp_path, name):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="^--run_name .*: should name a folder below runs/") as error:
        train.main([*tiny_run, "--run_name", name])
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_no_part_of_the_tables_folder_is_a_name_for_a_run(tiny_run):
    with pytest.raises(UserError, match="--run_name structured/x: that is the folder of all runs' tables"):
        train.main([*tiny_run, "--run_name", "structured/x"])


@pytest.mark.parametrize("option", ["resume", "init_from", "output_dir"])
@pytest.mark.parametrize("value", ["", " "])
def test_a_variable_that_is_not_set_is_a_mistake(tiny_run, tmp_path, option, value):
    """`--resume "$NEWEST"` must not start afresh."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"^--{option}: is empty; leave it out, or say what it should be$"):
        train.main([*tiny_run, f"--{option}", value])
    assert sorted(tmp_path.rglob("*")) == before
