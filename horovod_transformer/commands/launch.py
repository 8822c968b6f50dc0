"""`horovod-transformer launch`: start a command on several processes of this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from horovod_transformer.commands.parser import CommandParser
from horovod_transformer.errors import UserError
from horovod_transformer.launch.launcher import Launcher

DESCRIPTION = """\
Start a command as N ranks of one Horovod job on this machine; `horovodrun -np N` does so, too, but
takes longer and cannot start a failed job again. Rank 0 has the terminal, the others are heard only
if they fail. SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and Ctrl-C reach all ranks, and training saves a
checkpoint; a second Ctrl-C ends everything at once. Training that is started again resumes its newest
checkpoint."""

MOST_PROCESSES = 4096  # of one machine

EXAMPLES = """\
examples:
  horovod-transformer launch -np 2 -- horovod-transformer train --config configs/quickstart.yaml
  horovod-transformer launch -np 4 --max-restarts 3 -- horovod-transformer train --config configs/config.yaml

exit codes:
  0   done
  2   a mistake of yours, in one line; starting again would not help
  75  stopped by a signal with a checkpoint saved: start the same command again with --resume auto
  others: that of the rank that failed first, 128 + n if signal n ended it
"""


def make_parser() -> CommandParser:
    """The arguments."""
    parser = CommandParser("horovod-transformer launch", DESCRIPTION, EXAMPLES, "-np N [options] -- COMMAND")
    parser.add_processes("number of processes", required=True)
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="R",
        help="start again so often after a failure, on the GPUs that are left; never after exit code 0, 2 "
        "or 75 (default: %(default)s)",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="what to start")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Launch as the command line says; returns the exit code."""
    options = make_parser().parse_args(list(arguments))
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not 1 <= options.processes <= MOST_PROCESSES:
        raise UserError(f"-np {options.processes}: should be from 1 to {MOST_PROCESSES}")
    if options.max_restarts < 0:
        raise UserError(f"--max-restarts {options.max_restarts}: should be at least 0")
    if not command:
        raise UserError(
            "no command to start: horovod-transformer launch -np 2 -- horovod-transformer train ..."
        )
    return Launcher(options.processes, command, options.max_restarts).run()
