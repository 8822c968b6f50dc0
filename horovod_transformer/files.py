"""Names for what an earlier run left, so that a fresh one overwrites nothing."""

from __future__ import annotations

import itertools
from datetime import datetime
from pathlib import Path


def archive_path(stem: Path, files: list[Path]) -> Path:
    """Find a free name that tells when these files were last written.

    Args:
        stem: The name without its ending, for example `checkpoints/previous`.
        files: Existing files or folders.

    Returns:
        A path that does not exist, such as `checkpoints/previous-20260131-235959`.
    """
    newest = max(path.stat().st_mtime for path in files)
    name = f"{stem.name}-{datetime.fromtimestamp(newest):%Y%m%d-%H%M%S}"
    for number in itertools.count(1):
        path = stem.with_name(name if number == 1 else f"{name}-{number}")
        if not path.exists():
            return path
    raise AssertionError("unreachable")
