"""Shares of a whole over updates, as areas that lie on top of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from horovod_transformer.reports.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, figure, nice_ticks
from horovod_transformer.reports.formats import short_number

# Neighbours differ in lightness, so that a print in grey can still be read.
COLOURS = ("#2f6f9f", "#a8cbe6", "#3a9d5d", "#f2c14e", "#d9782d", "#a04fb0", "#b9c0c7")
# Rows are added up to at most this many steps: single updates are too restless to be read.
MOST_STEPS = 60
LEGEND_ROW, LEGEND_COLUMNS = 18, 2


def draw_shares(
    title: str, updates: Sequence[float | None], parts: Mapping[str, Sequence[float | None]]
) -> Markup:
    """Draw how a sum is made up, as a `figure`; empty where there is nothing to add up.

    Args:
        title: Under it.
        updates: The update up to which each row counts, ascending; a row counts from the one before.
        parts: Name -> amount in each row, the lowest area first. A part that is nowhere is left out.
    """
    steps = _steps(updates, parts)
    totals = {name: sum(amounts[name] for _, _, amounts in steps) for name in parts}
    whole = sum(totals.values())
    shown = [name for name in parts if totals[name] > 0]
    if not shown:
        return Markup()
    first, last = steps[0][0], steps[-1][1]

    def across(update: float) -> float:
        return LEFT + (update - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def up(share: float) -> float:
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    inside = []
    floor = [0.0] * len(steps)
    for name, colour in zip(parts, COLOURS, strict=False):
        if name not in shown:
            continue
        roof = [
            low + amounts[name] / sum(amounts.values())
            for low, (_, _, amounts) in zip(floor, steps, strict=True)
        ]
        edges = [(begin, end) for begin, end, _ in steps]
        corners = [(x, share) for pair, share in zip(edges, roof, strict=True) for x in pair]
        corners += [
            (x, share) for pair, share in zip(edges[::-1], floor[::-1], strict=True) for x in pair[::-1]
        ]
        places = " ".join(f"{across(x):.1f},{up(share):.1f}" for x, share in corners)
        inside.append(f'<polygon fill="{colour}" points="{places}"/>')
        floor = roof
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = up(share)
        inside.append(f'<line class="grid" x1="{LEFT - 4}" x2="{LEFT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        inside.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for tick in nice_ticks(first, last, 5):
        if first <= tick <= last:
            x = across(tick)
            inside.append(
                f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{short_number(tick)}</text>'
            )
    for place, name in enumerate(shown):
        row, column = divmod(place, LEGEND_COLUMNS)
        x = LEFT + column * (WIDTH - LEFT - RIGHT) / LEGEND_COLUMNS
        y = HEIGHT + row * LEGEND_ROW
        colour = COLOURS[list(parts).index(name)]
        words = f"{escape(name)} {totals[name] / whole:.1%}"
        inside.append(f'<rect fill="{colour}" x="{x:.1f}" y="{y + 4}" width="12" height="10"/>')
        inside.append(f'<text x="{x + 17:.1f}" y="{y + 13}">{words}</text>')
    height = HEIGHT + -(-len(shown) // LEGEND_COLUMNS) * LEGEND_ROW
    return figure(title, height, inside)


def _steps(
    updates: Sequence[float | None], parts: Mapping[str, Sequence[float | None]]
) -> list[tuple[float, float, dict[str, float]]]:
    """Rows joined to steps: from which update, up to which, and the amounts in between."""
    rows = []
    before = 0.0
    for place, update in enumerate(updates):
        amounts = {
            name: max(0.0, (values[place] if place < len(values) else None) or 0.0)
            for name, values in parts.items()
        }
        if update is not None and update > before and sum(amounts.values()) > 0:
            rows.append((before, update, amounts))
        before = max(before, update or 0.0)
    joined = max(1, -(-len(rows) // MOST_STEPS))
    return [
        (group[0][0], group[-1][1], {name: sum(row[2][name] for row in group) for name in parts})
        for group in (rows[start : start + joined] for start in range(0, len(rows), joined))
    ]
