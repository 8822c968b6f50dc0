"""A user's mistake is one line that says what and where, exit code 2, and nothing is lost.

The table runs the commands in this process; `tests/distributed` repeats a few under horovodrun.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from horovod_transformer.__main__ import _dispatch
from horovod_transformer.checkpoint.format import load_checkpoint, save_checkpoint
from horovod_transformer.commands.command_line import run_command
from horovod_transformer.config import load_config
from horovod_transformer.prepare.prepare import prepare

SHAPE = [
    *("--model.vocab_size", "300", "--model.d_model", "16", "--model.n_layers", "1", "--model.n_heads", "2"),
    *("--model.d_ff", "32", "--model.max_seq_len", "32"),
]
CONFIG = """\
model: {vocab_size: 300, d_model: 16, n_layers: 1, n_heads: 2, d_ff: 32, max_seq_len: 32}
training: {max_updates: 2, global_batch_size: 4, per_gpu_batch_size: 4, warmup_updates: 1}
data: {source: BOOKS, tokenizer: bpe, data_dir: DATA, num_workers: 0}
"""
BOOK = "It was a dark night, {n} times darker than any; the {n} lamps went out one after the other.\n" * 20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good books, data, config and checkpoint, and a damaged sibling of each; read only."""
    folder = tmp_path_factory.mktemp("bad_input")
    books = folder / "books"
    books.mkdir()
    for n in range(4):
        (books / f"{n}.txt").write_text(BOOK.replace("{n}", str(n * 7 + 3)))
    config = folder / "good.yaml"
    config.write_text(CONFIG.replace("BOOKS", str(books)).replace("DATA", str(folder / "data")))
    prepare(load_config(config))
    assert (
        run_command(_dispatch, ["train", "--config", str(config), "--output_dir", str(folder / "run")]) == 0
    )
    good = folder / "run/checkpoints/last.pt"
    _damage_checkpoints(folder, good)
    _damage_data(folder)
    (folder / "latin1.txt").write_bytes("Brême à l'aube. ".encode("latin-1") * 50)
    (folder / "empty_books").mkdir()
    (folder / "no_text.parquet").write_bytes(b"PAR1 not really")
    (folder / "list.yaml").write_text("- model\n- training\n")
    (folder / "broken.yaml").write_text("model:\n  d_model: [1, 2\n")
    (folder / "binary.yaml").write_bytes(bytes(range(256)))
    (folder / "section.yaml").write_text("model: 7\n")
    (folder / "two.yaml").write_text("training: {global_batch_size: 8, gradient_accumulation_steps: 2}\n")
    (folder / "file").write_text("in the way")
    return folder


class _Evil:
    def __reduce__(self):
        return os.system, ("touch " + os.environ["EVIL_MARK"],)


def _damage_checkpoints(folder: Path, good: Path) -> None:
    whole = good.read_bytes()
    (folder / "empty.pt").write_bytes(b"")
    (folder / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    # One bit of one weight: the middle of the largest stored tensor.
    with zipfile.ZipFile(good) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        start = whole.index(archive.read(largest))
    flipped = bytearray(whole)
    flipped[start + largest.file_size // 2] ^= 4
    (folder / "flipped.pt").write_bytes(flipped)
    (folder / "text.pt").write_text("These are not weights.\n")
    torch.save({"model": {}}, folder / "foreign.pt")
    contents = load_checkpoint(good)
    save_checkpoint(folder / "newer.pt", {**contents, "format_version": 99})
    save_checkpoint(folder / "odd_config.pt", {**contents, "config": {"model": {"layers": 3}}})
    save_checkpoint(folder / "other_data.pt", _with_identity(contents, "data", "another corpus"))
    save_checkpoint(folder / "other_seed.pt", _with_identity(contents, "seed", 4242))
    os.environ["EVIL_MARK"] = str(folder / "evil_was_run")
    with open(folder / "evil.pt", "wb") as file:
        pickle.dump(_Evil(), file)
    torch.save({**contents, "progress": _Evil()}, folder / "evil_zip.pt")


def _with_identity(contents: dict, key: str, value: object) -> dict:
    progress = contents["progress"]
    return {**contents, "progress": {**progress, "identity": {**progress["identity"], key: value}}}


def _damage_data(folder: Path) -> None:
    shutil.copytree(folder / "data", folder / "torn_data")
    arrow = next((folder / "torn_data" / "train").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:200])
    shutil.copytree(folder / "data", folder / "bad_manifest")
    (folder / "bad_manifest/manifest.json").write_text("{")
    for name, rows in {"wide_ids": [[70000] * 32] * 8, "ragged": [[1] * 32, [2] * 20] * 4}.items():
        split = datasets.Dataset.from_dict({"input_ids": [list(map(int, row)) for row in rows]})
        datasets.DatasetDict({"train": split, "validation": split}).save_to_disk(str(folder / name))
    split = datasets.Dataset.from_dict({"words": np.zeros((4, 2), dtype=np.int64).tolist()})
    datasets.DatasetDict({"train": split, "validation": split}).save_to_disk(str(folder / "no_column"))
    (folder / "not_data").mkdir()
    (folder / "not_data/notes.txt").write_text("precious")


TRAIN = ["train", "--config", "{w}/good.yaml", "--output_dir", "{w}/out"]
PREPARE = ["prepare", "--config", "{w}/good.yaml", "--data.data_dir", "{w}/new_data"]
GENERATE = ["generate", "--checkpoint", "{w}/run/checkpoints/last.pt"]

# name: (command line, what the line must say)
CASES: dict[str, tuple[list[str], list[str]]] = {
    # the command line
    "unknown subcommand": (["trian"], ["trian", "train"]),
    "unknown option": ([*TRAIN, "--epochs", "3"], ["--epochs"]),
    "override without value": ([*TRAIN, "--training.seed"], ["--training.seed", "value"]),
    "stray word": ([*TRAIN, "configs"], ["configs"]),
    "number expected": ([*GENERATE, "--max_new_tokens", "many"], ["many"]),
    # config
    "config missing": (["train", "--config", "{w}/none.yaml"], ["none.yaml", "no such"]),
    "config is a folder": (["train", "--config", "{w}/data"], ["data", "folder"]),
    "config is binary": (["train", "--config", "{w}/binary.yaml"], ["binary.yaml"]),
    "config is no YAML": (["train", "--config", "{w}/broken.yaml"], ["broken.yaml", "line"]),
    "config is a list": (["train", "--config", "{w}/list.yaml"], ["list.yaml", "sections"]),
    "section is a number": (["train", "--config", "{w}/section.yaml"], ["section.yaml", "model"]),
    "unknown key": ([*TRAIN, "--training.learning_rat", "1"], ["learning_rat", "learning_rate"]),
    "unknown section": ([*TRAIN, "--trainin.seed", "1"], ["trainin", "training"]),
    "wrong type": ([*TRAIN, "--model.d_model", "wide"], ["model.d_model", "wide", "integer"]),
    "not above zero": ([*TRAIN, "--training.learning_rate", "-1"], ["learning_rate", "-1", "greater"]),
    "not a number": ([*TRAIN, "--training.learning_rate", ".nan"], ["learning_rate", "finite"]),
    "not a choice": ([*TRAIN, "--training.schedule", "step"], ["schedule", "step", "cosine"]),
    "heads do not divide": ([*TRAIN, "--model.n_heads", "3"], ["n_heads", "3", "16"]),
    "batch said twice": (["train", "--config", "{w}/two.yaml"], ["two.yaml", "global_batch_size"]),
    # books
    "source missing": ([*PREPARE, "--data.source", "{w}/nowhere"], ["nowhere"]),
    "source is an empty folder": ([*PREPARE, "--data.source", "{w}/empty_books"], ["empty_books"]),
    "source of an odd kind": ([*PREPARE, "--data.source", "{w}/good.yaml"], ["good.yaml"]),
    "parquet is not parquet": ([*PREPARE, "--data.source", "{w}/no_text.parquet"], ["no_text.parquet"]),
    "text is not UTF-8": ([*PREPARE, "--data.source", "{w}/latin1.txt"], ["latin1.txt", "UTF-8"]),
    "all books too short": ([*PREPARE, "--data.min_book_characters", "999999"], ["min_book_characters"]),
    "vocabulary below the bytes": ([*PREPARE, "--model.vocab_size", "100"], ["100"]),
    "vocabulary below GPT-2's": ([*PREPARE, "--data.tokenizer", "gpt2"], ["300", "50257"]),
    "data folder is a file": ([*PREPARE, "--data.data_dir", "{w}/file"], ["file"]),
    "data folder is someone else's": ([*PREPARE, "--data.data_dir", "{w}/not_data"], ["not_data"]),
    "data prepared otherwise": (
        ["prepare", "--config", "{w}/good.yaml", "--data.split_seed", "5"],
        ["split_seed", "--force"],
    ),
    # prepared data
    "data missing": ([*TRAIN, "--data.data_dir", "{w}/nowhere"], ["nowhere", "prepare"]),
    "data is something else": ([*TRAIN, "--data.data_dir", "{w}/not_data"], ["not_data"]),
    "data truncated": ([*TRAIN, "--data.data_dir", "{w}/torn_data"], ["torn_data"]),
    "manifest broken": ([*TRAIN, "--data.data_dir", "{w}/bad_manifest"], ["manifest.json"]),
    "no column input_ids": ([*TRAIN, "--data.data_dir", "{w}/no_column"], ["input_ids"]),
    "blocks of many lengths": ([*TRAIN, "--data.data_dir", "{w}/ragged"], ["ragged", "length"]),
    "ids beyond the vocabulary": ([*TRAIN, "--data.data_dir", "{w}/wide_ids"], ["wide_ids", "row", "70000"]),
    "blocks longer than the context": ([*TRAIN, "--model.max_seq_len", "16"], ["32", "max_seq_len", "16"]),
    "vocabulary smaller than the data's": ([*TRAIN, "--model.vocab_size", "290"], ["290"]),
    # checkpoints
    "resume from nothing": ([*TRAIN, "--resume", "{w}/nothing.pt"], ["nothing.pt", "no such"]),
    "resume from a folder": ([*TRAIN, "--resume", "{w}/data"], ["data"]),
    "resume and init_from": ([*TRAIN, "--resume", "auto", "--init_from", "x"], ["--resume", "--init_from"]),
    "empty checkpoint": ([*TRAIN, "--resume", "{w}/empty.pt"], ["empty.pt"]),
    "truncated checkpoint": ([*TRAIN, "--resume", "{w}/truncated.pt"], ["truncated.pt"]),
    "flipped bit": ([*TRAIN, "--resume", "{w}/flipped.pt"], ["flipped.pt", "checksum"]),
    "text as a checkpoint": ([*TRAIN, "--init_from", "{w}/text.pt"], ["text.pt"]),
    "foreign checkpoint": ([*TRAIN, "--init_from", "{w}/foreign.pt"], ["foreign.pt"]),
    "newer format": ([*TRAIN, "--resume", "{w}/newer.pt"], ["newer.pt", "99"]),
    "malicious pickle": ([*GENERATE[:2], "{w}/evil.pt"], ["evil.pt"]),
    "malicious pickle in a zip": ([*TRAIN, "--resume", "{w}/evil_zip.pt"], ["evil_zip.pt"]),
    "checkpoint with an odd config": ([*GENERATE[:2], "{w}/odd_config.pt"], ["odd_config.pt", "layers"]),
    "checkpoint of another model": (
        [*TRAIN, "--resume", "{w}/run/checkpoints/last.pt", "--model.d_ff", "64"],
        ["d_ff"],
    ),
    "checkpoint of another corpus": ([*TRAIN, "--resume", "{w}/other_data.pt"], ["data", "--init_from"]),
    "checkpoint of another seed": ([*TRAIN, "--resume", "{w}/other_seed.pt"], ["seed", "4242"]),
    # paths
    "output is a file": ([*TRAIN[:3], "--output_dir", "{w}/file"], ["file"]),
    "log folder is a file": ([*TRAIN, "--paths.log_dir", "/dev/null"], ["/dev/null"]),
    # generation
    "no checkpoint to generate from": ([*GENERATE[:2], "{w}/nothing.pt"], ["nothing.pt"]),
    "temperature below zero": ([*GENERATE, "--temperature", "-1"], ["temperature"]),
    "top_p of zero": ([*GENERATE, "--top_p", "0"], ["top_p"]),
    "no tokens wanted": ([*GENERATE, "--max_new_tokens", "0"], ["max_new_tokens"]),
    "device unknown": ([*GENERATE, "--device", "abacus"], ["abacus"]),
    "prompt file missing": ([*GENERATE, "--prompt_file", "{w}/none.txt"], ["none.txt"]),
    "config of another model": ([*GENERATE, "--config", "configs/config.yaml"], ["config.yaml"]),
}


def _contents(folder: Path) -> dict[str, str]:
    """Hash of every file of the given world but what a failed run may add."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        # Units that were finished before the mistake was met stay, for the next start.
        and path.relative_to(folder).parts[0] not in ("out", "new_data.units")
    }


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line(
    name: str, world: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    monkeypatch.chdir(root)
    words, expected = CASES[name]
    before = _contents(world)
    code = run_command(_dispatch, [word.replace("{w}", str(world)) for word in words])
    errors = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert code == 2
    lines = [line for line in errors if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0] == errors[-1], errors
    assert "Traceback" not in "\n".join(errors)
    for part in expected:
        assert part in lines[0]
    assert _contents(world) == before
    assert not (world / "evil_was_run").exists()


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 40


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(arguments: object) -> int:
        raise KeyError("not the user's fault")

    main: Callable = bug
    with pytest.raises(KeyError):
        run_command(main, [])
