"""What checkpoints cost a run."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from horovod_transformer.training.checkpointing import Checkpointer
from horovod_transformer.training.due import Every
from horovod_transformer.training.metrics.phase_timer import PhaseTimer
from tests.training.metrics.test_phase_timer import FakeGpu


def test_what_a_gpu_copies_counts_as_held_up(tiny_model):
    """The host is through in no time; the GPU copies for three seconds."""
    gpu = FakeGpu([0, 1000, 4000])
    gpu.now = 5000
    timer = PhaseTimer(torch.device("cpu"), gpu.new_event)
    nothing = lambda *_: None  # noqa: E731
    manager = SimpleNamespace(poll=nothing, wait=nothing, save=nothing, has_written=False)
    state = SimpleNamespace(weights="")
    folder = SimpleNamespace(checkpoints=manager, lock=SimpleNamespace(require=nothing), names=None)
    checkpointer = Checkpointer(
        folder, tiny_model, dict, Every(1), False, timer, nothing, print, state, nothing
    )
    assert checkpointer.stall == 0
    checkpointer.save_if_due(1, best=False)
    assert checkpointer.stall == 3
