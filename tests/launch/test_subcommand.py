"""How many processes our own commands train on, and how these are stopped."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack

import pytest
import torch

from horovod_transformer.distributed import bootstrap, usual_processes
from tests.distributed.test_launch import ENDLESS, wait_for

PROGRAM = """
import sys
from horovod_transformer.commands.command_line import run_command
from horovod_transformer.launch.subcommand import run_subcommand

def main(arguments):
    run_subcommand(int(arguments[0]), "train", arguments[1:])
    return 0

sys.exit(run_command(main))
"""


@pytest.mark.parametrize(
    ("gpus", "device", "horovod", "processes"),
    [
        (0, "auto", True, 2),
        (1, "auto", True, 1),  # two ranks on one GPU are refused
        (1, "cpu", True, 2),
        (4, "auto", True, 2),
        (4, "auto", False, 1),
    ],
)
def test_as_many_as_can_train_here(monkeypatch, gpus, device, horovod, processes):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(bootstrap, "horovod_is_installed", lambda: horovod)
    assert usual_processes(device) == processes


@pytest.mark.distributed
@pytest.mark.parametrize(("processes", "name"), [(1, "SIGTERM"), (1, "SIGINT"), (2, "SIGINT"), (2, "SIGHUP")])
def test_a_stop_is_left_to_the_training_which_saves(
    write_config, start_job, outcome_of, tmp_path, processes, name
):
    config = write_config(tmp_path / "config.yaml", **ENDLESS)
    words = ["--config", str(config), "--output_dir", str(tmp_path), "--run_name", "run"]
    table = tmp_path / "runs" / "structured" / "run" / "train.csv"
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also if all tests run under nohup
    with ExitStack() as jobs:
        jobs.callback(signal.signal, signal.SIGHUP, before)
        job = jobs.enter_context(start_job(1, "-c", PROGRAM, str(processes), *words))
        wait_for(lambda: table.exists() and len(table.read_text().splitlines()) > 3)
        if name == "SIGINT":  # a terminal tells all that it runs
            os.killpg(job.process.pid, signal.SIGINT)
        else:
            job.process.send_signal(getattr(signal, name))
        assert job.wait() == 75, job.stderr
    assert "--resume auto resumes there" in job.stdout
    (line,) = [line for line in job.stdout.splitlines() if line.startswith("resume with: ")]
    assert (" launch -np 2 -- " in line) == (processes == 2)
    assert line.endswith(" --resume auto --run_name run") and line.count("--run_name") == 1
    assert job.stderr.splitlines()[-1] == "`train` was stopped" and "Traceback" not in job.stderr
    outcome = outcome_of(tmp_path)
    assert int(outcome.rows[-1]["update"]) == outcome.state["progress"]["update"] < 5000


def test_a_verb_that_fails_says_so(run_python):
    done = run_python("-c", PROGRAM, "1", "--config", "nowhere.yaml")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: `train` on 1 process ended with exit code 2")
