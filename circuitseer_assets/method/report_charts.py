"""Numbers in, charts of the audit's page out: inline SVG, coloured by the page's own style sheet.

Every chart has a title and a description for those who do not see it; what it shows is in a table
or a sentence beside it as well. The same numbers give the same text.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from circuitseer_assets.errors import CircuitSeerError
from circuitseer_assets.method.tables import format_number

WIDTH, HEIGHT = 440, 270
MAX_POINTS = 900
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 12, 14, 46
_DECADE = 10.0

Floats = NDArray[np.float64]
Numbers: TypeAlias = Sequence[float] | NDArray[np.generic]

Interval = tuple[str, float, float, float, str]
"""A row's name, its value, the ends of its interval, and the class that colours it."""


@dataclass(frozen=True, slots=True)
class _Scale:
    """Numbers to places along an axis, linear or in the logarithm."""

    low: float
    high: float
    start: float
    stop: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.is_log:
            low, high, at = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (at - low) / (high - low) * (self.stop - self.start)


def draw_histogram(pool: Numbers, subset: Numbers, name: str) -> Markup:
    """Returns the shares of pool and subset by `name`: filled bars, and a line over them.

    Raises:
        CircuitSeerError: one of the two is empty.
    """
    _refuse_empty(pool=pool, subset=subset)
    both = [np.asarray(one, dtype=np.float64) for one in (pool, subset)]
    values = np.concatenate(both)
    is_log = _spans_a_decade(values)
    edges = _edges(values, is_log)
    shares = [100 * np.histogram(one, edges)[0] / len(one) for one in both]
    top = max(float(share.max()) for share in shares)
    x = _Scale(float(edges[0]), float(edges[-1]), _LEFT, WIDTH - _RIGHT, is_log)
    y = _Scale(0.0, top * 1.05, HEIGHT - _BOTTOM, _TOP)
    bars = [
        f'<rect class="pool" x="{x(a):.1f}" y="{y(share):.1f}" '
        f'width="{max(x(b) - x(a) - 0.6, 0.4):.1f}" height="{y(0) - y(share):.1f}"/>'
        for a, b, share in zip(edges[:-1], edges[1:], shares[0].tolist(), strict=True)
        if share > 0
    ]
    steps = [f"M{x(edges[0]):.1f} {y(0):.1f}"]
    for b, share in zip(edges[1:], shares[1].tolist(), strict=True):
        steps.append(f"V{y(share):.1f}H{x(b):.1f}")
    line = f'<path class="subset-line" d="{"".join(steps)}V{y(0):.1f}"/>'
    medians = [float(np.median(one)) for one in both]
    marks = [
        f'<line class="median {kind}" x1="{x(m):.1f}" x2="{x(m):.1f}" y1="{_TOP}" y2="{y(0):.1f}"/>'
        for m, kind in zip(medians, ("of-pool", "of-subset"), strict=True)
    ]
    return _svg(
        f"Distribution of {name}",
        f"Median {format_number(medians[0])} in the pool of {len(pool):,} samples, "
        f"{format_number(medians[1])} in the subset of {len(subset):,}.",
        [*_axes(x, y, name, "share of samples (%)"), *bars, line, *marks],
    )


def draw_scatter(
    lengths: Numbers, scores: Numbers, is_drawn: Sequence[bool] | NDArray[np.bool_], said: str
) -> Markup:
    """Returns score against length, one dot a sample; those drawn are filled squares on top.

    Of a large pool, or a large subset, evenly spaced samples are shown, and `thinning_of` says so.

    Raises:
        CircuitSeerError: there is no sample.
    """
    _refuse_empty(scores=scores)
    is_log = _spans_a_decade(np.asarray(scores, dtype=np.float64))
    x = _Scale(*_padded(lengths, False), _LEFT, WIDTH - _RIGHT)
    y = _Scale(*_padded(scores, is_log), HEIGHT - _BOTTOM, _TOP, is_log)
    dots = [
        f'<rect class="subset-dot" x="{x(a) - 2:.1f}" y="{y(b) - 2:.1f}" width="4" height="4"/>'
        if drawn
        else f'<circle class="pool-dot" cx="{x(a):.1f}" cy="{y(b):.1f}" r="2"/>'
        for drawn in (False, True)
        for a, b in zip(*_thinned(lengths, scores, is_drawn, drawn), strict=True)
    ]
    return _svg(
        "Score against the prompt's length",
        said,
        [*_axes(x, y, "tokens of the prompt", "score"), *dots],
    )


def thinning_of(is_drawn: Sequence[bool] | NDArray[np.bool_]) -> str:
    """Returns a sentence on which samples of a scatter are left out; empty where none is."""
    names = {False: "others", True: "drawn samples"}
    parts = [
        f"one in {stride} of the {names[drawn]}"
        for drawn in (False, True)
        if (stride := _stride(is_drawn, drawn)) > 1
    ]
    return f"Shown: {' and '.join(parts)}." if parts else ""


def _stride(is_drawn: Sequence[bool] | NDArray[np.bool_], drawn: bool) -> int:
    number = int(np.count_nonzero(np.asarray(is_drawn) == drawn))
    return max(1, math.ceil(number / MAX_POINTS))


def _thinned(
    lengths: Numbers,
    scores: Numbers,
    is_drawn: Sequence[bool] | NDArray[np.bool_],
    drawn: bool,
) -> tuple[list[float], list[float]]:
    """Returns lengths and scores of the samples that are shown of those drawn, or of the others."""
    shown = np.flatnonzero(np.asarray(is_drawn) == drawn)[:: _stride(is_drawn, drawn)]
    return np.asarray(lengths)[shown].tolist(), np.asarray(scores)[shown].tolist()


def draw_intervals(rows: Sequence[Interval], name: str, said: str, *, percent: bool) -> Markup:
    """Returns one dot with its interval a row, on a common axis; names stand above their rows.

    Raises:
        CircuitSeerError: there is no row.
    """
    _refuse_empty(rows=rows)
    factor = 100.0 if percent else 1.0
    ends = [factor * value for _, *figures, _ in rows for value in figures]
    x = _Scale(*_padded([*ends, *([] if percent else [0.0])], False), 14, WIDTH - 14)
    height = 40 * len(rows) + 66
    floor = height - 44
    drawn = [*_x_axis(x, floor, name, _TOP)]
    for i, (label, value, low, high, kind) in enumerate(rows):
        at = _TOP + 40 * i + 30
        a, b, c = (x(factor * one) for one in (low, value, high))
        drawn += [
            f'<text class="row" x="14" y="{at - 13}">{escape(label)}</text>',
            f'<line class="whisker {kind}" x1="{a:.1f}" x2="{c:.1f}" y1="{at}" y2="{at}"/>',
            f'<circle class="dot {kind}" cx="{b:.1f}" cy="{at}" r="5.5"/>',
        ]
    return _svg(name, said, drawn, height)


def draw_against_random(chosen: float, random: Sequence[float], said: str) -> Markup:
    """Returns one large mark for the chosen heads beside one tick for each draw of others.

    Raises:
        CircuitSeerError: there is no draw.
    """
    _refuse_empty(random=random)
    x = _Scale(*_padded([chosen, *random, 0.0], False), 14, WIDTH - 14)
    floor = 74
    ticks = [
        f'<line class="tick-random" x1="{x(one):.1f}" x2="{x(one):.1f}" y1="38" y2="58"/>'
        for one in random
    ]
    at = x(chosen)
    mark = f'<path class="diamond" d="M{at:.1f} 36l10 12l-10 12l-10 -12z"/>'
    axis = _x_axis(x, floor, "rise of the loss, nats a token", 26)
    return _svg("All chosen heads ablated at once", said, [*axis, *ticks, mark], floor + 44)


# pieces -------------------------------------------------------------------------------------------


def svg_element(
    title: str, said: str, body: Iterable[str], *, width: float, height: float
) -> Markup:
    """Returns an SVG picture with title and description; `body` is markup that is safe already."""
    return Markup(
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(title)}. {escape(said)}"><title>{escape(title)}</title>'
        f"<desc>{escape(said)}</desc>{''.join(body)}</svg>"
    )


def _svg(title: str, said: str, body: Iterable[str], height: float = HEIGHT) -> Markup:
    return svg_element(title, said, body, width=WIDTH, height=height)


def _axes(x: _Scale, y: _Scale, x_name: str, y_name: str) -> list[str]:
    parts = _x_axis(x, HEIGHT - _BOTTOM, x_name, _TOP)
    for tick in _ticks(y, 5):
        at = y(tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{x.stop:g}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">'
            f"{format_number(tick)}</text>"
        )
    middle = (HEIGHT - _BOTTOM + _TOP) / 2
    parts.append(
        f'<text class="name" transform="translate(12 {middle:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_name)}</text>'
    )
    return parts


def _x_axis(x: _Scale, floor: float, name: str, ceiling: float) -> list[str]:
    parts = []
    for tick in _ticks(x, 5):
        at = x(tick)
        parts.append(
            f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{ceiling:g}" y2="{floor:g}"/>'
            f'<text class="tick" x="{at:.1f}" y="{floor + 16:g}" text-anchor="middle">'
            f"{format_number(tick)}</text>"
        )
    middle = (x.start + x.stop) / 2
    parts.append(
        f'<text class="name" x="{middle:.0f}" y="{floor + 37:g}" text-anchor="middle">'
        f"{escape(name)}</text>"
    )
    return parts


def _ticks(scale: _Scale, number: int) -> list[float]:
    if scale.is_log:
        return _log_ticks(scale.low, scale.high)
    span = scale.high - scale.low
    raw = span / number
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    first = math.ceil(scale.low / step - 1e-9)
    last = math.floor(scale.high / step + 1e-9)
    return [round(step * i, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(exponents) > 3 else (1, 2, 5)
    ticks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
    return [tick for tick in ticks if low <= tick * (1 + 1e-9) and tick <= high * (1 + 1e-9)]


def _edges(values: Floats, is_log: bool) -> Floats:
    number = int(np.clip(2 * np.cbrt(values.size), 10, 40))
    low, high = _padded(values, is_log)
    if is_log:
        return np.geomspace(low, high, number + 1)
    return np.linspace(low, high, number + 1)


def _padded(values: Numbers, is_log: bool) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    if is_log:
        room = (high / low) ** 0.03
        return low / room, high * room
    room = 0.03 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room


def _spans_a_decade(values: Floats) -> bool:
    return bool(values.min() > 0 and values.max() / values.min() > _DECADE)


def _refuse_empty(**named: Sequence[object] | NDArray[np.generic]) -> None:
    for name, values in named.items():
        if not len(values):
            raise CircuitSeerError(f"{name} must hold at least one value to be drawn, got none")
