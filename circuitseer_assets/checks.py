"""Asset checks: what must hold of something already materialised before a later stage builds on it.

A blocking check that fails ends its run. The others warn.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow.parquet as pq

from circuitseer_assets.method.decontamination import find_contaminated
from circuitseer_assets.method.weights import weigh_samples
from circuitseer_assets.records import MAX_LENGTH_CORRELATION, Artifact
from circuitseer_assets.settings import SelectionSettings
from resources.benchmarks import load_problems
from resources.draw import draw_subset
from resources.home import Home
from resources.model_faults import find_model_faults
from resources.pool_scores import pool_rows
from resources.sample_files import read_samples

NUM_EXAMPLES = 5


def _latest(
    context: dg.AssetCheckExecutionContext, home: Home, asset: str
) -> tuple[Artifact, Path]:
    """Returns the artifact an asset last materialised, and its folder."""
    event = context.instance.get_latest_materialization_event(dg.AssetKey(asset))
    if event is None or event.asset_materialization is None:
        raise dg.Failure(f"{asset} must be materialised before it is checked; run `make run`")
    artifact_id = str(event.asset_materialization.metadata["artifact_id"].value)
    artifact = home.warehouse.find_artifact(artifact_id)
    if artifact is None:
        raise dg.Failure(f"{artifact_id} is not in the warehouse; materialise {asset} again")
    return artifact, home.artifacts.folder(artifact.stage, artifact_id)


def _parent_folder(home: Home, artifact: Artifact, stage: str) -> Path:
    """Returns the folder of what the artifact was made from, whatever was materialised since."""
    for parent_id in artifact.parents:
        parent = home.warehouse.find_artifact(parent_id)
        if parent is not None and parent.stage == stage:
            return home.artifacts.folder(stage, parent_id)
    raise dg.Failure(
        f"{artifact.artifact_id} must have a parent of stage {stage} in the warehouse; "
        f"materialise {artifact.stage} again"
    )


def _summary(context: dg.AssetCheckExecutionContext, asset: str) -> dict[str, Any]:
    event = context.instance.get_latest_materialization_event(dg.AssetKey(asset))
    if event is None or event.asset_materialization is None:
        raise dg.Failure(f"{asset} must be materialised before it is checked; run `make run`")
    return {name: value.value for name, value in event.asset_materialization.metadata.items()}


def _result(
    passed: bool, description: str, *, warn: bool = False, **metadata: Any
) -> dg.AssetCheckResult:
    severity = dg.AssetCheckSeverity.WARN if warn else dg.AssetCheckSeverity.ERROR
    return dg.AssetCheckResult(
        passed=passed, severity=severity, description=description, metadata=metadata
    )


@dg.asset_check(asset="sample_scores", blocking=True)
def scores_are_finite_and_differ(
    context: dg.AssetCheckExecutionContext, home: Home
) -> dg.AssetCheckResult:
    """No score is NaN or infinite, and not all are the same unless they are meant to be."""
    artifact, folder = _latest(context, home, "sample_scores")
    scores = pq.read_table(folder / "scores.parquet", columns=["score"])["score"].to_numpy()
    not_finite = int((~np.isfinite(scores)).sum())
    is_meant = artifact.settings["scoring"]["scorer"] == "random"
    constant = len(scores) > 1 and scores.min() == scores.max() and not is_meant
    return _result(
        not_finite == 0 and not constant,
        f"{not_finite} of {len(scores)} scores are not finite"
        + ("; all scores are equal, so nothing is selected by them" if constant else ""),
        num_scores=len(scores),
    )


@dg.asset_check(asset="sample_scores", additional_deps=["pool"], blocking=True)
def one_score_a_sample(context: dg.AssetCheckExecutionContext, home: Home) -> dg.AssetCheckResult:
    """Every sample of the pool has one score, or a reason why it has none."""
    artifact, folder = _latest(context, home, "sample_scores")
    [found] = home.warehouse.query(
        _SCORES_A_SAMPLE,
        {
            "pool": str(_parent_folder(home, artifact, "pool") / "pool.parquet"),
            "scores": str(folder / "scores.parquet"),
            "scorer_id": artifact.settings["scorer_id"],
            "num_examples": NUM_EXAMPLES,
        },
    ).to_pylist()
    num_unexplained, num_repeated = found["num_unexplained"], found["num_repeated"]
    return _result(
        num_unexplained == 0 and num_repeated == 0,
        f"of {found['num_pool']} pool samples {num_repeated} have more than one score, "
        f"{found['num_explained']} have none and a reason, {num_unexplained} have neither"
        + (f", among them {', '.join(found['examples'])}" if num_unexplained else ""),
        num_pool=found["num_pool"],
        num_repeated=num_repeated,
        num_explained=found["num_explained"],
        num_unexplained=num_unexplained,
    )


_SCORES_A_SAMPLE = """
    with counted as (
        select
            pool.sample_id,
            count(scores.sample_id) as num_scores,
            exists (
                from unscored_samples as reasons
                where reasons.scorer_id = $scorer_id and reasons.sample_id = pool.sample_id
            ) as has_reason
        from read_parquet($pool) as pool
        left join read_parquet($scores) as scores on pool.sample_id = scores.sample_id
        group by pool.sample_id
    ),
    unexplained as (
        select sample_id from counted where num_scores = 0 and not has_reason
    )
    select
        count(*) as num_pool,
        count(*) filter (where num_scores > 1) as num_repeated,
        count(*) filter (where num_scores = 0 and has_reason) as num_explained,
        count(*) filter (where num_scores = 0 and not has_reason) as num_unexplained,
        (
            select list(sample_id order by sample_id)
            from (from unexplained order by sample_id limit $num_examples)
        ) as examples
    from counted
"""


@dg.asset_check(asset="sample_scores", blocking=False)
def score_is_not_length(context: dg.AssetCheckExecutionContext, home: Home) -> dg.AssetCheckResult:
    """The score is no mere stand-in for the prompt's length."""
    correlation = _summary(context, "sample_scores").get("score_length_spearman")
    if correlation is None:
        return _result(True, "all scores or all lengths are equal: no rank correlation")
    return _result(
        abs(float(correlation)) <= MAX_LENGTH_CORRELATION,
        f"the rank correlation of score and prompt length is {correlation:+.2f}; beyond "
        f"{MAX_LENGTH_CORRELATION} in size the score ranks mostly by length: consider "
        f"scoring.reading or selection.debias",
        warn=True,
        score_length_spearman=float(correlation),
    )


@dg.asset_check(asset="head_ranking", blocking=False)
def reasoning_heads_are_confirmed(
    context: dg.AssetCheckExecutionContext, home: Home
) -> dg.AssetCheckResult:
    """Every chosen head costs loss on probes it was not chosen by."""
    summary = _summary(context, "head_ranking")
    names = summary["unconfirmed_heads"]
    return _result(
        not names,
        f"{len(names)} of {summary['num_reasoning_heads']} chosen heads are not confirmed at 5 % "
        f"(Holm) on the confirmation probes: {', '.join(names) or 'none'}",
        warn=True,
        num_unconfirmed_heads=len(names),
    )


@dg.asset_check(asset="subset", additional_deps=["sample_scores"], blocking=True)
def subset_is_the_budget(context: dg.AssetCheckExecutionContext, home: Home) -> dg.AssetCheckResult:
    """The subset holds exactly the budget, each sample once, all of them from the pool.

    A budget of tokens is filled until the next sample drawn overflows it. With `debias: length`
    only its upper bound is checked.
    """
    artifact, folder = _latest(context, home, "subset")
    members = folder / "subset_members.parquet"
    scores = _parent_folder(home, artifact, "sample_scores") / "scores.parquet"
    selection = SelectionSettings.model_validate(artifact.settings["selection"])
    counts = _count_members(home, members, scores)
    exact, budget = (
        _compare_with_number(selection, counts)
        if selection.budget.tokens is None
        else _compare_with_tokens(selection, counts["num_tokens"], members, scores)
    )
    whole = counts["num_members"] == counts["num_rows"] == counts["num_from_pool"]
    return _result(
        whole and exact,
        f"{counts['num_rows']} rows, {counts['num_members']} samples, {counts['num_from_pool']} of "
        f"the rows from the pool, {counts['num_tokens']} tokens; {budget}",
        num_tokens=counts["num_tokens"],
    )


def _count_members(home: Home, members: Path, scores: Path) -> dict[str, int]:
    sql = """
        with pool as (
            from read_parquet($scores)
        ),
        members as (
            from read_parquet($members)
        )
        select
            (select count(*) from pool) as num_pool,
            (select count(distinct sample_id) from members) as num_members,
            (select count(*) from members) as num_rows,
            (select count(*) from members semi join pool using (sample_id)) as num_from_pool,
            (select sum(num_tokens) from pool semi join members using (sample_id)) as num_tokens
    """
    params = {"scores": str(scores), "members": str(members)}
    [counts] = home.warehouse.query(sql, params).to_pylist()
    return {name: int(count or 0) for name, count in counts.items()}


def _compare_with_number(
    selection: SelectionSettings, counts: Mapping[str, int]
) -> tuple[bool, str]:
    budget = selection.budget
    wanted = budget.samples
    if wanted is None:
        wanted = math.floor((budget.fraction or 0.0) * counts["num_pool"] + 0.5)
    return counts["num_rows"] == wanted, f"the budget is {wanted} samples"


def _compare_with_tokens(
    selection: SelectionSettings, num_tokens: int, members: Path, scores: Path
) -> tuple[bool, str]:
    budget = selection.budget.tokens or 0
    within, said = num_tokens <= budget, f"the budget is {budget} tokens"
    if selection.debias != "none":
        return within, f"{said}; whether another sample fits is not checked with debias length"
    if not within:
        return False, said
    # Drawn again: the rule for where to stop is the draw's, and is written nowhere else.
    drawn = draw_subset(weigh_samples(pq.read_table(scores), selection), selection)
    expected = set(drawn["sample_id"].to_pylist())
    found = set(pq.read_table(members, columns=["sample_id"])["sample_id"].to_pylist())
    return found == expected, (
        f"{said}; drawn again it is {len(expected)} samples, of which {len(expected - found)} are "
        f"not in the subset, and {len(found - expected)} of the subset are not among them"
    )


@dg.asset_check(
    asset="pool",
    additional_deps=["probe_set", "corpus", dg.AssetKey(["settings", "decontamination"])],
    blocking=True,
)
def no_benchmark_problem_in_pool_or_probes(
    context: dg.AssetCheckExecutionContext, home: Home
) -> dg.AssetCheckResult:
    """No problem of a listed benchmark is in the pool or among the probes, controls included."""
    _, pool = _latest(context, home, "pool")
    _, probes = _latest(context, home, "probe_set")
    _, corpus = _latest(context, home, "corpus")
    benchmarks = home.settings().decontamination.benchmarks
    folder = home.folder / "benchmarks"
    problems = [p for b in benchmarks for p in load_problems(b, folder=folder)]
    samples = corpus / "samples"
    rows = pool_rows(home.warehouse, pool / "pool.parquet", samples)
    places = {
        "pool": read_samples(samples, rows=rows),
        "ranking probes": read_samples(probes / "ranking"),
        "confirmation probes": read_samples(probes / "confirmation"),
    }
    if (probes / "control").is_dir():  # a probe set may do without
        places["control probes"] = read_samples(probes / "control")
    found = {place: list(find_contaminated(rows, problems)) for place, rows in places.items()}
    said = ", ".join(f"{len(rows)} in the {place}" for place, rows in found.items())
    return _result(
        not any(found.values()),
        f"benchmark problems among the samples: {said}; {len(problems)} problems compared",
        num_problems=len(problems),
    )


@dg.asset_check(asset="checkpoint", blocking=True)
def checkpoint_loads_and_its_loss_fell(
    context: dg.AssetCheckExecutionContext, home: Home
) -> dg.AssetCheckResult:
    """The checkpoint loads whole, is finite and generates, and the training loss fell."""
    summary = _summary(context, "checkpoint")
    first, final = float(summary["first_loss_nats"]), float(summary["final_loss_nats"])
    faults = find_model_faults(home.tracking().model_folder(str(summary["mlflow_model_uri"])))
    return _result(
        not faults and final < first,
        f"the loss went from {first:.4f} to {final:.4f} nats a token; "
        + ("; ".join(faults) or "the model loads whole, is finite and generates"),
        num_faults=len(faults),
    )
