"""A run's tables, `runs/structured/<run name>/`: CSV files, the config, the environment, sample texts."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import yaml

from horovod_transformer.system.files import write_text
from horovod_transformer.training.metrics.rows import TRAIN_COLUMNS, VALIDATION_COLUMNS


class RunTables:
    """Writes a run's tables, on rank 0; a `MetricWriter`.

    Args:
        folder: Made if it is not there.
        start: Updates done before; later rows of an earlier try are dropped.
        config: Of the run, plain values, kept beside the tables.
        environment: As `describe_environment` returned it, kept there, too.

    Raises:
        OSError: The folder cannot be written to.
    """

    def __init__(self, folder: Path, start: int, config: dict[str, Any], environment: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
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
