"""The methods paragraph and BibTeX of a run."""

from __future__ import annotations

import re

import yaml

from horovod_transformer.config import config_from_dict
from horovod_transformer.reports.methods import YEAR, bibtex, methods, software_entry
from horovod_transformer.reports.run_records import RunRecords

CONFIG = config_from_dict({"training": {"optimizer": "muon", "schedule": "linear"}}, "test").to_dict()


def run_of(**environment):
    flat = {f"{part}.{key}": value for part, values in CONFIG.items() for key, value in values.items()}
    train = {"update": [1.0, 120.0], "tokens": [9.0, 489600.0], "epoch": [0.1, 0.3], "seconds": [1.0, 9000.0]}
    validation = {"update": [60.0, 120.0], "loss": [4.5, 4.25], "bits_per_byte": [2.5, 2.25]}
    return RunRecords("first", train, validation, flat, environment)


def test_a_run_in_words():
    said = methods(
        run_of(
            parameters=123653376,
            books=36,
            validation_books=2,
            training_tokens=1615782,
            data_fingerprint="dcaaddc59fd96b243d45",
            warmup_updates=12,
            world_size=4,
            hosts=1,
            cards=["NVIDIA H100"] * 4,
            cpu="a CPU",
            precision="bf16",
            python="3.12.1",
            git_commit="abc",
            packages={"horovod_transformer": "0.1.0", "torch": "2.9", "horovod": None},
        )
    )
    for words in (
        "with 123,653,376 parameters (12 layers, width 768, 12 attention heads",
        "36 books and 1,615,782 tokens; 2 further books were held out whole",
        "Digest of the prepared data: dcaaddc59fd96b24.",
        "120 updates of",
        "489,600 tokens or 0.30 epochs",
        "Muon",
        "rose over 12 updates to 0.0006, falling linearly to 0.1 of that",
        "The seed was 1337.",
        "4 processes on 1 machine (NVIDIA H100), in bf16, and took 2.5 hours.",
        "4.2500 nats per token (2.250 bits per byte), at update 120",
        "horovod_transformer 0.1.0 (commit abc), PyTorch 2.9, Python 3.12.1.",
    ):
        assert words in said, (words, said)


def test_what_was_not_recorded_is_left_out():
    said = methods(run_of())
    assert "None" not in said and "books" not in said and "Digest" not in said
    empty = RunRecords("first", {"update": [1.0]}, {})
    assert methods(empty).startswith("We trained a decoder-only transformer. Training took 1 update, ")
    assert "null" not in methods(empty) and "Version" in bibtex(empty)


def test_bibtex_has_whole_entries():
    text = bibtex(run_of(packages={"horovod_transformer": "9.9"}, git_commit="abc"))
    assert text.count("{") == text.count("}") and text.count("\n@") == 1
    assert f"year = {{{YEAR}}}" in text and "Version 9.9, commit abc" in text and "1802.05799" in text


def test_the_citation_file_says_the_same(root):
    """Its BibTeX stands in a comment: the format has no place for it."""
    text = (root / "CITATION.cff").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    assert values["preferred-citation"]["year"] == YEAR
    comment = "\n".join(line.removeprefix("#")[1:] for line in text.splitlines() if line.startswith("#"))
    assert software_entry(f"Version {values['version']}") in comment
    assert not re.search(r"https?:", text)  # no address is known
