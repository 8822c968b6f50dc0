"""Run a command of ours on several processes of this machine."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence

from horovod_transformer.errors import UserError


def horovod_is_installed() -> bool:
    """Whether several processes can train together."""
    return importlib.util.find_spec("horovod") is not None


def usual_processes(device: str) -> int:
    """How many processes to show training on: two, but one where Horovod is missing or a GPU would be shared.

    Args:
        device: As `training.device`.
    """
    if not horovod_is_installed():
        return 1
    import torch

    alone = torch.cuda.is_available() and torch.cuda.device_count() == 1
    return 1 if device != "cpu" and alone else 2


def run_verb(processes: int, verb: str, arguments: Sequence[str]) -> None:
    """Run `horovod-transformer VERB ...` on this many processes and wait for its end.

    Args:
        processes: 1 runs it plainly, more under `horovod-transformer launch`.
        verb: A verb of the command line.
        arguments: Its arguments.

    Raises:
        UserError: It ended badly; what it printed tells more.
    """
    program = [sys.executable, "-m", "horovod_transformer"]
    command = [*program, verb, *arguments]
    if processes > 1:
        command = [*program, "launch", "-np", str(processes), "--", *command]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise UserError(
            f"`{verb}` on {processes} process(es) ended with exit code {code}; its output tells why"
        )
