"""One GPU per rank, and on a CPU its share of the cores."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from horovod_transformer.distributed.collectives import get_local_size
from horovod_transformer.errors import UserError


def local_device_index(local_rank: int, visible: int) -> int:
    """Choose this rank's GPU, however the launcher shows them.

    Args:
        local_rank: Rank within this machine.
        visible: GPUs this process can see: all of the machine's, or only its own.

    Raises:
        UserError: More ranks than GPUs.
    """
    if visible == 1:
        return 0
    if local_rank >= visible:
        raise UserError(
            f"this machine shows {visible} GPUs, but rank {local_rank} of it (counted from 0) needs one "
            "of its own; start at most one process per GPU"
        )
    return local_rank


def require_own_devices(uuids: Sequence[str]) -> None:
    """Refuse two ranks on one GPU: NCCL would end in an error that names neither.

    Args:
        uuids: The GPU of each rank, by rank.

    Raises:
        UserError: Two ranks have the same one.
    """
    for rank, uuid in enumerate(uuids):
        first = uuids.index(uuid)
        if first != rank:
            raise UserError(
                f"ranks {first} and {rank} would share one GPU; start one process per GPU, and if you set "
                "CUDA_VISIBLE_DEVICES yourself, give each rank another one"
            )


def set_threads(threads: int | None) -> None:
    """Set torch's CPU threads of this rank; None shares the cores out among the machine's ranks.

    `OMP_NUM_THREADS` in the environment wins over the sharing, an explicit number over both.
    """
    if threads is None:
        if os.environ.get("OMP_NUM_THREADS"):
            return
        # Slurm gives each task its own cores; elsewhere the ranks of a machine share them.
        own = os.environ.get("SLURM_CPUS_PER_TASK")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = min(int(own), cores) if own and own.isdigit() else cores // get_local_size()
    torch.set_num_threads(max(1, threads))
