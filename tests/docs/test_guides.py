"""docs/generation.md, export.md, evaluation.md and exact.md: each block runs as written, in this order."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

TRAIN = "python -m src.train --config configs/quickstart.yaml --run_name "
MADE = {
    "prompts.jsonl",
    "exported/plays",
    "checkpoints/imported.pt",
    "evaluation/two",
    "evaluation/novel",
    "novel.txt",
    "merges.txt",
    "texts.jsonl",
    "report.html",
    "both.html",
    "runs/structured/first",
    "runs/structured/second",
    "runs/one/logs/train_rank0.log",
    "runs/two/logs/train_rank0.log",
}
GUIDES = ["docs/generation.md", "docs/export.md", "docs/evaluation.md", "docs/exact.md"]


@pytest.fixture(scope="module")
def trained(workspace, run_command):
    """Two runs, and the files that the guides speak of."""
    for name in ("second", "first"):
        result = run_command(TRAIN + name, workspace)
        assert result.returncode == 0, result.stderr
    assert (workspace / "runs/structured/first/report.html").is_file()
    (workspace / "prompts.jsonl").write_text('{"prompt": "O Romeo", "id": 1}\n{"prompt": ""}\n')
    (workspace / "novel.txt").write_text("It was a dark and stormy night; the rain fell in torrents.\n" * 40)
    return workspace


@pytest.mark.parametrize("name", GUIDES)
def test_names(name, read_document, check_names):
    check_names(read_document(name), MADE)


@pytest.mark.distributed
@pytest.mark.parametrize("name", GUIDES)
def test_blocks(name, read_document, trained, run_command):
    document = read_document(name)
    for fence in document.fences:
        if fence.language == "python":
            lines = [[sys.executable, "-c", fence.text]]
        else:
            single = type(document)(document.path, fences=[fence])
            lines = single.commands()
        for line in lines:
            result = run_command(line, trained)
            assert result.returncode == 0, (line, result.stderr)
    if name == "docs/generation.md":
        rows = [json.loads(line) for line in (trained / "texts.jsonl").read_text().splitlines()]
        assert [len(row["samples"]) for row in rows] == [2, 2] and rows[0]["id"] == 1
    if name == "docs/evaluation.md":
        one, two = (
            json.loads(path.read_text())
            for pattern in ("runs/*/evaluation/evaluation.json", "evaluation/two/evaluation.json")
            for path in trained.glob(pattern)
        )
        assert one["prediction"] == two["prediction"] and one["prediction"]["books"] > 1
        assert "2 training runs" in (trained / "both.html").read_text()
    if name == "docs/exact.md":
        words = result.stdout.split()  # of grep
        assert len(words) >= 8 and words[-1] == words[len(words) // 2 - 1]
        assert len(words[-1]) == 16
    if name == "docs/export.md":
        shutil.rmtree(trained / "exported")
