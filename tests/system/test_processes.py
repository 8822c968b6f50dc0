"""Processes that end with another one, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

PARENT = """
import multiprocessing, os, sys, time
from horovod_transformer.system.processes import exit_with, terminate_with_parent

def follow(way, pipe):
    if way == "terminate":
        terminate_with_parent()
    else:
        exit_with(os.getppid() if way == "number" else pipe)
    print(os.getpid(), flush=True)
    time.sleep(3600)

if __name__ == "__main__":
    reader, writer = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("spawn").Process(target=follow, args=(sys.argv[1], reader))
    child.start()
    reader.close()
    if sys.argv[2:]:
        sys.stdin.read()
        writer.close()
    child.join()
    print(child.exitcode, flush=True)
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="these are Linux's ways")


def start(root, tmp_path, *arguments: str) -> tuple[subprocess.Popen, psutil.Process]:
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    parent = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return parent, psutil.Process(int(parent.stdout.readline()))


@pytest.mark.parametrize(
    "way", ["pipe", pytest.param("number", marks=linux), pytest.param("terminate", marks=linux)]
)
def test_a_process_ends_with_its_killed_parent(root, tmp_path, way):
    parent, child = start(root, tmp_path, way)
    try:
        assert child.is_running()
        parent.kill()
        parent.wait()
        _, alive = psutil.wait_procs([child], timeout=60)
        assert not alive
    finally:
        parent.kill()
        if child.is_running():
            child.kill()


def test_a_closed_pipe_ends_it_as_well(root, tmp_path):
    parent, _ = start(root, tmp_path, "pipe", "close")
    try:
        output, _ = parent.communicate("", timeout=60)
    finally:
        parent.kill()
        parent.wait()
    assert output == "1\n"


@linux
def test_a_parent_that_terminates_lets_its_child_save(root, tmp_path):
    """SIGTERM can be handled, as training does."""
    program = (
        "import os, signal, sys, time\n"
        "from horovod_transformer.system.processes import terminate_with_parent\n"
        "terminate_with_parent()\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "print(os.getpid(), flush=True)\n"
        "open(sys.argv[1], 'w').write(signal.Signals(signal.sigwait({signal.SIGTERM})).name)\n"
    )
    saved = tmp_path / "saved"
    shell = f'"{sys.executable}" -c "$PROGRAM" {saved}; true'
    environment = {**os.environ, "PYTHONPATH": str(root), "PROGRAM": program}
    parent = subprocess.Popen(["sh", "-c", shell], env=environment, stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs([child], timeout=60)
    assert not alive
    assert saved.read_text() == "SIGTERM"
