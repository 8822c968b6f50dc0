"""The proof that every rank holds the same weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from horovod_transformer.distributed.exchange import gather_objects


@torch.no_grad()
def weights_digest(model: nn.Module) -> list[int]:
    """One whole number per parameter: the sum of its values' bit patterns, computed on the device.

    Whole numbers add up exactly in any order, and one changed bit changes the sum. It is a check
    against drift, not against an enemy: two changes may cancel each other.

    Args:
        model: Its parameters are float32.
    """
    sums: list[Tensor] = [
        parameter.detach().contiguous().view(torch.int32).sum(dtype=torch.int64)
        for parameter in model.parameters()
    ]
    return torch.stack(sums).tolist() if sums else []


def require_equal_weights(model: nn.Module, when: str) -> None:
    """Prove that every rank holds the same weights, bit for bit. *Collective.*

    Args:
        model: The model to compare.
        when: What just happened, for the message.

    Raises:
        RuntimeError: Ranks differ; the message names them. They would drift apart in silence.
    """
    digests = gather_objects(weights_digest(model), "digest")
    different = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if different:
        names = [name for name, _ in model.named_parameters()]
        by_parameter = zip(names, zip(*digests, strict=True), strict=True)
        places = [name for name, sums in by_parameter if len(set(sums)) > 1]
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        raise RuntimeError(
            f"after {when} the weights of ranks {different} differ from those of rank 0, in "
            f"{places[0]}{more}; nothing more is written, resume from the last checkpoint"
        )
