"""E-books: the pages of the spine, with what they are called; locked, broken and hostile ones in one line."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from horovod_transformer.books.readers import Book, ReadOptions, Unreadable
from horovod_transformer.books.sources import open_books
from tests.books.made_books import PROSE, page, write_epub, write_zip


def read(path: Path, **options) -> Book | Unreadable:
    (book,) = open_books(str(path), ReadOptions(skip_bad=True, **options)).read()
    return book


def chapters(*numbers: int) -> dict[str, str | bytes]:
    return {f"c{n}.xhtml": page(f"<h1>Chapter {n}</h1><p>{PROSE}{n}</p>") for n in numbers}


def test_an_epub_3_in_the_order_of_its_spine(tmp_path: Path) -> None:
    pages = {
        "cover.xhtml": page('<img src="cover.jpg" alt="Cover"/>'),
        "n.xhtml": page(
            "<p>Where what is</p><nav epub:type='toc'><ol><li><a href='c2.xhtml'>Two</a></li></ol></nav>"
        ),
        "title.xhtml": page("<h1>Paul Clifford</h1><p>by Edward Bulwer-Lytton</p>"),
        "rights.xhtml": page("<p>Copyright © 1830 The Heirs</p><p>All rights reserved.</p><p>ISBN 1</p>"),
        **chapters(2, 1),
        "notes.xhtml": page("<p>aside</p>"),
    }
    spine = "".join(f'<itemref idref="i{n}"/>' for n in range(6)) + '<itemref idref="i6" linear="no"/>'
    book = read(write_epub(tmp_path / "x.epub", pages, properties={"n.xhtml": "nav"}, spine=spine))
    assert isinstance(book, Book)
    assert book.title == "Paul Clifford (Edward Bulwer-Lytton)" and not book.reencoded
    assert book.text == f"Chapter 2\n\n{PROSE}2\n\nChapter 1\n\n{PROSE}1"


def test_an_epub_2_without_its_guide_s_pages(tmp_path: Path) -> None:
    links = "".join(f'<p><a href="c{n}.xhtml">Chapter {n}, in which things happen</a></p>' for n in range(9))
    pages = {
        "a.xhtml": page("<p>Some words about the cover</p>"),
        "b.xhtml": page(f"<h2>What is in it</h2>{links}"),
        "d.xhtml": page("<p>For my mother</p>"),
        **chapters(1, 2),
    }
    guide = '<guide><reference type="cover" href="a.xhtml#x"/></guide>'
    metadata = (
        "<dc:title>Eugene Aram</dc:title><dc:creator opf:role='ill'>A Painter</dc:creator>"
        "<dc:creator opf:role='aut'>E. B.-L.</dc:creator>"
    )
    path = write_epub(
        *(tmp_path / "x.epub", pages),
        guide=guide,
        metadata=metadata,
        version="2.0",
        package="content.opf",
        toc_dot_ncx="<ncx/>",
        doctype="<!DOCTYPE package PUBLIC '+//ISBN 0-9673008-1-9//DTD OEB 1.2 Package//EN' 'http://x/oeb.dtd'>",
    )
    book = read(path)
    assert isinstance(book, Book) and book.title == "Eugene Aram (E. B.-L.)"
    assert book.text == f"For my mother\n\nChapter 1\n\n{PROSE}1\n\nChapter 2\n\n{PROSE}2"


def test_authors_by_what_epub_3_refines(tmp_path: Path) -> None:
    metadata = (
        "<dc:title>T</dc:title><dc:creator id='a'>A</dc:creator><dc:creator id='b'>B</dc:creator>"
        "<dc:creator>C</dc:creator><meta refines='#b' property='role'>trl</meta>"
    )
    book = read(write_epub(tmp_path / "x.epub", chapters(1), metadata=metadata))
    assert isinstance(book, Book) and book.title == "T (A, C)"
    book = read(write_epub(tmp_path / "A name.epub", chapters(1), metadata=""))
    assert isinstance(book, Book) and book.title == "A name"


def test_a_book_that_looks_like_a_notice_is_a_book(tmp_path: Path) -> None:
    notice = "<p>Copyright: a novel. All rights reserved, she said. ISBN, no part of this book.</p>"
    book = read(write_epub(tmp_path / "x.epub", {"cover.xhtml": page(notice)}))
    assert isinstance(book, Book) and book.text.startswith("Copyright: a novel")


def test_names_that_are_quoted_and_lead_about(tmp_path: Path) -> None:
    pages = {"Text/a%20b.xhtml": b"gone", "Text/a b.xhtml": page("<p>x</p>")}
    spine = '<itemref idref="i0"/><itemref idref="nowhere"/>' + '<itemref idref="i0"/>' * 9
    book = read(write_epub(tmp_path / "x.epub", pages, spine=spine))
    assert isinstance(book, Book) and book.text == "x", "each page once"


def test_pages_in_an_old_encoding(tmp_path: Path) -> None:
    path = write_epub(tmp_path / "x.epub", {"a.html": "<p>n\u00e9".encode("latin-1")})
    bad = read(path)
    assert isinstance(bad, Unreadable) and "its page OEBPS/a.html is not UTF-8" in bad.reason
    book = read(path, encoding="latin-1")
    assert isinstance(book, Book) and book.text == "né" and book.reencoded


LOCK = '<encryption xmlns:e="http://x"><e:EncryptionMethod Algorithm="{}"/></encryption>'
LAUGHS = "<!DOCTYPE p [<!ENTITY a 'ha'>" + "".join(
    f"<!ENTITY {chr(98 + n)} '{f'&{chr(97 + n)};' * 10}'>" for n in range(9)
)


def package(content: str) -> dict:
    return {"pages": {}, "package": "c.opf", "c_dot_opf": content}


BAD: dict[str, tuple[dict, str]] = {
    "locked": (
        {"META-INF__encryption_dot_xml": LOCK.format("http://www.w3.org/2001/04/xmlenc#aes128-cbc")},
        "is locked (DRM)",
    ),
    "a page is missing": (
        {"pages": {**chapters(1), "c2.xhtml": b"gone"}},
        "its page OEBPS/c2.xhtml is not there",
    ),
    "a page elsewhere": (
        {"pages": {"../../../etc/passwd": b"gone"}},
        "its page ../../etc/passwd is not there",
    ),
    "an absolute page": ({"pages": {"/etc/passwd": b"gone"}}, "its page /etc/passwd is not there"),
    "no package": ({"OEBPS__content_dot_opf": b"gone"}, "has no OEBPS/content.opf"),
    "no container": (
        {"META-INF__container_dot_xml": b"gone"},
        "is no e-book: it has no META-INF/container.xml",
    ),
    "a container of nothing": ({"META-INF__container_dot_xml": "<container/>"}, "names no package"),
    "no spine": ({"spine": ""}, "its spine has no pages"),
    "billion laughs": (package(f"{LAUGHS}]><p>&j;</p>"), "c.opf cannot be read (EntitiesForbidden"),
    "something from elsewhere": (
        package("<!DOCTYPE p [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><p>&x;</p>"),
        "c.opf cannot be read (EntitiesForbidden",
    ),
    "deep XML": (package("<p>" * 100_000), "c.opf cannot be read (ParseError"),
    "a deep package": (package("<p>" * 100_000 + "</p>" * 100_000), "its spine has no pages"),
    "a huge attribute": (package(f"<p a='{'x' * 3_000_000}'/>"), "its spine has no pages"),
    "a huge package": (package("<p>" + "x" * 5_000_000), "is no e-book: c.opf is larger than any"),
    "XML that is none": (package("\0\1"), "c.opf cannot be read"),
    "an unknown encoding": (package("<?xml version='1.0' encoding='klingon'?><p/>"), "c.opf cannot be read"),
    "a bomb": ({"x": b"\0" * 40_000_000}, "unpacks to more than 34 MB"),
    "too many files": ({f"f{n}": "" for n in range(3)}, "has more than 5 files"),
}


@pytest.mark.parametrize("name", BAD)
def test_broken_locked_and_hostile_ones_are_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, said = BAD[name]
    if name == "too many files":
        monkeypatch.setattr("horovod_transformer.books.archives.MOST_FILES", 5)
    book = read(write_epub(tmp_path / "x.epub", **{"pages": chapters(1), **parts}))
    assert isinstance(book, Unreadable) and said in str(book), book
    assert "\n" not in str(book) and len(str(book)) < 400


def test_fonts_may_be_locked(tmp_path: Path) -> None:
    lock = LOCK.format("http://www.idpf.org/2008/embedding")
    assert isinstance(
        read(
            write_epub(
                tmp_path / "x.epub", chapters(1), META_INF="", **{"META-INF__encryption_dot_xml": lock}
            )
        ),
        Book,
    )


def test_whatever_damage_is_one_line_or_a_book(tmp_path: Path) -> None:
    chosen = random.Random(7)
    path = write_epub(tmp_path / "x.epub", chapters(1, 2))
    whole = path.read_bytes()
    bad = 0
    for _ in range(300):
        content = bytearray(whole[: chosen.randrange(len(whole)) if chosen.random() < 0.2 else None])
        for _ in range(chosen.randrange(1, 8)):
            if content:
                content[chosen.randrange(len(content))] = chosen.randrange(256)
        path.write_bytes(content)
        found = read(path)
        bad += isinstance(found, Unreadable)
        assert "\n" not in str(getattr(found, "reason", ""))
    assert bad > 100


def test_a_zip_that_is_no_e_book(tmp_path: Path) -> None:
    bad = read(write_zip(tmp_path / "x.epub", {"a.txt": "x"}))
    assert isinstance(bad, Unreadable) and "is no e-book" in bad.reason
