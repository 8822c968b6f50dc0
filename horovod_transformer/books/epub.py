"""E-books (`.epub`) to books: the pages of the spine in order, without what is there to find one's way.

An e-book is a zip archive with a page for each chapter and a package file that says which there are, in
which order (the spine), and what the book is called (https://www.w3.org/TR/epub-33/; before that IDPF's Open
Packaging Format 2.0.1).
Left out are the cover, contents and indexes, copyright notices, and title pages that say nothing else.
"""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO
from urllib.parse import unquote
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from horovod_transformer.books.archives import BadArchiveError, most_of_a_file, open_zip, read_member
from horovod_transformer.books.encoding import decode_page
from horovod_transformer.books.pages import Page, full_title, read_page
from horovod_transformer.books.readers import Book, ReadOptions, Unreadable, plain
from horovod_transformer.system.paths import readable

_CONTAINER, _ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
# Fonts that are of use in this book alone; its text is not locked.
_FONT_METHODS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_PAGE_TYPES = ("application/xhtml+xml", "text/html", "text/x-oeb1-document")
_PAGE_NAMES = (".xhtml", ".html", ".htm", ".xml")
# The package file of a book with a page for each of ten thousand entries has one megabyte; the largest books
# (an encyclopedia, all of a poet) have tens of megabytes of pages.
_MOST_XML_BYTES = 4 << 20
_MOST_PAGE_BYTES = 256 << 20
_MOST_AUTHORS = 3
# What the package calls pages that are not read: EPUB 2's guide, and the names that programs give to files.
_GUIDE = frozenset(["cover", "toc", "index", "copyright-page", "loi", "lot", "other.ms-coverimage"])
_FILE_NAME = re.compile(
    r"(?i)(?:\d{1,4}[-_])?(?:cover|cover[-_]?page|cover[-_]?image|toc|nav|contents|table[-_]?of[-_]?contents"
    r"|copyright|copyright[-_]?page|imprint|colophon)(?:[-_]?\d{1,4})?"
)
_LONGEST_NOTICE = 6000
_NOTICE = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"copyright|\u00a9|\(c\) ?\d{4}",
        r"all rights reserved|moral rights?\b",
        r"\bISBN\b|\bISBN-1[03]\b",
        r"no part of this (?:publication|book|work)|may (?:not )?be reproduced",
        r"works? of fiction\b.{0,200}(?:coincidental|fictitious)|names, characters,",
        r"first published|published (?:in \d{4} )?by|library of congress|cover (?:design|art|image)",
    )
]
# A page is a list of links where nearly all of it is.
_FEWEST_LINKS, _SHARE_LINKED = 4, 0.7
_TITLE_WORDS = frozenset(["a", "an", "the", "by", "and", "of", "novel", "edition", "written", "author"])


@dataclass(frozen=True)
class _Package:
    title: str
    author: str
    pages: list[str]  # names in the archive, in order
    guide: dict[str, str]  # what some of them are


def read_epub(file: IO[bytes], size: int, name: str, origin: str, options: ReadOptions) -> Book | Unreadable:
    """Read an e-book.

    Args:
        file: The file, open.
        size: Its bytes.
        name: Its title if it does not say one.
        origin: Where it is, for messages.
        options: Their encoding is tried for pages that say none and are not UTF-8.
    """
    try:
        with open_zip(file, size) as archive:
            _require_unlocked(archive)
            package = _read_package(archive)
            pages, reencoded = [], False
            for place, found, again in _read_pages(archive, package, options):
                pages.append((place, found))
                reencoded = reencoded or again
    except BadArchiveError as error:
        return Unreadable(origin, str(error))
    title = plain(full_title(package.title or name, package.author))
    return Book(title, "\n\n".join(_without_notices(pages, package)), origin, reencoded)


def text_bytes_of_epub(file: IO[bytes], size: int) -> int | str:
    """Return about how much text an e-book has, by the sizes of its pages, or what is wrong with it."""
    try:
        with open_zip(file, size) as archive:
            if _CONTAINER not in archive.namelist():
                return f"is no e-book: it has no {_CONTAINER}"
            return sum(
                info.file_size for info in archive.infolist() if info.filename.lower().endswith(_PAGE_NAMES)
            )
    except BadArchiveError as error:
        return str(error)


def _require_unlocked(archive: zipfile.ZipFile) -> None:
    if _ENCRYPTION not in archive.namelist():
        return
    for method in _of_name(_xml(archive, _ENCRYPTION), "EncryptionMethod"):
        if method.get("Algorithm") not in _FONT_METHODS:
            raise BadArchiveError("is locked (DRM); only its seller's programs can read it")


def _xml(archive: zipfile.ZipFile, name: str) -> Element:
    """Read XML without entities of its own and without anything from elsewhere."""
    if name in archive.namelist() and archive.getinfo(name).file_size > _MOST_XML_BYTES:
        raise BadArchiveError(f"is no e-book: {readable(name)} is larger than any")
    try:
        return fromstring(
            read_member(archive, name, _MOST_XML_BYTES), forbid_entities=True, forbid_external=True
        )
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        reason = readable(f"{type(error).__name__}: {error}")[:80]
        raise BadArchiveError(f"is a broken e-book: {readable(name)} cannot be read ({reason})") from None


def _of_name(root: Element, name: str) -> Iterator[Element]:
    """Elements by their name, in whatever namespace."""
    return (element for element in root.iter() if isinstance(element.tag, str) and _local(element) == name)


def _local(element: Element) -> str:
    return element.tag.rpartition("}")[2]


def _read_package(archive: zipfile.ZipFile) -> _Package:
    if _CONTAINER not in archive.namelist():
        raise BadArchiveError(f"is no e-book: it has no {_CONTAINER}")
    paths = [root.get("full-path") for root in _of_name(_xml(archive, _CONTAINER), "rootfile")]
    path = next((path for path in paths if path), None)
    if path is None:
        raise BadArchiveError(f"is a broken e-book: {_CONTAINER} names no package")
    root = _xml(archive, _inside("", path))
    items = {item.get("id"): item for item in _of_name(root, "item")}
    guide = {
        _inside(path, reference.get("href", "")): reference.get("type", "").lower()
        for reference in _of_name(root, "reference")
    }
    pages: dict[str, None] = {}  # each once, whatever the spine says
    for reference in _of_name(root, "itemref"):
        item = items.get(reference.get("idref"))
        if item is None or reference.get("linear") == "no":
            continue
        href = item.get("href", "")
        is_page = item.get("media-type") in _PAGE_TYPES or href.lower().endswith(_PAGE_NAMES[:3])
        if is_page and "nav" not in item.get("properties", "").split():
            pages[_inside(path, href)] = None
    if not pages:
        raise BadArchiveError("is a broken e-book: its spine has no pages")
    return _Package(_title(root), _authors(root), list(pages), guide)


def _inside(base: str, href: str) -> str:
    """Where in the archive a reference leads that stands in the file `base`."""
    path = unquote(href.partition("#")[0]).replace("\\", "/")
    return posixpath.normpath(posixpath.join(posixpath.dirname(base), path))


def _title(root: Element) -> str:
    return next((words for element in _of_name(root, "title") if (words := _words(element))), "")


def _authors(root: Element) -> str:
    """Those who wrote it; EPUB 2 tells them from others by an attribute, EPUB 3 by a `meta`."""
    roles = {
        meta.get("refines", "").removeprefix("#"): _words(meta)
        for meta in _of_name(root, "meta")
        if meta.get("property") == "role"
    }
    found = []
    for creator in _of_name(root, "creator"):
        role = next((value for key, value in creator.items() if key.rpartition("}")[2] == "role"), None)
        role = role or roles.get(creator.get("id", ""), "aut")
        if role == "aut" and (words := _words(creator)) and words not in found:
            found.append(words)
    return ", ".join(found[:_MOST_AUTHORS])


def _words(element: Element) -> str:
    return " ".join((element.text or "").split())[:300]


def _read_pages(
    archive: zipfile.ZipFile, package: _Package, options: ReadOptions
) -> Iterator[tuple[str, Page, bool]]:
    names = set(archive.namelist())
    for name in package.pages:
        if name not in names:
            raise BadArchiveError(f"is a broken e-book: its page {readable(name)} is not there")
    if sum(archive.getinfo(name).file_size for name in package.pages) > _MOST_PAGE_BYTES:
        raise BadArchiveError(f"has more than {_MOST_PAGE_BYTES / 1e6:,.0f} MB of pages, as no book has")
    most = most_of_a_file()
    for name in package.pages:
        decoded = decode_page(read_member(archive, name, most), options.encoding)
        if isinstance(decoded, str):
            raise BadArchiveError(f"its page {readable(name)} {decoded}")
        yield name, read_page(decoded[0]), decoded[1]


def _without_notices(pages: list[tuple[str, Page]], package: _Package) -> list[str]:
    """Texts of the pages that are a part of the book; a page that is most of the book always is."""
    total = sum(len(page.text) for _, page in pages)
    return [
        page.text
        for name, page in pages
        if page.text and (len(page.text) > total / 2 or not _is_notice(name, page, package))
    ]


def _is_notice(name: str, page: Page, package: _Package) -> bool:
    if package.guide.get(name) in _GUIDE:
        return True
    if page.links >= _FEWEST_LINKS and page.linked > _SHARE_LINKED * len(page.text):
        return True
    if len(page.text) > _LONGEST_NOTICE:
        return False
    if _FILE_NAME.fullmatch(posixpath.basename(name).partition(".")[0]):
        return True
    if sum(bool(pattern.search(page.text)) for pattern in _NOTICE) >= 2:
        return True
    words = re.findall(r"\w+", page.text.casefold())
    return set(words) <= {*re.findall(r"\w+", f"{package.title} {package.author}".casefold()), *_TITLE_WORDS}
