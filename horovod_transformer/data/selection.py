"""Which books are kept, and which of them are held out for validation."""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from horovod_transformer.data.sources import Book, Books, Unreadable
from horovod_transformer.errors import UserError
from horovod_transformer.progress_bar import ProgressBar
from horovod_transformer.tokenizer import cut_at_words

# Names listed per reason for dropping; the counts are complete.
_NAMES_LISTED = 50
_NAMED_AT_ONCE = 100
_PIECE_CHARACTERS = 1 << 20


@dataclass
class Survey:
    """What the first pass over the books found; some 100 bytes per book.

    Attributes:
        lengths: Characters of each book in order, dropped ones included.
        digests: For each kept book, by its place in the order, the sha256 of its normalised text.
        characters, words, bytes: Totals over the kept books; bytes are UTF-8.
        dropped: Number of books dropped, by reason: `empty`, `too_short`, `duplicate`.
        dropped_names: Titles of the first of them, by reason.
        unreadable: Files and rows that could not be read; they have no place in the order.
        reencoded: Origins of the books that were not UTF-8 and were read by `data.encoding`.
    """

    lengths: array = field(default_factory=lambda: array("q"))
    digests: dict[int, bytes] = field(default_factory=dict)
    characters: int = 0
    words: int = 0
    bytes: int = 0
    dropped: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("empty", "too_short", "duplicate"), 0)
    )
    dropped_names: dict[str, list[str]] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)
    reencoded: list[str] = field(default_factory=list)


def survey_books(
    books: Books, min_characters: int, bar: ProgressBar | None = None, skip_bad: bool = False
) -> Survey:
    """Read all books once; drop empty ones, short ones, and exact copies of an earlier one.

    Two books are copies if they differ in nothing but white space and Unicode composition.

    Args:
        books: The source.
        min_characters: Books with fewer characters are dropped.
        bar: Shows the number of books read.
        skip_bad: Whether what cannot be read is left out, rather than all of it named and refused.

    Raises:
        UserError: A file or row cannot be read, or no book is left.
    """
    survey = Survey()
    seen: set[bytes] = set()
    for book in books.read():
        if isinstance(book, Unreadable):
            survey.unreadable.append(book)
            continue
        index = len(survey.lengths)
        survey.lengths.append(len(book.text))
        digest, words, size = _digest(book.text)
        if not words:
            reason = "empty"
        elif len(book.text) < min_characters:
            reason = "too_short"
        elif digest in seen:
            reason = "duplicate"
        else:
            reason = ""
        if reason:
            survey.dropped[reason] += 1
            names = survey.dropped_names.setdefault(reason, [])
            if len(names) < _NAMES_LISTED:
                names.append(book.title)
        else:
            seen.add(digest)
            survey.digests[index] = digest
            survey.characters += len(book.text)
            survey.words += words
            survey.bytes += size
            if book.reencoded:
                survey.reencoded.append(book.origin)
        if bar:
            bar.advance(index + 1)
    if survey.unreadable and not skip_bad:
        raise UserError(_all_unreadable(survey.unreadable))
    if not survey.digests:
        found = len(survey.lengths)
        counts = {**survey.dropped, "unreadable": len(survey.unreadable)}
        why = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in counts.items() if count)
        found += len(survey.unreadable)
        raise UserError(
            f"data.source: no book is left of {found} ({why}); is the source right? "
            f"data.min_book_characters is {min_characters}"
            if found
            else "data.source: the files hold no rows"
        )
    return survey


def choose_validation(survey: Survey, fraction: float, seed: int) -> set[int]:
    """Choose whole books for validation until their characters come as near to the share as they can.

    The order in which books are considered depends on their texts and the seed, not on the order
    of files. Both sides get at least one book; with a single book the result is empty.

    Args:
        survey: The books.
        fraction: Share of all characters wanted.
        seed: Another seed holds out other books.

    Returns:
        Places of the chosen books in the order of the source.
    """
    if len(survey.digests) < 2:
        return set()
    shuffled = sorted(
        survey.digests, key=lambda index: hashlib.sha256(b"%d:" % seed + survey.digests[index]).digest()
    )
    missing = fraction * survey.characters
    chosen: set[int] = set()
    for index in shuffled:
        # One book at least is left to train on.
        if survey.lengths[index] <= missing and len(chosen) < len(shuffled) - 1:
            chosen.add(index)
            missing -= survey.lengths[index]
    if len(chosen) < len(shuffled) - 1:
        # All others are too long for what is missing; the shortest may still bring us nearer.
        shortest = min((i for i in shuffled if i not in chosen), key=lambda index: survey.lengths[index])
        if not chosen or survey.lengths[shortest] < 2 * missing:
            chosen.add(shortest)
    return chosen


def choose_tokenizer_sample(survey: Survey, validation: set[int], characters: int, seed: int) -> set[int]:
    """Choose training books for a tokenizer to learn from, at random but always the same ones.

    Args:
        survey: The books.
        validation: Books held out, none of which is taken.
        characters: How much they may have together; a single longer book is taken if no other is left.
        seed: Another seed takes other books.

    Returns:
        Places of the chosen books in the order of the source: all of them if they are short enough.
    """
    training = [index for index in survey.digests if index not in validation]
    if sum(survey.lengths[index] for index in training) <= characters:
        return set(training)
    training.sort(key=lambda index: hashlib.sha256(b"tokenizer:%d:" % seed + survey.digests[index]).digest())
    chosen: set[int] = set()
    for index in training:
        if survey.lengths[index] <= characters:
            chosen.add(index)
            characters -= survey.lengths[index]
    return chosen or {min(training, key=lambda index: survey.lengths[index])}


def kept_books(
    books: Books, survey: Survey, validation: set[int], fraction: float, only: set[int] | None = None
) -> Iterator[tuple[str, Book]]:
    """Read the kept books again, each with its split `"train"` or `"validation"`.

    A single book is cut in two. With `only`, the books at other places are passed over.

    Raises:
        UserError: The source has changed since the survey.
    """
    number = 0
    readable = (book for book in books.read() if not isinstance(book, Unreadable))
    for number, book in enumerate(readable, 1):
        index = number - 1
        if index >= len(survey.lengths) or len(book.text) != survey.lengths[index]:
            raise UserError(f"{book.origin}: has changed while it was being prepared; run it again")
        if index not in survey.digests or (only is not None and index not in only):
            continue
        if len(survey.digests) == 1:
            cut = end_cut(book.text, fraction)
            yield "train", Book(book.title, book.text[:cut], book.origin)
            yield "validation", Book(book.title, book.text[cut:], book.origin)
        else:
            yield "validation" if index in validation else "train", book
    if number != len(survey.lengths):
        raise UserError("data.source: has lost books while it was being prepared; run it again")


def _all_unreadable(unreadable: list[Unreadable]) -> str:
    if len(unreadable) == 1:
        return f"{unreadable[0]} (data.on_bad_book: skip leaves it out)"
    named = ", ".join(bad.origin for bad in unreadable[:_NAMED_AT_ONCE])
    more = len(unreadable) - _NAMED_AT_ONCE
    return (
        f"data.source: {len(unreadable)} files or rows cannot be read: {named}"
        f"{f' and {more} more' if more > 0 else ''}; the first {unreadable[0].reason}; "
        "data.on_bad_book: skip leaves them out"
    )


def end_cut(text: str, fraction: float) -> int:
    """Return where to cut a single book so that about the last `fraction` of it can be held out.

    The cut is at the paragraph's end nearest to that place; if there is none near, at the line's
    end, else at the space.

    Raises:
        UserError: The text is a single character.
    """
    if len(text) < 2:
        raise UserError("data.source: a single character cannot be split into training and validation")
    wanted = min(max(round(len(text) * (1 - fraction)), 1), len(text) - 1)
    near = max(1, int(len(text) * min(fraction, 1 - fraction) / 2))
    for separator in ("\n\n", "\n", " "):
        before = text.rfind(separator, 0, wanted)
        after = text.find(separator, wanted)
        ends = [place + len(separator) for place in (before, after) if place >= 0]
        good = [end for end in ends if end < len(text) and abs(end - wanted) <= near]
        if good:
            return min(good, key=lambda end: abs(end - wanted))
    return wanted


def _digest(text: str) -> tuple[bytes, int, int]:
    """Return sha256 of the normalised text, the number of words and of UTF-8 bytes."""
    digest = hashlib.sha256()
    count = size = 0
    # Pieces, as the list of a book's words needs many times the book's own memory.
    for piece in cut_at_words(text, _PIECE_CHARACTERS):
        size += len(piece.encode())
        words = unicodedata.normalize("NFC", piece).split()
        if words:
            digest.update(" ".join(words).encode() + b" ")
            count += len(words)
    return digest.digest(), count, size
