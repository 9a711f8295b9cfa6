"""Line charts as inline SVG: no library, no network, legible in light and dark."""

from __future__ import annotations

import html
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 640, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 24, 30
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "1 4", "12 4", "6 2 2 2")
"""Beside colours, so that lines can be told apart without them."""
_TABLE_ROWS = 40


@dataclass(frozen=True)
class Line:
    name: str
    points: Points


@dataclass(frozen=True)
class Band:
    """A part of the run, shaded."""

    begin: float
    end: float
    name: str


@dataclass(frozen=True)
class Chart:
    title: str
    unit: str
    lines: Sequence[Line]
    note: str = ""
    is_log: bool = False
    is_stacked: bool = False
    bands: Sequence[Band] = field(default_factory=tuple)

    @property
    def values(self) -> list[float]:
        return [value for line in self.lines for _, value in line.points if math.isfinite(value)]


def figure(chart: Chart, *, first: float, last: float) -> str:
    """A figure with its legend, its lines, and the same as a table."""
    drawn = _stacked(chart.lines) if chart.is_stacked else chart.lines
    shown = Chart(chart.title, chart.unit, drawn, is_log=chart.is_log)
    if not [value for value in shown.values if value]:
        why = html.escape(f"Nothing was recorded. {chart.note}")
        return f'<figure><h3>{html.escape(chart.title)}</h3><p class="empty">{why}</p></figure>'
    scale = _Scale(first, last, shown.values, is_log=chart.is_log)
    body = "".join((*_bands(chart, scale), *_grid(scale), *_lines(drawn, scale, chart)))
    label = html.escape(f"{chart.title}, in {chart.unit}, over the time of the run")
    note = f'<p class="note">{html.escape(chart.note)}</p>' if chart.note else ""
    hover = html.escape(json.dumps(_hover(chart, scale)), quote=True)
    return (
        f'<figure><h3>{html.escape(chart.title)} <span class="unit">{html.escape(chart.unit)}'
        f"</span></h3>{note}{_legend(chart)}"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}" '
        f'data-hover="{hover}">{body}<line class="cursor" y1="{_TOP}" '
        f'y2="{HEIGHT - _BOTTOM}" x1="-9" x2="-9"/></svg><div class="tip" hidden=""></div>'
        f"{_table(chart, first)}</figure>"
    )


class _Scale:
    """From values to places in the picture."""

    def __init__(self, first: float, last: float, values: Sequence[float], *, is_log: bool) -> None:
        self.first, self.last, self.is_log = first, max(last, first + 1), is_log
        top = max(values)
        if is_log:
            lowest = min(value for value in values if value > 0)
            self.low = 10 ** math.floor(math.log10(lowest))
            self.high = max(10 ** math.ceil(math.log10(top)), self.low * 10)
        else:
            self.step = _nice(top / 4)
            self.low, self.high = 0.0, self.step * math.ceil(top / self.step)

    def x(self, at: float) -> float:
        part = (at - self.first) / (self.last - self.first)
        return round(_LEFT + part * (WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.is_log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = value / self.high
        return round(HEIGHT - _BOTTOM - part * (HEIGHT - _TOP - _BOTTOM), 1)

    def marks(self) -> list[float]:
        if not self.is_log:
            return [self.step * n for n in range(round(self.high / self.step) + 1)]
        decades = range(round(math.log10(self.low)), round(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if len(decades) <= 3 else (1,)
        marks = [step * 10.0**decade for decade in decades for step in steps]
        return [mark for mark in marks if mark <= self.high]


def _grid(scale: _Scale) -> list[str]:
    parts = []
    for value in scale.marks():
        y = scale.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" class="end">{number(value)}</text>')
    span = scale.last - scale.first
    step = next((s for s in (5, 10, 15, 30, 60, 120, 300, 600, 1800) if span / s <= 8), 3600.0)
    for count in range(int(span / step) + 1):
        x = scale.x(scale.first + count * step)
        text = clock(count * step)
        parts.append(f'<text x="{x}" y="{HEIGHT - 10}" class="middle">{text}</text>')
    return parts


def _bands(chart: Chart, scale: _Scale) -> list[str]:
    parts = []
    for band in chart.bands:
        x, end = scale.x(band.begin), scale.x(band.end)
        width = max(1.0, end - x)
        parts.append(
            f'<rect class="band" x="{x}" y="{_TOP}" width="{width:.1f}" '
            f'height="{HEIGHT - _TOP - _BOTTOM}"/>'
        )
        # As many letters as fit: the whole name is in the table of the parts.
        letters = int(width / 6.2)
        name = band.name if len(band.name) <= letters else band.name[: max(0, letters - 1)] + "…"
        if letters >= 3:
            parts.append(
                f'<text x="{x + 3}" y="{_TOP - 7}" class="part">{html.escape(name)}</text>'
            )
    return parts


def _lines(drawn: Sequence[Line], scale: _Scale, chart: Chart) -> list[str]:
    parts = []
    if chart.is_stacked:
        below = [(at, 0.0) for at, _ in drawn[0].points]
        for index, line in enumerate(drawn):
            for pair in _runs([*zip(line.points, below, strict=True)]):
                over = " ".join(f"{scale.x(at)},{scale.y(value)}" for (at, value), _ in pair)
                under = " ".join(f"{scale.x(at)},{scale.y(low)}" for _, (at, low) in pair[::-1])
                parts.append(f'<polygon class="c{index % 8} area" points="{over} {under}"/>')
            below = list(line.points)
    for index, line in enumerate(drawn):
        dash = _DASHES[index % 8]
        style = f' stroke-dasharray="{dash}"' if dash and not chart.is_stacked else ""
        for run in _pieces(line.points):
            places = " ".join(f"{scale.x(at)},{scale.y(value)}" for at, value in run)
            if len(run) == 1:
                x, y = places.split(",")
                parts.append(f'<circle class="c{index % 8} dot" cx="{x}" cy="{y}" r="2"/>')
            else:
                parts.append(f'<polyline class="c{index % 8}" points="{places}"{style}/>')
    return parts


def _pieces(points: Points) -> list[list[tuple[float, float]]]:
    """Without the gaps, where there is no figure."""
    groups = itertools.groupby(points, key=lambda point: math.isfinite(point[1]))
    return [list(group) for is_there, group in groups if is_there]


def _runs(
    pairs: list[tuple[tuple[float, float], tuple[float, float]]],
) -> list[list[tuple[tuple[float, float], tuple[float, float]]]]:
    groups = itertools.groupby(pairs, key=lambda pair: math.isfinite(pair[0][1] + pair[1][1]))
    return [list(group) for is_there, group in groups if is_there]


def _stacked(lines: Sequence[Line]) -> list[Line]:
    """Each on top of those before; all have the same times."""
    sums: list[float] = [0.0] * (len(lines[0].points) if lines else 0)
    stacked = []
    for line in lines:
        sums = [low + value for low, (_, value) in zip(sums, line.points, strict=True)]
        times = [at for at, _ in line.points]
        stacked.append(Line(line.name, list(zip(times, sums, strict=True))))
    return stacked


def _legend(chart: Chart) -> str:
    keys = []
    for index, line in enumerate(chart.lines):
        dash = "" if chart.is_stacked else _DASHES[index % 8]
        keys.append(
            f'<li><svg class="key" viewBox="0 0 26 10" aria-hidden="true"><line class="c{index % 8}'
            f'" x1="0" x2="26" y1="5" y2="5" stroke-dasharray="{dash}"/></svg>'
            f"{html.escape(line.name)}</li>"
        )
    return f'<ul class="legend">{"".join(keys)}</ul>'


def _hover(chart: Chart, scale: _Scale) -> dict[str, object]:
    """What the page's script shows under the pointer."""
    lines = [
        {
            "name": line.name,
            "points": [
                [scale.x(at), number(value)] for at, value in line.points if math.isfinite(value)
            ],
        }
        for line in chart.lines
    ]
    return {"unit": chart.unit, "first": _LEFT, "lines": lines, "span": scale.last - scale.first}


def _table(chart: Chart, first: float) -> str:
    times = sorted({at for line in chart.lines for at, _ in line.points})
    stride = max(1, math.ceil(len(times) / _TABLE_ROWS))
    by_line = [dict(line.points) for line in chart.lines]
    head = "".join(f'<th scope="col">{html.escape(line.name)}</th>' for line in chart.lines)
    rows = []
    for at in times[::stride]:
        cells = [f"<td>{number(values.get(at, math.nan))}</td>" for values in by_line]
        rows.append(f'<tr><th scope="row">{clock(at - first)}</th>{"".join(cells)}</tr>')
    return (
        f'<details><summary>Table</summary><div class="scroll"><table><thead><tr>'
        f'<th scope="col">time</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        f"</div></details>"
    )


def _nice(step: float) -> float:
    """The next larger of 1, 2, 2.5, 5 times a power of ten."""
    if step <= 0:
        return 1.0
    power = 10 ** math.floor(math.log10(step))
    return float(next(n * power for n in (1, 2, 2.5, 5, 10) if n * power >= step * 0.999))


def number(value: float) -> str:
    """Short, with as many digits as say something."""
    if not math.isfinite(value):
        return "–"
    if value and abs(value) < 0.01:
        return f"{value:.1g}"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
    )
