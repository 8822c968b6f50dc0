"""What a preparation is to make: the settings that `prepare` takes from a config, and their record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from horovod_transformer.config_sections import DataConfig
from horovod_transformer.data.manifest import SPLITS, TEST
from horovod_transformer.tokenizer import Tokenizer


@dataclass(frozen=True)
class PrepareSettings:
    """What is to be made of which books.

    Attributes:
        data: The section `data` of a config.
        block_size: Tokens of a block, `model.max_seq_len`.
        vocab_size: Token ids that the model has room for, `model.vocab_size`.
    """

    data: DataConfig
    block_size: int
    vocab_size: int

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that are to be made, the one for training first."""
        return (*SPLITS, TEST) if self.data.test_fraction else SPLITS

    def recorded(self, tokenizer: Tokenizer | None) -> dict[str, Any]:
        """Return the config values that decide what the prepared data is, by dotted key.

        Args:
            tokenizer: The one that was chosen; None if one is trained on the books.
        """
        data = self.data
        name, vocab_size = data.tokenizer, self.vocab_size
        if tokenizer:
            # Which one, not where it lay; and its tokens are the same for a model that keeps room for more.
            name = "gpt2" if tokenizer.kind == "gpt2" else str(tokenizer)
            vocab_size = tokenizer.vocab_size
        # What a tokenizer that is trained on the books depends on.
        sample = {} if tokenizer else {"data.tokenizer_characters": data.tokenizer_characters}
        return {
            **sample,
            "data.tokenizer": name,
            "data.encoding": data.encoding,
            "data.text_column": data.text_column,
            "data.separator": data.separator,
            "data.join_rows": data.join_rows,
            "data.clean": data.clean,
            "data.validation_fraction": data.validation_fraction,
            "data.test_fraction": data.test_fraction,
            "data.split": data.split,
            "data.min_book_characters": data.min_book_characters,
            "data.split_seed": data.split_seed,
            "model.max_seq_len": self.block_size,
            "model.vocab_size": vocab_size,
        }
