"""The window of a profile, and its table, without other processes."""

from __future__ import annotations

import pytest
import torch

from horovod_transformer.commands.command_line import run_command
from horovod_transformer.commands.train import main
from horovod_transformer.training.metrics.phase_timer import PhaseTimer
from horovod_transformer.training.metrics.profiling import (
    WAIT,
    WARM_UP,
    ProfileRequest,
    UpdateProfiler,
    share_table,
)

CPU = torch.device("cpu")


def run(profiler, updates):
    lines = []
    for _ in range(updates):
        lines += profiler.after_update()
    return lines + profiler.close()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_that_is_shorter_says_so(tmp_path, rank):
    lines = run(UpdateProfiler(ProfileRequest(3, rank), tmp_path, CPU, PhaseTimer(CPU)), WAIT + WARM_UP)
    assert len(lines) == (rank == 0) and all("no profile: the run ended after 7 updates" in x for x in lines)
    assert not list(tmp_path.iterdir())


def test_a_window_that_is_cut_short_is_written(tmp_path):
    lines = run(UpdateProfiler(ProfileRequest(3), tmp_path, CPU, PhaseTimer(CPU)), WAIT + WARM_UP + 1)
    assert lines[0] == f"profile of 1 updates: {tmp_path / 'profile_rank0.trace.json.gz'}"
    assert (tmp_path / "profile_rank0.trace.json.gz").is_file() and len(lines) == 9


def test_the_head_is_taken_out_of_the_forward_pass():
    table = share_table({"data": 0.5, "forward": 2.0, "gradient_wait": 1.5}, head=0.5, updates=2)
    assert [line.split() for line in table] == [
        ["data", "250.00", "ms", "12.5%"],
        ["forward", "750.00", "ms", "37.5%"],
        ["head", "250.00", "ms", "12.5%"],
        ["waiting", "for", "gradients", "750.00", "ms", "37.5%"],
    ]


@pytest.mark.parametrize("arguments", [["--profile", "0"], ["--profile", "x"], ["--profile_rank", "-1"]])
def test_mistakes_are_one_line(arguments, capsys):
    assert run_command(main, arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {arguments[0]} ") and error.count("\n") == 1
