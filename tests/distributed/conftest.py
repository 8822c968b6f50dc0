"""Real Horovod jobs: a small corpus, a launcher that never hangs, and what a run leaves behind."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import pytest
import yaml

from horovod_transformer.checkpoint.format import load_checkpoint
from horovod_transformer.training.metrics.tables import CLOCK_COLUMNS, TRAIN_COLUMNS
from tests.conftest import PATIENCE_S

HERE = Path(__file__).resolve().parent
REPRODUCIBLE = [column for column in TRAIN_COLUMNS if column not in CLOCK_COLUMNS]

VOCAB, BLOCK, TRAIN_BLOCKS, VALIDATION_BLOCKS, PADDING = 48, 16, 53, 11, 5

# 8 blocks an update over 53 blocks: epochs begin in mid-update, at updates 6, 13, 19 and so on.
BASE: dict[str, Any] = {
    "model": {
        "vocab_size": VOCAB,
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 2,
        "d_ff": 64,
        "max_seq_len": BLOCK,
    },
    "training": {
        "epochs": 4,
        "max_updates": 20,
        "learning_rate": 5e-3,
        "warmup_updates": 6,
        "global_batch_size": 8,
        "per_gpu_batch_size": 4,
        "log_interval": 1,
        "eval_interval": 5,
        "save_interval": 4,
        "threads_per_rank": 1,
        "precision": "fp32",  # whatever this machine's CPU has
    },
    "data": {"num_workers": 0},
}


def write_corpus(folder: Path, bad_row: int | None = None, bad_split: str = "train") -> Path:
    """Write prepared data in which a token mostly decides the next; `bad_row` holds an impossible token."""
    random = np.random.RandomState(5)
    successor = random.permutation(VOCAB)
    splits, manifest = {}, {"fingerprint": "chains", "splits": {}}
    for name, blocks in (("train", TRAIN_BLOCKS), ("validation", VALIDATION_BLOCKS)):
        tokens = [0]
        for _ in range(blocks * BLOCK - 1):
            tokens.append(int(successor[tokens[-1]]) if random.rand() < 0.9 else random.randint(VOCAB))
        rows = np.array(tokens, dtype=np.uint16).reshape(blocks, BLOCK)
        if name == bad_split and bad_row is not None:
            rows[bad_row, 3] = VOCAB + 7
        feature = datasets.Sequence(datasets.Value("uint16"), length=BLOCK)
        splits[name] = datasets.Dataset.from_dict(
            {"input_ids": list(rows)}, features=datasets.Features({"input_ids": feature})
        )
        padding = PADDING if name == "train" else 0
        manifest["splits"][name] = {"padding": padding, "tokens": blocks * BLOCK, "bytes": blocks * BLOCK * 4}
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data of 53 training blocks."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "v1")


@pytest.fixture(scope="session")
def make_corpus() -> Callable[..., Path]:
    """`write_corpus(folder, bad_row, bad_split)`."""
    return write_corpus


def make_config(corpus: Path, **dotted: Any) -> dict[str, Any]:
    """The base config on this corpus, with changes such as `model__dropout=0.1`."""
    config = {section: dict(values) for section, values in BASE.items()}
    config["data"]["data_dir"] = str(corpus)
    for key, value in dotted.items():
        section, _, name = key.partition("__")
        config.setdefault(section, {})[name] = value
    return config


@pytest.fixture(scope="session")
def config_of(corpus: Path) -> Callable[..., dict[str, Any]]:
    """Make a config on the shared corpus: `config_of(model__dropout=0.1)`."""
    return lambda **dotted: make_config(corpus, **dotted)


@pytest.fixture(scope="session")
def write_config(corpus: Path) -> Callable[..., Path]:
    """Write a config on the shared corpus to a file: `write_config(path, training__epochs=2)`."""

    def write(path: Path, **dotted: Any) -> Path:
        path.write_text(yaml.safe_dump(make_config(corpus, **dotted)))
        return path

    return write


def job_environment(**extra: str) -> dict[str, str]:
    """An environment for CPU ranks that share few cores, without a launcher's leftovers; "" unsets."""
    foreign = ("HOROVOD_", "OMPI_", "PMI_", "SLURM_", "TORCHELASTIC_", "MASTER_")
    own = ("WORLD_SIZE", "RANK", "GROUP_WORLD_SIZE")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign) and k not in own}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    set_here = {"PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    # Or torchrun's ranks would keep one in the home folder of whoever runs the tests.
    set_here["HOROVOD_TRANSFORMER_SECRET"] = "of the jobs that tests start"
    wanted = {**kept, **set_here, **extra}
    return {name: value for name, value in wanted.items() if value or name not in extra}


class Job:
    """Processes that `horovodrun` (or, for one process, nothing) has started.

    Attributes:
        process: The launcher.
    """

    def __init__(
        self, processes: int, arguments: Sequence[str], root: Path, output: Path, **extra: str
    ) -> None:
        command = [sys.executable, *arguments]
        if processes > 1:
            command = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(processes), *command]
        self._out, self._err = output.with_suffix(".out"), output.with_suffix(".err")
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self.process = subprocess.Popen(
                command,
                cwd=root,
                env=job_environment(PYTHONUNBUFFERED="1", **extra),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.began = time.monotonic()

    def wait(self, timeout: float = PATIENCE_S) -> int:
        """Wait for the end; a job that outlives the limit is killed and fails the test."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(
                f"the job hung for {timeout} s; it printed\n{self.stdout}\n{self.stderr}", pytrace=False
            )

    def kill(self) -> None:
        """Kill the launcher and every rank, as a node's failure does."""
        with_children = [self.process, *psutil.Process(self.process.pid).children(recursive=True)]
        for process in with_children:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    @property
    def stdout(self) -> str:
        """What it printed so far."""
        return self._out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What it complained of so far."""
        return self._err.read_text(errors="replace")

    def rank_pid(self, rank: int) -> int:
        """Process id of a rank."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                is_python = "python" in Path(process.cmdline()[0]).name if process.cmdline() else False
                if is_python and process.environ().get("HOROVOD_RANK") == str(rank):
                    # A loader process has its rank's environment, too; the rank is its parent.
                    return process.pid
            except psutil.Error:
                continue
        raise LookupError(f"no rank {rank}")


@contextmanager
def _started(*arguments: Any, **extra: str) -> Iterator[Job]:
    job = Job(*arguments, **extra)
    try:
        yield job
    finally:
        if job.process.poll() is None:
            job.kill()


@pytest.fixture(scope="session")
def start_job(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`with start_job(processes, *arguments, NAME=value) as job`: python with these, on so many ranks."""

    def start(processes: int, *arguments: str, **extra: str) -> Any:
        return _started(processes, arguments, root, tmp_path_factory.mktemp("job") / "job", **extra)

    return start


@pytest.fixture(scope="session")
def run_job(start_job: Callable[..., Any]) -> Callable[..., Job]:
    """Run a job to its end, whatever that is."""

    def run(processes: int, *arguments: str, timeout: float = PATIENCE_S, **extra: str) -> Job:
        with start_job(processes, *arguments, **extra) as job:
            job.wait(timeout)
        return job

    return run


@pytest.fixture
def idle_ranks(tmp_path: Path) -> Path:
    """A script whose ranks meet, say their places and the mean of their numbers, and idle until ended."""
    script = tmp_path / "idle.py"
    script.write_text(
        "import os, sys, time; sys.path.insert(0, '.')\n"
        "from src.utils.distributed import setup_horovod, metric_average\n"
        "place = setup_horovod(require_distributed=True)\n"
        # One write for a line: both ranks write into the same pipe, and print() may write in pieces.
        "line = ' '.join(str(value) for value in (*place, metric_average(place[1], 'rank')))\n"
        "os.write(1, f'{line}\\n'.encode()); time.sleep(3600)\n"
    )
    return script


@pytest.fixture(scope="session")
def play(run_job: Callable[..., Job], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Any]]:
    """Have the same ranks go through several scenes of `scenes.py`; returns each rank's results."""

    def run(processes: int, scenes: list[dict[str, Any]], **extra: str) -> list[Any]:
        folder = tmp_path_factory.mktemp("scenes")
        (folder / "scenes.json").write_text(json.dumps(scenes))
        job = run_job(processes, str(HERE / "rank_programs.py"), str(folder), **extra)
        assert job.process.returncode == 0, f"{job.stdout}\n{job.stderr}"
        return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]

    return run


class Outcome:
    """What a finished run left in its output folder.

    Attributes:
        rows: Its train.csv, without what the clock decides.
        validations: Its val.csv, likewise.
        state: Its last checkpoint.
        best: Its best checkpoint.
    """

    def __init__(self, folder: Path, run_name: str = "run") -> None:
        tables = folder / "runs" / "structured" / run_name
        with open(tables / "train.csv", newline="") as file:
            self.rows = [{key: row[key] for key in REPRODUCIBLE} for row in csv.DictReader(file)]
        with open(tables / "val.csv", newline="") as file:
            self.validations = [
                {key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)
            ]
        self.state = load_checkpoint(folder / "checkpoints" / "last.pt")
        best = folder / "checkpoints" / "best_model.pt"
        self.best = load_checkpoint(best) if best.exists() else {}

    def column(self, name: str) -> list[float]:
        """A column of train.csv as numbers."""
        return [float(row[name]) for row in self.rows]


@pytest.fixture(scope="session")
def outcome_of() -> type[Outcome]:
    """`outcome_of(folder)` reads what a run left."""
    return Outcome


@pytest.fixture(scope="session")
def assert_same_run() -> Callable[[Outcome, Outcome], None]:
    """Hold two runs against each other, bit for bit: tables, weights, optimizer, progress."""
    import torch

    def compare(one: Any, other: Any, where: str) -> None:
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other), f"{where} differs by {(one - other).abs().max()}"
        elif isinstance(one, dict):
            assert one.keys() == other.keys(), where
            for key in one:
                compare(one[key], other[key], f"{where}.{key}")
        elif isinstance(one, list | tuple):
            assert len(one) == len(other), where
            for number, (a, b) in enumerate(zip(one, other, strict=True)):
                compare(a, b, f"{where}[{number}]")
        else:
            assert one == other, where

    def check(one: Outcome, other: Outcome) -> None:
        assert one.rows == other.rows
        assert one.validations == other.validations
        for key in ("model", "optimizer", "scheduler", "progress"):
            compare(one.state[key], other.state[key], key)
            # The reference always has one.
            compare(one.best[key], other.best.get(key), f"best {key}")

    return check
