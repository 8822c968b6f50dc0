"""Overrides on the command line, and how a mistake or a bug ends a command."""

from __future__ import annotations

import errno
import os

import pytest

from horovod_transformer.__main__ import _dispatch
from horovod_transformer.commands import command_line
from horovod_transformer.commands.command_line import (
    CommandParser,
    config_keys,
    config_parser,
    parse_options,
    parse_with_config,
    run_command,
)
from horovod_transformer.commands.generate import main as generate
from horovod_transformer.config import Config, load_config
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
    ("train", "--output_dir"),
    ("doctor", "--output_dir"),
    ("generate", "--checkpoint"),
    ("generate", "--config"),
    ("generate", "--prompt_file"),
    ("generate", "--prompts"),
    ("generate", "--output"),
    ("evaluate", "--checkpoint"),
    ("evaluate", "--text"),
    ("evaluate", "--output"),
    ("export", "--checkpoint"),
    ("export", "--to"),
    ("import", "--from"),
    ("import", "--to"),
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
    for word in ("--resume", "--run_name", "--output_dir", "--training.learning_rate 1e-4"):
        assert word in done.stdout


def test_help_lists_every_key_with_its_default(root):
    _, _, table = config_parser("test", "A test.").format_help().partition("The keys, ")
    lines = table.splitlines()
    for section, values in Config().to_dict().items():
        for key in values:
            assert sum(line.split()[:1] == [f"--{section}.{key}"] for line in lines) == 1, key
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("  --") and "." in line}
    assert rows["--training.precision"] == ["auto|fp32|bf16|fp16", "auto"]
    assert rows["--training.max_updates"] == ["int|null", "null"]
    assert rows["--model.gradient_checkpointing"] == ["true|false", "false"]
    assert max(map(len, lines)) <= 110


def test_a_default_in_the_help_is_one_that_can_be_given(root):
    config = load_config(root / "configs" / "modern.yaml")
    for key, (_, default) in config_keys().items():
        section, _, name = key.partition(".")
        if name != "gradient_accumulation_steps":  # null beside it the global batch
            given = config.with_overrides({key: default}).to_dict()[section][name]
            assert given == Config().to_dict()[section][name], key


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("--learning_rate", "did you mean --training.learning_rate?"),
        ("--learning-rate=1", "did you mean --training.learning_rate?"),
        ("--max_updats", "did you mean --training.max_updates?"),
        ("--resum", "did you mean --resume?"),
        ("--wat", "--help lists what there is"),
        ("seed", "--help lists what there is"),
    ],
)
def test_an_unknown_argument_gets_a_suggestion(word, advice):
    parser = config_parser("test", "A test.")
    parser.add_argument("--resume")
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
