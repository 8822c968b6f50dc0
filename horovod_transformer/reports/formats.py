"""Numbers and values as pages and terminals show them: one format for each kind."""

from __future__ import annotations

import json
from typing import Any


def number(value: float | None, decimals: int = 0) -> str:
    """A number with commas and a true minus sign; a dash where there is none."""
    return "–" if value is None else f"{value:,.{decimals}f}".replace("-", "−")


def short_number(value: float) -> str:
    """A number for an axis: 1500 as 1.5k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.3g}".replace("-", "−")


def byte_size(number: float) -> str:
    """Bytes with the unit that suits them, in powers of a thousand: 2.5 GB."""
    unit, size = next((u for u in (("TB", 1e12), ("GB", 1e9)) if number >= u[1]), ("MB", 1e6))
    return f"{number / size:,.1f} {unit}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, by how many there are."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"


def seconds_and_share(part: float, whole: float) -> str:
    """Seconds, and what share of the whole they are: 1.50 s, 12.50%."""
    return f"{part:,.2f} s, {part / whole:.2%}" if whole else f"{part:,.2f} s"


def any_value(value: Any, digits: int | None = 4) -> str:
    """Any value of a config or a JSON file.

    Args:
        value: What to show. None, true, false and lists are written as a config file has them.
        digits: Significant digits of a float; None shows all.
    """
    if isinstance(value, float):
        if value.is_integer() and 1000 <= abs(value) < 1e9:
            return f"{value:,.0f}"  # 10,000 rather than 1e+04
        return str(value) if digits is None else f"{value:,.{digits}g}"
    if value is None or isinstance(value, bool | list):
        try:
            return json.dumps(value)
        except (TypeError, ValueError):  # a date, a list within itself: YAML has them, JSON has not
            return str(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
