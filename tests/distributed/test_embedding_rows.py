"""The embedding's gradient in two parts: the same numbers, most of them when the backward pass begins."""

from __future__ import annotations

import pytest
import torch

from horovod_transformer import distributed
from horovod_transformer.config_sections import TrainingConfig
from horovod_transformer.data.sampler import BatchPlan
from horovod_transformer.distributed import embedding_rows
from horovod_transformer.distributed.gradients import group_parameters
from horovod_transformer.distributed.host_sums import HostSums, HostThroughHorovod
from horovod_transformer.model.transformer import build_model
from horovod_transformer.training.exact_sums import ExactSums
from horovod_transformer.training.optim.optimizer import build_optimizer
from horovod_transformer.training.step import UpdateStep
from tests.conftest import TINY

PIECES, LENGTH = 3, 8
# The last piece sees a token twice, and one that the first has seen.
BLOCKS = torch.tensor([range(8), range(20, 28), [5, 5, 9, 30, 31, 32, 33, 34]])
LAST = BLOCKS[-1].unique()
CPU = torch.device("cpu")


class OneRank(HostThroughHorovod):
    """A lone rank; notes which groups have left, and what of the embedding."""

    def __init__(self, *args):
        super().__init__(*args)
        self.left, self.first_part = [], None

    def put(self, group, gradients):
        super().put(group, gradients)
        self.left.append(group)
        if group == 0:
            self.first_part = gradients[0].clone()


def train(exact, pieces, in_two, monkeypatch):
    """Make two updates; return the weights, and the rank with what it has sent."""
    torch.manual_seed(0)
    model = build_model(TINY).train()
    plan = BatchPlan(pieces, LENGTH, 0, pieces, 1, 1, 100, 7)
    exact_sums = ExactSums(list(model.parameters()), pieces, pieces) if exact else None
    optimizer = build_optimizer(model, TrainingConfig(learning_rate=0.01))
    rank = None
    if in_two:
        *others, embedding = group_parameters(list(model.parameters()), 4)
        groups = [embedding, *others]
        sizes = [sum(each.numel() for each in group) for group in groups]
        rank = OneRank(torch.int32 if exact else torch.float32, sizes, 1, None, None)
        sums = HostSums(groups, pieces, rank, lambda share, number: share, lambda rows: rows)
        optimizer = sums.attach_to(optimizer)
        monkeypatch.setattr(distributed, "synchronize", lambda optimizer: optimizer.synchronize())
    step = UpdateStep(model, optimizer, plan, CPU, "fp32", 1.0, uses_dropout=False, exact=exact_sums)
    batches = [{"input_ids": block[None], "labels": block[None]} for block in BLOCKS[-pieces:]]
    for update in range(2):
        step.run(update, iter(batches), 0.01)
    return [parameter.detach() for parameter in model.parameters()], rank


@pytest.mark.parametrize("pieces", [1, PIECES])
@pytest.mark.parametrize("exact", [True, False])
def test_no_bit_changes_and_the_embedding_leaves_first(exact, pieces, monkeypatch):
    whole, _ = train(exact, pieces, False, monkeypatch)
    in_two, rank = train(exact, pieces, True, monkeypatch)
    for one, other in zip(whole, in_two, strict=True):
        assert torch.equal(one, other)
    assert rank.left == [0, 1, 2, 3] * 2
    assert not rank.first_part[LAST].any()
    assert rank.first_part.view(torch.int32).any(dim=1).sum() > TINY.vocab_size // 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_rows_of_all_ranks_are_added(dtype):
    ours, theirs = torch.arange(8).view(4, 2).to(dtype), torch.full((4, 2), 10).to(dtype)
    packed = [
        embedding_rows.pack(gradient.view(torch.float32), torch.tensor(tokens, dtype=torch.int64))
        for gradient, tokens in ((ours, [0, 2]), (theirs, []), (theirs, [2, 3]))
    ]
    total = torch.ones(4, 2, dtype=dtype)
    embedding_rows.add(total, torch.cat(packed))
    assert total.tolist() == [[1, 2], [1, 1], [15, 16], [11, 11]]


def test_rows_are_back_afterwards():
    gradient = torch.arange(1.0, 9.0).view(4, 2)
    before = gradient.clone()
    with embedding_rows.without(gradient, torch.tensor([1, 3])):
        assert gradient.tolist() == [[1, 2], [0, 0], [5, 6], [0, 0]]
    assert torch.equal(gradient, before)


def test_many_tokens_are_not_sent_apart():
    assert embedding_rows.are_few(4, 512, 50257)
    assert not embedding_rows.are_few(8, 16 * 1024, 50257)
    assert not embedding_rows.are_few(4, 0, 50257)
