"""How ranks on CPUs are set up."""

from __future__ import annotations

import multiprocessing
import resource
import socket

import pytest

from horovod_transformer.distributed.bootstrap import (
    OTHER_FILES,
    _make_room_for_sockets,
    _require_horovodrun,
    cpu_cycle_time_ms,
)
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


def _limits_afterwards(soft, hard, ranks, hierarchical, pipe):
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    names = {"HOROVOD_SIZE": ranks, "HOROVOD_LOCAL_SIZE": 8, "HOROVOD_CROSS_SIZE": ranks // 8}
    try:
        _make_room_for_sockets({name: str(size) for name, size in names.items()}, hierarchical)
        pipe.send(resource.getrlimit(resource.RLIMIT_NOFILE))
    except UserError as error:
        pipe.send(str(error))


def limits_afterwards(soft, hard, ranks, hierarchical=False):
    fork = multiprocessing.get_context("fork")  # what a process has given away it does not get back
    ours, theirs = fork.Pipe()
    process = fork.Process(target=_limits_afterwards, args=(soft, hard, ranks, hierarchical, theirs))
    process.start()
    assert ours.poll(60)
    process.join()
    return ours.recv()


def test_ranks_may_open_as_many_sockets_as_their_user():
    # Twice 511 + 7 + 63, which a soft limit of 1,024 does not hold.
    assert limits_afterwards(1024, 4096, 512) == (4096, 4096)
    assert limits_afterwards(4096, 4096, 8) == (4096, 4096)
    wanted = 2 * (511 + 7 + 63) + OTHER_FILES
    told = f"each of 512 ranks opens up to {wanted} files and sockets, but the hard limit on "
    assert limits_afterwards(500, 1000, 512).startswith(told)
    # Sums in two steps have process sets of their own.
    assert f" {2 * 511 + 8 * (7 + 63) + OTHER_FILES} files" in limits_afterwards(500, 1000, 512, True)
