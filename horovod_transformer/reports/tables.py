"""A run's tables, `train.csv` and `val.csv`, read back as columns."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from horovod_transformer.errors import UserError


def read_table(path: Path) -> dict[str, list[float | None]]:
    """Read a table's columns.

    Rows that a kill cut off are left out. A value that is not a finite number is None.

    Raises:
        UserError: There is no such table, it cannot be read, or it has no rows.
    """
    if not path.exists():
        raise UserError(f"{path}: no such table; has the run started?")
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    # A row that was cut off has fewer columns.
    rows = [row for row in rows if None not in row.values() and (row.get("update") or "").isdigit()]
    if not rows:
        raise UserError(f"{path}: holds no updates yet; has the run started?")
    return {column: [_number(row[column]) for row in rows] for column in rows[0] if column}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
