"""How many CPU threads each rank computes with: its share of the cores."""

from __future__ import annotations

import os

import torch

from horovod_transformer.distributed.collectives import get_local_size
from horovod_transformer.system.launch_environment import this_process
from horovod_transformer.system.machine import usable_cores


def set_threads(threads: int | None) -> None:
    """Set torch's CPU threads of this rank; None shares the cores out among the machine's ranks.

    `OMP_NUM_THREADS` in the environment wins over the sharing, an explicit number over both.
    """
    if threads is None:
        if os.environ.get("OMP_NUM_THREADS"):
            return
        # What srun starts has cores of its own, if it said how many. Other ranks share the machine's, or what
        # the one task has that started them.
        alone = this_process().launcher == "srun" and "SLURM_CPUS_PER_TASK" in os.environ
        threads = usable_cores() // (1 if alone else get_local_size())
    torch.set_num_threads(max(1, threads))
