"""How much text there is: counted in prepared data, estimated from a sample."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from horovod_transformer.config_sections import DataConfig
from horovod_transformer.errors import UserError
from horovod_transformer.planning import corpus as corpora
from horovod_transformer.planning.corpus import estimate_corpus, prepared_corpus

WORDS = "the quick brown fox jumps over the lazy dog and runs away into the dark wood where nobody lives "


def write_books(folder: Path, number: int, repeats: int) -> None:
    folder.mkdir()
    for book in range(number):
        text = " ".join(f"{WORDS}{book} {place}" for place in range(repeats))
        (folder / f"{book}.txt").write_text(text)


def test_an_estimate_from_a_sample_is_near_what_all_of_the_text_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_books(tmp_path / "books", 20, 200)
    data = DataConfig(source=str(tmp_path / "books"))
    whole = estimate_corpus(data)
    monkeypatch.setattr(corpora, "SAMPLE_CHARACTERS", 40_000)
    part = estimate_corpus(data)
    assert whole.books == part.books == 20
    assert part.text_bytes == whole.text_bytes
    assert part.tokens == pytest.approx(whole.tokens, rel=0.25)
    assert not whole.counted


def test_held_out_books_are_left_out(tmp_path: Path) -> None:
    write_books(tmp_path / "books", 10, 100)
    some = estimate_corpus(DataConfig(source=str(tmp_path / "books"), validation_fraction=0.05))
    half = estimate_corpus(DataConfig(source=str(tmp_path / "books"), validation_fraction=0.5))
    assert half.tokens == pytest.approx(some.tokens * 0.5 / 0.95, rel=0.01)


def test_little_text_gets_a_small_vocabulary_and_much_text_gpt2s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_books(tmp_path / "books", 10, 100)
    data = DataConfig(source=str(tmp_path / "books"))
    small = estimate_corpus(data)
    assert small.tokenizer == "bpe" and small.vocab_size <= 512
    monkeypatch.setattr(corpora, "BYTES_FOR_GPT2", 1)
    large = estimate_corpus(data)
    assert large.tokenizer == "gpt2" and large.vocab_size == 50257


def test_books_that_are_not_utf8_are_seen_and_the_config_says_how_to_read_them(tmp_path: Path) -> None:
    write_books(tmp_path / "books", 10, 100)
    assert estimate_corpus(DataConfig(source=str(tmp_path / "books"))).encoding is None
    (tmp_path / "books" / "x.txt").write_bytes(("café " * 3000).encode("cp1252"))
    found = estimate_corpus(DataConfig(source=str(tmp_path / "books")))
    assert found.encoding == "cp1252" and found.books == 11


def test_many_small_files_give_as_much_of_a_sample_as_few_large_ones(tmp_path: Path) -> None:
    write_books(tmp_path / "few", 4, 500)
    write_books(tmp_path / "many", 500, 4)
    few, many = (estimate_corpus(DataConfig(source=str(tmp_path / name))) for name in ("few", "many"))
    assert many.vocab_size == few.vocab_size


def test_a_source_without_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match="no text that can be read"):
        estimate_corpus(DataConfig(source=str(tmp_path / "empty.txt")))


def test_prepared_data_is_counted_not_estimated(tmp_path: Path) -> None:
    manifest = {
        "format_version": 1,
        "splits": {"train": {"books": 3, "bytes": 3000, "tokens": 1000, "blocks": 10, "characters": 3000}},
        "settings": {"model.vocab_size": 300},
        "tokenizer": {"kind": "bpe"},
        "block_size": 100,
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    found = prepared_corpus(tmp_path)
    assert (found.books, found.tokens, found.vocab_size, found.block_size) == (3, 1000, 300, 100)
    assert found.counted and found.tokenizer == "bpe"


@pytest.mark.parametrize(
    "manifest", [None, "{}", '{"splits": {"train": {}}}', '{"splits": {"train": {"books": 1}}}']
)
def test_a_folder_without_figures_is_one_line(tmp_path: Path, manifest: str | None) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match="no prepared data with a manifest"):
        prepared_corpus(tmp_path)
