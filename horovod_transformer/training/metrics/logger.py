"""What a run leaves to look at: log files, TensorBoard events, CSV tables, a progress bar.

logs/train_rank0.log                          what happened, one file per rank
runs/<run name>/                              TensorBoard
runs/structured/<run name>/train.csv          a row every `training.log_interval` updates
runs/structured/<run name>/val.csv            a row per validation
runs/structured/<run name>/config.yaml, environment.json
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml

from horovod_transformer import distributed
from horovod_transformer.config import Config
from horovod_transformer.errors import UserError
from horovod_transformer.system.console import ProgressBar
from horovod_transformer.system.files import archive_path, write_text
from horovod_transformer.system.machine import installed_version
from horovod_transformer.training.metrics.trackers import WandbTracker


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
            add up to all of that time. See `time_shares.PhaseTimer`.
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
    """A row of `val.csv`; see `UpdateMetrics`. `seconds` is how long the validation took."""

    update: int
    loss: float
    perplexity: float
    bits_per_byte: float | None
    accuracy: float
    tokens: int
    seconds: float


TRAIN_COLUMNS = [field.name for field in fields(UpdateMetrics)]
VALIDATION_COLUMNS = [field.name for field in fields(ValidationMetrics)]
# The clock decides these; a repeated run differs in them.
CLOCK_COLUMNS = ("updates_per_second", "tokens_per_second", "mfu", "memory_gib", "seconds") + tuple(
    column for column in TRAIN_COLUMNS if column.startswith("time_")
)


class CsvTable:
    """A table that is appended to, row by row, each row on disk before the next update.

    Args:
        path: The file.
        columns: Its header.
        keep_until: Rows of later updates are dropped: they belong to a stretch that is about to
            be computed again.
    """

    def __init__(self, path: Path, columns: list[str], keep_until: int) -> None:
        rows = []
        if path.exists():
            with open(path, newline="", encoding="utf-8", errors="replace") as file:
                for row in csv.DictReader(file):
                    # A row that was cut off by a kill has fewer columns.
                    if (
                        any(value is None for value in row.values())
                        or not (row.get("update") or "").isdigit()
                    ):
                        continue
                    if int(row["update"]) <= keep_until:
                        rows.append({column: row.get(column, "") for column in columns})
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


class MetricLogger:
    """Records what happens in a run. Rank 0 writes everything, other ranks their log file.

    Args:
        config: Of the run, kept beside the tables.
        run_name: Names the run's folders.
        start: Updates done before; later rows of an earlier try are dropped.
        total: Updates in all.
        facts: What was decided at the start (device, precision, ...), for `environment.json`.

    Raises:
        UserError: A folder cannot be written to.
    """

    def __init__(
        self, config: Config, run_name: str, start: int, total: int, facts: dict[str, Any] | None = None
    ) -> None:
        self.main = distributed.is_main_process()
        self._told = False
        self._events: Any = None
        self._wandb: WandbTracker | None = None
        try:
            self._log = _open_log(Path(config.paths.log_dir))
            if self.main:
                folder = config.paths.tables_of(run_name)
                events = Path(config.paths.tensorboard_dir) / run_name
                if start == 0:
                    _archive(folder, events)
                folder.mkdir(parents=True, exist_ok=True)
                write_text(folder / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
                write_text(
                    folder / "environment.json",
                    json.dumps(describe_environment(facts or {}), indent=2) + "\n",
                )
                self._train = CsvTable(folder / "train.csv", TRAIN_COLUMNS, start)
                self._validation = CsvTable(folder / "val.csv", VALIDATION_COLUMNS, start)
                if "tensorboard" in config.training.trackers:
                    # Imported here: it takes a second, and only rank 0 needs it.
                    from torch.utils.tensorboard import SummaryWriter

                    self._events = SummaryWriter(str(events), purge_step=start + 1 if start else None)
                    self._add_hyperparameters(config)
                    self._events.add_text(
                        "config", f"```\n{yaml.safe_dump(config.to_dict(), sort_keys=False)}```"
                    )
                self.folder = folder
        except OSError as error:
            raise UserError(f"{error.filename}: cannot write the run's records: {error.strerror}") from None
        self._bar = ProgressBar("training", total, start) if self.main else None
        if self.main and "wandb" in config.training.trackers:
            self._wandb = WandbTracker(
                Path(config.paths.tensorboard_dir), run_name, config.to_dict(), self.say
            )

    def say(self, text: str) -> None:
        """Log a line; rank 0 also prints it."""
        self._log.info(text)
        if self._bar is not None:
            self._bar.message(text)

    def log_update(self, metrics: UpdateMetrics) -> None:
        """Record one update."""
        if not self.main:
            return
        self._keep_going(self._train.append, vars(metrics))
        self._log.info(
            "update %d: loss %.4f, accuracy %.4f, gradient norm %.3f, lr %.3g, %.0f tokens/s%s",
            metrics.update,
            metrics.loss,
            metrics.accuracy,
            metrics.gradient_norm,
            metrics.learning_rate,
            metrics.tokens_per_second,
            "" if metrics.mfu is None else f", MFU {metrics.mfu:.1%}",
        )
        self._add_scalars("train", vars(metrics))

    def log_validation(self, metrics: ValidationMetrics) -> None:
        """Record one validation."""
        if not self.main:
            return
        self._keep_going(self._validation.append, vars(metrics))
        self._add_scalars("validation", vars(metrics))
        bits = "" if metrics.bits_per_byte is None else f", {metrics.bits_per_byte:.4f} bits per byte"
        self.say(f"update {metrics.update}: validation loss {metrics.loss:.4f}{bits}")

    def log_sample(self, update: int, prompt: str, text: str) -> None:
        """Record a text that the model wrote."""

        def write() -> None:
            with open(self.folder / "samples.txt", "a", encoding="utf-8") as file:
                file.write(f"=== update {update}, prompt {prompt!r} ===\n{text}\n\n")

        if self._events is not None:
            self._keep_going(self._events.add_text, f"sample/{prompt or 'no prompt'}", text, update)
        self._keep_going(write)

    def _add_hyperparameters(self, config: Config) -> None:
        """Fill TensorBoard's HPARAMS page; `SummaryWriter.add_hparams` would open a run of its own."""
        from torch.utils.tensorboard.summary import hparams

        flat = {
            f"{section}.{key}": value if isinstance(value, int | float | str | bool) else str(value)
            for section in ("model", "training", "data", "distributed")
            for key, value in config.to_dict()[section].items()
        }
        flat["world_size"] = distributed.get_world_size()
        writer = self._events._get_file_writer()
        for summary in hparams(flat, {"validation/loss": 0.0}):
            writer.add_summary(summary)

    def _add_scalars(self, group: str, row: dict[str, Any]) -> None:
        if self._wandb is not None:
            self._wandb.log(group, row["update"], {k: v for k, v in row.items() if k != "update"})
        for name, value in row.items():
            if self._events is not None and name not in ("update", "seconds") and value is not None:
                self._keep_going(self._events.add_scalar, f"{group}/{name}", value, row["update"])

    def _keep_going(self, write: Callable[..., Any], *values: Any) -> None:
        """Write a record; a full disk costs the record, not the run, and is told once."""
        try:
            write(*values)
        except OSError as error:
            if not self._told:
                self._told = True
                self.say(f"records are no longer complete, a file could not be written: {error}")

    def advance(self, done: int, loss: float, tokens_per_second: float) -> None:
        """Move the progress bar."""
        if self._bar is not None:
            self._bar.advance(done, loss=f"{loss:.3f}", **{"tok/s": f"{tokens_per_second:,.0f}"})

    def close(self) -> None:
        """Flush and close everything."""
        if self.main:
            assert self._bar is not None
            self._bar.close()
            for file in (self._train, self._validation, self._events):
                if file is not None:
                    self._keep_going(file.close)
            if self._wandb is not None:
                self._wandb.close()
        for handler in list(self._log.handlers):
            handler.close()
            self._log.removeHandler(handler)


def _archive(*folders: Path) -> None:
    """Rename what an earlier run of the same name left, so that a fresh one overwrites nothing."""
    for folder in folders:
        if folder.exists():
            folder.rename(archive_path(folder.with_name(f"{folder.name}.previous"), [folder]))


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
        **facts,
        "threads_per_rank": torch.get_num_threads(),
        "packages": packages,
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _open_log(folder: Path) -> logging.Logger:
    folder.mkdir(parents=True, exist_ok=True)
    log = logging.getLogger("horovod_transformer.training")
    log.setLevel(logging.INFO)
    log.propagate = False
    handler = logging.FileHandler(folder / f"train_rank{distributed.get_rank()}.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    return log
