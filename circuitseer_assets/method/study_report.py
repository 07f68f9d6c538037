"""The cells of a study in, its comparisons, its figure and its report out.

Two endpoints: Pass@1, and the log-likelihood of held-out solutions, which is less coarse. Both are
such that more is better. Only the primary pairs on Pass@1 are hypotheses; all else is exploration.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, Literal

from circuitseer_assets.method.figure_style import (
    BLUE,
    GREY,
    INK,
    MUTED,
    RED,
    new_figure,
    say,
    to_png,
)
from circuitseer_assets.method.scorers import SCORERS
from circuitseer_assets.method.study import (
    Comparison,
    Floats,
    Verdict,
    bootstrap_interval,
    compare_methods,
    decide,
    mcnemar,
)
from circuitseer_assets.method.study_methods import (
    CLAIMS,
    METHODS,
    POOLED_METHODS,
    PRIMARY_PAIRS,
    SENSITIVITY_PAIR,
    list_pairs,
)
from circuitseer_assets.method.tables import escape_text, format_signed

Endpoint = Literal["pass_at_1", "held_out_log_likelihood_nats"]

_SAID: Mapping[Verdict, str] = {
    "better": "holds",
    "worse": "does not hold: the other way round",
    "undecided": "undecided",
    "insensitive": "no conclusion",
}
_COLOURS = {"method": BLUE, "ablation": BLUE, "baseline": GREY, "control": RED}
_MAX_VALUES = 12


@dataclass(frozen=True, slots=True)
class StudyCell:
    """One method with one seed: what it selected, what that cost, and what came of it."""

    method: str
    seed: int
    subset_id: str
    pass_at_1: float
    held_out_loss_nats: float | None
    num_samples: int
    num_pool: int
    num_train_tokens: int
    effective_pool_size: float
    score_tilt_sd: float
    random_tilt_sd: float
    num_selection_forwards: int
    selection_s: float
    training_s: float
    composition: Mapping[str, Mapping[str, int]]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "StudyCell":
        """Returns the cell that a cell's stored figures hold."""
        return cls(**{name: values[name] for name in inspect.signature(cls).parameters})


@dataclass(frozen=True)
class StudyData:
    """Everything a study's results are made from.

    Attributes:
        cells: each method's cells, by seed.
        correct: by method the share of right answers, (seeds, problems).
        loss_nats: by method the loss of held-out solutions, (seeds, problems); problems may be 0.
        base_pass_at_1: of the model before fine-tuning, on the same problems.
        overlap: the mean Jaccard overlap of two methods' subsets with the same seed.
        pool_composition: how many of the pool's samples have each value of each column.
        left_out: the methods that could not be run, each with its reason.
    """

    cells: Mapping[str, Sequence[StudyCell]]
    correct: Mapping[str, Floats]
    loss_nats: Mapping[str, Floats]
    base_pass_at_1: float
    overlap: Mapping[tuple[str, str], float]
    pool_composition: Mapping[str, Mapping[str, int]]
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StudyRow:
    """One comparison on one endpoint, and what may be said of it."""

    endpoint: Endpoint
    comparison: Comparison
    verdict: Verdict


@dataclass(frozen=True)
class StudyAnalysis:
    """All comparisons of a study."""

    rows: Sequence[StudyRow]

    def find(self, method: str, against: str, endpoint: Endpoint = "pass_at_1") -> StudyRow | None:
        """Returns the comparison of two methods on one endpoint, None where there is none."""
        for row in self.rows:
            pair = (row.comparison.method, row.comparison.against)
            if row.endpoint == endpoint and pair == (method, against):
                return row
        return None


def analyse_study(data: StudyData) -> StudyAnalysis:
    """Returns the comparison of every claimed pair, and of every method with random selection.

    Raises:
        EvaluationError: methods have different seeds or problems.
    """
    pairs = list_pairs(list(data.cells))
    endpoints: dict[Endpoint, Mapping[str, Floats]] = {"pass_at_1": data.correct}
    if all(loss.shape[1] for loss in data.loss_nats.values()):
        likelihood = {method: -loss for method, loss in data.loss_nats.items()}
        endpoints["held_out_log_likelihood_nats"] = likelihood
    rows = []
    for endpoint, outcomes in endpoints.items():
        primary = PRIMARY_PAIRS if endpoint == "pass_at_1" else ()
        compared = compare_methods(outcomes, pairs, primary=primary, pooled=POOLED_METHODS)
        control = [c for c in compared if (c.method, c.against) == SENSITIVITY_PAIR]
        sensitivity = control[0] if control else None
        rows += [StudyRow(endpoint, c, decide(c, sensitivity)) for c in compared]
    return StudyAnalysis(rows)


# the figure ---------------------------------------------------------------------------------------


def draw_study(data: StudyData, analysis: StudyAnalysis) -> bytes:
    """Returns a PNG of every method's Pass@1 minus that of random, with interval and runs."""
    random = data.correct["random"]
    compared = [
        row.comparison
        for row in analysis.rows
        if row.endpoint == "pass_at_1" and row.comparison.against == "random"
    ]
    compared.sort(key=lambda comparison: -comparison.difference)
    figure, axes = new_figure(8.0, 1.7 + 0.32 * len(compared))
    for at, row in enumerate(compared):
        colour = _COLOURS[METHODS[row.method].role]
        runs = (data.correct[row.method] - random).mean(1)
        axes.hlines(at, row.ci_low, row.ci_high, color=colour, linewidth=2.2, alpha=0.75)
        axes.scatter(runs, [at] * len(runs), color=colour, s=12, alpha=0.35)
        axes.scatter(row.difference, at, color=colour, s=46, zorder=3)
    before = data.base_pass_at_1 - float(random.mean())
    axes.axvline(0, color=INK, linewidth=1)
    axes.axvline(before, color=MUTED, linewidth=1, linestyle="--")
    axes.annotate(
        "before fine-tuning",
        (before, len(compared) - 0.5),
        xytext=(4, 3),
        textcoords="offset points",
        fontsize=8,
        color=INK,
    )
    axes.set_yticks(range(len(compared)), [row.method for row in compared])
    axes.set(ylim=(len(compared) - 0.3, -0.6), xlabel="Pass@1 minus that of random, in points")
    axes.xaxis.set_major_formatter(lambda share, _: format_signed(100 * share, 1))
    axes.grid(axis="y", visible=False)
    detail = "95 % intervals of the mixed model; small dots are seeds; controls in red"
    say(figure, _finding(analysis), detail)
    return to_png(figure)


def _finding(analysis: StudyAnalysis) -> str:
    found = [analysis.find(*pair) for pair in PRIMARY_PAIRS]
    rows = [row for row in found if row is not None]
    if not rows:
        return "Pass@1 by method"
    if all(row.comparison.is_blind for row in rows):
        return "No conclusion: the runs' answers show no variance"
    control = analysis.find(*SENSITIVITY_PAIR)
    if control is not None and not control.comparison.is_seen:
        return "No conclusion: the oracle is not told from a random subset"
    words = {"better": "better than", "worse": "worse than"}
    said = [
        f"not compared, for lack of variance, with {row.comparison.against}"
        if row.comparison.is_blind
        else f"{words.get(row.verdict, 'not told from')} {row.comparison.against}"
        for row in rows
    ]
    return f"circuitseer is {' and '.join(said)}"


# the report ---------------------------------------------------------------------------------------


def format_study(data: StudyData, analysis: StudyAnalysis) -> str:
    """Returns the report in Markdown: methods, claims, comparisons, diagnostics."""
    parts = [
        _set_up(data, analysis),
        "## Methods",
        _methods_table(data),
        "## Claims",
        _claims_table(analysis, data.left_out),
        "## Every method against a random subset (exploratory)",
        _comparisons_table(analysis),
        "## Single checkpoints",
        _checkpoints_table(data),
        "## What was selected",
        _selection_table(data),
        *_composition_tables(data),
        "## Overlap of the subsets",
        _overlap_table(data),
    ]
    return "\n\n".join(parts) + "\n"


def _set_up(data: StudyData, analysis: StudyAnalysis) -> str:
    first = next(iter(data.cells.values()))
    num_problems = next(iter(data.correct.values())).shape[1]
    said = [
        f"Pool of {first[0].num_pool:,} samples, {len(first)} seeds, {num_problems:,} held-out "
        f"problems. Pass@1 before fine-tuning: {_percent(data.base_pass_at_1)}."
    ]
    control = analysis.find(*SENSITIVITY_PAIR)
    if control is None:
        said.append("No positive control was run: what is undecided may be out of its reach.")
    elif control.verdict == "insensitive":
        said.append(
            "The oracle is not told from a random subset: the study is insensitive, and nothing "
            "follows from it."
        )
    else:
        said.append(
            f"The positive control works: knowing which solutions are wrong is worth "
            f"{_points(control.comparison.difference)} points over a random subset."
        )
    for pair in PRIMARY_PAIRS:
        row = analysis.find(*pair)
        if row is not None and row.comparison.is_blind:
            said.append(
                f"On Pass@1 the difference from {pair[1]} shows no variance, as where every answer "
                f"is wrong: nothing follows from it, and what would have been seen is unknown."
            )
        elif row is not None:
            said.append(
                f"The smallest difference from {pair[1]} that would have been seen (80 % power): "
                f"{_points(row.comparison.smallest_effect)} points."
            )
    said.append(
        "A verdict goes by the mixed model; it is fragile where the bootstrap or the t-test of the "
        "seeds says otherwise."
    )
    return " ".join(said)


def _methods_table(data: StudyData) -> str:
    rows = []
    for method in sorted(data.cells, key=lambda method: -float(data.correct[method].mean())):
        cells = data.cells[method]
        by_seed = [cell.pass_at_1 for cell in cells]
        low, high = bootstrap_interval(data.correct[method])
        losses = [c.held_out_loss_nats for c in cells if c.held_out_loss_nats is not None]
        scorer = SCORERS[METHODS[method].scorer]
        rows.append(
            (
                method,
                METHODS[method].role,
                f"{_percent(fmean(by_seed))} [{_percent(low)}, {_percent(high)}]",
                f"{100 * stdev(by_seed):.1f}",
                f"{fmean(losses):.3f}" if losses else "",
                f"{fmean(c.num_samples for c in cells):,.0f}",
                f"{fmean(c.num_train_tokens for c in cells):,.0f}",
                str(scorer.num_forwards),
                f"{fmean(c.selection_s for c in cells):.0f}",
                f"{fmean(c.training_s for c in cells):.0f}",
            )
        )
    head = (
        "method",
        "role",
        "Pass@1 [95 %]",
        "sd of runs, points",
        "held-out loss, nats",
        "samples",
        "tokens trained",
        "forwards a sample",
        "selecting, s",
        "training, s",
    )
    return _table(head, rows)


_COMPARED = (
    "points [95 %]",
    "[bootstrap]",
    "[t of the seeds]",
    "[runs' variance pooled]",
    "p",
    "verdict",
    "log-likelihood, nats a token [95 %]",
    "verdict",
)


def _claims_table(analysis: StudyAnalysis, left_out: Mapping[str, str]) -> str:
    rows: list[tuple[str, ...]] = []
    for claim, method, against in CLAIMS:
        pair, row = f"{method} - {against}", analysis.find(method, against)
        if row is None:
            reasons = [left_out[name] for name in (method, against) if name in left_out]
            said = f"not applicable: {escape_text(reasons[0])}" if reasons else "not run"
            rows.append((claim, pair, *[""] * (_COMPARED.index("verdict")), said, "", ""))
            continue
        name = f"{claim} ({'primary' if row.comparison.is_primary else 'exploratory'})"
        rows.append((name, pair, *_compared(analysis, row, _SAID)))
    return _table(("claim", "pair", *_COMPARED), rows)


def _comparisons_table(analysis: StudyAnalysis) -> str:
    rows = [
        (row.comparison.method, *_compared(analysis, row, {}))
        for row in analysis.rows
        if row.endpoint == "pass_at_1" and row.comparison.against == "random"
    ]
    return _table(("method", *_COMPARED), rows)


def _compared(
    analysis: StudyAnalysis, row: StudyRow, said: Mapping[Verdict, str]
) -> tuple[str, ...]:
    """Returns what both endpoints say of a pair, in the columns of `_COMPARED`."""
    c = row.comparison
    p_value = c.p_value if c.p_holm is None else c.p_holm
    other = analysis.find(c.method, c.against, "held_out_log_likelihood_nats")
    return (
        f"{_points(c.difference)} {_interval(c.ci_low, c.ci_high)}",
        _interval(c.bootstrap_low, c.bootstrap_high),
        _interval(c.paired_low, c.paired_high),
        ""
        if c.pooled_low is None or c.pooled_high is None
        else _interval(c.pooled_low, c.pooled_high),
        _p(p_value) + (" (Holm)" if c.is_primary else ""),
        _verdict(row, said),
        *((_likelihood(other), _verdict(other, said)) if other else ("", "")),
    )


def _verdict(row: StudyRow, said: Mapping[Verdict, str]) -> str:
    word = said.get(row.verdict, row.verdict)
    is_open = row.verdict == "insensitive"
    return f"{word}, fragile" if row.comparison.is_fragile and not is_open else word


def _checkpoints_table(data: StudyData) -> str:
    """Returns McNemar's p-values: they are about these checkpoints, not about the methods."""
    pairs = [p for p in (*PRIMARY_PAIRS, SENSITIVITY_PAIR) if set(p) <= set(data.correct)]
    rows = []
    for method, against in pairs:
        p_values = [
            mcnemar(one > 0.5, other > 0.5)
            for one, other in zip(data.correct[method], data.correct[against], strict=True)
        ]
        rows.append((f"{method} - {against}", ", ".join(_p(p) for p in p_values)))
    return _table(("pair", "McNemar's p of the two checkpoints of each seed"), rows)


def _selection_table(data: StudyData) -> str:
    rows = [
        (
            method,
            f"{fmean(c.effective_pool_size for c in cells) / cells[0].num_pool:.2f}",
            format_signed(fmean(c.score_tilt_sd for c in cells)),
            f"{fmean(c.random_tilt_sd for c in cells):.2f}",
        )
        for method, cells in data.cells.items()
    ]
    head = (
        "method",
        "effective share of the pool",
        "tilt of the score, sd",
        "of a random draw, sd",
    )
    return _table(head, rows)


def _composition_tables(data: StudyData) -> Iterator[str]:
    for column, counted in data.pool_composition.items():
        values = sorted(counted, key=lambda value: (-counted[value], value))[:_MAX_VALUES]
        of_pool = sum(counted.values())
        rows = [("the pool", *(_percent(counted[value] / of_pool) for value in values))]
        for method, cells in data.cells.items():
            shares = [
                fmean(
                    c.composition[column].get(value, 0) / sum(c.composition[column].values())
                    for c in cells
                )
                for value in values
            ]
            rows.append((method, *map(_percent, shares)))
        yield f"Share of the samples by `{column}`:"
        yield _table(("", *(escape_text(value) for value in values)), rows)


def _overlap_table(data: StudyData) -> str:
    methods = list(data.cells)
    rows = [
        (one, *(_cell_of_overlap(data.overlap, one, other) for other in methods)) for one in methods
    ]
    return "Mean Jaccard overlap of two subsets with the same seed.\n\n" + _table(
        ("", *methods), rows
    )


def _cell_of_overlap(overlap: Mapping[tuple[str, str], float], one: str, other: str) -> str:
    value = overlap.get((one, other), overlap.get((other, one)))
    return "" if value is None else f"{value:.2f}"


# words and numbers --------------------------------------------------------------------------------


def _interval(low: float, high: float) -> str:
    return f"[{_points(low)}, {_points(high)}]"


def _likelihood(row: StudyRow) -> str:
    c = row.comparison
    return (
        f"{format_signed(c.difference, 3)} "
        f"[{format_signed(c.ci_low, 3)}, {format_signed(c.ci_high, 3)}]"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return format_signed(100 * share, 1)


def _p(p_value: float) -> str:
    return f"{p_value:.3f}" if p_value >= 0.001 else "< 0.001"
