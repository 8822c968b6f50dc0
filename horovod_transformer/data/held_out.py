"""Whether the held-out blocks of prepared data can say anything about a model trained on the others."""

from __future__ import annotations

import numpy as np

from horovod_transformer.data.dataset import BlockDataset
from horovod_transformer.system.console import counted

# Fewer held-out blocks than this: a loss moves by several per cent with which ones they happen to be.
FEW_BLOCKS = 30
# A larger share of all blocks is missed by the training; usually one book is much longer than the others.
LARGE_SHARE = 0.3
# See `surprise`: other plays give 1.01, French manuals beside three plays 1.36 (docs/log.md, 2026-11-30).
ANOTHER_KIND = 1.25
# Blocks of each split that are looked at.
LOOKED_AT = 400


def held_out_warnings(train: BlockDataset, validation: BlockDataset) -> list[str]:
    """Say what makes the held-out loss tell little, a line each, with what to do; usually nothing.

    Args:
        train, validation: The splits.
    """
    found = []
    blocks, share = len(validation), len(validation) / (len(validation) + len(train))
    if blocks < FEW_BLOCKS:
        found.append(
            f"only {counted(blocks, 'held-out block')}: their loss depends on which they happen to be; raise "
            "data.validation_fraction, or add books"
        )
    if share > LARGE_SHARE:
        found.append(
            f"{share:.0%} of the blocks are held out, and nothing is learned from them: one book is long "
            "beside the others; cut it into parts (data.separator), or try another data.split_seed"
        )
    if surprise(train, validation) > ANOTHER_KIND:
        found.append(
            "the held-out books are of another kind than the training books (another language?), so their "
            "loss says little; try another data.split_seed, or prepare each kind by itself"
        )
    return found


def surprise(train: BlockDataset, validation: BlockDataset) -> float:
    """How strange held-out tokens are to who knows only how often each comes in the training text.

    Returns:
        Bits of a held-out token by the frequencies in half of the training blocks looked at, divided by those
        of a token of the other half.
    """
    looked_at = _rows(train)
    if len(looked_at) < 2:
        return 1.0
    counts = np.bincount(looked_at[::2].reshape(-1), minlength=train.vocab_size) + 1.0
    bits = -np.log2(counts / counts.sum())
    return float(bits[_rows(validation)].mean() / bits[looked_at[1::2]].mean())


def _rows(split: BlockDataset) -> np.ndarray:
    """Blocks that lie evenly over a split."""
    places = np.linspace(0, len(split) - 1, min(len(split), LOOKED_AT)).astype(int)
    return split.rows(np.unique(places).tolist())
