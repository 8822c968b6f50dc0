"""What follows a run beside its own tables: TensorBoard, and Weights & Biases.

On a compute node without a network the client of Weights & Biases writes to a folder (`WANDB_MODE=offline`,
the default here); `wandb sync` on its folder sends it later from a node that has one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from horovod_transformer import distributed
from horovod_transformer.errors import UserError

# TensorBoard sorts its groups and cards by name: these figures come first, once more under names that do.
OVERVIEW = {
    "train/loss": "overview/1_training_loss",
    "validation/loss": "overview/2_validation_loss",
    "train/learning_rate": "overview/3_learning_rate",
    "train/tokens_per_second": "overview/4_tokens_per_second",
}


class TensorBoardTracker:
    """Writes TensorBoard events, on rank 0; a `MetricWriter`.

    Args:
        folder: Of the events.
        start: Updates done before; later events of an earlier try are hidden.
        config: Of the run, plain values, shown beside the curves.

    Raises:
        OSError: The folder cannot be written to.
    """

    def __init__(self, folder: Path, start: int, config: dict[str, Any]) -> None:
        self._events = self.load()(str(folder), purge_step=start + 1 if start else None)
        self._add_hyperparameters(config)
        self._events.add_text("config", f"```\n{yaml.safe_dump(config, sort_keys=False)}```")

    @staticmethod
    def load() -> Any:
        """Import the class that writes events: it takes a second, and only rank 0 needs it."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter

    def log(self, group: str, row: dict[str, Any]) -> None:
        """Add a scalar for each figure of a row of `train` or `validation`."""
        for name, value in row.items():
            if name not in ("update", "seconds") and isinstance(value, int | float):
                tag = f"{group}/{name}"
                for shown in (tag, OVERVIEW[tag]) if tag in OVERVIEW else (tag,):
                    self._events.add_scalar(shown, value, row["update"])

    def log_text(self, update: int, prompt: str, text: str) -> None:
        """Add a text that the model wrote."""
        self._events.add_text(f"sample/{prompt or 'no prompt'}", text, update)

    def close(self) -> None:
        """Write what has not been written yet."""
        self._events.close()

    def _add_hyperparameters(self, config: dict[str, Any]) -> None:
        """Fill TensorBoard's HPARAMS page; `SummaryWriter.add_hparams` would open a run of its own."""
        from torch.utils.tensorboard.summary import hparams

        flat = {
            f"{section}.{key}": value if isinstance(value, int | float | str | bool) else str(value)
            for section in ("model", "training", "data", "distributed")
            for key, value in config[section].items()
        }
        flat["world_size"] = distributed.get_world_size()
        writer = self._events._get_file_writer()
        for summary in hparams(flat, {"validation/loss": 0.0}):
            writer.add_summary(summary)


class WandbTracker:
    """Sends metrics to Weights & Biases through its own client; a failure never stops the run.

    A `MetricWriter`.

    Args:
        folder: Where the client writes.
        run_name: Names the run there, and makes a resumed run go on with the same curve.
        config: Shown beside the curves.
        say: Told, once, when tracking ends because of an error.

    Raises:
        UserError: The client is not installed.
    """

    def __init__(
        self, folder: Path, run_name: str, config: dict[str, Any], say: Callable[[str], None]
    ) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(
                "training.trackers: wandb is not installed; run `pip install wandb`, or leave it out"
            ) from None
        self._say = say
        self._run: Any = None
        mode = os.environ.get("WANDB_MODE", "offline")

        def start() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                dir=str(folder), name=run_name, id=run_name, resume="allow", config=config, mode=mode
            )

        self._try(start)

    def log(self, group: str, row: dict[str, Any]) -> None:
        """Record one row of `train` or `validation`."""
        known = {
            f"{group}/{key}": value for key, value in row.items() if key != "update" and value is not None
        }
        self._try(lambda: self._run and self._run.log(known, step=row["update"]))

    def log_text(self, update: int, prompt: str, text: str) -> None:
        """Sample texts stay in the run's own folder."""

    def close(self) -> None:
        """End the run there."""
        self._try(lambda: self._run and self._run.finish())

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # the client's own kinds are many, and none is worth a run
            self._run = None
            reason = (str(error).splitlines() or [""])[0]
            self._say(f"warning: wandb failed, the run goes on without it: {type(error).__name__}: {reason}")
