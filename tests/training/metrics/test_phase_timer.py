"""Which phase the time is counted for, by the clock and by a GPU's marks, without a GPU."""

from __future__ import annotations

import time

import pytest
import torch

from horovod_transformer.training.metrics import phase_timer as time_shares
from horovod_transformer.training.metrics.phase_timer import MARKS_PER_LOOK, PHASES, PhaseTimer
from horovod_transformer.training.metrics.tables import CLOCK_COLUMNS, TRAIN_COLUMNS
from tests.training.test_step import batches_of, make_step

CPU = torch.device("cpu")


class FakeGpu:
    """A stream of marks: the GPU reaches each at a time of its own, whenever the host puts it there.

    Attributes:
        now: Milliseconds; marks that lie later have not been reached.
        made: Marks that were ever made.
    """

    def __init__(self, times):
        self.times, self.now, self.made = iter(times), 0.0, 0

    def new_event(self):
        self.made += 1
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, gpu):
        self.gpu, self.at = gpu, None

    def record(self):
        self.at = next(self.gpu.times)

    def query(self):
        return self.at <= self.gpu.now

    def elapsed_time(self, other):
        assert self.query() and other.query(), "would wait for the GPU, or fail"
        return other.at - self.at


def test_each_phase_is_a_column_that_the_clock_decides():
    assert [column for column in TRAIN_COLUMNS if column.startswith("time_")] == [f"time_{p}" for p in PHASES]
    assert {f"time_{phase}" for phase in PHASES} < set(CLOCK_COLUMNS)


def test_the_clock_is_divided_without_a_gap(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 3.5, 7.0, 8.0])
    monkeypatch.setattr(time_shares.time, "perf_counter", lambda: next(clock))
    timer = PhaseTimer(CPU)
    for phase in ("data", "forward", "data"):
        timer.enter(phase)
    taken = timer.take()
    assert {k: v for k, v in taken.items() if v} == {"other": 1.0, "data": 2.0 + 3.5, "forward": 0.5}
    # What begins before a row and ends after it is in both.
    assert timer.take()["data"] == 1.0


def test_a_gpus_marks_are_read_once_it_has_passed_them():
    gpu = FakeGpu([0, 1000, 3000, 3500, 9000])
    timer = PhaseTimer(CPU, gpu.new_event)
    for phase in ("data", "forward", "backward"):
        timer.enter(phase)
    gpu.now = 3200  # in the middle of the forward pass
    assert {k: v for k, v in timer.take().items() if v} == {"other": 1.0, "data": 2.0}
    gpu.now = 10_000
    timer.enter("other")
    assert {k: v for k, v in timer.take().items() if v} == {"forward": 0.5, "backward": 5.5}
    assert not any(timer.take().values())


def test_marks_are_used_again_and_do_not_pile_up():
    gpu = FakeGpu(range(10**6))
    gpu.now = 10**6
    timer = PhaseTimer(CPU, gpu.new_event)
    for _ in range(300):
        timer.enter("forward")
        timer.enter("backward")
    assert gpu.made <= MARKS_PER_LOOK + 1
    taken = timer.take()
    assert taken["forward"] + taken["backward"] + taken["other"] == pytest.approx(0.6)


def test_an_update_goes_through_the_phases_in_order(monkeypatch):
    step, entered = make_step(micro=2), []
    enter = step.timer.enter
    monkeypatch.setattr(step.timer, "enter", lambda phase: (entered.append(phase), enter(phase)))

    def slow_batches():
        for batch in batches_of(step.plan):
            time.sleep(0.05)
            yield batch

    before = time.perf_counter()
    step.timer.take()
    began = time.perf_counter()
    step.run(0, slow_batches(), 0.01)
    lasted = time.perf_counter() - began
    each = ["data", "forward", "backward"]
    assert entered == [*each, *each, "data", "gradient_wait", "optimizer", "other"]
    taken = step.timer.take()
    after = time.perf_counter()
    assert 0.1 <= taken["data"] < lasted and taken["forward"] > 0 < taken["optimizer"]
    assert lasted <= sum(taken.values()) <= after - before
