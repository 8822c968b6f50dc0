"""How long an OpenMP thread waits for the next piece of work before it sleeps."""

from __future__ import annotations

import os

# Turns of the waiting loop, some ten microseconds: enough to bridge the gaps inside an update, and next to
# nothing of a core that other work wants. GNU's own default is far longer, LLVM's is 200 ms.
GNU_SPIN_COUNT = "10000"
LLVM_BLOCK_TIME_MS = "1"


def wait_briefly() -> None:
    """Have OpenMP's threads sleep soon when they have nothing to do, unless the environment says otherwise.

    By default they spin at the end of each parallel loop. On a machine that does anything else besides, a
    loop then waits for a thread that has lost its core to one that spins: docs/log.md, 2026-11-28, has what
    that costs. Both libraries read their setting once, when they are loaded, so this must come before torch
    is imported. PyPI's torch brings GNU's library, conda's and Intel's builds bring LLVM's.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", GNU_SPIN_COUNT)
        os.environ.setdefault("KMP_BLOCKTIME", LLVM_BLOCK_TIME_MS)
