"""`horovod-transformer doctor`: its table, its exit code, and mistakes."""

from __future__ import annotations

import os

import pytest
import torch

from horovod_transformer.commands.doctor import CHECKS, run_check
from horovod_transformer.commands.doctor_checks import CheckContext, Row
from horovod_transformer.config import Config
from horovod_transformer.errors import UserError

TINY = {"vocab_size": 300, "d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 64, "max_seq_len": 32}
SHAPE = [word for key, value in TINY.items() for word in (f"--model.{key}", str(value))]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Blocks of 32 random tokens, as `datasets` saves them."""
    import datasets

    folder = tmp_path_factory.mktemp("doctor") / "blocks"
    rows = torch.randint(0, 299, (40, 32), generator=torch.Generator().manual_seed(0)).tolist()
    splits = {name: datasets.Dataset.from_dict({"input_ids": rows}) for name in ("train", "validation")}
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return folder


def doctor(run_python, *arguments, **options):
    return run_python(
        "-m",
        "horovod_transformer",
        "doctor",
        "--config",
        "configs/quickstart.yaml",
        *SHAPE,
        *arguments,
        **options,
    )


def states(output: str) -> dict[str, str]:
    rows = [line.split(maxsplit=1) for line in output.splitlines() if line[:4] in ("ok  ", "warn", "fail")]
    return {next(name for name in CHECKS if rest.startswith(name)): state for state, rest in rows}


def test_command_when_all_is_well(run_python, prepared, tmp_path):
    done = doctor(run_python, "--data.data_dir", str(prepared), "--output_dir", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    found = states(done.stdout)
    assert list(found) == list(CHECKS)
    assert "fail" not in found.values()
    assert done.stdout.endswith("training can run here\n")
    assert not any(tmp_path.iterdir())


def test_command_tells_all_that_is_missing(run_python, tmp_path):
    # No data, no compiler, and a model whose checkpoints no disk holds.
    environment = {**os.environ, "PATH": str(tmp_path)}
    environment.pop("CXX", None)
    done = doctor(
        run_python, "--data.data_dir", str(tmp_path / "no"), "--model.d_ff", "2000000000", env=environment
    )
    assert done.returncode == 1, done.stderr
    found = states(done.stdout)
    assert (found["dataset"], found["disk"], found["compiler"]) == ("fail", "fail", "warn")
    assert done.stdout.endswith("training cannot run here: dataset, disk\n")
    assert "-> horovod-transformer prepare --config configs/quickstart.yaml" in done.stdout


def without(*modules: str) -> tuple[str, str]:
    """Start the command in a Python that cannot import these."""
    blocked = "".join(f"sys.modules[{module!r}] = None; " for module in modules)
    return "-c", f"import sys; {blocked}from horovod_transformer.__main__ import main; sys.exit(main())"


@pytest.mark.parametrize(
    ("modules", "code", "expected"),
    [
        (["torch"], 1, {"PyTorch": "fail", "dataset": "fail", "Horovod": "warn", "disk": "ok"}),
        (["horovod"], 0, {"PyTorch": "ok", "dataset": "ok", "Horovod": "warn"}),
    ],
    ids=["torch", "horovod"],
)
def test_command_without(run_python, prepared, tmp_path, modules, code, expected):
    arguments = ["doctor", "--config", "configs/quickstart.yaml", *SHAPE, "--data.data_dir", str(prepared)]
    done = run_python(*without(*modules), *arguments, "--output_dir", str(tmp_path))
    assert done.returncode == code, done.stdout + done.stderr
    found = states(done.stdout)
    assert {name: found[name] for name in expected} == expected
    assert "Traceback" not in done.stderr


def test_mistakes_are_one_line(run_python):
    for arguments in (["--config", "absent.yaml"], ["--training.sead", "1"], ["--frob"]):
        done = run_python("-m", "horovod_transformer", "doctor", *arguments)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_check_that_crashes_is_a_row():
    def broken(context):
        raise ZeroDivisionError("division by zero\nmore")

    row = run_check("thing", broken, CheckContext(Config()))
    assert (row.state, row.name) == ("fail", "thing")
    assert "crashed" in row.found and "ZeroDivisionError: division by zero" in row.found
    assert "more" not in row.found


def test_a_users_mistake_is_a_row():
    def mistaken(context):
        raise UserError("x: is missing")

    assert run_check("thing", mistaken, CheckContext(Config())) == Row("thing", "fail", "x: is missing")


def test_rows_bear_the_names_of_their_checks():
    for name, check in CHECKS.items():
        assert run_check(name, check, CheckContext(Config())).name == name
