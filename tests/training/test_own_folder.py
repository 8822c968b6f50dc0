"""Each run has a folder of its own, and the promised names lead to it once it has something to show."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from horovod_transformer.__main__ import _dispatch
from horovod_transformer.checkpoint.manager import progress_of
from horovod_transformer.errors import UserError
from horovod_transformer.reports.run_records import read_run
from tests.formats.test_written_by_efaa3e3 import FILES


def runs(*arguments: object) -> None:
    """`horovod-transformer runs ...`."""
    assert _dispatch(["runs", "--config", "configs/quickstart.yaml", *map(str, arguments)]) == 0


def tree(folder: Path) -> set[str]:
    """The files of a folder, without the hidden ones and TensorBoard's."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return {path.as_posix() for path in files if path.name[0] != "." and "tfevents" not in path.name}


def leads_to(link: Path) -> str:
    """The run that a promised name leads to."""
    assert link.is_symlink()
    return link.resolve().parent.parent.name


def test_where_a_runs_files_are(train, tmp_path):
    outcome = train(run_name="tests/first")
    own = tmp_path / "runs/tests/first"
    assert outcome["checkpoint_dir"] == str(own / "checkpoints")
    assert tree(own) == {
        "run.json",
        "checkpoints/best_model.pt",
        "checkpoints/last.pt",
        "checkpoints/update_00000002.pt",
        "checkpoints/update_00000004.pt",
        "logs/train_rank0.log",
        "tables/config.yaml",
        "tables/environment.json",
        "tables/train.csv",
        "tables/val.csv",
    }
    for promised in ("checkpoints/best_model.pt", "checkpoints/last.pt", "logs/train_rank0.log"):
        assert (tmp_path / promised).resolve() == own / promised
    assert (tmp_path / "runs/structured/tests/first").resolve() == own / "tables"
    assert "run tests/first: " in (own / "logs/train_rank0.log").read_text()
    # All of it may be moved.
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    assert progress_of(moved / "checkpoints/last.pt")["update"] == 4
    assert read_run(moved / "runs/structured/tests/first").name == "first"
    moved.rename(tmp_path)


def test_a_trial_hides_nothing_until_it_has_something_to_show(train, tmp_path, capsys):
    train(run_name="long")
    best, last = tmp_path / "checkpoints/best_model.pt", tmp_path / "checkpoints/last.pt"
    log = tmp_path / "logs/train_rank0.log"

    capsys.readouterr()
    # Its only checkpoint comes at its end, without a validation.
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr("horovod_transformer.training.trainer.Validator.validate_if_due", lambda self: False)
        train({"training.save_interval": 100}, run_name="trial")
    assert (leads_to(best), leads_to(last)) == ("long", "trial")
    assert f"{last}, {log} now lead to this run, no longer to {tmp_path}/runs/long" in capsys.readouterr().out
    train(run_name="other")
    assert (leads_to(best), leads_to(last)) == ("other", "other")
    assert leads_to(tmp_path / "logs/train_rank0.log") == "other"
    assert tree(tmp_path / "runs/long") > {"checkpoints/best_model.pt", "checkpoints/last.pt"}


def test_a_link_names_the_run_that_is_resumed(train, tmp_path):
    train(run_name="first")
    train(run_name="second")
    assert leads_to(tmp_path / "checkpoints/last.pt") == "second"
    longer = {"training.max_updates": 6}
    outcome = train(longer, resume_checkpoint=tmp_path / "checkpoints/last.pt")
    assert (outcome["run_name"], outcome["update"]) == ("second", 6)
    older = tmp_path / "runs/first/checkpoints/update_00000002.pt"
    outcome = train(longer, resume_checkpoint=older)
    assert (outcome["run_name"], outcome["update"]) == ("first", 6)
    # Under another name it is another run, and the first one stays as it is.
    before = tree(tmp_path / "runs/first")
    outcome = train(longer, resume_checkpoint=tmp_path / "runs/first/checkpoints/last.pt", run_name="branch")
    assert (outcome["run_name"], outcome["update"]) == ("branch", 6)
    assert tree(tmp_path / "runs/first") == before


def test_a_copy_with_files_in_place_of_links_is_gone_on_with(train, tmp_path):
    train({"training.max_updates": 2}, run_name="run", output_dir=tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for _ in range(2):
        outcome = train(output_dir=tmp_path / "b", resume_checkpoint="auto")
        assert (outcome["run_name"], outcome["update"]) == ("run", 4)
        assert leads_to(tmp_path / "b/checkpoints/last.pt") == "run"
        assert read_run(tmp_path / "b/runs/structured/run").train["update"] == [1, 2, 3, 4]


def test_explicit_paths_are_taken_literally(train, tmp_path):
    outcome = train({"paths.checkpoint_dir": "ck"}, run_name="a")
    assert outcome["checkpoint_dir"] == str(tmp_path / "ck")
    assert tree(tmp_path / "ck") == {
        "best_model.pt",
        "last.pt",
        "update_00000002.pt",
        "update_00000004.pt",
    }
    assert not (tmp_path / "checkpoints").exists()
    assert (tmp_path / "logs/train_rank0.log").resolve() == tmp_path / "runs/a/logs/train_rank0.log"


def test_links_of_other_runs_are_not_taken_for_a_shared_folders_files(train, tmp_path):
    train(run_name="a")
    shared = {"paths.checkpoint_dir": "checkpoints"}
    assert train(shared, run_name="b", resume_checkpoint="auto")["update"] == 4
    assert not (tmp_path / "checkpoints/last.pt").is_symlink()
    assert progress_of(tmp_path / "checkpoints/last.pt")["run_name"] == "b"
    assert progress_of(tmp_path / "runs/a/checkpoints/last.pt")["run_name"] == "a"
    assert "previous" not in " ".join(tree(tmp_path / "checkpoints"))


@pytest.fixture
def earlier(tmp_path):
    """What commit efaa3e3 left: a run called adamw, in folders that all runs shared."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    shutil.copy(FILES / "adamw.pt", folder / "update_00000200.pt")
    (folder / "last.pt").hardlink_to(folder / "update_00000200.pt")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/train_rank0.log").write_text("lines of earlier runs\n")
    tables = tmp_path / "runs/structured/adamw"
    tables.mkdir(parents=True)
    (tables / "train.csv").write_text("update,loss\n199,5.0\n200,4.9\n")
    return tmp_path


def test_a_new_run_moves_an_earlier_programs_under_its_own_name(train, earlier, capsys):
    train(run_name="new")
    assert leads_to(earlier / "checkpoints/last.pt") == "new"
    assert tree(earlier / "runs/adamw") == {
        "run.json",
        "checkpoints/last.pt",
        "checkpoints/update_00000200.pt",
    }
    assert (earlier / "runs/structured/adamw/train.csv").is_file()
    assert [path.read_text() for path in earlier.glob("logs/previous-*/*")] == ["lines of earlier runs\n"]
    said = capsys.readouterr().out
    assert f"moved the checkpoints of run adamw to {earlier}/runs/adamw/checkpoints" in said
    runs("--output_dir", earlier)
    (listed,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("adamw"))
    assert "200 of 200" in listed and "finished" in listed


def test_a_new_run_of_an_earlier_programs_name_overwrites_nothing(train, earlier):
    train(run_name="adamw")
    (tables,) = earlier.glob("runs/structured/adamw.previous-*/train.csv")
    assert tables.read_text().splitlines()[-1] == "200,4.9"
    assert read_run(earlier / "runs/adamw").train["update"] == [1, 2, 3, 4]
    (checkpoint,) = earlier.glob("runs/adamw.previous-*/checkpoints/update_00000200.pt")
    assert progress_of(checkpoint)["update"] == 200


def test_runs_are_listed_and_deleted(train, tmp_path, capsys, monkeypatch):
    runs("--output_dir", tmp_path)
    assert f"no run in {tmp_path}/runs yet" in capsys.readouterr().out
    train(run_name="tests/first")
    train({"training.max_updates": 2}, run_name="second")
    capsys.readouterr()
    runs("--output_dir", tmp_path)
    heading, first, second, shown = capsys.readouterr().out.splitlines()
    assert heading.split() == ["run", "began", "updates", "state", "validation", "loss", "size"]
    assert first.startswith("tests/first") and "4 of 4  " in first and " finished " in first
    assert second.startswith("second") and "2 of 2" in second
    assert shown == f"{tmp_path}/checkpoints/best_model.pt leads to second"
    is_file, closed = Path.is_file, tmp_path / "runs/tests/first/checkpoints"

    def stopped_there(path: Path) -> bool:
        if path.parent == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return is_file(path)

    with monkeypatch.context() as patched:  # modes do not stop root
        patched.setattr(Path, "is_file", stopped_there)
        runs("--output_dir", tmp_path)
    told = capsys.readouterr()
    assert [line.split() for line in told.out.splitlines()][1:] == [second.split(), shown.split()]
    assert told.err.startswith(f"note: {closed.parent} is left out: {closed}/")
    with pytest.raises(UserError, match="--delete third: no such run in .*; there are second, tests/first"):
        runs("--output_dir", tmp_path, "--delete", "third", "--yes")
    with pytest.raises(UserError, match="nobody is here to be asked; --yes deletes"):
        runs("--output_dir", tmp_path, "--delete", "second")
    assert (tmp_path / "runs/second").is_dir()
    runs("--output_dir", tmp_path, "--delete", "second", "--yes")
    assert not list(tmp_path.glob("runs/*second*")) + list(tmp_path.glob("runs/structured/second"))
    assert not (tmp_path / "checkpoints/best_model.pt").is_symlink()
    assert progress_of(tmp_path / "runs/tests/first/checkpoints/last.pt")


def test_runs_to_delete_may_be_named_one_by_one(tmp_path):
    for name in "abc":
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text("{}")
    runs("--output_dir", tmp_path, "--delete", "a", "--delete", "c", "--yes")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["b"]


def test_a_run_that_is_being_trained_is_not_deleted(train, tmp_path):
    train(run_name="live")
    (tmp_path / "runs/.live.lock").write_text("{}")
    with pytest.raises(UserError, match="runs/live: is being trained; end that first"):
        runs("--output_dir", tmp_path, "--delete", "live", "--yes")
    assert progress_of(tmp_path / "runs/live/checkpoints/last.pt")
