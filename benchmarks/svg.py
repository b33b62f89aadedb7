"""Plots as SVG, by hand: panels of bars, and lines over logarithmic axes.

Knows figures and labels, and colours that can be read on white and on black;
where the reader's preference is told, text follows it. It must not know what
is plotted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #6b7280; }
.title { font-size: 14px; font-weight: 600; fill: #6b7280; }
.ours { font-weight: 600; }
.grid { stroke: #9ca3af; stroke-opacity: 0.3; }
@media (prefers-color-scheme: dark) {
  text { fill: #9ca3af; }
  .title { fill: #d1d5db; }
}
</style>"""

#: Colours of those that are always the same one; the first is this client's.
OURS = "#ea580c"
PEERS = ("#0d9488", "#7c83db", "#4a90d9", "#b58900", "#c2557a", "#8a6f5c", "#5f9e4a", "#b07aa1")
FLOOR = "#9ca3af"


class Bar(NamedTuple):
    label: str
    value: float
    text: str
    colour: str


class Line(NamedTuple):
    label: str
    points: Sequence[tuple[float, float]]
    colour: str


def _document(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">'
    )
    return "\n".join([head, f"<title>{escape(title)}</title>", STYLE, *parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{escape(text)}</text>'


# -- bars


def bars(title: str, panels: Sequence[tuple[str, Sequence[Bar]]], columns: int = 2) -> str:
    """Returns panels of horizontal bars, each panel to its own scale from zero."""
    width, row, label, gap = 430, 20, 165, 24
    heights = [30 + row * len(found) + gap for _, found in panels]
    parts, top = [], 0
    for first in range(0, len(panels), columns):
        some = panels[first : first + columns]
        for column, (name, found) in enumerate(some):
            parts += _panel(column * width, top, width, label, row, name, found)
        top += max(heights[first : first + columns])
    return _document(width * min(columns, max(1, len(panels))), top, title, parts)


def _panel(
    left: int, top: int, width: int, label: int, row: int, name: str, found: Sequence[Bar]
) -> list[str]:
    parts = [_text(left + 4, top + 18, name, "title")]
    most, room = max((bar.value for bar in found), default=1.0) or 1.0, width - label - 80
    for number, bar in enumerate(found):
        y = top + 30 + number * row
        length = max(1.0, room * bar.value / most)
        kind = "ours" if bar.colour == OURS else ""
        parts.append(_text(left + label - 8, y + 14, bar.label, kind, "end"))
        parts.append(
            f'<rect x="{left + label}" y="{y + 3}" width="{length:.1f}" height="{row - 6}" '
            f'rx="2" fill="{bar.colour}"/>'
        )
        parts.append(_text(left + label + length + 6, y + 14, bar.text, kind))
    return parts


# -- lines


def lines(title: str, across: str, found: Sequence[Line]) -> str:
    """Returns lines over two logarithmic axes, each labelled at its end."""
    width, height, left, right, top, bottom = 700, 400, 70, 170, 40, 48
    xs = [x for line in found for x, _ in line.points]
    ys = [y for line in found for _, y in line.points]
    low, high = _decades(ys)
    spread = (math.log10(max(xs)) - math.log10(min(xs))) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - math.log10(min(xs))) / spread
        upward = (math.log10(y) - low) / (high - low)
        return (
            left + across * (width - left - right),
            height - bottom - upward * (height - top - bottom),
        )

    parts = [_text(4, 18, title, "title")]
    parts.append(_text((left + width - right) / 2, height - 8, across, "", "middle"))
    for decade in range(low, high + 1):
        _, y = at(min(xs), 10.0**decade)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{width - right}"/>')
        parts.append(_text(left - 8, y + 4, short(10.0**decade), "", "end"))
    for x in sorted(set(xs)):
        parts.append(_text(at(x, 10.0**low)[0], height - bottom + 18, short(x), "", "middle"))
    parts += _curves(found, at)
    return _document(width, height, title, parts)


def _curves(found: Sequence[Line], at: object) -> list[str]:
    assert callable(at)
    parts, labels = [], []
    for line in found:
        points = [at(x, y) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        thick = 3 if line.colour == OURS else 1.6
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{line.colour}" '
            f'stroke-width="{thick}" stroke-linejoin="round"/>'
        )
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{line.colour}"/>' for x, y in points
        ]
        labels.append((points[-1][1], points[-1][0], line))
    taken = -math.inf
    for y, x, line in sorted(labels, key=lambda one: one[0]):
        # (Labels that would lie upon each other go one below the other.)
        taken = max(y, taken + 15)
        parts.append(
            f'<text x="{x + 10:.1f}" y="{taken + 4:.1f}" style="fill:{line.colour}">'
            f"{escape(line.label)}</text>"
        )
    return parts


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low = math.floor(math.log10(min(values)))
    return low, max(low + 1, math.ceil(math.log10(max(values))))


def short(value: float) -> str:
    """Returns a number as an axis has it: 3, 320, 10 k, 1 M; microseconds are left to the title."""
    for bound, sign in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= bound:
            return f"{value / bound:g}{sign}"
    return f"{value:g}"
