"""Blocks to batches of tensors, in the order that the plan says."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from horovod_transformer import distributed
from horovod_transformer.config import Config
from horovod_transformer.data.dataset import BlockDataset, open_prepared_data
from horovod_transformer.data.sampler import MicroBatchSampler, UpdatePlan, UpdateSampler
from horovod_transformer.errors import UserError


def plan_updates(config: Config, train: BlockDataset, world_size: int) -> UpdatePlan:
    """Plan a run over this training split; see `UpdatePlan.from_config`."""
    return UpdatePlan.from_config(config, len(train), train.block_size, train.padding, world_size)


def training_loader(
    config: Config, train: BlockDataset, plan: UpdatePlan, rank: int, updates: range
) -> DataLoader:
    """Load a rank's micro-batches of these updates, `plan.micro_batches` for each."""
    return _loader(config, train, MicroBatchSampler(UpdateSampler(train, plan, rank, updates)))


def validation_loader(config: Config, validation: BlockDataset, rank: int, world_size: int) -> DataLoader:
    """Load a rank's share of the validation blocks: at most `training.eval_blocks` of all, evenly spread."""
    number = min(len(validation), config.training.eval_blocks or len(validation))
    chosen = (np.arange(number) * len(validation) // number)[rank::world_size].tolist()
    size = config.training.per_gpu_batch_size
    return _loader(config, validation, [chosen[i : i + size] for i in range(0, len(chosen), size)])


def iterate_batches(loader: DataLoader) -> Iterator[dict[str, Tensor]]:
    """Iterate over a loader; a bad row is told in one line, by the rank that met it.

    Raises:
        UserError: A row is not what it should be; the message names split and row.
    """
    try:
        yield from loader
    except UserError as error:
        # A loader process sends its whole traceback as the text; the last line is ours.
        plain = UserError(str(error).strip().rsplit("UserError: ", 1)[-1])
        plain.only_here = True
        raise plain from None


def get_dataloaders(
    config: Config, rank: int | None = None, world_size: int | None = None
) -> tuple[DataLoader, DataLoader]:
    """Make the loaders of a run that starts at its first update.

    Args:
        config: Names the data, batch sizes and number of loader processes.
        rank: This process's rank; None asks Horovod.
        world_size: Number of processes; None asks Horovod.

    Returns:
        Loaders of training micro-batches and of this rank's share of the validation blocks. A
        batch is a dict of `input_ids` and `labels`, int64 (blocks, block_size).

    Raises:
        UserError: The data is missing or does not fit the config.
    """
    rank = distributed.get_rank() if rank is None else rank
    world_size = distributed.get_world_size() if world_size is None else world_size
    data = open_prepared_data(config)
    plan = plan_updates(config, data.train, world_size)
    updates = range(min(plan.total_updates, config.training.max_updates or plan.total_updates))
    return (
        training_loader(config, data.train, plan, rank, updates),
        validation_loader(config, data.validation, rank, world_size),
    )


def _loader(config: Config, blocks: BlockDataset, batch_sampler: Any) -> DataLoader:
    workers = config.data.num_workers
    return DataLoader(
        blocks,
        batch_sampler=batch_sampler,
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_the_rank,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
    )


def _leave_signals_to_the_rank(worker: int) -> None:
    """Slurm signals every process of a job; a loader that died of it would take its rank along."""
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_rank_says, daemon=True).start()


def _end_when_the_rank_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _as_it_is(batch: Any) -> dict[str, Tensor]:
    """`BlockDataset` fetches whole batches: there is nothing to put together."""
    return batch
