"""A run that is killed six times ends as the run that was left alone; `make chaos` does it fifty times."""

from __future__ import annotations

import pytest

from tests.chaos.chaos import table_of
from tests.chaos.kill_test import Ordeal

KILLS = 6


@pytest.mark.distributed
@pytest.mark.slow
def test_a_run_killed_again_and_again_is_the_same_run(tmp_path):
    ordeal = Ordeal(tmp_path, updates=8 * KILLS + 20, seed=1)
    ordeal.run_straight()
    ordeal.run_killed(KILLS)
    print("\n".join(table_of(ordeal.kills, ordeal.missing())))
    assert ordeal.differences() == []
    assert len(ordeal.kills) == KILLS
    assert {kill.moment for kill in ordeal.kills} == {"start-up", "training", "checkpoint"}
    # A rank's death ends the job; nothing of it goes on.
    assert all(kill.left == 0 for kill in ordeal.kills if kill.victim != "horovodrun")
    # Otherwise no kill cost anything, and the run was never in danger.
    assert sum(kill.recomputed or 0 for kill in ordeal.kills) > 0
