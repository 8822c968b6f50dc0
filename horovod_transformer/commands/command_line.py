"""What all commands share: config overrides, and how a mistake or a bug ends the process."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import signal
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel

from horovod_transformer.config import Config, load_config
from horovod_transformer.errors import LostRankError, StoppedError, UserError
from horovod_transformer.system.console import give_up_on_output, make_streams_take_all, tell
from horovod_transformer.system.files import read_at_most
from horovod_transformer.system.launch_environment import launched_rank
from horovod_transformer.system.paths import path_of, readable

RANK_0_SPEAKS_FIRST_S = 5.0
LOST_RANK_LEAVES_LAST_S = 2.0
_LARGEST_TEXT = 1 << 28

OVERRIDES_HELP = """\
Any key of the config can be overridden by its dotted name:
  --training.learning_rate 1e-4   --model.n_layers 6   --training.max_updates null

The keys, what they take and their defaults; configs/config.yaml explains each:
"""


def config_keys() -> dict[str, tuple[str, str]]:
    """Return each dotted key of the config with what it takes and its default, as words for `--help`."""
    keys = {}
    for section, field in Config.model_fields.items():
        assert isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        for key, value in field.annotation.model_fields.items():
            default = value.default if isinstance(value.default, str) else json.dumps(value.default)
            keys[f"{section}.{key}"] = (_type_words(value.annotation), default)
    return keys


def _type_words(annotation: Any) -> str:
    """`int`, `auto|fp32|bf16`, `text|list|null`: what YAML may hold for this annotation."""
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        return _type_words(parts[0])
    if kind is Literal:
        return "|".join(map(str, parts))
    if kind in (Union, types.UnionType):
        return "|".join(map(_type_words, parts))
    names = {int: "int", float: "number", bool: "true|false", str: "text", list: "list", type(None): "null"}
    return names[kind or annotation]


def describe_config_keys() -> str:
    """Return a line for each key, a paragraph for each section."""
    keys = config_keys()
    width = max(map(len, keys))
    kinds = max(len(kind) for kind, _ in keys.values())
    lines: list[str] = []
    section = None
    for key, (kind, default) in keys.items():
        if section not in (None, key.partition(".")[0]):
            lines.append("")
        section = key.partition(".")[0]
        lines.append(f"  --{key:<{width}}  {kind:<{kinds}}  {default}")
    return "\n".join(lines)


class CommandParser(argparse.ArgumentParser):
    """A parser whose complaints are one line, like every other mistake's; options are not abbreviated.

    Args:
        prog: The command's name.
        description: Above the options in its help, laid out as it is.
        epilog: Below them, likewise.
        usage: Replaces the usage that argparse makes up.
    """

    def __init__(self, prog: str, description: str, epilog: str = "", usage: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            usage=usage,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print below its usage.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{message}; --help tells more")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # Python 3.11 drops a lone `--` even where it is an option's value, as in `--prompt=--`.
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:
            return self._get_value(action, "--")
        return super()._get_values(action, arg_strings)

    def add_checkpoint(self) -> None:
        """Add `--checkpoint`, the file to read."""
        self.add_argument(
            "--checkpoint",
            default="checkpoints/best_model.pt",
            type=path_of("--checkpoint"),
            metavar="FILE",
            help="default: %(default)s",
        )


def config_parser(prog: str, description: str, examples: str = "") -> CommandParser:
    """Make a parser with `--config` and help that teaches the dotted overrides."""
    overrides = OVERRIDES_HELP + describe_config_keys()
    parser = CommandParser(prog, description, f"{examples}\n{overrides}" if examples else overrides)
    parser.add_argument(
        "--config",
        default="configs/config.yaml",
        type=path_of("--config"),
        metavar="FILE",
        help="YAML config (default: %(default)s)",
    )
    return parser


def checkpoint_parser(prog: str, description: str, examples: str, config_help: str) -> CommandParser:
    """Make a parser for commands that run a model: `--checkpoint`, `--config`, `--device`, `--seed`."""
    parser = CommandParser(prog, description, examples)
    parser.add_checkpoint()
    parser.add_argument("--config", type=path_of("--config"), metavar="FILE", help=config_help)
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
    return options, _read_overrides(rest, parser)


def _read_overrides(rest: Sequence[str], parser: argparse.ArgumentParser) -> dict[str, str]:
    overrides: dict[str, str] = {}
    words = iter(rest)
    for word in words:
        if not word.startswith("--") or "." not in word.partition("=")[0]:
            raise UserError(f"unknown argument {word}; {_suggestion(word, parser)}")
        key, equals, value = word[2:].partition("=")
        if not equals:
            following = next(words, None)
            if following is None:
                raise UserError(f"--{key} needs a value, as --{key} VALUE")
            value = following
        if key in overrides and "list" in config_keys().get(key, ("", ""))[0]:
            raise UserError(f"--{key} is given twice; a list is one value: --{key} '[first, second]'")
        overrides[key] = value
    return overrides


def _suggestion(word: str, parser: argparse.ArgumentParser) -> str:
    """Name the options and config keys that may have been meant: `--learning-rate` wants its section."""
    places: dict[str, list[str]] = {}
    for option in [*re.findall(r"--(\w+)", parser.format_usage()), *config_keys()]:
        places.setdefault(option.rpartition(".")[2], []).append(f"--{option}")
    name = word.partition("=")[0].lstrip("-").replace("-", "_")
    close = [name] if name in places else difflib.get_close_matches(name, places, n=1)
    if not word.startswith("-") or not close:
        return "--help lists what there is"
    return f"did you mean {' or '.join(places[close[0]])}?"


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
