"""The order in which an epoch takes the blocks: a shuffled table, or for many blocks a bijection.

A table of 200 million blocks takes 1.6 GB in every rank and half a minute to shuffle, so beyond `TABLE_LIMIT`
a fresh run works out each place by itself. A run keeps the order it began with: it is recorded in its
checkpoints.
"""

from __future__ import annotations

import hashlib
import math
from functools import cached_property, lru_cache

import numpy as np

TABLE, BIJECTION = "table", "bijection"
# Two tables of this many blocks, as an update needs that straddles two epochs, take 64 MB.
TABLE_LIMIT = 2**22
# Where there are millions of blocks fewer would do. With 16 even the orders of five come up equally often.
ROUNDS = 16


def usual_order(blocks: int) -> str:
    """The order of a fresh run: `TABLE`, the only one at first, or `BIJECTION`."""
    return TABLE if blocks <= TABLE_LIMIT else BIJECTION


def derive_seed(*parts: int | str) -> int:
    """Make a 63-bit seed from what it stands for; unrelated parts give unrelated seeds."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


@lru_cache(maxsize=2)  # an update may straddle two epochs
def epoch_order(kind: str, blocks: int, seed: int, epoch: int) -> Table | Bijection:
    """The order of one epoch.

    Args:
        kind: `TABLE` or `BIJECTION`.
        blocks: How many there are, at least 1.
        seed: Of the run.
        epoch: Counted from 0.
    """
    return (Table if kind == TABLE else Bijection)(blocks, seed, epoch)


class Table:
    """A shuffled table of all blocks; see `epoch_order`."""

    def __init__(self, blocks: int, seed: int, epoch: int) -> None:
        # RandomState's streams are frozen for good, unlike those of NumPy's newer generators: a run
        # resumed after an upgrade still sees the same order.
        random = np.random.RandomState(derive_seed(seed, "order", epoch) % 2**32)
        self._table = random.permutation(blocks)

    def blocks_at(self, places: range) -> list[int]:
        """The blocks at consecutive places of the epoch."""
        return self._table[places.start : places.stop].tolist()

    @cached_property
    def place_of_last(self) -> int:
        """Where the last block of the corpus stands."""
        return int(self._table.argmax())


class Bijection:
    """A pseudorandom order without a table; see `epoch_order`.

    A generalized Feistel network with cycle walking, after Black and Rogaway, "Ciphers with Arbitrary Finite
    Domains", CT-RSA 2002. A number has two digits, whose bases are about the square root of `blocks`. Each
    round adds a hash of one digit to the other, which can be undone. Two digits can also write a few numbers
    that are no block: one that comes out is put in again. It is integer arithmetic alone, the same with
    every version of NumPy.
    """

    def __init__(self, blocks: int, seed: int, epoch: int) -> None:
        self._blocks = blocks
        low_base = math.isqrt(blocks - 1) + 1
        low_base += low_base % 2  # two odd bases would make even permutations alone
        self._bases = np.uint64(low_base), np.uint64(-(-blocks // low_base))
        keys = [derive_seed(seed, "order", epoch, number) for number in range(ROUNDS)]
        self._rounds = list(enumerate(np.array(keys, dtype=np.uint64)))

    def blocks_at(self, places: range) -> list[int]:
        """The blocks at consecutive places of the epoch."""
        numbers = self._shuffle(np.arange(places.start, places.stop, dtype=np.uint64))
        while (outside := numbers >= self._blocks).any():
            numbers[outside] = self._shuffle(numbers[outside])
        return numbers.tolist()

    @cached_property
    def place_of_last(self) -> int:
        """Where the last block of the corpus stands."""
        number = self._shuffle(np.array([self._blocks - 1], dtype=np.uint64), back=True)
        while number[0] >= self._blocks:
            number = self._shuffle(number, back=True)
        return int(number[0])

    def _shuffle(self, numbers: np.ndarray, back: bool = False) -> np.ndarray:
        """Go through all rounds, or back through them."""
        digits = [numbers % self._bases[0], numbers // self._bases[0]]
        for number, key in reversed(self._rounds) if back else self._rounds:
            this, other, base = number % 2, 1 - number % 2, self._bases[number % 2]
            step = _hash(digits[other], key) % base
            digits[this] = (digits[this] + (base - step if back else step)) % base
        return digits[1] * self._bases[0] + digits[0]


def _hash(digits: np.ndarray, key: np.uint64) -> np.ndarray:
    """Mix 64 bits as SplitMix64 does (Steele, Lea and Flood, OOPSLA 2014); overflow is wanted."""
    mixed = digits + key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
