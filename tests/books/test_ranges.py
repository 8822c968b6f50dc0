"""Ranges: whatever the cuts, they join to the books of the whole file; the files alone decide them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from horovod_transformer.books.ranges import FileRange
from horovod_transformer.books.readers import ReadOptions
from horovod_transformer.books.sources import open_books
from horovod_transformer.prepare.shards import plan_shards


def texts(path: Path, range_bytes: int | None = None, **options) -> tuple[list[str], list[FileRange]]:
    books = open_books(str(path), ReadOptions(**options), range_bytes)
    return [book.text for book in books], list(books.ranges)


@pytest.mark.parametrize("separator", ["\n\n", "\n%%\n", "aa", "\na\n", "é\n", "a\na"])
def test_text_is_cut_where_the_reader_would_split_it(tmp_path: Path, separator: str) -> None:
    chosen = random.Random(separator)
    cuts = 0
    for number in range(40):
        alphabet = ["a", "é", "\n", "\r\n", "\r", "b ", separator, separator.replace("\n", "\r\n"), "\ufeff"]
        path = tmp_path / f"{number}.txt"
        path.write_bytes("".join(chosen.choices(alphabet, k=200)).encode())
        whole, (one,) = texts(path, separator=separator)
        for range_bytes in (1, 7, 30):
            pieces, ranges = texts(path, range_bytes, separator=separator)
            assert pieces == whole
            cuts += len(ranges) - 1
        assert (one.start, one.stop) == (0, path.stat().st_size)
    assert cuts > 400


def test_text_is_not_cut_where_bytes_do_not_tell(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(("a %% b\n" * 99).encode("utf-16"))
    for encoding in ("utf-16", "shift-jis"):
        assert len(open_books(str(path), ReadOptions(encoding=encoding, separator="%%"), 20).ranges) == 1
    path.write_bytes("né %% b\n".encode("latin-1") * 99)
    assert len(texts(path, 20, encoding="latin-1", separator="%%")[1]) > 20
    assert len(texts(path, 20, encoding="latin-1", separator="é")[1]) == 1
    assert len(texts(path, 20, encoding="latin-1")[1]) == 1, "one file is one book"


def test_json_lines_are_cut_at_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    rows = [json.dumps({"text": f"row {n}\n" * (n % 5)}) for n in range(200)]
    path.write_text("\n\n".join(rows))
    whole, _ = texts(path)
    assert len(whole) == 200
    for range_bytes in (1, 100, 999):
        pieces, ranges = texts(path, range_bytes)
        assert pieces == whole and len(ranges) > 1
    books = list(open_books(str(path), range_bytes=999))
    assert books[0].title == "line 1"
    place = int(books[-1].title.rpartition(" ")[2])
    line = int(books[-1].title.split()[1])
    # As the title says: so many lines after that byte.
    assert path.read_bytes()[place:].split(b"\n")[line - 1] == rows[-1].encode()
    assert len(texts(path, 100, join_rows=3)[1]) == 1, "which rows belong together only counting tells"


@pytest.mark.parametrize("join_rows", [None, 1, 7])
def test_parquet_is_cut_within_large_row_groups_and_across_small_ones(
    tmp_path: Path, join_rows: int | None
) -> None:
    path = tmp_path / "x.parquet"
    rows = [f"row {n} " * (n % 40) for n in range(1000)]
    for group in (1000, 300, 11):
        pq.write_table(pa.table({"text": rows}), path, row_group_size=group, use_dictionary=False)
        whole, _ = texts(path, join_rows=join_rows)
        for range_bytes in (5_000, 60_000):
            pieces, ranges = texts(path, range_bytes, join_rows=join_rows)
            assert pieces == whole
            assert 1 < len(ranges) <= (9 if group == 1000 else 40)
            assert [file_range.stop for file_range in ranges[:-1]] == [
                file_range.start for file_range in ranges[1:]
            ]
            assert ranges[-1].stop == 1000
            if join_rows:
                assert not any(file_range.start % join_rows for file_range in ranges)


def test_titles_and_bad_rows_keep_their_numbers_in_a_cut_table(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    raw = pa.array([b"caf\xe9" if n == 70 else b"plain text " * 20 for n in range(100)], pa.binary())
    column = pa.StringArray.from_buffers(100, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(pa.table({"text": column}), path, use_dictionary=False)
    found = list(open_books(str(path), range_bytes=4000).read())
    assert [getattr(one, "title", None) for one in found] == [
        None if n == 70 else f"row {n}" for n in range(100)
    ]
    assert str(found[70]).startswith(f"{path}, row 70: is not UTF-8")


def test_small_files_are_taken_together_and_the_files_alone_decide(tmp_path: Path) -> None:
    for n in range(50):
        (tmp_path / f"{n:02}.txt").write_text("x" * 100)
    (tmp_path / "big.txt").write_text("y" * 5000)
    options = ReadOptions()
    shards = []
    for _ in range(2):
        books = open_books(str(tmp_path), options)
        shards.append(plan_shards(books.ranges, 1000, options, 200))
    assert shards[0] == shards[1]
    assert [len(shard.ranges) for shard in shards[0]] == [10, 10, 10, 10, 10, 1]
    assert [file_range for shard in shards[0] for file_range in shard.ranges] == list(books.ranges)
    keys = {shard.key for shard in shards[0]}
    assert len(keys) == 6
    # What cannot be read is listed either way; everything else makes other shards.
    assert {shard.key for shard in plan_shards(books.ranges, 1000, ReadOptions(skip_bad=True), 200)} == keys
    latin = plan_shards(books.ranges, 1000, ReadOptions(encoding="latin-1"), 200)
    assert not {shard.key for shard in latin} & keys
    assert not {shard.key for shard in plan_shards(books.ranges, 1000, options, 100)} & keys
    (tmp_path / "07.txt").write_text("x" * 101)
    changed = plan_shards(open_books(str(tmp_path), options).ranges, 1000, options, 200)
    assert len({shard.key for shard in changed} & keys) == 5
