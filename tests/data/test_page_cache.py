"""Blocks are read ahead in order: to the end, within bounds, and never in the way."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from horovod_transformer.data.page_cache import (
    free_memory,
    read_through,
    reading_ahead,
    worth_reading_ahead,
)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files of 40 and 1 MB, none of which is in memory."""
    paths = [tmp_path / "a.arrow", tmp_path / "b.arrow"]
    for path, size in zip(paths, (40 << 20, 1 << 20), strict=True):
        path.write_bytes(os.urandom(1 << 20) * (size >> 20))
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return paths


def in_memory(path: Path) -> float:
    """Share of a file's pieces that are read without waiting for the disk."""
    size, found = path.stat().st_size, 0
    places = range(0, size, 1 << 18)
    with path.open("rb") as file:
        for place in places:
            try:
                os.preadv(file.fileno(), [bytearray(1)], place, os.RWF_NOWAIT)
                found += 1
            except BlockingIOError:
                pass
            except OSError as error:
                pytest.skip(f"this file system does not say what is in memory: {error}")
    return found / len(places)


def test_what_was_on_the_disk_is_in_memory_afterwards(files: list[Path]) -> None:
    if in_memory(files[0]) > 0.5:
        pytest.skip("this file system keeps files in memory whatever it is told")
    with reading_ahead(files) as thread:
        thread.join(60)
    assert [in_memory(path) for path in files] == [1, 1]


def test_no_more_than_the_limit_is_read(files: list[Path]) -> None:
    assert read_through(files, 1 << 30, threading.Event()) == 41 << 20
    assert read_through(files, (40 << 20) + 5, threading.Event()) == (40 << 20) + 5
    assert read_through(files, 0, threading.Event()) == 0


def test_a_file_that_is_gone_is_passed_over(files: list[Path]) -> None:
    files[0].unlink()
    assert read_through(files, 1 << 30, threading.Event()) == 1 << 20


def test_it_ends_when_the_run_ends(tmp_path: Path) -> None:
    endless = Path("/dev/zero")
    with reading_ahead([endless], limit=1 << 60) as thread:
        assert thread.is_alive()
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("taken", "ranks_here", "ranks", "worth"),
    [
        (1000, 1, 1, True),
        (100, 1, 1, True),
        (99, 1, 1, False),
        (1000, 4, 4, True),
        (1000, 4, 40, True),
        # One epoch on 16 nodes: each takes 6 % of the blocks. Two epochs are 12 %.
        (1000, 4, 64, False),
        (2000, 4, 64, True),
        (1000, 8, 64, True),
    ],
)
def test_what_a_node_takes_decides_whether_it_reads_everything(
    taken: int, ranks_here: int, ranks: int, worth: bool
) -> None:
    assert worth_reading_ahead(taken, 1000, ranks_here, ranks) == worth


def make_root(tmp_path: Path, cgroup: str, groups: dict[str, dict[str, object]]) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 2000 kB\nMemAvailable:   1000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text(cgroup)
    for folder, values in groups.items():
        place = tmp_path / "sys/fs/cgroup" / folder
        place.mkdir(parents=True, exist_ok=True)
        for name, value in values.items():
            (place / name).write_text(f"{value}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("cgroup", "groups", "expected"),
    [
        ("", {}, 1_024_000),
        (
            "0::/job\n",
            {"job": {"memory.max": "max", "memory.current": 5, "memory.stat": "file 3"}},
            1_024_000,
        ),
        (
            "0::/job/step\n",
            {
                "job": {"memory.max": 5000, "memory.current": 4000, "memory.stat": "anon 1\nfile 3500"},
                "job/step": {"memory.max": "max", "memory.current": 5, "memory.stat": "file 3"},
            },
            4500,
        ),
        (
            "4:cpu,memory:/job\n0::/\n",
            {
                "memory/job": {
                    "memory.limit_in_bytes": 9000,
                    "memory.usage_in_bytes": 8000,
                    "memory.stat": "cache 1\ntotal_cache 2",
                }
            },
            1002,
        ),
        ("0::/job\n", {"job": {"memory.max": 10, "memory.current": 90, "memory.stat": "file 3"}}, 0),
    ],
)
def test_the_least_of_all_limits_counts(tmp_path: Path, cgroup: str, groups: dict, expected: int) -> None:
    assert free_memory(make_root(tmp_path, cgroup, groups)) == expected


def test_nothing_known_is_nothing_free(tmp_path: Path) -> None:
    assert free_memory(tmp_path) == 0


def test_this_machine_has_memory() -> None:
    assert free_memory() > 1 << 20
