"""How ranks find each other under each launcher: horovodrun, torchrun, srun, or nobody."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Mapping
from typing import Any

import torch

from horovod_transformer.distributed import collectives
from horovod_transformer.distributed.collectives import HostSets, get_local_rank, get_rank, get_world_size
from horovod_transformer.distributed.devices import choose_device
from horovod_transformer.distributed.hosts import gloo_uses_interface, no_address
from horovod_transformer.distributed.rendezvous import meet
from horovod_transformer.distributed.threads import set_threads
from horovod_transformer.errors import UserError
from horovod_transformer.system.launch_environment import Launch, start_timeout, this_process
from horovod_transformer.system.machine import raise_open_files_limit, usable_address
from horovod_transformer.system.processes import terminate_with_parent

# Horovod's background thread wakes this often (milliseconds) to look for work, and ranks wait that long for
# each other. On CPUs it competes with the ranks for the cores: its default of 1 ms takes a quarter of a run's
# speed. A long update is better off with fewer looks, a short one with less waiting.
CPU_CYCLE_TIMES_MS = (10.0, 50.0)
CYCLES_PER_UPDATE = 75
CPU_FLOPS = 1e11  # of a rank, about: near the best cycle time a little more or less costs nothing
# Seconds a Gloo operation waits for the other ranks; it also covers start-up, which takes 27 s
# for 8 ranks on two cores, too close to Gloo's own 30, and grows with the number of ranks.
GLOO_TIMEOUT_S = 90
GLOO_TIMEOUT_PER_RANK_S = 0.5
# Files and sockets of a rank beside Gloo's: data, logs, loader processes, libraries.
OTHER_FILES = 256

_attempt = 0


def setup_horovod(
    require_distributed: bool = False,
    device: str = "auto",
    flops_per_update: float = 0.0,
    hierarchical: str = "off",
    compression: str = "none",
) -> tuple[int, int, int, bool]:
    """Join the job this process was launched into, or carry on alone. *Collective.*

    Picks this rank's GPU, and on a CPU its number of threads.

    Args:
        require_distributed: Treat a lone process as a mistake.
        device: `auto`, `cpu` or `cuda`, as `training.device`.
        flops_per_update: What an update costs all ranks together, about; sets how often Horovod looks for
            work on CPUs.
        hierarchical: As `distributed.hierarchical`.
        compression: As `distributed.compression`.

    Returns:
        World size, rank, local rank (rank within this machine), and whether a GPU is used.

    Raises:
        UserError: The process is alone though it must not be, the launcher's variables make no
            sense, other ranks do not come, Horovod or its GPU support is missing, or the ranks
            cannot agree on a device.
    """
    global _attempt
    launch = this_process()
    if launch.size > 1:
        if get_world_size() == 1:
            _attempt = launch.attempt
            on_gpus = device != "cpu" and torch.cuda.is_available()
            if not on_gpus:
                cycle = cpu_cycle_time_ms(flops_per_update / launch.size)
                os.environ.setdefault("HOROVOD_CYCLE_TIME", f"{cycle:g}")
            collectives.use_horovod(*_start_horovod(launch, hierarchical, compression, on_gpus))
    elif require_distributed:
        raise UserError(
            "this is a single process, but distributed training was asked for; launch it with "
            "`horovodrun -np 2 python ...` or `horovod-transformer launch -np 2 -- python ...` "
            "(2 is the number of processes)"
        )
    else:
        _attempt = launch.attempt
    chosen, _ = choose_device(device)
    set_threads(None)
    return get_world_size(), get_rank(), get_local_rank(), chosen.type == "cuda"


def horovod_is_installed() -> bool:
    """Whether several processes can train together."""
    return importlib.util.find_spec("horovod") is not None


def usual_processes(device: str) -> int:
    """How many processes to show training on: two, but one where Horovod is missing or a GPU would be shared.

    Args:
        device: As `training.device`.
    """
    if not horovod_is_installed():
        return 1
    alone = torch.cuda.is_available() and torch.cuda.device_count() == 1
    return 1 if device != "cpu" and alone else 2


def attempt() -> int:
    """0 on the first start of a launch, more when Slurm or torchrun has started it again."""
    return _attempt


def launch_id() -> str | None:
    """A name that every start of one launch shares: Slurm's job, torchrun's run id; None without one."""
    return this_process().job


def cpu_cycle_time_ms(flops: float) -> float:
    """Choose Horovod's cycle time for ranks on CPUs, in milliseconds.

    Args:
        flops: What an update costs one rank.
    """
    shortest, longest = CPU_CYCLE_TIMES_MS
    return min(longest, max(shortest, 1000 * flops / CPU_FLOPS / CYCLES_PER_UPDATE))


def _require_horovodrun() -> None:
    """Refuse what Horovod would wait for minutes for, or end the process over.

    Raises:
        UserError: No horovodrun is there to meet through (an earlier job has left its variables behind), or
            Gloo cannot listen on this host.
    """
    host = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR", "")
    port = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_PORT", "")
    try:
        socket.create_connection((host, int(port)), timeout=start_timeout()).close()
    except (OSError, ValueError, OverflowError):
        raise UserError(
            "HOROVOD_SIZE and HOROVOD_RANK say that horovodrun has started this process, but no horovodrun "
            "answers: launch with horovodrun, or unset the two"
        ) from None
    by_name = not (os.environ.get("HOROVOD_GLOO_IFACE") and gloo_uses_interface())
    if by_name and not usable_address(socket.gethostname()):
        mistake = UserError(no_address(socket.gethostname()))
        mistake.only_here = True
        raise mistake


def _make_room_for_sockets(environment: Mapping[str, str], by_hosts: bool) -> None:
    """Let this rank open Gloo's sockets: two for each other rank of each context (global, local, cross).

    Raises:
        UserError: The system's hard limit is too low.
    """
    everyone, *part = (int(environment.get(f"HOROVOD_{name}SIZE") or 1) for name in ("", "LOCAL_", "CROSS_"))
    # A process set of a host's ranks, or of one rank of each host, has as many contexts again.
    wanted = 2 * (everyone - 1) + (8 if by_hosts else 2) * sum(size - 1 for size in part) + OTHER_FILES
    if (most := raise_open_files_limit()) < wanted:
        raise UserError(
            f"each of {environment['HOROVOD_SIZE']} ranks opens up to {wanted} files and sockets, but the "
            f"hard limit on {socket.gethostname()} is {most} (ulimit -Hn): have it raised, or start fewer"
        )


def _start_horovod(
    launch: Launch, hierarchical: str = "off", compression: str = "none", on_gpus: bool = False
) -> tuple[Any, HostSets | None]:
    """Return `horovod.torch`, and the ranks by host where gradients are to be added up so."""
    global _attempt
    if not horovod_is_installed():
        raise UserError("launched for several processes, but Horovod is not installed; run `make install`")
    # Horovod reads these once, when it starts.
    seconds = GLOO_TIMEOUT_S + int(GLOO_TIMEOUT_PER_RANK_S * launch.size)
    os.environ.setdefault("HOROVOD_GLOO_TIMEOUT_SECONDS", str(seconds))
    # Groups of gradients that are ready together would be fused, and summed in another order each time.
    os.environ.setdefault("HOROVOD_DISABLE_GROUP_FUSION", "1")
    meeting = None
    if launch.launcher == "torchrun":
        # torchrun's agent cannot end its ranks when it is killed. By SIGTERM: they save what they have.
        # The parent may also be a shell that the user has put in between, and that dies of the same signal
        # which asks this rank to stop.
        terminate_with_parent()
    if launch.launcher == "horovodrun":
        _require_horovodrun()
    else:
        meeting = meet(launch)
        os.environ.update(meeting.variables)
        _attempt = meeting.attempt
    per_host, hosts = (int(os.environ[f"HOROVOD_{name}_SIZE"]) for name in ("LOCAL", "CROSS"))
    # Every rank answers these alike, also where hosts have different numbers of ranks.
    several_hosts, several_on_one = per_host != launch.size, hosts != launch.size
    # What `auto` gains on GPUs has not been measured.
    wanted = hierarchical == "on" or (hierarchical == "auto" and not on_gpus)
    in_steps = wanted and several_hosts and several_on_one
    compressed = compression == "bf16" and several_hosts
    if in_steps and on_gpus and not compressed:
        os.environ.setdefault("HOROVOD_TORUS_ALLREDUCE", "1")
        in_steps = False  # Horovod does it
    by_hosts = in_steps or compressed
    _make_room_for_sockets(os.environ, by_hosts)
    import horovod.torch as hvd

    hvd.init(process_sets="dynamic" if by_hosts and several_on_one else None)
    if hvd.size() != launch.size:
        # Otherwise each process would train alone and overwrite the others' files.
        raise UserError(f"the launcher announced {launch.size} processes but Horovod found {hvd.size()}")
    sets = None
    if by_hosts and several_on_one and len(hvd.allgather(torch.tensor([per_host])).unique()) == 1:
        made = [hvd.add_process_set(ranks) for ranks in host_sets(launch.size, per_host)]
        host, likes = (each for each in made if each.included())
        sets = HostSets(host, likes, per_host, hosts)
    elif compressed:
        # Each rank has a host of its own, or, where hosts have different numbers of ranks, is treated so.
        sets = HostSets(None, hvd.global_process_set, 1, launch.size)
    if meeting is not None:
        hvd.barrier()  # nobody needs the server any more
        meeting.close()
    return hvd, sets


def host_sets(size: int, per_host: int) -> list[list[int]]:
    """The ranks of each host, then those with the same place on each host."""
    ranks = list(range(size))
    return [ranks[first : first + per_host] for first in range(0, size, per_host)] + [
        ranks[place::per_host] for place in range(per_host)
    ]
