"""Preparation, the whole way: no token lost or doubled, the same bytes from the same books."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from horovod_transformer.data.manifest import find_prepared
from horovod_transformer.prepare.prepare import prepare
from horovod_transformer.prepare.selection import choose_tokenizer_sample
from horovod_transformer.tokenizer import tokenizer_from_dict, train_bpe
from tests.prepare.conftest import (
    BLOCK,
    books_in,
    config_for,
    digest,
    held_out,
    refusal,
    run_quietly,
    table_of,
)


def test_what_is_read_back_is_the_books(library: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "down" / "v1"
    manifest = run_quietly(library, target, validation_fraction=0.2)
    assert find_prepared(target) == manifest
    read = {name: books_in(target, manifest, name) for name in ("train", "validation")}
    texts = {path.stem: path.read_text(encoding="utf-8") for path in library.iterdir()}
    titles = manifest["validation_books"]
    assert read["validation"] == [texts[title] for title in sorted(titles)]
    assert read["train"] == [text for title, text in sorted(texts.items()) if title not in titles]
    for name, books in read.items():
        counts = manifest["splits"][name]
        assert counts["books"] == len(books)
        assert counts["characters"] == sum(map(len, books))
        assert counts["bytes"] == sum(len(book.encode()) for book in books)
    share = manifest["splits"]["validation"]["characters"] / sum(map(len, texts.values()))
    assert abs(share - 0.2) < 0.02
    assert os.listdir(target.parent) == ["v1"]


def test_the_column_is_what_is_promised(library: Path, tmp_path: Path) -> None:
    manifest = run_quietly(library, tmp_path / "v1")
    data = datasets.load_from_disk(str(tmp_path / "v1"))
    assert list(data) == ["train", "validation"]
    for name, split in data.items():
        assert split.column_names == ["input_ids"]
        column = split.data.column("input_ids")
        assert column.type == pa.list_(pa.uint16(), BLOCK) and column.null_count == 0
        content = b"".join(chunk.flatten().to_numpy().tobytes() for chunk in column.chunks)
        assert hashlib.sha256(content).hexdigest() == manifest["splits"][name]["sha256"]
    assert manifest["dtype"] == "uint16" and manifest["block_size"] == BLOCK
    assert manifest["format_version"] == 1


def test_gpt2_tokens_need_room_in_the_model(library: Path, tmp_path: Path) -> None:
    text = refusal(library, tmp_path / "v1", tokenizer="gpt2")
    assert text.startswith("model.vocab_size = 280: the GPT-2 tokenizer has 50257 entries")
    config = config_for(library, tmp_path / "v1", vocab_size=50304, tokenizer="gpt2")
    manifest = prepare(config, progress=False)
    assert manifest["tokenizer"] == {"kind": "gpt2"}
    assert sum(map(len, books_in(tmp_path / "v1", manifest, "train"))) > 0


def test_the_vocabulary_is_learned_from_training_books_only(library: Path, tmp_path: Path) -> None:
    first = run_quietly(library, tmp_path / "one", validation_fraction=0.2)
    chosen = first["validation_books"]
    tokenizer = tokenizer_from_dict(first["tokenizer"])
    texts = [
        path.read_text(encoding="utf-8") for path in sorted(library.iterdir()) if path.stem not in chosen
    ]
    assert train_bpe(texts, 280).to_dict() == tokenizer.to_dict()


def test_a_large_corpus_gives_the_tokenizer_a_sample_chosen_by_text(library: Path, tmp_path: Path) -> None:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(library.iterdir())}
    books = table_of(list(texts.values()))
    chosen = held_out(books, 0.2)
    training = np.array([index not in chosen for index in range(len(books))])
    samples = [
        set(np.flatnonzero(choose_tokenizer_sample(books, training, 9000, seed)).tolist())
        for seed in (0, 0, 1)
    ]
    for sample in samples:
        total = sum(books.characters[index] for index in sample)
        assert not sample & chosen and 9000 - max(books.characters) < total <= 9000
    assert samples[0] == samples[1] != samples[2]
    manifest = run_quietly(library, tmp_path / "v1", validation_fraction=0.2, tokenizer_characters=9000)
    learned_from = [text for index, text in enumerate(texts.values()) if index in samples[0]]
    assert train_bpe(learned_from, 280).to_dict() == manifest["tokenizer"]
    # All books are tokenized, whatever the sample.
    assert sum(split["books"] for split in manifest["splits"].values()) == 20
    text = refusal(library, tmp_path / "v1", validation_fraction=0.2)
    assert "data.tokenizer_characters was 9000, now it is 200000000" in text
    assert choose_tokenizer_sample(books, training, 1, 0).sum() == 1


def test_the_same_books_give_the_same_bytes(library: Path, tmp_path: Path) -> None:
    one, two = (run_quietly(library, tmp_path / name) for name in ("one", "two"))
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert one["fingerprint"] == two["fingerprint"]
    other = run_quietly(library, tmp_path / "three", split_seed=2)
    assert other["fingerprint"] != one["fingerprint"]
    assert other["validation_books"] != one["validation_books"]
