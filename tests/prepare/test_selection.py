"""Which books are held out: whole ones, whatever the order of files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from horovod_transformer.books.sources import open_books
from horovod_transformer.errors import UserError
from horovod_transformer.prepare.prepare import prepare
from horovod_transformer.prepare.selection import choose_splits, end_cut
from tests.prepare.conftest import (
    books_in,
    config_for,
    held_out,
    refusal,
    run_quietly,
    some_text,
    table_of,
)


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


def test_much_more_held_out_than_was_asked_for_is_noted(tmp_path: Path, capsys) -> None:
    for number, books in ((2, 2), (3, 3), (40, 40)):
        folder = tmp_path / f"{number} books"
        folder.mkdir()
        for n in range(books):
            (folder / f"{n}.txt").write_text(some_text(n), encoding="utf-8")
    said = {}
    for number in (2, 3, 40):
        manifest = run_quietly(tmp_path / f"{number} books", tmp_path / f"v{number}")
        said[number] = manifest["notes"]
    assert re.fullmatch(r"(49|50|51)% of the tokens are held out for validation, .* is 0.05: .*", said[2][0])
    assert said[3][0].startswith("3") and said[40] == []
