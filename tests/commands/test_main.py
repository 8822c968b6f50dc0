"""The program as a whole: its helps, the names it takes, and what it does not load for them."""

from __future__ import annotations

import pytest

from horovod_transformer.__main__ import _dispatch
from horovod_transformer.commands.command_line import run_command
from horovod_transformer.commands.parser import CommandParser
from horovod_transformer.commands.table import SUBCOMMANDS, load_subcommand

A_SCREEN = 45  # lines


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_a_help_fits_a_screen_and_has_two_examples(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    parser = load_subcommand(name).make_parser()
    assert isinstance(parser, CommandParser)
    lines = parser.format_help().splitlines()
    assert len(lines) <= A_SCREEN and max(map(len, lines)) <= 110
    examples = lines[lines.index("examples:") + 1 :]
    program = "horovod-transformer"
    assert sum(line.startswith("  ") and program in line for line in examples) >= 2, examples
    assert lines[0].startswith(f"usage: {program} {name} ")
    for option in ("--quiet", "--verbose", "--help"):
        assert any(option in line for line in lines)


def test_help_comes_in_several_ways(capsys):
    for words in ([], ["help"], ["--help"], ["-h"]):
        assert run_command(_dispatch, words) == 0
        told = capsys.readouterr().out
        assert all(f"\n  {name} " in told for name in SUBCOMMANDS) and told.count("\n") <= A_SCREEN
    assert run_command(_dispatch, ["help", "train"]) == 0
    told = capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_command(_dispatch, ["train", "--help"])
    assert told == capsys.readouterr().out and told.startswith("usage: horovod-transformer train ")


@pytest.mark.parametrize("words", [["trian"], ["help", "trian"]])
def test_a_misspelt_subcommand_gets_a_suggestion(words, capsys):
    assert run_command(_dispatch, words) == 2
    assert capsys.readouterr().err == "error: trian: no such subcommand; did you mean train?\n"


def test_the_version(capsys):
    assert run_command(_dispatch, ["--version"]) == 0
    assert capsys.readouterr().out.startswith("horovod-transformer ")


def test_quiet_may_stand_before_the_subcommand(tmp_path, capsys):
    assert run_command(_dispatch, ["-q", "runs", "--config", "configs/nowhere.yaml"]) == 2
    assert "nowhere.yaml: no such config file" in capsys.readouterr().err


def test_no_help_loads_what_takes_seconds(run_python):
    """One process for all: what any of them loads would be there in the end.

    torch takes seconds, pydantic half of the 0.3 s that a help may take (benchmarks/helps.py).
    """
    program = """
import sys
from horovod_transformer.__main__ import _dispatch
from horovod_transformer.commands.table import SUBCOMMANDS
for name in SUBCOMMANDS:
    _dispatch(["help", name])
slow = {"torch", "pandas", "datasets", "pyarrow", "numpy", "matplotlib", "horovod", "pydantic"}
loaded = slow & set(sys.modules)
sys.exit(f"loaded: {loaded}" if loaded else 0)
"""
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
