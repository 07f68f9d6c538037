"""Reads what the audit's page tells of a run: from the warehouse, the artifacts and the model."""

import importlib.metadata
import itertools
import json
import platform
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from circuitseer_assets.errors import ArtifactError
from circuitseer_assets.method.audit import Lineage
from circuitseer_assets.method.composition import Composition, compare_composition
from circuitseer_assets.method.evaluation import compare, summarise
from circuitseer_assets.method.explanation import Explanation
from circuitseer_assets.method.paired_outcomes import PairedProblems, pair_problems
from circuitseer_assets.method.report import (
    AnsweredProblem,
    PoolReport,
    RemovedSample,
    Report,
    ScoreReport,
    TaskReport,
)
from circuitseer_assets.method.scorers import find_scorer
from circuitseer_assets.records import Artifact, Outcome
from circuitseer_assets.settings import Benchmark
from resources.benchmarks import load_problems
from resources.corpora import columns_of
from resources.home import Home
from resources.pool_scores import read_extremes
from resources.recorded_model import recorded_settings
from resources.sample_explanation import explain_samples
from resources.sample_files import read_samples
from resources.subset_chain import SubsetChain
from resources.token_reader import TokenReader, open_token_reader

NUM_EXTREMES, NUM_BORDER, NUM_EXAMPLES = 3, 2, 4
_PACKAGES = (
    "circuitseer",
    "dagster",
    "duckdb",
    "lm-eval",
    "mlflow",
    "numpy",
    "pyarrow",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
)
_OUTCOMES = """
select task, doc_id, repeat, correct, truncated from evaluation_outcomes
where evaluation_id = $evaluation_id order by rowid
"""
_MODEL_NAME = "select name from base_models where model_digest = $model_digest"
_QUARANTINED = "select reason from quarantined_samples where corpus_id = $corpus_id"


def read_report(home: Home, lineage: Lineage, audit_id: str) -> Report:
    """Returns everything the page of an audit tells.

    Args:
        home: where the run is.
        lineage: of the evaluation, with facts.
        audit_id: the audit's own.

    Raises:
        ArtifactError: something the evaluation was made from is gone.
        ModelError: the base model, which shows what its heads look at, cannot be loaded.
    """
    by_stage = {artifact.stage: artifact for artifact in reversed(lineage.artifacts)}
    chain = SubsetChain.of(home, by_stage["subset"].artifact_id)
    evaluation, checkpoint = lineage.artifacts[0], by_stage["checkpoint"]
    with open_token_reader(chain) as reader:
        scores, samples = read_scores(chain, reader), _read_samples(chain, reader)
    return Report(
        audit_id=audit_id,
        base_model=_model_name(chain),
        lineage=lineage,
        pool=_read_pool(chain),
        ranking=chain.head_ranking,
        head_settings=chain.ranking.settings["head_ranking"],
        scores=scores,
        selection=chain.subset.settings["selection"],
        training=chain.summary(checkpoint),
        compositions=_read_compositions(chain),
        samples=samples,
        tasks=_read_tasks(chain, evaluation, _base_of(lineage, evaluation)),
        settings_yaml=settings_as_yaml(chain, checkpoint, evaluation),
        versions={"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
    )


def settings_as_yaml(chain: SubsetChain, checkpoint: Artifact, evaluation: Artifact) -> str:
    """Returns a settings file that gives the same run again, from what the artifacts recorded.

    The base model is the one that the ranking was made with, where that is recorded.
    """
    in_use = chain.home.settings()
    base_model = recorded_settings(chain.home, chain.ranking) or in_use.base_model
    values = {
        "preset": in_use.preset,
        "base_model": base_model.model_dump(mode="json"),
        "corpus": chain.corpus.settings["corpus"],
        "decontamination": chain.pool.settings["decontamination"],
        "probe_set": chain.pool.settings["probe_set"],
        "head_ranking": chain.ranking.settings["head_ranking"],
        "scoring": chain.scores.settings["scoring"],
        "selection": chain.subset.settings["selection"],
        "training": checkpoint.settings["training"],
        "evaluation": evaluation.settings["evaluation"],
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _model_name(chain: SubsetChain) -> str:
    digest = chain.scores.settings["model_digest"]
    rows = chain.home.warehouse.query(_MODEL_NAME, {"model_digest": digest}).to_pylist()
    return str(rows[0]["name"]) if rows else f"the model {digest}"


def _base_of(lineage: Lineage, evaluation: Artifact) -> Artifact:
    """Returns the evaluation of the base model, which that of the checkpoint names."""
    for artifact in lineage.artifacts[1:]:
        if artifact.stage == "evaluation" and artifact.artifact_id in evaluation.parents:
            return artifact
    raise ArtifactError(
        f"{evaluation.artifact_id} must name the base model's evaluation as a parent, got "
        f"{', '.join(evaluation.parents)}; materialise the evaluation again"
    )


# selection ----------------------------------------------------------------------------------------


def _read_pool(chain: SubsetChain) -> PoolReport:
    quarantined = chain.home.warehouse.query(_QUARANTINED, {"corpus_id": chain.corpus.artifact_id})
    reasons = Counter(quarantined["reason"].to_pylist())
    benchmarks = chain.pool.settings["decontamination"]["benchmarks"]
    summary = chain.summary(chain.pool)
    return PoolReport(
        num_samples=chain.summary(chain.corpus)["num_samples"],
        num_quarantined=sum(reasons.values()),
        quarantined_by_reason=dict(reasons),
        num_probes=len(chain.probes.ranking) + len(chain.probes.confirmation),
        num_pool=summary["num_samples"],
        num_removed=summary["num_contaminated"],
        removed_by_rule=summary["contaminated_by_rule"],
        benchmarks=tuple(benchmark["task"] for benchmark in benchmarks),
        removed=_read_removed(chain, benchmarks),
    )


def _read_removed(
    chain: SubsetChain, benchmarks: list[dict[str, Any]]
) -> tuple[RemovedSample, ...]:
    """Returns a few removed samples: the first of every rule, then more of the first rule."""
    matches: dict[str, dict[str, str]] = {}
    for row in chain.contaminated:
        matches.setdefault(row["sample_id"], row)
    by_rule: dict[str, dict[str, str]] = {}
    for row in matches.values():
        by_rule.setdefault(row["rule"], row)
    shown = [*by_rule.values(), *(r for r in matches.values() if r not in by_rule.values())]
    shown = shown[:NUM_EXAMPLES]
    wanted = {row["sample_id"] for row in shown}
    prompts = {s.sample_id: s.prompt for s in read_samples(chain.samples, sample_ids=wanted)}
    problems = _read_problems(chain.home, benchmarks, {row["task"] for row in shown})
    return tuple(
        RemovedSample(
            **row, prompt=prompts[row["sample_id"]], problem=problems[row["task"], row["doc_id"]]
        )
        for row in shown
    )


def _read_problems(
    home: Home, benchmarks: Iterable[dict[str, Any]], tasks: Collection[str]
) -> dict[tuple[str, str], str]:
    """Returns the text of every problem of these tasks, by task and id."""
    return {
        (problem.task, problem.doc_id): problem.prompt
        for values in benchmarks
        if values["task"] in tasks
        for problem in load_problems(
            Benchmark.model_validate_json(json.dumps(values)), folder=home.folder / "benchmarks"
        )
    }


def read_scores(chain: SubsetChain, reader: TokenReader) -> ScoreReport:
    """Returns the scores that a subset was drawn by, and the heads that they are of."""
    pool, members = chain.pool_scores, pa.array(chain.members, pa.string())
    summary = chain.summary(chain.scores)
    return ScoreReport(
        scoring=chain.scoring,
        heads=tuple(map(str, reader.heads)) if find_scorer(chain.scoring).uses_heads else (),
        scores=pool["score"].to_numpy(),
        num_prompt_tokens=pool["num_prompt_tokens"].to_numpy(),
        is_drawn=pc.is_in(pool["sample_id"], value_set=members).to_numpy(),
        length_correlation=summary.get("score_length_spearman"),
        num_unscored=summary["num_unscored"],
        draw=chain.summary(chain.subset),
    )


def _read_compositions(chain: SubsetChain) -> tuple[Composition, ...]:
    columns = columns_of(chain.home.settings().corpus).model_dump()
    texts = {column for column in columns.values() if column is not None}
    return compare_composition(read_samples(chain.samples), chain.members, texts)


def _read_samples(chain: SubsetChain, reader: TokenReader) -> dict[str, list[Explanation]]:
    extremes = read_extremes(chain.scores_file, NUM_EXTREMES)
    ranked = [row["sample_id"] for row in extremes.values()]
    num_last = min(NUM_BORDER, len(chain.members))
    border = chain.order.in_order(len(chain.members) - num_last, num_last + NUM_BORDER)
    groups = {
        "Highest scores": ranked[:NUM_EXTREMES],
        "Lowest scores": ranked[-NUM_EXTREMES:],
        "Last to be drawn": border[:num_last],
        "First not to be drawn": border[num_last:],
    }
    shown = list(dict.fromkeys(itertools.chain(*groups.values())))
    explained = dict(zip(shown, explain_samples(chain, shown, reader), strict=True))
    return {
        title: [explained[sample_id] for sample_id in sample_ids]
        for title, sample_ids in groups.items()
        if sample_ids
    }


# evaluation ---------------------------------------------------------------------------------------


def _read_tasks(chain: SubsetChain, evaluation: Artifact, base: Artifact) -> tuple[TaskReport, ...]:
    before, after = (_read_outcomes(chain.home, one) for one in (base, evaluation))
    summaries = [{one.task: one for one in summarise(outcomes)} for outcomes in (before, after)]
    differences = {one.task: one for one in compare(before, after)}
    paired = {one.task: one for one in pair_problems(before, after)}
    shown = {
        (task, doc_id) for task, problems in paired.items() for doc_id in _first_changed(problems)
    }
    texts = _read_problems(chain.home, evaluation.settings["benchmarks"], {t for t, _ in shown})
    responses = [_read_responses(chain.folder(one), shown) for one in (base, evaluation)]

    def answered(task: str, doc_ids: tuple[str, ...]) -> tuple[AnsweredProblem, ...]:
        keys = [(task, doc_id) for doc_id in doc_ids[:NUM_EXAMPLES]]
        return tuple(
            AnsweredProblem(key[1], texts[key], responses[0][key], responses[1][key])
            for key in keys
        )

    return tuple(
        TaskReport(
            base=summaries[0][task],
            checkpoint=summaries[1][task],
            difference=differences[task],
            paired=problems,
            newly_solved=answered(task, problems.newly_solved),
            newly_lost=answered(task, problems.newly_lost),
        )
        for task, problems in paired.items()
    )


def _first_changed(problems: PairedProblems) -> list[str]:
    return [*problems.newly_solved[:NUM_EXAMPLES], *problems.newly_lost[:NUM_EXAMPLES]]


def _read_outcomes(home: Home, evaluation: Artifact) -> list[Outcome]:
    rows = home.warehouse.query(_OUTCOMES, {"evaluation_id": evaluation.artifact_id})
    return [Outcome(**row) for row in rows.to_pylist()]


def _read_responses(
    folder: Path, wanted: Collection[tuple[str, str]]
) -> dict[tuple[str, str], str]:
    """Returns the first answer to each of these problems."""
    responses: dict[tuple[str, str], str] = {}
    with (folder / "responses.jsonl").open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            key = (row["task"], row["doc_id"])
            if key in wanted:
                responses.setdefault(key, row["response"])
    return responses
