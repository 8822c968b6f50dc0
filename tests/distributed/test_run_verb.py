"""How many processes our own commands train on."""

from __future__ import annotations

import pytest
import torch

from horovod_transformer.distributed import run_verb


@pytest.mark.parametrize(
    ("gpus", "device", "horovod", "processes"),
    [
        (0, "auto", True, 2),
        (1, "auto", True, 1),  # two ranks on one GPU are refused
        (1, "cpu", True, 2),
        (4, "auto", True, 2),
        (4, "auto", False, 1),
    ],
)
def test_as_many_as_can_train_here(monkeypatch, gpus, device, horovod, processes):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(run_verb, "horovod_is_installed", lambda: horovod)
    assert run_verb.usual_processes(device) == processes
