"""Which books are held out, and which teach a tokenizer: decided over packed arrays, not over texts."""

from __future__ import annotations

import hashlib

import numpy as np

from horovod_transformer.errors import UserError
from horovod_transformer.prepare.duplicates import KEPT, BookTable, leading_bits

_AT_A_TIME = 1 << 16


def choose_splits(
    books: BookTable,
    kept: np.ndarray,
    names: tuple[str, ...],
    fractions: dict[str, float],
    by: str,
    seed: int,
) -> np.ndarray:
    """Choose whole books for the splits that are held out.

    `share` holds out books until their characters come as near to the share as they can; every split
    gets at least one. `hash` compares a hash of each book with the fraction, so that other books that
    come or go move none. Both depend on texts and seed, not on the order of files.

    Args:
        books: All books.
        kept: Which of them are kept, bool [books].
        names: All splits; the first, for training, gets what is left.
        fractions: Of each other split its share of all characters.
        by: `share` or `hash`.
        seed: Another seed holds out other books.

    Returns:
        For each book its place in `names`, `KEPT` (-1) for those that are not kept: int8 [books]. A single
        kept book is in training: its end is cut off later.

    Raises:
        UserError: There are fewer books than splits (and not just one), or a split remains empty.
    """
    splits = np.where(kept, 0, KEPT).astype(np.int8)
    places = np.flatnonzero(kept)
    if len(places) == 1:
        return splits
    if len(places) < len(names):
        raise UserError(
            f"data.source: {len(places)} books cannot be shared out to {', '.join(names)}; "
            "set data.test_fraction to 0, or add books"
        )
    hashes = _hashes(b"%d:" % seed, books.digests, places)
    if by == "hash":
        # The first 53 bits: what a float64 holds exactly.
        values = (hashes[:, 0] >> np.uint64(11)).astype(np.float64) / (1 << 53)
        low = 0.0
        for place, name in enumerate(names[1:], 1):
            splits[places[(values >= low) & (values < low + fractions[name])]] = place
            low += fractions[name]
    else:
        order = places[_order(hashes)]
        for place, name in enumerate(names[1:], 1):
            wanted = fractions[name] * int(books.characters[places].sum())
            # Each split that is still to come, and training, is left a book.
            chosen = _fill(books.characters[order], wanted, leave=len(names) - place)
            splits[order[chosen]] = place
            order = order[~chosen]
    for place, name in enumerate(names):
        if not (splits == place).any():
            raise UserError(
                f"data.split = hash: of {len(places):,} books none falls into {name}; set another "
                "data.split_seed or a larger fraction, or use data.split = share"
            )
    return splits


def choose_tokenizer_sample(books: BookTable, training: np.ndarray, characters: int, seed: int) -> np.ndarray:
    """Choose training books for a tokenizer to learn from, at random but always the same ones.

    Args:
        books: All books.
        training: Which of them may be taken, bool [books].
        characters: How much they may have together; a single longer book is taken if no other is left.
        seed: Another seed takes other books.

    Returns:
        Which are chosen, bool [books]: all of them if they are short enough.
    """
    places = np.flatnonzero(training)
    lengths = books.characters[places]
    if int(lengths.sum()) <= characters:
        return training.copy()
    order = _order(_hashes(b"tokenizer:%d:" % seed, books.digests, places))
    taken, _ = _take(lengths[order], characters, len(order))
    chosen = np.zeros_like(training)
    chosen[places[order[taken]]] = True
    if not taken.any():
        # In the order of the hashes, as equally short ones are not to depend on the order of files.
        chosen[places[order[np.argmin(lengths[order])]]] = True
    return chosen


def _fill(lengths: np.ndarray, wanted: float, leave: int) -> np.ndarray:
    """Choose from the front while it fits, and one more if that comes nearer; bool [books]."""
    most = len(lengths) - leave
    chosen, missing = _take(lengths, wanted, most)
    if int(chosen.sum()) < most:
        # All others are too long for what is missing; the shortest may still bring us nearer.
        others = np.flatnonzero(~chosen)
        shortest = others[np.argmin(lengths[others])]
        if not chosen.any() or lengths[shortest] < 2 * missing:
            chosen[shortest] = True
    return chosen


def _take(lengths: np.ndarray, room: float, most: int) -> tuple[np.ndarray, float]:
    """Go through the books once and take each that still has room; return bool [books] and the room left."""
    chosen = np.zeros(len(lengths), bool)
    number, shortest = 0, int(lengths.min())
    for start in range(0, len(lengths), _AT_A_TIME):
        for place, length in enumerate(lengths[start : start + _AT_A_TIME].tolist(), start):
            if length <= room and number < most:
                chosen[place] = True
                number += 1
                room -= length
        if room < shortest or number == most:
            break
    return chosen, room


def _hashes(prefix: bytes, digests: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The leading bits of the sha256 of prefix and digest of some books; see `leading_bits`."""
    result = np.empty((len(places), 2), np.uint64)
    for start in range(0, len(places), _AT_A_TIME):
        rows = digests[places[start : start + _AT_A_TIME]]
        joined = b"".join(hashlib.sha256(prefix + row.tobytes()).digest() for row in rows)
        result[start : start + len(rows)] = leading_bits(np.frombuffer(joined, np.uint8).reshape(-1, 32))
    return result


def _order(leading: np.ndarray) -> np.ndarray:
    return np.lexsort((leading[:, 1], leading[:, 0]))


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
