"""Line charts for an HTML page.

A chart is an SVG stretched over its box, with labels and hover texts laid over it as HTML: letters keep their
size at any width. Colours are the classes `s0` to `s6` of report.css, which knows light and dark.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from mmgpt.reports.html import Markup, tag

MAX_POINTS = 400  # of a line; more cannot be told apart on a screen
MAX_HOVERS = 100  # of a chart
LOG_FROM = 6.0  # largest / smallest value from which a scale is logarithmic

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A named line; `colour` is its number among the page's colours, 0 the colour of text."""

    name: str
    points: Sequence[Point]
    colour: int = 0

    @property
    def css(self) -> str:
        """The class of its colour."""
        return f"s{(self.colour - 1) % 6 + 1 if self.colour else 0}"


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high`, linear or logarithmic."""

    low: float
    high: float
    is_log: bool = False

    def share(self, value: float) -> float:
        """How far along the axis a value lies, 0 to 1."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[float]:
        """Round values along the axis, at most about that many."""
        if self.is_log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
                found = [m * 10.0**e for e in decades for m in digits if self.low <= m * 10.0**e <= self.high]
                if len(found) <= most:
                    break
            return found[:: math.ceil(len(found) / most)]
        rough = (self.high - self.low) / most
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def value_axis(values: Sequence[float], scale: Literal["auto", "zero"]) -> Axis:
    """An axis that holds the values, from zero or as near as they lie; logarithmic where they span much."""
    low, high = min(values), max(values)
    if scale == "zero":
        return Axis(min(0.0, low), high * 1.08 if high > 0 else 1.0)
    if low > 0 and high / low >= LOG_FROM:
        return Axis(low / 1.15, high * 1.15, is_log=True)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return Axis(max(0.0, low - pad) if low >= 0 else low - pad, high + pad)


def short(value: float) -> str:
    """A number in three digits: 12.4k, 0.432, 3e-4."""
    size = abs(value)
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.3g}{letter}"
    if 0 < size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.3g}"


def line_chart(
    title: str,
    lines: Sequence[Series],
    *,
    scale: Literal["auto", "zero"] = "auto",
    is_tall: bool = False,
    write: Callable[[float], str] = short,
) -> Markup:
    """A chart of lines over steps: axes, ticks, a legend with the last values, and a text under the pointer.

    Args:
        title: what the values are.
        lines: points (step, value) in order of steps; values that are not finite are left out.
        scale: `zero` starts the axis at zero, `auto` fits it and may choose a logarithmic one.
        is_tall: a large chart, with more ticks.
        write: spells a value in the legend and under the pointer.
    """
    lines = [Series(one.name, [p for p in one.points if math.isfinite(p[1])], one.colour) for one in lines]
    lines = [one for one in lines if one.points]
    if not lines:
        caption = tag("figcaption", tag("strong", title), tag("span", "no values", cls="last"))
        return tag("figure", caption, cls="chart")
    across = Axis(0.0, max(point[0] for one in lines for point in one.points) or 1.0)
    up = value_axis([point[1] for one in lines for point in one.points], scale)
    rows, columns = up.ticks(6 if is_tall else 4), across.ticks(6 if is_tall else 4)
    grid = "".join(f"M0 {_y(up, value)}H1000" for value in rows)
    drawing = tag(
        "svg",
        tag("path", d=grid, cls="grid"),
        *(tag("path", d=_path(one, across, up), cls=_line_class(one)) for one in reversed(lines)),
        viewBox="0 0 1000 1000",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
    labels = [tag("span", short(value), cls="y", style=f"top:{_y(up, value) / 10:.1f}%") for value in rows]
    labels += [
        tag("span", f"{value:,.0f}", cls="x", style=f"left:{100 * across.share(value):.1f}%")
        for value in columns
        if value == int(value)
    ]
    labels.append(tag("span", "step", cls="x name"))
    plot = tag("div", drawing, *labels, *_hovers(lines, across, write), cls="plot")
    said = [f"{one.name} from {write(one.points[0][1])} to {write(one.points[-1][1])}" for one in lines]
    caption = tag("figcaption", tag("strong", title), _note(up), _legend(lines, write))
    kind = "chart tall" if is_tall else "chart"
    return tag("figure", caption, plot, cls=kind, role="group", aria_label=f"{title}: {'; '.join(said)}")


def _note(up: Axis) -> Markup | None:
    return tag("span", "log scale", cls="note") if up.is_log else None


def _legend(lines: Sequence[Series], write: Callable[[float], str]) -> Markup:
    if len(lines) == 1:
        return tag("span", write(lines[0].points[-1][1]), cls="last")
    entries = (tag("li", one.name, " ", tag("b", write(one.points[-1][1])), cls=one.css) for one in lines)
    return tag("ul", *entries, cls="legend")


def _line_class(one: Series) -> str:
    return f"line {one.css} dot" if len(one.points) == 1 else f"line {one.css}"


def _y(up: Axis, value: float) -> float:
    return round(1000 * (1 - up.share(value)), 1)


def _path(one: Series, across: Axis, up: Axis) -> str:
    points = thin(one.points, MAX_POINTS)
    places = [f"{1000 * across.share(step):.1f} {_y(up, value)}" for step, value in points]
    return "M" + "L".join(places) + ("h0" if len(places) == 1 else "")


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """Few enough points that look alike: the lowest and the highest of every stretch, so no spike is lost."""
    if len(points) <= most:
        return list(points)
    stretches = most // 2
    kept: list[Point] = []
    for number in range(stretches):
        stretch = points[number * len(points) // stretches : (number + 1) * len(points) // stretches]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def _hovers(lines: Sequence[Series], across: Axis, write: Callable[[float], str]) -> list[Markup]:
    """Columns over the plot, each with the values at its middle."""
    steps = sorted({point[0] for one in lines for point in one.points})
    steps = steps[:: math.ceil(len(steps) / MAX_HOVERS)]
    at = [100 * across.share(step) for step in steps]
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(at)), 100.0]
    hovers = []
    for number, step in enumerate(steps):
        left, right = edges[number], edges[number + 1]
        rows = [tag("span", one.name, tag("b", write(_value_at(one.points, step))), cls=one.css) for one in lines]
        tip = tag("span", tag("em", f"step {step:,.0f}"), *rows, cls="tip flip" if at[number] > 55 else "tip")
        middle = 100 * (at[number] - left) / (right - left or 1.0)
        style = f"left:{left:.2f}%;width:{right - left:.2f}%;--at:{middle:.0f}%"
        hovers.append(tag("span", tip, cls="at", style=style, aria_hidden="true"))
    return hovers


def _value_at(points: Sequence[Point], step: float) -> float:
    return points[min(bisect_left(points, (step, -math.inf)), len(points) - 1)][1]
