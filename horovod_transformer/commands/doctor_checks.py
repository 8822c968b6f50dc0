"""What the doctor's checks have in common: what they are given, what they return, what they ask."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from horovod_transformer.config import Config

State = Literal["ok", "warn", "fail"]

# Seconds that a program asked about the machine may take.
PATIENCE_S = 5.0


@dataclass(frozen=True)
class Row:
    """What one check found.

    Attributes:
        name: What was looked at.
        state: `ok`; `warn`, training runs but; `fail`, training cannot run.
        found: What is there.
        fix: What to do about it; empty if nothing.
    """

    name: str
    state: State
    found: str
    fix: str = ""


@dataclass(frozen=True)
class CheckContext:
    """What is going to be trained, and where this machine keeps things.

    Attributes:
        config: The run's config.
        config_path: The file it came from, to name in commands.
        output_dir: As for `train`; None: the config's.
        hosts: The table of host names.
    """

    config: Config
    config_path: str = "configs/config.yaml"
    output_dir: Path | None = None
    hosts: Path = Path("/etc/hosts")

    @property
    def checkpoint_dir(self) -> Path:
        """Where checkpoints will go."""
        from horovod_transformer.checkpoint.run_paths import RUNS, explicit

        paths = self.config.paths
        if self.output_dir is not None:
            paths = self.config.with_paths_in(self.output_dir).paths
        return explicit(paths, paths.checkpoint_dir) or Path(paths.output_dir, RUNS)


def existing_parent(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def quota_left(report: str) -> int | None:
    """Bytes left by the tightest limit in what `quota -w` printed; None where there is no limit.

    Its columns are file system, blocks of 1 KiB in use (with * when over), soft limit, hard limit.
    """
    left = []
    for line in report.splitlines():
        match = re.match(r"\s*/?\S+\s+(\d+)\*?\s+(\d+)\s+(\d+)\s", line + " ")
        if match:
            used, soft, hard = map(int, match.groups())
            left += [1024 * max(0, limit - used) for limit in (soft, hard) if limit]
    return min(left, default=None)


def free_bytes(folder: Path) -> tuple[int, str]:
    """Bytes that may still be written, and whether the disk or the home folder's quota ends them."""
    free = shutil.disk_usage(folder).free
    home = os.path.expanduser("~")  # `~` itself where nobody knows a home
    if shutil.which("quota") and folder.resolve().is_relative_to(Path(home).resolve()):
        # Its exit code 1 means "over a limit": the table is printed all the same.
        left = quota_left(ask("quota", "-w"))
        if left is not None and left < free:
            return left, "left of your quota"
    return free, "free"


def ask(*command: str) -> str:
    """What a program prints, stripped; nothing if it is missing, fails to start or takes too long."""
    try:
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip()


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
