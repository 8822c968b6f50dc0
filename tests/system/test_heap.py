"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

# Twenty rounds of large blocks with small ones between them, which stay, as in a backward pass.
PROGRAM = """
import ctypes, sys
from horovod_transformer.system.machine import return_large_blocks

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6

done = return_large_blocks() if sys.argv[1] == "yes" else None
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
c.free.argtypes, c.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
before = resident()
for _ in range(3):
    blocks = []
    for _ in range(10):
        blocks.append(c.malloc(20_000_000))
        c.memset(blocks[-1], 1, 20_000_000)
        c.memset(c.malloc(100_000), 1, 100_000)
    for block in blocks:
        c.free(block)
print(done, resident() - before)
"""


def run(setting: str, **more: str) -> tuple[str, float]:
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name} | more
    environment.pop("GLIBC_TUNABLES", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, setting], capture_output=True, text=True, check=True, env=environment
    )
    word, megabytes = done.stdout.split()
    return word, float(megabytes)


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's")
def test_freed_blocks_go_back_to_the_system_unless_the_environment_says_otherwise():
    word, held = run("yes")
    assert word == "True" and held < 30
    assert run("no")[1] > 100  # or there is nothing to be done
    assert run("yes", MALLOC_MMAP_THRESHOLD_="30000000")[0] == "False"
