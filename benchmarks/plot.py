"""Pictures of results as SVG: bars with ranges, lines and histograms. No library is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

INK, FAINT, GRID = "#24292f", "#57606a", "#d0d7de"
PALETTE = ("#1f6feb", "#cf222e", "#2da44e", "#bf8700")
OURS, OTHERS = PALETTE[0], "#8c959f"


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: what it is, its length, and the range of what was measured.

    Attributes:
        label: its name.
        value: the median; ``None`` where there is none, and ``note`` says why.
        least: the least that was measured.
        greatest: the greatest.
        ours: whether it is drawn in the first colour.
        note: is written beside it.
    """

    label: str
    value: float | None
    least: float = 0.0
    greatest: float = 0.0
    ours: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its name and its points."""

    label: str
    points: Sequence[tuple[float, float]]


class Svg:
    """Collects the elements of a picture."""

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._parts: list[str] = []

    def text(
        self, x: float, y: float, text: str, *, size: int = 12, anchor: str = "start",
        colour: str = INK, bold: bool = False, turned: bool = False,
    ) -> None:  # fmt: skip
        """Write; ``anchor`` is start, middle or end."""
        weight = ' font-weight="600"' if bold else ""
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"'
            f' fill="{colour}"{weight}{turn}>{escape(text)}</text>'
        )

    def rectangle(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """Draw a filled rectangle."""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
            f' fill="{colour}"/>'
        )

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1.0) -> None:
        """Draw a line through points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"'
            ' stroke-linejoin="round"/>'
        )

    def render(self) -> str:
        """Give the file's text."""
        body = "\n".join(self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self._width}" height="{self._height}"'
            f' viewBox="0 0 {self._width} {self._height}"'
            ' font-family="system-ui, Helvetica, Arial, sans-serif">\n'
            f'<rect width="{self._width}" height="{self._height}" fill="#ffffff"/>\n'
            f"{body}\n</svg>\n"
        )


def bars(title: str, unit: str, panels: Sequence[tuple[str, Sequence[Bar]]], columns: int) -> str:
    """Draw horizontal bars, one panel beside the other; each panel has a scale of its own.

    Args:
        title: of the whole picture.
        unit: of the values.
        panels: each with its title.
        columns: how many panels stand side by side.
    """
    row, names, plot, figures, head = 22, 320, 260, 130, 44
    width = columns * (names + plot + figures)
    heights = [
        head + row * max(len(each) for _, each in panels[first : first + columns]) + 16
        for first in range(0, len(panels), columns)
    ]
    svg = Svg(width + 16, 48 + sum(heights))
    svg.text(16, 28, title, size=17, bold=True)
    svg.text(width, 28, unit, anchor="end", colour=FAINT)
    for index, (name, each) in enumerate(panels):
        left = 16 + (index % columns) * (names + plot + figures)
        top = 48 + sum(heights[: index // columns])
        svg.text(left, top + 20, name, size=14, bold=True)
        scale = plot / (max((bar.greatest for bar in each), default=0.0) or 1.0)
        for nth, bar in enumerate(each):
            y = top + head - 12 + nth * row
            svg.text(left + names - 10, y + 14, bar.label, anchor="end")
            if bar.value is None:
                svg.text(left + names, y + 14, bar.note, colour=FAINT)
                continue
            colour = OURS if bar.ours else OTHERS
            svg.rectangle(left + names, y + 3, max(bar.value * scale, 1.0), row - 7, colour)
            if bar.greatest > bar.least:
                middle = y + 3 + (row - 7) / 2
                ends = left + names + bar.least * scale, left + names + bar.greatest * scale
                svg.line([(ends[0], middle), (ends[1], middle)], INK)
                for end in ends:
                    svg.line([(end, middle - 3), (end, middle + 3)], INK)
            end = left + names + max(bar.value, bar.greatest) * scale + 6
            svg.text(end, y + 14, f"{bar.value:,.1f}{bar.note}", bold=bar.ours)
    return svg.render()


def lines(
    title: str, x_title: str, y_title: str, drawn: Sequence[Line], *, y_greatest: float
) -> str:
    """Draw lines over a common scale, from 0 to at least ``y_greatest``."""
    width, height = 860, 420
    left, right, top, bottom = 72, 24, 70, 56
    svg = Svg(width, height)
    svg.text(16, 28, title, size=17, bold=True)
    x_ticks = _ticks([x for line in drawn for x, _ in line.points])
    y_ticks = _ticks([*(y for line in drawn for _, y in line.points), y_greatest])

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + x / x_ticks[-1] * (width - left - right),
            height - bottom - y / y_ticks[-1] * (height - top - bottom),
        )

    for tick in y_ticks:
        y = place(0, tick)[1]
        svg.line([(left, y), (width - right, y)], GRID)
        svg.text(left - 8, y + 4, f"{tick:g}", anchor="end", colour=FAINT)
    for tick in x_ticks:
        x = place(tick, 0)[0]
        svg.line([(x, top), (x, height - bottom)], GRID)
        svg.text(x, height - bottom + 18, f"{tick:g}", anchor="middle", colour=FAINT)
    svg.text((left + width - right) / 2, height - 14, x_title, anchor="middle")
    svg.text(20, (top + height - bottom) / 2, y_title, anchor="middle", turned=True)
    for index, line in enumerate(drawn):
        colour = PALETTE[index % len(PALETTE)]
        x = 72 + index * 200
        svg.rectangle(x, 47, 18, 4, colour)
        svg.text(x + 24, 54, line.label)
        svg.line([place(*point) for point in line.points], colour, 2)
    return svg.render()


def histograms(
    title: str,
    unit: str,
    panels: Sequence[tuple[str, Sequence[tuple[float, int]], Mapping[str, float]]],
    columns: int,
) -> str:
    """Draw histograms, all over one logarithmic scale, each with some values marked by name.

    Args:
        title: of the whole picture.
        unit: of the values.
        panels: each with its title, its buckets (lower bound, how many) and what is marked. In
            the least bucket is also what is below it.
        columns: how many panels stand side by side.
    """
    width, height, gap = 430, 96, 58
    lows = [low for _, buckets, _ in panels for low, _ in buckets]
    first = math.floor(math.log10(min(lows)))
    last = max(math.ceil(math.log10(max(lows) * 1.2)), first + 1)
    rows = math.ceil(len(panels) / columns)
    svg = Svg(columns * (width + 24) + 8, 48 + rows * (height + gap))
    svg.text(16, 28, title, size=17, bold=True)
    svg.text(columns * (width + 24) - 8, 28, unit, anchor="end", colour=FAINT)
    for index, (name, buckets, marks) in enumerate(panels):
        left = 16 + (index % columns) * (width + 24)
        bottom = 48 + (index // columns) * (height + gap) + height + 24
        svg.text(left, bottom - height - 8, name, size=13, bold=True)

        def across(value: float, left: float = left) -> float:
            share = (math.log10(max(value, 10.0**first)) - first) / (last - first)
            return left + share * width

        for power in range(first, last + 1):
            x = across(10.0**power)
            svg.line([(x, bottom - height), (x, bottom)], GRID)
            anchor = "start" if power == first else "end" if power == last else "middle"
            svg.text(x, bottom + 14, f"{10.0**power:g}", size=11, anchor=anchor, colour=FAINT)
        most = max(count for _, count in buckets)
        step = buckets[1][0] / buckets[0][0] if len(buckets) > 1 else 2.0
        for low, count in buckets:
            tall = count / most * (height - 16)
            begin, end = across(low), across(low * step)
            svg.rectangle(begin, bottom - tall, max(end - begin - 1, 1), tall, OURS)
        svg.line([(left, bottom), (left + width, bottom)], INK)
        for nth, (label, value) in enumerate(marks.items()):
            x = across(value)
            svg.line([(x, bottom - height), (x, bottom)], PALETTE[1])
            side, anchor = (3, "start") if x < left + 0.75 * width else (-3, "end")
            y = bottom - height + 10 + 13 * nth
            svg.text(x + side, y, f"{label} {value:.2f}", size=11, anchor=anchor)
    return svg.render()


def histogram_text(buckets: Sequence[tuple[float, int]], unit: str, *, width: int = 50) -> str:
    """Draw a histogram in text: the lower bound of each bucket, and how many are in it."""
    most = max(count for _, count in buckets)
    return "\n".join(
        f"{low:>10.3f} {unit} {count:>8,} {'#' * math.ceil(count / most * width)}".rstrip()
        for low, count in buckets
    )


def _ticks(values: Sequence[float]) -> list[float]:
    """Choose round numbers from 0 to beyond all values."""
    greatest = max(values, default=0.0) or 1.0
    power = 10.0 ** math.floor(math.log10(greatest))
    step = next(
        part * power for part in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0) if greatest <= part * power * 8
    )
    return [number * step for number in range(math.ceil(greatest / step) + 1)]
