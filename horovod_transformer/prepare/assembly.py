"""Finished shards to prepared data: what is kept, what is held out, and the tokens of that, copied."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from horovod_transformer.books.ranges import read_range
from horovod_transformer.books.readers import NAMED_AT_ONCE, Book, Unreadable, name_unreadable
from horovod_transformer.errors import UserError
from horovod_transformer.prepare.duplicates import DROPPED, KEPT, BookTable, drop_books
from horovod_transformer.prepare.selection import choose_splits, choose_tokenizer_sample, end_cut
from horovod_transformer.prepare.settings import PrepareSettings
from horovod_transformer.prepare.shards import Shard, read_books
from horovod_transformer.prepare.workers import Job
from horovod_transformer.prepare.writer import SplitWriter, describe_splits, join_books, token_dtype
from horovod_transformer.system.paths import readable
from horovod_transformer.tokenizer import Tokenizer, train_bpe

_TOKENS_AT_A_TIME = 8 << 20
# Names listed per reason for dropping; the counts are complete.
_NAMES_LISTED = 50
_TITLES_LISTED = 10_000
_SHARE_NOT_NOTED = 0.1
_BAD_LISTED = 1000


@dataclass
class Selected:
    """Which books go where.

    Attributes:
        shards: The shards, all finished.
        job: How they were made.
        books: All books.
        starts: Where each shard's books begin, int64 [shards + 1].
        dropped: Of each book why it is dropped, or `KEPT`; see `drop_books`.
        splits: Of each book its place in `names`, -1 if it is dropped.
        names: The splits.
        fractions: Of each split that is held out its share.
        details: What each shard says of itself; see `ShardRecord`.
    """

    shards: Sequence[Shard]
    job: Job
    books: BookTable
    starts: np.ndarray
    dropped: np.ndarray
    splits: np.ndarray
    names: tuple[str, ...]
    fractions: dict[str, float]
    details: list[dict[str, Any]]

    def titles(self, places: np.ndarray) -> list[str]:
        """Return titles of books, by their places in ascending order."""
        found = []
        for shard, inside in self._by_shard(places):
            found += self.job.files_of(shard).read_titles(inside.tolist())
        return found

    def longest(self, number: int = 10) -> list[tuple[str, int]]:
        """Return the longest books that are kept: title and tokens of each; titles may be alike."""
        tokens = np.where(self.splits >= 0, self.books.tokens, -1)
        places = np.argsort(-tokens, kind="stable")[: min(number, int((self.splits >= 0).sum()))]
        titles = dict(zip(sorted(places.tolist()), self.titles(np.sort(places)), strict=True))
        return [(titles[place], int(tokens[place])) for place in places.tolist()]

    def texts(self, places: np.ndarray) -> Iterator[str]:
        """Read books again, by their places in ascending order; other shards are passed over."""
        for shard, inside in self._by_shard(places):
            wanted = set(inside.tolist())
            readable = (
                book
                for file_range in shard.ranges
                for book in read_range(file_range, self.job.options)
                if isinstance(book, Book)
            )
            for place, book in enumerate(readable):
                if place in wanted:
                    yield book.text

    def _by_shard(self, places: np.ndarray) -> Iterator[tuple[Shard, np.ndarray]]:
        borders = np.searchsorted(places, self.starts)
        for shard, start, first, last in zip(
            self.shards, self.starts.tolist(), borders[:-1].tolist(), borders[1:].tolist(), strict=False
        ):
            if first < last:
                yield shard, places[first:last] - start


def select_books(settings: PrepareSettings, shards: Sequence[Shard], job: Job) -> Selected:
    """Decide from the records of finished shards which books are kept and which are held out.

    Raises:
        UserError: Something could not be read and `data.on_bad_book` is `stop`, no book is left, or
            they cannot be shared out.
    """
    files = [job.files_of(shard) for shard in shards]
    details = [one.read_details() for one in files]
    data = settings.data
    if data.on_bad_book == "stop":
        _refuse_unreadable(details)
    books, starts = read_books(files)
    dropped = drop_books(books, data.min_book_characters)
    kept = dropped == KEPT
    if not kept.any():
        raise UserError(_nothing_left(dropped, details, data.min_book_characters))
    names = settings.splits
    fractions = {"validation": data.validation_fraction, "test": data.test_fraction}
    splits = choose_splits(books, kept, names, fractions, data.split, data.split_seed)
    return Selected(shards, job, books, starts, dropped, splits, names, fractions, details)


def train_tokenizer(settings: PrepareSettings, selected: Selected, say: Callable[[str], None]) -> Tokenizer:
    """Train a byte-level BPE on training books, or on a sample of them if there are many.

    Raises:
        UserError: They are too few for the vocabulary.
    """
    data = settings.data
    sample = choose_tokenizer_sample(
        selected.books, selected.splits == 0, data.tokenizer_characters, data.split_seed
    )
    say(
        f"training a byte-level BPE of {settings.vocab_size:,} entries on {int(sample.sum()):,} of the "
        "training books"
    )
    texts = selected.texts(np.flatnonzero(sample))
    if int((selected.splits >= 0).sum()) == 1:
        texts = (_cut_single(text, selected)[0] for text in texts)
    return train_bpe(texts, settings.vocab_size)


def assemble(
    folder: Path,
    block_size: int,
    selected: Selected,
    tokenizer: Tokenizer,
    done: Callable[[Shard], None] = lambda shard: None,
) -> dict[str, Any]:
    """Copy the tokens of all splits from the shards into an empty folder.

    Args:
        folder: Gets a Hugging Face `DatasetDict`.
        block_size: Tokens of a block.
        selected: What goes where.
        tokenizer: What the shards were made with.
        done: Called when a shard is copied.

    Returns:
        What the manifest says of books and splits.
    """
    began = time.monotonic()
    single = int((selected.splits >= 0).sum()) == 1
    if single:
        splits, counts, notes = _write_single(folder, block_size, selected, tokenizer)
    else:
        splits, counts = _copy(folder, block_size, selected, tokenizer, done)
        notes = _notes_on_shares(selected, {name: split.tokens for name, split in splits.items()})
    digests = ":".join([str(block_size), *(splits[name].sha256 for name in selected.names)])
    fingerprint = hashlib.sha256(digests.encode()).hexdigest()
    describe_splits(folder, splits, fingerprint)
    held_out = np.flatnonzero(selected.splits == selected.names.index("validation"))[:_TITLES_LISTED]
    seconds: Counter[str] = Counter()
    for one in selected.details:
        seconds.update(one["seconds"])
    return {
        "block_size": block_size,
        "dtype": token_dtype(tokenizer.vocab_size).name,
        "splits": {
            name: {
                **counts[name],
                "tokens": split.tokens,
                "blocks": split.blocks,
                "padding": split.padding,
                "sha256": split.sha256,
            }
            for name, split in splits.items()
        },
        "words": int(selected.books.words[selected.splits >= 0].sum()),
        "dropped": _what_was_dropped(selected),
        "unreadable": {
            "count": sum(one["unreadable"] for one in selected.details),
            "first": [str(bad) for bad in _first_unreadable(selected.details, _BAD_LISTED)],
        },
        "reencoded": _what_was_reencoded(selected),
        "cleaned": _what_was_cleaned(selected),
        "validation_books": selected.titles(np.flatnonzero(selected.splits == 0) if single else held_out),
        "notes": notes,
        "fingerprint": fingerprint,
        "step_seconds": {
            **{step: round(total, 1) for step, total in seconds.items()},
            "assemble": round(time.monotonic() - began, 1),
        },
    }


def _notes_on_shares(selected: Selected, tokens: dict[str, int]) -> list[str]:
    """Say where much more is held out than was asked for, as whole books are, however few there are."""
    notes = []
    for name in selected.names[1:]:
        share, wanted = tokens[name] / sum(tokens.values()), selected.fractions[name]
        if share > max(2 * wanted, wanted + _SHARE_NOT_NOTED):
            notes.append(
                f"{share:.0%} of the tokens are held out for {name}, where data.{name}_fraction is "
                f"{wanted:g}: books are held out whole, and these are few or long"
            )
    return notes


def _copy(
    folder: Path, block_size: int, selected: Selected, tokenizer: Tokenizer, done: Callable[[Shard], None]
) -> tuple[dict[str, SplitWriter], dict[str, dict[str, int]]]:
    writers: dict[str, SplitWriter] = {}
    counts: dict[str, dict[str, int]] = {}
    books = selected.books
    for place, name in enumerate(selected.names):
        here = selected.splits == place
        counts[name] = {
            "books": int(here.sum()),
            "characters": int(books.characters[here].sum()),
            "bytes": int(books.bytes[here].sum()),
        }
        writers[name] = _writer(folder, name, int(books.tokens[here].sum()), block_size, tokenizer)
    for shard, first, last in zip(selected.shards, selected.starts[:-1], selected.starts[1:], strict=True):
        ends = np.cumsum(books.tokens[first:last])
        splits = selected.splits[first:last]
        with _open_tokens(selected.job.files_of(shard).tokens) as file:
            for ids, which in _windows(file, ends, splits, token_dtype(tokenizer.vocab_size)):
                for place, name in enumerate(selected.names):
                    mine = which == place
                    if mine.all():
                        writers[name].write(ids)
                    elif mine.any():
                        writers[name].write(ids[mine])
        done(shard)
    for writer in writers.values():
        writer.close()
    return writers, counts


def _windows(
    file: IO[bytes], ends: np.ndarray, splits: np.ndarray, dtype: np.dtype
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Read a shard's tokens some at a time, with the split of each token, or of all of them alike."""
    total = int(ends[-1]) if len(ends) else 0
    for start in range(0, total, _TOKENS_AT_A_TIME):
        stop = min(start + _TOKENS_AT_A_TIME, total)
        ids = np.fromfile(file, dtype, stop - start)
        if len(ids) < stop - start:
            raise UserError(_lost(file.name, "is shorter than the record beside it says"))
        first, last = np.searchsorted(ends, start, "right"), np.searchsorted(ends, stop, "left")
        # Of the first and the last book only what lies in the window.
        lengths = np.diff(np.clip(ends[first : last + 1], start, stop), prepend=start)
        here = splits[first : last + 1]
        with_tokens = here[lengths > 0]
        alike = (with_tokens == with_tokens[0]).all()
        yield ids, with_tokens[:1] if alike else np.repeat(here, lengths)


def _open_tokens(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise UserError(_lost(path, "is gone, the record beside it is there")) from None


def _lost(path: Path | str, what: str) -> str:
    # Its shard counts as finished no more, see `ShardFiles.finished`.
    return (
        f"{readable(path)}: {what}; run `prepare` again, which makes it again (with shares: --units for all "
        "of them, then --assemble)"
    )


def _writer(folder: Path, name: str, tokens: int, block_size: int, tokenizer: Tokenizer) -> SplitWriter:
    return SplitWriter(folder / name, tokens, block_size, tokenizer.vocab_size, tokenizer.eos_token_id)


def _write_single(
    folder: Path, block_size: int, selected: Selected, tokenizer: Tokenizer
) -> tuple[dict[str, SplitWriter], dict[str, dict[str, int]], list[str]]:
    """Cut the only book at paragraphs' ends, and tokenize its pieces anew: none begins within a word."""
    (text,) = selected.texts(np.flatnonzero(selected.splits >= 0))
    pieces = _cut_single(text, selected)
    writers, counts = {}, {}
    for name, piece in zip(selected.names, pieces, strict=True):
        encoded = tokenizer.encode_books([piece])
        ids = join_books(encoded, tokenizer.vocab_size, tokenizer.eos_token_id)
        writers[name] = _writer(folder, name, len(ids), block_size, tokenizer)
        writers[name].write(ids)
        writers[name].close()
        counts[name] = {"books": 1, "characters": len(piece), "bytes": len(piece.encode())}
    ends = "the validation split" if len(pieces) == 2 else "the validation and the test split"
    return writers, counts, [f"there is only one book: its end is {ends}"]


def _cut_single(text: str, selected: Selected) -> list[str]:
    shares = [selected.fractions[name] for name in selected.names[1:]]
    cut = end_cut(text, sum(shares))
    pieces = [text[:cut]]
    if len(shares) == 2:
        text = text[cut:]
        cut = end_cut(text, shares[1] / sum(shares))
        pieces.append(text[:cut])
    return [*pieces, text[cut:]]


def _what_was_dropped(selected: Selected) -> dict[str, Any]:
    counts, titles = {}, {}
    for place, reason in enumerate(DROPPED):
        found = np.flatnonzero(selected.dropped == place)
        counts[reason] = len(found)
        if len(found):
            titles[reason] = selected.titles(found[:_NAMES_LISTED])
    return {"counts": counts, "first_titles": titles}


def _what_was_reencoded(selected: Selected) -> dict[str, Any]:
    first: list[str] = []
    for start, one in zip(selected.starts.tolist(), selected.details, strict=False):
        first += [
            f"{origin}: {line}" if line else origin
            for place, origin, line in one["first_reencoded"]
            if selected.splits[start + place] >= 0
        ]
    kept = selected.books.reencoded & (selected.splits >= 0)
    return {"count": int(kept.sum()), "first": first[:_BAD_LISTED]}


def _what_was_cleaned(selected: Selected) -> dict[str, dict[str, int]]:
    """Of each step of cleaning how many books it cut, dropped ones included, and by how much together."""
    cut = {step: {"books": 0, "characters": 0} for step in selected.job.options.clean}
    for one in selected.details:
        for step, (books, characters) in one["cleaned"].items():
            cut[step]["books"] += books
            cut[step]["characters"] += characters
    return cut


def _first_unreadable(details: list[dict[str, Any]], most: int) -> list[Unreadable]:
    return [Unreadable(*bad) for one in details for bad in one["first_unreadable"]][:most]


def _refuse_unreadable(details: list[dict[str, Any]]) -> None:
    count = sum(one["unreadable"] for one in details)
    if not count:
        return
    first = _first_unreadable(details, NAMED_AT_ONCE)
    raise UserError(name_unreadable(first, count))


def _nothing_left(dropped: np.ndarray, details: list[dict[str, Any]], min_characters: int) -> str:
    counts = {reason: int((dropped == place).sum()) for place, reason in enumerate(DROPPED)}
    counts["unreadable"] = sum(one["unreadable"] for one in details)
    found = len(dropped) + counts["unreadable"]
    if not found:
        return "data.source: the files hold no rows"
    why = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in counts.items() if count)
    return (
        f"data.source: no book is left of {found} ({why}); is the source right? "
        f"data.min_book_characters is {min_characters}"
    )
