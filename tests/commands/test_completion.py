"""The scripts of `completion`, in the shells themselves where they are installed."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from horovod_transformer.commands.completion import commands
from horovod_transformer.commands.completion_scripts import SCRIPTS
from horovod_transformer.commands.table import SUBCOMMANDS

# A command line whose last word is begun -> what it may become.
BEGUN = {
    "tr": {"train"},
    "train --training.prec": {"--training.precision"},
    "train --training.precision b": {"bf16"},
    "train --res": {"--resume"},
    "data v": {"verify"},
    "help gen": {"generate"},
    "generate --training": set(),
    "runs --output fol": {"folder"},
}

BASH = """
source ./script
COMP_WORDS=(horovod-transformer "$@") COMP_CWORD=$#
compopt() { :; }
_horovod_transformer
printf '%s\\n' "${COMPREPLY[@]}"
"""
# Stand-ins for zsh's own functions, which want a line editor.
ZSH = """
compdef() { :; }
source ./script
compadd() { shift; print -l -- "$@" }
_files() { [[ $1 == -/ ]] && print -l -- *(/) || print -l -- *(.) }
_describe() { print -l -- ${${(P)@[-1]}%%:*} }
words=(horovod-transformer "$@") CURRENT=$(( $# + 1 )) PREFIX=$@[-1]
_horovod-transformer
"""


def completed(shell: str, folder, line: str) -> set[str]:
    """What a shell offers for the last word of a command line."""
    words = line.split()
    if shell == "fish":
        command = ["fish", "--no-config", "-c", f"source ./script; complete -C 'horovod-transformer {line}'"]
    else:
        command = [
            shell,
            *(["-f"] if shell == "zsh" else []),
            "-c",
            BASH if shell == "bash" else ZSH,
            shell,
            *words,
        ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    offered = {word.partition("\t")[0].rstrip("/") for word in done.stdout.split("\n")}
    return {word for word in offered if word.startswith(words[-1]) and word}


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    found = commands()
    return {shell: write(found) for shell, write in SCRIPTS.items()}


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_shell_completes(shell, scripts, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")
    (tmp_path / "script").write_text(scripts[shell])
    (tmp_path / "folder").mkdir()
    assert {line: completed(shell, tmp_path, line) for line in BEGUN} == BEGUN


def test_all_subcommands_and_keys_are_there(scripts):
    for text in scripts.values():
        assert all(name in text for name in SUBCOMMANDS)
        for word in ("training.max_updates", "distributed.stall_timeout", "max-restarts"):
            assert word in text
