"""Ranks meet under torchrun and srun: real processes with a launcher's variables, and torchrun itself."""

from __future__ import annotations

import multiprocessing
import os
import re
import socket
import sys
import time
from contextlib import ExitStack, closing, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import PrefixStore, TCPStore

from horovod_transformer.distributed import hosts, rendezvous
from horovod_transformer.errors import UserError
from horovod_transformer.system.job_secret import VARIABLE as SECRET
from horovod_transformer.system.launch_environment import read_launch
from tests.conftest import PATIENCE_S

FORK = multiprocessing.get_context("fork")


def free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def srun(rank: int, size: int, **more: str) -> dict[str, str]:
    """What srun tells a task."""
    return {
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_PROCID": str(rank),
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "no-such-host[1-2]",
        "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
        "HOROVOD_START_TIMEOUT": "120",
        SECRET: "what the ranks of all these jobs know",
        **more,
    }


def _meet(environment: dict[str, str], address: str | None, pipe) -> None:
    os.environ.update(environment)
    if address is not None:
        hosts.usable_address = lambda name: address
    try:
        meeting = rendezvous.meet(read_launch(os.environ))
        pipe.send({**meeting.variables, "attempt": meeting.attempt})
        pipe.recv()  # rank 0 serves until all have met
    except UserError as error:
        pipe.send((str(error), error.only_here))


class Rank:
    """A process that meets the others of its job.

    Args:
        environment: A launcher's variables.
        address: What its host's name stands for.
    """

    def __init__(self, environment: dict[str, str], address: str | None = None) -> None:
        self.pipe, theirs = FORK.Pipe()
        self.process = FORK.Process(target=_meet, args=(environment, address, theirs), daemon=True)
        self.process.start()

    def result(self, timeout: float = PATIENCE_S):
        assert self.pipe.poll(timeout), "it neither met the others nor gave up"
        return self.pipe.recv()

    def end(self) -> None:
        self.process.kill()
        self.process.join(60)


@pytest.fixture
def start():
    ranks = []

    def start(*arguments, **options):
        ranks.append(Rank(*arguments, **options))
        return ranks[-1]

    yield start
    for rank in ranks:
        rank.end()


def places(results):
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")
    return [tuple(int(result[f"HOROVOD_{name}"]) for name in names) for result in results]


def test_ranks_of_two_nodes_learn_their_places(start):
    nodes = ["n1", "n1", "n2"]
    results = [start(srun(rank, 3, SLURMD_NODENAME=nodes[rank])) for rank in range(3)]
    results = [rank.result() for rank in results]
    assert places(results) == [(0, 3, 0, 2, 0, 2), (1, 3, 1, 2, 0, 1), (2, 3, 0, 1, 1, 2)]
    # On the one address that the others reach it by, not on all, and below a path that nobody else knows.
    (address,) = {result["HOROVOD_GLOO_RENDEZVOUS_ADDR"] for result in results}
    assert re.fullmatch(r"127\.0\.0\.1:\d+/[0-9a-f]{64}", address)


def test_two_jobs_on_one_node_do_not_meet(start):
    jobs = [[start(srun(rank, 2, SLURM_JOB_ID=job)) for rank in range(2)] for job in ("100", "101")]
    ports = [{rank.result()["HOROVOD_GLOO_RENDEZVOUS_PORT"] for rank in job} for job in jobs]
    assert len(ports[0]) == len(ports[1]) == 1 and ports[0] != ports[1]


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line(start):
    port = str(free_port())
    first = [start(srun(rank, 2, SLURM_JOB_ID="100", MASTER_PORT=port)) for rank in range(2)]
    assert all(isinstance(rank.result(), dict) for rank in first)
    second = [
        start(srun(rank, 2, SLURM_JOB_ID="101", MASTER_PORT=port, HOROVOD_START_TIMEOUT="1"))
        for rank in range(2)
    ]
    told, _ = second[0].result()
    assert told.startswith(f"rank 0 cannot listen on 127.0.0.1:{port} (Address already in use); set MASTER_")
    # The other one has reached the first job's rank 0, and takes nothing from it.
    told, only_here = second[1].result()
    assert told.startswith("rank 0 did not come in time") and only_here


def test_ranks_that_do_not_come_are_named(start):
    ranks = [start(srun(rank, 4, HOROVOD_START_TIMEOUT="1")) for rank in (0, 2)]
    told = [rank.result()[0] for rank in ranks]
    assert told[0].startswith("ranks 1, 3 of 4 did not come in time")
    assert told[1] == told[0]


def test_without_rank_0_the_others_say_so(start):
    told, only_here = start(srun(1, 2, HOROVOD_START_TIMEOUT="1")).result()
    assert told.startswith("rank 0 did not come in time: 127.0.0.1:") and only_here


def test_ranks_of_one_host_that_are_not_neighbours(start):
    ranks = [start(srun(rank, 3, SLURMD_NODENAME=node)) for rank, node in enumerate(("a", "b", "a"))]
    for rank in ranks:
        assert rank.result()[0].startswith("ranks of one host are not neighbours (hosts by rank: a, b, a)")


def test_a_host_whose_name_stands_for_itself_alone(start, monkeypatch):
    # Debian's default, `127.0.1.1 name`: each is content, and no other host gets through.
    monkeypatch.setattr(hosts, "_network", lambda: f"network of {os.environ['SLURMD_NODENAME']}")
    ranks = [
        start(srun(0, 2, SLURMD_NODENAME="n1"), address="10.0.0.1"),
        start(srun(1, 2, SLURMD_NODENAME="n2"), address="127.0.1.1"),
    ]
    for rank in ranks:
        assert rank.result()[0].startswith("host n2: its own name stands for 127.0.1.1 there (/etc/hosts)")


INTERFACE = {"HOROVOD_GLOO_IFACE": "lo"}


@pytest.mark.parametrize("more", [{}, INTERFACE])
def test_gloo_needs_no_host_name_where_it_has_an_interface(start, more):
    for rank in [start(srun(rank, 2, **more), address="") for rank in range(2)]:
        assert isinstance(rank.result(), dict)


@pytest.mark.parametrize("more", [{}, INTERFACE])
def test_another_build_of_horovod_needs_the_host_name(start, monkeypatch, more):
    monkeypatch.setattr(hosts, "gloo_uses_interface", lambda: False)
    for rank in [start(srun(rank, 2, **more), address="") for rank in range(2)]:
        assert "its own name stands for no address of that machine" in rank.result()[0]


def test_several_machines_need_the_host_name(start, monkeypatch):
    monkeypatch.setattr(hosts, "_network", lambda: f"network of {os.environ['SLURMD_NODENAME']}")
    of_two = [srun(rank, 2, SLURMD_NODENAME=f"n{rank}") for rank in range(2)]
    for rank in [start(environment, address="") for environment in of_two]:
        assert "its own name stands for no address of that machine" in rank.result()[0]


def test_a_network_interface_that_is_not_there(start):
    for rank in [start(srun(rank, 2, HOROVOD_GLOO_IFACE="nosuch0")) for rank in range(2)]:
        told, _ = rank.result()
        assert told.startswith("HOROVOD_GLOO_IFACE=nosuch0: host ") and "no such network interface" in told


def test_a_network_interface_that_other_hosts_do_not_reach(start, monkeypatch):
    monkeypatch.setattr(hosts, "_network", lambda: f"network of {os.environ['SLURMD_NODENAME']}")
    of_two = [srun(rank, 2, SLURMD_NODENAME=f"n{rank}", HOROVOD_GLOO_IFACE="lo") for rank in range(2)]
    for rank in [start(environment, address="10.0.0.1") for environment in of_two]:
        assert rank.result()[0].startswith(
            "HOROVOD_GLOO_IFACE=lo: other hosts cannot reach host n0 there, at 1"
        )


def test_on_one_machine_gloo_agrees_where_nobody_else_reaches_it(start, monkeypatch):
    for rank in [start(srun(rank, 2)) for rank in range(2)]:
        assert rank.result()["HOROVOD_GLOO_IFACE"] == "lo"
    # Unless the user names another interface, or there are several machines.
    named = {"HOROVOD_GLOO_IFACE": "lo", "SLURM_JOB_ID": "78"}
    assert "HOROVOD_GLOO_IFACE" not in [start(srun(rank, 2, **named)) for rank in range(2)][0].result()
    monkeypatch.setattr(hosts, "_network", lambda: f"network of {os.environ['SLURMD_NODENAME']}")
    of_two = [srun(rank, 2, SLURMD_NODENAME=f"n{rank}", SLURM_JOB_ID="79") for rank in range(2)]
    for rank in [start(environment, address="10.0.0.1") for environment in of_two]:
        assert "HOROVOD_GLOO_IFACE" not in rank.result()


def test_a_rank_with_another_secret_is_told_so(start):
    first = start(srun(0, 2, HOROVOD_START_TIMEOUT="3"))
    told, only_here = start(srun(1, 2, **{SECRET: "what a stranger guesses"})).result()
    assert told.startswith("what answers as rank 0 at 127.0.0.1:") and only_here
    assert f"has another secret than this rank: set {SECRET} to the same text on all hosts" in told
    assert "guesses" not in told
    assert first.result()[0].startswith("rank 1 of 2 did not come in time")


def test_a_stranger_at_rank_0s_port_is_refused_and_the_ranks_meet(start, capfd):
    port = free_port()
    first = start(srun(0, 2, MASTER_PORT=str(port)))
    says = [
        b"",
        b"PUT /report/1 HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        b"\x00" * 1000,
        b"GET / HTTP/1.1\r\n",
    ]
    says.append(b"PUT /report/1 HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n")
    end = time.monotonic() + 20
    with ExitStack() as strangers:
        for text in says:
            while True:
                try:
                    stranger = strangers.enter_context(socket.create_connection(("127.0.0.1", port), 20))
                    break
                except OSError:  # rank 0 is not there yet
                    assert time.monotonic() < end
                    time.sleep(0.05)
            stranger.sendall(text)
        second = start(srun(1, 2, MASTER_PORT=str(port)))
        assert places([first.result(), second.result()]) == [(0, 2, 0, 2, 0, 1), (1, 2, 1, 2, 0, 1)]
    assert capfd.readouterr().err.startswith("refused an unsigned report from 127.0.0.1: ")


def test_without_the_variable_ranks_share_a_file_of_their_user(start, tmp_path, monkeypatch):
    monkeypatch.delenv(SECRET, raising=False)
    environments = [srun(rank, 2, HOME=str(tmp_path)) for rank in range(2)]
    for environment in environments:
        del environment[SECRET]
    ranks = [start(environment) for environment in environments]
    assert places([rank.result() for rank in ranks]) == [(0, 2, 0, 2, 0, 1), (1, 2, 1, 2, 0, 1)]


def test_what_is_no_rank_0_is_not_believed(start):
    # It has taken the port first, and says all kinds of things; a rank goes on looking for its own rank 0.
    answers = [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000]
    answers += [b'HTTP/1.1 200 OK\r\n\r\n{"job": "slurm-1.0", "nonce": "1", "signature": 7}']
    with socket.create_server(("127.0.0.1", 0)) as impostor:
        port = str(impostor.getsockname()[1])
        rank = start(srun(1, 2, MASTER_PORT=port, HOROVOD_START_TIMEOUT="1"))
        impostor.settimeout(0.2)
        for number in range(200):
            if rank.pipe.poll():
                break
            with suppress(TimeoutError):
                connection, _ = impostor.accept()
                connection.sendall(answers[number % 3])
                connection.close()
    told, only_here = rank.result()
    assert told.startswith(f"rank 0 did not come in time: 127.0.0.1:{port} does not answer as rank 0 does")
    assert only_here


def test_one_machine_is_met_on_its_loopback_alone(start):
    # srun on one node: nobody else reaches rank 0, whatever the node's name stands for.
    more = {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": socket.gethostname()}
    more["SLURM_LAUNCH_NODE_IPADDR"] = "203.0.113.9"
    for rank in [start(srun(rank, 2, **more)) for rank in range(2)]:
        assert rank.result()["HOROVOD_GLOO_RENDEZVOUS_ADDR"].startswith("127.0.0.1:")


def test_a_rank_0_that_dies_while_others_wait_is_missed_at_once(start):
    first = start(srun(0, 3, HOROVOD_START_TIMEOUT="60"))
    other = start(srun(1, 3, HOROVOD_START_TIMEOUT="60"))
    assert not other.pipe.poll(1)
    first.end()
    told, only_here = other.result()
    assert told.startswith("rank 0 has ended, or the network to 127.0.0.1:") and only_here


def test_a_restart_does_not_take_the_last_attempts_answers(start):
    # As torchrun does: its agent's store outlives the ranks, and agents disagree on the number of attempts.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    torchrun = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_RUN_ID": "same",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        SECRET: "what the ranks of this job know",
    }
    first = [start({**torchrun, "RANK": str(rank)}) for rank in range(2)]
    old_port = {rank.result()["HOROVOD_GLOO_RENDEZVOUS_PORT"] for rank in first}
    for rank in first:
        rank.end()
    other = start({**torchrun, "RANK": "1", "TORCHELASTIC_RESTART_COUNT": "1"})
    assert not other.pipe.poll(0.5)
    leader = start({**torchrun, "RANK": "0", "TORCHELASTIC_RESTART_COUNT": "0"})
    results = [leader.result(), other.result()]
    assert {result["HOROVOD_GLOO_RENDEZVOUS_PORT"] for result in results}.isdisjoint(old_port)
    assert [result["attempt"] for result in results] == [1, 1]


def test_an_address_that_is_not_rank_0s_is_not_taken(start):
    # Anyone may write into the store of torchrun's agent.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    torchrun = {
        "WORLD_SIZE": "2",
        "RANK": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_RUN_ID": "same",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "HOROVOD_START_TIMEOUT": "1",
        SECRET: "what the ranks of this job know",
    }
    forged = {b"\xff": "did not come in time", b"[]": "did not come in time", b"{}": "another secret"}
    forged[b'{"address": "[\\"127.0.0.1\\", 1]", "signature": "' + b"0" * 64 + b'"}'] = "another secret"
    for text, said in forged.items():
        PrefixStore("torchrun-same.", store).set("rank 0", text)
        told, only_here = start(torchrun).result()
        assert told.startswith("rank 0 ") and said in told and only_here


@pytest.mark.distributed
def test_torchrun_starts_every_exit_code_again(run_job):
    # Unlike `horovod-transformer launch`, and documented: 75 and 2 are failures like any other to it.
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    options = ["--standalone", "--nproc-per-node", "1", "--max-restarts", "1", "--no-python"]
    job = run_job(1, torchrun, *options, "sh", "-c", "echo a start; exit 75")
    assert (job.process.returncode, job.stdout.count("a start")) == (1, 2)
