"""`--profile` on two real processes: a trace, Horovod's record and a table."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter

import pytest

from horovod_transformer.training.metrics.profiling import WAIT, WARM_UP

pytestmark = pytest.mark.distributed
UPDATES, MICRO_BATCHES = 2, 2


def test_a_window_is_recorded(write_config, run_job, tmp_path):
    end = WAIT + WARM_UP + UPDATES + 3
    changes = {"training__max_updates": end, "training__per_gpu_batch_size": 2, "training__exact_up_to": 4}
    config = write_config(tmp_path / "config.yaml", **changes)
    job = run_job(
        2, "-m", "src.train", "--config", str(config), "--output_dir", str(tmp_path),
        "--profile", str(UPDATES), "--profile_rank", "1",
    )  # fmt: skip
    assert job.process.returncode == 0, f"{job.stdout}\n{job.stderr}"

    (logs,) = tmp_path.glob("runs/*/logs")
    with gzip.open(logs / "profile_rank1.trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    ranges = Counter(event["name"] for event in events if event.get("cat") == "user_annotation")
    often = MICRO_BATCHES * UPDATES
    assert ranges["forward"] == ranges["head"] == ranges["backward"] == often
    assert ranges["data"] == often + UPDATES  # the last look for a micro-batch finds the update complete
    assert ranges["gradient_wait"] == ranges["optimizer"] == UPDATES

    record = json.loads((logs / "profile_horovod.json").read_text())
    assert any("ALLREDUCE" in event.get("name", "") for event in record)

    log = (tmp_path / "logs" / "train_rank1.log").read_text()
    assert f"profile of {UPDATES} updates: " in log
    table = dict(re.findall(r"  ([a-z][a-z ]*?) +[\d.]+ ms +([\d.]+)%", log))
    assert list(table) == [
        "data", "forward", "head", "backward", "waiting for gradients", "optimizer", "checkpoint", "other"
    ]  # fmt: skip
    assert sum(map(float, table.values())) == pytest.approx(100, abs=0.5)
    assert float(table["head"]) > 0 and float(table["backward"]) > 0
