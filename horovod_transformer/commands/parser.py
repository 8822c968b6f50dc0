"""The parser of a subcommand: argparse with one-line complaints, short helps, options by several names."""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from horovod_transformer.errors import UserError, no_such
from horovod_transformer.system.console import QUIET, VERBOSE, set_verbosity
from horovod_transformer.system.paths import path_of

WIDEST_HELP = 110


class _Help(argparse.RawDescriptionHelpFormatter):
    """Lays text out as it is, and gives the options more room than argparse would."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns - 2, WIDEST_HELP)
        super().__init__(prog, width=width, max_help_position=30)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        # As Python 3.13 does it, which names the value once: `-np, --processes N`.
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class _Verbosity(argparse.Action):
    """Sets how much is said, at once."""

    def __call__(self, *_: Any) -> None:
        set_verbosity(self.const)


class CommandParser(argparse.ArgumentParser):
    """A parser whose complaints are one line, like every other mistake's; options are not abbreviated.

    Hyphens and underscores in options mean the same: `--max-restarts`, `--max_restarts`.

    Args:
        prog: The command's name.
        description: Above the options in its help, laid out as it is.
        epilog: Below them, likewise.
        usage: What follows the name in the usage, if more than options does.
        keys: Which keys of the config the command takes as options: their names, or beginnings that end in
            a dot; an empty one stands for all.

    Attributes:
        keys: As above.
    """

    def __init__(
        self, prog: str, description: str, epilog: str = "", usage: str = "", keys: Sequence[str] = ()
    ) -> None:
        self.keys = tuple(keys)
        words = [
            prog,
            usage,
            "[options]" if "[options]" not in usage else "",
            "[--KEY VALUE ...]" if keys else "",
        ]
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            usage=" ".join(filter(None, words)),
            formatter_class=_Help,
            allow_abbrev=False,
            add_help=False,
        )
        common = self.add_argument_group("with every subcommand")
        common.add_argument("-h", "--help", action="help", help="show this")
        quiet, verbose = (
            "results, warnings and errors only",
            "what else goes to the log, and where a mistake arose",
        )
        common.add_argument("-q", "--quiet", action=_Verbosity, nargs=0, const=QUIET, help=quiet)
        common.add_argument("-v", "--verbose", action=_Verbosity, nargs=0, const=VERBOSE, help=verbose)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print below its usage.

        Raises:
            UserError: Always.
        """
        raise UserError(message if message.endswith("?") else f"{message}; --help tells more")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse a command line that holds no keys of the config.

        Raises:
            UserError: It holds something that is not known.
        """
        options, rest = self.parse_known_args(args, namespace)
        if rest:
            raise UserError(f"unknown argument {rest[0]}; {self.suggestion(rest[0])}")
        return options

    def suggestion(self, word: str) -> str:
        """Name the options and config keys that may have been meant: `--learning-rate` wants its section."""
        places: dict[str, list[str]] = {}
        for option in [*self.long_options(), *(f"--{key}" for key in self.config_keys())]:
            name = re.sub(r"^--(\w+\.)?", "", option).replace("-", "_")
            places.setdefault(name, []).append(option)
        name = word.partition("=")[0].lstrip("-").replace("-", "_")
        close = [name] if name in places else difflib.get_close_matches(name, places, n=1)
        if not word.startswith("-") or not close:
            return "--help lists what there is"
        return f"did you mean {' or '.join(places[close[0]])}?"

    def actions(self) -> list[argparse.Action]:
        """What it takes, without old names and keys of the config."""
        return list(self._actions)

    def long_options(self) -> list[str]:
        """The options by their names in the help, without old ones."""
        return [option for action in self._actions for option in action.option_strings if option[:2] == "--"]

    def config_keys(self) -> list[str]:
        """The dotted keys of the config that this command takes."""
        from horovod_transformer.commands.config_keys import config_keys  # no `--help` should wait for it

        return [key for key in config_keys() if key.startswith(self.keys)] if self.keys else []

    def add_old_names(self, action: argparse.Action, *names: str) -> None:
        """Go on taking an option by names that the help does not list."""
        for name in names:
            self._option_string_actions[name] = action
        self._take_both_spellings(action, names)

    def add_processes(self, text: str, read: Callable[[str], int] = int, required: bool = False) -> None:
        """Add `-np`, how many processes, under its one name and the old ones."""
        text = f"{text}; also --np, --workers"
        names = ("-np", "--processes")
        self.add_old_names(
            self.add_argument(*names, type=read, required=required, metavar="N", help=text),
            "--np",
            "--workers",
        )

    def add_output(
        self, metavar: str, text: str, *old: str, dest: str = "output", required: bool = False
    ) -> None:
        """Add `--output`, where to write, under its one name and those that it had before."""
        if old:
            text = f"{text}; also {', '.join(old)}"
        action = self.add_argument(
            "--output", dest=dest, type=path_of("--output"), required=required, metavar=metavar, help=text
        )
        self.add_old_names(action, *old)

    def add_checkpoint(self) -> None:
        """Add `--checkpoint`, the file to read."""
        self.add_argument(
            "--checkpoint",
            type=path_of("--checkpoint"),
            metavar="FILE",
            help="default: checkpoints/best_model.pt, else the newest one",
        )

    def _add_action(self, action: Any) -> Any:
        added = super()._add_action(action)
        self._take_both_spellings(action, action.option_strings)
        return added

    def _take_both_spellings(self, action: argparse.Action, names: Sequence[str]) -> None:
        for name in names:
            for old, new in (("-", "_"), ("_", "-")):
                self._option_string_actions[
                    f"--{name[2:].replace(old, new)}" if name[:2] == "--" else name
                ] = action

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(action, f"{value}: {no_such('choice', str(value), known)}")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # Python 3.11 drops a lone `--` even where it is an option's value, as in `--prompt=--`.
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:
            return self._get_value(action, "--")
        return super()._get_values(action, arg_strings)
