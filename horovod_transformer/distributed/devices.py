"""What each rank computes on, a GPU of its own or a CPU; decided by all together."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from horovod_transformer.distributed.collectives import get_local_rank, get_world_size, lacks_nccl
from horovod_transformer.distributed.exchange import gather_objects
from horovod_transformer.errors import UserError
from horovod_transformer.precision import PrecisionChoice, bf16_unit, choose_precision

# Slurm says by these that it granted GPUs to this process; beside each, what says that it granted none. The
# first two are the numbers of GPUs, of which 0 is one; the last is their count.
SLURM_GPU_VARIABLES = {"SLURM_STEP_GPUS": "", "SLURM_JOB_GPUS": "", "SLURM_GPUS_ON_NODE": "0"}


@dataclass(frozen=True)
class RankDevice:
    """What one rank has found.

    Attributes:
        kind: `cpu` or `cuda`.
        name: The card's name; empty on a CPU.
        uuid: Tells cards of one model apart; empty on a CPU.
        problem: Why this rank cannot do what was asked; empty if it can.
    """

    kind: str
    name: str = ""
    uuid: str = ""
    problem: str = ""


def choose_device(wanted: str = "auto") -> tuple[torch.device, list[str]]:
    """Choose this rank's device, alike on all ranks. *Collective.*

    Args:
        wanted: `auto` takes GPUs where every rank has one; `cpu` and `cuda` are taken at their word.

    Returns:
        The device, already set as the current one if it is a GPU, and the names of all ranks'
        cards, by rank; empty on CPUs.

    Raises:
        UserError: On every rank: one has no usable GPU though others have, or Slurm granted it
            one, or `cuda` was asked for; or two ranks share a card.
    """
    found = gather_objects(_look(wanted), "device", known=(RankDevice,))
    require_alike(found)
    if found[0].kind == "cpu":
        return torch.device("cpu"), []
    return torch.device("cuda", torch.cuda.current_device()), [rank.name for rank in found]


def require_alike(found: Sequence[RankDevice]) -> None:
    """Refuse ranks that cannot train together.

    Args:
        found: Each rank's device, by rank.

    Raises:
        UserError: They differ in kind, one has a problem, or two share a card.
    """
    for rank, device in enumerate(found):
        if device.problem:
            raise UserError(f"rank {rank}: {device.problem}")
    lacking = [rank for rank, device in enumerate(found) if device.kind == "cpu"]
    if lacking and len(lacking) < len(found):
        raise UserError(
            f"ranks {lacking} see no usable GPU, the others do; look at nvidia-smi on their machines, or "
            "train on CPUs with --training.device cpu"
        )
    if found[0].kind == "cuda":
        require_own_devices([device.uuid for device in found])


def common_precision(wanted: str, device: torch.device) -> PrecisionChoice:
    """Choose the precision, the same on all ranks. *Collective.*

    Args:
        wanted: As `training.precision`.
        device: This rank's.

    Raises:
        UserError: bf16 is asked for, and a rank's GPU cannot do it.
    """
    return choose_precision(wanted, device.type, gather_objects(bf16_unit(device), "bf16 unit"))


def completes_asynchronously(device: torch.device) -> bool:
    """Whether GPUs wait for their sums by themselves, not their hosts; docs/scaling.md says what it changes.

    Args:
        device: This rank's.
    """
    # As Horovod reads it: the whole number that it begins with.
    number = re.match(r"\s*\+?(\d+)", os.environ.get("HOROVOD_ENABLE_ASYNC_COMPLETION", ""))
    return device.type == "cuda" and get_world_size() > 1 and number is not None and int(number[1]) > 0


def _look(wanted: str) -> RankDevice:
    """Find this rank's device and, if it is a GPU, make it the current one."""
    if wanted == "cpu":
        return RankDevice("cpu")
    try:
        usable = torch.cuda.is_available()
        if usable and lacks_nccl():
            return RankDevice(
                "cpu",
                problem="this machine has a GPU but Horovod was built without NCCL; rebuild it with "
                "`REBUILD=1 HOROVOD_BUILD=cuda make install`, or train on CPUs with --training.device cpu",
            )
        if usable:
            index = local_device_index(get_local_rank(), torch.cuda.device_count())
            torch.cuda.set_device(index)
            card = torch.cuda.get_device_properties(index)
            return RankDevice("cuda", card.name, str(card.uuid))
    except (UserError, RuntimeError) as error:
        return RankDevice("cpu", problem=str(error).splitlines()[0])
    granted = next(
        (name for name, none in SLURM_GPU_VARIABLES.items() if os.environ.get(name, "") not in ("", none)),
        None,
    )
    if wanted == "cuda" or granted:
        why = "training.device = cuda" if wanted == "cuda" else f"Slurm granted a GPU ({granted})"
        return RankDevice(
            "cpu",
            problem=f"{why}, but torch {torch.__version__} sees none; `horovod-transformer doctor` tells "
            "more, --training.device cpu trains on CPUs",
        )
    return RankDevice("cpu")


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
