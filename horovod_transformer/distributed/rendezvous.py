"""Ranks that torchrun, srun or `launch` has started meet at rank 0 and learn what Horovod needs to know.

Rank 0 serves (`rendezvous_server.py`); the others say hello, report under the server's word, and wait for
its answer. Both sides prove that they know the job's secret (`system/job_secret.py`): no other job and no
stranger is taken for a rank, or for rank 0.

Under srun and `launch` all know rank 0's port. torchrun's agent serves a store, in which rank 0 leaves
its address, signed. That store outlives the ranks that torchrun starts again: an address of an earlier
start answers no more.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from http.client import HTTPConnection, HTTPException
from typing import Any

from torch.distributed import DistError, PrefixStore, Store, TCPStore

from horovod_transformer.distributed.hosts import (
    LOOPBACK,
    describe_host,
    find_mistake,
    horovod_variables,
    listed,
)
from horovod_transformer.distributed.rendezvous_server import (
    HELLO_PATH,
    REPORT_PATH,
    SIGNATURE,
    RendezvousServer,
    gloo_address,
)
from horovod_transformer.errors import LostRank0Error, LostRankError, UserError
from horovod_transformer.system.job_secret import VARIABLE, JobSecret, read_secret
from horovod_transformer.system.launch_environment import Launch, start_timeout

POLL_S = 0.05  # between two looks for rank 0
HELLO_TIMEOUT_S = 5.0  # for each step of what takes rank 0 a moment
GONE_AFTER_S = 2.0  # that long a rank 0 that has been seen, and does not answer, may be another start's
MAX_ANSWER = 2**20


@dataclass
class Meeting:
    """All ranks have met.

    Attributes:
        variables: What Horovod reads from the environment.
        attempt: How often the job has been started before: the highest count of all ranks.
        server: On rank 0, what Horovod meets through.
    """

    variables: dict[str, str]
    attempt: int
    server: RendezvousServer | None = None

    def close(self) -> None:
        """Stop listening: Horovod has started on every rank."""
        if self.server is not None:
            self.server.close()


def meet(launch: Launch) -> Meeting:
    """Wait for all ranks of the job. *Collective.*

    Raises:
        UserError: A rank did not come in time, a port is taken, the hosts cannot work together, or the ranks
            do not have the same secret.
    """
    deadline = time.monotonic() + start_timeout(launch.size)
    secret = read_secret(f"{launch.job}.{os.environ.get('SLURM_STEP_ID', '')}")
    host, port, agent_serves = _meeting_point(launch)
    report = {"attempt": launch.attempt, **describe_host()}
    try:
        if launch.rank == 0:
            store = _reach_store(secret, host, port, deadline) if agent_serves else None
            return _serve(launch, secret, host, 0 if agent_serves else port, store, report, deadline)
        if not agent_serves:
            return _join(launch.rank, secret, lambda: (host, port), report, deadline)
        store = _reach_store(secret, host, port, deadline)
        return _join(launch.rank, secret, lambda: _published_address(store, secret), report, deadline)
    except DistError:
        raise LostRank0Error(_lost(host)) from None


def _serve(
    launch: Launch,
    secret: JobSecret,
    host: str,
    port: int,
    store: Store | None,
    mine: dict[str, Any],
    deadline: float,
) -> Meeting:
    """On rank 0: hear from every rank, and answer with what it needs, or with what is wrong."""
    alone = os.environ.get("LOCAL_WORLD_SIZE") == str(launch.size)  # on this machine
    address = host if store is None else LOOPBACK if alone else _address_towards(host)
    server = RendezvousServer(address, port, secret, launch.size)
    try:
        if store is not None:
            text = json.dumps(server.address)
            published = {"address": text, "signature": secret.sign("address", text)}
            store.set("rank 0", json.dumps(published))
        reports = server.wait_for_reports(deadline)
        if missing := [rank for rank in range(1, launch.size) if rank not in reports]:
            who = f"{'ranks' if len(missing) > 1 else 'rank'} {listed(missing)}"
            raise LostRankError(
                f"{who} of {launch.size} did not come in time; what they printed tells why, or their "
                "machine is too slow: HOROVOD_START_TIMEOUT gives them more seconds"
            )
        by_rank = [mine, *(reports[rank] for rank in range(1, launch.size))]
        if mistake := find_mistake(by_rank):
            raise UserError(mistake)
        attempt = max(report["attempt"] for report in by_rank)
        answers = [
            {"variables": variables, "attempt": attempt, "server": server.address}
            for variables in horovod_variables(by_rank)
        ]
    except UserError as error:
        kind = "missing" if isinstance(error, LostRankError) else "mistake"
        server.answer([{kind: str(error)}] * launch.size)
        server.close()
        raise
    except BaseException:
        server.close()
        raise
    server.answer(answers)
    return _meeting(answers[0], secret, server.nonce, server)


def _join(
    rank: int,
    secret: JobSecret,
    find: Callable[[], tuple[str, int] | None],
    report: dict[str, Any],
    deadline: float,
) -> Meeting:
    """On the other ranks: report to rank 0, and take its answer.

    Args:
        rank: This one's number.
        secret: The job's.
        find: Says where rank 0 listens; None as long as that is not known.
        report: What rank 0 is to know.
        deadline: By when it has to be there (`time.monotonic`).
    """
    why, where, seen = "what it printed tells why", "", False
    while True:
        try:
            if (address := find()) is not None:
                where = f"{address[0]}:{address[1]}"
                nonce = _say_hello(secret, address)
                if (answer := _report(rank, secret, nonce, address, report, deadline)) is not None:
                    if mistake := answer.get("mistake"):
                        raise UserError(mistake)
                    if missing := answer.get("missing"):
                        raise LostRankError(missing)
                    return _meeting(answer, secret, nonce)
        except _LostError:
            if not seen:  # or it was the last moment of an earlier start, and the next is about to come
                seen, deadline = True, min(deadline, time.monotonic() + GONE_AFTER_S)
        except (OSError, HTTPException, ValueError) as error:
            why = f"{where} does not answer as rank 0 does ({error})"
        if time.monotonic() > deadline:
            raise LostRank0Error(_lost(where) if seen else f"rank 0 did not come in time: {why}")
        time.sleep(POLL_S)


class _LostError(Exception):
    """Rank 0 had been there, and has gone without an answer."""


def _say_hello(secret: JobSecret, address: tuple[str, int]) -> str:
    """Return the word to report under, which rank 0 makes up at each start.

    Raises:
        UserError: Rank 0 has another secret.
        OSError, HTTPException, ValueError: It does not answer, or what does is not rank 0.
    """
    mine = secrets.token_hex(16)
    _, text = _request(address, "GET", HELLO_PATH + mine, HELLO_TIMEOUT_S)
    hello = _read_object(text)
    if hello.get("job") != secret.job:
        raise ValueError("it is another job's")
    nonce = str(hello.get("nonce"))
    if not secret.has_signed(hello.get("signature"), "hello", mine, nonce):
        raise _other_secret(f"what answers as rank 0 at {address[0]}:{address[1]}")
    return nonce


def _report(
    rank: int,
    secret: JobSecret,
    nonce: str,
    address: tuple[str, int],
    report: dict[str, Any],
    deadline: float,
) -> dict[str, Any] | None:
    """Return rank 0's answer once all ranks have reported; None if another process counts as this rank.

    Raises:
        _LostError: Rank 0 has ended meanwhile.
    """
    text = json.dumps(report)
    headers = {SIGNATURE: secret.sign("report", nonce, str(rank), text)}
    # At the deadline rank 0 comes first: it can say who is missing.
    left = deadline + 5 - time.monotonic()
    try:
        status, answer = _request(address, "PUT", f"{REPORT_PATH}{rank}", left, text.encode(), headers)
        if status == 409:
            return None
        signed = _read_object(answer)
    except (OSError, HTTPException, ValueError):
        raise _LostError from None
    told = signed.get("answer", "")
    if not secret.has_signed(signed.get("signature"), "answer", nonce, str(rank), told):
        raise _LostError
    return json.loads(told)


def _request(
    address: tuple[str, int],
    method: str,
    path: str,
    timeout: float,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, str]:
    connection = HTTPConnection(*address, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read(MAX_ANSWER).decode()
    finally:
        connection.close()


def _published_address(store: Store, secret: JobSecret) -> tuple[str, int] | None:
    """Where rank 0 says it listens, in torchrun's store; None if it has not said so yet."""
    if not store.check(["rank 0"]):
        return None
    published = _read_object(store.get("rank 0"))
    if not secret.has_signed(published.get("signature"), "address", published.get("address")):
        raise _other_secret("rank 0")
    host, port = json.loads(published["address"])
    return host, port


def _read_object(text: str | bytes) -> dict[str, Any]:
    """Read what may come from anyone.

    Raises:
        ValueError: It is no object in JSON.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        value = None
    if not isinstance(value, dict):
        raise ValueError("it says nonsense")
    return value


def _other_secret(who: str) -> UserError:
    error = UserError(
        f"{who} has another secret than this rank: set {VARIABLE} to the same text on all hosts (if it "
        "is not set, the secret is a file in the home folder, which should then be the same on all)"
    )
    error.only_here = True
    return error


def _lost(host: str) -> str:
    return f"rank 0 has ended, or the network to {host} is down; what rank 0 printed tells why"


def _meeting(
    answer: dict[str, Any], secret: JobSecret, nonce: str, server: RendezvousServer | None = None
) -> Meeting:
    host, port = answer["server"]
    rendezvous = {
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": gloo_address(secret, nonce, (host, port)),
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
    }
    return Meeting(answer["variables"] | rendezvous, answer["attempt"], server)


def _meeting_point(launch: Launch) -> tuple[str, int, bool]:
    """Host and port to meet at, and whether torchrun's agent serves a store there already."""
    if launch.launcher == "torchrun":
        host, number = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
        if not host or not number.isdigit():
            raise UserError("WORLD_SIZE and RANK are set, but not MASTER_ADDR and MASTER_PORT: use torchrun")
        return host, int(number), os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    port = _slurm_port()
    if os.environ.get("SLURM_STEP_NUM_NODES") == "1":
        return LOOPBACK, port, False
    # Rank 0 is on the first host of the step: "n[07-09,12]" begins with n07.
    first = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\])?([^\[,]*)", os.environ.get("SLURM_STEP_NODELIST", ""))
    host = "".join(part or "" for part in first.groups()) if first else ""
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        host = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "")
    if not host:
        raise UserError("srun does not say on which host rank 0 is (SLURM_STEP_NODELIST)")
    return host, port, False


def _slurm_port() -> int:
    # Below the ports that systems give to whoever asks; each job and step has another.
    job, step = (int(os.environ.get(f"SLURM_{key}") or 0) for key in ("JOB_ID", "STEP_ID"))
    return int(os.environ.get("MASTER_PORT") or 12_000 + (job * 7 + step) % 20_000)


def _reach_store(secret: JobSecret, host: str, port: int, deadline: float) -> Store:
    """Connect to the store of torchrun's agent."""
    while True:  # TCPStore's own attempts to connect fill the screen
        try:
            socket.create_connection((host, port), timeout=2).close()
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise LostRank0Error(f"torchrun's store at {host}:{port} does not answer ({error})") from None
            time.sleep(0.1)
    left = timedelta(seconds=max(1.0, deadline - time.monotonic()))
    store = TCPStore(host, port, is_master=False, timeout=left, wait_for_workers=False)
    return PrefixStore(secret.job, store)


def _address_towards(host: str) -> str:
    """This host's own address as those see it that reach it as `host`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # a datagram socket sends nothing here
        return probe.getsockname()[0]
