"""Stage sample_scores: every pool sample's score, computed once for a model, heads and formula."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from circuitseer_assets.assets.head_ranking import load_heads
from circuitseer_assets.assets.pool_scorer import PoolScorer
from circuitseer_assets.assets.slices import settings_key
from circuitseer_assets.assets.stage import Materialised, StageRun
from circuitseer_assets.method.head_sets import choose_heads
from circuitseer_assets.method.readings import find_reading
from circuitseer_assets.method.scorers import find_scorer
from circuitseer_assets.records import Artifact, HeadId, artifact_id_of, digest_of
from resources.home import Home

CODE_VERSION = "1"


@dg.asset(
    group_name="sample_scores",
    kinds={"pytorch", "duckdb", "parquet"},
    deps=["pool", "head_ranking", settings_key("base_model"), settings_key("scoring")],
    code_version=CODE_VERSION,
    description="What every sample of the pool is selected by: how unevenly the reasoning heads' "
    "attention is spread over its prompt, unless `scoring.scorer` names another score.",
)
def sample_scores(context: dg.AssetExecutionContext, home: Home) -> dg.MaterializeResult[Any]:
    """Scores the samples of the pool that have no score by this scorer yet."""
    run = StageRun.of(context, home, "base_model", "scoring")
    return run.result(make_sample_scores(run))


def make_sample_scores(run: StageRun) -> Materialised:
    """Returns the scores of the latest pool by the heads of the latest ranking."""
    pool, ranking = run.parent("pool"), run.parent("head_ranking")
    model_identity = run.home.model_identity()
    scorer_id = _identify_scorer(run, pool, ranking)
    scoring = run.settings.slice("scoring")
    identity = {"scoring": scoring, "scorer_id": scorer_id, **model_identity}
    parents = [pool, ranking]
    scores_id = artifact_id_of(
        "sample_scores", identity, [parent.artifact_id for parent in parents], CODE_VERSION
    )
    scorer = PoolScorer(
        settings=run.settings,
        home=run.home,
        scorer_id=scorer_id,
        tokenizer_id=model_identity["tokenizer_id"],
        ranking=run.folder(ranking),
        pool=run.folder(pool) / "pool.parquet",
        corpus=run.folder(run.ancestor(pool, "corpus")) / "samples",
        work=run.work_folder(scores_id),
        report_progress=run.progress("sample_scores"),
    )
    return run.reuse_or_make(
        "sample_scores",
        identity,
        parents,
        scorer.score_pool,
        code_version=CODE_VERSION,
    )


def _identify_scorer(run: StageRun, pool: Artifact, ranking: Artifact) -> str:
    """Returns the identity of everything a score depends on besides the sample."""
    scorer = find_scorer(run.settings.scoring)
    if run.settings.scoring.scorer == "attention":
        find_reading(run.settings.scoring)  # an unknown one is refused before any work starts
    depends_on = ["scorer", CODE_VERSION, run.settings.slice("scoring"), run.home.model_identity()]
    if scorer.uses_heads:
        depends_on.append([str(head) for head in _heads_of(run, ranking)])
    if scorer.compares_samples:
        depends_on.append(pool.data_version)
    return digest_of(depends_on)


def _heads_of(run: StageRun, ranking: Artifact) -> Sequence[HeadId]:
    """Returns the heads that decide a score: those read, or those they are looked for by."""
    ranked, scoring = load_heads(run.folder(ranking)), run.settings.scoring
    if scoring.heads != "random":
        return ranked.reasoning_heads
    return choose_heads(ranked.reasoning_heads, ranked.num_layers, ranked.num_heads, scoring)
