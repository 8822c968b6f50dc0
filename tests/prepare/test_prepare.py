"""Preparation: no token lost or doubled, splits by book, and no data taken for other data."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from horovod_transformer.books.sources import open_books
from horovod_transformer.config import config_from_dict
from horovod_transformer.data.manifest import find_prepared, read_manifest
from horovod_transformer.errors import UserError
from horovod_transformer.prepare.duplicates import BookTable, describe_text
from horovod_transformer.prepare.manifest import first_difference
from horovod_transformer.prepare.prepare import prepare, settings_of
from horovod_transformer.prepare.selection import choose_splits, choose_tokenizer_sample, end_cut
from horovod_transformer.tokenizer import gpt2_tokenizer, tokenizer_from_dict, train_bpe

WORDS = [
    "the",
    "sea",
    "was",
    "calm",
    "and",
    "so",
    "said",
    "captain",
    "of",
    "ship",
    "né",
    "Brême",
    "1851",
    "—",
]
BLOCK = 16


def some_text(seed: int, words: int = 300) -> str:
    chosen = random.Random(seed)
    return f"Book {seed}\n\n" + " ".join(chosen.choices(WORDS, k=words)).replace(" of ", "\n\n")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Twenty books of different lengths in a folder."""
    folder = tmp_path / "books"
    folder.mkdir()
    for seed in range(20):
        (folder / f"{seed:02}.txt").write_text(some_text(seed, 100 + 20 * seed), encoding="utf-8")
    return folder


def config_for(source: Path | str | list[str], data_dir: Path, vocab_size: int = 280, **data: Any):
    return config_from_dict(
        {
            "model": {"vocab_size": vocab_size, "max_seq_len": BLOCK},
            "data": {
                "source": source if isinstance(source, list) else str(source),
                "data_dir": str(data_dir),
                "tokenizer": "bpe",
                **data,
            },
        },
        "test",
    )


def run_quietly(
    source: Path | str | list[str], data_dir: Path, force: bool = False, **data: Any
) -> dict[str, Any]:
    return prepare(config_for(source, data_dir, **data), force=force, progress=False)


def refusal(source: Path | str | list[str], data_dir: Path, force: bool = False, **data: Any) -> str:
    with pytest.raises(UserError) as caught:
        run_quietly(source, data_dir, force, **data)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    assert not list(data_dir.parent.glob("*.unfinished-*")), "a failure leaves nothing behind"
    return text


def tokens_of(data_dir: Path, manifest: dict[str, Any], name: str) -> np.ndarray:
    """All tokens of a split in order, without the filling."""
    blocks = np.array(datasets.load_from_disk(str(data_dir))[name]["input_ids"][:])
    counts = manifest["splits"][name]
    assert blocks.shape == (counts["blocks"], BLOCK)
    assert 0 <= counts["padding"] < BLOCK and blocks.size == counts["tokens"] + counts["padding"]
    eos = tokenizer_from_dict(manifest["tokenizer"]).eos_token_id
    assert (blocks.reshape(-1)[counts["tokens"] :] == eos).all()
    return blocks.reshape(-1)[: counts["tokens"]]


def books_in(data_dir: Path, manifest: dict[str, Any], name: str) -> list[str]:
    """Decode the books of a split."""
    tokenizer = tokenizer_from_dict(manifest["tokenizer"])
    ids = tokens_of(data_dir, manifest, name)
    ends = np.flatnonzero(ids == tokenizer.eos_token_id)
    assert ends[-1] == len(ids) - 1, "every book ends with end-of-text"
    return [tokenizer.decode(part) for part in np.split(ids, ends + 1)[:-1] for part in [part[:-1]]]


def table_of(texts: list[str]) -> BookTable:
    """What units would say of these books."""
    described = [describe_text(text) for text in texts]
    return BookTable(
        np.array([list(one[0]) for one in described], np.uint8),
        np.array([len(text) for text in texts]),
        np.array([one[1] for one in described]),
        np.array([one[2] for one in described]),
        np.zeros(len(texts), int),
        np.zeros(len(texts), bool),
    )


def held_out(books: BookTable, fraction: float, seed: int = 0, by: str = "share") -> set[int]:
    kept, names = np.ones(len(books), bool), ("train", "validation")
    splits = choose_splits(books, kept, names, {"validation": fraction}, by, seed)
    return set(np.flatnonzero(splits == 1).tolist())


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "report.json", "report.html")
    }


# The whole way


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


# Dropping and splitting


def test_copies_are_told_by_words_in_whatever_pieces_they_are_looked_at() -> None:
    chosen = random.Random(1)
    space = [" ", "\n", "\t\r\n", "\x0b", "\x1c", "\x1f ", "\x85", "\xa0", "\u2028", "   "]
    for size in (0, 5, 200, 3000, 40_000):
        for alphabet in (["a", "bc", "d.", "\0"], ["a", "é", "e\u0301", "—", "🙂", "bc"]):
            words = chosen.choices(alphabet, k=size)
            text = "".join(word + chosen.choice(["", *space]) for word in words)
            plain = unicodedata.normalize("NFC", text).split()
            digest = hashlib.sha256("".join(word + " " for word in plain).encode())
            assert describe_text(text) == (digest.digest(), len(plain), len(text.encode()))


def test_empty_short_and_repeated_books_are_dropped_and_named(tmp_path: Path) -> None:
    book, other = some_text(1), some_text(2)
    rows = [
        ("first", book),
        ("blank", " \n\t "),
        ("null", None),
        ("short", "too short"),
        ("copy", book),
        ("reflowed copy", book.replace(" ", "\n ").replace("é", "e\u0301") + "\n\n"),
        ("second", other),
        ("nearly a copy", book + " and more"),
    ]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"title": [r[0] for r in rows], "text": [r[1] for r in rows]}), path)
    manifest = run_quietly(path, tmp_path / "v1", min_book_characters=20)
    assert manifest["dropped"] == {
        "counts": {"empty": 2, "too_short": 1, "duplicate": 2},
        "first_titles": {
            "empty": ["blank", "null"],
            "too_short": ["short"],
            "duplicate": ["copy", "reflowed copy"],
        },
    }
    kept = [text for name in ("train", "validation") for text in books_in(tmp_path / "v1", manifest, name)]
    assert sorted(kept) == sorted([book, other, book + " and more"])


def test_nothing_left_is_said_with_its_reasons(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "a.txt").write_text("short")
    (folder / "b.txt").touch()
    assert "no book is left of 2 (1 empty, 1 too short)" in refusal(folder, tmp_path / "v1")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "x.parquet")
    assert "hold no rows" in refusal(tmp_path / "x.parquet", tmp_path / "v1")


def test_only_names_are_capped_not_counts(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [*[""] * 500, some_text(1), some_text(2)]}), tmp_path / "x.parquet")
    dropped = run_quietly(tmp_path / "x.parquet", tmp_path / "v1")["dropped"]
    assert dropped["counts"]["empty"] == 500 and len(dropped["first_titles"]["empty"]) == 50


def test_books_are_held_out_whole_and_as_near_to_the_share_as_possible(library: Path) -> None:
    books = table_of([book.text for book in open_books(str(library))])
    total = books.characters.sum()
    for fraction in (0.01, 0.05, 0.3, 0.5, 0.99):
        chosen = held_out(books, fraction)
        share = sum(books.characters[index] for index in chosen) / total
        assert 0 < len(chosen) < 20
        left = min(length for index, length in enumerate(books.characters) if index not in chosen)
        if len(chosen) < 19:
            assert abs(share - fraction) <= left / total / 2 + 1e-9
    assert held_out(books, 0.3, 0) != held_out(books, 0.3, 1)


def test_the_split_does_not_depend_on_the_order_of_files(tmp_path: Path) -> None:
    texts = [some_text(seed) for seed in range(10)]
    chosen = []
    for name, order in (("a", texts), ("b", texts[::-1])):
        pq.write_table(pa.table({"title": [text[:7] for text in order], "text": order}), tmp_path / name)
        (tmp_path / name).rename(tmp_path / f"{name}.parquet")
        manifest = run_quietly(
            tmp_path / f"{name}.parquet", tmp_path / f"out {name}", validation_fraction=0.3
        )
        chosen.append(set(manifest["validation_books"]))
    assert chosen[0] == chosen[1] and len(chosen[0]) == 3


def test_of_two_books_each_side_gets_one(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [some_text(1, 1000), some_text(2, 100)]}), tmp_path / "x.parquet")
    manifest = run_quietly(tmp_path / "x.parquet", tmp_path / "v1")
    assert manifest["validation_books"] == ["row 1"] and manifest["splits"]["train"]["books"] == 1


def test_a_single_book_loses_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = some_text(5, 2000)
    (tmp_path / "alone.txt").write_text(text, encoding="utf-8")
    manifest = prepare(config_for(tmp_path / "alone.txt", tmp_path / "v1", validation_fraction=0.1))
    (begin,), (end,) = (books_in(tmp_path / "v1", manifest, name) for name in ("train", "validation"))
    assert begin + end == text and begin.endswith("\n\n")
    assert abs(len(end) / len(text) - 0.1) < 0.02
    assert manifest["notes"] == ["there is only one book: its end is the validation split"]
    assert manifest["notes"][0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "fraction", "end"),
    [
        ("a" * 45 + "\n\n" + "b" * 53, 0.5, "b" * 53),
        ("a" * 45 + "\n" + "b" * 54, 0.5, "b" * 54),
        ("a" * 45 + " " + "b" * 54, 0.5, "b" * 54),
        ("a" * 5 + "\n\n" + "b" * 93, 0.5, "b" * 50),
        ("x" * 100, 0.25, "x" * 25),
        ("x" * 98 + "\n\n", 0.01, "\n"),
        ("ab", 0.05, "b"),
        ("ab", 0.95, "b"),
    ],
)
def test_where_a_single_book_is_cut(text: str, fraction: float, end: str) -> None:
    assert text[end_cut(text, fraction) :] == end


def test_a_book_of_one_character_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    assert "cannot be split" in refusal(tmp_path / "x.txt", tmp_path / "v1", min_book_characters=0)


def test_a_source_that_changes_meanwhile_is_noticed(library: Path, tmp_path: Path) -> None:
    books = open_books(str(library))
    (library / "07.txt").write_text("rewritten")
    with pytest.raises(UserError, match=r"07\.txt: has changed while"):
        list(books)


@pytest.mark.parametrize("by", ["share", "hash"])
def test_a_test_split_is_of_other_books(library: Path, tmp_path: Path, by: str) -> None:
    (library / "copy.txt").write_bytes((library / "03.txt").read_bytes())
    manifest = run_quietly(
        library, tmp_path / "v1", validation_fraction=0.2, test_fraction=0.3, split=by, split_seed=1
    )
    assert list(manifest["splits"]) == ["train", "validation", "test"]
    read = {name: books_in(tmp_path / "v1", manifest, name) for name in manifest["splits"]}
    texts = [path.read_text(encoding="utf-8") for path in sorted(library.iterdir()) if path.stem != "copy"]
    assert sorted(book for books in read.values() for book in books) == sorted(texts)
    assert manifest["dropped"]["counts"]["duplicate"] == 1
    if by == "share":
        total = sum(map(len, texts))
        for name, fraction in (("validation", 0.2), ("test", 0.3)):
            assert abs(sum(map(len, read[name])) / total - fraction) < 0.03
    text = refusal(library, tmp_path / "v1", validation_fraction=0.2, split=by, split_seed=1)
    assert "data.test_fraction was 0.3, now it is 0.0" in text


def test_the_same_books_are_held_out_for_validation_with_and_without_a_test_split(library: Path) -> None:
    books = table_of([book.text for book in open_books(str(library))])
    kept, names = np.ones(len(books), bool), ("train", "validation", "test")
    splits = choose_splits(books, kept, names, {"validation": 0.1, "test": 0.3}, "share", 0)
    assert set(np.flatnonzero(splits == 1).tolist()) == held_out(books, 0.1)


def test_a_hash_moves_no_book_when_others_come() -> None:
    texts = [some_text(seed, 50) for seed in range(3000)]
    few, many = table_of(texts[:1000]), table_of(texts[::-1])
    chosen = {texts[place] for place in held_out(few, 0.1, by="hash")}
    later = {texts[::-1][place] for place in held_out(many, 0.1, by="hash")}
    assert chosen == later & set(texts[:1000])
    assert 70 < len(chosen) < 130 and 250 < len(later) < 350
    assert held_out(few, 0.1, 1, by="hash") != held_out(few, 0.1, 0, by="hash")
    assert {texts[place] for place in held_out(few, 0.1)} != {
        text for text in (texts[::-1][place] for place in held_out(many, 0.1)) if text in set(texts[:1000])
    }, "which shares cannot promise"


def test_a_hash_that_holds_out_nothing_is_said(library: Path, tmp_path: Path) -> None:
    text = refusal(library, tmp_path / "v1", validation_fraction=0.0001, split="hash")
    assert "of 20 books none falls into validation" in text and "data.split = share" in text


def test_a_single_book_may_have_a_test_split_too(tmp_path: Path) -> None:
    text = some_text(5, 4000)
    (tmp_path / "alone.txt").write_text(text, encoding="utf-8")
    manifest = run_quietly(
        tmp_path / "alone.txt", tmp_path / "v1", validation_fraction=0.1, test_fraction=0.2
    )
    pieces = [books_in(tmp_path / "v1", manifest, name)[0] for name in ("train", "validation", "test")]
    assert "".join(pieces) == text and all(piece.endswith("\n\n") for piece in pieces[:2])
    for piece, share in zip(pieces, (0.7, 0.1, 0.2), strict=True):
        assert abs(len(piece) / len(text) - share) < 0.02
    (tmp_path / "other.txt").write_text(some_text(6, 4000), encoding="utf-8")
    both = [str(tmp_path / "alone.txt"), str(tmp_path / "other.txt")]
    text = refusal(both, tmp_path / "v2", test_fraction=0.2)
    assert "2 books cannot be shared out to train, validation, test" in text


# The folder


def test_prepared_data_is_left_as_it_is(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_quietly(library, tmp_path / "v1")
    before = (tmp_path / "v1" / "manifest.json").stat()
    assert prepare(config_for(library, tmp_path / "v1", num_workers=0)) == first
    assert "already prepared with these settings" in capsys.readouterr().out
    after = (tmp_path / "v1" / "manifest.json").stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_size,
    )


def test_other_settings_are_named_and_force_replaces(library: Path, tmp_path: Path) -> None:
    run_quietly(library, tmp_path / "v1")
    before = digest(tmp_path / "v1")
    for key, value, was in (("split_seed", 3, 0), ("validation_fraction", 0.5, 0.05)):
        text = refusal(library, tmp_path / "v1", **{key: value})
        assert f"data.{key} was {was}, now it is {value}; use --force" in text
    (library / "03.txt").write_text(some_text(99), encoding="utf-8")
    assert "the source file 03.txt has changed" in refusal(library, tmp_path / "v1")
    (library / "03.txt").unlink()
    assert "the source file 03.txt is gone" in refusal(library, tmp_path / "v1")
    (library / "new.md").write_text(some_text(98), encoding="utf-8")
    assert "the source file new.md was not there" in refusal(library, tmp_path / "v1")
    assert digest(tmp_path / "v1") == before
    manifest = run_quietly(library, tmp_path / "v1", force=True)
    assert manifest["splits"]["train"]["books"] + manifest["splits"]["validation"]["books"] == 20
    assert sorted(os.listdir(tmp_path)) == ["books", "v1"]
    assert run_quietly(library, tmp_path / "v1") == manifest


def test_another_order_of_files_is_other_data(library: Path, tmp_path: Path) -> None:
    files = [str(path) for path in sorted(library.iterdir())]
    run_quietly(files, tmp_path / "v1")
    assert "the source files come in another order" in refusal(files[::-1], tmp_path / "v1")


def test_what_ranks_read_does_not_grow_with_the_files(library: Path, tmp_path: Path) -> None:
    manifest = run_quietly(library, tmp_path / "v1")
    assert len(manifest["source"]["files"]) == len(os.listdir(library))
    stored = read_manifest(tmp_path / "v1")
    assert "files" not in stored["source"] and stored["splits"] == manifest["splits"]
    (library / "new.md").write_text("Another book. " * 50)
    assert "the source file new.md was not there" in refusal(library, tmp_path / "v1")


def test_another_tokenizer_is_named_whether_or_not_it_is_trained() -> None:
    settings = settings_of(config_for("x", Path("v1")).with_overrides({"data.tokenizer_characters": 5000}))
    trained, chosen = settings.recorded(None), settings.recorded(gpt2_tokenizer())
    trained["data.tokenizer"] = "bpe"
    for had, wanted in ((trained, chosen), (chosen, trained)):
        manifest = {"format_version": 1, "settings": had, "source": {"files": []}}
        was, now = had["data.tokenizer"], wanted["data.tokenizer"]
        assert first_difference(manifest, wanted, []) == f"data.tokenizer was {was}, now it is {now}"


def test_a_hundred_thousand_files_are_compared_in_no_time() -> None:
    config = config_for("x", Path("v1"))
    files = [[f"books/{n}.txt", n, n] for n in range(100_000)]
    settings = settings_of(config).recorded(None)
    manifest = {"format_version": 1, "settings": settings, "source": {"files": files}}
    now = [list(entry) for entry in files]
    began = time.perf_counter()
    assert first_difference(manifest, settings, now) is None
    now[70_000][1] += 1
    assert first_difference(manifest, settings, now) == "the source file books/70000.txt has changed"
    del now[70_000]
    assert first_difference(manifest, settings, now).endswith("70000.txt is gone")
    assert time.perf_counter() - began < 5


def test_a_lost_split_is_noticed(library: Path, tmp_path: Path) -> None:
    run_quietly(library, tmp_path / "v1")
    (tmp_path / "v1" / "train" / "state.json").unlink()
    assert "its file train/state.json cannot be read: No such file or directory; use --force" in refusal(
        library, tmp_path / "v1"
    )


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"settings": 1, "source": {"files": []}}'])
def test_a_folder_that_is_not_ours_is_never_touched(
    library: Path, tmp_path: Path, content: str | None
) -> None:
    target = tmp_path / "v1"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    if content is not None:
        (target / "manifest.json").write_text(content)
    for force in (False, True):
        assert "is not empty and not ours" in refusal(library, target, force)
    assert (target / "thesis.txt").read_text() == "years of work"


def test_places_where_nothing_can_be_written(library: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "is a file; data.data_dir names a folder" in refusal(library, tmp_path / "file")
    assert "a part of this path is a file" in refusal(library, tmp_path / "file" / "v1")
    with pytest.raises(UserError, match="cannot be written: .*; choose another place"):
        run_quietly(library, Path("/proc/1/v1"))


def test_an_empty_folder_and_a_link_are_fine_places(library: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "scratch" / "real")
    run_quietly(library, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "scratch" / "real" / "manifest.json").is_file()


def test_what_dead_tries_left_is_cleared_and_the_living_are_spared(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host, dead = socket.gethostname(), subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [
        f"v1.unfinished-{host}-{dead.pid}",
        f"v1.unfinished-{host}-{os.getppid()}",
        "v1.unfinished-far-7",
    ]
    for name in [*names, f"v1.replaced-{host}-{dead.pid}"]:
        (tmp_path / name).mkdir()
    (tmp_path / f"v1.replaced-{host}-{dead.pid}" / "old").touch()
    (tmp_path / "v10.unfinished-x").mkdir()
    # A try that was killed between its two renames: the old data comes back and is then refused as not ours.
    with pytest.raises(UserError, match="not ours"):
        prepare(config_for(library, tmp_path / "v1"))
    assert os.listdir(tmp_path / "v1") == ["old"]
    assert sorted(os.listdir(tmp_path)) == sorted(["books", "v1", "v10.unfinished-x", *names[1:]])
    said = capsys.readouterr().out
    assert f"{names[0]}: removed" in said and "v1: brought back" in said
    assert f"{names[1]}: belongs to another process" in said and f"{names[2]}: belongs to" in said
