"""Half precision and compressed gradients on two real ranks: near the plain run, never the same bits."""

from __future__ import annotations

import json
import math

import pytest
import torch

pytestmark = pytest.mark.distributed

# The first updates of the same schedule are enough.
AUTO = {"training__precision": "auto", "training__max_updates": 4, "training__lr_decay_updates": 20}
VARIANTS = {
    "plain": {},
    "compressed": {"distributed__compression": "fp16"},
    "bf16": {"training__precision": "bf16"},
    "fp16": {"training__precision": "fp16"},
    "checkpointing": {"model__gradient_checkpointing": True, "model__dropout": 0.1},
    "dropout": {"model__dropout": 0.1},
    "auto, both CPUs have it": AUTO,
    "auto, one CPU has it": AUTO,
}
CPU_FLAGS = {
    "auto, both CPUs have it": [["avx2", "amx_bf16"], ["avx512_bf16"]],
    "auto, one CPU has it": [["amx_bf16"], ["avx2"]],
}


@pytest.fixture(scope="module")
def folders(play, config_of, tmp_path_factory):
    """Each variant's folder, from one launch of two ranks."""
    base = tmp_path_factory.mktemp("variants")
    scenes = [
        {
            "do": "train",
            "folder": str(base / name),
            "config": config_of(training__per_gpu_batch_size=2, **changes),
            "resume": None,
            "signal": None,
            "cpu_flags": CPU_FLAGS.get(name),
        }
        for name, changes in VARIANTS.items()
    ]
    play(2, scenes)
    return {name: base / name for name in VARIANTS}


@pytest.fixture(scope="module")
def losses(folders, outcome_of):
    """Each variant's loss at every update."""
    return {name: outcome_of(folder).column("loss") for name, folder in folders.items()}


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


@pytest.mark.parametrize(
    ("name", "same_as", "chosen", "reason"),
    [
        ("auto, both CPUs have it", "bf16", "bf16", "every rank has AMX-BF16 or AVX512-BF16"),
        ("auto, one CPU has it", "plain", "fp32", "the CPU of rank 1 has no unit for bf16"),
    ],
)
def test_auto_by_the_flags_of_both_cpus(folders, losses, outcome_of, name, same_as, chosen, reason):
    assert losses[name] == losses[same_as][:4]
    environment = json.loads((folders[name] / "runs/structured/run/environment.json").read_text())
    assert environment["precision"] == chosen
    assert environment["precision_reason"].startswith(reason)
    for rank in range(2):
        log = (folders[name] / "logs" / f"train_rank{rank}.log").read_text()
        assert f"precision: {chosen}, {reason}" in log
    assert outcome_of(folders[name]).state["progress"]["precision"] == chosen
    state = outcome_of(folders[name]).state
    assert {tensor.dtype for tensor in state["model"].values()} == {torch.float32}
