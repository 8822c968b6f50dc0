"""How much of a written text is an exact copy of the training text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

# Tokens looked through at once: bounds memory to a few hundred MB.
CHUNK = 1 << 21
_TABLE_BITS = 18


def longest_copies(samples: Sequence[Sequence[int]], chunks: Iterable[np.ndarray]) -> list[tuple[int, int]]:
    """For each sample the longest run of its tokens that stands in the training text.

    Runs are compared by 64-bit hashes of random values, so a false match is a matter of luck that
    does not happen.

    Args:
        samples: Token ids of each text.
        chunks: The training text, token ids, each chunk overlapping the next by the longest sample.

    Returns:
        Length of the run, and where in the sample it begins.
    """
    best = [(0, 0) for _ in samples]
    highest = max((token for sample in samples for token in sample), default=0)
    for chunk in chunks:
        highest = max(highest, int(chunk.max(initial=0)))
        values = _random_values(highest + 1)
        hashes = _Hashes(values[chunk])
        for place, sample in enumerate(samples):
            own = _Hashes(values[np.asarray(sample, dtype=np.int64)])
            length = best[place][0]
            # Longer by one is the least that counts; from there on double the step, then halve it.
            step = 1
            while step:
                found = _first_match(own, hashes, length + step)
                if found is not None:
                    length += step
                    best[place] = (length, found)
                    step *= 2
                else:
                    step //= 2
    return best


def overlapping_chunks(blocks: np.ndarray, overlap: int) -> Iterable[np.ndarray]:
    """Join blocks of tokens, [blocks, block_size], to chunks that overlap, so that no run is cut in two."""
    held: list[np.ndarray] = []
    size = 0
    for number, block in enumerate(blocks):
        held.append(block)
        size += len(block)
        if size >= CHUNK or number + 1 == len(blocks):
            chunk = np.concatenate(held)
            yield chunk
            held = [chunk[max(0, len(chunk) - overlap) :]]
            size = len(held[0])


class _Hashes:
    """Hashes of all runs of some length, built by doubling: H_2n(i) = H_n(i) + B^n H_n(i + n)."""

    _BASE = 0x9E3779B97F4A7C15 | 1

    def __init__(self, values: np.ndarray) -> None:
        self._powers = [values]
        self._made: dict[int, np.ndarray] = {}

    def of_length(self, length: int) -> np.ndarray:
        """One hash for each place where a run of this length begins."""
        if length not in self._made:
            self._made[length] = self._make(length)
        return self._made[length]

    def _make(self, length: int) -> np.ndarray:
        if length > len(self._powers[0]):
            return np.empty(0, dtype=np.uint64)
        while 2 << (len(self._powers) - 1) <= length:
            half = 1 << (len(self._powers) - 1)
            self._powers.append(self._join(self._powers[-1], self._powers[-1], half))
        result, done = None, 0
        for bit in range(length.bit_length() - 1, -1, -1):
            if length >> bit & 1:
                power = self._powers[bit]
                result = power if result is None else self._join(result, power, done)
                done += 1 << bit
        assert result is not None
        return result

    def _join(self, first: np.ndarray, second: np.ndarray, apart: int) -> np.ndarray:
        factor = np.uint64(pow(self._BASE, apart, 1 << 64))
        second = second[apart:]
        number = min(len(first), len(second))
        return first[:number] + factor * second[:number]


def _first_match(own: _Hashes, others: _Hashes, length: int) -> int | None:
    wanted = own.of_length(length)
    if not len(wanted):
        return None
    # Millions against a few hundred: a table over the hashes' first bits sorts nearly all of them out.
    table = np.zeros(1 << _TABLE_BITS, dtype=bool)
    table[_first_bits(wanted)] = True
    there = others.of_length(length)
    found = np.flatnonzero(np.isin(wanted, there[table[_first_bits(there)]]))
    return int(found[0]) if len(found) else None


def _first_bits(hashes: np.ndarray) -> np.ndarray:
    return (hashes >> np.uint64(64 - _TABLE_BITS)).view(np.int64)


def _random_values(number: int) -> np.ndarray:
    """A fixed random 64-bit number for each token."""
    return np.random.default_rng(0).integers(0, 1 << 63, number, dtype=np.uint64) * np.uint64(2) + np.uint64(
        1
    )
