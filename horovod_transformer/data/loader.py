"""Blocks to batches of tensors, in the order that the plan says."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from horovod_transformer import distributed
from horovod_transformer.config import Config
from horovod_transformer.config_sections import TrainingConfig
from horovod_transformer.data.dataset import BlockDataset, open_prepared_data
from horovod_transformer.data.sampler import BatchPlan, MicroBatchSampler, UpdateSampler
from horovod_transformer.errors import UserError
from horovod_transformer.system.processes import exit_with
from horovod_transformer.system.signals import SIGNALS


def plan_batches(
    training: TrainingConfig, train: BlockDataset, world_size: int, exact: bool = False
) -> BatchPlan:
    """Plan a run over this training split; see `BatchPlan.of`."""
    return BatchPlan.of(training, len(train), train.block_size, train.padding, world_size, exact)


def training_loader(
    train: BlockDataset,
    plan: BatchPlan,
    rank: int,
    updates: range,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """Load a rank's micro-batches of these updates, `plan.micro_batches` for each; see `BlockLoader`."""
    batches = MicroBatchSampler(UpdateSampler(train, plan, rank, updates))
    return BlockLoader(train, batches, workers, pin_memory)


def validation_loader(
    validation: BlockDataset,
    plan: BatchPlan,
    rank: int,
    most_blocks: int | None = None,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """Load a rank's share of the validation blocks; see `BlockLoader`.

    Args:
        validation: All of them.
        plan: Gives the number of ranks and the blocks of a forward pass.
        rank: This process's.
        most_blocks: Take at most this many of all, evenly spread; None takes all.
        workers: Number of loader processes.
        pin_memory: As for `BlockLoader`.
    """
    number = min(len(validation), most_blocks or len(validation))
    chosen = np.arange(number) * len(validation) // number
    size = plan.piece_size
    if plan.cuts_alike:  # the same batches for every number of ranks: a block's loss may depend on its batch
        batches = [chosen[i : i + size].tolist() for i in range(0, number, size)][rank :: plan.world_size]
    else:
        mine = chosen[rank :: plan.world_size].tolist()
        batches = [mine[i : i + size] for i in range(0, len(mine), size)]
    return BlockLoader(validation, batches, workers, pin_memory)


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
    plan = plan_batches(config.training, data.train, world_size)
    updates = range(min(plan.total_updates, config.training.max_updates or plan.total_updates))
    workers = config.data.num_workers
    pin_memory = config.training.device != "cpu" and torch.cuda.is_available()
    return (
        training_loader(data.train, plan, rank, updates, workers, pin_memory),
        validation_loader(data.validation, plan, rank, config.training.eval_blocks, workers, pin_memory),
    )


class BlockLoader(DataLoader):
    """Batches of blocks as dicts of `input_ids` and `labels`, int64 (blocks, block_size).

    Loader processes send blocks as they are stored, 2 bytes an id, by value; the rank makes tensors of
    them. A tensor sent from a process takes a connection of its own and a handshake, which cost the rank
    more than reading the block itself: docs/log.md has the figures, and why no loader processes is the
    default.

    Args:
        blocks: What is loaded.
        batches: Lists of indices of blocks.
        workers: Number of loader processes; 0 loads in this one.
        pin_memory: Put batches where a GPU fetches them from. A process that does so is on a GPU.
    """

    def __init__(
        self,
        blocks: BlockDataset,
        batches: Sampler[list[int]] | list[list[int]],
        workers: int,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            _StoredBlocks(blocks),
            batch_sampler=batches,
            collate_fn=_as_it_is,
            num_workers=workers,
            worker_init_fn=partial(_follow_the_rank, os.getpid()),
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            # A forked process has the files mapped and the libraries loaded; started afresh two take
            # seconds and twice the memory. It is safe because a loader only copies mapped memory: it calls
            # neither Arrow nor Horovod nor CUDA, whose threads a fork leaves behind.
            multiprocessing_context="fork" if workers else None,
        )
        self._blocks = blocks
        self._pin_memory = pin_memory

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        for indices, rows in super().__iter__():
            yield self._blocks.batch(indices, rows, self._pin_memory)


class _StoredBlocks(Dataset):
    def __init__(self, blocks: BlockDataset) -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitems__(self, indices: list[int]) -> tuple[list[int], np.ndarray]:
        return indices, self.blocks.rows(indices)


def _follow_the_rank(rank: int, worker: int) -> None:
    """Slurm signals every process of a job; a loader that died of it would take its rank along."""
    for number in SIGNALS:
        if number != signal.SIGTERM:  # torch's goodbye to its loaders
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_rank_says, daemon=True).start()
    # torch looks every five seconds, and until then the other ranks see open connections.
    exit_with(rank)
    if os.getppid() != rank:
        os._exit(1)  # it was killed just now: nobody would notice any more


def _end_when_the_rank_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _as_it_is(batch: Any) -> Any:
    """Whole batches are fetched: there is nothing to put together."""
    return batch
