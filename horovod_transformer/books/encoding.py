"""What bytes are, whatever their file is called: text in some encoding, or no plain text at all."""

from __future__ import annotations

import codecs
import re

# Longer marks first: UTF-32's begins with UTF-16's.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# Control characters that no text has; white space, backspace and escape aside.
_CONTROLS = bytes({*range(32)} - {8, 9, 10, 11, 12, 13, 27})
_LOOKED_AT = 1 << 16
PAGE = "an HTML page"
# UTF-16 without a mark has one in every second place; a text with some odd characters is a text.
_MOST_CONTROLS = 0.4
# What a page says of itself, in XML or in HTML.
_DECLARED = re.compile(
    rb"""<\?xml\s[^<>?]*?encoding\s*+=\s*+["']([\w.:-]{1,40})|<meta\s[^<>]*?charset\s*+=\s*+["']?([\w.:-]{1,40})""",
    re.IGNORECASE,
)
_DECLARED_WITHIN = 4096
_OTHER_KINDS = [
    (re.compile(beginning, re.IGNORECASE | re.DOTALL), kind)
    for beginning, kind in (
        (rb"\s*(<\?xml[^>]{0,200}>\s*)?(<!--.{0,2000}?-->\s*)?<(!doctype\s+html|html[\s>])", PAGE),
        (rb"\s*<\?xml[\s]", "XML"),
        (rb"\s*\{\\rtf\d", "RTF, as word processors write it"),
        (rb"\s*%PDF-\d", "a PDF"),
        (rb"%!PS", "PostScript"),
        (rb"PK\x03\x04", "a zip archive (an e-book or a word processor's file?)"),
        (rb"\xd0\xcf\x11\xe0", "a word processor's file"),
        (rb'\s*\[?\s*\{\s*"[^"\n]{1,80}"\s*:', "JSON (its name should end in .jsonl, with an object a line)"),
        (rb".{257}ustar", "a tar archive"),
        (rb"\x1f\x8b", "packed with gzip"),
        (rb"\x28\xb5\x2f\xfd", "packed with zstd"),
        (rb"PAR1", "parquet"),
    )
]


def other_kind(content: bytes) -> str | None:
    """Say what a file is that is no plain text; None if nothing is known against it.

    Args:
        content: The file from its beginning.
    """
    head = content[:4096].removeprefix(codecs.BOM_UTF8)
    return next((kind for beginning, kind in _OTHER_KINDS if beginning.match(head)), None)


def marked_as(content: bytes) -> str | None:
    """Return `UTF-16` or `UTF-32` where content begins with the mark of one."""
    return next((name for mark, name in _MARKS.items() if content.startswith(mark)), None)


def decode(content: bytes, encoding: str | None) -> tuple[str, bool] | str:
    """Decode as a mark says, UTF-8, else `encoding`; return text and whether it was re-encoded.

    What cannot be decoded gives a string that says what is wrong, and what helps.
    UTF-16 without a mark is never taken for anything else: not for UTF-8 or latin-1, in which it is letters
    between NULs.
    """
    marked = marked_as(content)
    advice = "such as latin-1 or cp1252"
    if marked:
        try:
            return content.decode(marked), True
        except UnicodeDecodeError as error:
            return f"has the mark of {marked} and is not {marked} text (byte {error.start})"
    elif not _mostly_controls(content):
        try:
            return content.decode("utf-8-sig"), False
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8 text (byte {error.start})"
    else:
        problem = "is not UTF-8 text (every second byte is a control character, as in UTF-16 without a mark)"
        advice = "such as utf-16-le or utf-16-be"
    if encoding is None:
        return f"{problem}; set data.encoding to what it is, {advice}, or leave it out"
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except UnicodeError:
        return f"{problem}, and not {encoding} (data.encoding)"
    if _mostly_controls(text[:_LOOKED_AT].encode("utf-8", "replace")):
        return f"{problem}, and not {encoding} (data.encoding)"
    return text, True


def decode_page(content: bytes, encoding: str | None) -> tuple[str, bool] | str:
    """Decode a page as a mark or the page itself says, else like any text; see `decode`.

    A page that is UTF-8 as a whole and says that it is in some encoding of one byte to a character, as
    pages do that a program saved anew, is UTF-8.
    """
    found = _DECLARED.search(content, 0, _DECLARED_WITHIN)
    declared = _encoding_of_page((found[1] or found[2]).decode("ascii")) if found else None
    if declared is None or marked_as(content) or content.startswith(codecs.BOM_UTF8):
        return decode(content, encoding)
    if byte_by_byte(declared):
        text = decode(content, None)
        if not isinstance(text, str):
            return text
    try:
        return content.decode(declared), True
    except UnicodeDecodeError:
        return decode(content, encoding)


def _encoding_of_page(name: str) -> str | None:
    """What browsers read for a name; None where a mark would tell or the name is not known."""
    try:
        known = codecs.lookup(name).name
        b"a".decode(known)
    except (LookupError, UnicodeError):
        return None  # some of Python's codecs are no encodings of text
    if known.startswith("utf"):
        return None
    return "cp1252" if known in ("iso8859-1", "ascii") else known


def byte_by_byte(encoding: str) -> bool:
    """Whether each byte is a character for itself and ASCII is itself: then no cut can split one."""
    everything = bytes(range(256))
    try:
        return (
            len(everything.decode(encoding, "replace")) == 256
            and everything[:128].decode(encoding) == everything[:128].decode()
        )
    except (UnicodeError, LookupError):
        return False


def _mostly_controls(content: bytes) -> bool:
    head = content[:_LOOKED_AT]
    return len(head) - len(head.translate(None, _CONTROLS)) > _MOST_CONTROLS * len(head)
