"""`horovod-transformer completion`: a script that completes this program's command lines in a shell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from horovod_transformer.commands.parser import CommandParser
from horovod_transformer.commands.table import SUBCOMMANDS, load_subcommand

if TYPE_CHECKING:
    from horovod_transformer.commands.completion_scripts import Command

DESCRIPTION = """\
Print a script that completes subcommands, options, keys of the config, their values, and files."""

EXAMPLES = """\
examples:
  echo 'eval "$(%(prog)s bash)"' >> ~/.bashrc
  echo 'eval "$(%(prog)s zsh)"' >> ~/.zshrc    # below the line with compinit
  %(prog)s fish > ~/.config/fish/completions/horovod-transformer.fish
"""


def make_parser() -> CommandParser:
    """The arguments."""
    parser = CommandParser("horovod-transformer completion", DESCRIPTION, EXAMPLES, "{bash,zsh,fish}")
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that is to run it")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Print the script."""
    shell = make_parser().parse_args(arguments).shell

    from horovod_transformer.commands.completion_scripts import SCRIPTS

    print(SCRIPTS[shell](commands()), end="")
    return 0


def commands() -> list[Command]:
    """Every subcommand, as its own parser describes it."""
    from horovod_transformer.commands.completion_scripts import Command, command_of

    found = [
        command_of(name, what, load_subcommand(name).make_parser()) for name, what in SUBCOMMANDS.items()
    ]
    return [*found, Command("help", "what a subcommand does, and its options", words=tuple(SUBCOMMANDS))]
