"""How ranks on CPUs are set up."""

from __future__ import annotations

import pytest

from horovod_transformer.distributed.bootstrap import cpu_cycle_time_ms


@pytest.mark.parametrize(
    ("flops", "milliseconds"),
    [(0.0, 10.0), (3e10, 10.0), (1.5e11, 20.0), (3e11, 40.0), (1e15, 50.0)],
)
def test_horovod_looks_less_often_in_longer_updates(flops, milliseconds):
    assert cpu_cycle_time_ms(flops) == pytest.approx(milliseconds)
