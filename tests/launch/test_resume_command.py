"""The command that resumes a stopped run, under each launcher."""

from __future__ import annotations

import shlex
import sys

import psutil
import pytest

from horovod_transformer.launch import resume_command as module
from horovod_transformer.launch.resume_command import resume_command, resuming
from horovod_transformer.system.launch_environment import Launch

TRAIN = ["train", "--config", "my config.yaml"]


class Ancestor:
    def __init__(self, *words: str) -> None:
        self.words = list(words)

    def cmdline(self) -> list[str]:
        if not self.words:
            raise psutil.AccessDenied
        return self.words


def resumes_as(monkeypatch, launch: Launch, *ancestors: Ancestor, own=("horovod-transformer", *TRAIN)) -> str:
    """What is said to a process that was started like this."""
    bin_folder = {
        "horovodrun": "/venv/bin/horovodrun",
        "horovod-transformer": "/venv/bin/horovod-transformer",
    }
    monkeypatch.setattr(module.shutil, "which", bin_folder.get)
    monkeypatch.setattr(sys, "orig_argv", list(own))
    monkeypatch.setattr(sys, "argv", ["program", *TRAIN])
    monkeypatch.setattr(module, "this_process", lambda: launch)
    monkeypatch.setattr(psutil.Process, "parents", lambda self: list(ancestors))
    return resume_command("a b")


ENDING = "train --config 'my config.yaml' --resume auto --run_name 'a b'"
SHELL = Ancestor("-bash")
SCRIPT = ("/venv/bin/python3", "/venv/bin/horovod-transformer")


def test_alone_it_is_what_was_typed(monkeypatch):
    assert resumes_as(monkeypatch, Launch(), SHELL) == f"horovod-transformer {ENDING}"
    own = [*SCRIPT, *TRAIN]
    assert resumes_as(monkeypatch, Launch(), SHELL, own=own) == f"horovod-transformer {ENDING}"
    own = ["python", "-m", "src.train", "-x"]
    assert resumes_as(monkeypatch, Launch(), own=own) == (
        "python -m src.train -x --resume auto --run_name 'a b'"
    )


@pytest.mark.parametrize(
    "launcher",
    [
        ["horovodrun", "-np", "2", "-H", "a:1,b:1"],
        ["horovod-transformer", "launch", "-np", "2", "--max-restarts", "3", "--"],
    ],
)
def test_a_launcher_is_started_as_it_was(monkeypatch, launcher):
    started = Ancestor(
        "/venv/bin/python3", f"/venv/bin/{launcher[0]}", *launcher[1:], "horovod-transformer", *TRAIN
    )
    between = Ancestor("/bin/sh", "-c", "horovod-transformer train")
    told = resumes_as(monkeypatch, Launch("torchrun", 2), between, Ancestor(), started, SHELL)
    assert told == f"{shlex.join(launcher)} horovod-transformer {ENDING}"


def test_a_launcher_out_of_sight_or_one_that_runs_a_script_is_replaced(monkeypatch):
    expected = f"horovod-transformer launch -np 2 -- horovod-transformer {ENDING}"
    assert resumes_as(monkeypatch, Launch("torchrun", 2)) == expected
    script = Ancestor("/venv/bin/horovodrun", "-np", "2", "./train.sh")
    assert resumes_as(monkeypatch, Launch("horovodrun", 2), script) == expected


def test_srun_has_its_tasks(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    told = resumes_as(monkeypatch, Launch("srun", 8), Ancestor("slurmstepd: [1.0]"))
    assert told == f"srun --ntasks=8 horovod-transformer {ENDING}"


@pytest.mark.parametrize(
    "given",
    [
        "--resume auto",
        "--resume=x.pt",
        "--init_from x.pt",
        "--init-from=x.pt",
        "--run_name old",
        "--run-name=old",
    ],
)
def test_what_is_said_anew_is_said_once(given):
    words = resuming(["python", "t.py", *given.split(), "--training.seed", "1"], "new")
    assert words == ["python", "t.py", "--training.seed", "1", "--resume", "auto", "--run_name", "new"]
