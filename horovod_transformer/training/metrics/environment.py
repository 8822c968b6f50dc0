"""What a run ran on: versions and hardware."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from horovod_transformer import distributed
from horovod_transformer.system.machine import installed_version


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
