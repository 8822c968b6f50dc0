"""How many logits are held at once, and how they are padded."""

from __future__ import annotations

import torch

# Rows of logits alive at once on a CPU. 512 rows x 50,257 columns are 103 MB in float32; fewer rows are
# slower at that width (docs/log.md), more only take memory.
CHUNK_ROWS = 512
# A GPU is fed with fewer, larger products; its chunk may take this share of its memory.
GPU_CHUNK_ROWS = 8192
GPU_MEMORY_SHARE = 1 / 16
# Products want rows that begin at round addresses, and 50,257 columns do not make such rows.
COLUMNS_MULTIPLE = 64


def rows_per_chunk(device: torch.device, columns: int) -> int:
    """How many rows of logits to hold at once.

    It follows from the card's whole memory, not from what is free: the number decides the last
    bits of the sums, and a resumed run must repeat them.

    Args:
        device: Where they are.
        columns: Of the logits.
    """
    if device.type != "cuda":
        return CHUNK_ROWS
    memory = torch.cuda.get_device_properties(device).total_memory
    bytes_per_row = columns * 12  # logits in half and single precision, their gradient, its half
    fitting = int(memory * GPU_MEMORY_SHARE) // bytes_per_row
    return max(CHUNK_ROWS, min(GPU_CHUNK_ROWS, fitting // CHUNK_ROWS * CHUNK_ROWS))


def padded_columns(vocab_size: int) -> int:
    """Columns that a row of logits has room for; those beyond the vocabulary are not looked at."""
    return -(-vocab_size // COLUMNS_MULTIPLE) * COLUMNS_MULTIPLE
