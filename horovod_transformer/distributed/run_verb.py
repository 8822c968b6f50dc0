"""Run a command of ours on several processes of this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from horovod_transformer.errors import UserError


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
