"""`horovod-transformer doctor`: its table, its exit code, and mistakes."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

from horovod_transformer.commands.doctor_checks import CHECKS, check_horovod

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
        run_python, "--data.data_dir", str(tmp_path / "no"), "--model.d_ff", "100000000000", env=environment
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


def test_without_horovodrun_it_names_the_other_way(monkeypatch):
    """As where Horovod was installed into a folder and its programs are not on PATH."""
    monkeypatch.setattr(shutil, "which", lambda *arguments, **more: None)
    row = check_horovod(None)
    assert row.state == "warn" and "`horovod-transformer launch` starts ranks without it" in row.found
    assert "one process only" not in row.found
