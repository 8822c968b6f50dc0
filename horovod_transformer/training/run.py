"""Training as one call: from a configuration to how it ended."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import torch

from horovod_transformer import distributed
from horovod_transformer.checkpoint.run_paths import is_run_name
from horovod_transformer.config import Config
from horovod_transformer.config_sections import TABLES
from horovod_transformer.errors import UserError
from horovod_transformer.system.machine import is_out_of_memory
from horovod_transformer.system.paths import readable, user_path
from horovod_transformer.training.metrics.profiling import ProfileRequest
from horovod_transformer.training.resume import StartRequest
from horovod_transformer.training.trainer import Trainer

# What the system says at its limits: of open files, in this process or in all; of processes.
_LIMITS = (errno.EMFILE, errno.ENFILE, errno.EAGAIN)


def run_distributed_training(
    config: Config,
    rank: int,
    world_size: int,
    local_rank: int,
    resume_checkpoint: str | Path | None = None,
    run_name: str | None = None,
    output_dir: str | Path | None = None,
    init_from: str | Path | None = None,
    profile: ProfileRequest | None = None,
) -> dict[str, Any]:
    """Train a model, together with the other ranks. *Collective.*

    Call `setup_horovod` first and pass on what it returned. SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 or SIGINT
    to any rank makes all of them stop after the same update, with a checkpoint.

    Args:
        config: The whole configuration.
        rank: This process's number.
        world_size: Number of processes.
        local_rank: This process's number on its machine.
        resume_checkpoint: Resume this checkpoint, `~` being home; `"auto"` takes the newest good one of
            the run's checkpoint folder, or starts afresh if there is none. A later start of the same Slurm
            job or torchrun launch always means `"auto"`.
        run_name: Names the run and its folder, `runs/NAME`; None takes the resumed run's, the Slurm job's or
            the time.
        output_dir: Folder that holds `runs/`; replaces `config.paths.output_dir`.
        init_from: Start afresh, but with this checkpoint's weights.
        profile: Record a window of updates; None records nothing.

    Returns:
        `update`, `train_loss`, `best_validation_loss`, `finished`, `run_name`, `checkpoint_dir`,
        `records_dir`.

    Raises:
        UserError: The data, a checkpoint, a folder or a device is not what the config says, another
            process writes to the folder, training diverged, or memory is too small.
        ValueError: Rank or world size are not Horovod's.
    """
    known = (distributed.get_rank(), distributed.get_world_size(), distributed.get_local_rank())
    if (rank, world_size, local_rank) != known:
        raise ValueError("rank, world_size and local_rank must be those that setup_horovod() returned")
    given = {"resume": resume_checkpoint, "init_from": init_from, "output_dir": output_dir}
    for option, value in given.items():
        if value is not None and not str(value).strip():
            raise UserError(f"--{option}: is empty; leave it out, or say what it should be")
    if resume_checkpoint and init_from:
        raise UserError("--resume continues a run, --init_from starts another: give one of them")
    if run_name is not None:
        _require_name(run_name)
    if resume_checkpoint and resume_checkpoint != "auto":
        resume_checkpoint = user_path(resume_checkpoint, "--resume")
    if init_from:
        init_from = user_path(init_from, "--init_from")
    if output_dir is not None:
        config = config.with_paths_in(output_dir)
    distributed.set_threads(config.training.threads_per_rank)
    with distributed.lost_ranks_explained():
        try:
            trainer = Trainer(config, StartRequest(resume_checkpoint, init_from, run_name), profile)
            try:
                return trainer.train()
            finally:
                trainer.close()
        except Exception as error:
            if is_out_of_memory(error):
                raise _out_of_memory(config, error) from None
            if isinstance(error, OSError) and error.errno in _LIMITS:
                raise _limit_reached(config, error) from None
            raise


def _require_name(name: str) -> None:
    """Refuse a name that would reach out of `runs/`, where folders of that name are made and renamed."""
    if name.split("/")[0] == TABLES:
        raise UserError(
            f"--run_name {readable(name)}: that is the folder of all runs' tables; choose another name"
        )
    if not is_run_name(name):
        raise UserError(
            f"--run_name {readable(name) or repr(name)}: should name a folder below runs/, such as first or "
            "tests/first, no part of it empty or beginning with a dot"
        )


def _limit_reached(config: Config, error: OSError) -> UserError:
    mistake = UserError(
        f"rank {distributed.get_rank()}: {error.strerror}: the system allows no more open files or processes "
        "(`ulimit -n` and `ulimit -u` show how many); raise the limit, or lower data.num_workers = "
        f"{config.data.num_workers}"
    )
    mistake.only_here = True
    return mistake


def _out_of_memory(config: Config, error: Exception) -> UserError:
    whose = "the GPU's" if isinstance(error, torch.OutOfMemoryError) else "this machine's"
    mistake = UserError(
        f"rank {distributed.get_rank()}: {whose} memory is too small for training.per_gpu_batch_size = "
        f"{config.training.per_gpu_batch_size}; halve it (the update stays the same), set "
        "model.gradient_checkpointing to true, or make the model smaller"
    )
    mistake.only_here = True
    return mistake
