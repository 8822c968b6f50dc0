"""Exact sums: the same weights, bit for bit, whatever the number of processes, the launcher and the stops."""

from __future__ import annotations

import csv
import hashlib
import sys
from pathlib import Path

import pytest
import torch

from horovod_transformer.checkpoint.format import load_checkpoint

pytestmark = pytest.mark.distributed

UPDATES = 8
# What a user types, and less of it; nothing is said of threads.
SHORT = {
    "training.lr_decay_updates": UPDATES,
    "training.max_updates": UPDATES,
    "training.eval_interval": 4,
    "training.save_interval": 4,
}


def weights(checkpoint: Path) -> str:
    """SHA-256 of a checkpoint's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_checkpoint(checkpoint)["model"].items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def plays(run_job, tmp_path_factory):
    """The sample, prepared for the quickstart."""
    folder = tmp_path_factory.mktemp("plays") / "data"
    options = ["prepare", "--config", "configs/quickstart.yaml", "--data.data_dir", str(folder)]
    job = run_job(1, "-m", "horovod_transformer", *options)
    assert job.process.returncode == 0, job.stderr
    return folder


@pytest.fixture(scope="module")
def train(plays, run_job, tmp_path_factory):
    """Train the quickstart: `train(ranks, **changes)` returns the run's checkpoint folder."""
    base = tmp_path_factory.mktemp("same bits")

    def run(name, processes, launcher=(), **changes):
        settings = {**SHORT, "data.data_dir": plays, "distributed.sums": "exact", "output_dir": base / name}
        settings |= {key.replace("__", "."): value for key, value in changes.items()}
        options = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
        job = run_job(
            processes,
            *launcher,
            *("-m", "src.train", "--config", "configs/quickstart.yaml", "--run_name", "r", *options),
            OMP_NUM_THREADS="",
        )
        assert job.process.returncode == 0, f"{job.stdout}\n{job.stderr}"
        return base / name / "runs/r/checkpoints"

    return run


@pytest.fixture(scope="module")
def straight(train):
    """One process, which takes all cores."""
    return train("straight", 1)


def assert_same_weights(one: Path, other: Path) -> None:
    for name in ("last.pt", "best_model.pt"):
        assert weights(one / name) == weights(other / name), name
        progress = [load_checkpoint(folder / name)["progress"] for folder in (one, other)]
        assert progress[0] == progress[1], name
    tables = []
    for folder in (one, other):
        with open(folder.parent / "tables/val.csv", newline="") as file:
            tables.append([(row["update"], row["loss"], row["weights"]) for row in csv.DictReader(file)])
    assert tables[0] == tables[1] and tables[0]


def test_one_and_two(straight, train):
    two = train("two", 2)
    assert_same_weights(straight, two)
    assert len(load_checkpoint(two / "last.pt")["progress"]["weights"]) == 16
    log = (two.parent / "logs/train_rank0.log").read_text()
    digest = load_checkpoint(two / "last.pt")["progress"]["weights"]
    assert f"update {UPDATES}: saving weights {digest}" in log


def test_three_then_one(straight, train):
    train("three", 3, training__max_updates=4)
    assert_same_weights(straight, train("three", 1, resume="auto"))


def test_without_them_the_bits_differ(straight, train):
    """Otherwise the tests above prove nothing."""
    assert weights(train("fast", 2, distributed__sums="fast") / "last.pt") != weights(straight / "last.pt")


@pytest.mark.more
@pytest.mark.parametrize(("precision", "optimizer"), [("fp32", "adamw"), ("auto", "muon")])
def test_four_and_eight(train, precision, optimizer):
    settings = {"training__precision": precision, "training__optimizer": optimizer}
    settings |= {"training__learning_rate": 1e-3, "training__global_batch_size": 19}
    settings["training__exact_up_to"] = 8
    one = train(f"one {precision} {optimizer}", 1, **settings)
    for ranks in (2, 4, 8):
        assert_same_weights(one, train(f"{ranks} {precision} {optimizer}", ranks, **settings))


@pytest.mark.more
@pytest.mark.parametrize("launcher", ["torchrun", "launch"])
def test_every_launcher(straight, train, launcher):
    command = {
        "torchrun": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        "launch": ("-m", "horovod_transformer", "launch", "-np", "2", "--", sys.executable),
    }[launcher]
    assert_same_weights(straight, train(launcher, 1, command))


@pytest.mark.more
def test_any_sequence_of_processes(straight, train):
    for stop, ranks in ((2, 2), (3, 3), (5, 1), (6, 4)):
        train("sequence", ranks, training__max_updates=stop, **({"resume": "auto"} if stop > 2 else {}))
    # Each end validates, so the best model may be another; the last one may not.
    assert weights(train("sequence", 2, resume="auto") / "last.pt") == weights(straight / "last.pt")


@pytest.mark.more
@pytest.mark.parametrize(
    "change", ["dropout", "checkpointing", "compile", "fp16", "accumulated validation", "llama"]
)
def test_with(train, change):
    settings = {
        "dropout": {"model__dropout": 0.1},
        "checkpointing": {"model__gradient_checkpointing": "true"},
        "compile": {"training__compile": "on"},
        "fp16": {"training__precision": "fp16", "training__max_updates": 2, "training__lr_decay_updates": 2},
        "llama": {
            "model__architecture": "llama",
            "model__n_kv_heads": 2,
            "model__qk_norm": "true",
            "model__tie_embeddings": "false",
        },
        "accumulated validation": {"training__eval_blocks": 13, "training__per_gpu_batch_size": 3},
    }[change]
    assert_same_weights(train(f"one {change}", 1, **settings), train(f"two {change}", 2, **settings))
