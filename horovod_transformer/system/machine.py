"""What this machine is and lets us use: CPU, cores, control groups, heap, installed versions."""

from __future__ import annotations

import ctypes
import errno
import math
import os
import resource
import socket
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil


def usable_cores() -> int:
    """Return how many cores this process may use: the least of what limits it.

    Looked at are the cores it is bound to, a container's quota (control groups of both versions), and
    what Slurm gave a task, which binds to cores on some clusters and on others does not.
    """
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if given.isdecimal():
        limits.append(int(given))
    limits += [math.ceil(quota) for quota in _quotas()]
    return max(1, min(limits))


def _quotas(root: Path = Path("/")) -> list[float]:
    """Cores that control groups allow; see `control_groups`."""
    found = []
    for version, folder in control_groups("cpu", root):
        try:
            if version == 1:
                quota = int((folder / "cpu.cfs_quota_us").read_text())
                period = int((folder / "cpu.cfs_period_us").read_text())
            else:
                first, second = (folder / "cpu.max").read_text().split()
                quota, period = -1 if first == "max" else int(first), int(second)
        except (OSError, ValueError):
            continue
        if quota > 0 and period > 0:
            found.append(quota / period)
    return found


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[tuple[int, Path]]:
    """Find the groups that may limit this process, those around them included.

    Args:
        controller: What they control: `cpu` or `memory`.
        root: Where `/proc` and `/sys` are.

    Yields:
        1 or 2, the version, which decides the names of a group's files; and the group's folder, which need
        not be there.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        _, _, named = line.partition(":")
        controllers, _, group = named.partition(":")
        if not controllers:
            version, tops = 2, [mounted]
        elif controller in controllers.split(","):
            version, tops = 1, [mounted / name for name in dict.fromkeys((controllers, controller))]
        else:
            continue
        for top in tops:
            # In a container the path may be the host's: then the top is all that is there to be read.
            folder = top / group.lstrip("/")
            while folder != top and top in folder.parents:
                yield version, folder
                folder = folder.parent
            yield version, top


CPUINFO = Path("/proc/cpuinfo")


def cpu_field(name: str, path: Path = CPUINFO) -> str:
    """What Linux says of the first CPU under a name (`vendor_id`, `model name`); empty if it says nothing."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""  # not Linux
    fields = (line.partition(":") for line in lines)
    return next((text.strip() for field, _, text in fields if field.strip() == name), "")


def cpu_flags(path: Path = CPUINFO) -> list[str]:
    """This CPU's flags by Linux's names: what the CPU has and the kernel lets programs use."""
    return cpu_field("flags", path).split()


def usable_address(name: str) -> str:
    """Choose an address to listen on as Gloo does: a name's first that this machine has; empty if none."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ""
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as listener:
                listener.bind(address)
        except OSError:
            continue
        return str(address[0])
    return ""


MOST_OPEN_FILES = 2**20  # where there is no limit: Linux itself allows no more unless it is told to


def raise_open_files_limit() -> int:
    """Let this process, and those it will start, open as many files and sockets as its user may.

    Systems hand out a soft limit of 1,024 for programs that use `select`, which nothing here does.

    Returns:
        How many that are.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


_M_MMAP_THRESHOLD = -3  # malloc.h
# Activations are larger, and what Python itself allocates is smaller.
RETURNED_FROM = 4 * 2**20


def return_large_blocks() -> bool:
    """Have freed blocks of four megabytes and more go back to the system at once.

    glibc otherwise learns to keep blocks of up to 32 MB, between which small ones settle: a training process
    then holds nearly twice what it uses. Settings in the environment (`MALLOC_MMAP_THRESHOLD_`,
    `GLIBC_TUNABLES`) win. Other C libraries are left as they are.

    Returns:
        Whether anything was set.
    """
    if sys.platform != "linux" or {"MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and mallopt(_M_MMAP_THRESHOLD, RETURNED_FROM) == 1


def installed_version(name: str) -> str | None:
    """The version of an installed package; None if it is not, as this one when run from its sources."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def memory_bytes() -> int:
    """The memory of this machine, in bytes, swap included."""
    return psutil.virtual_memory().total + psutil.swap_memory().total


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is not enough memory, of a GPU or of the machine."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # torch has a type for GPUs alone, and not to be imported here.
    torch_says = ("DefaultCPUAllocator", "std::bad_alloc")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(words in str(error) for words in torch_says))
    )
