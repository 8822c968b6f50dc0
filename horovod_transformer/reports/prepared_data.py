"""The report of `prepare` as a page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from horovod_transformer.reports.charts import COLOURS, Bars, draw_bars
from horovod_transformer.reports.html import escape, page

_REASONS = {
    "empty": "empty",
    "too_short": "shorter than data.min_book_characters",
    "duplicate": "a copy of an earlier book",
}
_STEPS = {
    "digest": "looking for copies",
    "tokenize": "tokenizing",
    "assemble": "assembling, on one process",
}


def report_page(report: dict[str, Any]) -> str:
    """Return the page of a report; see `report.make_report`."""
    given = report["source"]["given"]
    title = f"Prepared data: {given if isinstance(given, str) else ', '.join(given)}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _notes(report["notes"]),
        _cards(report),
        "<h2>The split</h2>",
        _splits(report),
        "<h2>The books</h2>",
        _histograms(report),
        _listed("The longest", [f"{name}: {count:,} tokens" for name, count in report["longest"]]),
        _listed("Held out for validation, the first", report["validation_titles"]),
        "<h2>What was left out, and what was changed</h2>",
        _left_out(report),
        "<h2>How long it took</h2>",
        _speed(report),
        "<h2>Settings</h2>",
        _facts({**report["settings"], **_files(report["source"])}),
    ]
    return page(title, "\n".join(parts))


def _cards(report: dict[str, Any]) -> str:
    kept = sum(split["books"] for split in report["splits"].values())
    size = sum(split["bytes"] for split in report["splits"].values())
    cards = [
        (f"{kept:,}", f"books kept of {report['books_read']:,}"),
        (f"{report['tokens']:,}", "tokens"),
        (f"{size / report['tokens']:.2f}", "bytes of text per token"),
        (f"{report['tokens_per_second']:,.0f}", "tokens a second, the whole of it"),
    ]
    inside = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in cards)
    return f'<div class="cards">{inside}</div>'


def _splits(report: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{split['books']:,}",
            f"{split['tokens']:,}",
            f"{split['tokens'] / report['tokens']:.2%}",
            f"{split['blocks']:,}",
            f"{split['bytes'] / max(1, split['tokens']):.2f}",
        ]
        for name, split in report["splits"].items()
    ]
    heads = ["", "books", "tokens", "share", f"blocks of {report['block_size']}", "bytes per token"]
    return _table(heads, rows)


def _histograms(report: dict[str, Any]) -> str:
    names = list(report["splits"])
    figures = []
    for what, histogram in report["histograms"].items():
        median = report["medians"][what]
        shown = f"{median:,.0f}" if median >= 100 else f"{median:.2f}"
        bars = Bars(
            f"books by {what}; the median has {shown}",
            histogram["edges"],
            [histogram["books"][name] for name in names],
            COLOURS,
            histogram["by_factors"],
        )
        figures.append(draw_bars(bars))
    key = "".join(
        f'<i style="background:{colour}"></i>{escape(name)}'
        for name, colour in zip(names, COLOURS, strict=False)
    )
    return f'<p class="note key">{key}</p><div class="charts">{"".join(figures)}</div>'


def _left_out(report: dict[str, Any]) -> str:
    rows = [
        [f"dropped: {_REASONS.get(reason, reason)}", f"{count:,}", ""]
        for reason, count in report["dropped"].items()
    ]
    rows.append(["skipped: cannot be read", f"{report['unreadable']['count']:,}", ""])
    rows.append(["read by data.encoding, not being UTF-8", f"{report['reencoded']['count']:,}", ""])
    rows += [
        [f"cleaned: {step}", f"{cut['books']:,}", f"{cut['characters']:,}"]
        for step, cut in report["cleaned"].items()
    ]
    lists = [
        _listed(f"Dropped: {_REASONS.get(reason, reason)}, the first", titles)
        for reason, titles in report["dropped_titles"].items()
    ]
    lists.append(_listed("Skipped, the first", report["unreadable"]["first"]))
    lists.append(_listed("Re-encoded, the first", report["reencoded"]["first"]))
    return _table(["", "books", "characters cut"], rows) + "".join(lists)


def _speed(report: dict[str, Any]) -> str:
    tokens = report["tokens"]
    rows = [
        [
            _STEPS.get(step, step),
            f"{seconds:,.1f}",
            f"{tokens / seconds:,.0f}" if seconds >= 0.05 else "",
        ]
        for step, seconds in report["step_seconds"].items()
    ]
    rows.append(
        ["the whole, from start to end", f"{report['seconds']:,.1f}", f"{report['tokens_per_second']:,.0f}"]
    )
    note = "Seconds of steps are added up over processes, those of finished units that were found included."
    return _table(["", "seconds", "tokens a second"], rows) + f'<p class="note">{note}</p>'


def _files(source: dict[str, Any]) -> dict[str, str]:
    return {
        what: ", ".join(f"{count:,} {kind}" for kind, count in sorted(source[key].items()))
        for key, what in (("taken", "files read"), ("passed_over", "files passed over"))
        if source[key]
    }


def _notes(notes: Iterable[str]) -> str:
    return "".join(f'<p class="note">Note: {escape(note)}.</p>' for note in notes)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "".join(
        f"<tr><th>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return f'<table class="figures"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _listed(what: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    inside = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<details><summary>{escape(what)} {len(lines):,}</summary><ul>{inside}</ul></details>"


def _facts(facts: dict[str, Any]) -> str:
    shown = {
        name: "null" if value is None else ", ".join(value) if isinstance(value, list) else value
        for name, value in facts.items()
    }
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in shown.items()
    )
    return f'<table class="facts">{rows}</table>'
