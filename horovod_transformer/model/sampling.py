"""Choosing the next token from a row of logits."""

from __future__ import annotations

import torch
from torch import Tensor

from horovod_transformer.config import GenerationConfig


def next_tokens(
    logits: Tensor, settings: GenerationConfig, generator: torch.Generator | None = None
) -> Tensor:
    """Draw one token per row.

    Args:
        logits: Unnormalised log-probabilities, float of shape (batch, vocab_size).
        settings: `temperature` divides the logits; 0 takes the likeliest token and ignores the
            rest. `top_k` keeps only the k likeliest tokens; 0 keeps all. `top_p` keeps the fewest
            likeliest tokens whose probabilities sum to at least this much (nucleus sampling,
            Holtzman et al. 2020, arXiv:1904.09751); 1 keeps all.
        generator: Source of randomness, on the device of the logits; None uses torch's own.

    Returns:
        Token ids, int64 of shape (batch,).

    Raises:
        ValueError: The logits are NaN.
    """
    logits = logits.float()
    if torch.isnan(logits).any():
        raise ValueError("the model's logits are not numbers (NaN): its weights are damaged or diverged")
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    # Sorted once, both cuts are prefixes. Rows beyond top_k are never sorted.
    kept = min(settings.top_k, logits.shape[-1]) or logits.shape[-1]
    values, tokens = torch.topk(logits / settings.temperature, kept, dim=-1)
    probabilities = values.softmax(dim=-1)
    if settings.top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        # The likeliest token always stays: nothing comes before it.
        probabilities = probabilities.masked_fill(before >= settings.top_p, 0.0)
    chosen = torch.multinomial(probabilities, 1, generator=generator)
    return tokens.gather(-1, chosen).squeeze(-1)
