"""What all commands share: config overrides, and how a mistake or a bug ends the process."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from horovod_transformer.config import Config, load_config
from horovod_transformer.errors import LostRankError, UserError
from horovod_transformer.launchers import launched_rank

RANK_0_SPEAKS_FIRST_S = 5.0
LOST_RANK_LEAVES_LAST_S = 2.0

OVERRIDES_HELP = """\
Any key of the config can be overridden by its dotted name:
  --training.learning_rate 1e-4   --model.n_layers 6   --training.max_updates null
configs/config.yaml explains every key.
"""


class CommandParser(argparse.ArgumentParser):
    """A parser whose complaints are one line, like every other mistake's."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print below its usage.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{message}; --help tells more")


def config_parser(prog: str, description: str, examples: str = "") -> argparse.ArgumentParser:
    """Make a parser with `--config` and help that teaches the dotted overrides."""
    parser = CommandParser(
        prog=prog,
        description=description,
        epilog=f"{examples}\n{OVERRIDES_HELP}" if examples else OVERRIDES_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", default="configs/config.yaml", metavar="FILE", help="YAML config (default: %(default)s)"
    )
    return parser


def parse_with_config(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, Config]:
    """Parse a command line that may end in dotted overrides, and load its config.

    Raises:
        UserError: An argument is unknown, or the config does not hold.
    """
    options, overrides = parse_options(parser, arguments)
    return options, load_config(options.config, overrides)


def parse_options(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, dict[str, str]]:
    """Parse a command line that may end in dotted overrides, without reading a config.

    Raises:
        UserError: An argument is neither known nor a dotted override.
    """
    options, rest = parser.parse_known_args(arguments)
    return options, _read_overrides(rest)


def _read_overrides(rest: Sequence[str]) -> dict[str, str]:
    overrides = {}
    words = iter(rest)
    for word in words:
        if not word.startswith("--") or "." not in word.partition("=")[0]:
            raise UserError(f"unknown argument {word}; --help lists what there is")
        key, equals, value = word[2:].partition("=")
        if not equals:
            following = next(words, None)
            if following is None:
                raise UserError(f"--{key} needs a value, as --{key} VALUE")
            value = following
        overrides[key] = value
    return overrides


def run_command(main: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None) -> int:
    """Run a command's `main`; a user's mistake becomes one line on stderr and an exit code.

    With several ranks every one meets the same mistake: rank 0 tells it, all leave.
    """
    try:
        return main(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        if launched_rank() == 0 or error.only_here:
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            # The launcher ends all ranks once one has left: let rank 0 speak first.
            time.sleep(RANK_0_SPEAKS_FIRST_S)
        if isinstance(error, LostRankError):
            # The rank that failed is still on its way out: let the launcher see that one's end first.
            time.sleep(LOST_RANK_LEAVES_LAST_S)
        return error.exit_code
    except BrokenPipeError:
        # The reader went away (`| head`): not our failure. Keep the interpreter's own flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
