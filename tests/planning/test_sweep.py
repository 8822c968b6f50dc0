"""Sweeps: which runs there are, the job array that is written for them, and one after another here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from horovod_transformer.errors import StoppedError, UserError
from horovod_transformer.planning import sweep
from horovod_transformer.planning.sweep import run_here, sweep_runs, write_job_array

VALUES = {"training.learning_rate": ["1e-3", 3e-4], "training.weight_decay": [0, 0.1]}


@pytest.fixture
def config(root: Path) -> Path:
    return root / "configs/config.yaml"


def test_all_combinations_in_order_with_names_of_their_own(config: Path) -> None:
    runs = sweep_runs(config, VALUES)
    assert [run.name for run in runs] == [
        "learning_rate-1e-3-weight_decay-0",
        "learning_rate-1e-3-weight_decay-0.1",
        "learning_rate-0.0003-weight_decay-0",
        "learning_rate-0.0003-weight_decay-0.1",
    ]
    assert runs == sweep_runs(config, VALUES)
    assert runs[1].overrides == {"training.learning_rate": "1e-3", "training.weight_decay": "0.1"}
    assert " ".join(runs[1].arguments("results")) == (
        "--run_name learning_rate-1e-3-weight_decay-0.1 --resume auto --output_dir results "
        "--training.learning_rate 1e-3 --training.weight_decay 0.1"
    )


def test_other_kinds_of_values(config: Path) -> None:
    values = {
        "model.gradient_checkpointing": [True, False],
        "training.max_updates": [None],
        "data.clean": [[]],
    }
    run = sweep_runs(config, values)[0]
    assert run.name == "gradient_checkpointing-true"  # of what has one value the name says nothing
    assert run.arguments()[4:] == (
        ["--model.gradient_checkpointing", "true", "--training.max_updates", "null", "--data.clean", "[]"]
    )
    assert sweep_runs(config, {"data.clean": [[]], "training.seed": [1]})[0].name == "clean-_-seed-1"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "a sweep needs values to try: no key is named"),
        ({"training.seed": []}, "a sweep needs values to try: training.seed"),
        ({"training.learning_rat": [1]}, "learning_rat"),
        ({"training.learning_rate": [1e-3, -1]}, "training.learning_rate"),
        ({"training.learning_rate": ["1e-3", 0.001]}, "are the same run; name each value once"),
        ({"generation.stop": [["a!"], ["a?"]]}, "two of the runs would be called stop-_a_"),
        ({"training.seed": range(40), "training.epochs": range(1, 41)}, "a sweep of 1,600 runs is more than"),
    ],
)
def test_a_mistake_is_one_line(config: Path, values: dict, told: str) -> None:
    with pytest.raises(UserError) as mistake:
        sweep_runs(config, values)
    assert told in str(mistake.value) and "\n" not in str(mistake.value)


def test_each_task_of_the_array_is_one_run(config: Path, tmp_path: Path) -> None:
    # Where the work is done stands what this task has been given.
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/train_slurm.sh").write_text('printf "%s\\n" "$script" "$@"\n')
    script, runs = tmp_path / "my sweep.sh", sweep_runs(config, VALUES)
    write_job_array(script, "configs/my own.yaml", runs, output_dir="results", at_once=2)
    assert "#SBATCH --array=0-3%2\n" in script.read_text()

    def task(**variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(tmp_path), **variables}
        return subprocess.run(
            [script, "--training.epochs", "2"], env=environment, capture_output=True, text=True
        )

    for number, run in enumerate(runs):
        told = task(SLURM_ARRAY_TASK_ID=str(number)).stdout.splitlines()
        expected = ["configs/my own.yaml", *run.arguments("results"), "--training.epochs", "2"]
        assert told == ["my sweep.sh", *expected]
    for wrong in (task(), task(SLURM_ARRAY_TASK_ID="4")):
        assert wrong.returncode == 2 and "submit it as a job array: SITE=mycluster" in wrong.stderr


def test_here_a_run_that_fails_does_not_keep_others_from_running(config: Path, monkeypatch, capsys) -> None:
    started: list[tuple] = []

    def stand_in(processes, name, arguments):
        started.append((processes, name, arguments))
        if len(started) == 2:
            raise UserError("it diverged")

    monkeypatch.setattr(sweep, "run_subcommand", stand_in)
    runs = sweep_runs(config, VALUES)
    with pytest.raises(
        UserError, match=r"1 of 4 runs failed, see above: learning_rate-1e-3-weight_decay-0\.1$"
    ):
        run_here(config, runs, processes=2)
    assert started == [(2, "train", ["--config", str(config), *run.arguments()]) for run in runs]
    assert "run 4 of 4: learning_rate-0.0003-weight_decay-0.1" in capsys.readouterr().out


def test_here_ctrl_c_ends_the_sweep(config: Path, monkeypatch) -> None:
    def stopped(*_: object) -> None:
        raise StoppedError("`train` was stopped")

    monkeypatch.setattr(sweep, "run_subcommand", stopped)
    with pytest.raises(StoppedError):
        run_here(config, sweep_runs(config, VALUES))
