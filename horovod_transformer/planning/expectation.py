"""What to expect of a run, in words: the one place for `plan`, `doctor` and the first lines of `train`."""

from __future__ import annotations

from pathlib import Path

from horovod_transformer.config_sections import ModelConfig
from horovod_transformer.model.size import count_parameters
from horovod_transformer.planning.law_file import law_for


def parameters_of_layers(model: ModelConfig) -> int:
    """Parameters that the law counts: all but those of the embedding and the output projection."""
    matrices = 1 if model.tie_embeddings else 2
    return count_parameters(model) - matrices * model.vocab_size * model.d_model


def expected_bits(
    model: ModelConfig, data_dir: Path | None, unique: int, tokens: int
) -> tuple[float, float, str]:
    """Expected bits per byte of held-out text, half the width of its range, and where that comes from.

    Args:
        model: Its shape.
        data_dir: The prepared data, if there is some.
        unique: Tokens of its training split.
        tokens: That the run reads, repetitions included.
    """
    law = law_for(data_dir, unique)
    return law.bits_per_byte(parameters_of_layers(model), unique, tokens), law.error, law.source


def expectation(model: ModelConfig, data_dir: Path | None, unique: int, tokens: int) -> str:
    """`expected_bits` as a sentence."""
    bits, error, source = expected_bits(model, data_dir, unique, tokens)
    return (
        f"expected of held-out text: about {bits:.2f} bits per byte ({bits - error:.2f} to "
        f"{bits + error:.2f}; {source})"
    )
