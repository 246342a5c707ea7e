"""Curves as inline SVG: no script, colours from the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median

import attrs
from markupsafe import Markup

from fourd_core.report.series import Bucket, Series

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 40
MAX_SERIES = 6
"""As many as the style sheet has colours."""

SAME_SCALE = 10.0
"""Series whose typical sizes differ by no more than this factor share a chart."""

SMOOTHING = 0.05
"""The smoothed curve is a centred mean over this share of the run."""


@attrs.frozen
class Legend:
    """What a curve is called, its last value, and a remark on values that could not be drawn."""

    name: str
    latest: str
    remark: str


@attrs.frozen
class Chart:
    """One drawing with the legend that belongs to it; entry i has the style class `c<i>`."""

    svg: Markup
    legend: tuple[Legend, ...]


def draw_charts(series: Iterable[Series], label: str) -> list[Chart]:
    """Draw series over the steps, those of one scale together (a learning rate would lie flat under a loss)."""
    return [_chart(group, label) for group in _by_scale(series)]


def _by_scale(series: Iterable[Series]) -> list[list[Series]]:
    groups: list[tuple[float, list[Series]]] = []
    for one in series:
        scale = max(median([abs(bucket.mean) for bucket in one.buckets] or [0.0]), 1e-30)
        for first, members in groups:
            if len(members) < MAX_SERIES and 1 / SAME_SCALE <= scale / first <= SAME_SCALE:
                members.append(one)
                break
        else:
            groups.append((scale, [one]))
    return [members for _, members in groups]


def _chart(group: Sequence[Series], label: str) -> Chart:
    smooth = [smoothed(one.buckets) for one in group]
    steps = [step for one in group for bucket in one.buckets for step in (bucket.first, bucket.last)]
    x_low, x_high = _range(steps)
    y_low, y_high = _range(_usual(group))
    x = _scale(x_low, x_high, LEFT, WIDTH - RIGHT)
    y = _scale(y_low, y_high, HEIGHT - BOTTOM, TOP)
    parts = [_axes(ticks(x_low, x_high), ticks(y_low, y_high), x, y)]
    for number, (one, values) in enumerate(zip(group, smooth, strict=True)):
        parts.append(_curve(number, one.buckets, values, x, y))
    names = ", ".join(one.name for one in group)
    svg = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, f"{label}: {names} over the steps", Markup("").join(parts)
    )
    return Chart(svg, tuple(_legend(one) for one in group))


def _legend(series: Series) -> Legend:
    remark = ""
    if series.not_finite:
        remark = f"{series.not_finite} not finite, first at step {series.first_not_finite:g}"
    return Legend(series.name, "" if series.latest is None else f"{series.latest:.4g}", remark)


def smoothed(buckets: Sequence[Bucket]) -> list[float]:
    """Centred mean of each bucket with its neighbours; the window shrinks evenly towards both ends."""
    half = int(len(buckets) * SMOOTHING / 2)
    values = []
    for i in range(len(buckets)):
        reach = min(half, i, len(buckets) - 1 - i)
        window = buckets[i - reach : i + reach + 1]
        values.append(sum(bucket.mean for bucket in window) / len(window))
    return values


TINY = 1e-300
"""Below, floating-point numbers lose their digits: no axis is made for differences so small."""


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """About five round positions (1, 2 or 5 times a power of ten) within `[low, high]`, with their labels."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * factor for factor in (1, 2, 5) if power * factor >= rough * 0.999), power * 10)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    plain = decimals <= 5 and max(abs(low), abs(high)) < 1e6
    places = [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return [(place, f"{place:.{decimals}f}" if plain else f"{place:.3g}") for place in places]


def _usual(group: Sequence[Series]) -> list[float]:
    """The raw values without the highest and the lowest hundredth: one spike must not flatten the rest."""
    extremes = sorted(value for one in group for bucket in one.buckets for value in (bucket.low, bucket.high))
    cut = int(len(extremes) * 0.01)
    return extremes[cut : len(extremes) - cut]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = max((high - low) * 0.03, abs(high) * 1e-6)
    if high - low > max(room, TINY):
        return low - room, high + room
    around = max(abs(low), abs(high)) / 2
    return (low - around, high + around) if around > TINY else (low - 0.5, high + 0.5)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    left, right = min(start, end), max(start, end)

    def place(value: float) -> float:
        # What lies outside the range runs along the frame.
        return min(max(start + (value - low) / (high - low) * (end - start), left), right)

    return place


def _axes(
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> Markup:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value, text in y_ticks:
        at = y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    for value, text in x_ticks:
        at = x(value)
        parts.append(f'<path class="axis" d="M{at:.1f} {bottom}v4"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{text}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>')
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">step</text>')
    return Markup("".join(parts))  # numbers and our own words only


def _curve(
    number: int,
    buckets: Sequence[Bucket],
    smooth: Sequence[float],
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> Markup:
    if not buckets:
        return Markup()
    at = [x((bucket.first + bucket.last) / 2) for bucket in buckets]
    raw, points = [], []
    for place, bucket, value in zip(at, buckets, smooth, strict=True):
        points.append(f"{place:.1f},{y(value):.1f}")
        raw.append(f"{place:.1f},{y(bucket.low):.1f}")
        if bucket.high > bucket.low:
            raw.append(f"{place:.1f},{y(bucket.high):.1f}")
    return Markup(
        f'<g class="c{number}"><polyline class="raw" points="{" ".join(raw)}"/>'
        f'<polyline class="smooth" points="{" ".join(points)}"/>'
        f'<circle cx="{at[-1]:.1f}" cy="{y(smooth[-1]):.1f}" r="2.5"/></g>'
    )
