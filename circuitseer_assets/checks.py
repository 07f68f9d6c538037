"""Asset checks: what must hold of something already materialised before a later stage builds on it.

A blocking check that fails ends its run. The others warn.
"""

import math
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq

from circuitseer_assets.method.decontamination import find_contaminated
from circuitseer_assets.records import MAX_LENGTH_CORRELATION, Artifact
from resources.benchmarks import load_problems
from resources.home import Home
from resources.sample_files import read_samples


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
    """No score is NaN or infinite, and not all are the same."""
    _, folder = _latest(context, home, "sample_scores")
    scores = pq.read_table(folder / "scores.parquet")["score"].to_pylist()
    not_finite = sum(not math.isfinite(score) for score in scores)
    constant = len(scores) > 1 and min(scores) == max(scores)
    return _result(
        not_finite == 0 and not constant,
        f"{not_finite} of {len(scores)} scores are not finite"
        + ("; all scores are equal, so nothing is selected by them" if constant else ""),
        num_scores=len(scores),
    )


@dg.asset_check(asset="sample_scores", additional_deps=["pool"], blocking=True)
def one_score_a_sample(context: dg.AssetCheckExecutionContext, home: Home) -> dg.AssetCheckResult:
    """Every sample of the pool has one score, or one reason why it has none."""
    artifact, folder = _latest(context, home, "sample_scores")
    _, pool = _latest(context, home, "pool")
    counts = home.warehouse.query(
        """
        select
            count(*) as num_pool,
            count(scores.sample_id) as num_scored,
            count(*) - count(distinct pool.sample_id) as num_repeated
        from read_parquet($pool) as pool
        left join read_parquet($scores) as scores on pool.sample_id = scores.sample_id
        """,
        {"pool": str(pool / "pool.parquet"), "scores": str(folder / "scores.parquet")},
    ).to_pylist()[0]
    unscored = home.warehouse.unscored_sample_ids(artifact.settings["scorer_id"])
    num_missing = counts["num_pool"] - counts["num_scored"]
    num_explained = len(unscored)
    return _result(
        counts["num_repeated"] == 0 and num_missing <= num_explained,
        f"{counts['num_repeated']} samples have more than one score, {num_missing} have none, "
        f"{num_explained} of them with a reason",
        **counts,
    )


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
    """The subset holds exactly the budget, each sample once, all of them from the pool."""
    artifact, folder = _latest(context, home, "subset")
    _, scores = _latest(context, home, "sample_scores")
    counts = home.warehouse.query(
        """
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
        """,
        {
            "scores": str(scores / "scores.parquet"),
            "members": str(folder / "subset_members.parquet"),
        },
    ).to_pylist()[0]
    budget = artifact.settings["selection"]["budget"]
    wanted = budget["samples"] or (
        math.floor(budget["fraction"] * counts["num_pool"] + 0.5) if budget["fraction"] else None
    )
    whole = counts["num_members"] == counts["num_rows"] == counts["num_from_pool"]
    num_tokens = int(counts["num_tokens"])
    exact = counts["num_rows"] == wanted if wanted else num_tokens <= budget["tokens"]
    return _result(
        whole and exact,
        f"{counts['num_rows']} rows, {counts['num_members']} samples, {counts['num_from_pool']} of "
        f"them from the pool, {num_tokens} tokens; the budget is {wanted or budget['tokens']} "
        f"{'samples' if wanted else 'tokens'}",
        num_tokens=num_tokens,
    )


@dg.asset_check(
    asset="pool",
    additional_deps=["probe_set", "corpus", dg.AssetKey(["settings", "decontamination"])],
    blocking=True,
)
def no_benchmark_problem_in_pool_or_probes(
    context: dg.AssetCheckExecutionContext, home: Home
) -> dg.AssetCheckResult:
    """No problem of a listed benchmark is in the pool or among the probes."""
    _, pool = _latest(context, home, "pool")
    _, probes = _latest(context, home, "probe_set")
    _, corpus = _latest(context, home, "corpus")
    benchmarks = home.settings().decontamination.benchmarks
    folder = home.folder / "benchmarks"
    problems = [p for b in benchmarks for p in load_problems(b, folder=folder)]
    ids = set(pq.read_table(pool / "pool.parquet", columns=["sample_id"])["sample_id"].to_pylist())
    places = {
        "pool": read_samples(corpus / "samples", sample_ids=ids),
        "ranking probes": read_samples(probes / "ranking"),
        "confirmation probes": read_samples(probes / "confirmation"),
    }
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
    """The checkpoint's weights can be read and are finite, and the training loss fell."""
    summary = _summary(context, "checkpoint")
    first, final = float(summary["first_loss_nats"]), float(summary["final_loss_nats"])
    model = home.tracking().model_folder(str(summary["mlflow_model_uri"]))
    num_weights, num_bad = count_weights(model)
    return _result(
        num_weights > 0 and num_bad == 0 and final < first,
        f"the loss went from {first:.4f} to {final:.4f} nats a token; {num_bad} of {num_weights} "
        f"tensors hold values that are not finite",
        num_tensors=num_weights,
    )


def count_weights(model: Path) -> tuple[int, int]:
    """Returns how many tensors a model folder holds, and how many have non-finite values."""
    import torch
    from safetensors import safe_open

    num_tensors = num_bad = 0
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                num_tensors += 1
                num_bad += not bool(torch.isfinite(tensors.get_tensor(name)).all())
    return num_tensors, num_bad
