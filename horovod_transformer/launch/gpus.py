"""How many GPUs this machine shows.

Another process counts them: importing torch takes longer than all the rest of starting ranks.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COUNT = "import torch; print(torch.cuda.device_count())"
# One of these is there where GPUs are: NVIDIA's driver, the same under Windows, AMD's.
DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


class GpuCount:
    """Begins to count; the ranks can start meanwhile."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._number = 0
        if any(Path(file).exists() for file in DRIVER_FILES):
            self._process = subprocess.Popen(
                [sys.executable, "-c", COUNT],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )

    def result(self) -> int:
        """How many a process of this machine can use; 0 as well if that cannot be found out."""
        if self._process is not None:
            output, _ = self._process.communicate()
            self._number = int(output) if self._process.returncode == 0 else 0
            self._process = None
        return self._number
