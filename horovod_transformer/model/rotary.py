"""Rotary positions: each query and key is turned by angles that grow with its position.

A score then depends on how far apart two tokens are, not on where they stand (Su et al. 2021,
arXiv:2104.09864). Neighbouring numbers of a head are a pair, and a pair is a complex number: to turn it is to
multiply it.

Shapes in comments: B sequences, T tokens, H heads, D numbers of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from horovod_transformer.config_sections import RopeScaling


def rotary_table(
    length: int, head_dim: int, theta: float, scaling: RopeScaling | None = None, three: bool = True
) -> Tensor:
    """What queries, keys and values are multiplied by at each position.

    Pair i of a query or key at position p is turned by p / theta^(2i / head_dim); values stay.

    Args:
        length: Number of positions.
        head_dim: Numbers of a head, even.
        theta: The larger, the slower the slowest pair turns.
        scaling: Turns the slow pairs slower still, for a longer context; None leaves them.
        three: A row each for queries, keys and values; False: one for queries and keys.

    Returns:
        Cosines and sines, float32 (length, 3 or 1, 1, head_dim / 2, 2): positions, the three, heads, pairs.
    """
    # On the CPU whatever the default device: on the meta device this would load torch's compiler.
    positions = torch.arange(length, dtype=torch.float64, device="cpu")[:, None]
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu")
    speeds = torch.exp(-math.log(theta) * pairs / head_dim)
    angles = positions * (speeds if scaling is None else _scaled(speeds, scaling))
    rows = [angles, angles, torch.zeros_like(angles)] if three else [angles]
    stacked = torch.stack(rows, dim=1)[:, :, None]
    return torch.stack([stacked.cos(), stacked.sin()], dim=-1).float()


def _scaled(speeds: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3's way to a longer context, by the formula of `transformers` (its `rope_type` llama3).

    Pairs that turn often within the original context keep their speed, those that hardly turn are slowed by
    the factor, and between the two the speed goes from one to the other.
    """
    turns = scaling.original_max_position_embeddings * speeds / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return speeds * (kept + (1 - kept) / scaling.factor)


def rotate(qkv: Tensor, rotation: Tensor) -> Tensor:
    """Turn queries and keys.

    Args:
        qkv: Queries, keys and values, float (B, T, 3, H, D). Or one of the three, (B, T, H, D), with the
            rotation's axis of three left out.
        rotation: Rows of `rotary_table`, one for each token: (T, 3, 1, D/2, 2), or with B before that if
            texts differ in their positions, or without T for one position.

    Returns:
        The same shape and dtype; computed in float32.
    """
    pairs, rotation = qkv.float().unflatten(-1, (-1, 2)), rotation.float()
    if torch.compiler.is_compiling():  # it does not know complex numbers
        (x, y), (cosine, sine) = pairs.unbind(-1), rotation.unbind(-1)
        turned = torch.stack([x * cosine - y * sine, x * sine + y * cosine], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation))
    return turned.flatten(-2).to(qkv.dtype)
