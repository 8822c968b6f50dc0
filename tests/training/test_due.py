"""When something is due."""

from __future__ import annotations

import pytest

from horovod_transformer.training.due import Every


@pytest.mark.parametrize(
    ("every", "due"),
    [
        (Every(3), [3, 6, 9]),
        (Every(3, last=8), [3, 6, 8, 9]),
        (Every(4, last=8), [4, 8]),
        (Every(1), list(range(1, 10))),
        (Every(None), []),
        (Every(None, last=5), [5]),
    ],
)
def test_due_at_each_interval_and_at_the_end(every, due):
    assert [update for update in range(10) if every.is_due(update)] == due
