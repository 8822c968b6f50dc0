"""Ranks that torchrun or srun has started meet in a TCPStore and learn what Horovod needs to know.

A store outlives the ranks that torchrun starts again, and its agents on several machines may
disagree on how many attempts there were. So rank 0 makes up a new word at each start and the others
report under that word; its answer repeats what each of them reported, and a rank takes no answer but
the one with its own report in it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
from torch.distributed import DistError, PrefixStore, Store, TCPStore

from horovod_transformer.errors import LostRank0Error, LostRankError, UserError
from horovod_transformer.system.launch_environment import Launch, start_timeout
from horovod_transformer.system.machine import usable_address

POLL_S = 0.02


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
    server: Any
    store: Store  # where rank 0 serves it, the others may still be reading

    def close(self) -> None:
        """Stop listening: Horovod has started on every rank."""
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()


def meet(launch: Launch) -> Meeting:
    """Wait for all ranks of the job. *Collective.*

    Raises:
        UserError: A rank did not come in time, a port is taken, or the hosts cannot work together.
    """
    deadline = time.monotonic() + start_timeout()
    host, port, agent_serves = _meeting_point(launch)
    job = f"{launch.job}.{os.environ.get('SLURM_STEP_ID', '')}"
    serve = launch.rank == 0 and not agent_serves
    store = PrefixStore(job, serve_store(host, port) if serve else _reach_store(host, port, deadline))
    report = {"id": uuid.uuid4().hex, "attempt": launch.attempt, **_describe_host()}
    server = None
    try:
        if launch.rank == 0:
            server = _start_server(_address_towards(host, port))
            word = uuid.uuid4().hex
            answer = _collect(store, word, report, launch.size, deadline) | {"server": server.server_address}
            store.set(f"{word} answer", json.dumps(answer))
        else:
            answer = _report(store, launch.rank, report, deadline)
    except DistError:
        raise LostRank0Error(
            f"rank 0 has ended, or the network to {host} is down; what rank 0 printed tells why"
        ) from None
    missing, mistake = answer.get("missing"), answer.get("mistake")
    if missing or mistake:
        if server is not None:
            time.sleep(1)  # the others read it before the store ends with this process
        raise LostRankError(missing) if missing else UserError(mistake)
    reports = answer["reports"]
    variables = _variables([each["host"] for each in reports], launch.rank, *answer["server"])
    return Meeting(variables, max(each["attempt"] for each in reports), server, store)


def _meeting_point(launch: Launch) -> tuple[str, int, bool]:
    """Host and port of the store, and whether torchrun's agent serves it already."""
    if launch.launcher == "torchrun":
        host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
        if not host or not port.isdigit():
            raise UserError("WORLD_SIZE and RANK are set, but not MASTER_ADDR and MASTER_PORT: use torchrun")
        return host, int(port), os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    # Rank 0 is on the first host of the step: "n[07-09,12]" begins with n07.
    first = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\])?([^\[,]*)", os.environ.get("SLURM_STEP_NODELIST", ""))
    host = "".join(part or "" for part in first.groups()) if first else ""
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        host = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "")
    if not host:
        raise UserError("srun does not say on which host rank 0 is (SLURM_STEP_NODELIST)")
    # Below the ports that systems give to whoever asks; each job and step has another.
    job, step = (int(os.environ.get(f"SLURM_{key}") or 0) for key in ("JOB_ID", "STEP_ID"))
    return host, int(os.environ.get("MASTER_PORT") or 12_000 + (job * 7 + step) % 20_000), False


def serve_store(host: str, port: int) -> TCPStore:
    """Serve a store on one address, not on all: it answers anyone, without a password.

    Args:
        host: Where to listen.
        port: 0 takes a free one.

    Raises:
        UserError: The port is taken.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise UserError(
            f"rank 0 cannot listen on {host}:{port} ({error.strerror}); set MASTER_PORT to a free port"
        ) from None
    listener.listen(1024)
    port = listener.getsockname()[1]
    return TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def _reach_store(host: str, port: int, deadline: float) -> TCPStore:
    while True:  # TCPStore's own attempts to connect fill the screen
        try:
            socket.create_connection((host, port), timeout=2).close()
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise LostRank0Error(
                    f"rank 0 did not come in time: {host}:{port} does not answer ({error})"
                ) from None
            time.sleep(0.1)
    left = timedelta(seconds=max(1.0, deadline - time.monotonic()))
    return TCPStore(host, port, is_master=False, timeout=left, wait_for_workers=False)


def _collect(store: Store, word: str, mine: dict[str, Any], size: int, deadline: float) -> dict[str, Any]:
    """On rank 0: hear from every rank, and answer with all reports, or with what is wrong."""
    store.set("word", word)
    missing = list(range(1, size))
    while missing := [rank for rank in missing if not store.check([f"{word} {rank}"])]:
        if time.monotonic() > deadline:
            who = f"{'ranks' if len(missing) > 1 else 'rank'} {', '.join(map(str, missing))}"
            return {
                "missing": f"{who} of {size} did not come in time; what they printed tells why, or their "
                "machine is too slow: HOROVOD_START_TIMEOUT gives them more seconds"
            }
        time.sleep(POLL_S)
    reports = [mine, *(json.loads(store.get(f"{word} {rank}")) for rank in range(1, size))]
    return {"reports": reports, "mistake": _find_mistake(reports)}


def _report(store: Store, rank: int, mine: dict[str, Any], deadline: float) -> dict[str, Any]:
    """On the other ranks: tell rank 0, and take its answer."""
    word = ""
    while True:
        if store.check(["word"]) and (now := store.get("word").decode()) != word:
            word = now
            store.set(f"{word} {rank}", json.dumps(mine))
        if word and store.check([f"{word} answer"]):
            answer = json.loads(store.get(f"{word} answer"))
            if "reports" not in answer or answer["reports"][rank] == mine:
                return answer
        if time.monotonic() > deadline + 5:  # rank 0 comes first: it can say who is missing
            raise LostRank0Error("rank 0 did not come in time; what it printed tells why")
        time.sleep(POLL_S)


def _find_mistake(reports: list[dict[str, Any]]) -> str | None:
    hosts = [report["host"] for report in reports]
    if len([host for host, _ in itertools.groupby(hosts)]) > len(set(hosts)):
        return (
            f"ranks of one host are not neighbours (hosts by rank: {', '.join(hosts)}); with srun, "
            "use --distribution=block"
        )
    for report in reports:
        if report["no_interface"]:
            return (
                f"HOROVOD_GLOO_IFACE={report['no_interface']}: host {report['host']} has no such network "
                "interface; set it to one that `ip address` lists, or unset it"
            )
        if not report["address"]:
            return no_address(report["host"])
    if len({report["network"] for report in reports}) > 1:
        for report in reports:
            if report["address"].startswith("127."):
                return (
                    f"host {report['host']}: its own name stands for {report['address']} there (/etc/hosts), "
                    "so other hosts cannot reach it; let the name stand for its network address"
                )
    return None


def no_address(host: str) -> str:
    """What to say of a host whose own name leads nowhere: Gloo listens on no other, whatever it is told."""
    return (
        f"host {host}: its own name stands for no address of that machine, so Gloo cannot listen; give the "
        "name its network address in /etc/hosts there, or 127.0.1.1 if it is alone"
    )


def _describe_host() -> dict[str, str]:
    # Under Slurm several "nodes" can be one machine, and must be kept apart.
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    wanted = os.environ.get("HOROVOD_GLOO_IFACE", "")
    return {
        "host": host,
        "address": usable_address(socket.gethostname()),
        "network": _network(),
        "no_interface": wanted if wanted not in psutil.net_if_addrs() else "",
    }


def _network() -> str:
    """The same for two ranks if they can reach each other on 127.0.0.1."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot + os.readlink("/proc/self/ns/net")
    except OSError:  # no Linux
        return socket.gethostname()


def _address_towards(host: str, port: int) -> str:
    """This host's own address as those see it that reach it as `host`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # a datagram socket sends nothing here
        return probe.getsockname()[0]


def _start_server(address: str) -> Any:
    from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

    server = RendezvousHTTPServer((address, 0), RendezvousHandler, 0)
    # Closing it waits for the server's next look, half a second by default.
    threading.Thread(target=server.serve_forever, args=(POLL_S,), daemon=True).start()
    return server


def _variables(hosts: list[str], rank: int, address: str, port: int) -> dict[str, str]:
    from horovod.runner.common.util.hosts import HostInfo, get_host_assignments
    from horovod.runner.gloo_run import create_slot_env_vars

    slots = [HostInfo(host, len(list(ranks))) for host, ranks in itertools.groupby(hosts)]
    return {
        **create_slot_env_vars(get_host_assignments(slots, len(hosts))[rank]),
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": address,
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
    }
