"""Which blocks make up each optimizer update, and which rank computes them.

The blocks form one line: the corpus in another order each epoch (`data.epoch_order`), one after the
other. Update k takes the next `global_batch_size` of them, wherever epochs begin. The line depends on
the seed and the kind of order alone, so any number of processes sees the same updates, and a run is
resumed at any update by starting there: there is no state to save.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from torch.utils.data import Dataset, Sampler
from torch.utils.data.distributed import DistributedSampler

from horovod_transformer.config_sections import TrainingConfig
from horovod_transformer.data.epoch_order import TABLE, derive_seed, epoch_order, usual_order
from horovod_transformer.errors import UserError


@dataclass(frozen=True)
class BatchPlan:
    """Which blocks each rank contributes to each optimizer update.

    Attributes:
        blocks: Blocks in the training split.
        block_size: Tokens per block.
        padding: Filling tokens at the end of the last block.
        global_batch_size: Blocks per update over all ranks; the very last update may have fewer.
        micro_batch_size: Blocks per forward pass on one rank, at most.
        world_size: Number of ranks.
        epochs: Passes over the corpus.
        seed: Decides the orders of the epochs.
        order: The kind of order, see `data.epoch_order`.
        exact_up_to: As `training.exact_up_to`: cut an update into the same micro-batches for every number of
            ranks up to this. None: each rank cuts its own share of the blocks.
    """

    blocks: int
    block_size: int
    padding: int
    global_batch_size: int
    micro_batch_size: int
    world_size: int
    epochs: int
    seed: int
    order: str = TABLE
    exact_up_to: int | None = None

    @classmethod
    def of(
        cls,
        training: TrainingConfig,
        blocks: int,
        block_size: int,
        padding: int,
        world_size: int,
        exact: bool = False,
    ) -> BatchPlan:
        """Work out the plan of a fresh run; see `training.global_batch_size` in configs/config.yaml.

        Args:
            training: Batch sizes, epochs and seed.
            blocks, block_size, padding, world_size: As the attributes.
            exact: Gradients are summed exactly: cut updates alike for every number of ranks.

        Raises:
            UserError: There are more ranks than blocks in an update.
        """
        steps = training.gradient_accumulation_steps
        if steps is not None:
            global_batch = training.per_gpu_batch_size * steps * world_size
        else:
            assert training.global_batch_size is not None
            global_batch = training.global_batch_size
        if world_size > global_batch:
            raise UserError(
                f"training.global_batch_size = {global_batch}: {world_size} processes cannot share an update "
                f"of {global_batch} blocks; use fewer processes or a larger batch"
            )
        return cls(
            blocks=blocks,
            block_size=block_size,
            padding=padding,
            global_batch_size=global_batch,
            micro_batch_size=training.per_gpu_batch_size,
            world_size=world_size,
            epochs=training.epochs,
            seed=training.seed,
            order=usual_order(blocks),
            exact_up_to=cut_alike_up_to(training, exact),
        )

    @property
    def total_updates(self) -> int:
        """Updates that use every block of every epoch once."""
        return math.ceil(self.blocks * self.epochs / self.global_batch_size)

    @property
    def cuts_alike(self) -> bool:
        """Whether an update has the same micro-batches for every number of ranks, dealt out whole."""
        return self.exact_up_to is not None and self._number_of_pieces() >= self.world_size

    @property
    def piece_size(self) -> int:
        """Blocks per forward pass, at most."""
        if not self.cuts_alike:
            return self.micro_batch_size
        return self._size_of_pieces()

    @property
    def micro_batches(self) -> int:
        """Forward passes per update on each rank, the same on all: gradients are summed after the last."""
        if self.cuts_alike:
            return math.ceil(self._number_of_pieces() / self.world_size)
        largest_share = math.ceil(self._largest_update / self.world_size)
        return math.ceil(largest_share / self.micro_batch_size)

    @property
    def summands(self) -> int:
        """Gradients that are added up for an update, over all ranks, at most."""
        return self._number_of_pieces() if self.cuts_alike else self.world_size * self.micro_batches

    @property
    def _largest_update(self) -> int:
        return min(self.global_batch_size, self.blocks * self.epochs)

    def _size_of_pieces(self) -> int:
        assert self.exact_up_to is not None
        # Rounded down: 8 ranks want 8 pieces of 11 blocks, and pieces of two would be 6.
        return max(1, min(self.micro_batch_size, self.global_batch_size // self.exact_up_to))

    def _number_of_pieces(self) -> int:
        return math.ceil(self._largest_update / self._size_of_pieces())

    def positions(self, update: int) -> range:
        """Places of an update's blocks in the line of all epochs; updates count from 0."""
        end = min((update + 1) * self.global_batch_size, self.blocks * self.epochs)
        return range(update * self.global_batch_size, end)

    def micro_batch(self, update: int, rank: int, number: int) -> range:
        """Places of the blocks of one forward pass of one rank; may be empty.

        Where `cuts_alike`, ranks may differ by one micro-batch. Otherwise they differ by one block at most,
        and the forward passes are the same for every number of ranks that divides the blocks evenly.
        """
        everyone = self.positions(update)
        if self.cuts_alike:
            size = self.piece_size
            pieces = math.ceil(len(everyone) / size)
            first, end = (pieces * r // self.world_size for r in (rank, rank + 1))
            piece = first + number
            return everyone[piece * size : (piece + 1) * size] if piece < end else everyone[:0]
        start, end = (len(everyone) * r // self.world_size for r in (rank, rank + 1))
        mine = everyone[start:end]
        return mine[number * self.micro_batch_size : (number + 1) * self.micro_batch_size]

    def block_indices(self, positions: range) -> list[int]:
        """Blocks that stand at these places of the line."""
        indices = []
        for epoch, places in self._by_epoch(positions):
            indices += epoch_order(self.order, self.blocks, self.seed, epoch).blocks_at(places)
        return indices

    def target_tokens(self, update: int) -> int:
        """Tokens predicted in an update over all ranks, known without asking them."""
        positions = self.positions(update)
        # The first token of a block has nothing before it; the filling of the last one is not predicted.
        short = min(self.padding, self.block_size - 1)
        times = 0
        for epoch, places in self._by_epoch(positions) if short else ():
            times += epoch_order(self.order, self.blocks, self.seed, epoch).place_of_last in places
        return len(positions) * (self.block_size - 1) - times * short

    def _by_epoch(self, positions: range) -> Iterator[tuple[int, range]]:
        """Cut a piece of the line where epochs begin: each epoch's number, and the places within it."""
        start = positions.start
        while start < positions.stop:
            epoch, place = divmod(start, self.blocks)
            end = min(positions.stop, (epoch + 1) * self.blocks)
            yield epoch, range(place, place + end - start)
            start = end

    def dropout_seed(self, update: int, rank: int, number: int) -> int:
        """Seed of one forward pass's random numbers, derived rather than saved."""
        micro_batch = self.micro_batch(update, rank, number)
        return derive_seed(self.seed, "dropout", update, micro_batch.start)


def cut_alike_up_to(training: TrainingConfig, exact: bool) -> int | None:
    """`BatchPlan.exact_up_to` of a run.

    Args:
        training: With `gradient_accumulation_steps` the update itself depends on the number of ranks.
        exact: Gradients are summed exactly.
    """
    return training.exact_up_to if exact and training.gradient_accumulation_steps is None else None


class UpdateSampler(DistributedSampler):
    """This rank's block indices, one after the other, from a given update to the end of the run.

    A `DistributedSampler` that shares out updates rather than epochs: its partition of the corpus
    does not depend on the number of ranks.

    Args:
        blocks: The training split.
        plan: Which blocks each rank contributes to each update.
        rank: This process's.
        updates: Updates to sample, counted from 0.
    """

    def __init__(self, blocks: Dataset, plan: BatchPlan, rank: int, updates: range) -> None:
        super().__init__(blocks, num_replicas=plan.world_size, rank=rank, seed=plan.seed)
        self.plan = plan
        self.updates = updates

    def micro_batches(self) -> Iterator[range]:
        """Places of this rank's blocks in the line of all epochs, by forward pass; may be empty."""
        for update in self.updates:
            for number in range(self.plan.micro_batches):
                yield self.plan.micro_batch(update, self.rank, number)

    def __iter__(self) -> Iterator[int]:
        for places in self.micro_batches():
            yield from self.plan.block_indices(places)

    def __len__(self) -> int:
        if not self.updates:
            return 0
        # All updates but the run's very last have the same number of blocks.
        return self._share(self.updates[0]) * (len(self.updates) - 1) + self._share(self.updates[-1])

    def _share(self, update: int) -> int:
        numbers = range(self.plan.micro_batches)
        return sum(len(self.plan.micro_batch(update, self.rank, number)) for number in numbers)


class MicroBatchSampler(Sampler[list[int]]):
    """Cuts what an `UpdateSampler` yields into the batches of single forward passes.

    Every update has `plan.micro_batches` of them on every rank. One may be empty, see
    `BlockDataset.__getitems__`.
    """

    def __init__(self, sampler: UpdateSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.sampler)
        for places in self.sampler.micro_batches():
            yield list(islice(indices, len(places)))

    def __len__(self) -> int:
        return len(self.sampler.updates) * self.sampler.plan.micro_batches
