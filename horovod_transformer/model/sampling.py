"""Choosing the next token from a row of logits."""

from __future__ import annotations

import torch
from torch import Tensor


def next_tokens(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token per row.

    Args:
        logits: Unnormalised log-probabilities, float of shape (batch, vocab_size).
        temperature: Divides the logits; 0 takes the likeliest token and ignores the rest.
        top_k: Keep only the k likeliest tokens; 0 keeps all.
        top_p: Keep the fewest likeliest tokens whose probabilities sum to at least this much
            (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751); 1 keeps all.
        generator: Source of randomness; None uses torch's own.

    Returns:
        Token ids, int64 of shape (batch,).

    Raises:
        ValueError: A parameter is out of its range, or the logits are not finite.
    """
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"temperature and top_k must not be negative and top_p must be above 0 and at most 1, "
            f"not {temperature}, {top_k}, {top_p}"
        )
    logits = logits.float()
    if torch.isnan(logits).any():
        raise ValueError("the model's logits are not numbers (NaN): its weights are damaged or diverged")
    if temperature == 0:
        return logits.argmax(dim=-1)
    # Sorted once, both cuts are prefixes. Rows beyond top_k are never sorted.
    kept = min(top_k, logits.shape[-1]) or logits.shape[-1]
    values, tokens = torch.topk(logits / temperature, kept, dim=-1)
    probabilities = values.softmax(dim=-1)
    if top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        # The likeliest token always stays: nothing comes before it.
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    chosen = torch.multinomial(probabilities, 1, generator=generator)
    return tokens.gather(-1, chosen).squeeze(-1)
