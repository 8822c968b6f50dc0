"""Parquet: large pages do not fill the memory of the process that reads them; damaged ones are found."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from horovod_transformer.books.parquet import read_parquet
from horovod_transformer.books.readers import Book, ReadOptions, Unreadable


def test_room_that_arrow_asks_for_comes_from_the_system(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [f"{n} " * 20_000 for n in range(40)]}), tmp_path / "a.parquet")
    usual, system = pa.default_memory_pool(), pa.system_memory_pool()
    books = read_parquet(tmp_path / "a.parquet", ReadOptions(), 0, 40)
    assert isinstance(next(books), Book)
    assert system.bytes_allocated() > 0
    assert pa.default_memory_pool().backend_name == usual.backend_name, "others keep their own"
    assert sum(1 for _ in books) == 39
    assert system.bytes_allocated() == 0


def test_the_usual_allocator_is_back_after_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"once upon a time")
    usual = pa.default_memory_pool().backend_name
    (found,) = read_parquet(tmp_path / "a.parquet", ReadOptions(), 0, 40)
    assert isinstance(found, Unreadable)
    assert pa.default_memory_pool().backend_name == usual


def test_a_flipped_byte_is_found_where_pages_have_checksums(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = pa.table({"text": [f"{n} " * 2000 for n in range(40)]})
    pq.write_table(
        texts, path, row_group_size=20, compression="none", use_dictionary=False, write_page_checksum=True
    )
    content = bytearray(path.read_bytes())
    content[50_000] ^= 1
    path.write_bytes(content)
    bad, *books = read_parquet(path, ReadOptions(), 0, 40)
    assert isinstance(bad, Unreadable) and "rows 0 to 19" in bad.origin and "CRC" in bad.reason
    assert [book.title for book in books if isinstance(book, Book)] == [f"row {n}" for n in range(20, 40)]
