"""What each rank says of its machine, and what Horovod is to know of all of them together."""

from __future__ import annotations

import importlib.util
import itertools
import mmap
import os
import socket
from pathlib import Path
from typing import Any

import psutil

from horovod_transformer.system.machine import usable_address

LOOPBACK = "127.0.0.1"
# What scripts/horovod_cmake/gloo_interface.h leaves in the library.
INTERFACE_MARK = b"horovod_transformer_gloo_interface"


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
        "wanted": wanted,
        "interface": interfaces.get(wanted, ""),
        "address": usable_address(socket.gethostname()),
        "by_name": "" if gloo_uses_interface() else "tensors",
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
    one_machine = _on_one_machine(reports)
    for report in reports:
        if report["wanted"] and not report["interface"]:
            return (
                f"HOROVOD_GLOO_IFACE={report['wanted']}: host {report['host']} has no such network "
                "interface, or it has no address; set it to one that `ip address` lists, or unset it"
            )
        if not report["address"] and _listens_by_name(report, reports):
            return no_address(report["host"])
    if not one_machine:
        for report in reports:
            if report["address"].startswith("127.") and _listens_by_name(report, reports):
                return (
                    f"host {report['host']}: its own name stands for {report['address']} there (/etc/hosts), "
                    "so other hosts cannot reach it; let the name stand for its network address, or name an "
                    "interface: HOROVOD_GLOO_IFACE=eth0"
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
    wanted = any(report["wanted"] for report in reports)
    return names.pop() if _on_one_machine(reports) and not wanted and len(names) == 1 else ""


def _on_one_machine(reports: list[dict[str, Any]]) -> bool:
    return len({report["network"] for report in reports}) == 1


def _listens_by_name(report: dict[str, Any], reports: list[dict[str, Any]]) -> bool:
    """Whether Gloo listens, at least for tensors, on the address that this host's own name stands for."""
    return bool(report["by_name"]) or not (report["wanted"] or _loopback(reports))


def gloo_uses_interface() -> bool:
    """Whether HOROVOD_GLOO_IFACE holds for all of Horovod's connections, as in what `make install` builds.

    Horovod 0.28.1 from elsewhere has Gloo listen for tensors on the address of the host's own name.
    """
    found = importlib.util.find_spec("horovod")
    folder = Path(found.origin).parent if found and found.origin else Path()
    for library in folder.glob("torch/mpi_lib_v2*.so"):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(INTERFACE_MARK) >= 0
    return False


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
    """What to say of a host whose own name leads nowhere, where Gloo has to listen on it."""
    return (
        f"host {host}: its own name stands for no address of that machine, so Gloo cannot listen; give the "
        "name its network address in /etc/hosts there, or 127.0.1.1 if it is alone"
    )
