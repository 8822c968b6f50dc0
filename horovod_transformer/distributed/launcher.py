"""Run a command of ours on several processes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from horovod_transformer.errors import UserError


def horovodrun_path() -> Path:
    """Find `horovodrun` beside this Python, where `make install` puts it.

    Raises:
        UserError: It is not there.
    """
    path = Path(sys.executable).with_name("horovodrun")
    if not path.exists():
        raise UserError(f"{path}: Horovod is not installed here; run `make install`")
    return path


def run_verb(processes: int, verb: str, arguments: Sequence[str]) -> None:
    """Run `horovod-transformer VERB ...` on this many processes and wait for its end.

    Args:
        processes: 1 runs it plainly, more under `horovodrun`.
        verb: A verb of the command line.
        arguments: Its arguments.

    Raises:
        UserError: It ended badly; what it printed tells more.
    """
    command = [sys.executable, "-m", "horovod_transformer", verb, *arguments]
    if processes > 1:
        command = [str(horovodrun_path()), "-np", str(processes), *command]
    # horovodrun starts helpers by the name `python`: let it find this one first.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    code = subprocess.run(command, env={**os.environ, "PATH": path}, check=False).returncode
    if code:
        raise UserError(
            f"`{verb}` on {processes} process(es) ended with exit code {code}; its output tells why"
        )
