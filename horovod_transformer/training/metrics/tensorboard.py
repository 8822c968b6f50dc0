"""A run's figures as TensorBoard events, `runs/<run name>/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from horovod_transformer import distributed


class TensorBoardWriter:
    """Writes TensorBoard events, on rank 0; a `MetricWriter`.

    Args:
        folder: Of the events.
        start: Updates done before; later events of an earlier try are hidden.
        config: Of the run, plain values, shown beside the curves.

    Raises:
        OSError: The folder cannot be written to.
    """

    def __init__(self, folder: Path, start: int, config: dict[str, Any]) -> None:
        # Imported here: it takes a second, and only rank 0 needs it.
        from torch.utils.tensorboard import SummaryWriter

        self._events = SummaryWriter(str(folder), purge_step=start + 1 if start else None)
        self._add_hyperparameters(config)
        self._events.add_text("config", f"```\n{yaml.safe_dump(config, sort_keys=False)}```")

    def log(self, group: str, row: dict[str, Any]) -> None:
        """Add a scalar for each figure of a row of `train` or `validation`."""
        for name, value in row.items():
            if name not in ("update", "seconds") and value is not None:
                self._events.add_scalar(f"{group}/{name}", value, row["update"])

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
