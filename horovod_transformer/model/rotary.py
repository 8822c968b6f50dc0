"""Rotary positions: each query and key is turned by angles that grow with its position.

A score then depends on how far apart two tokens are, not on where they stand (Su et al. 2021,
arXiv:2104.09864). Laid out as in GPT-NeoX (Black et al. 2022, arXiv:2204.06745): numbers i and i + D/2 of a
head are the pair that is turned by one angle.

Shapes in comments: B sequences, T tokens, H heads, D numbers of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from horovod_transformer.model.cpu.rotary import rotated


def rotary_table(length: int, head_dim: int, theta: float) -> Tensor:
    """Cosines and sines of each position's angles, float32 (length, 2, head_dim / 2).

    Pair i at position p is turned by p / theta^(2i / head_dim).
    """
    # On the CPU whatever the default device: on the meta device this would load torch's compiler.
    positions = torch.arange(length, dtype=torch.float64, device="cpu")[:, None]
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu")
    angles = positions * torch.exp(-math.log(theta) * pairs / head_dim)
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


def rotate(qkv: Tensor, rotation: Tensor) -> Tensor:
    """Turn queries and keys; values stay.

    Args:
        qkv: Queries, keys and values, float (B, T, 3, H, D).
        rotation: Rows of `rotary_table`, one for each token: (T, 2, D/2), or (B, T, 2, D/2) if texts differ
            in their positions, or (2, D/2) for one position.

    Returns:
        The same shape.
    """
    # For the axes of the three and of the heads: (..., 2, D/2) -> two of (..., 1, 1, D/2)
    cosines, sines = rotation.to(qkv.dtype)[..., None, None, :].unbind(-4)
    # The compiler comes first: it must not look further.
    if not torch.compiler.is_compiling() and qkv.device.type == "cpu":
        return rotated(qkv, cosines, sines)
    query_key, value = qkv.split([2, 1], dim=2)
    first, second = query_key.chunk(2, dim=-1)
    turned = torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)
    return torch.cat([turned, value], dim=2)
