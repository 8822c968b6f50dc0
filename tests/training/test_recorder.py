"""What a run says of its speed, once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from horovod_transformer.training.metrics.phase_timer import PHASES
from horovod_transformer.training.recorder import SPEED_KNOWN_AFTER, WARM_UP, UpdateRecorder


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (0, []),  # the run is over
        (1, ["at 5,000 tokens/s what is left, 1 update, takes 2 s"]),
        (3600, ["at 5,000 tokens/s what is left, 3,600 updates, takes 2.0 hours"]),
    ],
)
def test_what_is_left_is_said_in_the_unit_that_suits_it(left, said):
    lines: list[str] = []
    recorder = object.__new__(UpdateRecorder)
    recorder._throughput = SimpleNamespace(
        updates=SPEED_KNOWN_AFTER, updates_per_second=0.5, tokens_per_second=5000.0
    )
    recorder._total, recorder._state = 20 + left, SimpleNamespace(update=20)
    recorder._logger, recorder._plan = SimpleNamespace(say=lines.append), SimpleNamespace(world_size=1)
    recorder.say_speed()
    assert lines == said


def test_several_processes_hear_what_share_of_an_update_is_waiting():
    lines: list[str] = []
    recorder = object.__new__(UpdateRecorder)
    recorder._plan, recorder._logger = SimpleNamespace(world_size=2), SimpleNamespace(say=lines.append)
    recorder._total, recorder._state = 100, SimpleNamespace(update=20)
    recorder._about_waiting = "{:.2f} waiting".format
    recorder._throughput = SimpleNamespace(updates=WARM_UP, updates_per_second=1.0, tokens_per_second=1.0)
    seconds = dict.fromkeys(PHASES, 1.0) | {"gradient_wait": 50.0}  # of the slow first updates
    recorder._timer = SimpleNamespace(totals=lambda: dict(seconds))
    recorder.say_speed()
    assert not lines
    seconds |= {"gradient_wait": 52.0, "forward": 2.0, "backward": 4.0, "optimizer": 3.0, "other": 90.0}
    recorder._throughput.updates = SPEED_KNOWN_AFTER
    recorder.say_speed()
    assert lines[1:] == ["0.25 waiting"]
