"""docs/zaratan.md: what it names is there, and what it says our programs say, they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

# What Slurm, the loader of shared libraries and NCCL say.
OTHERS_SAY = ("sbatch: ", "slurmstepd: ", "GLIBCXX_", "NCCL")


@pytest.fixture(scope="module")
def document(read_document):
    return read_document("docs/zaratan.md")


def test_names(document, check_names):
    made = {"runs/", "checkpoints/", "logs/", "results/", "wheels/", ".venv/bin/tensorboard", "tests/slurm/"}
    made |= {
        "check-JOB/report.md",
        "runs/slurm-JOB",
        "docs/scaling.md",
        "NET/IB",
        "NET/Socket",
        "hpcc/zaratan",
        ".venv/bin/horovod-transformer",
    }
    made |= {".venv/bin/activate", "../miniforge/bin/conda", "../python312/bin/python"}
    check_names(document, made)


def test_its_scripts_are_those_that_are_tested(root: Path, document):
    scripts = {word for command in document.commands() for word in command.split() if word.endswith(".sh")}
    tests = "".join(path.read_text() for path in (root / "tests" / "slurm").glob("test_*.py"))
    assert len(scripts) == 3
    for script in scripts:
        assert (root / script).is_file() and script in tests


def test_what_is_said_when_something_is_wrong_is_said(root: Path, document):
    sources = [*(root / "scripts").glob("*.*"), *(root / "horovod_transformer").rglob("*.py")]
    code = " ".join(path.read_text() for path in sources)
    # As Python joins the parts of a long text.
    code = re.sub(r'"\s+f?"', "", code)
    lines = document.prose[document.prose.index("## When something is wrong") :]
    said = re.findall("`([^`]+)`", " ".join(line.split("|")[1] for line in lines if line.startswith("| ")))
    said = [text for text in said if " " in text and not text.startswith(OTHERS_SAY)]
    assert len(said) > 6
    for text in said:
        for part in text.replace("127.0.1.1", "...").split("..."):
            assert part.strip(" :") in code, f"docs/zaratan.md: nothing here says {part!r}"
