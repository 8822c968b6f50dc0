"""Files that commit efaa3e3 wrote are read as it read them: checkpoints, prepared data, an export.

`make_fixtures.py` had that commit write them, and what it found in them into expected.json. Modules may move,
so these tests use promised names alone. Numbers are compared with a tolerance: CPUs differ in the last bits.
"""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from src.data import load_preprocessed_data
from src.generate import generate_text, load_model_for_generation
from src.models.transformer_lm import TransformerLM
from src.train import load_checkpoint

FILES = Path(__file__).with_name("efaa3e3")
CONFIG = Path(__file__).with_name("config.yaml")
DATA = ["--data.data_dir", FILES / "data"]
EXPECTED = json.loads((FILES / "expected.json").read_text(encoding="utf-8"))
# What the run of each checkpoint changed in config.yaml; see make_fixtures.py.
CHANGES = {
    "adamw": [],
    "muon": ["--training.optimizer", "muon", "--model.positions", "learned", "--model.dropout", "0"],
}

each_run = pytest.mark.parametrize("name", CHANGES)


@pytest.fixture
def run(run_python, tmp_path):
    """Run a command, such as `run("src.train", ...)`, which must succeed."""

    def run_module(module: str, *arguments: object) -> None:
        done = run_python("-m", module, *map(str, arguments))
        assert done.returncode == 0, done.stdout + done.stderr

    return run_module


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """Two state dicts hold the same bits."""
    assert left.keys() == right.keys()
    assert not [name for name in left if not torch.equal(left[name], right[name])]


@each_run
def test_a_checkpoint_gives_the_same_logits_and_text(name):
    expected = EXPECTED[name]
    model, tokenizer, config = load_model_for_generation(FILES / f"{name}.pt", device="cpu")
    assert isinstance(model, TransformerLM) and config.generation.max_new_tokens == 20
    with torch.no_grad():
        logits = model(torch.tensor(expected["tokens"]))[0].flatten()[::11]
    torch.testing.assert_close(logits, torch.tensor(expected["every_11th_logit"]), atol=1e-5, rtol=0)
    text = generate_text(model, tokenizer, EXPECTED["prompt"], max_new_tokens=20, temperature=0)
    assert text == expected["text"]


@pytest.mark.parametrize("number", [0, 1])
def test_prepared_data_hold_the_same_blocks(number):
    expected = EXPECTED["data"][("train", "validation")[number]]
    ids = [block["input_ids"] for block in load_preprocessed_data(FILES / "data")[number]]
    assert (len(ids), ids[0]) == (expected["blocks"], expected["first"])
    assert hashlib.sha256(json.dumps(ids).encode()).hexdigest() == expected["digest"]


@each_run
def test_a_run_is_resumed(run, tmp_path, name):
    arguments = ["--config", CONFIG, *DATA, "--output_dir", tmp_path, *CHANGES[name]]
    run("src.train", *arguments, "--resume", FILES / f"{name}.pt", "--training.max_updates", 202)
    with open(tmp_path / "runs/structured" / name / "train.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["update"] for row in rows] == ["201", "202"]
    losses = [float(row["loss"]) for row in rows]
    assert losses == pytest.approx(EXPECTED[name]["resumed_losses"], abs=1e-4)
    progress = load_checkpoint(tmp_path / "checkpoints/last.pt")["progress"]
    assert (progress["update"], progress["run_name"]) == (202, name)


@each_run
def test_a_checkpoint_is_evaluated(run, tmp_path, name):
    files = ["--checkpoint", FILES / f"{name}.pt", *DATA, "--output", tmp_path]
    run("horovod_transformer", "evaluate", *files, "--samples", 2)
    prediction = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))["prediction"]
    assert prediction["loss"] == pytest.approx(EXPECTED[name]["evaluated_loss"], abs=1e-5)


def test_a_checkpoint_is_exported_as_it_was(run, tmp_path):
    folder = tmp_path / "exported"
    run("horovod_transformer", "export", "--checkpoint", FILES / "muon.pt", "--to", folder)
    assert {path.name for path in folder.iterdir()} == {path.name for path in (FILES / "exported").iterdir()}
    assert_equal(load_file(folder / "model.safetensors"), load_file(FILES / "exported/model.safetensors"))
    for path in (FILES / "exported").glob("*.json"):
        written, now = (json.loads((base / path.name).read_text()) for base in (path.parent, folder))
        # Keys have come since, for transformers 4 and others; what was there is as it was.
        assert {key: now.get(key) for key in written} == written, path.name


def test_an_exported_folder_is_imported(run, tmp_path):
    run("horovod_transformer", "import", "--from", FILES / "exported", "--to", tmp_path / "imported.pt")
    imported, written = load_checkpoint(tmp_path / "imported.pt"), load_checkpoint(FILES / "muon.pt")
    assert_equal(imported["model"], written["model"])
    tokenizers = [json.loads(contents["tokenizer"]["tokenizer_json"]) for contents in (imported, written)]
    assert tokenizers[0] == tokenizers[1]
