"""The report of `prepare` as a page that needs nothing but itself."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from horovod_transformer.reports.charts import COLOURS, Bars, draw_bars
from horovod_transformer.reports.formats import number
from horovod_transformer.reports.html import render

# In the order in which they are made.
_STEPS = {
    "digest": "looking for copies",
    "train_tokenizer": "training the tokenizer",
    "tokenize": "tokenizing",
    "assemble": "assembling, on one process",
}


def report_page(report: dict[str, Any]) -> str:
    """Return the page of a report; see `prepare.figures.make_report`."""
    given = report["source"]["given"]
    settings = {**report["settings"], **_files(report["source"])}
    return render(
        "prepared_data.html.j2",
        title=f"Prepared data: {given if isinstance(given, str) else ', '.join(given)}",
        report=report,
        totals=_totals(report),
        splits=_splits(report),
        charts=_histograms(report),
        colours=COLOURS,
        longest=[f"{name}: {number(tokens)} tokens" for name, tokens in report["longest"]],
        steps=_steps(report),
        settings=[(name, [_setting(value)]) for name, value in settings.items()],
    )


def _totals(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The numbers in large print, each with what it is."""
    kept = sum(split["books"] for split in report["splits"].values())
    size = sum(split["bytes"] for split in report["splits"].values())
    return [
        (number(kept), f"books kept of {number(report['books_read'])}"),
        (number(report["tokens"]), "tokens"),
        (number(size / report["tokens"], 2), "bytes of text per token"),
        (number(report["tokens_per_second"]), "tokens a second, the whole of it"),
    ]


def _splits(report: dict[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            number(split["books"]),
            number(split["tokens"]),
            f"{split['tokens'] / report['tokens']:.2%}",
            number(split["blocks"]),
            number(split["bytes"] / max(1, split["tokens"]), 2),
        ]
        for name, split in report["splits"].items()
    ]


def _histograms(report: dict[str, Any]) -> list[Markup]:
    charts = []
    for what, histogram in report["histograms"].items():
        median = report["medians"][what]
        bars = Bars(
            f"books by {what}; the median has {number(median, 0 if median >= 100 else 2)}",
            histogram["edges"],
            [histogram["books"][name] for name in report["splits"]],
            COLOURS,
            histogram["by_factors"],
        )
        charts.append(draw_bars(bars))
    return charts


def _steps(report: dict[str, Any]) -> list[list[str]]:
    """For each step of the work its seconds, and how many tokens a second that was."""
    tokens, order = report["tokens"], {step: place for place, step in enumerate(_STEPS)}
    rows = [
        [_STEPS.get(step, step), number(seconds, 1), number(tokens / seconds) if seconds >= 0.05 else ""]
        for step, seconds in sorted(report["step_seconds"].items(), key=lambda item: order.get(item[0], 0))
    ]
    whole = [
        "the whole, from start to end",
        number(report["seconds"], 1),
        number(report["tokens_per_second"]),
    ]
    return [*rows, whole]


def _files(source: dict[str, Any]) -> dict[str, str]:
    return {
        what: ", ".join(f"{number(count)} {kind}" for kind, count in sorted(source[key].items()))
        for key, what in (("taken", "files read"), ("passed_over", "files passed over"))
        if source[key]
    }


def _setting(value: Any) -> Any:
    """A setting as a person would write it on the command line."""
    return "null" if value is None else ", ".join(value) if isinstance(value, list) else value
