"""A run's folders have one owner; and a launch that brings nothing, start after start, is ended."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from horovod_transformer.checkpoint.manager import CheckpointManager
from horovod_transformer.config_sections import PathsConfig
from horovod_transformer.errors import UserError
from horovod_transformer.training import run_folder
from horovod_transformer.training.resume import Start, StartRequest, TrainState
from horovod_transformer.training.run_folder import RunFolder, require_progress


@pytest.fixture
def claim(tmp_path):
    """Claim the folders of a run: checkpoints of its own, records in a `runs/` that all share."""
    with ExitStack() as claimed:

        def start(checkpoints, name="", update=0):
            folder = RunFolder(
                CheckpointManager(tmp_path / checkpoints), PathsConfig(tensorboard_dir=str(tmp_path / "runs"))
            )
            claimed.callback(folder.release)
            found = folder.claim(StartRequest(), lambda _: Start(TrainState(name, {}, update=update)))
            return folder, found.state.run_name

        yield start


def test_a_name_is_one_runs_at_a_time(claim, tmp_path):
    first, _ = claim("a", "exp")
    with pytest.raises(UserError, match=r"structured/exp: .*is writing here; .* \(or another --run_name\)"):
        claim("b", "exp")
    with pytest.raises(UserError, match="is writing here"):
        claim("c", "exp", update=5)  # resumes a copy of its checkpoint
    claim("d", "tests/exp")
    first.release()
    assert claim("e", "exp")[1] == "exp"
    assert not list(tmp_path.glob("runs/structured/**/.exp.lock-*"))


def test_runs_that_begin_in_the_same_second_have_names_of_their_own(claim, tmp_path, monkeypatch):
    class Clock(run_folder.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 31, 23, 59, 58)

    monkeypatch.setattr(run_folder, "datetime", Clock)
    first, name = claim("a")
    assert name == "20260131-235958"
    assert claim("b")[1] == "20260131-235958-2"
    # One that has ended has left its records.
    (tmp_path / "runs" / "structured" / name).mkdir()
    first.release()
    assert claim("c")[1] == "20260131-235958-3"


@pytest.mark.parametrize("folder", ["runs/structured/tests/first", "runs/tests/first"])
def test_a_fresh_run_does_not_move_folders_of_others(claim, tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True)
    resumed, name = claim("b", "tests", update=3)
    assert name == "tests"
    resumed.release()
    with pytest.raises(UserError, match="--run_name tests: .*tests holds other folders; choose another name"):
        claim("a", "tests")


def test_records_that_cannot_be_written_are_one_line(claim, tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="runs.*: cannot write the run's records: "):
        claim("a", "exp")


def test_two_starts_in_a_row_without_a_new_checkpoint_end_a_launch(tmp_path):
    # Attempts 0 and 1 brought a checkpoint each, 2 and 3 none.
    for attempt, update in enumerate((0, 10, 20, 20)):
        require_progress(tmp_path, "job", attempt, update)
    with pytest.raises(UserError, match="two starts in a row ended before a new checkpoint, .* of update 20"):
        require_progress(tmp_path, "job", 4, 20)


def test_other_launches_and_first_starts_count_afresh(tmp_path):
    for launch in ("one", "other", None):
        for attempt in (0, 1, 0, 1):
            require_progress(tmp_path, launch, attempt, 20)
    (tmp_path / ".starts").write_text("{broken")
    require_progress(tmp_path, "one", 2, 20)


@pytest.mark.parametrize("recorded", ["job\nfirst", "job"], ids=["now", "by an earlier version"])
def test_a_later_start_resumes_its_own_launchs_run(tmp_path, monkeypatch, recorded):
    monkeypatch.setattr(run_folder.distributed, "launch_id", lambda: "job")
    monkeypatch.setattr(run_folder.distributed, "attempt", lambda: 1)

    def wanted(name):
        found = []
        manager = CheckpointManager(tmp_path / "checkpoints")
        folder = RunFolder(manager, PathsConfig(tensorboard_dir=str(tmp_path / "runs")))

        def find(request):
            found.append(request.resume)
            return Start(TrainState(name, {}))

        folder.claim(StartRequest(run_name=name), find)
        folder.release()
        return found[0]

    # The first start of this launch ended before its first update: nothing was recorded.
    assert wanted("first") is None
    CheckpointManager(tmp_path / "checkpoints").record_launch(recorded)
    assert wanted("first") == "auto"
    if recorded != "job":
        # Another experiment of the same Slurm job is another run.
        assert wanted("second") is None
