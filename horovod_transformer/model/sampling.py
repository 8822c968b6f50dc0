"""Choosing the next token from a row of logits."""

from __future__ import annotations

import torch
from torch import Tensor

from horovod_transformer.config_sections import GenerationConfig
from horovod_transformer.errors import UserError


def next_tokens(
    logits: Tensor, settings: GenerationConfig, draws: Tensor | None = None, seen: Tensor | None = None
) -> Tensor:
    """Draw one token per row.

    Args:
        logits: Unnormalised log-probabilities, float of shape (batch, vocab_size).
        settings: `temperature` divides the logits; 0 takes the likeliest token and ignores both
            cuts. `top_k` keeps only the k likeliest tokens; 0 keeps all. `top_p` keeps the fewest
            likeliest tokens whose probabilities sum to at least this much (nucleus sampling,
            Holtzman et al. 2020, arXiv:1904.09751); 1 keeps all. `repetition_penalty` divides
            positive logits of `seen` tokens and multiplies negative ones (Keskar et al. 2019,
            arXiv:1909.05858), before all else.
        draws: A number from 0 to below 1 for each row, float64 of shape (batch,), on any device:
            it decides the row's token. None takes them from torch's own generator.
        seen: Which tokens stand in each row's text already, bool of shape (batch, vocab_size).

    Returns:
        Token ids, int64 of shape (batch,).

    Raises:
        UserError: The logits are NaN.
    """
    logits = logits.float()
    if torch.isnan(logits).any():
        raise UserError("the model's logits are not numbers (NaN): its weights are damaged or diverged")
    if seen is not None and settings.repetition_penalty != 1:
        penalty = settings.repetition_penalty
        lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
        # Beyond the largest float is infinity, which no softmax takes.
        largest = torch.finfo(logits.dtype).max
        lowered = lowered.clamp(-largest, largest)
        logits = torch.where(seen, lowered, logits)
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    # Sorted once, both cuts are prefixes. Rows beyond top_k are never sorted.
    kept = min(settings.top_k, logits.shape[-1]) or logits.shape[-1]
    values, tokens = torch.topk(_divided(logits, settings.temperature), kept, dim=-1)
    probabilities = values.double().softmax(dim=-1)
    if settings.top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        # The likeliest token always stays: nothing comes before it.
        probabilities = probabilities.masked_fill(before >= settings.top_p, 0.0)
    if draws is None:
        draws = torch.rand(len(logits), dtype=torch.float64)
    # The first token up to which the probabilities sum to more than the draw.
    up_to = probabilities.cumsum(dim=-1)
    wanted = draws.to(logits.device)[:, None] * up_to[:, -1:]
    chosen = torch.searchsorted(up_to, wanted, right=True).clamp(max=kept - 1)
    return tokens.gather(-1, chosen).squeeze(-1)


def _divided(logits: Tensor, temperature: float) -> Tensor:
    """Divide logits by a temperature above 0, however small; what overflows is shifted to a maximum of 0."""
    divided = logits / temperature
    if (divided.abs().amax(dim=-1) < torch.inf).all():
        return divided
    wide = logits.double()
    wide = wide - wide.amax(dim=-1, keepdim=True)
    return wide / temperature
