"""A report in, its sentences out: what came of the run, and no more than that."""

from circuitseer_assets.method.evaluation import TaskComparison, TaskSummary
from circuitseer_assets.method.report import Report, TaskReport
from circuitseer_assets.method.tables import format_number, format_signed, is_confirmed
from circuitseer_assets.records import MAX_LENGTH_CORRELATION


def summarise_what(report: Report) -> str:
    """Returns what was done, in one sentence."""
    drawn, pool = report.scores.draw["num_samples"], report.scores.draw["num_pool"]
    by = report.scores.scoring
    if by.scorer == "attention":
        how = (
            f"by how the attention of {_kind_of_heads(report)} falls on their {by.span}s "
            f"({by.reading})"
        )
    elif report.scores.heads:
        how = f"by the scorer {by.scorer}, which uses {_kind_of_heads(report)}"
    else:
        how = f"by the scorer {by.scorer}"
    return (
        f"{drawn:,} of {pool:,} samples ({100 * drawn / pool:.3g} %) were selected {how}, and "
        f"{report.base_model} was fine-tuned on them for {report.training['num_steps']:,} steps."
    )


def list_heads(report: Report) -> str:
    """Returns the heads that the scores are of, or that there are none."""
    by = report.scores
    if not by.heads:
        return f"none, for the scorer {by.scoring.scorer} uses none"
    named = "" if by.scoring.heads == "all" else f": {', '.join(by.heads)}"
    return f"{_kind_of_heads(report)}{named} (scoring.heads: {by.scoring.heads})"


def summarise_task(task: TaskReport) -> str:
    """Returns Pass@1 before and after on one task, in one sentence."""
    return (
        f"Pass@1 on {task.base.task} ({task.base.num_problems:,} problems) went from "
        f"{figure(task.base)} to {figure(task.checkpoint)}: {difference(task.difference)}."
    )


def judge_task(task: TaskReport) -> str:
    """Returns what may be said of a task's figures, and no more."""
    comparison = task.difference
    if comparison.ci_low > 0:
        seen = "The checkpoint solves more of these problems"
    elif comparison.ci_high < 0:
        seen = "The checkpoint solves fewer of these problems"
    else:
        seen = "No difference is seen: the interval holds 0"
    figures = {
        "the difference": comparison.is_demonstration,
        "Pass@1": task.base.is_demonstration or task.checkpoint.is_demonstration,
    }
    wide = [name for name, is_wide in figures.items() if is_wide]
    if wide:
        return (
            f"{seen}. The interval of {' and of '.join(wide)} reaches further than 5 points to "
            f"either side: a demonstration, not evidence."
        )
    return f"{seen}."


def list_cautions(report: Report) -> list[str]:
    """Returns what a reader must know before believing the figures."""
    cautions = [
        "One run with one seed compares the checkpoint with its base model. It does not say that "
        "this subset is better than a random one of the same size; make study compares the two."
    ]
    correlation = report.scores.length_correlation
    if correlation is not None and abs(correlation) > MAX_LENGTH_CORRELATION:
        cautions.append(
            f"The score follows the prompt's length (rank correlation "
            f"{format_signed(correlation)}): the selection is to a large part one by length."
        )
    unconfirmed = [
        str(row.head)
        for row in report.ranking.importance
        if row.is_reasoning_head and not is_confirmed(row)
    ]
    if unconfirmed:
        cautions.append(
            f"{_count(len(unconfirmed), 'chosen head')} not confirmed on fresh probes: "
            f"{', '.join(unconfirmed)}."
        )
    draw = report.scores.draw
    if abs(draw["score_tilt_sd"]) < 2 * draw["random_tilt_sd"]:
        cautions.append(
            f"The draw is not told from a random one: its mean score lies "
            f"{format_signed(draw['score_tilt_sd'])} standard deviations from the pool's, and a "
            f"random draw's lies within ±{2 * draw['random_tilt_sd']:.2f}."
        )
    cut = [t.checkpoint for t in report.tasks if t.checkpoint.truncation_rate > 0.1]
    cautions += [
        f"{100 * one.truncation_rate:.0f} % of the checkpoint's answers on {one.task} were cut at "
        f"evaluation.max_new_tokens, and count as wrong unless they were right by then."
        for one in cut
    ]
    return cautions


def figure(summary: TaskSummary) -> str:
    """Returns a Pass@1 with its interval."""
    return (
        f"{100 * summary.pass_at_1:.1f} % [{100 * summary.ci_low:.1f}, {100 * summary.ci_high:.1f}]"
    )


def difference(comparison: TaskComparison) -> str:
    """Returns a difference of Pass@1 with its interval, in points."""
    low, high = (format_signed(100 * x, 1) for x in (comparison.ci_low, comparison.ci_high))
    return f"{format_signed(100 * comparison.difference, 1)} points [{low}, {high}]"


def describe_joint(report: Report) -> str | None:
    """Returns what ablating all chosen heads at once costs, None where it was not tried."""
    joint = report.ranking.joint
    if joint is None:
        return None
    number = len(joint.delta_random_nats)
    as_bad = sum(one >= joint.delta_chosen_nats for one in joint.delta_random_nats)
    return (
        f"All chosen heads ablated at once raise the loss by "
        f"{format_number(joint.delta_chosen_nats)} nats a token; of {number} draws of as many "
        f"unchosen heads of the same layers, which raise it by "
        f"{format_number(min(joint.delta_random_nats))} to "
        f"{format_number(max(joint.delta_random_nats))}, {as_bad or 'none'} "
        f"{'do' if as_bad != 1 else 'does'} as much (p = {joint.p_value:.3g}, the least that "
        f"{number} draws can give is {1 / (number + 1):.3g})."
    )


def describe_draw(report: Report) -> str:
    """Returns how far the draw leans towards high scores."""
    draw = report.scores.draw
    return (
        f"The weights are those of {draw['effective_pool_size']:,.0f} equally likely samples out "
        f"of {draw['num_pool']:,}. The mean score of the subset lies "
        f"{format_signed(draw['score_tilt_sd'])} standard deviations from the pool's; that of a "
        f"random draw would lie within ±{2 * draw['random_tilt_sd']:.2f}."
    )


def _kind_of_heads(report: Report) -> str:
    by, num_heads = report.scores, report.ranking.num_layers * report.ranking.num_heads
    if by.scoring.heads == "all":
        return f"all {num_heads} heads"
    kind = "chosen" if by.scoring.heads == "reasoning" else by.scoring.heads
    return f"{_count(len(by.heads), f'{kind} head')} of {num_heads}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
