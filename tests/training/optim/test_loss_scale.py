"""The loss scale of fp16."""

from __future__ import annotations

import pytest

from horovod_transformer.training.optim.loss_scale import LossScale


def test_an_overflow_halves_the_scale_and_long_peace_doubles_it():
    scale = LossScale(dynamic=True)
    assert scale.factor == 65536
    scale.update(finite=False)
    assert scale.factor == 32768
    for _ in range(LossScale.GROWTH_INTERVAL - 1):
        scale.update(finite=True)
    assert scale.factor == 32768
    scale.update(finite=True)
    assert scale.factor == 65536
    # An overflow begins the count afresh, and the scale never falls below 1.
    for _ in range(40):
        scale.update(finite=False)
    assert scale.factor == 1
    for finite in [True] * 9 + [False] + [True] * (LossScale.GROWTH_INTERVAL - 1):
        scale.update(finite)
    assert scale.factor == 1
    scale.update(finite=True)
    assert scale.factor == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_are_not_scaled(precision):
    scale = LossScale(dynamic=False)
    scale.update(finite=False)
    scale.load_state_dict({"factor": 8.0, "good_updates": 3})
    assert scale.factor == 1


def test_a_restored_scale_keeps_counting():
    one, other = LossScale(dynamic=True), LossScale(dynamic=True)
    one.update(finite=False)
    for _ in range(LossScale.GROWTH_INTERVAL - 1):
        one.update(finite=True)
    other.load_state_dict(one.state_dict())
    other.update(finite=True)
    assert other.factor == 65536
