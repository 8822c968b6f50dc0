"""Scripts for bash, zsh and fish that complete command lines, written from the subcommands' parsers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from horovod_transformer.commands.config_keys import config_keys, key_comments
from horovod_transformer.commands.parser import CommandParser

PROGRAM = "horovod-transformer"
_PATH_KEYS = {
    "data.source": "file",
    "data.tokenizer": "file",
    "data.data_dir": "folder",
    "paths.output_dir": "folder",
    "paths.checkpoint_dir": "folder",
    "paths.log_dir": "folder",
    "paths.tensorboard_dir": "folder",
}


@dataclass(frozen=True)
class Option:
    """An option of a subcommand.

    Attributes:
        names: `-np`, `--processes`.
        help: What it does.
        takes: What its value is: `nothing`, a `file`, a `folder`, one of some `words`, or `text`.
        words: Those words.
    """

    names: tuple[str, ...]
    help: str
    takes: str
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        name: Of the subcommand.
        help: What it does.
        options: Its options, keys of the config among them.
        words: What may stand in place of an option, if that is one of some words; else files may.
    """

    name: str
    help: str
    options: tuple[Option, ...] = ()
    words: tuple[str, ...] = ()


def command_of(name: str, what: str, parser: CommandParser) -> Command:
    """Read from its parser what a subcommand takes."""
    comments, keys = key_comments(), config_keys()
    options: list[Option] = []
    words: tuple[str, ...] = ()
    for action in parser.actions():
        if action.option_strings:
            options.append(_option_of(action))
        elif action.choices:
            words = tuple(map(str, action.choices))
    for key in parser.config_keys():
        choices = keys[key].choices
        takes = "words" if choices else _PATH_KEYS.get(key, "text")
        options.append(Option((f"--{key}",), comments.get(key, ""), takes, choices))
    return Command(name, what, tuple(options), words)


def _option_of(action: argparse.Action) -> Option:
    words = tuple(map(str, action.choices or ()))
    metavar = str(action.metavar)
    takes = {"FILE": "file", "PATH": "file", "PATH|auto": "file", "DIR": "folder"}.get(metavar, "text")
    takes = "nothing" if action.nargs == 0 else "words" if words else takes
    text = (action.help or "") % {**vars(action), "prog": PROGRAM}
    return Option(tuple(action.option_strings), text, takes, words)


def bash(commands: Sequence[Command]) -> str:
    """For bash, which completes files by itself where there is nothing else."""
    lines = [
        f'# Completion of {PROGRAM}, for bash; in ~/.bashrc: eval "$({PROGRAM} completion bash)"',
        "_horovod_transformer() {",
        "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} options= words=",
        "  COMPREPLY=()",
        '  if [ "$COMP_CWORD" -eq 1 ]; then',
        f"    words='{' '.join(command.name for command in commands)}' options='--help --version'",
        "  else",
        "    case ${COMP_WORDS[1]} in",
    ]
    for command in commands:
        names = " ".join(name for option in command.options for name in option.names)
        lines += [
            f"    {command.name})",
            f"      words='{' '.join(command.words)}' options='{names}'",
            "      case $before in",
        ]
        for (takes, words), those in _by_value(command).items():
            action = {
                "words": f"words='{' '.join(words)}' options=",
                "folder": 'compopt -o filenames; COMPREPLY=($(compgen -d -- "$word")); return',
            }.get(takes, "return")
            lines.append(f"      {those}) {action} ;;")
        lines.append("      esac ;;")
    lines += [
        "    esac",
        "  fi",
        "  case $word in -*) words=$options ;; esac",
        '  COMPREPLY=($(compgen -W "$words" -- "$word"))',
        "}",
        f"complete -o default -F _horovod_transformer {PROGRAM}",
    ]
    return "\n".join(lines) + "\n"


def zsh(commands: Sequence[Command]) -> str:
    """For zsh, with what everything does beside it."""
    lines = [
        f"#compdef {PROGRAM}",
        f'# Completes {PROGRAM}, for zsh; in ~/.zshrc, after compinit: eval "$({PROGRAM} completion zsh)"',
        f"_{PROGRAM}() {{",
        "  local -a commands options",
        "  if (( CURRENT == 2 )); then",
        "    commands=(",
        *(f"      {_quoted(f'{command.name}:{command.help}')}" for command in commands),
        "    )",
        "    _describe subcommand commands",
        "    return",
        "  fi",
        "  case $words[2] in",
    ]
    for command in commands:
        lines += [f"  {command.name})", "    case $words[CURRENT-1] in"]
        for (takes, words), those in _by_value(command).items():
            values = {"words": f"compadd -- {' '.join(words)}; ", "folder": "_files -/; ", "file": "_files; "}
            lines.append(f"    {those}) {values.get(takes, '')}return ;;")
        named = [f"{name}:{option.help}" for option in command.options for name in option.names]
        lines += ["    esac", "    options=(", *(f"      {_quoted(text)}" for text in named), "    )"]
        others = f"compadd -- {' '.join(command.words)}" if command.words else "_files"
        lines += [f"    if [[ $PREFIX == -* ]]; then _describe -o option options; else {others}; fi ;;"]
    lines += [
        "  esac",
        "}",
        # From a folder of $fpath the whole file is the function; else it only defines it.
        f"if [[ $funcstack[1] == _{PROGRAM} ]]; then",
        f'  _{PROGRAM} "$@"',
        "else",
        f"  compdef _{PROGRAM} {PROGRAM}",
        "fi",
    ]
    return "\n".join(lines) + "\n"


def _by_value(command: Command) -> dict[tuple[str, tuple[str, ...]], str]:
    """What is to be completed after options, as `case` has it: the options that are followed by the same."""
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for option in command.options:
        if option.takes != "nothing":
            found.setdefault((option.takes, option.words), []).extend(option.names)
    return {value: "|".join(names) for value, names in found.items()}


def fish(commands: Sequence[Command]) -> str:
    """For fish, with what everything does beside it."""
    program = f"complete -c {PROGRAM}"
    lines = [
        f"# Completion of {PROGRAM}, for fish; save it as ~/.config/fish/completions/{PROGRAM}.fish",
        f"{program} -n __fish_use_subcommand -f",
        f"{program} -n __fish_use_subcommand -l version -d 'the version'",
    ]
    for command in commands:
        lines.append(f"{program} -n __fish_use_subcommand -a {command.name} -d {_fish_quoted(command.help)}")
        here = f"{program} -n '__fish_seen_subcommand_from {command.name}'"
        if command.words:
            lines.append(f"{here} -f -a '{' '.join(command.words)}'")
        for option in command.options:
            kinds = {2: "-l", 1: "-o"}
            dashes = [(len(name) - len(name.lstrip("-")), name.lstrip("-")) for name in option.names]
            names = " ".join(
                f"{'-s' if count == 1 and len(name) == 1 else kinds[count]} {name}" for count, name in dashes
            )
            takes = {
                "nothing": "",
                "words": f" -x -a '{' '.join(option.words)}'",
                "folder": " -x -a '(__fish_complete_directories)'",
                "file": " -r -F",
                "text": " -x",
            }[option.takes]
            lines.append(f"{here} {names}{takes} -d {_fish_quoted(option.help)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS: dict[str, Callable[[Sequence[Command]], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
