"""What may happen to one rank of a healthy job, and what all ranks make of it."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.distributed

UPDATES = 8
# The writer takes longer than a collective may, and than the watchdog waits.
GLOO_TIMEOUT_S, STALL_TIMEOUT_S, SLOW_WRITE_S = 5, 4, 9


@pytest.fixture(scope="module")
def results(config_of, play, tmp_path_factory):
    """Two ranks: a poisoned gradient in fp32 and in fp16, drifting weights, a slow disk."""
    base = tmp_path_factory.mktemp("mishaps")
    short = {"training__max_updates": UPDATES, "training__save_interval": 2, "training__eval_interval": 4}
    scenes = [
        {"do": "train", "folder": str(base / f"poison {precision}"), "poison": {"rank": 1, "update": 3}}
        | {"config": config_of(**short, training__precision=precision)}
        for precision in ("fp32", "fp16")
    ]
    config = config_of(**short)
    scenes.append(
        {
            "do": "train",
            "folder": str(base / "slow"),
            "slow_writer": SLOW_WRITE_S,
            "config": config_of(
                training__max_updates=2,
                training__save_interval=1,
                training__eval_interval=100,
                distributed__stall_timeout=STALL_TIMEOUT_S,
            ),
        }
    )
    no_driver = {"kind": "cpu", "problem": "CUDA driver version is insufficient"}
    scenes.append({"do": "device", "rank": 1, "finds": no_driver})
    scenes.append({"do": "device", "rank": 1, "finds": {"kind": "cuda", "name": "H100", "uuid": "a"}})
    # Last: a rank that drifts ends the job.
    scenes.append(
        {"do": "train", "folder": str(base / "drift"), "config": config, "drift": {"rank": 1, "update": 5}}
    )
    return base, play(2, scenes, HOROVOD_GLOO_TIMEOUT_SECONDS=str(GLOO_TIMEOUT_S))


@pytest.mark.parametrize(("number", "precision"), [(0, "fp32"), (1, "fp16")])
def test_a_gradient_poisoned_on_one_rank_is_skipped_by_all(results, outcome_of, number, precision):
    base, ranks = results
    outcome = outcome_of(base / f"poison {precision}")
    assert [int(row["update"]) for row in outcome.rows if row["gradient_norm"] in ("nan", "inf")] == [4]
    assert [int(row["skipped_updates"]) for row in outcome.rows] == [0, 0, 0, 1, 1, 1, 1, 1]
    # The ranks' weights were compared at every save: they are still the same.
    assert all(rank[number]["update"] == UPDATES and rank[number]["finished"] for rank in ranks)
    assert {float(entry["step"]) for entry in outcome.state["optimizer"]["state"].values()} == {UPDATES - 1}


def test_a_rank_that_drifts_ends_the_job_before_a_checkpoint_is_written(results, outcome_of):
    base, ranks = results
    for rank in ranks:
        assert rank[5]["mistake"].startswith(
            "after update 6 the weights of ranks [1] differ from those of rank 0"
        )
    checkpoints = sorted(path.name for path in (base / "drift").glob("runs/*/checkpoints/*.pt"))
    assert checkpoints == ["best_model.pt", "last.pt", "update_00000002.pt", "update_00000004.pt"]


def test_a_rank_whose_gpu_fails_ends_the_job_on_every_rank(results):
    for rank in results[1]:
        assert rank[3] == "rank 1: CUDA driver version is insufficient"
        assert rank[4].startswith("ranks [0] see no usable GPU, the others do")


HUNG_WRITER = """\
import os, sys
sys.path.insert(0, ".")
from horovod_transformer.checkpoint import manager
from horovod_transformer.commands import train
from horovod_transformer.commands.command_line import run_command
from horovod_transformer.distributed import agreement

agreement.TELL_AFTER_S, agreement.LIMIT_S = 1.0, 6.0
nobody_writes = os.pipe()
manager.save_checkpoint = lambda path, contents: os.read(nobody_writes[0], 1)
sys.exit(run_command(train.main))
"""


def test_a_file_system_that_hangs_ends_the_job(run_job, write_config, tmp_path):
    """The system call that writes a checkpoint does not return; else both ranks would wait for ever."""
    script, config = tmp_path / "hung.py", tmp_path / "config.yaml"
    script.write_text(HUNG_WRITER)
    changes = {"training__max_updates": 4, "training__save_interval": 2}
    write_config(config, **changes, distributed__stall_timeout=float(STALL_TIMEOUT_S))
    job = run_job(2, str(script), "--config", str(config), "--output_dir", str(tmp_path / "run"))
    assert job.process.returncode != 0
    told = job.stdout + job.stderr
    assert re.search(r"rank 0 has been writing a checkpoint for \d s: all ranks wait for it", told)
    assert re.search(r"rank 0 has been writing a checkpoint for \d+ s: a file system hangs\?", told)
    assert f"rank 0: no progress for {STALL_TIMEOUT_S} s (distributed.stall_timeout)" in told


def test_a_slow_disk_ends_no_healthy_job(results, outcome_of):
    base, ranks = results
    assert all(rank[2]["finished"] for rank in ranks)
    assert outcome_of(base / "slow").state["progress"]["update"] == 2
