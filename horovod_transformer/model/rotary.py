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


def rotary_table(length: int, head_dim: int, theta: float) -> Tensor:
    """What queries, keys and values are multiplied by at each position.

    Pair i of a query or key at position p is turned by p / theta^(2i / head_dim); values stay.

    Returns:
        Cosines and sines, float32 (length, 3, 1, head_dim / 2, 2): positions, the three, heads, pairs.
    """
    # On the CPU whatever the default device: on the meta device this would load torch's compiler.
    positions = torch.arange(length, dtype=torch.float64, device="cpu")[:, None]
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu")
    angles = positions * torch.exp(-math.log(theta) * pairs / head_dim)
    three = torch.stack([angles, angles, torch.zeros_like(angles)], dim=1)[:, :, None]
    return torch.stack([three.cos(), three.sin()], dim=-1).float()


def rotate(qkv: Tensor, rotation: Tensor) -> Tensor:
    """Turn queries and keys.

    Args:
        qkv: Queries, keys and values, float (B, T, 3, H, D).
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
