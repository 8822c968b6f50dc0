"""Sums in bfloat16 whose rounding errors are sent later; threads pose as hosts."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from horovod_transformer.distributed.error_feedback import ErrorFeedback

CPU = torch.device("cpu")


class Hosts:
    """Several hosts, each with one group of `size` numbers and one rank that holds all of it."""

    def __init__(self, number, size):
        self.number, self.slots = number, {}
        self.barrier = threading.Barrier(number)
        self.feedback = [
            ErrorFeedback([size], number, self._operation(host, True), self._operation(host, False), CPU)
            for host in range(number)
        ]

    def _operation(self, host, exchanges):
        def give_and_take(flat, name):
            self.slots[host] = flat.clone()
            self.barrier.wait(60)
            rows = [self.slots[other] for other in range(self.number)]
            if exchanges:
                rows = [row.view(self.number, -1)[host] for row in rows]
            self.barrier.wait(60)
            return torch.cat(rows)

        return give_and_take

    def sum(self, flats):
        """One update: what each host gets."""
        with ThreadPoolExecutor(self.number) as pool:
            return list(pool.map(lambda each, flat: each.sum(flat.clone(), 0), self.feedback, flats))


@pytest.mark.parametrize("number", [2, 3, 4])
def test_all_hosts_get_the_same_sum(number):
    flats = [torch.randn(24) for _ in range(number)]
    first, *others = Hosts(number, 24).sum(flats)
    torch.testing.assert_close(first, torch.stack(flats).sum(0), rtol=0.02, atol=0.02)
    assert not torch.equal(first, torch.stack(flats).sum(0))  # it was rounded
    assert all(torch.equal(first, other) for other in others)


def test_nothing_is_lost_in_the_long_run():
    hosts, flats = Hosts(2, 8), [torch.rand(8) / 3, torch.rand(8) / 300]
    true = torch.stack(flats).sum(0)
    got = sum(hosts.sum(flats)[0] for _ in range(300))
    plain = sum((flat.bfloat16().float() for flat in flats), torch.zeros(8)).bfloat16().float() * 300
    assert (got - 300 * true).abs().max() < 0.02  # the error of a few updates, whatever their number
    assert (plain - 300 * true).abs().max() > 0.05  # without feedback it grows


def test_remainders_come_back_from_a_checkpoint():
    straight, resumed = Hosts(2, 8), Hosts(2, 8)
    updates = [[torch.randn(8), torch.randn(8)] for _ in range(3)]
    for flats in updates[:2]:
        straight.sum(flats)
    for old, new in zip(straight.feedback, resumed.feedback, strict=True):
        assert new.load_state(old.state())
    assert torch.equal(straight.sum(updates[2])[0], resumed.sum(updates[2])[0])
    assert not torch.equal(straight.sum(updates[2])[0], Hosts(2, 8).sum(updates[2])[0])
    assert not resumed.feedback[0].load_state(torch.zeros(3, dtype=torch.bfloat16))
    assert not resumed.feedback[0].load_state(straight.feedback[0].state().float())


def test_a_skipped_update_leaves_no_remainders():
    hosts = Hosts(2, 8)
    hosts.sum([torch.full((8,), torch.inf), torch.randn(8)])
    for each in hosts.feedback:
        each.end_update(torch.ones(()))
        assert not each.state().any()
    hosts.sum([torch.randn(8), torch.randn(8)])
    for each in hosts.feedback:
        each.end_update(torch.zeros(()))
        assert each.state().any()


def test_remainders_follow_the_loss_scale():
    scaled, plain = Hosts(2, 8), Hosts(2, 8)
    updates = [[torch.randn(8), torch.randn(8)] for _ in range(2)]
    for flats, scale in zip(updates, (1024.0, 256.0), strict=True):
        for each in scaled.feedback:
            each.begin_update(scale)
        (got, _), (expected, _) = scaled.sum([flat * scale for flat in flats]), plain.sum(flats)
        assert torch.equal(got / scale, expected)
        assert torch.equal(scaled.feedback[0].state(), plain.feedback[0].state())
