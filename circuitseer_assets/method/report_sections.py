"""A report in, what each section of its page shows out: texts, rows and charts, nothing of HTML.

The page's templates put them into place and escape every text.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from circuitseer_assets.method import report_words as words
from circuitseer_assets.method.audit import format_lineage
from circuitseer_assets.method.composition import Composition
from circuitseer_assets.method.explanation import (
    Explanation,
    describe,
    shades_of,
    times_even,
    top_tokens,
)
from circuitseer_assets.method.figures import colour_range
from circuitseer_assets.method.lineage_picture import draw_lineage
from circuitseer_assets.method.report import Report, TaskReport
from circuitseer_assets.method.report_charts import (
    Numbers,
    draw_against_random,
    draw_histogram,
    draw_intervals,
    draw_scatter,
    thinning_of,
)
from circuitseer_assets.method.tables import format_number, format_signed, is_confirmed
from circuitseer_assets.records import HeadImportance

MAX_SHOWN_TOKENS = 1_200
MAX_VALUES = 12
_ROOMY_LAYERS = 8
# Where black ink on a cell gives way to white, and in dark colours the other way round.
_DEEP = 0.755
_QUANTILES = (0, 0.25, 0.5, 0.75, 1)

View = dict[str, Any]


def view_report(report: Report) -> View:
    """Returns everything the page's templates show, section by section."""
    return {
        "audit_id": report.audit_id,
        "base_model": report.base_model,
        "summary": _summary(report),
        "heat_map": _heat_map(report),
        "heads": _heads(report),
        "scores": _scores(report),
        "compositions": [_composition(one) for one in report.compositions],
        "lengths": _lengths(report),
        "samples": {
            title: [view_explanation(one) for one in group]
            for title, group in report.samples.items()
        },
        "tasks": [_task(task) for task in report.tasks],
        "removed": _removed(report),
        "lineage": _lineage(report),
        "reproduce": _reproduce(report),
    }


def view_explanation(explanation: Explanation) -> View:
    """Returns what is shown of one sample: its facts, its shaded tokens, those that stand out."""
    view: View = {
        "title": explanation.sample_id or f"{explanation.source}:{explanation.position}",
        "facts": describe(explanation),
        "standing": explanation.standing,
        "place": explanation.place,
        "unread": explanation.unread,
    }
    read = explanation.read
    if read is None:
        return view
    shown = read.tokens[:MAX_SHOWN_TOKENS]
    shades, times = shades_of(read), times_even(read)
    return view | {
        "tokens": [
            {
                "text": token.text,
                "shade": f"{shades[i]:.3f}",
                "received": None if token.received is None else f"{token.received:.6g}",
                "times": None if token.received is None else f"{times[i]:.2f}",
            }
            for i, token in enumerate(shown)
        ],
        "num_hidden": len(read.tokens) - len(shown),
        "top": [
            (i, token.text, format_number(token.received or 0.0), f"{times[i]:.1f}")
            for i, token in top_tokens(read)
        ],
    }


def _summary(report: Report) -> View:
    return {
        "what": words.summarise_what(report),
        "tasks": [
            {
                "said": words.summarise_task(task),
                "judged": words.judge_task(task),
            }
            for task in report.tasks
        ],
        "cautions": words.list_cautions(report),
    }


# heads --------------------------------------------------------------------------------------------


def _heat_map(report: Report) -> View:
    ranking = report.ranking
    threshold, limit = colour_range([row.delta_loss_nats for row in ranking.importance])
    by_place = {(row.head.layer, row.head.head): row for row in ranking.importance}
    return {
        "layers": range(ranking.num_layers),
        "is_roomy": ranking.num_layers <= _ROOMY_LAYERS,
        "limit": format_number(limit),
        "num_chosen": len(ranking.reasoning_heads),
        "num_heads": ranking.num_layers * ranking.num_heads,
        "rows": [
            [_cell(by_place.get((layer, head)), threshold, limit) for layer in _layers(report)]
            for head in range(ranking.num_heads)
        ],
        "is_logarithmic": threshold < limit,
        "threshold": format_number(threshold),
    }


def _layers(report: Report) -> range:
    return range(report.ranking.num_layers)


def _cell(row: HeadImportance | None, threshold: float, limit: float) -> View:
    if row is None:
        blank = {"kind": "none", "is_chosen": False, "is_deep": False, "depth": "0"}
        return {**blank, "label": "not measured", "mark": "", "number": ""}
    depth = _depth(row.delta_loss_nats, threshold, limit)
    mark = "" if not row.is_reasoning_head else "◆" if is_confirmed(row) else "◇"
    return {
        "label": _tell_head(row),
        "kind": "rise" if row.delta_loss_nats >= 0 else "fall",
        "is_chosen": row.is_reasoning_head,
        "is_deep": depth > _DEEP,
        "depth": f"{depth:.3f}",
        "mark": mark,
        "number": format_signed(row.delta_loss_nats, 3),
    }


def _depth(delta: float, threshold: float, limit: float) -> float:
    """Returns how deep a head's colour is, 0 to 1: linear up to the threshold, then logarithmic."""
    size = min(abs(delta), limit)
    if threshold >= limit:
        return size / limit
    knee = 0.3
    if size <= threshold:
        return knee * size / threshold
    return knee + (1 - knee) * float(np.log(size / threshold) / np.log(limit / threshold))


def _tell_head(row: HeadImportance) -> str:
    said = (
        f"Layer {row.head.layer}, head {row.head.head}: loss rise "
        f"{format_signed(row.delta_loss_nats, 4)} nats a token"
    )
    interval = f"{format_signed(row.ci_low, 4)} to {format_signed(row.ci_high, 4)}"
    if not row.is_reasoning_head:
        return f"{said}, 95 % interval {interval}, on {row.num_probes} probes. Not chosen."
    if row.confirmed_delta_nats is None:
        return f"{said}, 95 % interval {interval}. Chosen, not tested on fresh probes."
    verdict = "confirmed" if is_confirmed(row) else "not confirmed"
    return (
        f"{said}. Chosen, {verdict} on fresh probes: "
        f"{format_signed(row.confirmed_delta_nats, 4)}, 95 % interval {interval}."
    )


def _heads(report: Report) -> View:
    chosen = [row for row in report.ranking.importance if row.is_reasoning_head]
    chosen.sort(key=lambda row: (-row.delta_loss_nats, row.head))
    intervals = [
        (
            str(row.head),
            row.confirmed_delta_nats,
            row.ci_low,
            row.ci_high,
            "after" if is_confirmed(row) else "before",
        )
        for row in chosen
        if row.confirmed_delta_nats is not None
    ]
    joint = report.ranking.joint
    said = words.describe_joint(report)
    return {
        "rows": [_head_row(row) for row in chosen],
        "intervals": draw_intervals(
            intervals[:24],
            "rise of the loss on fresh probes (nats a token)",
            "; ".join(f"{n}: {v:.4f} [{lo:.4f}, {hi:.4f}]" for n, v, lo, hi, _ in intervals[:24]),
            percent=False,
        )
        if intervals
        else None,
        "num_hidden": max(0, len(intervals) - 24),
        "joint": said,
        "joint_chart": draw_against_random(
            joint.delta_chosen_nats, joint.delta_random_nats, said or ""
        )
        if joint and joint.delta_random_nats
        else None,
        "clean_loss": format_number(report.ranking.clean_loss_nats),
        "overlap": report.ranking.split_half_overlap,
        "gap": format_signed(report.ranking.boundary_gap_nats, 4),
        "settings": report.head_settings,
    }


def _head_row(row: HeadImportance) -> list[str]:
    confirmed = row.confirmed_delta_nats
    control = row.delta_control_nats
    interval = f"{format_signed(row.ci_low, 4)} to {format_signed(row.ci_high, 4)}"
    return [
        str(row.head),
        format_signed(row.delta_loss_nats, 4),
        "not tested" if confirmed is None else f"{format_signed(confirmed, 4)} ({interval})",
        "not tested" if row.p_holm is None else f"{row.p_holm:.2g}",
        "not tested" if control is None else format_signed(control, 4),
        "yes" if is_confirmed(row) else "no",
    ]


# scores and subset --------------------------------------------------------------------------------


def _scores(report: Report) -> View:
    by = report.scores
    drawn = by.scores[by.is_drawn]
    correlation = by.length_correlation
    said = (
        "No rank correlation exists, for all scores or all lengths are the same."
        if correlation is None
        else f"Rank correlation of score and prompt length: {format_signed(correlation)}."
    )
    said = " ".join(filter(None, (said, thinning_of(by.is_drawn))))
    return {
        "histogram": draw_histogram(by.scores, drawn, "score"),
        "scatter": draw_scatter(by.num_prompt_tokens, by.scores, by.is_drawn, said),
        "correlation": said,
        "draw": words.describe_draw(report),
        "quantiles": _quantiles(by.scores, drawn),
        "num_unscored": by.num_unscored,
    }


def _lengths(report: Report) -> View:
    by = report.scores
    drawn = by.num_prompt_tokens[by.is_drawn]
    return {
        "histogram": draw_histogram(by.num_prompt_tokens, drawn, "tokens of the prompt"),
        "quantiles": _quantiles(by.num_prompt_tokens, drawn),
    }


def _quantiles(pool: Numbers, subset: Numbers) -> list[tuple[str, list[str]]]:
    return [
        (name, [format_number(float(q)) for q in np.quantile(values, _QUANTILES)])
        for name, values in (
            ("pool", np.asarray(pool, dtype=np.float64)),
            ("subset", np.asarray(subset, dtype=np.float64)),
        )
    ]


def _composition(composition: Composition) -> View:
    in_corpus, in_subset = sum(composition.corpus.values()), sum(composition.subset.values())
    ranked = sorted(composition.corpus.items(), key=lambda pair: (-pair[1], pair[0]))
    counts = [(value, n, composition.subset.get(value, 0)) for value, n in ranked[:MAX_VALUES]]
    if rest := ranked[MAX_VALUES:]:
        of_subset = sum(composition.subset.get(value, 0) for value, _ in rest)
        counts.append((f"{len(rest)} others", sum(n for _, n in rest), of_subset))
    shares = [(100 * a / in_corpus, 100 * b / in_subset) for _, a, b in counts]
    most = max(share for pair in shares for share in pair)
    return {
        "column": composition.column,
        "rows": [
            {
                "value": value,
                "corpus": f"{of_corpus:,}",
                "subset": f"{of_subset:,}",
                "shares": [(f"{share:.1f}", f"{100 * share / most:.1f}") for share in pair],
                "change": format_signed(pair[1] - pair[0], 1),
            }
            for (value, of_corpus, of_subset), pair in zip(counts, shares, strict=True)
        ],
    }


# evaluation, decontamination, lineage -------------------------------------------------------------


def _task(task: TaskReport) -> View:
    models = (("base model", task.base, "before"), ("checkpoint", task.checkpoint, "after"))
    rows = [
        (f"{name}: {words.figure(one)}", one.pass_at_1, one.ci_low, one.ci_high, kind)
        for name, one, kind in models
    ]
    paired = task.paired
    return {
        "name": task.base.task,
        "num_problems": task.base.num_problems,
        "num_repeats": task.base.num_repeats,
        "chart": draw_intervals(
            rows, "Pass@1 (%)", "; ".join(label for label, *_ in rows), percent=True
        ),
        "rows": [
            (name, words.figure(one), f"{100 * one.truncation_rate:.1f} %")
            for name, one, _ in models
        ],
        "difference": words.difference(task.difference),
        "judged": words.judge_task(task),
        "cells": [
            [len(paired.solved_by_both), len(paired.newly_lost)],
            [len(paired.newly_solved), len(paired.solved_by_neither)],
        ],
        "examples": [
            ("Newly solved", len(paired.newly_solved), task.newly_solved),
            ("Newly lost", len(paired.newly_lost), task.newly_lost),
        ],
    }


def _removed(report: Report) -> View:
    pool = report.pool
    return {
        "pool": pool,
        "by_rule": sorted(pool.removed_by_rule.items(), key=lambda pair: (-pair[1], pair[0])),
        "by_reason": sorted(pool.quarantined_by_reason.items()),
    }


def _lineage(report: Report) -> View:
    return {
        "picture": draw_lineage(report.lineage, _box_facts(report)),
        "text": format_lineage(report.lineage),
        "artifacts": report.lineage.artifacts,
        "heads": words.list_heads(report),
    }


def _box_facts(report: Report) -> Mapping[str, str]:
    facts: dict[str, str] = {}
    for artifact in report.lineage.artifacts:
        known = report.lineage.facts.get(artifact.artifact_id, {})
        if heads := known.get("reasoning_heads"):
            facts[artifact.artifact_id] = (
                f"{len(heads)} chosen heads: {', '.join(heads)} of {report.base_model}"
            )
        elif "pass_at_1" in known:
            shares = ", ".join(f"{100 * share:.1f} %" for share in known["pass_at_1"].values())
            is_base = artifact.artifact_id != report.lineage.artifact_id
            who = "base model" if is_base else "checkpoint"
            facts[artifact.artifact_id] = f"{who}: Pass@1 {shares}"
        elif "samples" in known:
            facts[artifact.artifact_id] = f"{known['samples']:,} samples"
    by_stage = {
        "corpus": f"{report.pool.num_samples:,} samples",
        "pool": f"{report.pool.num_pool:,} samples",
        "sample_scores": f"{len(report.scores.scores):,} scores",
        "probe_set": f"{report.pool.num_probes:,} probes",
        "checkpoint": f"{report.training['num_steps']:,} steps",
    }
    nearest: dict[str, str] = {}
    for artifact in report.lineage.artifacts:
        nearest.setdefault(artifact.stage, artifact.artifact_id)
    for stage, fact in by_stage.items():
        if stage in nearest:
            facts.setdefault(nearest[stage], fact)
    return facts


def _reproduce(report: Report) -> View:
    ids = {artifact.stage: artifact.artifact_id for artifact in reversed(report.lineage.artifacts)}
    return {
        "settings": report.settings_yaml,
        "versions": sorted(report.versions.items()),
        "artifacts": report.lineage.artifacts,
        "commands": [
            ("save the settings below as settings.yaml, then set up", "make setup"),
            (
                "make the run, in a home of its own",
                "CIRCUITSEER_SETTINGS=settings.yaml CIRCUITSEER_HOME=home make run",
            ),
            ("the subset, with its original columns", f"circuitseer export {ids['subset']}"),
            ("what these figures were made from", f"circuitseer lineage {report.audit_id}"),
            (
                "one sample, token by token",
                f"circuitseer explain SAMPLE_ID --subset {ids['subset']}",
            ),
        ],
    }
