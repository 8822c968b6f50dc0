"""The config: every mistake is one line that names file, key, value and what is allowed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from horovod_transformer.checkpoint.run_paths import run_paths
from horovod_transformer.config import Config, config_from_dict, load_config
from horovod_transformer.errors import UserError


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a config as `c.yaml` into the working folder and return its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes) -> str:
        Path("c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return "c.yaml"

    return write


# What the user wrote, and the whole of what he is told.
MISTAKES = [
    # names
    ("modle: {n_layers: 2}", "c.yaml: modle: no such section; did you mean model?"),
    (
        "zebra: 1",
        "c.yaml: zebra: no such section; known are model, training, data, generation, paths, distributed",
    ),
    ("model: {n_layer: 2}", "c.yaml: model.n_layer: no such key; did you mean n_layers?"),
    ("training: {lr: 1}", "c.yaml: training.lr: no such key; known are epochs, max_updates, "),
    (
        "model: {n_layer: 2, d_model: x}",
        "c.yaml: model.n_layer: no such key; did you mean n_layers? (and 1 more)",
    ),
    # shapes of the file
    ("- model", "c.yaml: should hold sections such as `model:` and `training:`, not a list"),
    ("just text", "c.yaml: should hold sections such as `model:` and `training:`, not a str"),
    ("model: 7", "c.yaml: model = 7: should be a section with keys of its own"),
    ("model: [1, 2]", "c.yaml: model = [1, 2]: should be a section with keys of its own"),
    ("model: {n_layers: 2", "c.yaml, line 1: not valid YAML: expected ',' or '}', but got '<stream end>'"),
    (
        "model:\n\td_model: 4",
        "c.yaml, line 2: not valid YAML: found character '\\t' that cannot start any token",
    ),
    (
        "x: !!python/object/apply:os.getcwd []",
        "c.yaml, line 1: not valid YAML: could not determine a constructor",
    ),
    # what only Python itself objects to
    ("a: 2026-02-31", "c.yaml: not valid YAML: a value cannot be read: day is out of range for month"),
    ("a: !!timestamp soon", "c.yaml: not valid YAML: a value cannot be read: "),
    ("a: !!bool maybe", "c.yaml: not valid YAML: a value cannot be read: 'maybe'"),
    ("a: !!int ''", "c.yaml: not valid YAML: a value cannot be read: "),
    ("[1, 2]: a", "c.yaml: not valid YAML: a value cannot be read: unhashable type"),
    ("a: " + "1" * 5000, "c.yaml: not valid YAML: a value cannot be read: Exceeds the limit"),
    ("training: {seed: 0x" + "f" * 5000 + "}", "c.yaml: training.seed = a number of thousands of digits: "),
    ("a: " + "[" * 5000, "c.yaml: not valid YAML: lists or sections in one another, too deep"),
    ("model: &m {model: *m}", "c.yaml: model.model: no such key"),
    ("model: &m [*m]", "c.yaml: model = [[[[...]]]]: should be a section with keys of its own"),
    # a value of a billion words, made of few
    (
        "data:\n  source: &x0 [a]\n"
        + "".join(
            f"  {key}: &x{n} [{', '.join([f'*x{n - 1}'] * 20)}]\n"
            for n, key in enumerate(
                ("tokenizer", "text_column", "title_column", "separator", "encoding", "data_dir", "split"), 1
            )
        )
        + "model: {d_model: *x7}",
        "c.yaml: model.d_model = [[[[...], [...], [...], ",
    ),
    (b"\xff\xfe\x00", "c.yaml: is not a text file; a config is YAML in UTF-8"),
    (
        "a0: &a0 {x: 1}\n"
        + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 20)}]}}\n" for n in range(1, 9)),
        "c.yaml, line 5: not valid YAML: a mapping of more than 10,000 entries",
    ),
    # numbers that YAML reads in eights and sixties
    ("model: {n_layers: 010}", "c.yaml, line 1: not valid YAML: 010 means 8 in YAML; write it in decimal"),
    ("model: {n_layers: 1:30}", "c.yaml, line 1: not valid YAML: 1:30 means 90 in YAML; write it in decimal"),
    ("model: {dropout: 0:00.5}", "c.yaml, line 1: not valid YAML: 0:00.5 means 0.5 in YAML; write it"),
    # values
    ("model: {n_layers: 0}", "c.yaml: model.n_layers = 0: should be greater than or equal to 1"),
    (
        "model: {n_layers: 2.5}",
        "c.yaml: model.n_layers = 2.5: should be a valid integer, got a number with a fract",
    ),
    (
        "model: {n_layers: many}",
        "c.yaml: model.n_layers = 'many': should be a valid integer, unable to parse",
    ),
    ("model: {n_layers: null}", "c.yaml: model.n_layers = None: should be a valid integer"),
    ("model: {n_layers: yes}", "c.yaml: model.n_layers = True: should be a number, not true/false"),
    ("model: {max_seq_len: 1}", "c.yaml: model.max_seq_len = 1: should be greater than or equal to 2"),
    ("model: {dropout: 1}", "c.yaml: model.dropout = 1: should be less than 1"),
    (
        "model: {gradient_checkpointing: 7}",
        "c.yaml: model.gradient_checkpointing = 7: should be a valid boolean",
    ),
    ("training: {learning_rate: 0}", "c.yaml: training.learning_rate = 0: should be greater than 0"),
    ("training: {learning_rate: .nan}", "c.yaml: training.learning_rate = nan: should be a finite number"),
    ("training: {learning_rate: .inf}", "c.yaml: training.learning_rate = inf: should be a finite number"),
    (
        "training: {weight_decay: -0.1}",
        "c.yaml: training.weight_decay = -0.1: should be greater than or equal to 0",
    ),
    ("training: {max_updates: 0}", "c.yaml: training.max_updates = 0: should be greater than or equal to 1"),
    (
        "training: {precision: int8}",
        "c.yaml: training.precision = 'int8': should be 'auto', 'fp32', 'bf16' or 'fp16'",
    ),
    ("training: {schedule: 1}", "c.yaml: training.schedule = 1: should be 'cosine', 'linear' or 'constant'"),
    ("training: {seed: -1}", "c.yaml: training.seed = -1: should be greater than or equal to 0"),
    ("data: {validation_fraction: 1}", "c.yaml: data.validation_fraction = 1: should be less than 1"),
    ("data: {encoding: klingon}", "c.yaml: data.encoding = 'klingon': should be an encoding"),
    ("data: {data_dir: 7}", "c.yaml: data.data_dir = 7: should be a valid string"),
    ("data: {source: 7}", "c.yaml: data.source = 7: should be a valid string"),
    ("data: {source: [a, 7]}", "c.yaml: data.source = "),
    ("generation: {top_p: 0}", "c.yaml: generation.top_p = 0: should be greater than 0"),
    (
        "generation: {temperature: -1}",
        "c.yaml: generation.temperature = -1: should be greater than or equal to 0",
    ),
    (
        "distributed: {compression: zip}",
        "c.yaml: distributed.compression = 'zip': should be 'none', 'fp16' or 'bf16'",
    ),
    # rules between keys
    ("model: {n_heads: 5}", "c.yaml: model: n_heads must divide d_model; 5 does not divide 768"),
    (
        "model: {d_model: 9, n_heads: 3}",
        "c.yaml: model: d_model must be even (sinusoidal positions come in pairs)",
    ),
    (
        "training: {global_batch_size: 8, gradient_accumulation_steps: 2}",
        "c.yaml: training: set either global_batch_size (accumulation is then worked out",
    ),
    ("training: {global_batch_size: null}", "c.yaml: training: set either global_batch_size (accumulation"),
    # more than one
    (
        "model: {n_layers: 0, n_heads: 0, d_ff: 0}",
        "c.yaml: model.n_layers = 0: should be greater than or equal to 1",
    ),
    ("model: {n_layers: 0}\ndata: {num_workers: -1}", " (and 1 more)"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES, ids=[str(text)[:40] for text, _ in MISTAKES])
def test_a_mistake_is_told_in_one_line(written, text, message):
    with pytest.raises(UserError) as caught:
        load_config(written(text))
    told = str(caught.value)
    assert "\n" not in told and len(told) < 600
    assert told.startswith("c.yaml")
    assert message in told


def test_files_that_cannot_be_read(written, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="^--config: should name a YAML file; configs/config.yaml is the"):
        load_config("")
    with pytest.raises(
        UserError, match="^nowhere.yaml: no such config file; configs/config.yaml is the default"
    ):
        load_config("nowhere.yaml")
    monkeypatch.chdir(tmp_path)  # away from the repository there is no default one
    with pytest.raises(UserError, match="--config names another, those that come with .* lie in ") as caught:
        load_config("configs/config.yaml")
    assert (Path(str(caught.value).rpartition(" lie in ")[2]) / "config.yaml").is_file()
    with pytest.raises(UserError, match="is a folder; --config takes a YAML file"):
        load_config(tmp_path)


def test_a_long_value_is_shortened(written):
    with pytest.raises(UserError) as caught:
        load_config(written("training: {precision: " + "x" * 10_000 + "}"))
    assert len(str(caught.value)) < 200


def test_config_yaml_is_the_defaults(root):
    assert load_config(root / "configs/config.yaml").to_dict() == Config().to_dict()


def test_config_yaml_names_every_key_and_explains_it_or_its_section(root):
    text = (root / "configs/config.yaml").read_text()
    stated = yaml.safe_load(text)
    plain = {
        "adam_beta1",
        "adam_beta2",
        "adam_eps",
        "max_new_tokens",
        "num_samples",
    }  # say all by their names
    for section, fields in Config().to_dict().items():
        # One way to state the batch excludes the other, which stands there as a comment.
        missing = set(fields) - set(stated[section])
        assert missing <= {"gradient_accumulation_steps"}, section
        section_comment = re.search(rf"^{section}: +# \S", text, re.M)
        for key in set(fields) - plain:
            line = re.search(rf"^  (# )?{key}: .*$", text, re.M)
            assert line, f"{section}.{key}"
            commented = re.search(r" # \S", line[0])
            assert commented or section_comment, f"{section}.{key} has no comment"


def test_every_config_of_the_repository_loads(root):
    files = sorted((root / "configs").glob("**/*.yaml"))
    assert {"config.yaml", "quickstart.yaml"} <= {file.name for file in files}
    for file in files:
        load_config(file)


def test_an_empty_file_or_section_means_the_defaults(written):
    assert load_config(written("")) == Config()
    assert load_config(written("model:\ntraining:\n  # epochs: 3\n")).to_dict() == Config().to_dict()


def test_what_a_file_names_is_changed_and_nothing_else(written):
    config = load_config(written("model: {n_layers: 2}\ntraining: {learning_rate: 1e-4, epochs: 3.0}\n"))
    # YAML reads 1e-4, without a point, as text; it means a number all the same.
    assert config.training.learning_rate == 1e-4
    assert config.training.epochs == 3 and isinstance(config.training.epochs, int)
    changed = {
        (section, key)
        for section, values in config.to_dict().items()
        for key, value in values.items()
        if value != Config().to_dict()[section][key]
    }
    assert changed == {("model", "n_layers"), ("training", "learning_rate"), ("training", "epochs")}


def test_overrides_win_over_the_file(written):
    file = written("model: {n_layers: 2, d_ff: 100}\ntraining: {max_updates: 5}\n")
    config = load_config(
        file,
        {
            "model.n_layers": "3",
            "training.learning_rate": "1e-4",
            "training.max_updates": "null",
            "model.gradient_checkpointing": "true",
            "data.source": "[a.txt, b.txt]",
            "generation.top_k": 7,
        },
    )
    assert (config.model.n_layers, config.model.d_ff, config.model.gradient_checkpointing) == (3, 100, True)
    assert (config.training.learning_rate, config.training.max_updates) == (1e-4, None)
    assert (config.data.source, config.generation.top_k) == (["a.txt", "b.txt"], 7)


def test_overrides_may_cross_keys_that_bind_each_other(written):
    file = written("training: {gradient_accumulation_steps: 4}")
    config = load_config(file)
    assert (config.training.global_batch_size, config.training.gradient_accumulation_steps) == (None, 4)
    # Neither width nor heads alone would hold.
    config = load_config(file, {"model.d_model": "100", "model.n_heads": "10"})
    assert (config.model.d_model, config.model.n_heads) == (100, 10)
    config = Config().with_overrides({"training.gradient_accumulation_steps": 2})
    assert (config.training.global_batch_size, config.training.gradient_accumulation_steps) == (None, 2)


def test_with_overrides_leaves_the_original_alone():
    config = Config()
    assert config.with_overrides({"model.n_layers": 3}).model.n_layers == 3
    assert config.model.n_layers == 12
    with pytest.raises(Exception, match="frozen"):
        config.model.n_layers = 4


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.n_layer", "2", "command line: model.n_layer: no such key; did you mean n_layers?"),
        ("modle.n_layers", "2", "command line: modle.n_layers: no such section; did you mean model?"),
        ("model.n_layers", "x", "command line: model.n_layers = 'x': should be a valid integer"),
        ("model.n_layers", "[", "command line: model.n_layers = '[': cannot be read as a YAML value"),
        (
            "model.n_layers",
            "010",
            "model.n_layers = '010': cannot be read as a YAML value: 010 means 8 in YAML",
        ),
        ("model", "2", "command line: --model: an override names a section and a key"),
        ("model.a.b", "2", "command line: --model.a.b: an override names a section and a key"),
    ],
)
def test_a_bad_override_names_the_command_line(written, key, value, message):
    with pytest.raises(UserError) as caught:
        load_config(written("model: {d_ff: 100}"), {key: value})
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("data.separator", "---", "---"),
        ("data.separator", "###", "###"),
        ("data.separator", "\n\n\n", "\n\n\n"),
        ("data.separator", '"', '"'),
        ("data.separator", "~", "~"),
        ("data.separator", "null", None),
        ("data.encoding", "", None),
        # As command lines had to say it while all text was read as YAML.
        ("data.separator", '"\\n%%\\n"', "\n%%\n"),
        ("data.data_dir", "'2024'", "2024"),
        ("data.data_dir", "/scratch/run #2/data", "/scratch/run #2/data"),
        ("data.data_dir", "2024", "2024"),
        ("data.data_dir", "null", "null"),
        ("data.source", "**/*.txt", "**/*.txt"),
        ("data.source", "[12]*.txt", "[12]*.txt"),
        ("data.source", "Dune: Messiah", "Dune: Messiah"),
        ("data.source", "#1 of all", "#1 of all"),
        ("data.source", "@home", "@home"),
        ("data.source", "2001-01-01", "2001-01-01"),
        ("data.source", "12:30", "12:30"),
        ("data.source", '"one": "two"', '"one": "two"'),
        ("data.source", "[1984, 12:30, on]", ["1984", "12:30", "on"]),
        ("data.text_column", "yes", "yes"),
        ("generation.stop", "- ", ["- "]),
        ("generation.stop", "[1., a]", ["1.", "a"]),
        ("training.sample_prompts", "[Once, 1984]", ["Once", "1984"]),
        ("paths.log_dir", "007", "007"),
    ],
)
def test_a_key_that_takes_text_takes_it_as_it_stands(key, text, value):
    section, _, name = key.partition(".")
    assert getattr(getattr(Config().with_overrides({key: text}), section), name) == value


def test_home_in_the_paths_of_a_run(written, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = written("paths: {checkpoint_dir: ~/ck, log_dir: logs}")
    Path("home").mkdir()
    Path(file).rename("home/c.yaml")
    config = load_config("~/c.yaml", {"paths.tensorboard_dir": "~/tb"})
    assert config.paths.checkpoint_dir == str(tmp_path / "home/ck")
    assert config.paths.tensorboard_dir == str(tmp_path / "home/tb")
    moved = run_paths(config.with_paths_in("~/out").paths, "r")
    assert (moved.checkpoints, moved.logs) == (tmp_path / "home/ck", tmp_path / "home/out/logs")
    with pytest.raises(UserError, match=r"^o: paths.log_dir = '~no-such-user/x': there is no such user"):
        config.with_overrides({"paths.log_dir": "~no-such-user/x"}, "o")


def test_an_emoji_as_json_escapes_it_is_one_character(written):
    config = load_config(written('training: {sample_prompts: ["\\ud83d\\ude00 once"]}'))
    assert config.training.sample_prompts == ["\U0001f600 once"]
    with pytest.raises(UserError, match=r"sample_prompts = '\\ud83d': should be text in UTF-8"):
        load_config(written('training: {sample_prompts: ["\\ud83d"]}'))


def test_a_name_that_is_not_utf_8_is_one_line():
    name = os.fsdecode(b"bad\xfc")
    with pytest.raises(
        UserError, match=r"^--output_dir: paths.output_dir = 'bad\\udcfc': should be text in UTF-8"
    ):
        Config().with_paths_in(name)
    with pytest.raises(UserError, match=r"^x: data.source = 'bad\\udcfc': should be text in UTF-8"):
        Config().with_overrides({"data.source": name}, "x")


def test_to_dict_goes_round_through_dict_and_yaml(root):
    for file in (root / "configs").glob("*.yaml"):
        config = load_config(file)
        values = config.to_dict()
        assert config_from_dict(values, "copy").to_dict() == values
        assert config_from_dict(yaml.safe_load(yaml.safe_dump(values)), "copy").to_dict() == values
    accumulating = config_from_dict({"training": {"gradient_accumulation_steps": 2}}, "x").to_dict()
    assert config_from_dict(accumulating, "copy").to_dict() == accumulating
    assert Config().to_dict()["model"]["d_model"] == Config().model.d_model == 768


def test_a_stored_config_that_is_no_config():
    for values in (None, 7, [], "model"):
        with pytest.raises(UserError, match=r"^best\.pt: ") as caught:
            config_from_dict(values, "best.pt")
        assert "\n" not in str(caught.value)


def test_the_promised_names():
    from src.utils.config import Config as PromisedConfig
    from src.utils.config import load_config as promised_load_config

    assert (PromisedConfig, promised_load_config) == (Config, load_config)


def test_a_config_that_has_no_end_is_one_line():
    with pytest.raises(UserError, match="/dev/zero: cannot be read: File too large"):
        load_config("/dev/zero")


def test_a_config_of_ours_is_said_to_lie_elsewhere(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"those that come with the program lie in {root / 'configs'}"):
        load_config("configs/quickstart.yaml")
