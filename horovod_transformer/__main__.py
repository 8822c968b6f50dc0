"""The table of subcommands: `horovod-transformer NAME ...`, or `python -m horovod_transformer NAME ...`."""

from __future__ import annotations

import importlib
import keyword
import sys
from collections.abc import Sequence
from types import ModuleType

from horovod_transformer.commands.command_line import run_command
from horovod_transformer.errors import UserError, no_such

# Subcommand -> what it does; its code is the module of that name in horovod_transformer.commands, with
# `make_parser() -> CommandParser` and `main(arguments) -> exit code`.
SUBCOMMANDS = {
    "doctor": "what this machine has and lacks, and the command that fixes it",
    "config": "the config in effect, and what its keys mean",
    "new": "a folder for your books, with a config that fits them, this machine and your time",
    "plan": "which model to train on your books, in your time, on this machine or on others",
    "prepare": "turn books into fixed blocks of tokens on disk",
    "data": "check prepared data, look into it, count what is there",
    "train": "train a model on prepared blocks, alone or on several processes",
    "runs": "the runs here: how far each has come, what it takes; delete some",
    "launch": "start a command on several processes of this machine, again if they fail",
    "generate": "write text from a checkpoint",
    "evaluate": "measure a checkpoint on held-out books: how it predicts, how it writes",
    "report": "a page of a training run, or of several side by side",
    "export": "a checkpoint as a Hugging Face folder, for transformers, vLLM and others",
    "import": "a Hugging Face folder, GPT-2 or GPT-NeoX, as a checkpoint",
    "demo": "the whole path in minutes on a laptop: prepare, train, measure, write",
    "completion": "a script that completes all of this in bash, zsh or fish",
}
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


def load_subcommand(name: str) -> ModuleType:
    """Import a subcommand's module; none of them imports torch before its `main` needs it.

    Raises:
        UserError: There is no such subcommand.
    """
    if name not in SUBCOMMANDS:
        raise UserError(f"{name}: {no_such('subcommand', name, [*SUBCOMMANDS, 'help'])}")
    # `import` is Python's own word: its module has an underscore more.
    module = f"{name}_" if keyword.iskeyword(name) else name
    return importlib.import_module(f"horovod_transformer.commands.{module}")


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
