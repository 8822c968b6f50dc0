"""The proof that every rank holds the same weights."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from horovod_transformer.distributed.exchange import gather_objects


def weights_digest(model: nn.Module) -> str:
    """Sixteen hexadecimal digits that stand for a model's weights: two people can compare them by reading.

    Equal weights, bit for bit, have equal digests on every device and any number of ranks. It is a check
    against drift, not against an enemy, see `bit_sums`.

    Args:
        model: Its parameters are float32.
    """
    return _digest_of(bit_sums(model))


def _digest_of(sums: list[int]) -> str:
    return hashlib.sha256(",".join(map(str, sums)).encode()).hexdigest()[:16]


@torch.no_grad()
def bit_sums(model: nn.Module) -> list[int]:
    """One whole number per parameter: the sum of its values' bit patterns, computed on the device.

    Whole numbers add up exactly in any order, and one changed bit changes the sum; two changes may cancel
    each other.

    Args:
        model: Its parameters are float32.
    """
    sums: list[Tensor] = [
        parameter.detach().contiguous().view(torch.int32).sum(dtype=torch.int64)
        for parameter in model.parameters()
    ]
    return torch.stack(sums).tolist() if sums else []


def require_equal_weights(model: nn.Module, when: str) -> str:
    """Prove that every rank holds the same weights, bit for bit. *Collective.*

    Args:
        model: The model to compare.
        when: What just happened, for the message.

    Returns:
        Their digest, see `weights_digest`.

    Raises:
        RuntimeError: Ranks differ; the message names them. They would drift apart in silence.
    """
    all_sums = gather_objects(bit_sums(model), "digest")
    different = [rank for rank, sums in enumerate(all_sums) if sums != all_sums[0]]
    if different:
        names = [name for name, _ in model.named_parameters()]
        by_parameter = zip(names, zip(*all_sums, strict=True), strict=True)
        places = [name for name, sums in by_parameter if len(set(sums)) > 1]
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        raise RuntimeError(
            f"after {when} the weights of ranks {different} differ from those of rank 0, in "
            f"{places[0]}{more}; nothing more is written, resume from the last checkpoint"
        )
    return _digest_of(all_sums[0])
