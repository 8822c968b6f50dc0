"""CONTRIBUTING.md and the documents in docs/: the files, targets, keys and tests that they name are there."""

from __future__ import annotations

import re
import subprocess

import pytest

DOCUMENTS = [
    "CONTRIBUTING.md",
    "docs/data.md",
    "docs/reliability.md",
    "docs/zaratan.md",
    "benchmarks/README.md",
]


def test_names_in_contributing(read_document, check_names, check_commands):
    document = read_document("CONTRIBUTING.md")
    check_commands(document)
    check_names(document, {".venv/", "../old"})


def test_names_in_the_architecture_document(read_document, check_names):
    document = read_document("docs/architecture.md")
    check_names(document, {row.split("`")[1] for row in document.prose if row.startswith("| `")})


def test_names_in_the_data_document(read_document, check_names, check_commands):
    document = read_document("docs/data.md")
    check_commands(document)
    endings = {".jsonl", ".gz", ".zst", ".txt", ".md"}
    others = {"tokenizer.json", "merges.txt", "manifest.json", "train.txt", "test.txt", "OWNER/NAME"}
    check_names(document, endings | others)


def test_names_in_the_speed_document(read_document, check_names, check_commands):
    document = read_document("docs/speed.md")
    check_commands(document)
    made = {"profile_horovod.json", "report.html", "train.csv"}
    check_names(document, made)


def test_names_in_the_glossary(read_document, check_names):
    check_names(read_document("docs/glossary.md"), set())


def test_links_lead_somewhere(root, read_document):
    """Each link of a document to another file, and to a heading in it."""
    pages = [*root.glob("*.md"), *root.glob("docs/*.md"), root / "benchmarks/README.md"]
    checked = 0
    for page in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            path, _, anchor = target.partition("#")
            if path.startswith(("https:", "http:", "mailto:")):
                continue
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name} links to {target}"
            if anchor:
                anchors = {anchor for _, anchor in read_document(str(file.relative_to(root))).anchors}
                assert anchor in anchors, f"{page.name} links to {target}: no such heading"
            checked += 1
    assert checked > 50


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tests_named_are_there(root, name):
    text = (root / name).read_text(encoding="utf-8")
    file = ""
    for path, test in re.findall(r"`(tests/[\w/]+\.py|test_\w+\.py)?(?:::(\w+))?`", text):
        if path and "/" not in path:
            path = f"tests/distributed/{path}"  # as the table of launchers says
        file = path or file  # `::test_name` alone is in the file named last
        if path:
            assert (root / path).is_file(), path
        if test:
            assert f"def {test}(" in (root / file).read_text(encoding="utf-8"), f"{file}::{test}"


def test_reliability_names_tests(root):
    assert (root / "docs/reliability.md").read_text(encoding="utf-8").count("::test_") > 15


def test_what_documented_commands_write_is_no_change_to_git(root, read_document):
    documents = [path for path in root.glob("docs/*.md") if path.stem != "log"]
    pages = ["README.md", *(str(path.relative_to(root)) for path in documents)]
    commands = [command.split() for page in pages for command in read_document(page).commands()]
    commands = [words for words in commands if words[0] != "jupyter"]  # whose `--to` is a kind of file
    written = {
        words[place + 1]
        for words in commands
        for place, word in enumerate(words[:-1])
        if word in ("--to", "--output", "--output_dir", "--output-dir") and "$" not in words[place + 1]
    }
    assert {"exported/plays", "report.html"} <= written
    # The script's own count of failed starts, too.
    (suffix,) = re.findall(r"\.slurm-\$SLURM_JOB_ID\.(\w+)", (root / "scripts/train_slurm.sh").read_text())
    written.add(f".slurm-7.{suffix}")
    ignored = subprocess.run(
        ["git", "check-ignore", *sorted(written)], cwd=root, capture_output=True, text=True, check=False
    )
    assert set(ignored.stdout.split()) == written
