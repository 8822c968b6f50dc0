"""Copies of nested state: of their own, whole when waited for, in the same memory again."""

from __future__ import annotations

import torch

from horovod_transformer.checkpoint.snapshot import Snapshots


class FakeEvent:
    made: list[FakeEvent] = []

    def __init__(self):
        self.calls = []
        self.made.append(self)

    def record(self):
        self.calls.append("record")

    def synchronize(self):
        self.calls.append("synchronize")


def state(value, rows=3):
    weight = torch.full((rows, 2), value)
    return {"model": {"a": weight, "b": [weight[0], (torch.tensor(value), "text")]}, "n": int(value)}


def pointers(copy):
    return [
        copy["model"]["a"].data_ptr(),
        copy["model"]["b"][0].data_ptr(),
        copy["model"]["b"][1][0].data_ptr(),
    ]


def make():
    FakeEvent.made.clear()
    buffers = []

    def new_buffer(tensor):
        buffers.append(torch.empty_like(tensor))
        return buffers[-1]

    return Snapshots(lambda tensor: tensor.dim() > 0, new_buffer, FakeEvent), buffers


def test_a_copy_is_equal_and_of_its_own():
    for taken in (Snapshots().take(state(1.0))[0], make()[0].take(state(1.0))[0]):
        torch.testing.assert_close(taken["model"]["a"], state(1.0)["model"]["a"])
        assert taken["n"] == 1 and taken["model"]["b"][1][1] == "text"
    original = state(1.0)
    taken, _ = make()[0].take(original)
    original["model"]["a"].zero_()
    assert (taken["model"]["a"] == 1).all() and (taken["model"]["b"][0] == 1).all()


def test_memory_is_used_again_where_the_shape_is_the_same():
    snapshots, buffers = make()
    first, wait = snapshots.take(state(1.0))
    at = pointers(first)
    assert len(buffers) == 2  # the scalar was near, and has a copy of its own each time
    assert FakeEvent.made[0].calls == ["record"]
    wait()
    assert FakeEvent.made[0].calls == ["record", "synchronize"]
    second, _ = snapshots.take(state(2.0))
    assert pointers(second)[:2] == at[:2] and (second["model"]["a"] == 2).all() and len(buffers) == 2
    third, _ = snapshots.take(state(3.0, rows=4))
    assert len(buffers) == 3 and third["model"]["a"].shape == (4, 2)


def test_memory_of_what_is_gone_is_given_up():
    snapshots, buffers = make()
    snapshots.take(state(1.0))
    snapshots.take({"n": 1})
    assert snapshots._buffers == []
    snapshots.take(state(1.0))
    assert len(buffers) == 4


def test_a_cpu_needs_no_marks():
    snapshots = Snapshots()
    first, wait = snapshots.take(state(1.0))
    wait()
    second, _ = snapshots.take(state(2.0))
    assert (first["model"]["a"] == 1).all() and (second["model"]["a"] == 2).all()
