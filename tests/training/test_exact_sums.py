"""Gradients added up exactly: the order, the threads and the ranks leave no trace."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace

import pytest
import torch

from horovod_transformer.config_sections import DistributedConfig, ModelConfig, TrainingConfig
from horovod_transformer.data.sampler import BatchPlan
from horovod_transformer.distributed.workers import Workers, twin
from horovod_transformer.errors import UserError
from horovod_transformer.model.size import pass_bytes
from horovod_transformer.model.transformer import build_model
from horovod_transformer.training.exact_sums import (
    FIRST_LARGEST,
    HEADROOM_BITS,
    ExactSums,
    exactly,
    power_of_two,
    wants_exact,
)
from horovod_transformer.training.optim.optimizer import build_optimizer
from horovod_transformer.training.run_summary import about_sums
from horovod_transformer.training.setup import passes_at_once
from horovod_transformer.training.step import UpdateStep
from tests.conftest import TINY, TINY_LLAMA

CPU = torch.device("cpu")
PIECES = 8
BLOCKS = torch.randint(0, TINY.vocab_size, (PIECES, 8), generator=torch.Generator().manual_seed(1))
BATCHES = [{"input_ids": row[None], "labels": row[None]} for row in BLOCKS]


def weights_of(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def make_step(
    threads=1, exact=True, precision="fp32", shape: ModelConfig = TINY, clip=1.0, optimizer="adamw"
):
    torch.manual_seed(0)
    model = build_model(shape).train()
    plan = BatchPlan(PIECES, 8, 0, PIECES, 1, 1, 100, 7, exact_up_to=PIECES if exact else None)
    workers, twins, sums = Workers(threads), [], None
    if exact:
        sums = ExactSums(list(model.parameters()), plan.summands, plan.micro_batches)
        twins = [twin(model) for _ in range(threads - 1)]
        for each in twins:
            sums.follow(list(each.parameters()))
    training = TrainingConfig(learning_rate=0.01, optimizer=optimizer)
    return UpdateStep(
        model,
        build_optimizer(model, training),
        plan,
        CPU,
        precision,
        clip,
        uses_dropout=False,
        exact=sums,
        twins=twins,
        workers=workers,
    )


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


UNTIED = TINY_LLAMA.model_copy(update={"tie_embeddings": False})


@pytest.mark.parametrize(
    ("precision", "optimizer", "shape"),
    [
        (precision, optimizer, TINY)
        for precision in ("fp32", "bf16", "fp16")
        for optimizer in ("adamw", "muon")
    ]
    + [("fp32", "muon", TINY_LLAMA), ("bf16", "muon", UNTIED)],
)
def test_neither_order_nor_threads_show(precision, optimizer, shape):
    straight = make_step(precision=precision, optimizer=optimizer, shape=shape)
    for update in range(4):
        expected = straight.run(update, iter(BATCHES), 0.01)
        assert not expected.skipped
    for threads in (2, 3, 8):
        other = make_step(threads, precision=precision, optimizer=optimizer, shape=shape)
        for update in range(4):
            mixed = BATCHES[:]
            random.Random(update).shuffle(mixed)
            result = other.run(update, iter(mixed), 0.01)
        assert result == expected
        assert same(weights_of(other.model), weights_of(straight.model))
        assert torch.equal(other.exact._remembered, straight.exact._remembered)


def test_float_sums_do_show_the_order():
    """Otherwise the test above proves nothing."""
    one, other = make_step(exact=False), make_step(exact=False)
    one.plan = other.plan = BatchPlan(PIECES, 8, 0, PIECES, 1, 1, 100, 7)
    one.run(0, iter(BATCHES), 0.01)
    other.run(0, iter(BATCHES[::-1]), 0.01)
    assert not same(weights_of(one.model), weights_of(other.model))


def gradients(step, batches=BATCHES):
    """An update's summed gradients: the optimizer's step is told of them and makes none."""
    found = []

    def look():
        found.extend(parameter.grad.clone() for parameter in step.model.parameters())

    step.optimizer.step = look
    result = step.run(0, iter(batches), 0.01)
    return found, result


def test_gradients_are_those_of_float_sums():
    exact, fast = make_step(clip=0.0), make_step(exact=False, clip=0.0)
    fast.plan = BatchPlan(PIECES, 8, 0, PIECES, 1, 1, 100, 7)
    exact.run(0, iter(BATCHES), 0.0)  # the first unit is a guess
    got, result = gradients(exact)
    expected, plain = gradients(fast)
    assert result.gradient_norm == pytest.approx(plain.gradient_norm, rel=1e-5)
    assert result.loss == pytest.approx(plain.loss, rel=1e-6)
    for one, other in zip(got, expected, strict=True):
        # Eight numbers rounded towards zero, and at least 21 bits for the largest.
        assert (one - other).abs().max() <= 8 * 2.0**-21 * other.abs().max()


def test_what_does_not_fit_is_skipped_and_fits_the_next_time():
    step = make_step()
    step.run(0, iter(BATCHES), 0.01)
    before = weights_of(step.model)
    remembered = step.exact._remembered
    remembered[3] *= 2.0 ** -(HEADROOM_BITS + 2)
    result = step.run(1, iter(BATCHES), 0.01)
    assert result.skipped and result.gradient_norm == math.inf
    assert same(weights_of(step.model), before)
    assert not step.run(2, iter(BATCHES), 0.01).skipped
    assert not same(weights_of(step.model), before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_skipped(bad):
    step = make_step(2)
    step.run(0, iter(BATCHES), 0.01)
    before, remembered = weights_of(step.model), step.exact._remembered.clone()
    parameter = step.model.final_norm.bias
    hook = parameter.register_hook(lambda grad: grad.index_fill(0, torch.tensor([1]), bad))
    assert step.run(1, iter(BATCHES), 0.01).skipped
    hook.remove()
    assert same(weights_of(step.model), before)
    # Nothing is known of how large it is.
    assert torch.isfinite(step.exact._remembered).all()
    assert step.exact._remembered[-1] <= remembered[-1]
    assert not step.run(2, iter(BATCHES), 0.01).skipped


def test_a_failure_in_another_thread_is_told_and_nothing_waits():
    step = make_step(2)
    with pytest.raises(IndexError):
        step.run(0, iter([BATCHES[0], {**BATCHES[1], "input_ids": BLOCKS[1:2] + 10**6}, *BATCHES[2:]]), 0.01)
    with pytest.raises(RuntimeError, match="update 1 got 3 of 8 micro-batches"):
        step.run(1, iter(BATCHES[:3]), 0.01)


def test_units_are_kept():
    one, other = make_step(), make_step()
    one.run(0, iter(BATCHES), 0.01)
    other.model.load_state_dict(one.model.state_dict())
    assert one.state_dict()["sums"] != other.state_dict()["sums"]
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert one.run(1, iter(BATCHES), 0.01) == other.run(1, iter(BATCHES), 0.01)
    assert same(weights_of(one.model), weights_of(other.model))
    good = one.exact.state_dict()["largest"]
    for bad in (
        "x",
        [1],
        {"largest": [1.0]},
        {"largest": good[:-1] + ["1"]},
        {"largest": good[:-1] + [-1.0]},
    ):
        with pytest.raises(UserError, match="damaged, or of another model"):
            other.load_state_dict({**copy.deepcopy(one.state_dict()), "sums": bad})


def test_units_follow_the_largest_number():
    parameter = torch.nn.Parameter(torch.zeros(4))
    sums = ExactSums([parameter], summands=8, passes=1)
    assert sums.state_dict() == {"largest": [0.0]}
    for largest in (FIRST_LARGEST, 1e-3, 0.0, 3.0):
        sums.begin_update(1.0)
        sums.begin_micro_batch(is_last=True)
        parameter.sum().mul(largest).backward()
        assert sums.largest.item() == pytest.approx(largest)
        assert sums.finish(sums.largest.clone())
        assert parameter.grad.tolist() == pytest.approx([largest] * 4, rel=1e-4)
    for _ in range(1000):
        assert sums.finish(torch.zeros(1, dtype=torch.float64))
        parameter.grad = None
    sums.begin_update(1.0)  # a gradient that has been zero for long
    assert torch.isfinite(sums._per_unit32).all() and (sums._unit32 > 0).all()


def test_powers_of_two_are_exact():
    exponents = torch.arange(-1022, 1024)
    assert power_of_two(exponents).tolist() == [2.0**exponent for exponent in exponents.tolist()]


def test_losses_add_up_exactly():
    losses = torch.rand(1000) * 10 ** torch.linspace(0, 5, 1000)
    forwards, backwards = sum(map(exactly, losses)), sum(map(exactly, losses.flip(0)))
    assert forwards == backwards
    assert float(forwards) == pytest.approx(losses.double().sum().item(), rel=1e-9)


def test_a_twin_has_the_same_weights_and_gradients_of_its_own():
    model = build_model(TINY)
    other = twin(model)
    with torch.no_grad():
        model.final_norm.bias.add_(1)
    assert same(weights_of(model), weights_of(other))
    other.loss_sums(BLOCKS, BLOCKS)[0].backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in other.parameters())


def test_workers_keep_the_order_and_pass_on_what_fails():
    workers = Workers(3)
    assert workers.map(lambda number: number**2, range(20)) == [number**2 for number in range(20)]
    assert workers.map(abs, []) == []
    with pytest.raises(ZeroDivisionError):
        workers.map(lambda number: 1 // number, [2, 1, 0, 1])


@pytest.mark.parametrize(
    ("settings", "dropout", "device", "exact"),
    [
        ({}, 0.0, "cpu", True),
        ({}, 0.1, "cpu", False),
        ({}, 0.0, "cuda", False),
        ({"compression": "fp16"}, 0.0, "cpu", False),
        ({"compression": "bf16"}, 0.0, "cpu", False),
        ({"sums": "fast"}, 0.0, "cpu", False),
        ({"sums": "exact"}, 0.1, "cuda", True),
    ],
)
def test_auto_is_exact_on_cpus_without_dropout(settings, dropout, device, exact):
    assert wants_exact(DistributedConfig(**settings), dropout, torch.device(device)) is exact


def test_exact_sums_and_fp16_on_the_wire_exclude_each_other():
    with pytest.raises(ValueError, match="exclude each other"):
        DistributedConfig(sums="exact", compression="fp16")


def test_passes_at_once_follow_from_threads_passes_and_memory():
    plan = BatchPlan(100, 8, 0, PIECES, 1, 2, 1, 7, exact_up_to=PIECES)  # four passes on each of two ranks
    much = 10**12
    assert passes_at_once(TINY, plan, threads=3, free_bytes=much) == 3
    assert passes_at_once(TINY, plan, threads=64, free_bytes=much) == 4
    one = pass_bytes(TINY, plan.piece_size * plan.block_size)
    assert passes_at_once(TINY, plan, threads=64, free_bytes=5 * one) == 2
    assert passes_at_once(TINY, plan, threads=64, free_bytes=0) == 1
    assert passes_at_once(TINY.model_copy(update={"dropout": 0.1}), plan, 64, much) == 1


def test_a_run_says_how_far_its_bits_are_the_same():
    plan = BatchPlan(100, 8, 0, PIECES, 1, 1, 1, 7, exact_up_to=PIECES)
    assert about_sums(plan, True, threads=2, at_once=2) == [
        "sums: exact, the same bits on any number of processes up to 8"
    ]
    assert "8 of 64 threads compute passes, for an update" in about_sums(plan, True, 64, 8)[1]
    assert "dropout, or memory" in about_sums(plan, True, 64, 1)[1]
    assert about_sums(plan, False, 2, 1)[0].startswith("sums: fast")
    few = replace(plan, global_batch_size=12, world_size=9, micro_batch_size=4, exact_up_to=3)
    assert about_sums(few, True, 1, 1)[0].startswith("warning: these bits are those of 9 processes only")
