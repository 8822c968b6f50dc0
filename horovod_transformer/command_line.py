"""What all commands share: config overrides, and how a mistake or a bug ends the process."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from horovod_transformer.config import Config, load_config
from horovod_transformer.errors import UserError

RANK_0_SPEAKS_FIRST_S = 5.0

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


def checkpoint_parser(
    prog: str, description: str, examples: str, config_help: str
) -> argparse.ArgumentParser:
    """Make a parser for commands that read a checkpoint: `--checkpoint`, `--config`, `--device`, `--seed`."""
    parser = CommandParser(
        prog=prog,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--checkpoint", default="checkpoints/best_model.pt", metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument("--config", metavar="FILE", help=config_help)
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda or cuda:N (default: a GPU if there is one)"
    )
    parser.add_argument("--seed", metavar="N", help="the same seed gives the same text")
    return parser


def check_overrides(overrides: Mapping[str, Any], *allowed: str) -> None:
    """Refuse, before a large file is read, overrides that a trained model cannot follow.

    Args:
        overrides: From `parse_options`.
        allowed: Keys, or the names of whole sections followed by a dot.

    Raises:
        UserError: A key is not among them, or its value is not allowed.
    """
    for key in overrides:
        if key not in allowed and f"{key.partition('.')[0]}." not in allowed:
            names = " and ".join(f"--{name}*" if name.endswith(".") else f"--{name}" for name in allowed)
            raise UserError(f"--{key}: a checkpoint's model is as it was trained; only {names} can change")
    Config().with_overrides(overrides, "command line")


def whole_number(name: str, text: str, least: int = 0, most: int = 2**63 - 1) -> int:
    """Read a number that a user gave as text.

    Raises:
        UserError: It is none, or out of its range.
    """
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise UserError(f"{name} {text}: should be a whole number from {least} to {most}")
    return number


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
    """Run a command's `main`; a user's mistake becomes one line on stderr and exit code 2.

    Under Horovod every rank meets the same mistake: rank 0 tells it, all leave.
    """
    try:
        return main(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        if os.environ.get("HOROVOD_RANK", "0") == "0" or error.only_here:
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            # The launcher ends all ranks once one has left: let rank 0 speak first.
            time.sleep(RANK_0_SPEAKS_FIRST_S)
        return 2
    except BrokenPipeError:
        # The reader went away (`| head`): not our failure. Keep the interpreter's own flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
