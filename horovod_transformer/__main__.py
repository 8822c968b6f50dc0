"""The program: `horovod-transformer NAME ...`, or `python -m horovod_transformer NAME ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from horovod_transformer.commands.command_line import run_command
from horovod_transformer.commands.table import SUBCOMMANDS, load_subcommand

HELP = ("help", "-h", "--help")

_USAGE = """\
usage: horovod-transformer SUBCOMMAND ...

{rows}

`horovod-transformer help SUBCOMMAND` tells more, with examples; --version tells the version.
All of them take -q (results, warnings and errors only) and -v (more of what goes on).

examples:
  horovod-transformer demo --minutes 1
  horovod-transformer help train
"""


def _dispatch(arguments: Sequence[str]) -> int:
    name, *rest = arguments or ["help"]
    if name in HELP and not rest:
        rows = "\n".join(f"  {name:<10} {what}" for name, what in SUBCOMMANDS.items())
        print(_USAGE.format(rows=rows), end="")
        return 0
    if name == "--version":
        print(f"horovod-transformer {_version()}")
        return 0
    if name in HELP:
        load_subcommand(rest[0]).make_parser().print_help()
        return 0
    if (
        name in ("-q", "--quiet", "-v", "--verbose") and rest
    ):  # before the subcommand, as other programs have it
        name, rest = rest[0], [name, *rest[1:]]
    return load_subcommand(name).main(rest)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("horovod_transformer")
    except PackageNotFoundError:
        return "(not installed: the version is in pyproject.toml)"


def main() -> int:
    """Run the subcommand named on the command line and return its exit code."""
    return run_command(_dispatch)


if __name__ == "__main__":
    sys.exit(main())
