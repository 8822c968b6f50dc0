"""What `prepare` tells about the data it made: figures as JSON, which the page and the notebook draw from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from horovod_transformer.data.manifest import REPORT_JSON, REPORT_PAGE, splits_of
from horovod_transformer.errors import UserError
from horovod_transformer.prepare.duplicates import BookTable
from horovod_transformer.reports.prepared_data import report_page
from horovod_transformer.system.paths import readable

_BINS = 30
_LISTED = 50


def write_report(
    folder: Path,
    manifest: dict[str, Any],
    books: BookTable,
    splits: np.ndarray,
    longest: list[tuple[str, int]],
) -> None:
    """Write `report.json` and `report.html` into a folder of prepared data.

    Args:
        folder: The folder.
        manifest: What is in it.
        books: All books that were read.
        splits: Of each book its place among the splits, -1 if it was dropped; int [books].
        longest: Titles of the longest books that were kept, with their tokens.
    """
    figures = make_report(manifest, books, splits, longest)
    text = json.dumps(figures, ensure_ascii=False, indent=1) + "\n"
    (folder / REPORT_JSON).write_text(text, encoding="utf-8")
    (folder / REPORT_PAGE).write_text(report_page(figures), encoding="utf-8")


def make_report(
    manifest: dict[str, Any], books: BookTable, splits: np.ndarray, longest: list[tuple[str, int]]
) -> dict[str, Any]:
    """Return what the report says, as JSON holds it; see `write_report`."""
    names = splits_of(manifest)
    kept = splits >= 0
    tokens = sum(manifest["splits"][name]["tokens"] for name in names)
    per_book = {
        "characters per book": books.characters,
        "tokens per book": books.tokens,
        "bytes per token": books.bytes / np.maximum(books.tokens, 1),
    }
    dropped = manifest["dropped"]
    return {
        "source": {key: manifest["source"][key] for key in ("given", "taken", "passed_over")},
        "settings": manifest["settings"],
        "block_size": manifest["block_size"],
        "books_read": len(books) + manifest["unreadable"]["count"],
        "splits": manifest["splits"],
        "tokens": tokens,
        "words": manifest["words"],
        "dropped": dropped["counts"],
        "dropped_titles": {reason: titles[:_LISTED] for reason, titles in dropped["first_titles"].items()},
        "unreadable": {**manifest["unreadable"], "first": manifest["unreadable"]["first"][:_LISTED]},
        "reencoded": {**manifest["reencoded"], "first": manifest["reencoded"]["first"][:_LISTED]},
        "cleaned": manifest["cleaned"],
        "validation_titles": manifest["validation_books"][:_LISTED],
        "longest": longest,
        "seconds": manifest["seconds"],
        "step_seconds": manifest["step_seconds"],
        "tokens_per_second": tokens / max(manifest["seconds"], 0.1),
        "medians": {what: float(np.median(values[kept])) for what, values in per_book.items()},
        "histograms": {
            what: _histogram(values, splits, names, by_factors=what != "bytes per token")
            for what, values in per_book.items()
        },
        "notes": manifest["notes"],
    }


def read_report(data_dir: Path) -> dict[str, Any]:
    """Read the report of prepared data.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    path = data_dir / REPORT_JSON
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"{readable(path)}: cannot be read; `horovod-transformer prepare --force` makes it anew"
        ) from None


def _histogram(
    values: np.ndarray, splits: np.ndarray, names: tuple[str, ...], by_factors: bool
) -> dict[str, Any]:
    """Count kept books by some figure; the bins are equally wide, or each is wider by the same factor."""
    kept = values[splits >= 0]
    low, high = float(kept.min()), float(kept.max())
    if by_factors:
        edges = np.geomspace(max(low, 1), max(high, low + 1, 2), _BINS + 1)
    else:
        edges = np.linspace(low, max(high, low + 1e-3), _BINS + 1)
    edges[0], edges[-1] = min(low, edges[0]), max(high, edges[-1])
    return {
        "edges": edges.tolist(),
        "by_factors": by_factors,
        "books": {
            name: np.histogram(values[splits == place], edges)[0].tolist() for place, name in enumerate(names)
        },
    }
