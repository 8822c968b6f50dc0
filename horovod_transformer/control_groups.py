"""The control groups that this process is in: containers and Slurm jobs limit cores and memory by them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


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
