"""`plan` and `new`: a table, a config that holds, and the commands that follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from horovod_transformer import __main__ as program
from horovod_transformer.config import load_config
from horovod_transformer.errors import UserError


def run(*arguments: str) -> int:
    return program._dispatch(arguments)


def test_a_plan_for_named_gpus_prints_a_table_a_reason_and_what_to_type(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("plan", "--data.source", "sample", "--gpu", "h100", "--gpus", "4", "--hours", "8") == 0
    told = capsys.readouterr().out
    rows = [line for line in told.splitlines() if line.startswith("*")]
    assert len(rows) == 2 and rows[1].startswith("* recommended: ")
    assert "4 x h100, 80.0 GB of memory each" in told and "estimated from a sample" in told
    assert "next: horovod-transformer prepare --config FILE" in told
    assert "then: scripts/submit.sh --nodes=1 --ntasks-per-node=4 --gres=gpu:h100:4 --time=" in told


def test_a_plan_is_written_as_a_config_that_holds_and_never_over_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    arguments = ("plan", "--data.source", "sample", "--gpu", "h100", "--write", str(file))
    assert run(*arguments) == 0
    config = load_config(file)
    assert (config.data.source, config.data.data_dir) == ("sample", "data/mine")
    assert f"next: horovod-transformer prepare --config {file}" in capsys.readouterr().out
    with pytest.raises(UserError, match="is there already"):
        run(*arguments)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--hours", "0"], "--hours 0: should be above 0"),
        (["--gpu", "h101"], "no figures of a GPU called 'h101'"),
        (["--gpus", "0"], "--gpus 0: should be from 1"),
        (["--gpus", "1000"], "--gpus 1000: this machine has"),
        (["--calibrate", "5"], "needs prepared data"),
    ],
)
def test_mistakes_are_one_line(more: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        run("plan", "--data.source", "sample", *more)


def test_a_new_folder_needs_no_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    books = tmp_path / "my books"
    books.mkdir()
    for number in range(8):
        (books / f"{number}.txt").write_text(
            "A short story of a fox and a hen, told again. " * 400 + str(number)
        )
    monkeypatch.chdir(tmp_path)
    assert run("new", "tales", "--source", "my books", "--gpu", "h100", "--hours", "0.1") == 0
    assert "next: cd tales && horovod-transformer prepare" in capsys.readouterr().out
    config = load_config(tmp_path / "tales" / "config.yaml")
    assert config.data.source == str(books) and config.data.data_dir == "data"
    monkeypatch.chdir(tmp_path / "tales")
    assert run("prepare") == 0
    assert (tmp_path / "tales" / "data" / "manifest.json").is_file()
    assert "next: horovod-transformer train\n" in capsys.readouterr().out


def test_a_new_folder_never_takes_another_ones_place(tmp_path: Path) -> None:
    (tmp_path / "tales").mkdir()
    (tmp_path / "tales" / "precious").write_text("mine")
    with pytest.raises(UserError, match="is there already, and not empty"):
        run("new", str(tmp_path / "tales"), "--source", "sample", "--gpu", "h100")
    assert [path.name for path in (tmp_path / "tales").iterdir()] == ["precious"]


def test_a_sweep_becomes_a_job_array(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "sweep.sh"
    arguments = ("plan", "--config", "configs/quickstart.yaml", "--write", str(script))
    assert (
        run(*arguments, "--sweep", "training.learning_rate=1e-3,3e-3", "--sweep", "training.seed=1,2,3") == 0
    )
    assert "--array=0-5" in script.read_text() and "learning_rate-3e-3-seed-2" in script.read_text()
    assert f"next: scripts/submit.sh {script}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("training.seed", "should be KEY=VALUE"),
        ("training.sed=1,2", "no such key"),
        ("training.seed=1,1", "the same run"),
        ("training.seed=1,x", "training.seed"),
    ],
)
def test_a_sweep_that_does_not_hold_is_one_line(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        run("plan", "--config", "configs/quickstart.yaml", "--sweep", text)
