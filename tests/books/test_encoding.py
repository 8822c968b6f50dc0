"""A file is what its bytes say: UTF-16 is not taken for latin-1, nor a web page for a book."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from horovod_transformer.books.encoding import decode, decode_page, marked_as, other_kind
from horovod_transformer.books.readers import ReadOptions, Unreadable
from horovod_transformer.books.sources import open_books

TEXT = "The sea was calm, né à Brême. " * 40


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-be"])
@pytest.mark.parametrize("text", [TEXT, "Море было спокойно. " * 40])
def test_utf_16_is_read_as_nothing_else(encoding: str, text: str) -> None:
    content = text.encode(encoding)
    if marked_as(content):
        for stated in (None, "latin-1", encoding):
            assert decode(content, stated) == (text, True), "a mark is believed, whatever is stated"
        torn = decode(content + b"x", None)
        assert isinstance(torn, str) and f"has the mark of {encoding.upper()}" in torn
        return
    advised = decode(content, None)
    assert isinstance(advised, str) and "latin-1" not in advised and "utf-" in advised
    for wrong in ("latin-1", "cp437", "mac-roman"):
        refused = decode(content, wrong)
        assert isinstance(refused, str) and f"and not {wrong}" in refused
    assert decode(content, encoding) == (text, True)


def test_a_mark_is_no_part_of_the_text() -> None:
    assert decode("\ufeffné".encode("utf-16-le"), "utf-16-le") == ("né", True)
    assert decode("né".encode("utf-16"), "utf_16") == ("né", True)
    assert decode("né".encode("utf-8-sig"), "utf-16") == ("né", False)


def test_what_is_text_stays_text() -> None:
    for text in (TEXT, "", "a\0b" * 99, "\n\t\f \r" * 99, "\x1b[1mbold\x1b[0m", "日本語" * 99):
        assert decode(text.encode(), None) == (text, False)
    assert decode(TEXT.encode("latin-1"), "latin-1") == (TEXT, True)


NO_TEXT = {
    "a page": (b"<!DOCTYPE html><html><body>x", "an HTML page"),
    "an older page": (b"\xef\xbb\xbf\r\n<HTML>\n<HEAD>", "an HTML page"),
    "xhtml": (b'<?xml version="1.0"?>\n<!-- saved -->\n<html xmlns="x">', "an HTML page"),
    "fb2": (b'<?xml version="1.0"?>\n<FictionBook>', "XML"),
    "rtf": (b"{\\rtf1\\ansi", "RTF"),
    "pdf": (b"%PDF-1.4\nx", "a PDF"),
    "docx": (b"PK\x03\x04\x14", "a zip archive"),
    "doc": (b"\xd0\xcf\x11\xe0\xa1", "a word processor"),
    "json lines": (b'{"text": "It was night."}\n', "JSON"),
    "an array": (b'[\n  {"title": "A", "text": "It was night."}]', "JSON"),
    "tar": (b"book.txt".ljust(257, b"\0") + b"ustar" + b"x" * 999, "a tar archive"),
    "gzip": (gzip.compress(b"x"), "packed with gzip"),
    "parquet": (b"PAR1....PAR1", "parquet"),
}


@pytest.mark.parametrize("name", NO_TEXT)
@pytest.mark.parametrize("file", ["a.txt", "a.md", "a.txt.gz"])
def test_what_is_no_plain_text_is_none_whatever_it_is_called(name: str, file: str, tmp_path: Path) -> None:
    content, kind = NO_TEXT[name]
    (tmp_path / file).write_bytes(gzip.compress(content) if file.endswith(".gz") else content)
    for encoding in (None, "latin-1"):
        (book,) = open_books(str(tmp_path), ReadOptions(encoding=encoding)).read()
        assert isinstance(book, Unreadable) and f"is no plain text but {kind}" in book.reason


def test_texts_that_speak_of_pages_are_texts() -> None:
    for content in (
        b"",
        b"{he said}: no",
        b'["Once"] {upon',
        b"The tag <html> begins a page.",
        b"<p>A centered title</p>\n\nText",
        b"PKs and %PDF-",
    ):
        assert other_kind(content) is None


PAGES_SAY = {
    "what it says": (b'<meta charset="windows-1251">\xcf\xf0\xe8', None, "\u041f\u0440\u0438"),
    "as XML says it": (b"<?xml version='1.0' encoding='koi8-r'?>\xf0", None, "\u041f"),
    "latin-1 is what browsers read": (b'<meta charset="iso-8859-1">\x93a\x94', None, "\u201ca\u201d"),
    "several bytes to a character": (
        '<meta charset="shift_jis">\u65e5\u672c'.encode("shift_jis"),
        None,
        "\u65e5\u672c",
    ),
    "UTF-8 that says it is latin-1": ('<meta charset="latin1">n\u00e9'.encode(), None, "n\u00e9"),
    "a mark before what it says": ('\ufeff<meta charset="latin1">n\u00e9'.encode(), None, "n\u00e9"),
    "UTF-16 in a page that can be read is none": (b'<meta charset="utf-16">a', None, "a"),
    "no encoding of text": (b'<meta charset="rot13">a', None, "a"),
    "says UTF-8, and is not": (b'<meta charset="utf-8">n\xe9', "latin-1", "n\u00e9"),
    "says nothing": (b"<p>n\xe9", "latin-1", "n\u00e9"),
}


@pytest.mark.parametrize("name", PAGES_SAY)
def test_a_page_is_what_it_says_it_is(name: str) -> None:
    content, encoding, wanted = PAGES_SAY[name]
    found = decode_page(content, encoding)
    assert isinstance(found, tuple) and found[0].endswith(wanted), found
    assert found[1] == (content.decode("utf-8", "replace").count("\ufffd") > 0)


@pytest.mark.parametrize("encoding", [None, "utf-16", "latin-1"])
def test_json_lines_in_utf_16_are_told_what_helps(encoding: str | None, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes('{"text": "né"}\n{"text": "ne"}\n'.encode("utf-16"))
    (bad,) = open_books(str(tmp_path), ReadOptions(encoding=encoding, skip_bad=True)).read()
    assert isinstance(bad, Unreadable) and "iconv -f UTF-16 -t UTF-8" in bad.reason
