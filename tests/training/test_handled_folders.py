"""Run folders that somebody has moved, copied, linked or removed by hand, and names to beware of."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from horovod_transformer.__main__ import _dispatch
from horovod_transformer.checkpoint.format import load_checkpoint, save_checkpoint
from horovod_transformer.checkpoint.manager import Takeover, progress_of
from horovod_transformer.checkpoint.run_folders import (
    own_folders,
    read_launch,
    run_of_launch,
    run_to_resume,
    write_record,
)
from horovod_transformer.checkpoint.run_paths import lock_file
from horovod_transformer.config_sections import PathsConfig
from horovod_transformer.errors import UserError
from horovod_transformer.reports.run_records import read_run
from horovod_transformer.system.lock_owner import LockOwner
from tests.formats.test_written_by_efaa3e3 import FILES
from tests.training.test_own_folder import leads_to, runs
from tests.training.test_run_folder import claim, launch, write_run  # noqa: F401

LONGER = {"training.max_updates": 6}


def of(home: Path) -> PathsConfig:
    return PathsConfig(output_dir=str(home))


def listed(home: Path) -> list[str]:
    return [own.relative_to(home / "runs").as_posix() for own in own_folders(home / "runs")]


def rename_in_checkpoint(path: Path, name: str) -> Path:
    """Let a checkpoint say that a run of this name wrote it, as those of other programs may."""
    contents = load_checkpoint(path)
    contents["progress"]["run_name"] = name
    path.unlink()
    save_checkpoint(path, contents)
    return path


# Names that a checkpoint brings.


@pytest.mark.parametrize("name", ["../../out", "{}/absolute", "structured", "two\nlines", ".hidden"])
def test_a_checkpoints_run_name_does_not_reach_out_of_runs(train, tmp_path, name):
    name = name.format(tmp_path)
    train({"training.max_updates": 2}, run_name="a", output_dir=tmp_path / "from")
    checkpoint = rename_in_checkpoint(tmp_path / "from/runs/a/checkpoints/update_00000002.pt", name)
    kept = shutil.copy(checkpoint, tmp_path / "kept.pt")
    outcome = train(output_dir=tmp_path / "in/home", resume_checkpoint=kept)
    assert outcome["update"] == 4 and outcome["run_name"][:2] == "20"
    # The same where commit efaa3e3 wrote, for one that resumes there and for one that needs the room.
    for home, resume in (("first", "auto"), ("second", None)):
        shared = tmp_path / "in" / home / "checkpoints"
        shared.mkdir(parents=True)
        shutil.copy(kept, shared / "last.pt")
        outcome = train(output_dir=shared.parent, resume_checkpoint=resume)
        assert outcome["update"] == 4 and outcome["run_name"][:2] == "20"
    assert {path.name for path in tmp_path.iterdir()} == {"from", "in", "kept.pt"}
    assert {path.name for path in (tmp_path / "in").iterdir()} == {"home", "first", "second"}
    assert progress_of(tmp_path / "in/second/runs/earlier/checkpoints/last.pt")["update"] == 2


# Runs within runs: who deletes or replaces one must not hit another.


def test_a_resumed_run_does_not_lie_around_others_or_in_them(claim, tmp_path):  # noqa: F811
    write_run(tmp_path / "runs/tests/first", 4)
    with pytest.raises(UserError, match="--run_name tests: .*runs/tests holds other runs; choose another"):
        claim("tests", resume="elsewhere.pt", update=3)
    with pytest.raises(UserError, match="tests/first/more: .*tests/first is another run's; choose another"):
        claim("tests/first/more", resume="elsewhere.pt", update=3)
    assert claim("tests/first", resume="elsewhere.pt", update=3).paths.name == "tests/first"


def test_a_run_that_came_between_is_not_moved(claim, tmp_path):  # noqa: F811
    outer, inner = claim("tests"), claim("tests/first")
    inner.take_over(Takeover(), 20)
    with pytest.raises(UserError, match="--run_name tests: .*tests holds other"):
        outer.take_over(Takeover(), 20)
    assert listed(tmp_path) == ["tests/first"]


def test_a_run_that_holds_another_is_not_deleted(tmp_path):
    write_run(tmp_path / "runs/a", 4)
    write_run(tmp_path / "runs/a/b", 4)  # moved there by hand
    with pytest.raises(UserError, match="runs/a: holds another run, .*runs/a/b; move that first"):
        runs("--output_dir", tmp_path, "--delete", "a", "--yes")
    assert (tmp_path / "runs/a/b/checkpoints/update_00000004.pt").is_file()


def test_a_folder_of_the_users_is_not_renamed(claim, tmp_path):  # noqa: F811
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis").mkdir()
    (tmp_path / "home/thesis/chapter1.tex").write_text("words")
    with pytest.raises(UserError, match="--run_name thesis: .*home/thesis holds files that are no run's"):
        claim("thesis", tensorboard_dir=str(tmp_path / "home"))
    assert (tmp_path / "home/thesis/chapter1.tex").is_file()


# Deleting.


def test_a_run_whose_process_is_held_is_not_deleted(tmp_path):
    own = write_run(tmp_path / "runs/a", 4)
    lock = lock_file(own)
    lock.write_text(LockOwner.this_process(None, 0).to_text())
    hour = time.time() - 3600  # as while it is stopped by Ctrl-Z, or where clocks differ
    os.utime(lock, (hour, hour))
    with pytest.raises(UserError, match="runs/a: is being trained; end that first"):
        runs("--output_dir", tmp_path, "--delete", "a", "--yes")
    assert listed(tmp_path) == ["a"]


def test_a_deletion_that_was_cut_short_is_finished(tmp_path, capsys, monkeypatch):
    def cut(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "a file")

    for _ in range(2):
        write_run(tmp_path / "runs/a", 4)
        with monkeypatch.context() as broken, pytest.raises(UserError, match="a file: cannot be removed"):
            broken.setattr(shutil, "rmtree", cut)
            runs("--output_dir", tmp_path, "--delete", "a", "--yes")
    capsys.readouterr()
    runs("--output_dir", tmp_path)
    assert f"{tmp_path}/runs/.a.deleted: not all of run a is deleted; --delete a" in capsys.readouterr().out
    runs("--output_dir", tmp_path, "--delete", "a", "--yes")
    assert list((tmp_path / "runs").iterdir()) == []


def test_deleting_leaves_no_link_behind(train, tmp_path):
    train(run_name="tests/first")
    runs("--output_dir", tmp_path, "--delete", "tests/first", "--yes")
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]
    assert not (tmp_path / "runs/tests").exists()


@pytest.mark.parametrize("answer", [EOFError, KeyboardInterrupt])
def test_no_answer_deletes_nothing(tmp_path, monkeypatch, capsys, answer):
    def ask(question):
        raise answer

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    write_run(tmp_path / "runs/a", 4)
    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr("sys.stdin", Terminal())
    command = ["runs", "--config", "configs/quickstart.yaml", "--output_dir", str(tmp_path), "--delete", "a"]
    assert _dispatch(command) == (130 if answer is KeyboardInterrupt else 0)
    assert "nothing deleted" in capsys.readouterr().out
    assert listed(tmp_path) == ["a"]


# Moved, copied, removed by hand.


def test_auto_finds_a_run_that_has_lost_some_files(claim, tmp_path):  # noqa: F811
    own = tmp_path / "runs/a/checkpoints"
    own.mkdir(parents=True)
    for name in ("last.pt", "best_model.pt", ".rewind.json"):
        (own / name).touch()
        assert run_to_resume(of(tmp_path)) == "a"  # without run.json, too
        write_record(own.parent, 20, "a")
        folder = claim(resume="auto")
        assert folder.paths.name == "a"
        folder.release()
        (own.parent / "run.json").unlink()
        (own / name).unlink()
    assert run_to_resume(of(tmp_path)) is None


def test_a_run_that_is_renamed_while_it_is_trained_stays_in_sight(train, tmp_path, monkeypatch):
    moved = []

    def move(path, contents):
        save_checkpoint(path, contents)
        if not moved:
            moved.append((tmp_path / "runs/a").rename(tmp_path / "runs/b"))

    monkeypatch.setattr("horovod_transformer.checkpoint.manager.save_checkpoint", move)
    train({"training.trackers": []}, run_name="a")
    assert listed(tmp_path) == ["a", "b"]
    assert progress_of(tmp_path / "runs/a/checkpoints/last.pt")["update"] == 4


def test_an_archived_run_that_is_renamed_back_is_meant_again(claim, tmp_path):  # noqa: F811
    write_run(tmp_path / "runs/a", 9)
    folder = claim("a")
    folder.take_over(Takeover(), 20)
    folder.release()
    (archived,) = tmp_path.glob("runs/a.previous-*")
    assert run_to_resume(of(tmp_path)) is None
    shutil.rmtree(tmp_path / "runs/a")
    archived.rename(tmp_path / "runs/a")
    assert run_to_resume(of(tmp_path)) == "a"


def test_a_kill_while_a_run_is_replaced_leaves_one_to_resume(claim, tmp_path, monkeypatch):  # noqa: F811
    write_run(tmp_path / "runs/a", 9)

    class Killed(BaseException):
        pass

    def kill(*arguments):
        raise Killed

    renamed = []
    real = Path.rename
    for step in ("rename", "after"):
        folder = claim("a")
        with monkeypatch.context() as dying, pytest.raises(Killed):
            if step == "rename":
                dying.setattr(Path, "rename", kill)
            else:
                dying.setattr(Path, "rename", lambda *two: renamed.append(real(*two)) or kill())
            folder.take_over(Takeover(), 20)
        folder.release()
        assert run_to_resume(of(tmp_path)) == (None if renamed else "a")
    assert len(list(tmp_path.glob("runs/a.previous-*/checkpoints/update_00000009.pt"))) == 1


def test_a_start_that_dies_while_it_takes_over_may_be_repeated(claim, tmp_path, monkeypatch):  # noqa: F811
    def fail(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_run(tmp_path / "runs/a", 9)
    for step in ("write_record", "CheckpointManager.take_over", "RunFolder._link_tables"):
        folder = claim("a")
        with monkeypatch.context() as broken, pytest.raises(UserError, match="No space left on device"):
            broken.setattr(f"horovod_transformer.training.run_folder.{step}", fail)
            folder.take_over(Takeover(), 20)
        folder.release()
    folder = claim("a")
    folder.take_over(Takeover(), 20)
    assert len(list(tmp_path.glob("runs/a.previous-*/checkpoints/update_00000009.pt"))) == 1


def test_auto_with_a_run_of_commit_efaa3e3_and_others(claim, tmp_path):  # noqa: F811
    shared = tmp_path / "checkpoints"
    shared.mkdir()
    finished = shared / "update_00000200.pt"
    shutil.copy(FILES / "adamw.pt", finished)
    own = write_run(tmp_path / "runs/a", 9)
    assert meant_by_auto(claim) == own / "checkpoints"
    # The same run, asked to go on further, or cut short.
    contents = load_checkpoint(finished)
    contents["config"]["training"].update(max_updates=300, lr_decay_updates=200)
    finished.unlink()
    save_checkpoint(finished, contents)
    with pytest.raises(
        UserError, match="a in .*runs and adamw in .*checkpoints are both unfinished; say which"
    ):
        claim(resume="auto")
    write_record(own, 9, "a")
    assert meant_by_auto(claim) == shared


def meant_by_auto(claim) -> Path:  # noqa: F811
    folder = claim(resume="auto", update=3)
    folder.release()
    return folder.paths.checkpoints


def test_a_copy_is_not_taken_for_the_run_of_a_launch(claim, tmp_path, launch):  # noqa: F811
    launch(1)
    folder = claim()
    folder.take_over(Takeover(), 20)
    folder.release()
    copy = Path(shutil.copytree(folder.paths.own, tmp_path / "runs/0-backup"))
    later = time.time() + 5
    os.utime(copy / "checkpoints/.launch", (later, later))  # as `cp -r` leaves it
    mark = read_launch(copy / "checkpoints")
    assert mark and run_of_launch(of(tmp_path), mark) == folder.paths.name
    # One that was renamed is followed.
    shutil.rmtree(copy)
    folder.paths.own.rename(tmp_path / "runs/renamed")
    assert run_of_launch(of(tmp_path), mark) == "renamed"


def test_another_runs_checkpoint_under_a_name_that_is_taken(train, tmp_path):
    train({"training.max_updates": 2}, run_name="a")
    train({"training.learning_rate": 1e-4}, run_name="b")
    table = (tmp_path / "runs/b/tables/train.csv").read_text()
    update_2 = tmp_path / "runs/a/checkpoints/update_00000002.pt"
    assert train(resume_checkpoint=update_2, run_name="b")["update"] == 4
    (archived,) = tmp_path.glob("runs/b.previous-*")
    assert (archived / "tables/train.csv").read_text() == table
    assert progress_of(archived / "checkpoints/last.pt")["run_name"] == "b"
    assert read_run(tmp_path / "runs/b").train["update"] == [3, 4]
    # A checkpoint of its own is another matter, wherever it lies.
    kept = shutil.copy(tmp_path / "runs/b/checkpoints/update_00000004.pt", tmp_path / "kept.pt")
    assert train(LONGER, resume_checkpoint=kept, run_name="b")["update"] == 6
    assert read_run(tmp_path / "runs/b").train["update"] == [3, 4, 5, 6]
    assert len(list(tmp_path.glob("runs/b.previous-*"))) == 1


def test_a_run_whose_folder_was_moved_to_another_disk(claim, tmp_path):  # noqa: F811
    write_run(tmp_path / "disk/a", 9)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/a").symlink_to(tmp_path / "disk/a")
    (tmp_path / "runs/latest").symlink_to("a")
    (tmp_path / "runs/back").symlink_to("..")
    assert listed(tmp_path) == ["a"]
    folder = claim(resume="auto")
    assert folder.paths.name == "a"
    folder.release()
    with pytest.raises(UserError, match="runs/a: is a link; remove the link, or what it leads to"):
        runs("--output_dir", tmp_path, "--delete", "a", "--yes")
    fresh = claim_fresh(claim, "a")
    assert (fresh / "run.json").is_file() and not fresh.is_symlink()
    assert (tmp_path / "disk/a/checkpoints/update_00000009.pt").is_file()


def claim_fresh(claim, name):  # noqa: F811
    folder = claim(name)
    folder.take_over(Takeover(), 20)
    return folder.paths.own


# Links.


def test_links_follow_a_run_that_is_replaced(train, tmp_path, monkeypatch):
    train(run_name="a")
    last, best = tmp_path / "checkpoints/last.pt", tmp_path / "checkpoints/best_model.pt"
    seen = []

    def look(path, contents):
        if not seen:
            seen.extend((progress_of(last), progress_of(best), (tmp_path / "logs/train_rank0.log").is_file()))
        save_checkpoint(path, contents)

    monkeypatch.setattr("horovod_transformer.checkpoint.manager.save_checkpoint", look)
    train({"training.max_updates": 2}, run_name="a")
    assert [progress["update"] for progress in seen[:2]] == [4, 4] and seen[2]
    assert (leads_to(last), progress_of(last)["update"], progress_of(best)["update"]) == ("a", 2, 2)


def test_links_from_folders_that_are_links_themselves(train, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    for name in ("checkpoints", "logs"):
        (tmp_path / "scratch/deep" / name).mkdir(parents=True)
        (home / name).symlink_to(tmp_path / "scratch/deep" / name)
    train(run_name="a", output_dir=home)
    assert progress_of(home / "checkpoints/last.pt")["update"] == 4
    assert "run a: " in (home / "logs/train_rank0.log").read_text()
    assert train(LONGER, resume_checkpoint=home / "checkpoints/last.pt", output_dir=home)["run_name"] == "a"


def test_a_file_system_without_links(train, tmp_path, monkeypatch, capsys):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(arguments[1]))

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(os, "link", refuse)
    train({"training.max_updates": 2}, run_name="a")
    said = capsys.readouterr().out
    tables = tmp_path / "runs/a/tables"
    assert f"{tmp_path}/runs/structured/a does not lead to this run's, which is {tables}: " in said
    assert train(LONGER, resume_checkpoint="auto")["update"] == 6
    assert train(run_name="a")["update"] == 4
    assert read_run(tmp_path / "runs/a").train["update"] == [1, 2, 3, 4]
    (archived,) = tmp_path.glob("runs/a.previous-*")
    assert read_run(archived).train["update"] == [1, 2, 3, 4, 5, 6]


def test_a_link_of_a_removed_run_is_in_nobodys_way(train, tmp_path):
    train({"training.max_updates": 2}, run_name="a")
    shutil.rmtree(tmp_path / "runs/a")
    train(run_name="a/b")
    assert read_run(tmp_path / "runs/structured/a/b").train["update"] == [1, 2, 3, 4]
    assert leads_to(tmp_path / "checkpoints/last.pt") == "b"


# Looking.


def test_folders_that_are_not_ours_to_look_into(tmp_path):
    write_run(tmp_path / "runs/a", 4)
    closed = write_run(tmp_path / "runs/closed", 4)
    tmp_path.chmod(0o755)
    root = os.geteuid() == 0
    closed.chmod(0)
    try:
        if root:
            for parent in tmp_path.parents[:3]:
                parent.chmod(0o755)
            os.seteuid(65534)
        assert listed(tmp_path) == ["a"]
        assert run_to_resume(of(tmp_path)) == "a"
    finally:
        if root:
            os.seteuid(0)
        closed.chmod(0o755)


def test_a_file_system_that_fails_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    write_run(tmp_path / "runs/a", 4)

    def fail(folder):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(folder))

    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(UserError, match="runs: cannot be looked into: Stale file handle"):
        run_to_resume(of(tmp_path))


@pytest.mark.parametrize("began", ["2026-01-31T23:59:59+00:00", 5, None, "never"])
def test_records_that_were_edited_are_listed(tmp_path, capsys, began):
    own = write_run(tmp_path / "runs/a", 4)
    write_run(tmp_path / "runs/b", 4)
    (own / "run.json").write_text(json.dumps({"began": began, "updates": "many"}))
    (own / "checkpoints/update_².pt").touch()
    runs("--output_dir", tmp_path)
    assert "4 of ?" in capsys.readouterr().out


def test_reports_of_runs_in_folders(train, tmp_path):
    train(run_name="tests/first")
    own = tmp_path / "runs/tests/first"
    (own / "evaluation").mkdir()
    (own / "evaluation/evaluation.json").write_text(json.dumps({"model": {"run": "tests/first"}}))
    for place in (own, own / "tables", tmp_path, tmp_path / "runs", tmp_path / "runs/structured/tests/first"):
        run = read_run(place)
        assert run.evaluation and run.stall
    own.rename(tmp_path / "runs/renamed")
    assert read_run(tmp_path / "runs/renamed").evaluation and read_run(tmp_path / "runs/renamed").stall


def test_what_is_no_checkpoint_is_named(train, tmp_path):
    train({"training.max_updates": 2}, run_name="a")
    for folder in ("runs/a", "runs/a/checkpoints"):
        with pytest.raises(UserError, match="is a folder; name a file, such as .*runs/a/checkpoints/last.pt"):
            train(resume_checkpoint=tmp_path / folder)
    shutil.rmtree(tmp_path / "runs/a")
    with pytest.raises(UserError, match="last.pt: leads to .*runs/a/checkpoints/last.pt, which is gone"):
        train(resume_checkpoint=tmp_path / "checkpoints/last.pt")
    assert not list(tmp_path.glob("runs/2*"))
