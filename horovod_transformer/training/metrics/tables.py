"""A run's tables, `runs/structured/<run name>/`: CSV files, the config, the environment, sample texts."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml

from horovod_transformer import distributed
from horovod_transformer.system.files import write_text
from horovod_transformer.system.machine import installed_version


@dataclass(frozen=True)
class UpdateMetrics:
    """A row of `train.csv`. Sums and means are over all ranks.

    Attributes:
        update: Optimizer updates done.
        epoch: Passes over the training blocks done.
        loss: Mean loss per token of this update, nats.
        perplexity: exp(loss).
        bits_per_byte: The loss in bits per byte of text; None where bytes are not known.
        accuracy: Share of tokens predicted right.
        learning_rate: Of this update.
        gradient_norm: Global norm before clipping.
        tokens: Tokens predicted since the first update.
        skipped_updates: Updates so far whose gradients were not finite.
        updates_per_second: Averaged over the latest updates.
        tokens_per_second: Likewise.
        mfu: Model FLOPs utilisation, 0 to 1; None on a device whose peak is not known.
        memory_gib: Most memory this process has used.
        seconds: Since this start of the run.
        time_data: Seconds since the row before that this process waited for blocks; the seven `time_` columns
            add up to all of that time. See `phase_timer.PhaseTimer`.
        time_forward: Likewise in the forward pass, the loss and its gradient at the head included.
        time_backward: Likewise in the backward pass.
        time_gradient_wait: Likewise until the last gradients had been summed over the ranks.
        time_optimizer: Likewise clipping and changing the weights.
        time_checkpoint: Likewise held up by checkpoints.
        time_other: Likewise anything else, such as validation.
    """

    update: int
    epoch: float
    loss: float
    perplexity: float
    bits_per_byte: float | None
    accuracy: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    skipped_updates: int
    updates_per_second: float
    tokens_per_second: float
    mfu: float | None
    memory_gib: float
    seconds: float
    time_data: float
    time_forward: float
    time_backward: float
    time_gradient_wait: float
    time_optimizer: float
    time_checkpoint: float
    time_other: float


@dataclass(frozen=True)
class ValidationMetrics:
    """A row of `val.csv`; see `UpdateMetrics`.

    Attributes:
        seconds: How long the validation took.
        weights: Digest of the weights that were validated, see `distributed.weights_digest`.
    """

    update: int
    loss: float
    perplexity: float
    bits_per_byte: float | None
    accuracy: float
    tokens: int
    seconds: float
    weights: str = ""


TRAIN_COLUMNS = [field.name for field in fields(UpdateMetrics)]
VALIDATION_COLUMNS = [field.name for field in fields(ValidationMetrics)]
# The clock decides these; a repeated run differs in them.
CLOCK_COLUMNS = ("updates_per_second", "tokens_per_second", "mfu", "memory_gib", "seconds") + tuple(
    column for column in TRAIN_COLUMNS if column.startswith("time_")
)


class RunTables:
    """Writes a run's tables, on rank 0; a `MetricWriter`.

    Args:
        folder: Made if it is not there.
        start: Updates done before; later rows of an earlier try are dropped.
        config: Of the run, plain values, kept beside the tables. A resumed run's earlier one, if it differs,
            is kept as `config.until_update_N.yaml`.
        environment: As `describe_environment` returned it, kept there, too.

    Raises:
        OSError: The folder cannot be written to.
    """

    def __init__(self, folder: Path, start: int, config: dict[str, Any], environment: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _write_config(folder, yaml.safe_dump(config, sort_keys=False), start)
        write_text(folder / "environment.json", json.dumps(environment, indent=2) + "\n")
        self._samples = folder / "samples.txt"
        self._tables = {
            "train": CsvTable(folder / "train.csv", TRAIN_COLUMNS, start),
            "validation": CsvTable(folder / "val.csv", VALIDATION_COLUMNS, start),
        }

    def log(self, group: str, row: dict[str, Any]) -> None:
        """Append a row to the table of `train` or `validation`."""
        self._tables[group].append(row)

    def log_text(self, update: int, prompt: str, text: str) -> None:
        """Append a text that the model wrote."""
        with open(self._samples, "a", encoding="utf-8") as file:
            file.write(f"=== update {update}, prompt {prompt!r} ===\n{text}\n\n")

    def close(self) -> None:
        """Close the tables."""
        for table in self._tables.values():
            table.close()


def _write_config(folder: Path, text: str, start: int) -> None:
    """Write `config.yaml`; the one that the updates until now were made with gets another name."""
    path = folder / "config.yaml"
    if path.exists() and path.read_bytes() != text.encode():
        stem = f"config.until_update_{start}"
        names = (f"{stem}.yaml" if number == 1 else f"{stem}-{number}.yaml" for number in itertools.count(1))
        path.rename(next(folder / name for name in names if not (folder / name).exists()))
    write_text(path, text)


class CsvTable:
    """A table that is appended to, row by row, each row on disk before the next update.

    Args:
        path: The file.
        columns: Its header.
        keep_until: Rows of later updates are dropped: they belong to a stretch that is about to
            be computed again.
    """

    def __init__(self, path: Path, columns: list[str], keep_until: int) -> None:
        rows = _read_rows(path, columns, keep_until) if path.exists() else []
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())
        self._file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._writer = csv.DictWriter(self._file, columns)

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; a column without a value stays empty."""
        self._writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _read_rows(path: Path, columns: list[str], keep_until: int) -> list[dict[str, str]]:
    """The sound rows of a table; a kill cuts the last one off, a power failure leaves zeros in its place."""
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        lines = [line for line in file if "\0" not in line]
    if not lines or not lines[0].startswith("update,"):
        lines.insert(0, ",".join(columns))  # it is gone, too
    return [
        {column: row.get(column, "") for column in columns}
        for row in csv.DictReader(lines)
        if None not in row.values()
        and None not in row
        and row["update"].isdecimal()
        and int(row["update"]) <= keep_until
    ]


def describe_environment(facts: dict[str, Any]) -> dict[str, Any]:
    """Versions and hardware, enough to tell later what a run ran on; no environment variables."""
    names = ("horovod_transformer", "torch", "horovod", "numpy", "datasets", "tiktoken", "tokenizers")
    packages = {name: installed_version(name) for name in names}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "world_size": distributed.get_world_size(),
        "hosts": distributed.get_hosts(),
        "threads_per_rank": torch.get_num_threads(),
        **facts,
        "packages": packages,
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
