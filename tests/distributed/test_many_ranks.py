"""Many ranks meet and start Horovod, on one machine that poses as several hosts (`benchmarks/meeting.py`)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.two_hosts import why_not


def meeting(root: Path, *options: str, before: tuple[str, ...] = (), limit_s: int) -> dict[str, int]:
    command = [*before, sys.executable, "benchmarks/meeting.py", "--limit", str(limit_s), *options]
    environment = {**os.environ, "HOROVOD_LOG_LEVEL": "fatal"}  # it logs each rank that leaves after the end
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=limit_s + 60
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.distributed
def test_twelve_ranks_of_three_hosts_start_horovod(root):
    # A backlog of five connections made ranks wait for seconds, many times over.
    result = meeting(root, "--ranks", "12", "--per-host", "4", limit_s=200)
    assert result["ranks"] == 12
    # What `_make_room_for_sockets` counts on: twice one for each rank of all, of the host, and across hosts.
    assert result["files_of_a_rank"] < 2 * (11 + 3 + 2) + 100


@pytest.mark.more
def test_128_ranks_start_horovod(root):
    if reason := why_not():
        pytest.skip(reason)
    unshare = (str(shutil.which("unshare")), "--net")
    options = ("--ranks", "128", "--per-host", "8", "--addresses")
    result = meeting(root, *options, before=unshare, limit_s=500)
    assert result["ranks"] == 128
    assert result["files_of_a_rank"] < 2 * (127 + 7 + 15) + 500


@pytest.mark.more
def test_rank_0_answers_what_512_ranks_ask(root):
    result = meeting(root, "--ranks", "512", "--requests-only", limit_s=500)
    assert result["requests"] == 655_616
