"""Empty, short and repeated books are dropped, named and counted."""

from __future__ import annotations

import hashlib
import random
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from horovod_transformer.prepare.duplicates import describe_text
from tests.prepare.conftest import (
    books_in,
    refusal,
    run_quietly,
    some_text,
)


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
