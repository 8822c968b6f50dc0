"""What is said of GPUs' speeds agrees with what was measured, and with the rest of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from horovod_transformer.config_sections import ModelConfig
from horovod_transformer.errors import UserError
from horovod_transformer.model.size import count_parameters, flops_per_token
from horovod_transformer.planning.rates import DEVICES, MEASUREMENTS, find_device
from horovod_transformer.training.metrics.throughput import peak_flops


def test_measurements_are_those_of_the_file_they_name(root: Path) -> None:
    for measured in MEASUREMENTS:
        rows = json.loads((root / measured.source).read_text())["speed"]
        (row,) = (row for row in rows if row["tokens_per_second"] == measured.tokens_per_s)
        assert measured.mfu == pytest.approx(row["mfu"], abs=5e-5)
        assert measured.memory_gib == pytest.approx(row["peak_memory_gib"], abs=5e-3)
        assert f"{row['batch']} blocks of {row['block_size']:,} tokens" in measured.what
        assert f"{row['micro_batches']} micro-batch" in measured.what
        assert measured.parameters == count_parameters(ModelConfig())


def test_measured_shares_are_those_of_measurements() -> None:
    for device in DEVICES:
        own = [measured.mfu for measured in MEASUREMENTS if measured.device == device.name]
        assert (device.origin == "measured") == bool(own)
        assert not own or device.share == pytest.approx(own[0], abs=1e-3)


def test_the_default_model_on_an_h200_is_as_fast_as_measured() -> None:
    model = ModelConfig()
    flops = flops_per_token(model, count_parameters(model), model.max_seq_len)
    assert find_device("h200").tokens_per_second(flops) == pytest.approx(512_435, rel=1e-3)


def test_peaks_are_those_that_a_runs_mfu_is_told_by() -> None:
    for device in DEVICES:
        told = peak_flops(f"NVIDIA {device.name.upper()}", device.precision)
        assert told in (None, device.peak_flops)
        assert device.name[:4] not in ("h100", "h200", "a100") or told


def test_every_figure_has_a_date_and_a_source() -> None:
    for each in (*DEVICES, *MEASUREMENTS):
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", each.date) and each.source
    assert len({device.name for device in DEVICES}) == len(DEVICES)


def test_several_gpus_lose_what_the_ring_takes() -> None:
    h100 = find_device("h100")
    assert h100.efficiency(1, 124_000_000, 0.035) == 1.0
    # docs/scaling.md: 95 % on four and on eight, 35 ms of computation.
    assert round(h100.efficiency(4, 124_000_000, 0.035), 2) == 0.95
    assert round(h100.efficiency(8, 124_000_000, 0.035), 2) == 0.95


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("h100", "h100"),
        ("H100 80GB", "h100"),
        ("NVIDIA H200", "h200"),
        ("a100_80gb", "a100-80gb"),
        ("A100", "a100-40gb"),
        ("RTX 4090", "rtx4090"),
    ],
)
def test_names_as_people_write_them(name: str, found: str) -> None:
    assert find_device(name).name == found


def test_an_unknown_gpu_is_one_line_that_names_the_known() -> None:
    with pytest.raises(UserError, match="no figures of a GPU called 'tpu'; there are h200, h100, a100-80gb"):
        find_device("tpu")


def test_it_needs_no_torch(run_python) -> None:
    program = "import sys, horovod_transformer.planning.rates; print('torch' in sys.modules)"
    assert run_python("-c", program).stdout == "False\n"
