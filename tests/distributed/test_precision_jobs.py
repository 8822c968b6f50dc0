"""Half precision and compressed gradients on two real ranks: near the plain run, never the same bits."""

from __future__ import annotations

import math

import pytest

pytestmark = pytest.mark.distributed

VARIANTS = {
    "plain": {},
    "compressed": {"distributed__compression": "fp16"},
    "bf16": {"training__precision": "bf16"},
    "fp16": {"training__precision": "fp16"},
    "checkpointing": {"model__gradient_checkpointing": True, "model__dropout": 0.1},
    "dropout": {"model__dropout": 0.1},
}


@pytest.fixture(scope="module")
def losses(play, config_of, outcome_of, tmp_path_factory):
    """Each variant's loss at every update, from one launch of two ranks."""
    base = tmp_path_factory.mktemp("variants")
    scenes = [
        {
            "do": "train",
            "folder": str(base / name),
            "config": config_of(training__per_gpu_batch_size=2, **changes),
            "resume": None,
            "signal": None,
        }
        for name, changes in VARIANTS.items()
    ]
    play(2, scenes)
    return {name: outcome_of(base / name).column("loss") for name in VARIANTS}


@pytest.mark.parametrize("name", ["compressed", "bf16", "fp16"])
def test_fewer_bits_follow_the_plain_curve(losses, name):
    assert len(losses[name]) == len(losses["plain"]) == 20
    assert all(math.isfinite(loss) for loss in losses[name])
    assert losses[name] == pytest.approx(losses["plain"], rel=0.02)
    # Otherwise the setting did nothing.
    assert losses[name] != losses["plain"]


def test_recomputing_activations_changes_nothing(losses):
    assert losses["checkpointing"] == pytest.approx(losses["dropout"], rel=1e-6)
    assert losses["checkpointing"] != losses["plain"]
