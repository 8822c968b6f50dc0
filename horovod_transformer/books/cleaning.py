"""What publishers put before and after a book: licence notes that thousands of books share word for word.

    text, cut = clean(text, ["smashwords", "gutenberg"])

Each step looks only at the first and the last few thousand characters, and cuts only what its own marks
enclose; a book without these marks stays as it is, to the last byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

# Project Gutenberg: a header of up to some 15,000 characters (with the "small print" of the years before
# 2004), a licence of some 19,000 at the end. Beyond these places its marks are those of a book that quotes
# them, or those between the books of a file that has several.
_GUTENBERG_HEAD = 30_000
_GUTENBERG_TAIL = 40_000
# One end may be marked in both styles, a few lines apart.
_GUTENBERG_ENDS_APART = 2000
# A title may be broken over lines, so the mark ends with its asterisks and not with its line.
_START = re.compile(
    r"^[ \t]*(?P<new>\*{3}) ?START OF (?:THE|THIS) (?:COPYRIGHTED )?PROJECT GUTENBERG E-?(?:BOOK|TEXT)"
    r"(?:[^*\n]*(?:\n[^*\n]+){0,3}\*{3}|[^\n]*$)"
    r"|^[ \t]*\* ?END ?(?:\* ?)?THE SMALL PRINT!?[^\n]*\* ?END ?\*[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_END = re.compile(
    r"^[ \t]*(?P<new>\*{3})[ ]?END OF (?:THE|THIS) (?:COPYRIGHTED )?PROJECT GUTENBERG E-?(?:BOOK|TEXT)"
    r"|^[ \t]*END OF (?:THE |THIS )?PROJECT GUTENBERG(?:['\u2019]S\b| E-?(?:TEXT|BOOK))",
    re.IGNORECASE | re.MULTILINE,
)
# What headers and licences speak of, again and again. A stretch without it is a book whose marks are not
# known, beside one whose are.
_GUTENBERG_WORDS = re.compile(
    r"gutenberg|e-?text|e-?book|electronic|donat|copyright|licen[cs]e|small print|warrant|disclaim|refund"
    r"|public domain|trademark|https?:|www\.|ftp|@",
    re.IGNORECASE,
)
# Inside of a notice: the longest is a list of the states in which donations were asked for.
_GUTENBERG_SILENCE = 1000
# Beside a mark: the title that it names, or the names of those who typed the book in.
_SILENCE_AT_MARKS = 400
# At an end of the file, and before the line with which a header opens; a licence has ended right above that.
_SILENCE_OUTSIDE = 200
_HEADER_OPENS = re.compile(
    r"^[^\w\n]*(?:this is )?(?:the )?(?:world wide web )?Project (?P<name>Gutenberg)"
    r"(?:['\u2019]s\b| E-?(?:book|text)| Edition)",
    re.IGNORECASE | re.MULTILINE,
)
# Who typed it in: one paragraph right after the mark.
_PRODUCED = re.compile(
    r"\s*(?:This e(?:book|text) was |E-?text )?(?:Produced|Prepared|Transcribed|Scanned) by [^\n]*"
    r"(?:\n[^\n]+){0,8}\n\s*\n",
    re.IGNORECASE,
)

# Smashwords: title, author, copyright, "Smashwords Edition", licence notes, in any order and number.
_SMASHWORDS_HEAD = 10_000
_SMASHWORDS_SHARE = 0.5
# No two paragraphs of front matter are further apart; beyond that the book has begun.
_SMASHWORDS_GAP = 1500
_SMASHWORDS_MARK = re.compile(
    r"Smashwords(?:\.com)? Edition|licensed for your (?:own )?(?:personal )?(?:enjoyment|use)"
    r"|(?:published|distributed)\b[^\n]{0,100} (?:at|by|on|through|via) Smashwords"
    r"|return to (?:www\.)?Smashwords|re-?sold or given away|purchase an additional copy"
    r"|respecting the (?:hard )?work of (?:this|the) author|respecting (?:the|this) author.s (?:hard )?work",
    re.IGNORECASE,
)
# What follows those directly belongs to them.
_SMASHWORDS_COMPANION = re.compile(
    r"(?:copyright|\u00a9|\(c\)) ?(?:\u00a9|\(c\))? ?\d{4}|all rights reserved|\bISBN\b"
    r"|Licen[sc]e (?:Note|Statement)|works? of fiction|^\W*cover (?:art|design|image|photo)"
    r"|not be (?:reproduced|copied|re-?distributed|used or reproduced)",
    re.IGNORECASE,
)
# Texts without empty lines are taken line by line.
_LONG_PARAGRAPH = 3000
_RULE = re.compile(r"[\W_]+")


def clean(text: str, steps: Sequence[str]) -> tuple[str, dict[str, int]]:
    """Cut front and end matter.

    Args:
        text: A book.
        steps: Names of `STEPS`, in the order in which they are taken.

    Returns:
        The book, and the number of characters that each step cut; steps that cut nothing are left out.
    """
    cut: dict[str, int] = {}
    for step in steps:
        shorter = STEPS[step](text)
        if len(shorter) < len(text):
            cut[step] = len(text) - len(shorter)
            text = shorter
    return text, cut


def cut_gutenberg(text: str) -> str:
    """Cut what stands outside the marks of Project Gutenberg, and the marks.

    Known are `*** START OF THE PROJECT GUTENBERG EBOOK … ***` and its END, and of the years before
    `*END*THE SMALL PRINT! … *END*` and `End of Project Gutenberg's Etext of …`. Where only one end is
    marked only that is cut. Of several books in one file each is kept, and what stands between two is cut
    where one's end and the next one's beginning are both marked.
    """
    head, tail = text[:_GUTENBERG_HEAD], text[-_GUTENBERG_TAIL:]
    marked = (_names(head, "Gutenberg") or _names(head, "Small Print")) and _START.search(head)
    if not marked and not (_names(tail, "Gutenberg") and _END.search(tail)):
        return text
    runs = _marks_together(text)
    start, end = 0, len(text)
    cuts: list[tuple[int, int]] = []
    first, last = runs[0], runs[-1]
    if first.begins_book and first.start < _GUTENBERG_HEAD and _is_notice(text, 0, first.start):
        start = _after_producers(text, first.end)
    in_tail = last.start >= max(start, len(text) - _GUTENBERG_TAIL)
    if not last.begins_book and in_tail and _is_notice(text, last.end, len(text)):
        end = last.start
    for one, following in pairwise(runs):
        pair = following.begins_book and not one.begins_book and start < one.start
        if pair and _is_notice(text, one.end, following.start):
            cuts.append((one.start, _after_producers(text, following.end)))
    if (start, end, cuts) == (0, len(text), []):
        return text
    froms, tos = [start, *(stop for _, stop in cuts)], [*(begin for begin, _ in cuts), end]
    books = [text[begin:stop] for begin, stop in zip(froms, tos, strict=True)]
    # Marks with nothing between them enclose no book: leave it to the reader.
    return "\n\n".join(book.strip("\r\n") for book in books if book.strip()) or text


@dataclass
class _Marks:
    """Marks of one place: a header or a licence may be marked in the new style and in the old."""

    begins_book: bool
    start: int
    end: int
    styles: set[bool]


def _marks_together(text: str) -> list[_Marks]:
    """All marks of a text in order, those of one place together.

    A style that comes a second time is that of another book, whose neighbour's marks are not known.
    """
    found = [(mark, True) for mark in _START.finditer(text)] + [(mark, False) for mark in _END.finditer(text)]
    runs: list[_Marks] = []
    for mark, begins_book in sorted(found, key=lambda one: one[0].start()):
        style = mark["new"] is not None
        reach = _GUTENBERG_HEAD if begins_book else _GUTENBERG_ENDS_APART
        if (
            runs
            and runs[-1].begins_book == begins_book
            and style not in runs[-1].styles
            and mark.start() - runs[-1].end <= reach
            and _is_notice(text, runs[-1].end, mark.start())
        ):
            runs[-1].end = mark.end()
            runs[-1].styles.add(style)
        else:
            runs.append(_Marks(begins_book, mark.start(), mark.end(), {style}))
    return runs


def _is_notice(text: str, start: int, end: int) -> bool:
    """Whether what lies there speaks of nothing but Project Gutenberg: a header or a licence, and no book."""
    if end - start > _GUTENBERG_TAIL + _GUTENBERG_HEAD:
        return False
    words = [word.start() for word in _GUTENBERG_WORDS.finditer(text, start, end)]
    headers = {opening.start("name") for opening in _HEADER_OPENS.finditer(text, start, end)}
    for before, after in pairwise([start, *words, end]):
        most = _GUTENBERG_SILENCE
        if before == start or after == end:
            most = _SILENCE_AT_MARKS
        if before == 0 or after == len(text) or after in headers:
            most = _SILENCE_OUTSIDE
        if after - before > most:
            return False
    return True


def _after_producers(text: str, place: int) -> int:
    """Where a book begins whose mark ends at `place`."""
    produced = _PRODUCED.match(text, place)
    return produced.end() if produced else place


def cut_smashwords(text: str) -> str:
    """Cut the front matter of a Smashwords edition: title page, copyright, licence notes.

    It is cut from the beginning to the last paragraph of it, where each has another close before it: at
    most 10,000 characters and half of the text. What does not name Smashwords there is left alone.
    """
    head = text[: min(_SMASHWORDS_HEAD, int(len(text) * _SMASHWORDS_SHARE))]
    if not _names(head, "Smashwords"):
        return text
    end = 0
    for start, stop in _paragraphs(head):
        if start - end > _SMASHWORDS_GAP:
            break
        paragraph = head[start:stop]
        directly = end and not head[end:start].strip()
        # The last one may go on beyond the head: it is left whole.
        if stop < len(head) and (
            _SMASHWORDS_MARK.search(paragraph)
            or (directly and (_SMASHWORDS_COMPANION.search(paragraph) or _RULE.fullmatch(paragraph)))
        ):
            end = stop
    return text[end:].lstrip() if end else text


def _names(text: str, name: str) -> bool:
    """Whether a name occurs, as it is written or in capitals; cheaper than to look for any mixture."""
    return name in text or name.upper() in text


def _paragraphs(text: str) -> Iterator[tuple[int, int]]:
    """Where the paragraphs of a text begin and end."""
    lines: list[tuple[int, int]] = []
    place = 0
    for line in [*text.split("\n"), ""]:
        if line.strip():
            lines.append((place, place + len(line)))
        elif lines:
            start, stop = lines[0][0], lines[-1][1]
            yield from [(start, stop)] if stop - start <= _LONG_PARAGRAPH else lines
            lines = []
        place += len(line) + 1


STEPS: dict[str, Callable[[str], str]] = {"smashwords": cut_smashwords, "gutenberg": cut_gutenberg}
