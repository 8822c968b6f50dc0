"""horovod_transformer.API.md and .API.py: every sample runs, every signature is the code's."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shutil
import sys

import pytest

DOCUMENT = "horovod_transformer.API.md"

HOMES = {
    "TransformerLM": "src.models.transformer_lm",
    "run_distributed_training": "src.train",
    "save_checkpoint": "src.train",
    "load_checkpoint": "src.train",
    "prepare": "horovod_transformer.prepare.prepare",
    "load_preprocessed_data": "src.data",
    "get_dataloaders": "src.data",
    "setup_horovod": "src.utils.distributed",
    "get_rank": "src.utils.distributed",
    "get_world_size": "src.utils.distributed",
    "get_local_rank": "src.utils.distributed",
    "is_main_process": "src.utils.distributed",
    "metric_average": "src.utils.distributed",
    "load_model_for_generation": "src.generate",
    "generate_text": "src.generate",
    "interactive_generation": "src.generate",
    "load_config": "src.utils.config",
    "Config": "src.utils.config",
}

# What the samples' run leaves in its output folder, beside what every run leaves.
MADE = {
    "runs/tour/checkpoints/update_00000006.pt",
    "runs/tour/",
    "runs/structured/tour/train.csv",
    "runs/structured/tour/val.csv",
}

# Runs samples in one namespace; a traceback names the document's own line.
RUNNER = """
import json, sys
name, samples = sys.argv[1], json.loads(sys.argv[2])
namespace = {"__name__": "__main__"}
for line, text in samples:
    exec(compile("\\n" * (line - 1) + text, name, "exec"), namespace)
"""


@pytest.fixture(scope="module")
def document(read_document):
    return read_document(DOCUMENT)


def test_outline(document, check_outline):
    check_outline(document)
    areas = ["1. Model", "2. Training", "3. Data", "4. Distributed", "5. Generation", "6. Configuration"]
    assert [text for level, text in document.headings if level == 2 and text[0].isdigit()] == areas


def test_names(document, check_names):
    check_names(document, MADE)


@pytest.mark.slow
def test_samples_run_and_print_what_they_say(document, root, tmp_path, run_command):
    samples = [(fence.line, fence.text) for fence in document.fences if fence.language == "python"]
    shutil.copytree(root / "configs", tmp_path / "configs")
    result = run_command(
        [sys.executable, "-c", RUNNER, DOCUMENT, json.dumps(samples)], tmp_path, given="O Romeo\n/quit\n"
    )
    assert result.returncode == 0, result.stderr

    promised = [found for _, text in samples for found in re.findall(r"^ *print\(.*\)  # (.+)$", text, re.M)]
    assert len(promised) > 20
    # The last prompt of the interactive sample has no line of its own where nobody presses Enter.
    printed = (re.sub("^(> )+", "", line) for line in result.stdout.splitlines())
    for text in promised:
        assert any(line == text for line in printed), f"{text!r} is not printed, or not in its place"
    for name in MADE:
        assert (tmp_path / "api_tour" / name).exists(), name
    # The three mistakes of the last sample, each in a line that names the file.
    for name in ("configs/missing.yaml", "data/missing", "checkpoints/missing.pt"):
        assert re.search(rf"^{re.escape(name)}: no .+", result.stdout, re.M), name


def test_signatures(document):
    lines = [
        line for fence in document.fences if fence.language == "text" for line in fence.text.splitlines()
    ]
    described = set()
    for line in lines:
        path, _, parameters = line.partition("(")
        name, *attributes = path.split(".")
        described.add(name)
        thing = getattr(importlib.import_module(HOMES[name]), name)
        for attribute in attributes:
            thing = getattr(thing, attribute)
        actual = ", ".join(_parameters(thing))
        assert parameters.removesuffix(")") == actual, path
    assert described == set(HOMES)


def _parameters(thing):
    starred = False
    for parameter in inspect.signature(thing).parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        yield parameter.name + default


def test_imports_named_in_the_text(document):
    imports = [span for span in document.code_spans() if span.startswith("from ")]
    assert len(imports) >= 7
    promised = {}
    for line in imports:
        (statement,) = ast.parse(line).body
        assert isinstance(statement, ast.ImportFrom) and statement.module
        for alias in statement.names:
            getattr(importlib.import_module(statement.module), alias.name)
            promised.setdefault(alias.name, []).append(statement.module)
    for name, module in HOMES.items():
        assert name == "prepare" or module in promised[name]


@pytest.mark.slow
def test_the_script_runs(root, tmp_path, run_command):
    result = run_command([sys.executable, str(root / "horovod_transformer.API.py")], tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    for area in ("Model", "Training", "Data", "Distributed", "Generation", "Configuration"):
        assert f"=== {area} ===" in result.stdout
    # 1 and 2 processes, the same curve to 4 digits.
    curves = re.findall(r"losses on \d process(?:es)?: (.+)", result.stdout)
    assert len(curves) == 2 and curves[0] == curves[1]
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"
