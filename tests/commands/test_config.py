"""`horovod-transformer config`: what is in effect, and what keys mean."""

from __future__ import annotations

import pytest
import yaml

from horovod_transformer.__main__ import _dispatch
from horovod_transformer.commands.command_line import run_command
from horovod_transformer.commands.config_keys import config_keys, key_comments
from horovod_transformer.commands.config_text import explained
from horovod_transformer.config import Config, config_from_dict, load_config
from horovod_transformer.errors import UserError


def test_every_key_is_explained_by_the_shipped_config():
    assert list(key_comments()) and set(key_comments()) == set(config_keys())


def test_a_default_is_one_that_can_be_given(root):
    config = load_config(root / "configs" / "modern.yaml")
    for key in config_keys().values():
        if key.short_name != "gradient_accumulation_steps":  # null beside it the global batch
            given = config.with_overrides({key.name: key.default}).to_dict()[key.section][key.short_name]
            assert given == Config().to_dict()[key.section][key.short_name], key


def test_what_is_shown_is_a_config_and_says_where_values_come_from(root, capsys):
    file = str(root / "configs" / "quickstart.yaml")
    words = ["config", "show", "--config", file, "--training.seed", "7", "--data.source=[a b, c]"]
    words += ["--training.gradient-accumulation-steps", "2", "--training.global_batch_size", "null"]
    assert run_command(_dispatch, words) == 0
    told = capsys.readouterr().out
    keys = {"training.seed": "7", "data.source": "[a b, c]", "training.gradient_accumulation_steps": "2"}
    wanted = load_config(file, {**keys, "training.global_batch_size": "null"})
    assert config_from_dict(yaml.safe_load(told), "shown").to_dict() == wanted.to_dict()
    origins = {line.split(":")[0].strip(): line.rpartition("  # ")[2] for line in told.splitlines()}
    assert (origins["seed"], origins["source"], origins["vocab_size"]) == (
        "command line",
        "command line",
        file,
    )
    assert origins["adam_eps"] == "default"


def test_a_key_that_another_turns_off_says_so(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text("training: {gradient_accumulation_steps: 4}")
    assert run_command(_dispatch, ["config", "show", "--config", str(file)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "global_batch_size" in line]
    assert line.split("  ")[1:][0] == "global_batch_size: null" and line.endswith(
        "# follows from another key"
    )


def test_a_key_is_explained(capsys):
    assert run_command(_dispatch, ["config", "explain", "--training.learning-rate"]) == 0
    assert (
        capsys.readouterr().out
        == """\
training.learning_rate
  peak; never scaled behind your back when processes are added
  takes:    number, above 0
  default:  0.0006
  as in:    --training.learning_rate 0.0006
"""
    )
    assert explained("learning_rate") == explained("training.learning_rate")
    several_lines = key_comments()["training.gradient_accumulation_steps"]
    assert several_lines.startswith("instead of ") and several_lines.endswith(" and changes with them")


def test_a_section_explains_its_keys_briefly():
    told = explained("generation")
    assert all(f"{name} (" in told for name in config_keys() if name.startswith("generation."))
    assert "model." not in told and "the likeliest token" in told


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("training.lerning_rate", "did you mean training.learning_rate?"),
        ("warmup_update", "did you mean warmup_updates?"),
        ("model.seed", "did you mean training.seed?"),
        ("zzz", "`horovod-transformer config explain` lists all"),
    ],
)
def test_a_misspelt_key_gets_a_suggestion(name, advice):
    with pytest.raises(UserError) as error:
        explained(name)
    assert str(error.value) == f"{name}: no such key; {advice}"


def test_alone_it_lists_every_key(capsys):
    assert run_command(_dispatch, ["config", "explain"]) == 0
    told = capsys.readouterr().out
    assert all(key.short_name in told for key in config_keys().values()) and told.count("\n") < 45
