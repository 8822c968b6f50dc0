"""The table of subcommands: `horovod-transformer NAME ...`, or `python -m horovod_transformer NAME ...`."""

from __future__ import annotations

import importlib
import keyword
import sys
from collections.abc import Sequence

from horovod_transformer.commands.command_line import run_command
from horovod_transformer.errors import UserError

# Subcommand -> what it does; its code is the module of that name in horovod_transformer.commands.
SUBCOMMANDS = {
    "doctor": "what this machine has and lacks, and the command that fixes it",
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
}


def _usage() -> str:
    rows = "\n".join(f"  {name:<10} {what}" for name, what in SUBCOMMANDS.items())
    program = "horovod-transformer SUBCOMMAND"
    return f"usage: {program} ...\n\n{rows}\n\n{program} --help tells more."


def _dispatch(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    name, *rest = arguments
    if name not in SUBCOMMANDS:
        raise UserError(f"no such subcommand: {name}; there are {', '.join(SUBCOMMANDS)}")
    # They load torch and datasets: import only the one that was asked for.
    # `import` is Python's own word: its module has an underscore more.
    module = f"{name}_" if keyword.iskeyword(name) else name
    return importlib.import_module(f"horovod_transformer.commands.{module}").main(rest)


def main() -> int:
    """Run the subcommand named on the command line and return its exit code."""
    return run_command(_dispatch)


if __name__ == "__main__":
    sys.exit(main())
