"""Records of any stage in, pictures (PNG) and Markdown for people out.

Every figure states its finding in the title and is drawn through matplotlib's `Figure` objects:
no global state, and the same input gives the same bytes. Text from a corpus passes `escape_text`
before it becomes Markdown.
"""

import base64
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from circuitseer_assets.errors import CircuitSeerError
from circuitseer_assets.method.figure_style import (
    BLANK,
    BLUE,
    GREY,
    GRID,
    INK,
    MUTED,
    RED,
    new_figure,
    say,
    to_png,
)
from circuitseer_assets.method.tables import (
    escape_text,
    format_number,
    format_signed,
    is_confirmed,
)
from circuitseer_assets.records import MAX_LENGTH_CORRELATION, HeadImportance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure

PassAt1 = tuple[str, str, float, float, float]
"""Task, model, Pass@1 and the ends of its 95 % interval, the three between 0 and 1."""

DEMONSTRATION_HALF_WIDTH = 0.05
"""A Pass@1 whose interval reaches further than this is a demonstration, not evidence."""

_SERIES = (GREY, BLUE, RED, "#4c9464", "#8a63a6")
_MANY_POINTS = 2000
_ROUNDING = 1e-9
_LAYERS_WITH_ROOM = 12

Floats = NDArray[np.float64]
Numbers: TypeAlias = Sequence[float] | NDArray[np.generic]


# Figures ------------------------------------------------------------------------------------------


def draw_head_heat_map(
    importance: Sequence[HeadImportance], num_layers: int, num_heads: int
) -> bytes:
    """Returns a PNG of what ablating each head costs, layers across and heads down.

    Colours follow a symmetric logarithm (see `colour_range`), so that one head that everything
    depends on does not wash out the rest. Chosen heads are outlined, those that fresh probes do
    not confirm with dashes. A head that was not measured stays blank.

    Raises:
        CircuitSeerError: there is no head, or one lies outside the model or occurs twice.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, SymLogNorm
    from matplotlib.ticker import MaxNLocator

    delta = _delta_matrix(importance, num_layers, num_heads)
    threshold, limit = colour_range([row.delta_loss_nats for row in importance])
    norm = SymLogNorm(linthresh=threshold, linscale=0.35, vmin=-limit, vmax=limit)
    palette = LinearSegmentedColormap.from_list("cost", [BLUE, "#f7f7f5", RED])

    row_height = min(0.27, 6.0 / num_heads)
    figure, axes = new_figure(8.0, 1.9 + max(1.5, row_height * num_heads))
    axes.pcolormesh(
        np.arange(num_layers + 1) - 0.5,
        np.arange(num_heads + 1) - 0.5,
        np.ma.masked_invalid(delta.T),
        norm=norm,
        cmap=palette,
        edgecolors="white",
        linewidth=0.6,
    )
    axes.set(facecolor=BLANK, xlabel="layer", ylabel="head")
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
    if num_layers <= _LAYERS_WITH_ROOM:
        for row in importance:
            colour = "white" if norm(abs(row.delta_loss_nats)) > 0.9 else INK
            text = format_signed(row.delta_loss_nats, 3)
            at = (row.head.layer, row.head.head)
            axes.text(*at, text, ha="center", va="center", fontsize=7.5, color=colour)
    chosen = [row for row in importance if row.is_reasoning_head]
    inset = (min(0.1, num_layers / 500), min(0.1, 0.018 / row_height))
    _outline_heads(figure, axes, chosen, inset, has_blank=bool(np.isnan(delta).any()))

    bar = figure.colorbar(ScalarMappable(norm, palette), ax=axes, pad=0.015, aspect=18)
    bar.set_ticks(
        ticks := _colour_ticks(threshold, limit), labels=[format_number(x) for x in ticks]
    )
    bar.ax.set_ylim(min(np.nanmin(delta), -threshold), max(np.nanmax(delta), threshold))
    beyond = "" if threshold == limit else f",\nlogarithmic beyond ±{threshold:g}"
    _plain_bar(bar, f"rise of the loss (nats a token){beyond}")
    say(figure, *_heads_finding(importance, chosen, num_layers * num_heads))
    return to_png(figure)


def draw_score_histogram(pool_scores: Numbers, subset_scores: Numbers) -> bytes:
    """Returns a PNG of the scores of the pool and of the subset drawn from it, as shares.

    The axis is logarithmic where the scores are positive and span more than a decade.

    Raises:
        CircuitSeerError: one of the two is empty, or holds a score that is not finite.
    """
    pool = _finite("pool_scores", pool_scores)
    subset = _finite("subset_scores", subset_scores)
    everything = np.concatenate([pool, subset])
    logarithmic = _spans_decades(everything)
    num_bins = int(np.clip(2 * np.cbrt(pool.size), 12, 60))  # Rice's rule
    edges = _bin_edges(everything, num_bins, logarithmic)

    figure, axes = new_figure(8.0, 3.9)
    for values, name, colour, fill in (
        (pool, "pool", GREY, True),
        (subset, "subset", BLUE, False),
    ):
        shares = np.histogram(values, edges)[0] / values.size * 100
        label = f"{name} ({values.size:,} samples)"
        look: dict[str, Any] = {"alpha": 0.55} if fill else {"linewidth": 1.8}
        axes.stairs(shares, edges, fill=fill, color=colour, label=label, **look)
        axes.axvline(float(np.median(values)), color=colour, linestyle="--", linewidth=1.3)
    axes.set(xlabel="score (dashed: median)", ylabel="share of samples (%)", ylim=(0, None))
    if logarithmic:
        axes.set_xscale("log")
        _label_decades(axes.xaxis)
    axes.legend()
    middle_pool, middle_subset = float(np.median(pool)), float(np.median(subset))
    in_subset, in_pool = format_number(middle_subset), format_number(middle_pool)
    finding = f"Median score: {in_subset} in the subset, {in_pool} in the pool"
    if min(middle_pool, middle_subset) > 0:
        ratio = middle_subset / middle_pool
        finding += f" ({format_number(ratio)} times)" if round(ratio, 2) != 1 else " (the same)"
    say(figure, finding)
    return to_png(figure)


def draw_score_against_length(
    lengths: Numbers,
    scores: Numbers,
    rank_correlation: float,
    in_subset: Sequence[bool] | None = None,
) -> bytes:
    """Returns a PNG of each sample's score against its length in tokens.

    Up to 2,000 samples are points, more are hexagons coloured by count. `in_subset` colours
    the points of drawn samples. The line joins medians of equally many samples.

    Raises:
        CircuitSeerError: the sequences are empty, differ in length, or hold non-finite numbers.
    """
    x, y = _finite("lengths", lengths), _finite("scores", scores)
    _same_size(lengths=x, scores=y)
    drawn = np.zeros(x.size, bool) if in_subset is None else np.asarray(in_subset, bool)
    _same_size(lengths=x, in_subset=drawn)
    log_x, log_y = _spans_decades(x), _spans_decades(y)

    figure, axes = new_figure(8.0, 4.4)
    axes.set(xlabel="prompt length (tokens)", ylabel="score")
    axes.set_xscale("log" if log_x else "linear")
    axes.set_yscale("log" if log_y else "linear")
    if x.size > _MANY_POINTS:
        _draw_hexagons(figure, axes, x, y)
    else:
        look: dict[str, Any] = {"s": np.clip(4000 / x.size, 7, 28), "alpha": 0.7, "linewidths": 0}
        for mask, colour, label in ((~drawn, GREY, "pool"), (drawn, BLUE, "drawn")):
            if mask.any():
                axes.scatter(x[mask], y[mask], color=colour, label=label, **look)
    axes.plot(*_running_median(x, y), color=RED, linewidth=2, label="median")
    for axis, is_logarithmic in ((axes.xaxis, log_x), (axes.yaxis, log_y)):
        if is_logarithmic:
            _label_decades(axis)
    axes.legend()
    finding = "The score hardly depends on length"
    if abs(rank_correlation) >= 0.1:
        direction = "rises" if rank_correlation > 0 else "falls"
        strongly = "strongly " if abs(rank_correlation) > MAX_LENGTH_CORRELATION else ""
        finding = f"The score {direction} {strongly}with length"
    finding += f": rank correlation {format_signed(rank_correlation)}"
    say(figure, finding, f"{x.size:,} samples")
    return to_png(figure)


def draw_loss_curve(steps: Sequence[int], losses: Sequence[float]) -> bytes:
    """Returns a PNG of the training loss over the optimiser's steps, smoothed where they are many.

    The title compares the means of the first and the last tenth of the steps.

    Raises:
        CircuitSeerError: the sequences are empty, differ in length, or hold non-finite numbers.
    """
    from matplotlib.ticker import MaxNLocator

    x, y = _finite("steps", steps), _finite("losses", losses)
    _same_size(steps=x, losses=y)
    tenth = max(1, x.size // 10)
    first, last = float(y[:tenth].mean()), float(y[-tenth:].mean())

    figure, axes = new_figure(8.0, 3.6)
    axes.set(xlabel="optimiser step", ylabel="loss (nats a token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    window = x.size // 20
    if window >= 3:
        axes.plot(x, y, color=GREY, alpha=0.6, linewidth=0.9, label="each step")
        smooth = np.convolve(y, np.ones(window) / window, mode="valid")
        start = (window - 1) // 2
        label = f"mean of {window} steps"
        axes.plot(x[start : start + smooth.size], smooth, color=BLUE, linewidth=2, label=label)
        axes.legend()
    else:
        axes.plot(x, y, color=BLUE, linewidth=1.8, marker="o", markersize=4)
    fell = "fell" if last < first else "did not fall:"
    finding = f"The training loss {fell} from {first:.3g} to {last:.3g} nats a token"
    over = "" if tenth == 1 else f"means of the first and the last {tenth} of {x.size:,} steps"
    say(figure, finding, over)
    return to_png(figure)


def draw_pass_at_1(summaries: Sequence[PassAt1]) -> bytes:
    """Returns a PNG of each task's Pass@1 by model with its 95 % interval.

    Models keep the order in which they first occur; the first is the one to compare with.

    Raises:
        CircuitSeerError: there is no summary, a value lies outside its interval or outside 0 to 1,
            or a task's model occurs twice.
    """
    _check_pass_at_1(summaries)
    tasks = list(dict.fromkeys(task for task, *_ in summaries))
    models = list(dict.fromkeys(model for _, model, *_ in summaries))
    spread = min(0.22, 0.6 / len(models))

    figure, axes = new_figure(8.0, 1.9 + len(tasks) * max(0.5, 0.24 * len(models)))
    for i, model in enumerate(models):
        rows = [row for row in summaries if row[1] == model]
        at = [tasks.index(row[0]) + (i - (len(models) - 1) / 2) * spread for row in rows]
        value, low, high = np.array([row[2:] for row in rows]).T
        colour = _SERIES[i % len(_SERIES)]
        axes.hlines(at, low, high, color=colour, linewidth=2.2, alpha=0.75)
        axes.scatter(value, at, color=colour, s=52, zorder=3, label=model)
        for x, y, right in zip(value, at, high, strict=True):
            look: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8}
            axes.annotate(f"{x * 100:.1f} %", (right, y), xytext=(5, 0), color=INK, **look)
    axes.set_yticks(range(len(tasks)), tasks)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set(ylim=(len(tasks) - 0.5, -0.5), xlabel="Pass@1 with its 95 % interval")
    axes.xaxis.set_major_formatter(lambda share, _: f"{format_number(round(share * 100, 6))} %")
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.09)
    figure.legend(loc="outside lower left", ncols=len(models))

    say(figure, *_pass_at_1_finding(summaries, models))
    return to_png(figure)


def colour_range(deltas: Sequence[float]) -> tuple[float, float]:
    """Returns the threshold and the limit of the heat map's symmetric logarithmic colours.

    Up to the threshold, the size that three quarters of the heads do not exceed, colours are
    linear in the loss; beyond it in its logarithm, up to the largest size. So one extreme head
    moves the limit only. Where nothing is extreme the two are the same, and all is linear.
    """
    sizes = np.abs(_finite("deltas", deltas))
    limit = float(sizes.max()) or 1.0
    threshold = _round_up(float(np.quantile(sizes, 0.75)) or limit / 100)
    return (threshold if 3 * threshold < limit else limit), limit


def to_markdown_image(png: bytes, alt: str) -> str:
    """Returns Markdown that shows `png` without any other file: a data URI."""
    return f"![{escape_text(alt)}](data:image/png;base64,{base64.b64encode(png).decode()})"


# Statistics ---------------------------------------------------------------------------------------


def spearman(x: Numbers, y: Numbers) -> float:
    """Returns Spearman's rank correlation of `x` and `y`, ties at their mean rank.

    Raises:
        CircuitSeerError: the sequences differ in length, hold fewer than two or non-finite numbers,
            or one of them is constant, for which no rank correlation exists.
    """
    from scipy.stats import spearmanr

    first, second = _finite("x", x), _finite("y", y)
    _same_size(x=first, y=second)
    for name, values in (("x", first), ("y", second)):
        if np.ptp(values) == 0:
            raise CircuitSeerError(
                f"{name} must hold at least two different numbers for a rank correlation, "
                f"got {values.size} times {values[0]:g}"
            )
    return float(spearmanr(first, second).statistic)


# Drawing ------------------------------------------------------------------------------------------


def _outline_heads(
    figure: "Figure",
    axes: "Axes",
    chosen: Sequence[HeadImportance],
    inset: tuple[float, float],
    *,
    has_blank: bool,
) -> None:
    from matplotlib.patches import Patch, Rectangle

    dashed = (0, (1.7, 1.0))
    across, down = inset
    for row in chosen:
        corner = (row.head.layer - 0.5 + across, row.head.head - 0.5 + down)
        box = Rectangle(corner, 1 - 2 * across, 1 - 2 * down, fill=False, edgecolor=INK)
        box.set(linewidth=1.5, linestyle="-" if is_confirmed(row) else dashed)
        axes.add_patch(box)
    keys = []
    if any(is_confirmed(row) for row in chosen):
        keys.append(Patch(fill=False, edgecolor=INK, label="chosen, confirmed on fresh probes"))
    if not all(is_confirmed(row) for row in chosen):
        keys.append(Patch(fill=False, edgecolor=INK, ls=dashed, label="chosen, not confirmed"))
    if has_blank:
        keys.append(Patch(facecolor=BLANK, label="not measured"))
    figure.legend(handles=keys, loc="outside lower left", ncols=3, handlelength=1.4)


def _draw_hexagons(figure: "Figure", axes: "Axes", x: Floats, y: Floats) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    cells = axes.hexbin(
        x,
        y,
        gridsize=(34, 17),
        xscale=axes.get_xscale(),  # type: ignore[arg-type]
        yscale=axes.get_yscale(),  # type: ignore[arg-type]
        bins="log",
        mincnt=1,
        cmap=LinearSegmentedColormap.from_list("count", ["#e3ebf4", BLUE, "#12304f"]),
        linewidths=0.2,
    )
    bar = figure.colorbar(cells, ax=axes, pad=0.015, aspect=24)
    _label_decades(bar.ax.yaxis)
    _plain_bar(bar, "samples")


def _plain_bar(bar: "Colorbar", label: str) -> None:
    bar.set_label(label, size=9, color=INK)
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=8, colors=MUTED, labelcolor=INK)
    bar.outline.set_edgecolor(GRID)


def _label_decades(axis: "Axis") -> None:
    """Puts numbers at each power of ten of a logarithmic axis; at 2 and 5 too where it is short."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high / low < 2000 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
    axis.set_minor_formatter(NullFormatter())


def _delta_matrix(importance: Sequence[HeadImportance], num_layers: int, num_heads: int) -> Floats:
    _finite("importance", [row.delta_loss_nats for row in importance])
    delta = np.full((num_layers, num_heads), np.nan)
    for row in importance:
        layer, head = row.head.layer, row.head.head
        if not (0 <= layer < num_layers and 0 <= head < num_heads):
            raise CircuitSeerError(
                f"importance must name heads of a model of {num_layers} layers with {num_heads} "
                f"heads each, got {row.head}"
            )
        if not np.isnan(delta[layer, head]):
            raise CircuitSeerError(f"importance must name each head once, got {row.head} twice")
        delta[layer, head] = row.delta_loss_nats
    return delta


def _colour_ticks(threshold: float, limit: float) -> list[float]:
    if threshold == limit:
        positive = [_round_up(limit / 2) if _round_up(limit / 2) < limit else limit / 2]
    else:
        first, last = math.ceil(math.log10(threshold)), math.floor(math.log10(limit))
        decades = [10.0**n for n in range(first, last + 1) if 10.0**n > 1.6 * threshold]
        positive = [threshold, *(decades or [limit])]
    return [*(-tick for tick in reversed(positive)), 0.0, *positive]


def _spans_decades(values: Floats) -> bool:
    return bool(values.min() > 0 and values.max() / values.min() > 10)


def _bin_edges(values: Floats, num_bins: int, logarithmic: bool) -> Floats:
    low, high = float(values.min()), float(values.max())
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        return np.linspace(low - margin, high + margin, 3 + 1)
    edges = np.geomspace if logarithmic else np.linspace
    between = edges(low, high, num_bins + 1)
    between[0], between[-1] = low, high
    return between


def _running_median(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    order = np.argsort(x, kind="stable")
    groups = np.array_split(order, int(np.clip(x.size // 20, 1, 20)))
    return (
        np.array([np.median(x[group]) for group in groups]),
        np.array([np.median(y[group]) for group in groups]),
    )


# Checks and numbers -------------------------------------------------------------------------------


def _finite(name: str, values: Numbers) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise CircuitSeerError(f"{name} must hold at least one number, got none")
    if not np.isfinite(array).all():
        at = int(np.flatnonzero(~np.isfinite(array))[0])
        raise CircuitSeerError(f"{name} must hold finite numbers, got {array[at]} at {at}")
    return array


def _same_size(**arrays: NDArray[np.generic]) -> None:
    (first, one), (second, other) = arrays.items()
    if one.size != other.size:
        raise CircuitSeerError(
            f"{first} and {second} must be of one length, got {one.size} and {other.size}"
        )


def _check_pass_at_1(summaries: Sequence[PassAt1]) -> None:
    if not summaries:
        raise CircuitSeerError("summaries must hold at least one Pass@1, got none")
    seen = set()
    for task, model, value, low, high in summaries:
        steps = (low, value - low, high - value, 1 - high)
        if not all(step >= -_ROUNDING for step in steps):
            raise CircuitSeerError(
                f"Pass@1 of {model} on {task} must lie inside its interval, between 0 and 1, "
                f"got {value:g} in {low:g} to {high:g}"
            )
        if (task, model) in seen:
            raise CircuitSeerError(f"summaries must name {model} on {task} once, got it twice")
        seen.add((task, model))


def _heads_finding(
    importance: Sequence[HeadImportance], chosen: Sequence[HeadImportance], num_heads: int
) -> tuple[str, str]:
    """Returns the title, and what it rests on."""
    worst = max(importance, key=lambda row: row.delta_loss_nats)
    finding = "No head's ablation raises the loss"
    if worst.delta_loss_nats > 0:
        finding = (
            f"Ablating layer {worst.head.layer}, head {worst.head.head} costs most: "
            f"{format_number(worst.delta_loss_nats)} nats a token"
        )
    num_confirmed = sum(is_confirmed(row) for row in chosen)
    return finding, (
        f"{len(chosen):,} of {num_heads:,} heads chosen, "
        f"{num_confirmed:,} of them confirmed on fresh probes"
    )


def _pass_at_1_finding(summaries: Sequence[PassAt1], models: Sequence[str]) -> tuple[str, str]:
    """Returns the title, and what to keep in mind about it."""
    values = {(task, model): value for task, model, value, *_ in summaries}
    tasks = list(dict.fromkeys(task for task, _ in values))
    finding, details = "Pass@1 by task and model", []
    if len(values) == 2 * len(tasks) and len(models) == 2:
        before, after = (
            sum(values[task, model] for task in tasks) / len(tasks) * 100 for model in models
        )
        gain = format_signed(after - before, 1)
        finding = f"Pass@1: {before:.1f} % before, {after:.1f} % after ({gain} points)"
        if len(tasks) > 1:
            details.append(f"mean of {len(tasks)} tasks")
    reach = dict.fromkeys(tasks, 0.0)
    for task, _, value, low, high in summaries:
        reach[task] = max(reach[task], value - low, high - value)
    wide = [task for task in tasks if reach[task] > DEMONSTRATION_HALF_WIDTH]
    if wide:
        where = "" if len(wide) == len(tasks) else f" on {len(wide)} of {len(tasks)} tasks"
        widest = max(reach.values()) * 100
        details.append(
            f"a demonstration, not evidence{where}: intervals reach ±{widest:.0f} points"
        )
    return finding, "; ".join(details)


def _round_up(value: float) -> float:
    """Returns `value` with one significant digit, rounded up."""
    unit = 10.0 ** math.floor(math.log10(value))
    return math.ceil(round(value / unit, 6)) * unit
