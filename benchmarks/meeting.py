"""How long do many ranks take to meet, and to start Horovod? All on this machine, posing as several hosts.

    unshare --net python benchmarks/meeting.py --ranks 128 --per-host 8 --addresses
    python benchmarks/meeting.py --ranks 512 --requests-only

The ranks are forked from one process that has loaded PyTorch and Horovod, so that many fit into the
memory; they meet as under srun. Gloo takes ports for each pair of ranks, and an address has 28,000 to
give away: with `--addresses`, in a network of their own, each of the pretended hosts gets an address.
With `--requests-only` they do not start Horovod: each makes the requests that Horovod's Gloo makes of
rank 0, from a few processes, and no connections among the ranks. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

from horovod_transformer.distributed import bootstrap
from horovod_transformer.system.launch_environment import read_launch

FORK = multiprocessing.get_context("fork")
BYTES_PER_ADDRESS = 136  # Gloo's


def environment(rank: int, ranks: int, per_host: int, port: int) -> dict[str, str]:
    """What srun would tell this rank."""
    host = rank // per_host
    interface = {"HOROVOD_GLOO_IFACE": f"host{host}"} if has_interface(f"host{host}") else {}
    return {
        **interface,
        "SLURM_STEP_NUM_TASKS": str(ranks),
        "SLURM_PROCID": str(rank),
        "SLURM_STEP_NODELIST": "no-such-host[1-2]",
        "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
        "SLURMD_NODENAME": f"n{host}",
        "MASTER_PORT": str(port),
        "HOROVOD_TRANSFORMER_SECRET": "for this benchmark alone",
        "HOROVOD_CYCLE_TIME": "200",  # milliseconds: they share a few cores
        "OMP_NUM_THREADS": "1",
    }


def has_interface(name: str) -> bool:
    """Whether there is a network interface of this name."""
    return name in psutil.net_if_addrs()


def make_addresses(hosts: int) -> None:
    """Give each host a network interface with an address; needs root and a network of our own."""
    ip("link", "set", "lo", "up")
    for host in range(hosts):
        ip("link", "add", f"host{host}", "type", "bridge")
        ip("address", "add", f"10.98.{host // 250}.{host % 250 + 1}/32", "dev", f"host{host}")
        ip("link", "set", f"host{host}", "up")


def ip(*arguments: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *arguments], check=True)


def start_rank(variables: dict[str, str], results: Any, all_done: Any) -> None:
    """Be one rank: meet, start Horovod, add a number up over all."""
    import torch

    os.environ.update(variables)
    launch = read_launch(os.environ)
    hvd, _ = bootstrap._start_horovod(launch)
    total = hvd.allreduce(torch.ones(1), op=hvd.Sum, name="ones").item()
    sockets = len(os.listdir("/proc/self/fd"))
    results.put((launch.rank, time.time(), int(total), sockets, psutil.Process().memory_full_info().uss))
    all_done.wait()  # nobody leaves before: its leaving would end the others
    os._exit(0)


def start_horovod(ranks: int, per_host: int, limit_s: float) -> dict[str, Any]:
    """Start Horovod on this many ranks; returns what it took.

    Raises:
        TimeoutError: It took longer than the limit.
        RuntimeError: The ranks have not all met.
    """
    import horovod.torch  # noqa: F401  once, before the ranks are forked

    gc.freeze()  # so that ranks write less into memory that they share
    results, all_done = FORK.SimpleQueue(), FORK.Event()
    port = free_port()
    began = time.time()
    processes = [
        FORK.Process(target=start_rank, args=(environment(rank, ranks, per_host, port), results, all_done))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    forked = time.time()
    found: list[tuple[int, float, int, int, int]] = []
    try:
        while len(found) < ranks:
            if time.time() > began + limit_s:
                raise TimeoutError(f"{len(found)} of {ranks} ranks were ready after {limit_s} s")
            if any(process.exitcode for process in processes):
                raise RuntimeError("a rank has failed; what it printed tells why")
            while not results.empty():
                found.append(results.get())
            time.sleep(0.02)
    finally:
        all_done.set()
        end_by = time.time() + 10
        for process in processes:
            process.join(max(0.0, end_by - time.time()))
            process.kill()
    if {total for _, _, total, _, _ in found} != {ranks}:
        raise RuntimeError("the ranks do not form one job")
    return {
        "ranks": ranks,
        "per_host": per_host,
        "all_forked_s": round(forked - began, 1),
        "all_ready_s": round(max(moment for _, moment, _, _, _ in found) - began, 1),
        "files_of_a_rank": max(sockets for _, _, _, sockets, _ in found),
        "own_mib_of_a_rank": round(max(own for *_, own in found) / 2**20),
    }


def requests_of(rank: int, ranks: int, prefix: str) -> Iterator[tuple[str, str, bytes | None]]:
    """What Gloo asks for to connect a rank with all others (`connectFullMesh`): method, path, body."""
    yield "PUT", f"{prefix}rank_{rank}", b"host"
    for other in range(rank):
        yield "GET", f"{prefix}rank_{other}", None
    yield "PUT", f"{prefix}{rank}", b"x" * BYTES_PER_ADDRESS * (ranks - 1)
    for other in range(ranks):
        if other != rank:
            yield "GET", f"{prefix}{other}", None  # is it there?
            yield "GET", f"{prefix}{other}", None
    yield "DELETE", f"{prefix}{rank}", None


def ask(address: tuple[str, int], method: str, path: str, body: bytes | None) -> None:
    """Make one request, on a connection of its own as Gloo does, until it is answered with 200."""
    body = body or b""
    head = f"{method} {path} HTTP/1.1\r\nHost: {address[0]}\r\nContent-Length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    while True:
        with socket.create_connection(address, timeout=600) as connection:
            connection.sendall(request)
            answer = b""
            while received := connection.recv(2**16):
                answer = answer or received
        if answer[9:12] == b"200":
            return


def make_requests(variables: list[dict[str, str]], results: Any) -> None:
    """Meet as these ranks, and make the requests that their Gloo would make; each is a thread."""

    def one(mine: dict[str, str]) -> None:
        meeting = bootstrap.meet(read_launch(mine))
        host, _, rest = meeting.variables["HOROVOD_GLOO_RENDEZVOUS_ADDR"].partition("/")
        port = meeting.variables["HOROVOD_GLOO_RENDEZVOUS_PORT"]
        address = (host.partition(":")[0], int(port))
        prefix = f"/{rest}:{port}/global_/" if rest else "/global_/"
        met = time.time()
        launch = read_launch(mine)
        for method, path, body in requests_of(launch.rank, launch.size, prefix):
            ask(address, method, path, body)
        results.put((met, time.time()))

    os.environ.update(variables[0])
    threads = [threading.Thread(target=one, args=(mine,)) for mine in variables]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(3600)  # rank 0 serves until it is ended


def make_all_requests(ranks: int, processes: int, limit_s: float) -> dict[str, Any]:
    """Have rank 0 answer what this many ranks would ask; returns what it took.

    Raises:
        TimeoutError: It took longer than the limit.
    """
    results, port = FORK.SimpleQueue(), free_port()
    everyone = [environment(rank, ranks, ranks, port) for rank in range(ranks)]
    began = time.time()
    # Rank 0 has a process of its own, as it would.
    shares = [everyone[:1], *(everyone[1 + each :: processes] for each in range(processes))]
    workers = [FORK.Process(target=make_requests, args=(share, results), daemon=True) for share in shares]
    for worker in workers:
        worker.start()
    found: list[tuple[float, float]] = []
    try:
        while len(found) < ranks:
            if time.time() > began + limit_s:
                raise TimeoutError(f"{len(found)} of {ranks} ranks were done after {limit_s} s")
            while not results.empty():
                found.append(results.get())
            time.sleep(0.02)
        server = psutil.Process(workers[0].pid).cpu_times()
    finally:
        for worker in workers:
            worker.kill()
    return {
        "ranks": ranks,
        "requests": sum(1 for rank in range(ranks) for _ in requests_of(rank, ranks, "")),
        "all_met_s": round(max(met for met, _ in found) - began, 1),
        "all_done_s": round(max(done for _, done in found) - began, 1),
        "rank_0_cpu_s": round(server.user + server.system, 1),
    }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--per-host", type=int, default=8)
    parser.add_argument("--limit", type=float, default=900.0, metavar="SECONDS")
    parser.add_argument("--addresses", action="store_true", help="one for each host")
    parser.add_argument("--requests-only", action="store_true")
    parser.add_argument("--processes", type=int, default=8, help="of --requests-only")
    options = parser.parse_args()
    if options.addresses:
        make_addresses(-(-options.ranks // options.per_host))
    if options.requests_only:
        result = make_all_requests(options.ranks, options.processes, options.limit)
    else:
        result = start_horovod(options.ranks, options.per_host, options.limit)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
