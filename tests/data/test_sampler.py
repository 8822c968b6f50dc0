"""Which blocks make up an update, for any number of processes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from horovod_transformer.config import config_from_dict
from horovod_transformer.config_sections import TrainingConfig
from horovod_transformer.data.epoch_order import BIJECTION, TABLE, TABLE_LIMIT, derive_seed
from horovod_transformer.data.sampler import BatchPlan, UpdateSampler
from horovod_transformer.errors import UserError


def make_plan(blocks=23, batch=5, micro=2, world=1, epochs=3, padding=4, seed=9, order=TABLE):
    return BatchPlan(blocks, 16, padding, batch, micro, world, epochs, seed, order)


each_order = pytest.mark.parametrize("order", [TABLE, BIJECTION])


def update_of(plan, update):
    """All blocks of an update, rank by rank, micro-batch by micro-batch."""
    pieces = itertools.product(range(plan.world_size), range(plan.micro_batches))
    return [block for rank, n in pieces for block in plan.block_indices(plan.micro_batch(update, rank, n))]


# Batches that divide the corpus, do not, and are larger than it.
@pytest.mark.parametrize(("blocks", "batch"), [(24, 6), (23, 5), (7, 20), (1, 3), (10, 1)])
@pytest.mark.parametrize("micro", [1, 2, 64])
@each_order
def test_every_block_comes_once_per_epoch(blocks, batch, micro, order):
    plans = [make_plan(blocks, batch, micro, world, order=order) for world in range(1, min(batch, 6) + 1)]
    line = [block for update in range(plans[0].total_updates) for block in update_of(plans[0], update)]
    epochs = [line[i : i + blocks] for i in range(0, len(line), blocks)]
    assert len(epochs) == 3
    assert all(sorted(epoch) == list(range(blocks)) for epoch in epochs)
    for plan in plans[1:]:
        assert plan.total_updates == plans[0].total_updates
        for update in range(plan.total_updates):
            assert update_of(plan, update) == update_of(plans[0], update)


def test_an_update_has_no_more_passes_than_there_are_blocks():
    """A batch of 10^18 blocks takes no 10^18 passes over nothing."""
    plan = make_plan(blocks=7, batch=10**18, micro=2, world=3)
    assert (plan.total_updates, plan.micro_batches) == (1, 4)
    assert sorted(update_of(plan, 0)) == sorted(3 * list(range(7)))


@each_order
def test_epochs_differ_and_so_do_seeds(order):
    def line(seed):
        return make_plan(seed=seed, order=order).block_indices(range(46))

    assert line(9)[:23] != line(9)[23:]
    assert line(9) != line(10)
    assert line(9)[:23] != list(range(23))


def test_an_update_takes_from_two_epochs_when_one_ends():
    plan = make_plan(blocks=23, batch=5)
    assert list(plan.positions(4)) == [20, 21, 22, 23, 24]
    assert update_of(plan, 4) == plan.block_indices(range(20, 23)) + plan.block_indices(range(23, 25))


def test_the_last_update_may_be_partial():
    plan = make_plan(blocks=23, batch=5, epochs=1, world=4, micro=1)
    assert plan.total_updates == 5
    assert len(plan.positions(4)) == 3
    # All ranks make the same number of forward passes, some of them with nothing.
    assert sorted(len(plan.micro_batch(4, rank, 0)) for rank in range(4)) == [0, 1, 1, 1]


@pytest.mark.parametrize("world", range(1, 12))
@pytest.mark.parametrize("micro", [1, 2, 3, 11])
def test_shares_differ_by_at_most_a_block_and_fit_their_micro_batches(world, micro):
    plan = make_plan(batch=11, micro=micro, world=world)
    numbers = [
        [len(plan.micro_batch(0, rank, n)) for n in range(plan.micro_batches)] for rank in range(world)
    ]
    shares = [sum(of_rank) for of_rank in numbers]
    assert sum(shares) == 11
    assert max(shares) - min(shares) <= 1
    assert max(itertools.chain(*numbers)) <= micro
    # No more passes than the largest share needs.
    assert plan.micro_batches == -(-max(shares) // micro)


@pytest.mark.parametrize("batch", [8, 11, 20, 64])
@pytest.mark.parametrize("micro", [1, 2, 64])
def test_exact_sums_have_the_same_passes_on_any_number_of_ranks(batch, micro):
    plans = [replace(make_plan(23, batch, micro, world), exact_up_to=8) for world in range(1, 9)]
    for update in range(plans[0].total_updates):
        dealt = []
        for plan in plans:
            assert plan.cuts_alike and plan.piece_size <= micro
            ranks = [
                [plan.micro_batch(update, rank, number) for number in range(plan.micro_batches)]
                for rank in range(plan.world_size)
            ]
            counts = [sum(map(bool, passes)) for passes in ranks]
            assert max(counts) - min(counts) <= 1
            dealt.append([piece for passes in ranks for piece in passes if piece])
        assert all(pieces == dealt[0] for pieces in dealt)
        assert [place for piece in dealt[0] for place in piece] == list(plans[0].positions(update))
        # Seeds of dropout belong to passes.
        assert len(dealt[0]) <= plans[0].summands == plans[-1].summands


def test_more_ranks_than_passes_take_their_shares():
    plan = replace(make_plan(23, 11, 4, world=9), exact_up_to=2)
    assert not plan.cuts_alike
    assert plan.summands == 9 * plan.micro_batches
    fast = make_plan(23, 11, 4, world=9)
    for rank in range(9):
        assert plan.micro_batch(0, rank, 0) == fast.micro_batch(0, rank, 0)


def test_accumulation_steps_decide_the_passes():
    training = TrainingConfig(gradient_accumulation_steps=2, per_gpu_batch_size=4)
    assert BatchPlan.of(training, 100, 16, 0, 3, exact=True).micro_batches == 2


@each_order
@pytest.mark.parametrize("batch", [1, 4, 20])
def test_tokens_of_an_update_are_those_with_labels(order, batch):
    # The filling of the last block is not predicted, nor is any block's first token.
    plan = make_plan(blocks=6, batch=batch, epochs=4, padding=4, order=order)
    for update in range(plan.total_updates):
        blocks = update_of(plan, update)
        labels = torch.zeros(len(blocks), 16)
        labels[:, 0] = 1
        labels[np.array(blocks) == 5, 12:] = 1
        assert plan.target_tokens(update) == int((labels == 0).sum())


@pytest.mark.parametrize(("padding", "tokens"), [(0, 15), (14, 1), (15, 0), (16, 0)])
def test_a_block_of_filling_has_no_tokens(padding, tokens):
    assert make_plan(blocks=1, batch=1, epochs=1, padding=padding).target_tokens(0) == tokens


@pytest.mark.parametrize("world", [1, 3, 5])
@pytest.mark.parametrize("updates", [range(14), range(3, 5), range(13, 14), range(5, 5)])
def test_a_sampler_knows_its_length(world, updates):
    plan = make_plan(world=world)
    assert plan.total_updates == 14  # the last has four blocks
    for rank in range(world):
        sampler = UpdateSampler(range(23), plan, rank, updates)
        assert len(sampler) == len(list(sampler))


def test_dropout_seeds_belong_to_micro_batches_not_to_ranks():
    one, two = make_plan(batch=8, micro=2), make_plan(batch=8, micro=2, world=2)
    alone = [one.dropout_seed(3, 0, n) for n in range(4)]
    assert alone == [two.dropout_seed(3, rank, n) for rank in range(2) for n in range(2)]
    seeds = {one.dropout_seed(update, 0, n) for update in range(5) for n in range(4)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_and_orders_are_the_same_for_ever():
    # A run resumed after an upgrade must see the order it began with.
    assert derive_seed(1337, "order", 0) == 2729756825838703290
    assert make_plan(seed=1337).block_indices(range(6)) == [16, 13, 12, 7, 20, 22]


def plan_of(world, blocks=100, **training):
    config = config_from_dict({"training": {"per_gpu_batch_size": 4, **training}}, "test")
    return BatchPlan.of(config.training, blocks, 16, 0, world)


def test_only_many_blocks_go_without_a_table():
    assert plan_of(2, TABLE_LIMIT).order == TABLE
    assert plan_of(2, TABLE_LIMIT + 1).order == BIJECTION


def test_the_batch_is_the_configs():
    assert plan_of(2, global_batch_size=24).global_batch_size == 24
    assert plan_of(2, global_batch_size=24).micro_batches == 3
    assert plan_of(3, gradient_accumulation_steps=2).global_batch_size == 24
    assert plan_of(3, gradient_accumulation_steps=2).micro_batches == 2


def test_more_processes_than_blocks_are_refused():
    assert plan_of(5, global_batch_size=5).micro_batches == 1
    with pytest.raises(UserError, match="training.global_batch_size = 5: 6 processes cannot share"):
        plan_of(6, global_batch_size=5)
