"""What a run leaves to look at: log files, tables, TensorBoard events, trackers, a progress bar.

train_rank0.log               what happened, one file per rank
train.csv                     a row every `training.log_interval` updates
val.csv                       a row per validation
samples.txt                   texts that the model wrote on the way
config.yaml, environment.json
config.until_update_N.yaml    if a resumed run has other settings than before

`checkpoint.run_paths` knows where these lie.
"""

from __future__ import annotations

import errno
import logging
import logging.handlers
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from horovod_transformer import distributed
from horovod_transformer.checkpoint.run_paths import RunPaths
from horovod_transformer.errors import UserError
from horovod_transformer.system.console import ProgressBar, is_verbose
from horovod_transformer.training.metrics.tables import (
    RunTables,
    UpdateMetrics,
    ValidationMetrics,
    describe_environment,
)
from horovod_transformer.training.metrics.trackers import TensorBoardTracker, WandbTracker


class MetricWriter(Protocol):
    """One of the places where a run's figures go; only rank 0 has any."""

    def log(self, group: str, row: dict[str, Any]) -> None:
        """Keep one row of `train` or `validation`, figures by name."""

    def log_text(self, update: int, prompt: str, text: str) -> None:
        """Keep a text that the model wrote."""

    def close(self) -> None:
        """Finish writing."""


class MetricLogger:
    """Records what happens in a run. Rank 0 writes everything, other ranks their log file.

    Until `take_over` nothing is written: a start that fails leaves an earlier run's records as they were.

    Args:
        paths: Where the run writes.
        start: Updates done before; later rows of an earlier try are dropped.
        total: Updates in all.
        config: Of the run, plain values, kept beside the tables.
        trackers: Where else the figures go: `tensorboard`, `wandb`.
        facts: What was decided at the start (device, precision, ...), for `environment.json`.

    Raises:
        UserError: A folder cannot be written to, or a tracker is not installed.
    """

    def __init__(
        self,
        paths: RunPaths,
        start: int,
        total: int,
        config: dict[str, Any],
        trackers: Sequence[str] = ("tensorboard",),
        facts: dict[str, Any] | None = None,
    ) -> None:
        self._warned = False
        self._writers: list[MetricWriter] = []
        self._bar: ProgressBar | None = None
        self._start, self._config, self._trackers = start, config, trackers
        self._paths = paths
        self._log, self._early_lines = _open_log()
        try:
            with _one_line(paths.logs):
                _require_writable(paths.logs)
        except BaseException:
            self.close()
            raise
        if not distributed.is_main_process():
            return
        try:
            with _one_line(paths.tables):
                for folder in (paths.tables, paths.events):
                    # What an earlier run left there is renamed, or written to.
                    _require_writable(folder if start else folder.parent)
            self._environment = describe_environment(facts or {})
            if "tensorboard" in trackers:
                TensorBoardTracker.load()
            self._bar = ProgressBar("training", total, start)
            if "wandb" in trackers:
                self._writers.append(WandbTracker(paths.events.parent, paths.name, config, self.say))
        except BaseException:
            self.close()
            raise

    def take_over(self) -> None:
        """Open the run's files, before the first row: on rank 0 all of them, on other ranks the log.

        A resumed run drops rows of later updates.

        Raises:
            UserError: They cannot be written.
        """
        paths = self._paths
        with _one_line(paths.logs):
            paths.logs.mkdir(parents=True, exist_ok=True)
            handler = _LogFile(paths.logs / f"train_rank{distributed.get_rank()}.log", self._warn)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._early_lines.setTarget(handler)
        self._early_lines.close()
        self._log.removeHandler(self._early_lines)
        self._log.addHandler(handler)
        if not distributed.is_main_process():
            return
        with _one_line(paths.tables):
            self._writers.append(RunTables(paths.tables, self._start, self._config, self._environment))
            if "tensorboard" in self._trackers:
                self._writers.append(TensorBoardTracker(paths.events, self._start, self._config))

    def say(self, text: str, always: bool = False) -> None:
        """Log a line; rank 0 also prints it, and even under `-q` if that should be always."""
        self._log.info(text)
        if self._bar is not None:
            self._bar.message(text, always)

    def note(self, text: str) -> None:
        """Log a line that nobody need see on the terminal, unless `-v` asks for it."""
        self._log.info(text)
        if self._bar is not None and is_verbose():
            self._bar.message(text)

    def log_update(self, metrics: UpdateMetrics) -> None:
        """Record one update."""
        if not distributed.is_main_process():
            return
        mfu = "" if metrics.mfu is None else f", MFU {metrics.mfu:.1%}"
        self.note(
            f"update {metrics.update}: loss {metrics.loss:.4f}, accuracy {metrics.accuracy:.4f}, "
            f"gradient norm {metrics.gradient_norm:.3f}, lr {metrics.learning_rate:.3g}, "
            f"{metrics.tokens_per_second:.0f} tokens/s{mfu}"
        )
        self._write(lambda writer: writer.log("train", vars(metrics)))

    def log_validation(self, metrics: ValidationMetrics) -> None:
        """Record one validation."""
        if not distributed.is_main_process():
            return
        self._write(lambda writer: writer.log("validation", vars(metrics)))
        bits = "" if metrics.bits_per_byte is None else f", {metrics.bits_per_byte:.4f} bits per byte"
        self.say(f"update {metrics.update}: validation loss {metrics.loss:.4f}{bits}")
        self.note(f"update {metrics.update}: validated weights {metrics.weights}")

    def log_sample(self, update: int, prompt: str, text: str) -> None:
        """Record a text that the model wrote."""
        self._write(lambda writer: writer.log_text(update, prompt, text))

    def advance(self, done: int, loss: float, tokens_per_second: float) -> None:
        """Move the progress bar."""
        if self._bar is not None:
            self._bar.advance(done, loss=f"{loss:.3f}", **{"tok/s": f"{tokens_per_second:,.0f}"})

    def close(self) -> None:
        """Flush and close everything."""
        if self._bar is not None:
            self._bar.close()
        self._write(lambda writer: writer.close())
        for handler in list(self._log.handlers):
            handler.close()
            self._log.removeHandler(handler)

    def _write(self, action: Callable[[MetricWriter], None]) -> None:
        """Write a record everywhere; a full disk costs the record, not the run, and is reported once."""
        for writer in self._writers:
            try:
                action(writer)
            except OSError as error:
                self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            self.say(f"warning: records are no longer complete, a file could not be written: {error}")


class _LogFile(logging.FileHandler):
    """A log file; a full disk costs lines of it, and is told once, without a traceback."""

    def __init__(self, path: Path, warn: Callable[[OSError], None]) -> None:
        super().__init__(path, encoding="utf-8")
        self._warn = warn

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._warn(error)
        else:
            super().handleError(record)

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:
            self._warn(error)


@contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """Within this context what cannot be written in a folder is a mistake of the user's."""
    try:
        yield
    except OSError as error:
        where = error.filename or folder  # a full disk names no file
        raise UserError(f"{where}: cannot write the run's records: {error.strerror}") from None


def _require_writable(folder: Path) -> None:
    """Find out whether files can be written to a folder, or the folder be made where it is not there yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def _open_log() -> tuple[logging.Logger, logging.handlers.MemoryHandler]:
    """The log, and what keeps its lines until the file is opened."""
    log = logging.getLogger("horovod_transformer.training")
    log.setLevel(logging.INFO)
    log.propagate = False
    early_lines = logging.handlers.MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
    log.addHandler(early_lines)
    return log, early_lines
