"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Return how many cores this process may use: the least of what limits it.

    Looked at are the cores it is bound to, a container's quota (control groups of both versions), and
    what Slurm gave a task, which binds to cores on some clusters and on others does not.
    """
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if given.isdecimal():
        limits.append(int(given))
    limits += [math.ceil(quota) for quota in _quotas(_CGROUPS, _own_groups())]
    return max(1, min(limits))


def _own_groups() -> list[tuple[str, str]]:
    """The control groups that this process is in: names of controllers (none: version 2) and path."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    fields = [line.split(":", 2) for line in lines]
    return [(field[1], field[2]) for field in fields if len(field) == 3]


def _quotas(root: Path, groups: list[tuple[str, str]]) -> list[float]:
    """Cores that control groups allow, those of all their parents included."""
    found = []
    for controllers, path in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers if controllers else root
        # Within a container the path is the host's, and only the top is there to be read.
        below = top / path.lstrip("/")
        for folder in {top, *(parent for parent in (below, *below.parents) if parent.is_relative_to(top))}:
            try:
                if controllers:
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
