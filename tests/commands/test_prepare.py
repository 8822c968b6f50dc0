"""`horovod-transformer prepare` as it is typed."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest


def prepare_arguments(data_dir: Path, *more: str) -> list[str]:
    return [
        *("-m", "horovod_transformer", "prepare", "--config", "configs/quickstart.yaml"),
        *("--data.data_dir", str(data_dir), *more),
    ]


@pytest.mark.slow
def test_the_quickstart_data_from_the_command_line(run_python, tmp_path: Path) -> None:
    target = tmp_path / "v1"
    done = run_python(*prepare_arguments(target))
    assert done.returncode == 0, done.stderr
    assert f"prepared {target}: " in done.stdout
    assert "validation 2 books" in done.stdout and "blocks of 256" in done.stdout
    data = datasets.load_from_disk(str(target))
    assert len(data["train"]) > 5_000 and len(data["train"][0]["input_ids"]) == 256

    again = run_python(*prepare_arguments(target))
    assert again.returncode == 0
    assert again.stdout.splitlines() == [
        f"{target}: already prepared with these settings",
        f"next: horovod-transformer train --config configs/quickstart.yaml --data.data_dir {target}",
    ]
    other = run_python(*prepare_arguments(target, "--model.max_seq_len", "64"))
    assert other.returncode == 2 and other.stdout == ""
    assert other.stderr == (
        f"error: {target}: was prepared differently: model.max_seq_len was 256, now it is 64; "
        "use --force to replace it, or another --data.data_dir\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.source", "nowhere"], "error: nowhere: no such file or folder; data.source takes"),
        (["--data.source", "README.nothing*"], "error: README.nothing*: no file matches this pattern"),
        (
            ["--model.vocab_size", "256"],
            "error: model.vocab_size = 256: a byte-level vocabulary has at least 257",
        ),
        (
            ["--data.tokenizer", "gpt2"],
            "error: model.vocab_size = 4096: the GPT-2 tokenizer has 50257 entries",
        ),
        (["--data.validation_fraction", "1"], "error: command line: data.validation_fraction = 1: should be"),
        (["--forse"], "error: unknown argument --forse"),
    ],
)
def test_a_mistake_is_one_line(run_python, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run_python(*prepare_arguments(tmp_path / "v1", *arguments))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_teaches(run_python) -> None:
    done = run_python("-m", "horovod_transformer", "prepare", "--help")
    assert done.returncode == 0
    for word in ("--force", "--data.source ~/books", "*.parquet", "memory:", "disk:"):
        assert word in done.stdout
