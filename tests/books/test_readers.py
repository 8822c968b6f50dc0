"""Kinds of file: compressed, JSON lines, many documents in one, sentences to be joined; and bad ones."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from horovod_transformer.books.readers import ReadOptions
from horovod_transformer.books.sources import Unreadable, open_books, read_file
from horovod_transformer.config import config_from_dict
from horovod_transformer.errors import UserError
from horovod_transformer.prepare.prepare import prepare


def zstd(path: Path, content: bytes) -> None:
    with pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), "zstd") as file:
        file.write(content)


def read(path: Path | str, **options) -> list[tuple[str, str]]:
    return [(book.title, book.text) for book in open_books(str(path), ReadOptions(**options))]


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


WRITERS: dict[str, Callable[[Path, bytes], object]] = {
    "": Path.write_bytes,
    ".gz": lambda path, content: path.write_bytes(gzip.compress(content)),
    ".zst": zstd,
}


@pytest.mark.parametrize("packed", WRITERS)
def test_text_and_json_lines_packed_or_not(tmp_path: Path, packed: str) -> None:
    WRITERS[packed](tmp_path / f"a.txt{packed}", b"\xef\xbb\xbfn\xc3\xa9\r\nb")
    rows = lines({"text": "né — b", "title": "T", "id": 1}, {"text": None}, {"text": "no title"}) + b"\n\n"
    WRITERS[packed](tmp_path / f"b.jsonl{packed}", rows)
    assert read(tmp_path / f"a.txt{packed}") == [("a", "né\nb")]
    assert read(tmp_path / f"b.jsonl{packed}") == [("T", "né — b"), ("line 2", ""), ("line 3", "no title")]
    books = open_books(str(tmp_path))
    assert len(list(books)) == 4 and books.taken == {f".txt{packed}": 1, f".jsonl{packed}": 1}


def test_a_gzip_of_several_members_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two"))
    assert read(tmp_path / "a.txt.gz") == [("a", "one two")]


def test_a_text_without_an_end_is_refused_before_memory_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("horovod_transformer.books.readers.memory_bytes", lambda: 2**29)
    (bad,) = read_file(Path("/dev/zero"), ReadOptions())
    assert isinstance(bad, Unreadable)
    assert str(bad) == (
        "/dev/zero: cannot be read: larger than 0.1 GB, too much for one text on this machine; cut it up"
    )


def test_columns_by_other_names(tmp_path: Path) -> None:
    table = pa.table({"content": ["a", "b"], "name": ["A", None], "text": [1, 2]})
    pq.write_table(table, tmp_path / "x.parquet")
    (tmp_path / "y.jsonl").write_bytes(lines({"content": "c", "name": "C"}))
    options = {"text_column": "content", "title_column": "name"}
    assert read(tmp_path / "x.parquet", **options) == [("A", "a"), ("row 1", "b")]
    assert read(tmp_path / "y.jsonl", **options) == [("C", "c")]
    assert read(tmp_path / "x.parquet", text_column="content", title_column="content")[0] == ("row 0", "a")


def test_many_documents_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("one\n%%\ntwo\n%%\n \n%%\nthree\n")
    wanted = [("all 0", "one"), ("all 1", "two"), ("all 2", "three\n")]
    assert read(tmp_path / "all.txt", separator="\n%%\n") == wanted
    # As it is typed, and the manifest keeps it.
    config = config_from_dict(
        {
            "model": {"vocab_size": 260, "max_seq_len": 8},
            "data": {
                "source": str(tmp_path / "all.txt"),
                "data_dir": str(tmp_path / "v1"),
                "tokenizer": "bpe",
            },
        },
        "test",
    ).with_overrides({"data.separator": '"\\n%%\\n"', "data.min_book_characters": 0})
    with pytest.raises(UserError, match="too few"):
        prepare(config, progress=False)
    config = config.with_overrides({"model.vocab_size": 257})
    manifest = prepare(config, progress=False)
    assert sum(split["books"] for split in manifest["splits"].values()) == 3
    with pytest.raises(UserError, match=r"data\.separator was \\n%%\\n, now it is None") as caught:
        prepare(config.with_overrides({"data.separator": "null"}), progress=False)
    assert "\n" not in str(caught.value)


def sentences(path: Path, number: int) -> list[str]:
    texts = [f"he went there for the {n} th time ." for n in range(number)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=700)
    return texts


def test_a_table_of_sentences_is_refused_with_advice(tmp_path: Path) -> None:
    sentences(tmp_path / "x.parquet", 1500)
    with pytest.raises(UserError, match="its rows are sentences, not books .*data.join_rows says"):
        read(tmp_path / "x.parquet")
    (tmp_path / "x.jsonl").write_bytes(lines(*({"text": f"row {n}"} for n in range(1500))))
    with pytest.raises(UserError, match=r"x\.jsonl: its rows are sentences"):
        read(tmp_path / "x.jsonl")
    sentences(tmp_path / "few.parquet", 900)
    assert len(read(tmp_path / "few.parquet")) == 900, "a small table may be of short texts"


def test_rows_are_joined_to_documents(tmp_path: Path) -> None:
    texts = sentences(tmp_path / "x.parquet", 1500)
    books = list(open_books(str(tmp_path / "x.parquet"), ReadOptions(join_rows=400)))
    assert [book.text for book in books] == ["\n".join(texts[i : i + 400]) for i in (0, 400, 800, 1200)]
    assert books[1].title == "row 400" and books[1].origin.endswith("row 400 and the 399 rows after it")
    assert len(read(tmp_path / "x.parquet", join_rows=1)) == 1500


def text(content: bytes, name: str = "x.txt") -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def table(columns: dict, name: str = "x.parquet") -> Callable[[Path], None]:
    return lambda folder: pq.write_table(pa.table(columns), folder / name)


# name: (what lies in the folder, what the refusal says; or None: it is read)
ODD: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "no such column": (table({"content": ["a"]}), "has no column `text` but content; data.text_column"),
    "two such columns": (
        lambda f: pq.write_table(
            pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"]), f / "x.parquet"
        ),
        "has no column `text` but text, text",
    ),
    "numbers": (table({"text": [1, 2]}), "the column `text` holds int64"),
    "lists": (table({"text": [["a"]]}), "holds list<"),
    "bytes": (table({"text": [b"a"]}), "holds binary"),
    "parquet without rows": (table({"text": pa.array([], pa.string())}), None),
    "empty parquet": (text(b"", "x.parquet"), "is not a whole parquet file"),
    "text as parquet": (text(b"once upon a time " * 9, "x.parquet"), "is not a whole parquet file"),
    "empty json lines": (text(b"", "x.jsonl"), None),
    "no JSON": (text(b"{'text': 'a'}\n", "x.jsonl"), "line 1: is no JSON"),
    "no JSON later": (text(lines({"text": "a"}) + b"{\n", "x.jsonl"), "line 2: is no JSON"),
    "an array": (text(lines(["text"]), "x.jsonl"), "line 1: is not a JSON object but list"),
    "a whole JSON array": (text(b'[{"text": "a"},\n{"text": "b"}]', "x.jsonl"), "line 1: is no JSON"),
    "no such key": (text(lines({"content": "a"}), "x.jsonl"), "has no `text` but content"),
    "a number": (text(lines({"text": 3}), "x.jsonl"), "`text` is int, not a string"),
    "half a surrogate pair": (text(b'{"text": "\\ud83d"}\n', "x.jsonl"), "half of a surrogate pair"),
    "half a pair in a title": (text(b'{"text": "a", "title": "\\ud83d"}\n', "x.jsonl"), None),
    "brackets without end": (text(b'{"text": ' + b"[" * 200_000 + b"\n", "x.jsonl"), "line 1: is no JSON"),
    "json in latin-1": (text('{"text": "né"}\n'.encode("latin-1"), "x.jsonl"), "line 1: is not UTF-8"),
    "text as gzip": (text(b"plain " * 99, "x.txt.gz"), "cannot be read: "),
    "torn gzip": (text(gzip.compress(b"plain " * 9999)[:-20], "x.txt.gz"), "cannot be read: "),
    "gzip without a byte": (text(b"", "x.txt.gz"), "x.txt.gz: cannot be read: the archive has no bytes"),
    "json lines as gzip without a byte": (
        text(b"", "x.jsonl.gz"),
        "cannot be read: the archive has no bytes",
    ),
    "zstd without a byte": (text(b"", "x.jsonl.zst"), "cannot be read: the archive has no bytes"),
    "text as zstd": (text(b"plain " * 99, "x.jsonl.zst"), "after line 0: cannot be read: "),
    "latin-1": (text(b"caf\xe9"), "is not UTF-8 text (byte 3)"),
    "utf-16": (text("né".encode("utf-16")), None),
    "torn utf-16": (text("né".encode("utf-16")[:-1]), "has the mark of UTF-16 and is not UTF-16 text"),
    "a folder by a book's name": (lambda f: (f / "x.txt").mkdir(), "it is empty"),
    "a link to nowhere": (lambda f: (f / "x.txt").symlink_to(f / "gone"), "cannot be read: No such file"),
    "a link to itself": (lambda f: (f / "x.txt").symlink_to(f / "x.txt"), "cannot be read: "),
    "a pipe": (lambda f: os.mkfifo(f / "x.txt"), "cannot be read: is a pipe"),
    "archives that are none": (text(b"PK", "x.zip"), "x.zip: is broken (File is not a zip file)"),
    "archives of another kind": (text(b"7z", "x.7z"), "the data files there are not read (1 .7z); unpack"),
    "tables of another kind": (text(b"a,b", "x.csv"), "not read (1 .csv); convert it to parquet"),
    "e-books that are none": (text(b"PK", "x.epub"), "x.epub: is broken (File is not a zip file)"),
    "e-books of another kind": (text(b"BOOKMOBI", "x.mobi"), "it has only .mobi"),
    "utf-16 without a mark": (text("ne".encode("utf-16-le") * 99), "as in UTF-16 without a mark"),
    "a page by a book's name": (text(b"<!doctype html>\n<p>"), "is no plain text but an HTML page"),
    "hidden files": (text(b"a", ".x.txt"), "it is empty"),
    # Strange, and books all the same.
    "NULs": (text(b"a\0b" * 99), None),
    "right to left and emoji": (text("שלום 👩‍👩‍👧‍👦 مرحبا ".encode() * 99), None),
    "combining marks": (text(("e" + "\u0301" * 50_000).encode()), None),
    "one long line": (text(b"x" * (1 << 22)), None),
    "one long line of spaces": (text(b" " * (1 << 22) + b"x"), None),
    "line separators": (text("a\u2028b\u2029c\x85d\x0bd ".encode() * 99), None),
    "carriage returns": (text(b"a\rb\r\nc" * 99), None),
    "an end-of-text token in the text": (text(b"<|endoftext|> " * 99), None),
    "replacement characters": (text("\ufffd\ufeff\uffff".encode() * 99), None),
    "old private characters": (text("\ue000\U0010ffff".encode() * 99), None),
    "nothing but white space": (text(b" \n" * 999), None),
}


def test_there_are_enough_odd_inputs() -> None:
    assert len(ODD) >= 40


@pytest.mark.parametrize("name", ODD)
def test_odd_input_is_one_line_or_a_counted_skip_or_a_book(name: str, tmp_path: Path) -> None:
    make, said = ODD[name]
    folder = tmp_path / "books"
    folder.mkdir()
    make(folder)
    model = {"vocab_size": 50257, "max_seq_len": 16}
    data = {"source": str(folder), "data_dir": str(tmp_path / "v1"), "min_book_characters": 0}
    config = config_from_dict({"model": model, "data": data}, "test")
    if said is not None:
        with pytest.raises(UserError, match=re.escape(said)) as caught:
            prepare(config, progress=False)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
        assert not (tmp_path / "v1").exists()
    # With a good book beside it and told to skip, the work is done and what is left out is counted.
    for n in range(3):
        (folder / f"good {n}.txt").write_text(f"A good book, number {n}. " * 50)
    skipping = config.with_overrides({"data.on_bad_book": "skip"})
    unreadable = {found.origin for found in _all(folder) if isinstance(found, Unreadable)}
    if unreadable or said is None:
        manifest = prepare(skipping, progress=False)
        books = sum(split["books"] for split in manifest["splits"].values())
        assert books + sum(manifest["dropped"]["counts"].values()) >= 3
        assert manifest["unreadable"]["count"] == len(unreadable)


def _all(folder: Path) -> list:
    try:
        return list(open_books(str(folder), ReadOptions(skip_bad=True)).read())
    except UserError:
        return []


def test_a_block_longer_than_the_corpus_is_filled_up(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"{n}.txt").write_text(f"A short book, number {n}. " * 10)
    model = {"vocab_size": 260, "max_seq_len": 4096}
    data = {"source": str(tmp_path), "data_dir": str(tmp_path / "v1"), "tokenizer": "bpe"}
    manifest = prepare(config_from_dict({"model": model, "data": data}, "test"), progress=False, workers=1)
    for split in manifest["splits"].values():
        assert split["blocks"] == 1 and split["tokens"] + split["padding"] == 4096
