"""Archives are folders: their books by their names; what leads out or unpacks too far is one line."""

from __future__ import annotations

import gzip
import random
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from horovod_transformer.books import archives
from horovod_transformer.books.readers import Book, ReadOptions, Unreadable
from horovod_transformer.books.sources import open_books
from horovod_transformer.errors import UserError
from tests.books.made_books import PROSE, page, write_epub, write_tar, write_zip


def write(path: Path, files: dict[str, str | bytes]) -> Path:
    return write_zip(path, files) if path.suffix == ".zip" else write_tar(path, files)


def found(path: Path | str, range_bytes: int | None = None, **options) -> list[Book | Unreadable]:
    return list(open_books(str(path), ReadOptions(skip_bad=True, **options), range_bytes).read())


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tgz"])
def test_an_archive_is_read_as_a_folder_is(tmp_path: Path, name: str) -> None:
    inside = write_epub(tmp_path / "inside.epub", {"a.xhtml": page(f"<p>{PROSE}</p>")}).read_bytes()
    long = "long " * 30 + "name.txt"  # beyond the 100 characters of an old header
    files: dict[str, str | bytes] = {
        "b/z.txt": "\ufeffone\r\ntwo",
        "a.html": "<title>T</title><p>page",
        "b/Straße.md": "three",
        "README.txt": "about",
        "__MACOSX/b/z.txt": "no",
        ".hidden.txt": "no",
        "cover.jpg": b"\xff",
        "c.epub": inside,
        f"d/{long}": "four",
        "latin.txt": b"n\xe9",
    }
    path = write(tmp_path / name, files)
    books = open_books(str(path), ReadOptions(skip_bad=True))
    read = list(books.read())
    assert [book.origin.removeprefix(f"{path}/") for book in read] == sorted(
        ["a.html", "b/Straße.md", "b/z.txt", "c.epub", f"d/{long}", "latin.txt"]
    )
    assert [(book.title, book.text) for book in read[:3] if isinstance(book, Book)] == [
        ("T", "page"),
        ("Straße", "three"),
        ("z", "one\ntwo"),
    ]
    assert isinstance(read[3], Book) and read[3].text == PROSE.strip()
    assert isinstance(read[-1], Unreadable) and "is not UTF-8" in read[-1].reason
    kind = name.removeprefix("x")
    assert books.taken == {
        kind: 1,
        f".txt in {kind}": 3,
        f".html in {kind}": 1,
        f".md in {kind}": 1,
        f".epub in {kind}": 1,
    }
    assert books.passed_over == {".jpg": 1, "about": 1} and books.about == ["README.txt"] and books.count == 6
    assert books.files == [[name, path.stat().st_size, path.stat().st_mtime_ns]]


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_an_archive_is_cut_between_its_books(tmp_path: Path, name: str) -> None:
    numbers = list(range(50))
    random.Random(1).shuffle(numbers)
    path = write(tmp_path / name, {f"{n:02}.txt": f"{n} " * 200 for n in numbers})
    whole = found(path)
    assert [book.title for book in whole if isinstance(book, Book)] == [f"{n:02}" for n in range(50)]
    for range_bytes in (1, 2000):
        assert found(path, range_bytes) == whole
        ranges = open_books(str(path), range_bytes=range_bytes).ranges
        assert 1 < len(ranges) <= 50 and sum(one.text_bytes for one in ranges) == sum(
            len(f"{n} ") * 200 for n in numbers
        )


def test_several_splits_in_an_archive_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"train/1.txt": "a", "test/2.txt": "b"})
    with pytest.raises(UserError, match="holds several splits"):
        open_books(str(path))


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def test_links_and_devices_are_passed_over(tmp_path: Path) -> None:
    more = [
        *(link("a.txt", tarfile.SYMTYPE), link("b.txt", tarfile.LNKTYPE)),
        *(link("c.txt", tarfile.CHRTYPE), link("d.txt", tarfile.FIFOTYPE)),
    ]
    path = write_tar(tmp_path / "x.tar.gz", {"good.txt": "good"}, more)
    books = open_books(str(path))
    assert [book.text for book in books] == ["good"]
    assert books.passed_over == {"link in an archive": 2, "device in an archive": 2}
    path = write_zip(tmp_path / "y.zip", {"good.txt": "good"})
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("link.txt")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    books = open_books(str(path))
    assert [book.text for book in books] == ["good"] and books.passed_over == {"link in an archive": 1}


def many_empty(path: Path, number: int) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for n in range(number):
            archive.writestr(f"{n}.bin", b"")


def bad_name_with_mark(path: Path) -> None:
    """A name that says it is UTF-8, and is not."""
    write_zip(path, {"né.txt": "x"})
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))


def overlapping(path: Path) -> None:
    """Many names for one packed file, as in a bomb that needs no archive in an archive."""
    write_zip(path, {"a.txt": b"\0" * 30_000_000})
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    entry, end = (
        content[start : content.index(b"PK\x05\x06")],
        bytearray(content[content.index(b"PK\x05\x06") :]),
    )
    entries = b"".join(entry.replace(b"a.txt", f"{n}.txt".encode()) for n in range(10))
    struct.pack_into("<HHL", end, 8, 10, 10, len(entries))
    path.write_bytes(content[:start] + entries + bytes(end))


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


BAD = {
    "a bomb.zip": (lambda p: write_zip(p, {"a.txt": b"\0" * 40_000_000}), "unpacks to more than 34 MB"),
    "overlapping.zip": (overlapping, "unpacks to more than 34 MB"),
    "a bomb.tar.gz": (lambda p: write_tar(p, {"a.txt": b"\0" * 40_000_000}), "unpacks to more than 34 MB"),
    "up.zip": (lambda p: write_zip(p, {"../a.txt": "x"}), "leads out of it (../a.txt)"),
    "absolute.zip": (lambda p: write_zip(p, {"/etc/a.txt": "x"}), "leads out of it (/etc/a.txt)"),
    "windows.zip": (lambda p: write_zip(p, {"C:\\a.txt": "x"}), "leads out of it"),
    "up.tar.gz": (lambda p: write_tar(p, {"b/../../a.txt": "x"}), "leads out of it"),
    "absolute.tar": (lambda p: write_tar(p, {"/a.txt": "x"}), "leads out of it (/a.txt)"),
    "deep.zip": (
        lambda p: write_zip(p, {"d/" * 400 + "a.txt": "x"}),
        "folders in folders beyond all measure",
    ),
    "many.zip": (lambda p: many_empty(p, 2000), "has more than 1,000 files"),
    "many.tar.gz": (
        lambda p: write_tar(p, {f"{n}.txt": "x" for n in range(1001)}),
        "has more than 1,000 files",
    ),
    "many folders.tar": (
        lambda p: p.write_bytes(header("d", 0, tarfile.DIRTYPE) * 4001),
        "has more than 1,000 files",
    ),
    "an archive in it.zip": (
        lambda p: write_zip(p, {"a.zip": "x", "b.txt": "x"}),
        "(1 .zip), which are not read",
    ),
    "a table in it.tgz": (
        lambda p: write_tar(p, {"a.jsonl": "{}"}),
        "(1 .jsonl), which are not read there",
    ),
    "no books.zip": (lambda p: write_zip(p, {"a.jpg": "x"}), "files; it has only 1 .jpg"),
    "empty.zip": (lambda p: write_zip(p, {}), "files; it is empty"),
    "empty.tar.gz": (lambda p: p.write_bytes(b""), "files; it is empty"),
    "text.zip": (lambda p: p.write_text("x" * 999), "is broken (File is not a zip file)"),
    "text.tar.gz": (lambda p: p.write_text("x" * 999), "is broken (Not a gzipped file"),
    "text.tar": (lambda p: p.write_text("x" * 999), "is broken (invalid header)"),
    "names.zip": (bad_name_with_mark, "is broken ("),
    "a huge header.tar.gz": (
        lambda p: p.write_bytes(gzip.compress(header("x", 20_000_000, tarfile.XHDTYPE) + b"\0" * 20_000_000)),
        "says more of a file than is believable",
    ),
    "a huge name.tar": (
        lambda p: p.write_bytes(header("x", 2**40, tarfile.GNUTYPE_LONGNAME)),
        "says more of a file than is believable",
    ),
    "a size that is none.tar": (
        lambda p: p.write_bytes(
            header("x", 11, tarfile.XHDTYPE) + b"11 size=-5\n".ljust(512, b"\0") + header("y", 0)
        ),
        "is no whole tar archive",
    ),
    "an empty promise.tar": (lambda p: p.write_bytes(header("x.txt", 2**50)), "ends too early"),
    "torn.tar.gz": (
        lambda p: p.write_bytes(
            write_tar(p, {"a.txt": random.Random(1).randbytes(9999)}).read_bytes()[:5000]
        ),
        "is broken (Compressed file ended",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_broken_and_hostile_ones_are_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, said = BAD[name]
    if "many" in name:
        monkeypatch.setattr(archives, "MOST_FILES", 1000)
    make(tmp_path / name)
    for _ in range(2):
        (bad,) = found(tmp_path / name)
        assert isinstance(bad, Unreadable) and said in str(bad), bad
    assert "\n" not in str(bad) and len(str(bad)) < 500
    with pytest.raises(UserError):
        open_books(str(tmp_path / name))


def test_a_locked_or_damaged_file_costs_itself(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a.txt": "first " * 99, "b.txt": PROSE, "c.txt": "last"})
    content = bytearray(path.read_bytes())
    content[content.index(b"b.txt") + 12] ^= 0xFF  # within what is packed
    locked = content.index(b"c.txt", content.index(b"PK\x01\x02")) - 46 + 8
    content[locked] |= 1
    path.write_bytes(content)
    first, second, third = found(path)
    assert isinstance(first, Book) and first.text == "first " * 99
    assert (
        isinstance(second, Unreadable) and second.origin == f"{path}/b.txt" and "is broken" in second.reason
    )
    assert isinstance(third, Unreadable) and third.reason == "is locked by a password"


def test_a_file_that_memory_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "memory_bytes", lambda: 8000)
    for name in ("x.zip", "x.tar.gz"):
        large, small = found(write(tmp_path / name, {"a.txt": b"a" * 1001, "b.txt": "b"}))
        assert isinstance(large, Unreadable) and "too much for one text on this machine" in large.reason
        assert isinstance(small, Book) and small.text == "b"


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz", "x.tar"])
def test_whatever_damage_is_one_line_or_books(tmp_path: Path, name: str) -> None:
    chosen = random.Random(name)
    path = write(tmp_path / name, {f"{n}.txt": f"{n} {PROSE}" for n in range(4)})
    whole = path.read_bytes()
    for _ in range(200):
        content = bytearray(whole[: chosen.randrange(len(whole)) if chosen.random() < 0.2 else None])
        for _ in range(chosen.randrange(1, 8)):
            if content:
                content[chosen.randrange(len(content))] = chosen.randrange(256)
        path.write_bytes(content)
        for one in found(path):
            assert "\n" not in str(getattr(one, "reason", ""))
