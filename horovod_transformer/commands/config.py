"""`horovod-transformer config`: the config in effect, and what its keys mean."""

from __future__ import annotations

from collections.abc import Sequence

from horovod_transformer.commands.command_line import config_parser, parse_options
from horovod_transformer.commands.parser import CommandParser
from horovod_transformer.errors import UserError

DESCRIPTION = """\
Look at the config.

  show               print all of it, as YAML, with where each value comes from
  explain [KEY ...]  what keys mean, what they take, their defaults; a section's name: all of its keys;
                     alone: the names of all keys"""

EXAMPLES = """\
examples:
  %(prog)s show --config configs/quickstart.yaml --training.seed 7
  %(prog)s explain training.learning_rate
"""


def make_parser() -> CommandParser:
    """The arguments, without the config's keys."""
    parser = config_parser("horovod-transformer config", DESCRIPTION, EXAMPLES, "{show,explain} [KEY ...]")
    parser.add_argument("what", choices=("show", "explain"), help="what to do")
    parser.add_argument("names", nargs="*", metavar="KEY", help="explain: keys or sections")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Show the config, or explain keys."""
    options, overrides = parse_options(make_parser(), _without_hyphens(arguments))

    # Imported late: no `--help` should wait for it.
    from horovod_transformer.commands.config_text import explained, overview, shown

    if options.what == "show":
        if options.names:
            raise UserError(f"{options.names[0]}: `config show` shows all keys; `config explain` takes names")
        print(shown(options.config, overrides))
    else:
        print("\n\n".join(map(explained, options.names)) if options.names else overview())
    return 0


def _without_hyphens(arguments: Sequence[str]) -> list[str]:
    """`explain --training.seed`, as it stands on a command line, means the key as well."""
    if "explain" not in arguments or {"-h", "--help"} & set(arguments):
        return list(arguments)

    from horovod_transformer.commands.config_keys import config_keys

    keys = config_keys()
    return [word.lstrip("-") if word.lstrip("-").replace("-", "_") in keys else word for word in arguments]
