"""Figures derived from a loss: perplexity and bits per byte."""

from __future__ import annotations

import math


def bits_per_byte(loss: float, bytes_per_token: float | None) -> float | None:
    """Loss in bits per byte of text, comparable between tokenizers and with compressors.

    None where it is not known how many bytes a token stands for.
    """
    return loss / math.log(2) / bytes_per_token if bytes_per_token else None


def perplexity(loss: float) -> float:
    """exp(loss), or infinity where that does not fit a float."""
    return math.exp(loss) if loss < 700 else math.inf
