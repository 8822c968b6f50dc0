"""The page of a calibration: the small models that were trained, and the law that was fitted to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from horovod_transformer.reports.charts import COLOURS, Chart, Curve, draw
from horovod_transformer.reports.html import render


@dataclass(frozen=True)
class LadderRun:
    """One run of the ladder.

    Attributes:
        parameters: Of its layers.
        tokens: That it read.
        measured: Bits per byte of the held-out text at its end.
        expected: What the fitted law says of it.
    """

    parameters: int
    tokens: int
    measured: float
    expected: float


def ladder_page(books: str, formula: str, error: float, runs: Sequence[LadderRun]) -> str:
    """Draw the page.

    Args:
        books: Which books, in words.
        formula: The law with its numbers.
        error: Half the width of the range to expect, in bits per byte.
        runs: What was trained.
    """
    sizes = sorted({run.parameters for run in runs})
    curves = []
    for size, colour in zip(sizes, COLOURS * len(sizes), strict=False):
        mine = sorted((run for run in runs if run.parameters == size), key=lambda run: run.tokens)
        tokens = [run.tokens for run in mine]
        label = f"{size / 1e6:.2g}M"
        curves.append(Curve(tokens, [run.measured for run in mine], colour, dots=True, label=label))
        curves.append(Curve(tokens, [run.expected for run in mine], colour, css="dashed"))
    rows = [
        (
            f"{run.parameters:,}",
            f"{run.tokens:,}",
            f"{run.measured:.3f}",
            f"{run.expected:.3f}",
            f"{run.measured - run.expected:+.3f}".replace("-", "\u2212"),
        )
        for run in runs
    ]
    title = "bits per byte of held-out text over tokens read, for each number of parameters; dashed: the law"
    return render(
        "ladder.html.j2",
        title=f"What to expect of {books}",
        formula=formula,
        error=f"{error:.2f}",
        chart=draw(Chart(title, curves)),
        rows=rows,
    )
