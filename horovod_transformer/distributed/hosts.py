"""What each rank says of its machine, and what Horovod is to know of all of them together."""

from __future__ import annotations

import itertools
import os
import socket
from pathlib import Path
from typing import Any

import psutil

from horovod_transformer.system.machine import usable_address

LOOPBACK = "127.0.0.1"


def describe_host() -> dict[str, str]:
    """Describe this rank's machine to the others."""
    wanted = os.environ.get("HOROVOD_GLOO_IFACE", "")
    families = (socket.AF_INET, socket.AF_INET6)
    interfaces = {
        name: next((each.address for family in families for each in found if each.family == family), "")
        for name, found in psutil.net_if_addrs().items()
    }
    return {
        # Under Slurm several "nodes" can be one machine, and must be kept apart.
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        # Horovod 0.28.1 has Gloo listen there to agree on what comes next, and for tensors always on the
        # address that the host's own name stands for.
        "wanted": wanted,
        "interface": interfaces.get(wanted, ""),
        "address": usable_address(socket.gethostname()),
        "network": _network(),
        "loopback": next((name for name, address in interfaces.items() if address == LOOPBACK), ""),
    }


def find_mistake(reports: list[dict[str, Any]]) -> str | None:
    """Return why these hosts cannot work together, as a line for the user; None if they can."""
    hosts = [report["host"] for report in reports]
    if len([host for host, _ in itertools.groupby(hosts)]) > len(set(hosts)):
        return (
            f"ranks of one host are not neighbours (hosts by rank: {listed(hosts)}); with srun, "
            "use --distribution=block"
        )
    for report in reports:
        if report["wanted"] and not report["interface"]:
            return (
                f"HOROVOD_GLOO_IFACE={report['wanted']}: host {report['host']} has no such network "
                "interface, or it has no address; set it to one that `ip address` lists, or unset it"
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
            if report["interface"].startswith("127."):
                return (
                    f"HOROVOD_GLOO_IFACE={report['wanted']}: other hosts cannot reach host {report['host']} "
                    f"there, at {report['interface']}; set it to an interface of the network between them"
                )
    return None


def horovod_variables(reports: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return what Horovod is to read from each rank's environment, by rank."""
    from horovod.runner.common.util.hosts import HostInfo, get_host_assignments
    from horovod.runner.gloo_run import create_slot_env_vars

    hosts = [report["host"] for report in reports]
    slots = [HostInfo(host, len(list(ranks))) for host, ranks in itertools.groupby(hosts)]
    shared = {
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
    }
    if interface := _loopback(reports):
        shared["HOROVOD_GLOO_IFACE"] = interface
    return [create_slot_env_vars(slot) | shared for slot in get_host_assignments(slots, len(hosts))]


def _loopback(reports: list[dict[str, Any]]) -> str:
    """The interface for ranks that are all on one machine and want no other: nobody else reaches it."""
    names = {report["loopback"] for report in reports}
    one_machine = len({report["network"] for report in reports}) == 1
    wanted = any(report["wanted"] for report in reports)
    return names.pop() if one_machine and not wanted and len(names) == 1 else ""


def listed(words: list[Any]) -> str:
    """Name at most ten of them: a line has to hold the ranks of any job."""
    more = f" and {len(words) - 10} more" if len(words) > 10 else ""
    return ", ".join(map(str, words[:10])) + more


def _network() -> str:
    """The same for two ranks if they can reach each other on 127.0.0.1."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot + os.readlink("/proc/self/ns/net")
    except OSError:  # no Linux
        return socket.gethostname()


def no_address(host: str) -> str:
    """What to say of a host whose own name leads nowhere: Gloo listens on no other, whatever it is told."""
    return (
        f"host {host}: its own name stands for no address of that machine, so Gloo cannot listen; give the "
        "name its network address in /etc/hosts there, or 127.0.1.1 if it is alone"
    )
