"""A run's folders have one owner; and a launch that brings nothing, start after start, is ended."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from horovod_transformer.checkpoint.manager import Takeover
from horovod_transformer.checkpoint.run_folders import mark_replaced, write_record
from horovod_transformer.config_sections import PathsConfig
from horovod_transformer.errors import UserError
from horovod_transformer.training import run_folder
from horovod_transformer.training.launches import require_progress
from horovod_transformer.training.resume import Start, StartRequest, TrainState
from horovod_transformer.training.run_folder import RunFolder


@pytest.fixture
def claim(tmp_path):
    """Claim a run's folder as rank 0 does; what the request resumes is not looked at."""
    with ExitStack() as claimed:

        def start(name=None, home="", resume=None, update=0, **paths):
            folder = RunFolder(PathsConfig(output_dir=str(tmp_path / home), **paths), 2, None)
            claimed.callback(folder.release)
            requests = []

            def find_start(request):
                requests.append(request)
                takeover = Takeover(resumed=tmp_path / "a.pt" if update else None)
                return Start(TrainState(name or "", {}, update=update), takeover=takeover)

            folder.claim(StartRequest(resume, run_name=name), find_start)
            folder.requests = requests
            return folder

        yield start


def write_run(folder, update, updates=20):
    """A run that has come to an update."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / f"update_{update:08}.pt").touch()
    write_record(folder, updates)
    return folder


def test_a_name_is_one_runs_at_a_time(claim, tmp_path):
    first = claim("exp")
    with pytest.raises(UserError, match=r"runs/exp: .*is writing here; .* \(or another --run_name\)"):
        claim("exp")
    with pytest.raises(UserError, match="is writing here"):
        claim("exp", update=5)  # resumes a copy of its checkpoint
    claim("tests/exp")
    claim("exp", home="elsewhere")
    first.release()
    assert claim("exp").paths.own == tmp_path / "runs/exp"
    assert not list(tmp_path.glob("runs/**/.exp.lock-*"))


def test_runs_with_folders_of_their_own_do_not_share_tables(claim):
    shared = {"tensorboard_dir": "../runs"}
    claim("exp", home="a", **shared)
    with pytest.raises(UserError, match=r"structured/exp: .*is writing here; .* \(or another --run_name\)"):
        claim("exp", home="b", **shared)


def test_runs_that_begin_in_the_same_second_have_names_of_their_own(claim, tmp_path, monkeypatch):
    class Clock(run_folder.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 31, 23, 59, 58)

    monkeypatch.setattr(run_folder, "datetime", Clock)
    first = claim()
    assert first.paths.name == "20260131-235958"
    assert claim().paths.name == "20260131-235958-2"
    # One that has ended has left its folder.
    write_run(first.paths.own, 4)
    first.release()
    assert claim().paths.name == "20260131-235958-3"


@pytest.mark.parametrize("folder", ["runs/structured/tests/first", "runs/tests/first"])
def test_a_fresh_run_does_not_move_folders_of_others(claim, tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True)
    shared = {"tensorboard_dir": "runs"}
    claim("tests", update=3, **shared).release()
    with pytest.raises(UserError, match="--run_name tests: .*tests holds other folders; choose another name"):
        claim("tests", **shared)


def test_a_run_does_not_lie_in_another_ones_folder(claim, tmp_path):
    write_run(tmp_path / "runs/a", 4)
    with pytest.raises(UserError, match="--run_name a/b/c: .*runs/a is another run's; choose another name"):
        claim("a/b/c")
    write_run(tmp_path / "runs/d/e", 4)
    with pytest.raises(UserError, match="--run_name d: .*runs/d holds other folders; choose another name"):
        claim("d")


def test_records_that_cannot_be_written_are_one_line(claim, tmp_path):
    (tmp_path / "runs").write_text("a file")
    for name in ("exp", None):
        with pytest.raises(UserError, match="runs.*: cannot write the run's records: "):
            claim(name)


def test_auto_resumes_the_only_unfinished_run(claim, tmp_path):
    runs = tmp_path / "runs"
    assert claim(resume="auto").paths.name not in ("a", "b")  # there is none yet
    write_run(runs / "a", 20)
    assert claim(resume="auto").paths.name == "a"  # to hear that it is finished, or to go on further
    write_run(runs / "b", 7)
    mark_replaced(write_run(runs / "b.previous-20260131-235958", 9))
    (runs / "b/checkpoints/previous-1").mkdir()
    assert claim(resume="auto").paths.name == "b"
    write_run(runs / "tests/c", 3)
    with pytest.raises(
        UserError, match=r"runs holds 2 unfinished runs: b, tests/c; say which with --run_name"
    ):
        claim(resume="auto")
    assert claim("tests/c", resume="auto").paths.own == runs / "tests/c"
    assert claim("d", resume="auto").paths.own == runs / "d"


def test_auto_does_not_guess_among_finished_runs(claim, tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, 20)
    with pytest.raises(UserError, match="holds 2 runs, all of them finished: a, b; say which with"):
        claim(resume="auto")


def test_two_starts_in_a_row_without_a_new_checkpoint_end_a_launch(tmp_path):
    # Attempts 0 and 1 brought a checkpoint each, 2 and 3 none.
    for attempt, update in enumerate((0, 10, 20, 20)):
        require_progress(tmp_path / "starts", "job", attempt, update)
    with pytest.raises(UserError, match="two starts in a row ended before a new checkpoint, .* of update 20"):
        require_progress(tmp_path / "starts", "job", 4, 20)


def test_other_launches_and_first_starts_count_afresh(tmp_path):
    for launch in ("one", "other", None):
        for attempt in (0, 1, 0, 1):
            require_progress(tmp_path / "starts", launch, attempt, 20)
    (tmp_path / "starts").write_text("{broken")
    require_progress(tmp_path / "starts", "one", 2, 20)


@pytest.fixture
def launch(monkeypatch):
    """Be the start of a launch: `launch(attempt, arguments)`."""

    def become(attempt, *arguments):
        monkeypatch.setattr(run_folder.distributed, "launch_id", lambda: "job")
        monkeypatch.setattr(run_folder.distributed, "attempt", lambda: attempt)
        monkeypatch.setattr("sys.argv", ["train", *arguments])

    return become


@pytest.mark.parametrize("name", [None, "first"])
def test_a_later_start_resumes_its_own_launchs_run(claim, tmp_path, launch, name):
    launch(1, "--seed", "1")
    folder = claim(name)
    # The first start of this launch ended before its first update: nothing was recorded.
    assert folder.requests[0].resume is None
    folder.take_over(Takeover(), 20)
    folder.release()
    begun = folder.paths.name
    again = claim(name)
    assert (again.paths.name, again.requests[0].resume) == (begun, "auto")
    again.release()
    # Another experiment of the same Slurm job is another run.
    launch(1, "--seed", "2")
    other = claim("second" if name else None)
    assert other.paths.name != begun and other.requests[0].resume is None


@pytest.mark.parametrize("recorded", ["job\nfirst", "job"])
def test_a_launch_that_commit_efaa3e3_began_is_gone_on_with(claim, tmp_path, launch, recorded):
    launch(1)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/.launch").write_text(recorded)
    (tmp_path / "checkpoints/last.pt").touch()
    folder = claim("first", update=3)
    assert folder.requests[0].resume == "auto"
    assert folder.paths.checkpoints == tmp_path / "checkpoints"
    assert folder.paths.tables == tmp_path / "runs/structured/first"
