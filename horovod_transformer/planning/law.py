"""Expected bits per byte of a model, from its size and the tokens it reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Muennighoff et al. 2023 (arXiv:2305.16264): after about so many repetitions little is left to learn.
REPEATS_THAT_COUNT = 15.39
# Exponents that a fit tries, for parameters and for tokens; published ones are 0.28 to 0.37.
POWERS = tuple(round(0.1 + 0.02 * step, 2) for step in range(26))
FEWEST_POINTS = 4


@dataclass(frozen=True)
class Point:
    """What one finished run has shown.

    Attributes:
        parameters: Of the model, its embedding left out.
        unique: Tokens of the training split.
        tokens: Tokens read, repetitions included.
        bits_per_byte: Of the validation split, at its end.
    """

    parameters: int
    unique: int
    tokens: int
    bits_per_byte: float


@dataclass(frozen=True)
class Law:
    """floor + a / parameters^p + b / effective tokens^q, in bits per byte of held-out text.

    The form is that of Hoffmann et al. 2022 (arXiv:2203.15556); tokens that are read again count less, as
    Muennighoff et al. 2023 (arXiv:2305.16264) found. Their law for too many parameters is left out.

    Attributes:
        floor: What no model of these books gets below.
        a, p: How much too few parameters cost.
        b, q: How much too few tokens cost.
        error: Half the width of the range to expect, in bits per byte.
        source: Where the five numbers come from, in words.
    """

    floor: float
    a: float
    p: float
    b: float
    q: float
    error: float
    source: str

    def bits_per_byte(self, parameters: int, unique: int, tokens: int) -> float:
        """Expected bits per byte; the arguments are those of `Point`."""
        return (
            self.floor + self.a * parameters**-self.p + self.b * effective_tokens(unique, tokens) ** -self.q
        )


# Fitted to ten runs of small models on the sample's plays (docs/log.md, 2026-11-29); it meets each within
# 0.008. Of other books nothing is known, hence the wide range.
OF_SMALL_CORPORA = Law(1.124, 9.197, 0.28, 26.32, 0.26, 0.25, "fitted to our own small models of 38 plays")
# Hoffmann et al. 2022, section D.3, from nats per token to bits per byte with 4.4 bytes a token.
OF_LARGE_CORPORA = Law(0.554, 133.3, 0.34, 134.7, 0.28, 0.15, "published, of web text: arXiv:2203.15556")
# Tokens of a training split from which on the second one is taken.
LARGE_CORPUS = 50_000_000


def usual_law(unique: int) -> Law:
    """The law for books that no run has been fitted to, by the tokens of their training split."""
    return OF_LARGE_CORPORA if unique >= LARGE_CORPUS else OF_SMALL_CORPORA


def effective_tokens(unique: int, tokens: int) -> float:
    """New tokens that teach as much as these, of which all beyond the first epoch are repetitions."""
    if tokens <= unique:
        return float(tokens)
    repeats = tokens / unique - 1
    return unique * (1 + REPEATS_THAT_COUNT * (1 - math.exp(-repeats / REPEATS_THAT_COUNT)))


def fit(points: Sequence[Point], source: str, least_error: float) -> Law:
    """Fit a law to finished runs by least squares; no term may be negative.

    Of all pairs of exponents in `POWERS` the one with the smallest squared error wins.

    Args:
        points: At least `FEWEST_POINTS`, with two sizes and two numbers of tokens among them.
        source: As in `Law`.
        least_error: The range is at least this wide on each side: few points are met too well.
    """
    if len(points) < FEWEST_POINTS:
        raise ValueError(f"{len(points)} points are too few for a fit, it needs {FEWEST_POINTS}")
    bits = np.array([point.bits_per_byte for point in points])
    parameters = np.array([float(point.parameters) for point in points])
    tokens = np.array([effective_tokens(point.unique, point.tokens) for point in points])
    best, found = math.inf, None
    for p in POWERS:
        for q in POWERS:
            columns = np.stack([np.ones_like(bits), parameters**-p, tokens**-q], axis=1)
            weights = _least_squares_not_negative(columns, bits)
            error = float(((columns @ weights - bits) ** 2).mean())
            if error < best:
                best, found = error, (weights, p, q)
    assert found is not None
    (floor, a, b), p, q = found
    return Law(float(floor), float(a), p, float(b), q, max(2 * math.sqrt(best), least_error), source)


def _least_squares_not_negative(columns: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Solve columns @ weights = values for weights of 0 or more; three columns have only seven cases."""
    best, found = math.inf, np.zeros(columns.shape[1])
    for case in range(1, 2 ** columns.shape[1]):
        used = [place for place in range(columns.shape[1]) if case >> place & 1]
        solved = np.linalg.lstsq(columns[:, used], values, rcond=None)[0]
        error = float(((columns[:, used] @ solved - values) ** 2).sum())
        if (solved >= 0).all() and error < best:
            best, found = error, np.zeros(columns.shape[1])
            found[used] = solved
    return found
