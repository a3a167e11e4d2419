"""Line charts and histograms as SVG: no script, colours from the page, told to screen readers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 12, 40


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
      name: for the legend and the description.
      points: (x, y) pairs; those that are not finite are left out.
      style: CSS class: `model`, `baseline` or `chance`.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    style: str = "model"

    @property
    def finite(self) -> list[tuple[float, float]]:
        """The points that can be drawn."""
        return [(x, y) for x, y in self.points if y is not None and math.isfinite(y)]


def line_chart(title: str, lines: Sequence[Line], *, x_label: str, y_label: str) -> Markup | None:
    """Draws curves over a common grid.

    Args:
      title: what is shown, for screen readers.
      lines: the curves, the most important first.
      x_label: name and unit of x.
      y_label: name and unit of y.

    Returns:
      An `<svg>` element, or None if no curve has two points.
    """
    drawn = [line for line in lines if len(line.finite) > 1]
    if not drawn:
        return None
    everything = [point for line in drawn for point in line.finite]
    xs, ys = [x for x, _ in everything], [y for _, y in everything]
    y_ticks = ticks(min(ys), max(ys), 5)
    x_ticks = ticks(min(xs), max(xs), 5, inside=True)
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low)
        up = (y - y_low) / (y_high - y_low)
        return (
            _LEFT + across * (WIDTH - _LEFT - _RIGHT),
            HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM),
        )

    parts = []
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        x, _ = place(tick, y_low)
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:g}</text>'
        )
    parts.append(
        f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    # The most important curve is drawn last, so that it lies on top.
    for line in reversed(drawn):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line.finite))
        parts.append(f'<polyline class="{escape(line.style)}" points="{path}"/>')
    told = "; ".join(
        f"{line.name} from {line.finite[0][1]:.3g} to {line.finite[-1][1]:.3g}" for line in drawn
    )
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f"<title>{escape(title)}, {escape(y_label)}: {escape(told)}</title>{''.join(parts)}</svg>"
    )


def ticks(low: float, high: float, count: int, *, inside: bool = False) -> list[float]:
    """About `count` round numbers that enclose low..high, or lie inside it.

    Args:
      low: smallest value.
      high: largest value.
      count: how many are wanted; one more or fewer may come.
      inside: leave out numbers beyond low..high.
    """
    if high - low < 1e-12 * max(abs(high), 1.0):
        margin = max(abs(high), 1.0) * 0.5
        low, high = low - margin, high + margin
    rough = (high - low) / max(count - 1, 1)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = (
        min((m for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999), default=10)
        * magnitude
    )
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    found = [round(i * step, 12) for i in range(first, last + 1)]
    if inside:
        found = [tick for tick in found if low - 1e-9 * step <= tick <= high + 1e-9 * step]
    return found


def histogram(
    title: str,
    edges: Sequence[float],
    counts: Sequence[float],
    *,
    x_label: str,
    y_label: str = "clips",
    logarithmic: bool = False,
) -> Markup:
    """Draws a histogram.

    Args:
      title: what is shown, for screen readers.
      edges: n + 1 borders of the bars, ascending; above 0 where `logarithmic`.
      counts: n heights.
      x_label: name and unit of x.
      y_label: name of y.
      logarithmic: whether x is drawn in octaves.

    Returns:
      An `<svg>` element.
    """
    scale = math.log if logarithmic else float
    low, high = scale(edges[0]), scale(edges[-1])
    tops = ticks(0.0, max([*counts, 1e-9]), 5)

    def across(x: float) -> float:
        return _LEFT + (scale(x) - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def up(y: float) -> float:
        return HEIGHT - _BOTTOM - y / tops[-1] * (HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick in tops:
        y = up(tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>'
        )
    if logarithmic:
        powers = range(math.floor(math.log2(edges[0])), math.ceil(math.log2(edges[-1])) + 1)
        marks = [2.0**power for power in powers if edges[0] <= 2.0**power <= edges[-1]]
        marks = marks[:: max(1, math.ceil(len(marks) / 7))]
    else:
        marks = ticks(edges[0], edges[-1], 6, inside=True)
    parts += [
        f'<text x="{across(mark):.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">'
        f"{_short(mark)}</text>"
        for mark in marks
    ]
    parts.append(
        f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        x, width = across(left), max(across(right) - across(left) - 0.5, 0.5)
        parts.append(
            f'<rect class="bar-of" x="{x:.1f}" y="{up(count):.1f}" width="{width:.1f}"'
            f' height="{max(up(0) - up(count), 0):.1f}"><title>{_short(left)} to {_short(right)}:'
            f" {count:,.0f}</title></rect>"
        )
    told = f"{sum(counts):,.0f} {y_label} from {_short(edges[0])} to {_short(edges[-1])}"
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f"<title>{escape(title)}, {escape(x_label)}: {escape(told)}</title>{''.join(parts)}</svg>"
    )


def _short(number: float) -> str:
    """1500 -> 1.5k; at most three digits."""
    return f"{number / 1000:.3g}k" if abs(number) >= 1000 else f"{number:.3g}"
