"""What a run says of its speed, once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from horovod_transformer.training.recorder import SPEED_KNOWN_AFTER, UpdateRecorder


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
    recorder._logger = SimpleNamespace(say=lines.append)
    recorder.say_speed()
    assert lines == said
