"""Speed, utilisation and memory, against a count by hand."""

from __future__ import annotations

import pytest
import torch

from horovod_transformer.config import Config
from horovod_transformer.model.size import count_parameters, flops_per_token, flops_per_update
from horovod_transformer.training.metrics import throughput
from horovod_transformer.training.metrics.throughput import (
    Throughput,
    peak_flops,
    peak_memory_gib,
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves: `clock.now += 1`."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(throughput.time, "monotonic", lambda: Clock.now)
    return Clock


def test_flops_of_the_default_model_by_hand():
    model = Config().model
    # 6 x 123,653,376 for the products with weights; per block 12 x 768 x 512 for attention, 12 blocks.
    assert flops_per_token(model, count_parameters(model), 512) == 741_920_256 + 56_623_104
    # Attention reaches only as far as a block, however long the context could be.
    assert flops_per_token(model, count_parameters(model), 256) == 741_920_256 + 28_311_552


def test_flops_of_an_update_however_its_blocks_are_told():
    a_token = flops_per_token(Config().model, count_parameters(Config().model), 512)
    whole = Config().with_overrides({"training.global_batch_size": 24})
    assert flops_per_update(whole.model, whole.training, ranks=2) == 24 * 512 * a_token
    assert flops_per_update(whole.model, whole.training, ranks=4) == 24 * 512 * a_token
    parts = {"training.global_batch_size": None, "training.gradient_accumulation_steps": 3}
    parts = Config().with_overrides({**parts, "training.per_gpu_batch_size": 4})
    assert flops_per_update(parts.model, parts.training, ranks=2) == 24 * 512 * a_token


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA GeForce RTX 4090", None),
        ("", None),
    ],
)
def test_a_card_is_known_by_its_name(name, peak):
    assert peak_flops(name, "bf16") == peak


def test_fp32_is_measured_by_what_multiplies_it():
    # TF32 on the matrix units (precision.set_arithmetic), at half of their rate in bf16.
    for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB"):
        assert peak_flops(name, "fp32") == peak_flops(name, "bf16") / 2


def test_speed_and_utilisation(clock):
    # 1,000 tokens in 2 s of 4 GFLOP each, on 10 TFLOP/s.
    speed = Throughput(flops=4e9, peak=1e13, window=2)
    for seconds in (50.0, 2.0, 2.0):
        speed.start_update()
        clock.now += seconds
        speed.end_update(1_000)
        clock.now += 7.0  # a validation
    # The first update, with its warming up, is out of the window; validations do not count.
    assert speed.tokens_per_second == pytest.approx(500)
    assert speed.updates_per_second == pytest.approx(0.5)
    assert speed.mfu == pytest.approx(500 * 4e9 / 1e13)
    assert speed.seconds == pytest.approx(75)
    assert speed.updates == 3


def test_an_unknown_device_has_no_utilisation(clock):
    speed = Throughput(flops=4e9, peak=None)
    speed.start_update()
    clock.now += 1
    speed.end_update(10)
    assert speed.mfu is None


def test_memory_is_that_of_this_process():
    before = peak_memory_gib(torch.device("cpu"))
    held = torch.ones(128 * 2**20)  # half a GiB
    assert peak_memory_gib(torch.device("cpu")) > max(0.5, before) - 1e-3
    assert held.sum() > 0
