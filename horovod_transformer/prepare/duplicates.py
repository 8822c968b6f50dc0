"""Which books are dropped: empty ones, short ones, and duplicates by a digest of their normalised text."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass

import numpy as np

from horovod_transformer.tokenizer import cut_at_words

DROPPED = ("empty", "too_short", "duplicate")
KEPT = -1
# Short, for few of a book's pieces to hold its few characters that are not ASCII.
_PIECE_CHARACTERS = 1 << 16
_SHORT_CHARACTERS = 1 << 10
# What str.split takes for white space, as far as it is ASCII.
_TO_SPACES = bytes.maketrans(b"\t\n\v\f\r\x1c\x1d\x1e\x1f", b" " * 9)
_SPACE = ord(" ")


@dataclass
class BookTable:
    """What is known of all books in the order of the source: some 70 bytes of each.

    Attributes:
        digests: sha256 of the normalised texts, uint8 [books, 32].
        characters, words, bytes, tokens: int64 [books]. Bytes are UTF-8; tokens count an end-of-text
            token and are 0 where a book was not tokenized.
        reencoded: Whether a book was not UTF-8, bool [books].
    """

    digests: np.ndarray
    characters: np.ndarray
    words: np.ndarray
    bytes: np.ndarray
    tokens: np.ndarray
    reencoded: np.ndarray

    def __len__(self) -> int:
        return len(self.characters)


def describe_text(text: str) -> tuple[bytes, int, int]:
    """Return the sha256 of a normalised text, its number of words, and of UTF-8 bytes.

    Two texts have the same digest if they differ in nothing but white space and Unicode composition.
    """
    digest = hashlib.sha256()
    count = size = 0
    for piece in cut_at_words(text, _PIECE_CHARACTERS):
        ascii = piece.isascii()
        size += len(piece) if ascii else len(piece.encode())
        if ascii and len(piece) > _SHORT_CHARACTERS:
            words = _with_single_spaces(piece)
        else:
            words = " ".join(unicodedata.normalize("NFC", piece).split()).encode()
        if words:
            digest.update(words)
            digest.update(b" ")
            count += words.count(b" ") + 1
    return digest.digest(), count, size


def _with_single_spaces(text: str) -> bytes:
    """What `" ".join(text.split())` gives for ASCII, some times faster."""
    content = np.frombuffer(text.encode().translate(_TO_SPACES), np.uint8)
    spaces = content == _SPACE
    kept = np.ones(len(content), bool)
    np.logical_not(spaces[1:] & spaces[:-1], out=kept[1:])
    return content[kept].tobytes().strip(b" ")


def drop_books(books: BookTable, min_characters: int) -> np.ndarray:
    """Find empty books, short ones, and copies of an earlier one.

    Returns:
        For each book its place in `DROPPED`, or `KEPT`: int8 [books].
    """
    dropped = np.full(len(books), KEPT, np.int8)
    dropped[books.characters < min_characters] = DROPPED.index("too_short")
    dropped[books.words == 0] = DROPPED.index("empty")
    kept = np.flatnonzero(dropped == KEPT)
    leading = leading_bits(books.digests)[kept]
    # Stable: of equal books the first in the source comes first.
    order = np.lexsort(leading.T)
    leading = leading[order]
    alike = np.flatnonzero((leading[1:] == leading[:-1]).all(axis=1))
    before, after = kept[order[alike]], kept[order[alike + 1]]
    copies = (books.digests[before] == books.digests[after]).all(axis=1)
    dropped[after[copies]] = DROPPED.index("duplicate")
    return dropped


def leading_bits(digests: np.ndarray) -> np.ndarray:
    """The first 128 bits of digests as numbers that compare as the bytes do: uint64 [books, 2].

    No two of them that differ are alike in these: sorting by them is sorting by the whole.
    """
    return np.ascontiguousarray(digests).view(">u8").reshape(len(digests), 4)[:, :2].astype(np.uint64)
