"""Which ranks of a run read its blocks ahead."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from horovod_transformer import distributed
from horovod_transformer.training.trainer import Trainer


@pytest.mark.parametrize(
    ("nodes", "local_rank", "update", "reads"),
    [(1, 0, 0, True), (1, 1, 0, False), (8, 0, 0, True), (16, 0, 0, False), (8, 0, 5, False)],
)
def test_one_rank_of_a_node_that_takes_enough(monkeypatch, nodes, local_rank, update, reads):
    # An epoch of ten updates on nodes of four ranks.
    monkeypatch.setattr(distributed, "get_local_size", lambda: 4)
    monkeypatch.setattr(distributed, "get_local_rank", lambda: local_rank)
    split = SimpleNamespace(files=[])
    run = SimpleNamespace(
        total=10,
        state=SimpleNamespace(update=update),
        plan=SimpleNamespace(blocks=1000, global_batch_size=100, world_size=4 * nodes),
        data=SimpleNamespace(train=split, validation=split),
    )
    assert isinstance(Trainer._reading_ahead(run), nullcontext) != reads
