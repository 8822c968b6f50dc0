"""The disk that checkpoints take, by arithmetic and without torch."""

from __future__ import annotations

from horovod_transformer.config import ModelConfig
from horovod_transformer.model.size import count_parameters


def checkpoint_bytes(model: ModelConfig) -> int:
    """Size of one checkpoint: weights and the optimizer's moments, all float32.

    AdamW keeps two moments of every parameter (Loshchilov & Hutter 2019, arXiv:1711.05101). Muon
    keeps one of the blocks' matrices; it is counted like AdamW, as the most it can be.
    """
    return 3 * 4 * count_parameters(model)


def run_bytes(model: ModelConfig, keep: int) -> int:
    """Bytes that a run's checkpoints take at most, those of `training.keep_every` left out.

    Args:
        model: Shape.
        keep: How many periodic ones stay, `training.keep_checkpoints`.
    """
    # The newest is written before the oldest goes; the best is apart.
    return checkpoint_bytes(model) * (keep + 2)
