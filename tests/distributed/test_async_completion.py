"""Whether the host or the GPU waits for a sum changes no bit; see docs/scaling.md.

On two GPUs this is the test that HOROVOD_ENABLE_ASYNC_COMPLETION waits for. On CPUs, where the variable means
nothing, it shows that the test itself works.
"""

from __future__ import annotations

import pytest
import torch

pytestmark = [pytest.mark.distributed, pytest.mark.more]

DEVICE = "cuda" if torch.cuda.device_count() >= 2 else "cpu"


@pytest.mark.parametrize(
    ("optimizer", "groups", "compression"), [("adamw", 4, "none"), ("muon", 1, "none"), ("adamw", 4, "fp16")]
)
def test_the_same_run_whoever_waits(
    write_config, run_job, outcome_of, assert_same_run, tmp_path, optimizer, groups, compression
):
    config = write_config(
        tmp_path / "config.yaml",
        training__optimizer=optimizer,
        training__device=DEVICE,
        training__deterministic=True,
        distributed__gradient_groups=groups,
        distributed__compression=compression,
    )
    gpus = {"CUDA_VISIBLE_DEVICES": "0,1"} if DEVICE == "cuda" else {}
    for on in "01":
        command = ["-m", "src.train", "--config", str(config), "--output_dir", str(tmp_path / on)]
        job = run_job(
            2, *command, "--run_name", "run", timeout=600, HOROVOD_ENABLE_ASYNC_COMPLETION=on, **gpus
        )
        assert job.process.returncode == 0, f"{job.stdout}\n{job.stderr}"
        warned = "HOROVOD_ENABLE_ASYNC_COMPLETION is on" in job.stdout
        assert warned == (on == "1" and DEVICE == "cuda")
    assert_same_run(outcome_of(tmp_path / "0"), outcome_of(tmp_path / "1"))
