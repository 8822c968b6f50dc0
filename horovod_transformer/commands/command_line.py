"""What all commands share: config overrides, and how a mistake or a bug ends the process."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from horovod_transformer.commands.parser import CommandParser
from horovod_transformer.errors import LostRankError, StoppedError, UserError
from horovod_transformer.system.console import (
    USUAL,
    give_up_on_output,
    is_verbose,
    make_streams_take_all,
    narrate,
    set_verbosity,
    tell,
)
from horovod_transformer.system.files import read_at_most
from horovod_transformer.system.launch_environment import launched_rank
from horovod_transformer.system.paths import default_config, path_of, readable

if TYPE_CHECKING:
    from horovod_transformer.config import Config

RANK_0_SPEAKS_FIRST_S = 5.0
LOST_RANK_LEAVES_LAST_S = 2.0
_LARGEST_TEXT = 1 << 28

OVERRIDES_HELP = """\
Any key of the config can be given, too; `horovod-transformer config explain` lists and explains them:
  --training.learning_rate 1e-4   --model.n_layers 6
"""


def config_parser(prog: str, description: str, examples: str = "", usage: str = "") -> CommandParser:
    """Make a parser with `--config` and help that teaches the dotted overrides."""
    epilog = f"{examples}\n{OVERRIDES_HELP}" if examples else OVERRIDES_HELP
    parser = CommandParser(prog, description, epilog, usage, keys=[""])
    parser.add_argument(
        "--config",
        default=default_config(),
        type=path_of("--config"),
        metavar="FILE",
        help="YAML config (default: config.yaml where you are, else configs/config.yaml)",
    )
    return parser


def checkpoint_parser(
    prog: str, description: str, examples: str, config_help: str, keys: Sequence[str]
) -> CommandParser:
    """Make a parser for commands that run a model: `--checkpoint`, `--config`, `--device`, `--seed`."""
    parser = CommandParser(prog, description, examples, keys=keys)
    parser.add_checkpoint()
    parser.add_argument("--config", type=path_of("--config"), metavar="FILE", help=config_help)
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: a GPU, if any)")
    parser.add_argument("--seed", metavar="N", help="the same seed gives the same text")
    return parser


def checkpoint_or_newest(given: str | None) -> str:
    """The checkpoint that `--checkpoint` names; without it `best_model.pt`, or the newest run's with a line.

    Raises:
        UserError: There is no such file, but a newer one, which it names; or no checkpoint at all.
    """
    from horovod_transformer.checkpoint.run_folders import newest_checkpoint

    wanted = Path("checkpoints/best_model.pt") if given is None else Path(given)
    newest = None if os.path.lexists(wanted) else newest_checkpoint(Path())
    if given is None and newest is not None:
        if launched_rank() == 0:
            narrate(f"{wanted} is not there: taking {newest}, the newest checkpoint", sys.stderr)
        return str(newest)
    if newest is not None:
        raise UserError(f"{wanted}: no such checkpoint file; the newest one here is {newest}")
    if given is None and not os.path.lexists(wanted):
        raise UserError(f"{wanted}: no such checkpoint file; `horovod-transformer train` writes one")
    return str(wanted)


def command_line(subcommand: str, config: str, overrides: Mapping[str, str]) -> str:
    """A command to type next, as a shell takes it; a config that is taken anyway is not named."""
    words = ["horovod-transformer", subcommand]
    if config != default_config():
        words += ["--config", config]
    for key, value in overrides.items():
        words += [f"--{key}", value]
    return shlex.join(words)


def check_overrides(overrides: Mapping[str, Any], *allowed: str) -> None:
    """Refuse, before a large file is read, overrides that a trained model cannot follow.

    Args:
        overrides: From `parse_options`.
        allowed: Keys, or the names of whole sections followed by a dot.

    Raises:
        UserError: A key is not among them, or its value is not allowed.
    """
    from horovod_transformer.config import Config

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


def parse_with_config(parser: CommandParser, arguments: Sequence[str]) -> tuple[argparse.Namespace, Config]:
    """Parse a command line that may end in dotted overrides, and load its config.

    Raises:
        UserError: An argument is unknown, or the config does not hold.
    """
    options, overrides = parse_options(parser, arguments)

    from horovod_transformer.config import load_config  # no `--help` should wait for it

    return options, load_config(options.config, overrides)


def parse_options(
    parser: CommandParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, dict[str, str]]:
    """Parse a command line that may end in dotted overrides, without reading a config.

    Raises:
        UserError: An argument is neither known nor a dotted override.
    """
    options, rest = parser.parse_known_args(arguments)
    return options, _read_overrides(rest, parser)


def _read_overrides(rest: Sequence[str], parser: CommandParser) -> dict[str, str]:
    overrides: dict[str, str] = {}
    words = iter(rest)
    for word in words:
        if not word.startswith("--") or "." not in word.partition("=")[0]:
            raise UserError(f"unknown argument {word}; {parser.suggestion(word)}")
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")
        if not equals:
            following = next(words, None)
            if following is None:
                raise UserError(f"--{key} needs a value, as --{key} VALUE")
            value = following
        if key in overrides and _takes_list(key):
            raise UserError(f"--{key} is given twice; a list is one value: --{key} '[first, second]'")
        overrides[key] = value
    return overrides


def _takes_list(key: str) -> bool:
    from horovod_transformer.commands.config_keys import config_keys

    known = config_keys().get(key)
    return known is not None and "list" in known.kind


def read_text(option: str, path: str) -> str:
    """Read a text file as `prepare` reads books: UTF-8 with or without a mark, any line ends.

    Args:
        option: Where the path was given, for messages.
        path: The file; `-` for stdin.

    Raises:
        UserError: It cannot be read, or is not UTF-8.
    """
    try:
        with nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:
            data = read_at_most(file, _LARGEST_TEXT)
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise UserError(f"{option} {path}: is not text in UTF-8") from None
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be read: {error.strerror}") from None


def _require_working_folder() -> None:
    """Paths count from it, and oneMKL, which torch loads, ends the program in words of its own without it."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(
            f"the working folder is not there any more ({error.strerror}); cd into one that is"
        ) from None


def run_command(main: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None) -> int:
    """Run a command's `main`; a user's mistake becomes one line on stderr and an exit code.

    With several ranks every one meets the same mistake: rank 0 tells it, all leave.
    """
    make_streams_take_all()
    try:
        _require_working_folder()
        code = main(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        if launched_rank() == 0 or error.only_here:
            kind = "" if isinstance(error, StoppedError) else "error: "
            text = str(error).replace("\n", "\\n")  # a path may have line ends
            if is_verbose() and kind:
                tell(traceback.format_exc().rstrip(), sys.stderr)
            tell(f"{kind}{text}", sys.stderr)
        else:
            # The launcher ends all ranks once one has left: let rank 0 speak first. Ended by it, this one
            # leaves with the same code: srun passes on the highest, and 143 would look like a rank lost.
            code = error.exit_code
            signal.signal(signal.SIGTERM, lambda *_: os._exit(code))
            time.sleep(RANK_0_SPEAKS_FIRST_S)
        if isinstance(error, LostRankError):
            # The rank that failed is still on its way out: let the launcher see that one's end first.
            time.sleep(LOST_RANK_LEAVES_LAST_S)
        return error.exit_code
    except BrokenPipeError:
        # The reader went away (`| head`): not our failure. Keep the interpreter's own flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if isinstance(error, PermissionError) and isinstance(error.filename, str | bytes):
            # Files that belong to others can lie in any folder that is read.
            place = readable(os.fsdecode(error.filename))
            what = f"{place}: {error.strerror}; ask whom it belongs to, or name another place"
        elif give_up_on_output():
            what = f"standard output takes no more: {error.strerror}; what was printed is lost"
        else:
            raise
        tell(f"error: {what}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        # There was nothing to save. A shell ends its loop only if the signal ends us.
        with suppress(OSError):
            sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
        return 130
    finally:
        set_verbosity(USUAL)
