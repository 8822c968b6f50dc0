"""Rank 0 serves its own ranks, whatever strangers send: real sockets on the loopback."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from horovod_transformer.distributed import rendezvous, rendezvous_server
from horovod_transformer.distributed.rendezvous_server import RendezvousServer, gloo_address
from horovod_transformer.system.job_secret import JobSecret

SECRET = JobSecret("of this job, and nobody else's", "slurm-7.0")
LIMIT_S = 20.0


@pytest.fixture
def server():
    one = RendezvousServer("127.0.0.1", 0, SECRET, 3)
    yield one
    one.close()


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def send(server: RendezvousServer, raw: bytes) -> socket.socket:
    connection = socket.create_connection(server.address, timeout=LIMIT_S)
    connection.sendall(raw)
    return connection


def answer_to(server: RendezvousServer, raw: bytes) -> tuple[int, bytes]:
    """Status and body; 0 if the connection is closed without a word."""
    with send(server, raw) as connection:
        try:
            # A server that hangs up on bytes that it has not read resets the connection.
            received = b"".join(iter(lambda: connection.recv(2**16), b""))
        except ConnectionResetError:
            return 0, b""
    head, _, body = received.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), body


def report_as(server: RendezvousServer, rank: int, secret: JobSecret = SECRET):
    """What a rank does: returns rank 0's answer."""
    nonce = rendezvous._say_hello(secret, server.address)
    end = time.monotonic() + LIMIT_S
    while (answer := rendezvous._report(rank, secret, nonce, server.address, {"from": rank}, end)) is None:
        assert time.monotonic() < end  # one of this rank's reports, sent by the test, is still there
        time.sleep(0.05)
    return answer


def assert_serves_its_ranks(server: RendezvousServer) -> None:
    with ThreadPoolExecutor() as ranks:
        answers = [ranks.submit(report_as, server, rank) for rank in (1, 2)]
        assert server.wait_for_reports(time.monotonic() + LIMIT_S) == {1: {"from": 1}, 2: {"from": 2}}
        server.answer([{"rank": rank} for rank in range(3)])
        assert [answer.result(LIMIT_S) for answer in answers] == [{"rank": 1}, {"rank": 2}]


def signed(
    server: RendezvousServer, rank: int, secret: JobSecret = SECRET, nonce: str | None = None
) -> bytes:
    """A rank's report, by whom and for which start it may be."""
    body = json.dumps({"from": rank})
    signature = secret.sign("report", nonce or server.nonce, str(rank), body)
    return request("PUT", f"/report/{rank}", body.encode(), Signature=signature)


def test_reports_are_heard_and_answered(server):
    assert_serves_its_ranks(server)


def test_ranks_that_come_at_once_need_not_knock_twice(server):
    # As if rank 0 had no time to look: those that the system does not keep in line try again after a second,
    # and after more the next time.
    with server._changed:
        connections = [socket.create_connection(server.address, timeout=5) for _ in range(200)]
    for connection in connections:
        connection.close()


def test_a_strangers_report_is_refused_in_a_line(server, capfd):
    of_rank_1 = signed(server, 1)
    reports = {
        "no signature": request("PUT", "/report/1", b'{"from": 1}'),
        "another secret": signed(server, 1, JobSecret("a guess, but a long one", SECRET.job)),
        "a replay from another job of the same user": signed(
            server, 1, JobSecret("of this job, and nobody else's", "slurm-8.0")
        ),
        "a replay from an earlier start": signed(server, 1, nonce="0" * 32),
        "another rank's signature": of_rank_1.replace(b"/report/1", b"/report/2"),
        "another text": of_rank_1.replace(b'"from": 1', b'"from": 2'),
        "a signature that is no ASCII": request("PUT", "/report/1", b"{}", Signature="\xe9" * 64),
        "a number that is none": signed(server, 1).replace(b"/report/1", b"/report/-1"),
        "a path that no rank knows": request("GET", "/"),
    }
    for kind, raw in reports.items():
        assert answer_to(server, raw)[0] == 403, kind
    assert server.wait_for_reports(time.monotonic()) == {}
    # One line for an address, however often it tries.
    assert capfd.readouterr().err == (
        "refused an unsigned report from 127.0.0.1: it comes from another job or a stranger, and this job "
        "goes on without it\n"
    )
    assert_serves_its_ranks(server)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 403),  # the beginning of TLS
        (b"GET\r\n\r\n", 403),
        (b"\r\n\r\n", 403),
        (b"GET /hello/" + b"x" * 9000, 400),  # a head without an end
        (b"PUT /report/1 HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"PUT /report/1 HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (b"PUT /report/1 HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"PUT /report/1 HTTP/1.1\r\nContent-Length: 1e3\r\n\r\n", 400),
        (b"PUT /report/1 HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n", 400),
        (b"PUT /report/1 HTTP/1.1\r\n\r\n", 403),
        (b"PUT /report/\xff HTTP/1.1\r\n\r\n", 403),
    ],
)
def test_nonsense_harms_nobody(server, raw, status):
    assert answer_to(server, raw)[0] == status
    assert_serves_its_ranks(server)


def test_bytes_at_random_harm_nobody(server):
    chance = random.Random(0)
    path = gloo_address(SECRET, server.nonce, server.address).partition("/")[2]
    valid = [
        signed(server, 1),
        request("GET", "/hello/abc"),
        request("PUT", f"/{path}:{server.address[1]}/global_/1", b"x" * 300),
    ]
    for _ in range(200):
        raw = bytearray(chance.choice(valid))
        for _ in range(chance.randint(1, 8)):
            place = chance.randrange(len(raw))
            kind = chance.randrange(3)
            if kind == 0:
                raw[place] = chance.randrange(256)
            elif kind == 1:
                del raw[place : place + chance.randrange(20)]
                raw = raw or bytearray(b"x")
            else:
                raw[place:place] = chance.randbytes(chance.randrange(20))
        send(server, bytes(raw)).close()
    assert_serves_its_ranks(server)


def test_who_says_nothing_keeps_nobody_waiting(server, monkeypatch):
    monkeypatch.setattr(rendezvous_server, "QUIET_S", 1.0)
    beginnings = (b"", b"GET /hel", b"PUT /report/1 HTTP/1.1\r\nContent-Length: 100\r\n\r\nab")
    silent = [send(server, beginnings[number % 3]) for number in range(100)]
    assert_serves_its_ranks(server)
    for connection in silent:
        assert connection.recv(1) == b""  # it is given up in the end
        connection.close()


def test_a_flood_of_silent_connections_leaves_room(server, monkeypatch):
    monkeypatch.setattr(rendezvous_server, "BACKLOG", 20)
    silent = [send(server, b"") for _ in range(100)]
    assert_serves_its_ranks(server)
    for connection in silent:
        connection.close()


def test_a_rank_that_dies_while_it_waits_has_not_come(server):
    waiting = send(server, signed(server, 1))
    with server._changed:
        assert server._changed.wait_for(lambda: server._reports, LIMIT_S)
    waiting.close()
    end = time.monotonic() + LIMIT_S
    while server.wait_for_reports(time.monotonic()):
        assert time.monotonic() < end
    assert_serves_its_ranks(server)


def test_a_report_that_is_repeated_does_not_take_a_ranks_answer(server):
    with send(server, signed(server, 1)) as first:
        with server._changed:
            assert server._changed.wait_for(lambda: server._reports, LIMIT_S)
        assert answer_to(server, signed(server, 1))[0] == 409
        server.answer([{}, {"rank": 1}, {}])
        assert b"200 OK" in first.recv(2**16)


def test_gloos_requests_want_the_path_that_only_ranks_know(server, capfd):
    address = gloo_address(SECRET, server.nonce, server.address)
    host, _, word = address.partition("/")
    assert host == f"127.0.0.1:{server.address[1]}"
    known = f"/{word}:{server.address[1]}"
    others = ["", "/" + "0" * 64 + f":{server.address[1]}", known[:-1], known.upper()]
    others.append("/" + gloo_address(SECRET, "0" * 32, server.address).partition("/")[2])
    for other in others:
        for method in ("GET", "PUT", "DELETE"):
            assert answer_to(server, request(method, f"{other}/global_/1", b"mine"))[0] == 403
    assert word not in capfd.readouterr().err
    assert answer_to(server, request("PUT", f"{known}/global_/1", b"a" * 2**20)) == (200, b"")
    assert answer_to(server, request("GET", f"{known}/global_/1")) == (200, b"a" * 2**20)
    assert answer_to(server, request("DELETE", f"{known}/global_/1")) == (200, b"")
    # The others may still want it.
    assert answer_to(server, request("GET", f"{known}/global_/1"))[0] == 200


def test_gloo_waits_for_a_key_without_asking_again(server, monkeypatch):
    path = gloo_address(SECRET, server.nonce, server.address).partition("/")[2] + f":{server.address[1]}"
    monkeypatch.setattr(rendezvous_server, "HOLD_S", 0.1)
    assert answer_to(server, request("GET", f"/{path}/global_/3"))[0] == 404
    monkeypatch.setattr(rendezvous_server, "HOLD_S", LIMIT_S)
    waiting = [send(server, request("GET", f"/{path}/global_/2")) for _ in range(3)]
    putting = threading.Timer(0.3, answer_to, (server, request("PUT", f"/{path}/global_/2", b"here")))
    putting.start()
    for connection in waiting:
        with connection:
            assert connection.recv(2**16).endswith(b"\r\n\r\nhere")
    putting.join()
