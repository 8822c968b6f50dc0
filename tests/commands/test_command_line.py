"""Overrides on the command line, and how a mistake or a bug ends a command."""

from __future__ import annotations

import errno
import os

import pytest

from horovod_transformer.__main__ import _dispatch
from horovod_transformer.commands import command_line
from horovod_transformer.commands.command_line import (
    checkpoint_or_newest,
    config_parser,
    parse_options,
    parse_with_config,
    run_command,
)
from horovod_transformer.commands.generate import main as generate
from horovod_transformer.commands.parser import CommandParser
from horovod_transformer.commands.table import load_subcommand
from horovod_transformer.config import Config
from horovod_transformer.errors import UserError
from horovod_transformer.system.paths import path_of


def parse(root, *arguments):
    parser = config_parser("test", "A test.")
    parser.add_argument("--resume")
    return parse_with_config(parser, ["--config", str(root / "configs" / "quickstart.yaml"), *arguments])


def test_overrides_come_with_and_without_equals(root):
    options, config = parse(root, "--training.seed", "5", "--resume", "auto", "--model.n_layers=3")
    assert (config.training.seed, config.model.n_layers, options.resume) == (5, 3, "auto")
    assert config.model.vocab_size == 4096  # the file's
    assert parse(root, "--training.max_updates", "null")[1].training.max_updates is None
    assert parse(root, "--data.data_dir=a=b")[1].data.data_dir == "a=b"
    assert parse(root, "--training.learning_rate", "1e-4")[1].training.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--seed", "5"], "unknown argument --seed"),
        (["stray"], "unknown argument stray"),
        (["--training.seed"], "--training.seed needs a value"),
        (["--training.sed", "5"], "training.sed: no such key; did you mean seed"),
        (["--res", "auto"], "unknown argument --res"),
    ],
)
def test_mistakes_are_told(root, arguments, told):
    with pytest.raises(UserError, match=told):
        parse(root, *arguments)


def test_a_working_folder_that_was_removed(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run_command(_dispatch, ["train"]) == 2
    assert capsys.readouterr().err == (
        "error: the working folder is not there any more (No such file or directory); cd into one that is\n"
    )


def test_a_setting_by_its_option_and_by_its_key_is_given_twice(root):
    done = run_command(generate, ["--top_k", "5", "--generation.top_k", "6"])
    assert done == 2


# Each option that names a file or a folder; what it says of one in no user's home.
PATHS = [
    ("train", "--config"),
    ("train", "--resume"),
    ("train", "--init_from"),
    ("train", "--output"),
    ("doctor", "--output"),
    ("runs", "--output"),
    ("prepare", "--output"),
    ("generate", "--checkpoint"),
    ("generate", "--config"),
    ("generate", "--prompt_file"),
    ("generate", "--prompts"),
    ("generate", "--output"),
    ("evaluate", "--checkpoint"),
    ("evaluate", "--text"),
    ("evaluate", "--output"),
    ("export", "--checkpoint"),
    ("export", "--output"),
    ("import", "--from"),
    ("import", "--output"),
    ("report", "--output"),
    ("report", "RUN"),
    ("data verify", "DIR"),
]


@pytest.mark.parametrize(("command", "option"), PATHS)
def test_home_is_meant_by_every_path(command, option, capsys):
    given = [f"{option}=~no-such-user/x"] if option.startswith("-") else ["~no-such-user/x"]
    assert run_command(_dispatch, [*command.split(), *given]) == 2
    assert capsys.readouterr().err == (
        f"error: ~no-such-user/x: there is no such user, so no such home folder ({option})\n"
    )


def test_home_is_expanded_in_options(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    read = path_of("--resume")
    assert [read(text) for text in ("~/a", "auto", "-", "", "./a/")] == [
        f"{tmp_path}/a", "auto", "-", "", "./a/"
    ]  # fmt: skip


def fail(arguments):
    raise UserError("x: is wrong; do y")


@pytest.mark.parametrize(("rank", "told"), [(0, True), (1, False)])
def test_a_mistake_is_one_line_from_one_rank(monkeypatch, capsys, rank, told):
    monkeypatch.setattr(command_line, "RANK_0_SPEAKS_FIRST_S", 0.01)
    monkeypatch.setattr("horovod_transformer.commands.command_line.launched_rank", lambda: rank)
    assert run_command(fail, []) == 2
    assert capsys.readouterr() == ("", "error: x: is wrong; do y\n" if told else "")


def test_a_mistake_of_one_rank_is_told_by_it(monkeypatch, capsys):
    def fail_alone(arguments):
        error = UserError("row 3 is bad")
        error.only_here = True
        raise error

    monkeypatch.setattr("horovod_transformer.commands.command_line.launched_rank", lambda: 1)
    assert run_command(fail_alone, []) == 2
    assert capsys.readouterr().err == "error: row 3 is bad\n"


def test_two_hyphens_may_be_a_value():
    parser = CommandParser("program", "")
    parser.add_argument("--prompt")
    parser.add_argument("--stop", action="append")
    parser.add_argument("rest", nargs="*")
    options = parser.parse_args(["--prompt=--", "--stop=--", "--stop=x", "--", "y"])
    assert (options.prompt, options.stop, options.rest) == ("--", ["--", "x"], ["y"])


def test_a_path_with_line_ends_is_told_on_one_line(capsys):
    def fail_at_a_path(arguments):
        raise UserError("a\nb: no such file")

    assert run_command(fail_at_a_path, []) == 2
    assert capsys.readouterr().err == "error: a\\nb: no such file\n"


@pytest.mark.parametrize("name", ["/else/where.csv", b"/else/where.csv"])
def test_files_of_others_are_no_bug(name, capsys):
    def refused(arguments):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)

    assert run_command(refused, []) == 2
    captured = capsys.readouterr()
    assert captured.err == (
        "error: /else/where.csv: Permission denied; ask whom it belongs to, or name another place\n"
    )
    assert captured.out == ""


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda arguments: 1 // 0, [])


def test_arguments_and_code_are_passed_through():
    assert run_command(lambda arguments: len(arguments), ["a", "b", "c"]) == 3


def test_a_command_is_one_line_and_code_2_for_the_shell(run_python):
    done = run_python("-m", "src.train", "--config", "nowhere.yaml")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: nowhere.yaml: no such config file; configs/config.yaml is the default one\n"


def test_help_teaches_the_overrides(run_python):
    done = run_python("-m", "src.train", "--help")
    assert done.returncode == 0
    for word in ("--resume", "--run_name", "--output_dir", "--training.learning_rate 1e-4", "config explain"):
        assert word in done.stdout
    assert done.stdout.startswith("usage: horovod-transformer train ") and "src.train" not in done.stdout


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("--learning_rate", "did you mean --training.learning_rate?"),
        ("--learning-rate=1", "did you mean --training.learning_rate?"),
        ("--max_updats", "did you mean --training.max_updates?"),
        ("--resum", "did you mean --resume?"),
        ("--no-sleap", "did you mean --no-sleep?"),
        ("--wat", "--help lists what there is"),
        ("seed", "--help lists what there is"),
    ],
)
def test_an_unknown_argument_gets_a_suggestion(word, advice):
    parser = config_parser("test", "A test.")
    parser.add_argument("--resume")
    parser.add_argument("--no-sleep")
    with pytest.raises(UserError) as error:
        parse_options(parser, [word, "1"])
    assert str(error.value) == f"unknown argument {word}; {advice}"


@pytest.mark.parametrize("key", ["data.source", "generation.stop", "training.sample_prompts", "data.clean"])
def test_a_list_given_twice_is_refused_and_else_the_last_counts(key):
    parser = config_parser("test", "A test.")
    with pytest.raises(UserError) as error:
        parse_options(parser, [f"--{key}", "a", f"--{key}=b"])
    assert str(error.value) == f"--{key} is given twice; a list is one value: --{key} '[first, second]'"
    # As with any other option: `"$@"` at the end of a script's own command line.
    given = ["--training.seed", "1", "--training.seed=2"]
    assert parse_options(parser, given)[1] == {"training.seed": "2"}


def test_a_key_in_the_wrong_section_is_found_in_its_own():
    with pytest.raises(UserError, match=r"model\.seed: no such key; did you mean training\.seed\?"):
        Config().with_overrides({"model.seed": "1"})


@pytest.mark.parametrize("word", ["--max_restarts", "--max-restarts"])
def test_hyphens_and_underscores_mean_the_same(word):
    parser = config_parser("test", "A test.")
    parser.add_argument("--max-restarts")
    parser.add_argument("--run_name")
    run_name = "--run-name" if "-r" in word else "--run_name"
    options, keys = parse_options(parser, [word, "3", f"{run_name}=a-b_c", "--training.max-updates", "4-x_y"])
    assert (options.max_restarts, options.run_name) == ("3", "a-b_c")
    assert keys == {"training.max_updates": "4-x_y"}
    assert "--max_restarts" not in parser.format_help()


@pytest.mark.parametrize("name", ["-np", "--processes", "--np", "--workers"])
@pytest.mark.parametrize("command", ["launch", "prepare", "demo"])
def test_one_name_for_how_many_processes(command, name):
    arguments = [name, "3", "--", "x"] if command == "launch" else [name, "3"]
    options, _ = load_subcommand(command).make_parser().parse_known_args(arguments)
    assert options.processes == 3


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (["train"], ["--output", "--output_dir", "--output-dir"]),
        (["doctor"], ["--output", "--output_dir"]),
        (["runs"], ["--output", "--output_dir"]),
        (["export"], ["--output", "--to"]),
        (["import", "--from", "x"], ["--output", "--to"]),
        (["prepare"], ["--output"]),
        (["evaluate"], ["--output"]),
        (["generate"], ["--output"]),
        (["report", "run"], ["--output"]),
    ],
)
def test_one_name_for_where_to_write(command, names):
    parser = load_subcommand(command[0]).make_parser()
    found = [vars(parser.parse_known_args([*command[1:], name, "there"])[0]) for name in names]
    assert all("there" in options.values() for options in found) and found.count(found[0]) == len(found)
    assert all(name in parser.format_help() for name in names if name != "--output-dir")


def test_the_folder_of_prepared_data_is_said_once(capsys):
    assert run_command(_dispatch, ["prepare", "--output", "a", "--data.data-dir", "b"]) == 2
    assert "--output: --data.data_dir says the same" in capsys.readouterr().err


def test_without_a_checkpoint_the_newest_is_taken_and_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such checkpoint file; `horovod-transformer train` writes one"):
        checkpoint_or_newest(None)
    files = [
        "runs/old/checkpoints/best_model.pt",
        "runs/new/checkpoints/last.pt",
        "demo/run/runs/d/checkpoints/last.pt",
    ]
    for age, name in zip((30, 10, 20), files, strict=True):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    assert checkpoint_or_newest(None) == files[1]
    assert capsys.readouterr().err == (
        f"checkpoints/best_model.pt is not there: taking {files[1]}, the newest checkpoint\n"
    )
    with pytest.raises(UserError) as error:
        checkpoint_or_newest("gone.pt")
    assert str(error.value) == f"gone.pt: no such checkpoint file; the newest one here is {files[1]}"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/best_model.pt").touch()
    assert checkpoint_or_newest(None) == "checkpoints/best_model.pt"
    assert capsys.readouterr().err == ""


def test_a_mistake_is_told_with_where_it_arose_if_asked(capsys):
    def wrong(arguments):
        CommandParser("program", "").parse_args(arguments)
        fail(arguments)

    assert run_command(wrong, ["-v"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("Traceback") and told[-1] == "error: x: is wrong; do y"
    assert run_command(wrong, ["-q"]) == 2  # and the next command in this process starts anew
    assert capsys.readouterr().err == "error: x: is wrong; do y\n"
