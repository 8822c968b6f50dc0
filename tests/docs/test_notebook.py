"""The notebook: clean in git, and on the sample it makes data that the default config can train on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient

from horovod_transformer.__main__ import _dispatch
from horovod_transformer.commands.command_line import run_command
from horovod_transformer.config import load_config
from horovod_transformer.data.dataset import open_prepared_data
from horovod_transformer.data.loader import get_dataloaders

NAME = "00_data_preprocessing.ipynb"
DATA_DIR = "notebooks/data/preprocessed/v1"


@pytest.fixture(scope="module")
def notebook(root):
    return nbformat.read(root / "notebooks" / NAME, as_version=4)


@pytest.fixture(scope="module")
def copy_of_repository(root, tmp_path_factory):
    """The real configs and the notebook, elsewhere: executing it leaves the tree clean."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(root / "configs", folder / "configs")
    (folder / "notebooks").mkdir()
    return folder


def execute(notebook, folder, monkeypatch):
    """Run all cells in a kernel that starts in `folder`; return the executed copy."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    copy = nbformat.from_dict(json.loads(json.dumps(notebook)))
    return NotebookClient(copy, timeout=500, resources={"metadata": {"path": folder}}).execute()


def text_of(executed):
    return "".join(
        output.text for cell in executed.cells for output in cell.get("outputs", []) if "text" in output
    )


def test_clean_in_git(root, notebook):
    nbformat.validate(notebook)
    raw = json.loads((root / "notebooks" / NAME).read_text(encoding="utf-8"))
    assert raw["nbformat"] == 4 and raw["nbformat_minor"] >= 5
    assert raw["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in raw["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in raw["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]
            assert cell["metadata"] == {}, cell["id"]
    # A newcomer meets words before each code cell, or right before a picture of the same step.
    kinds = [cell["cell_type"] for cell in raw["cells"]]
    assert kinds[0] == "markdown" and "code,code,code" not in ",".join(kinds)


def test_one_cell_to_change(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and "SOURCE =" in cell.source]
    assert [cell.id for cell in cells] == ["choice"]
    assert cells[0].source.splitlines()[0] == 'SOURCE = "sample"'


@pytest.mark.slow
def test_makes_data_for_the_default_config(notebook, copy_of_repository, monkeypatch):
    executed = execute(notebook, copy_of_repository, monkeypatch)
    pictures = [
        output
        for cell in executed.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
    assert sorted(path.name for path in copy_of_repository.iterdir()) == ["configs", "notebooks"]

    monkeypatch.chdir(copy_of_repository)
    config = load_config("configs/config.yaml")
    assert config.data.data_dir == DATA_DIR
    data = open_prepared_data(config)
    assert data.train.block_size == 512 and data.tokenizer.kind == "gpt2"
    splits = data.manifest["splits"]
    tokens = {name: split["tokens"] for name, split in splits.items()}
    assert splits["train"]["books"] + splits["validation"]["books"] == 38
    assert 0.03 < tokens["validation"] / sum(tokens.values()) < 0.07

    # Training itself runs on data of the same making in test_readme.py.
    batch = next(iter(get_dataloaders(config.with_overrides({"data.num_workers": 0}))[0]))
    assert tuple(batch["input_ids"].shape) == (config.training.per_gpu_batch_size, 512) == (64, 512)


@pytest.mark.slow
def test_again_without_a_browser_leaves_the_data_alone(copy_of_repository, root, read_document):
    """As docs/data.md says: the notebook as a page."""
    manifest = copy_of_repository / DATA_DIR / "manifest.json"
    if not manifest.exists():
        pytest.skip("needs what the test before made")
    before = manifest.stat().st_mtime_ns
    (line,) = [line for line in read_document("docs/data.md").commands() if line.startswith("jupyter")]
    shutil.copy(root / "notebooks" / NAME, copy_of_repository / "notebooks")
    command = [str(Path(sys.executable).with_name("jupyter")), *line.split()[1:]]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=copy_of_repository, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    page = (copy_of_repository / "notebooks/data/00_data_preprocessing.html").read_text(encoding="utf-8")
    assert "already prepared with these settings" in page and page.count("data:image/png") >= 3
    assert manifest.stat().st_mtime_ns == before


@pytest.mark.slow
def test_the_data_can_be_looked_at_as_docs_data_says(
    copy_of_repository, read_document, monkeypatch, capsys, root
):
    if not (copy_of_repository / DATA_DIR / "manifest.json").exists():
        pytest.skip("goes on from the test before")
    monkeypatch.chdir(copy_of_repository)
    commands = [c for c in read_document("docs/data.md").commands() if not c.startswith("jupyter")]
    assert len(commands) == 3
    for command in commands:
        assert run_command(_dispatch, command.split()[1:]) == 0
    said = capsys.readouterr().out
    assert f"{DATA_DIR}: sound (" in said and "bytes per token" in said


@pytest.mark.slow
def test_other_books_by_changing_one_cell(notebook, copy_of_repository, tmp_path, monkeypatch):
    books = {"title": ["one", "two", "three"], "text": [f"Book {n}. " + "It rained. " * 400 for n in "123"]}
    pq.write_table(pa.table(books), tmp_path / "part-0.parquet")
    changed = nbformat.from_dict(json.loads(json.dumps(notebook)))
    cell = next(cell for cell in changed.cells if cell.id == "choice")
    cell.source = f'SOURCE = "{tmp_path}/*.parquet"\nREPLACE = True'
    executed = execute(changed, copy_of_repository / "notebooks", monkeypatch)
    assert "3 books read" in text_of(executed)
    manifest = json.loads((copy_of_repository / DATA_DIR / "manifest.json").read_text())
    assert sum(split["books"] for split in manifest["splits"].values()) == 3
