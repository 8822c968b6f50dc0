"""horovod_transformer.example.md and .example.py: form, names, and every program in them runs.

The programs run in a folder that has the repository's configs, made small.
"""

from __future__ import annotations

import re
import sys

import pytest
import torch

GENERATE = (
    "python -m src.generate --checkpoint checkpoints/best_model.pt --config configs/config.yaml "
    '--prompt "Once upon a time" --max_new_tokens 100'
)


@pytest.fixture(scope="module")
def document(read_document):
    return read_document("horovod_transformer.example.md")


@pytest.fixture(scope="module")
def samples(document):
    """The Python samples: the workflow, the minimal training script, generation."""
    found = [fence.text for fence in document.fences if fence.language == "python"]
    assert len(found) == 3
    return found


@pytest.fixture(scope="module")
def run_example(root, run_command):
    """Run the example program with these arguments."""
    return lambda arguments, cwd: run_command(
        [sys.executable, str(root / "horovod_transformer.example.py"), *arguments.split()], cwd
    )


# --- What is written


def test_form(document, check_outline):
    check_outline(document)
    assert document.headings[0] == (1, "Project description")
    assert max(level for level, _ in document.headings) <= 3
    text = document.path.read_text(encoding="utf-8")
    assert text.count("<!-- toc -->") == text.count("<!-- tocstop -->") == 1
    sections = [text for level, text in document.headings if level == 2]
    assert sections[:6] == [
        "Project Overview",
        "Architecture",
        "Data Pipeline",
        "Training Workflow",
        "Usage Examples",
        "Results and Evaluation",
    ]


def test_commands_and_names(document, check_commands, check_names, commands_run_by):
    check_commands(document)
    check_names(document, {"config.yaml"})  # a run's own copy
    assert set(commands_run_by("test_example_document.py")) <= set(document.commands())


def test_figures(document):
    """The table of the default configuration is the code's."""
    from horovod_transformer.config_sections import ModelConfig
    from horovod_transformer.model.transformer import build_model

    rows = dict(re.findall(r"^\| `?([\w.]+)`? \| ([\d,]+)", "\n".join(document.prose), re.M))
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_model(ModelConfig()).parameters())
    assert rows.pop("parameters") == f"{parameters:,}"
    assert len(rows) == 6
    for key, value in rows.items():
        assert getattr(ModelConfig(), key.removeprefix("model.")) == int(value.replace(",", "")), key


# --- What is run


@pytest.fixture(scope="module")
def after_example(workspace, run_example):
    """The folder after `python horovod_transformer.example.py`."""
    result = run_example("", workspace)
    assert result.returncode == 0, result.stderr
    assert "2 processes" in result.stdout
    headings = re.findall(r"^--- (.+) ---$", result.stdout, re.M)
    assert headings == ["Once upon a time", "The future of", "(no prompt)"]
    return workspace


@pytest.mark.distributed
def test_example_makes_what_the_documents_name(after_example, made_by_running):
    for name in made_by_running - {"runs/NAME/evaluation/"}:  # tests/docs/test_readme.py makes that
        assert list(after_example.glob(name.rstrip("/").replace("NAME", "*"))), name


@pytest.mark.distributed
def test_tensorboard_reads_it(after_example, run_command):
    # The documented command serves pages until it is stopped; --inspect reads the same folder and ends.
    result = run_command("tensorboard --logdir runs/ --inspect", after_example)
    assert result.returncode == 0 and "validation/loss" in result.stdout + result.stderr


@pytest.mark.distributed
def test_workflow_sample(samples, after_example, run_command):
    check = "\nassert len(passages) == 3 and passages[0].startswith('Once upon a time')"
    result = run_command([sys.executable, "-c", samples[0] + check], after_example)
    assert result.returncode == 0, result.stderr
    assert "already prepared" in result.stdout and "1 process " in result.stdout
    kept = list((after_example / "runs").glob("*/checkpoints/last.pt"))
    assert len(kept) > 1, "the run before is kept"


@pytest.mark.distributed
def test_minimal_script_then_text(samples, workspace, run_command):
    (workspace / "minimal.py").write_text(samples[1], encoding="utf-8")
    alone = run_command("python minimal.py", workspace)
    assert alone.returncode != 0 and "launch it with `horovodrun -np 2" in alone.stderr
    result = run_command("horovodrun -np 2 python minimal.py", workspace)
    assert result.returncode == 0, result.stderr

    written = run_command([sys.executable, "-c", samples[2]], workspace)
    assert written.returncode == 0 and written.stdout.startswith("The future of AI")
    assert "no GPU" in written.stderr
    command = run_command(GENERATE, workspace)
    assert command.returncode == 0 and command.stdout.startswith("Once upon a time")


# --- What goes wrong


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--data.source nowhere/*.parquet --data.data_dir new", "nowhere/*.parquet"),
        ("--no_train --checkpoint nowhere.pt", "nowhere.pt"),
        ("--no_train --paths.checkpoint_dir nowhere", "nowhere/best_model.pt"),
        ("--config nowhere.yaml", "nowhere.yaml"),
        ("--processes 0", "--processes 0"),
        ("--training.epoch 2", "training.epoch"),
        ("--unknown", "--unknown"),
    ],
)
def test_a_mistake_is_one_line(arguments, named, workspace, run_example):
    result = run_example(arguments, workspace)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and named in line


@pytest.mark.slow
def test_help(workspace, run_example):
    result = run_example("--help", workspace)
    assert result.returncode == 0
    for option in ("--config", "--processes", "--no_train", "--no_generate", "--checkpoint"):
        assert option in result.stdout
