"""Prepared blocks read once, in order, before training asks for them at random.

A parallel file system delivers gigabytes a second in order, and at random a few thousand blocks. So one
rank per node reads the files through, beside the first updates; what is read stays in the system's page
cache, where all ranks of the node find it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from horovod_transformer.system.machine import control_groups

# Of a control group, by version: its limit, what it uses, and what of that is files.
_MEMORY_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
    2: ("memory.max", "memory.current", "file"),
}
_PIECE = 16 << 20
# What the page cache may take of the memory that is free; the rest is for the processes that train.
_SHARE_OF_FREE = 0.8
# A node that takes less of the blocks than this share finds them sooner one by one.
_WORTH_READING = 0.1
# A read that a file system never answers does not keep a run from ending: the thread is a daemon.
_PATIENCE_S = 10.0


def worth_reading_ahead(taken: int, blocks: int, ranks_here: int, ranks: int) -> bool:
    """Whether a node wants enough of the blocks for it to read all of them in order.

    Args:
        taken: Blocks that the whole job is going to take, epoch after epoch.
        blocks: Blocks in the training split.
        ranks_here: Ranks on this node, which find in its memory what one of them has read.
        ranks: Ranks of the job.
    """
    return taken * ranks_here >= blocks * ranks * _WORTH_READING


@contextmanager
def reading_ahead(files: Sequence[Path], limit: int | None = None) -> Iterator[threading.Thread]:
    """Read files in a thread while the block runs; it ends with the block, whether it has come through or
    not.

    Args:
        files: What to read, in this order.
        limit: Bytes read at most; None: most of the memory that is free. More would push out what came first.

    Yields:
        The thread, for a caller that wants to wait.
    """
    stop = threading.Event()
    room = int(free_memory() * _SHARE_OF_FREE) if limit is None else limit
    thread = threading.Thread(
        target=read_through, args=(files, room, stop), name="reading ahead", daemon=True
    )
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(_PATIENCE_S)


def read_through(files: Sequence[Path], limit: int, stop: threading.Event) -> int:
    """Read files to their ends, or until `limit` bytes are read or `stop` is set; return the bytes read.

    A file that cannot be read is passed over: whoever needs its blocks will say so.
    """
    buffer = memoryview(bytearray(_PIECE))
    done = 0
    for path in files:
        try:
            with path.open("rb", buffering=0) as file:
                while done < limit and not stop.is_set():
                    count = file.readinto(buffer[: min(_PIECE, limit - done)])
                    if not count:
                        break
                    done += count
        except OSError:
            continue
    return done


def free_memory(root: Path = Path("/")) -> int:
    """Return the bytes that files may still take: of the machine's memory, and of what this job was given
    of it.

    Args:
        root: Where `/proc` and `/sys` are.
    """
    available = [_machine_available(root / "proc/meminfo")]
    for version, group in control_groups("memory", root):
        available += _group_available(group, *_MEMORY_FILES[version])
    return max(0, min(available))


def _machine_available(meminfo: Path) -> int:
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0  # not Linux: nothing is known, nothing is read ahead


def _group_available(folder: Path, limit: str, usage: str, cache: str) -> list[int]:
    """What a control group has left, files counted as free, for they can go; empty if it sets no limit."""
    try:
        most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == cache:
                used -= int(count)
    except (OSError, ValueError):  # there is none, or it says "max"
        return []
    return [most - used]
