"""The cache of keys and values, so that generation computes those of each token only once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values of the tokens seen so far, for a batch of texts of any lengths.

    A pass of the model over the cache is one of two: *prefill* computes whole texts, *decode* one more token
    for each text. `begin_prefill` or `begin_decode` says which, `finish` ends it.

    All memory is taken at once: 2 x layers x batch x room x `d_model` numbers of the model's dtype, on
    its device. What lies beyond a row's length has no meaning.

    Attributes:
        keys: One tensor per layer, (B, H, room, D).
        values: The same for values.
        lengths: Tokens held, for each of the B rows.
        prefill: Whether the current pass is a prefill.
        longest: Tokens of the longest text in the current pass, new ones included.
        aligned: In a decode pass: all rows take part, and their new tokens have the same position.
    """

    def __init__(self, like: Tensor, layers: int, shape: tuple[int, int, int, int]) -> None:
        """Take memory; nothing is held yet.

        Args:
            like: Gives dtype and device.
            layers: Number of layers.
            shape: (B, H, room, D), `room` being how many tokens each row can hold.
        """
        # Zeros: what attention masks out is multiplied by 0, and memory as it comes may hold NaN.
        self.keys = [like.new_zeros(shape) for _ in range(layers)]
        self.values = [like.new_zeros(shape) for _ in range(layers)]
        self.lengths = [0] * shape[0]
        self.prefill = False
        self.longest = 0
        self.aligned = False
        self._rows: list[int] = []
        self._positions: list[int] = []
        self._ends: list[int] = []

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    def begin_prefill(self, rows: list[int], lengths: Sequence[int], padded_length: int) -> None:
        """Let the coming pass replace what `rows` hold by texts of these lengths, padded to one length."""
        self.prefill, self._rows, self._ends, self.longest = True, rows, list(lengths), padded_length

    def begin_decode(self, rows: list[int]) -> None:
        """Let the coming pass add one token to each of `rows`."""
        self.prefill, self._rows = False, rows
        self._positions = [self.lengths[row] for row in rows]
        self._ends = [position + 1 for position in self._positions]
        self.longest = max(self._ends)
        self.aligned = len(rows) == self.batch_size and min(self._ends) == self.longest

    def finish(self) -> None:
        """Count what the pass has stored."""
        for row, end in zip(self._rows, self._ends, strict=True):
            self.lengths[row] = end

    def new_positions(self) -> slice | int | Tensor:
        """Positions of the pass's new tokens, as an index: one for all rows, or int64 (R, 1)."""
        if self.prefill:
            return slice(0, self.longest)
        if self.aligned:
            return self.longest - 1
        return torch.tensor(self._positions, device=self.keys[0].device)[:, None]

    def mask(self) -> Tensor | None:
        """Which keys the new tokens may see, bool (R, 1, 1, K); None: the usual ones.

        Only a decode pass over texts of unequal lengths needs one: a shorter text does not see what lies
        beyond its end.
        """
        if self.prefill or min(self._ends) == self.longest:
            return None
        device = self.keys[0].device
        positions = torch.tensor(self._positions, device=device)
        columns = torch.arange(self.longest, device=device)
        return (columns <= positions[:, None])[:, None, None]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store what one layer has computed for T new tokens.

        Args:
            layer: Which one, from 0.
            keys: (R, H, T, D), for the R rows of the pass.
            values: (R, H, T, D).

        Returns:
            The keys and values that the new tokens may see, (R, H, K, D) each; in a batch of
            unequal lengths a shorter row's last ones are not its own.
        """
        seen = []
        for store, new in ((self.keys[layer], keys), (self.values[layer], values)):
            if self.prefill:
                store[self._rows, :, : new.shape[2]] = new
                seen.append(new)
                continue
            if self.aligned:
                store.narrow(2, self.longest - 1, 1).copy_(new)
            else:
                store[self._rows, :, self._positions] = new[:, :, 0]
            every = len(self._rows) == self.batch_size
            seen.append(store.narrow(2, 0, self.longest) if every else store[self._rows, :, : self.longest])
        return seen[0], seen[1]

    def keep(self, rows: list[int]) -> None:
        """Forget all rows but these."""
        self.keys = [store[rows] for store in self.keys]
        self.values = [store[rows] for store in self.values]
        self.lengths = [self.lengths[row] for row in rows]
