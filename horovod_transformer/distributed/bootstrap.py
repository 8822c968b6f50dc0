"""How ranks find each other: started by horovodrun, or alone."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch

from horovod_transformer.distributed import collectives
from horovod_transformer.distributed.collectives import get_local_rank, get_rank, get_world_size
from horovod_transformer.distributed.devices import choose_device, set_threads
from horovod_transformer.errors import UserError

# Horovod's background thread wakes this often (milliseconds) to look for work. Its default of
# 1 ms takes a quarter of a CPU run's speed: the thread competes with the ranks for the cores.
CPU_CYCLE_TIME_MS = "10"
# Seconds a Gloo operation waits for the other ranks; it also covers start-up, which takes 27 s
# for 8 ranks on two cores, too close to Gloo's own 30.
GLOO_TIMEOUT_S = "90"


def setup_horovod(require_distributed: bool = False, device: str = "auto") -> tuple[int, int, int, bool]:
    """Join the Horovod job this process was launched into, or carry on alone. *Collective.*

    Picks this rank's GPU, and on a CPU its number of threads.

    Args:
        require_distributed: Treat a lone process as a mistake.
        device: `auto`, `cpu` or `cuda`, as `training.device`.

    Returns:
        World size, rank, local rank (rank within this machine), and whether a GPU is used.

    Raises:
        UserError: The process is alone though it must not be, was started by a launcher that
            Horovod does not know, Horovod or its GPU support is missing, or the
            ranks cannot agree on a device.
    """
    announced = int(os.environ.get("HOROVOD_SIZE", "1"))
    if announced > 1:
        if get_world_size() == 1:
            collectives.use_horovod(
                _start_horovod(announced, on_gpus=device != "cpu" and torch.cuda.is_available())
            )
    else:
        _refuse_foreign_launchers()
        if require_distributed:
            raise UserError(
                "this is a single process, but distributed training was asked for; launch it with "
                "`horovodrun -np 2 python ...` (2 is the number of processes)"
            )
    chosen, _ = choose_device(device)
    set_threads(None)
    return get_world_size(), get_rank(), get_local_rank(), chosen.type == "cuda"


def _start_horovod(announced: int, on_gpus: bool) -> Any:
    if importlib.util.find_spec("horovod") is None:
        raise UserError("launched for several processes, but Horovod is not installed; run `make install`")
    # Horovod reads these once, when it starts.
    os.environ.setdefault("HOROVOD_GLOO_TIMEOUT_SECONDS", GLOO_TIMEOUT_S)
    if not on_gpus:
        os.environ.setdefault("HOROVOD_CYCLE_TIME", CPU_CYCLE_TIME_MS)
    import horovod.torch as hvd

    hvd.init()
    if hvd.size() != announced:
        # Otherwise each process would train alone and overwrite the others' files.
        raise UserError(f"the launcher announced {announced} processes but Horovod found {hvd.size()}")
    return hvd


def _refuse_foreign_launchers() -> None:
    """N processes that do not know of each other would each train alone, on the same files."""
    for variable, launcher in (
        ("OMPI_COMM_WORLD_SIZE", "mpirun"),
        ("PMI_SIZE", "mpiexec"),
        ("SLURM_STEP_NUM_TASKS", "srun"),
        ("WORLD_SIZE", "torchrun"),
    ):
        if os.environ.get(variable, "1") not in ("", "1"):
            raise UserError(
                f"{launcher} started {os.environ[variable]} processes ({variable}) that Horovod does not "
                "know of; launch with `horovodrun -np N python ...`"
            )
