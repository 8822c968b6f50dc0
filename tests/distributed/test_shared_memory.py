"""Sums within a host through shared memory; threads pose as its ranks."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from horovod_transformer.distributed import shared_memory
from horovod_transformer.distributed.gradients import share_memory
from horovod_transformer.distributed.shared_memory import SharedMemory, make_file, map_file, remove_file
from horovod_transformer.errors import UserError


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_every_rank_gets_the_sum(ranks, dtype):
    sizes, shapes = [ranks * 4, ranks * 2], [[(2, 2), (3,)], [(3,)]]
    rows, barrier = torch.full((ranks + 1, sum(sizes)), 7, dtype=dtype), threading.Barrier(ranks)

    def rank(place):
        memory = SharedMemory(rows, place, sizes, lambda name: barrier.wait(60))
        sums = []
        for update in (1, 10):
            for group, some in enumerate(shapes):
                numbers = [torch.full(shape, (place + 1) * update, dtype=dtype) for shape in some]
                memory.put(group, [each.view(torch.float32) for each in numbers])
                length = sum(each.numel() for each in numbers)
                sums.append(memory.join(group, memory.share(group) * 2)[:length].tolist())
        return sums

    with ThreadPoolExecutor(ranks) as pool:
        first, *others = pool.map(rank, range(ranks))
    once = 2 * sum(range(1, ranks + 1))
    assert first == [[once] * 7, [once] * 3, [10 * once] * 7, [10 * once] * 3]
    assert all(other == first for other in others)


def test_memory_is_this_users_alone_and_leaves_no_file(tmp_path):
    name = make_file(4096)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    mine, theirs = map_file(name, 4096), map_file(name, 4096)
    mine[:5] = b"hello"
    remove_file(name)
    remove_file(name)  # twice does no harm
    assert theirs[:5] == b"hello" and not list(tmp_path.iterdir())


def test_another_file_is_refused(tmp_path):
    name = make_file(4096)
    with pytest.raises(PermissionError, match="not this job's"):
        map_file(name, 8192)
    os.symlink(tmp_path / name, tmp_path / "link")
    with pytest.raises(OSError, match="link"):
        map_file("link", 4096)
    with pytest.raises(FileNotFoundError):
        map_file("/etc/passwd", 4096)


def test_too_little_memory_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"cannot share 12 MB .*No space left.*hierarchical: off"):
        share_memory([1_000_000], torch.float32, SimpleNamespace(ranks=2))
    assert not list(tmp_path.iterdir())
