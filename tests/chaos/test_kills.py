"""A run that is killed six times ends as the run that was left alone; `make chaos` does it fifty times."""

from __future__ import annotations

import pytest

from tests.chaos.chaos import table_of
from tests.chaos.kill_test import KillTest, RanksTest
from tests.chaos.launch_test import LaunchTest

KILLS = 6
UPDATES = 8 * KILLS + 20


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The run that was left alone, under horovodrun."""
    test = KillTest(tmp_path_factory.mktemp("reference"), UPDATES, seed=0)
    test.run_straight()
    return test


def beside(reference, kind, folder, seed):
    """A test of the same run, with the reference's outcome for its own."""
    test = kind(folder, UPDATES, seed)
    (folder / "straight").symlink_to(reference.folder / "straight")
    test.start_up_s = reference.start_up_s
    return test


@pytest.mark.distributed
@pytest.mark.slow
def test_a_run_killed_again_and_again_is_the_same_run(reference, tmp_path):
    kill_test = beside(reference, KillTest, tmp_path, seed=1)
    kill_test.run_killed(KILLS)
    print("\n".join(table_of(kill_test.kills, kill_test.missing())))
    assert kill_test.differences() == []
    assert len(kill_test.kills) == KILLS
    assert {kill.moment for kill in kill_test.kills} == {"start-up", "training", "checkpoint"}
    # A rank's death ends the job; nothing of it runs on.
    assert all(kill.left == 0 for kill in kill_test.kills if kill.victim != "horovodrun")
    # Otherwise no kill cost anything, and the run was never in danger.
    assert sum(kill.recomputed or 0 for kill in kill_test.kills) > 0


@pytest.mark.distributed
@pytest.mark.slow
def test_a_launcher_alone_brings_a_run_to_its_end(reference, tmp_path):
    launch_test = beside(reference, LaunchTest, tmp_path, seed=2)
    launch_test.run_killed(2)
    assert launch_test.differences() == []
    # How much each kill cost is a matter of moments; of two it may be nothing.
    assert len(launch_test.kills) == 2


@pytest.mark.more
@pytest.mark.distributed
def test_a_run_killed_on_changing_numbers_of_ranks_is_the_same_run(tmp_path):
    ranks_test = RanksTest(tmp_path, 52, seed=3)
    ranks_test.run_straight()
    ranks_test.run_killed(4)
    assert ranks_test.differences() == []
