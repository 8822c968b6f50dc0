"""Writing token after token: the loop over the cache of keys and values.

Texts of different lengths share a batch, each at its own position: the shorter ones are padded at
their end, where no token looks, so each is computed as it would be alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from horovod_transformer.config_sections import GenerationConfig
from horovod_transformer.model.cache import KeyValueCache
from horovod_transformer.model.sampling import next_tokens


class CachedModel(Protocol):
    """What the loop needs of a model."""

    max_seq_len: int
    vocab_size: int
    training: bool

    def new_cache(self, batch_size: int, room: int | None = None) -> KeyValueCache: ...

    def cached_logits(
        self,
        input_ids: Tensor,
        cache: KeyValueCache,
        rows: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor: ...

    def train(self, mode: bool = True) -> object: ...


@dataclass(frozen=True)
class Written:
    """One token that was written.

    Attributes:
        row: Which text it belongs to.
        token: Its id; the end-of-text token is reported, too, and ends its text.
        log_probability: What the model itself gave it, in nats: before temperature, cuts and
            penalty. None unless asked for.
    """

    row: int
    token: int
    log_probability: float | None


class Decoder:
    """Continues several texts, one token each at a time.

    Once its context is full, a text continues from the newest half of it: any length can be written
    at a bounded cost per token.

    Args:
        model: In either mode; dropout is off while it writes.
        prompts: Token ids of each text, one at least.
        settings: How tokens are drawn, and how many at most.
        end_of_text: The token that ends a text; None: none does.
        generators: A source of randomness for each text, on the CPU: then what one text becomes
            does not depend on the others.
        generator: One for all, instead; without either, torch's own.
        use_cache: False computes each text anew for every token, for tests.
        log_probabilities: Report them.

    Attributes:
        texts: All tokens of each text so far, its prompt included.
        rows: The texts that are still being written.

    Raises:
        ValueError: A prompt is empty.
    """

    def __init__(
        self,
        model: CachedModel,
        prompts: Sequence[Sequence[int]],
        settings: GenerationConfig,
        end_of_text: int | None = None,
        *,
        generators: Sequence[torch.Generator] | None = None,
        generator: torch.Generator | None = None,
        use_cache: bool = True,
        log_probabilities: bool = False,
    ) -> None:
        if not all(len(prompt) for prompt in prompts):
            raise ValueError("generation needs at least one token to start from")
        self.texts = [list(prompt) for prompt in prompts]
        self.rows = list(range(len(prompts)))
        self._model = model
        self._settings = settings
        self._end_of_text = end_of_text
        self._generators = generators
        self._generator = generator
        self._use_cache = use_cache
        self._log_probabilities = log_probabilities
        self._prompt_lengths = [len(prompt) for prompt in prompts]
        # Where in each text the window begins that the model looks at.
        self._starts = [max(0, len(prompt) - model.max_seq_len) for prompt in prompts]
        longest = max(self._prompt_lengths, default=0) + settings.max_new_tokens
        self._cache = model.new_cache(len(prompts), min(longest, model.max_seq_len))
        self._device = self._cache.keys[0].device
        self._seen: Tensor | None = None
        if settings.repetition_penalty != 1:
            self._seen = torch.zeros(len(prompts), model.vocab_size, dtype=torch.bool, device=self._device)
            for row, text in enumerate(self.texts):
                self._seen[row, text] = True

    def finish(self, *rows: int) -> None:
        """Write no more of these texts."""
        kept = [slot for slot, row in enumerate(self.rows) if row not in rows]
        if len(kept) < len(self.rows):
            self.rows = [self.rows[slot] for slot in kept]
            if kept:
                self._cache.keep(kept)

    @torch.no_grad()
    def step(self) -> list[Written]:
        """Write one token of each of `rows`; those that end thereby leave it."""
        was_training = self._model.training
        if was_training:
            self._model.train(False)
        try:
            logits = self._logits()
        finally:
            if was_training:
                self._model.train()
        seen = None if self._seen is None else self._seen[self.rows]
        tokens = next_tokens(logits, self._settings, self._draws(), seen)
        chosen = tokens.tolist()
        scores: list[float] = []
        if self._log_probabilities:
            scores = logits.float().log_softmax(-1).gather(1, tokens[:, None]).squeeze(1).tolist()
        written = []
        for slot, row in enumerate(list(self.rows)):
            token = chosen[slot]
            self.texts[row].append(token)
            if self._seen is not None:
                self._seen[row, token] = True
            written.append(Written(row, token, scores[slot] if scores else None))
        # All at once: what remains of the cache is copied.
        self.finish(*(row for row in self.rows if self._has_ended(row)))
        return written

    def _has_ended(self, row: int) -> bool:
        new = len(self.texts[row]) - self._prompt_lengths[row]
        return self.texts[row][-1] == self._end_of_text or new >= self._settings.max_new_tokens

    def _draws(self) -> Tensor | None:
        """A uniform number for each row, float64: on the CPU, or where the one generator for all rows is."""
        if self._settings.temperature == 0:
            return None
        if self._generators is not None:
            own = [self._generators[row] for row in self.rows]
            return torch.cat([torch.rand(1, dtype=torch.float64, generator=source) for source in own])
        source = self._generator
        device = source.device if source is not None else "cpu"
        return torch.rand(len(self.rows), dtype=torch.float64, generator=source, device=device)

    def _logits(self) -> Tensor:
        """Logits after each of `rows`, (rows, V)."""
        context = self._model.max_seq_len
        prefill: list[int] = []
        decode: list[int] = []
        for slot, row in enumerate(self.rows):
            overflows = len(self.texts[row]) - self._starts[row] > context
            if overflows:
                self._starts[row] = len(self.texts[row]) - max(1, context // 2)
            fresh = overflows or not self._use_cache or not self._cache.lengths[slot]
            (prefill if fresh else decode).append(slot)
        parts = []
        if prefill:
            windows = [self.texts[self.rows[slot]][self._starts[self.rows[slot]] :] for slot in prefill]
            lengths = [len(window) for window in windows]
            padded = [window + [0] * (max(lengths) - len(window)) for window in windows]
            ids = torch.tensor(padded, device=self._device)
            parts.append(self._model.cached_logits(ids, self._cache, prefill, lengths))
        if decode:
            ids = torch.tensor([[self.texts[self.rows[slot]][-1]] for slot in decode], device=self._device)
            parts.append(self._model.cached_logits(ids, self._cache, decode))
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor(prefill + decode, device=self._device).argsort()
        return torch.cat(parts)[order]
