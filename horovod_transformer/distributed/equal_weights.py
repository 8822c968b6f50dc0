"""The proof that every rank holds the same weights."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from horovod_transformer.distributed.collectives import gather_objects


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the names and exact bytes of a model's parameters, as hex."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_equal_weights(model: nn.Module, when: str) -> str:
    """Prove that every rank holds the same weights, bit for bit. *Collective.*

    Args:
        model: The model to compare.
        when: What just happened, for the message.

    Returns:
        The common digest.

    Raises:
        RuntimeError: Ranks differ; the message names them. They would drift apart in silence.
    """
    mine = weights_digest(model)
    digests = gather_objects(mine, "digest")
    different = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if different:
        raise RuntimeError(f"after {when} the weights of ranks {different} differ from those of rank 0")
    return mine
