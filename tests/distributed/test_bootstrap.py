"""How ranks on CPUs are set up."""

from __future__ import annotations

import socket

import pytest

from horovod_transformer.distributed.bootstrap import _require_horovodrun, cpu_cycle_time_ms
from horovod_transformer.errors import UserError


@pytest.mark.parametrize(
    ("flops", "milliseconds"),
    [(0.0, 10.0), (3e10, 10.0), (1.5e11, 20.0), (3e11, 40.0), (1e15, 50.0)],
)
def test_horovod_looks_less_often_in_longer_updates(flops, milliseconds):
    assert cpu_cycle_time_ms(flops) == pytest.approx(milliseconds)


def test_what_horovodrun_left_behind(monkeypatch):
    for name in ("ADDR", "PORT"):
        monkeypatch.delenv(f"HOROVOD_GLOO_RENDEZVOUS_{name}", raising=False)
    told = "no horovodrun answers: launch with horovodrun, or unset the two"
    with pytest.raises(UserError, match=told):
        _require_horovodrun()
    monkeypatch.setenv("HOROVOD_GLOO_RENDEZVOUS_ADDR", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HOROVOD_GLOO_RENDEZVOUS_PORT", str(server.getsockname()[1]))
        _require_horovodrun()
    with pytest.raises(UserError, match=told):  # it has ended
        _require_horovodrun()
