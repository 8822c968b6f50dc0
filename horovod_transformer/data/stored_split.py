"""A split of prepared data as it lies on disk, mapped with Arrow alone.

`datasets` wrote it and could open it, but takes half a second to import, pandas with it, in every rank.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class StoredSplit:
    """The table of one split, and the files that it is mapped from."""

    table: pa.Table
    files: list[Path]

    def __len__(self) -> int:
        return len(self.table)

    def __reduce__(self) -> tuple[Any, ...]:
        # A process started afresh maps the files again rather than being sent their content.
        return map_files, (self.files,)


def open_stored_splits(folder: Path) -> dict[str, StoredSplit]:
    """Map all splits of a `DatasetDict` that was saved to this folder.

    Raises:
        OSError, ValueError, KeyError, TypeError, pa.ArrowException: It holds something else, or is damaged.
    """
    names = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    splits = {}
    for name in names:
        state = json.loads((folder / name / "state.json").read_text(encoding="utf-8"))
        splits[name] = map_files([folder / name / file["filename"] for file in state["_data_files"]])
    return splits


def map_files(files: Sequence[Path]) -> StoredSplit:
    """Map Arrow streams, one table in as many files."""
    # As bytes, since of text Arrow takes only what is UTF-8.
    tables = [pa.ipc.open_stream(pa.memory_map(os.fsencode(file))).read_all() for file in files]
    return StoredSplit(pa.concat_tables(tables) if tables else pa.table({}), list(files))
