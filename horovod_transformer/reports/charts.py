"""Curves and bars as SVG, to stand inside a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from horovod_transformer.reports.formats import short_number

WIDTH, HEIGHT = 480, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 10, 10, 24
# More points than this are thinned out: a screen shows no more.
MOST_POINTS = 400
# Of the height, free above the highest point and below the lowest.
MARGIN = 0.04
# At most this share of the points may lie outside the axis on either side.
CUT_SHARE = 0.03
LEGEND = 20
COLOURS = ("#2f6f9f", "#d9782d", "#3a9d5d", "#a04fb0", "#c0392b", "#8a6d3b", "#17a2a2", "#777777")


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        updates: Its x values.
        values: Its y values; None is left out.
        colour: As CSS.
        css: A class: `raw` for a pale line, `dashed`.
        dots: Also mark each point.
        label: What it is, for the legend; empty leaves it out there.
    """

    updates: Sequence[float | None]
    values: Sequence[float | None]
    colour: str
    css: str = ""
    dots: bool = False
    label: str = ""

    def points(self) -> list[tuple[float, float]]:
        """What can be drawn, thinned out: of each stretch its first point, and the very last."""
        pairs = zip(self.updates, self.values, strict=False)
        found = [(x, y) for x, y in pairs if x is not None and y is not None]
        step = max(1, len(found) // MOST_POINTS)
        return found[::step] + (found[-1:] if found and (len(found) - 1) % step else [])


@dataclass(frozen=True)
class Chart:
    """A chart over updates.

    Attributes:
        title: Under it.
        curves: What it shows.
        restarts: Dashed lines.
        skipped: Red marks at its foot.
        may_cut: A few points that lie far from all others may be left outside; the title then says so.
    """

    title: str
    curves: Sequence[Curve]
    restarts: Sequence[float] = field(default_factory=list)
    skipped: Sequence[float] = field(default_factory=list)
    may_cut: bool = False


def draw(chart: Chart, last: float | None = None) -> Markup:
    """The chart as a `figure`; empty if it has no point.

    Args:
        chart: What to draw.
        last: Where its x-axis ends, which begins at 0; by default at its last point.
    """
    drawn = [(curve, curve.points()) for curve in chart.curves]
    points = [point for _, found in drawn for point in found]
    if not points:
        return Markup()
    low, high, cut = _range_of_values([y for _, y in points], chart.may_cut)
    end = max(last or 0, max(x for x, _ in points)) or 1

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = x / end, (y - low) / (high - low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in nice_ticks(low, high, 5):
        if low <= tick <= high:
            _, y = place(0, tick)
            parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short_number(tick)}</text>'
            )
    for tick in nice_ticks(0, end, 5):
        if tick <= end:
            x, _ = place(tick, low)
            parts.append(
                f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{short_number(tick)}</text>'
            )
    for update in chart.restarts:
        x, _ = place(update, low)
        parts.append(f'<line class="restart" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    for update in chart.skipped:
        x, _ = place(update, low)
        foot = HEIGHT - BOTTOM
        parts.append(f'<line class="skipped" x1="{x:.1f}" x2="{x:.1f}" y1="{foot - 8}" y2="{foot}"/>')
    # An SVG within the SVG: what lies outside the axes is not drawn.
    box = f"{LEFT - 4} {TOP} {WIDTH - LEFT + 4} {HEIGHT - TOP - BOTTOM}"
    left, top, width, height = box.split()
    parts.append(f'<svg x="{left}" y="{top}" width="{width}" height="{height}" viewBox="{box}">')
    for curve, found in drawn:
        places = [place(x, y) for x, y in found]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="{curve.css}" stroke="{curve.colour}" points="{line}"/>')
        if curve.dots or len(places) == 1:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{curve.colour}"/>' for x, y in places]
    parts.append("</svg>")
    labelled = [curve for curve, found in drawn if curve.label and found]
    parts += _legend(labelled)
    return figure(chart.title + cut, HEIGHT + (LEGEND if labelled else 0), parts)


def _range_of_values(values: Sequence[float], may_cut: bool) -> tuple[float, float, str]:
    """Where the y-axis begins and ends, and what to say of points that lie outside.

    Points are cut off where that gives the others at least half as much height again: the first losses of
    a long run, or one wild gradient, would else squeeze all that matters into a strip.
    """
    low, high = min(values), max(values)
    if may_cut:
        ordered = sorted(values)
        few = int(len(ordered) * CUT_SHARE)
        lower, upper = ordered[few], ordered[-1 - few]
        whole, core = high - low, upper - lower
        if core > 0 and high - upper > whole / 3:
            high = upper + core / 10
        if core > 0 and lower - low > whole / 3:
            low = lower - core / 10
    outside = sum(not low <= value <= high for value in values)
    said = ""
    if outside:
        reach = " and ".join(
            f"{word} to {short_number(extreme(values))}"
            for word, extreme, beyond in (("down", min, min(values) < low), ("up", max, max(values) > high))
            if beyond
        )
        share = max(1, round(100 * outside / len(values)))
        said = f" (cut: {share} % of the points lie outside the axis, {reach})"
    if high <= low:  # a single value: it lies in the middle
        return low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10, said
    margin = (high - low) * MARGIN
    return low - margin, high + margin, said


def _legend(curves: Sequence[Curve]) -> list[str]:
    """Below a chart: a stroke of each curve, and what it is."""
    parts = []
    x, y = float(LEFT), HEIGHT + LEGEND / 2
    for curve in curves:
        parts.append(
            f'<polyline class="{curve.css}" stroke="{curve.colour}" points="{x:.1f},{y} {x + 20:.1f},{y}"/>'
        )
        if curve.dots:
            parts.append(f'<circle cx="{x + 10:.1f}" cy="{y}" r="2.6" fill="{curve.colour}"/>')
        parts.append(f'<text x="{x + 26:.1f}" y="{y + 4}">{escape(curve.label)}</text>')
        x += 36 + 8 * len(curve.label)
    return parts


@dataclass(frozen=True)
class Bars:
    """Counts by some figure, one kind on top of the other.

    Attributes:
        title: Under it.
        edges: Where the bins begin, and the last one ends.
        counts: For each kind a count per bin.
        colours: Of the kinds, as CSS.
        by_factors: The axis is logarithmic: each bin is wider than the one before.
    """

    title: str
    edges: Sequence[float]
    counts: Sequence[Sequence[int]]
    colours: Sequence[str]
    by_factors: bool = False


def draw_bars(bars: Bars) -> Markup:
    """The bars as a `figure`."""
    scale = math.log if bars.by_factors else float
    first, last = scale(max(bars.edges[0], 1e-9)), scale(bars.edges[-1])
    ticks = nice_ticks(0, max(1, *(sum(column) for column in zip(*bars.counts, strict=True))))
    high, foot = ticks[-1], HEIGHT - BOTTOM

    def across(value: float) -> float:
        return LEFT + (scale(max(value, 1e-9)) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def up(count: float) -> float:
        return foot - count / high * (foot - TOP)

    parts = []
    for tick in ticks:
        y = up(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short_number(tick)}</text>')
    for tick in _ticks_between(bars.edges[0], bars.edges[-1], bars.by_factors):
        parts.append(
            f'<text x="{across(tick):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{short_number(tick)}</text>'
        )
    for place, (left, right) in enumerate(zip(bars.edges, bars.edges[1:], strict=False)):
        below = 0
        x, width = across(left), max(0.5, across(right) - across(left) - 1)
        for colour, counts in zip(bars.colours, bars.counts, strict=False):
            count = counts[place]
            if count:
                top = up(below + count)
                parts.append(
                    f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{up(below) - top:.1f}" '
                    f'fill="{colour}"/>'
                )
            below += count
    return figure(bars.title, HEIGHT, parts)


def _ticks_between(low: float, high: float, by_factors: bool) -> list[float]:
    """Round numbers within an axis, a handful of them."""
    if not by_factors:
        return [tick for tick in nice_ticks(low, high, 5) if low <= tick <= high]
    powers = range(math.floor(math.log10(max(low, 1))), math.ceil(math.log10(max(high, 2))) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            return ticks
    return _ticks_between(low, high, by_factors=False)


def nice_ticks(low: float, high: float, number: int = 4) -> list[float]:
    """Round numbers, about `number` of them, from below `low` to above `high`."""
    if high <= low:
        return [low]
    rough = (high - low) / number
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    start, end = math.floor(low / step), math.ceil(high / step)
    return [count * step for count in range(start, end + 1)]


def figure(title: str, height: int, parts: Sequence[str]) -> Markup:
    """SVG elements as a `figure` with a title under it; of it all only the title is escaped here."""
    label, inside = escape(title), "".join(parts)
    return Markup(
        f'<figure><svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{inside}</svg>'
        f"<figcaption>{label}</figcaption></figure>"
    )


def smoothed(values: Sequence[float | None]) -> list[float | None]:
    """Exponential moving average that starts at the first value; None where there is none.

    The older a value, the less it counts. The sum is divided by its weights, so that it is not drawn towards
    0 at its start (Kingma and Ba 2015, arXiv:1412.6980, section 3). It reaches back over a hundredth of the
    values, five at least.
    """
    decay = 1 - 1 / max(5, len(values) / 100)
    result: list[float | None] = []
    average = weights = 0.0
    for value in values:
        if value is None:
            result.append(None)
            continue
        average = decay * average + (1 - decay) * value
        weights = decay * weights + (1 - decay)
        result.append(average / weights)
    return result
