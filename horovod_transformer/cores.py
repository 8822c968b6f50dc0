"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

from horovod_transformer.control_groups import control_groups


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
