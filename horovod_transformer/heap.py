"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import os
import sys

_M_MMAP_THRESHOLD = -3  # malloc.h
# Activations are larger, and what Python itself allocates is smaller.
RETURNED_FROM = 4 * 2**20


def return_large_blocks() -> bool:
    """Have freed blocks of four megabytes and more go back to the system at once.

    glibc otherwise learns to keep blocks of up to 32 MB, between which small ones settle: a training process
    then holds nearly twice what it uses. Settings in the environment (`MALLOC_MMAP_THRESHOLD_`,
    `GLIBC_TUNABLES`) win. Other C libraries are left as they are.

    Returns:
        Whether anything was set.
    """
    if sys.platform != "linux" or {"MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and mallopt(_M_MMAP_THRESHOLD, RETURNED_FROM) == 1
