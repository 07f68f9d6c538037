"""Stage sample_scores: every pool sample's score, computed once for a model, heads and formula."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import pyarrow.parquet as pq

from circuitseer_assets.assets.head_ranking import load_heads
from circuitseer_assets.assets.slices import settings_key
from circuitseer_assets.assets.stage import Made, Materialised, StageRun
from circuitseer_assets.errors import CorpusError
from circuitseer_assets.method.figures import (
    draw_score_against_length,
    spearman,
    to_markdown_image,
)
from circuitseer_assets.method.head_sets import choose_heads
from circuitseer_assets.method.readings import find_reading
from circuitseer_assets.method.scorers import find_scorer, reads_response
from circuitseer_assets.method.tables import format_samples_table
from circuitseer_assets.records import (
    Artifact,
    HeadId,
    ModelUse,
    SampleScore,
    artifact_id_of,
    digest_of,
)
from circuitseer_assets.settings import Settings
from resources.home import Home
from resources.language_model import LanguageModel, load_language_model
from resources.paced_commits import Pace, ScoreCommits
from resources.pool_scores import (
    Rows,
    first_of_each_prompt,
    length_rows,
    missing_rows,
    pool_rows,
    read_extremes,
    share_scores,
    unmeasured_rows,
    write_pool_scores,
)
from resources.sample_files import read_samples

CODE_VERSION = "1"
_Item = TypeVar("_Item")
NUM_EXAMPLES = 5
WAITING_FILE = "waiting_scores.jsonl"


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
    scoring = run.settings.slice("scoring")
    scorer_id = _identify_scorer(run, pool, ranking)
    identity = {"scoring": scoring, "scorer_id": scorer_id, **model_identity}
    parents = [pool, ranking]
    ids = [parent.artifact_id for parent in parents]
    scores_id = artifact_id_of("sample_scores", identity, ids, CODE_VERSION)
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


@dataclass(frozen=True)
class PoolScorer:
    """Scores what a pool lacks, shard by shard, and writes the pool's scores."""

    settings: Settings
    home: Home
    scorer_id: str
    tokenizer_id: str
    ranking: Path
    pool: Path
    corpus: Path
    work: Path
    report_progress: Callable[[int, int], None]

    def score_pool(self, folder: Path) -> Made:
        """Returns the pool's scores, of which only missing ones were computed."""
        warehouse = self.home.warehouse
        commits = ScoreCommits(warehouse, self.scorer_id, self.work / WAITING_FILE)
        self._share_scores()
        missing = missing_rows(warehouse, self.scorer_id, self.pool, self.corpus)
        unmeasured = unmeasured_rows(warehouse, self.tokenizer_id, self.pool, self.corpus)
        num_truncated, model_use = 0, ModelUse()
        heads = self._choose_heads(None)
        if missing.any() or unmeasured.any():
            from circuitseer_assets.method.forwards import count_forwards

            base_model = load_language_model(self.settings.base_model, cache=self.home.models)
            self._measure_lengths(base_model, unmeasured)
            with count_forwards(base_model.model) as counted:
                heads = self._choose_heads(base_model)
                num_truncated = self._score_samples(base_model, missing, heads, commits)
            model_use = counted.use
        self._share_scores()
        file = folder / "scores.parquet"
        num_scored = write_pool_scores(
            warehouse, self.scorer_id, self.tokenizer_id, self.pool, file
        )
        num_pool = pq.read_metadata(self.pool).num_rows
        if num_scored == 0:
            raise CorpusError(
                f"at least one pool sample must have a score, none of {num_pool} has; the table "
                f"unscored_samples says why; raise scoring.max_tokens or lower scoring.min_tokens"
            )
        summary = {
            "num_scored": num_scored,
            "num_scored_anew": int(missing.sum()),
            "num_truncated_anew": num_truncated,
            "num_unscored": num_pool - num_scored,
            "scorer_id": self.scorer_id,
            **({"heads_read": [str(head) for head in heads]} if heads else {}),
            **summarise_scores(file, self._texts_of),
        }
        return Made(data=["scores.parquet"], summary=summary, model_use=model_use)

    def _share_scores(self) -> None:
        if not self._reads_response:  # else equal prompts have scores of their own
            share_scores(self.home.warehouse, self.scorer_id, self.pool)

    @property
    def _reads_response(self) -> bool:
        return reads_response(self.settings.scoring)

    def _measure_lengths(self, base_model: LanguageModel, rows: Rows) -> None:
        lengths: dict[str, tuple[int, int]] = {}
        pace = Pace()

        def commit() -> None:
            with pace.committing():
                self.home.warehouse.append_lengths(length_rows(self.tokenizer_id, lengths))
            lengths.clear()

        for sample in read_samples(self.corpus, rows=rows):
            text = base_model.tokenize(sample.sample_id, sample.messages, sample.response)
            num_response = len(text.input_ids) - text.response_start
            lengths[sample.sample_id] = (text.response_start, num_response)
            if pace.is_due:
                commit()
        commit()

    def _score_samples(
        self,
        base_model: LanguageModel,
        missing: Rows,
        heads: Sequence[HeadId],
        commits: ScoreCommits,
    ) -> int:
        """Returns how many of the samples were cut to what is read, after scoring them all."""
        from circuitseer_assets.method.reader import Reader

        scorer = find_scorer(self.settings.scoring)
        reader = Reader(
            model=base_model.model,
            tokenize=base_model.tokenize,
            heads=tuple(heads),
            find_token=base_model.find_token,
            max_batch_tokens=self.settings.execution.max_batch_tokens,
        )
        # A scorer that compares samples needs them all, also those a killed run has committed.
        wanted = self._pool_rows() if scorer.compares_samples else missing
        if not self._reads_response:  # of samples with equal prompts one is enough
            wanted = first_of_each_prompt(self.home.warehouse, self.corpus, wanted)
        samples = read_samples(self.corpus, rows=wanted)
        size, num_wanted = self.settings.execution.shard_samples, int(wanted.sum())
        score, settings = scorer.load(), self.settings.scoring
        if scorer.compares_samples:
            shards = _shards(score(reader, samples, settings), size)
        else:
            # A shard's samples are read together and by themselves: a run that was killed forms the
            # same batches again behind the last shard, and gives the same scores to the last digit.
            shards = (list(score(reader, shard, settings)) for shard in _shards(samples, size))
        done = num_truncated = 0
        for shard in shards:
            commits.add(shard)
            done += len(shard)
            num_truncated += sum(isinstance(r, SampleScore) and r.is_truncated for r in shard)
            self.report_progress(done, num_wanted)
        commits.commit()
        return num_truncated

    def _pool_rows(self) -> Rows:
        return pool_rows(self.home.warehouse, self.pool, self.corpus)

    def _choose_heads(self, base_model: LanguageModel | None) -> Sequence[HeadId]:
        """Returns the heads the scorer reads; without a model none where it takes one to find."""
        scoring, ranked = self.settings.scoring, load_heads(self.ranking)
        if not find_scorer(scoring).uses_heads:
            return ()
        retrieval: Sequence[HeadId] = ()
        if scoring.heads == "retrieval":
            if base_model is None:
                return ()
            from circuitseer_assets.method.retrieval_heads import find_retrieval_heads

            num_chosen = len(ranked.reasoning_heads)
            retrieval = find_retrieval_heads(
                base_model.model, num_chosen=num_chosen, seed=scoring.seed
            )
        return choose_heads(
            ranked.reasoning_heads,
            ranked.num_layers,
            ranked.num_heads,
            scoring,
            retrieval_heads=retrieval,
        )

    def _texts_of(self, sample_ids: Iterable[str]) -> dict[str, str]:
        samples = read_samples(self.corpus, sample_ids=set(sample_ids))
        return {sample.sample_id: sample.prompt for sample in samples}


def summarise_scores(
    file: Path, texts_of: Callable[[Iterable[str]], dict[str, str]]
) -> dict[str, Any]:
    """Returns what the UI shows of a file of scores: against length, and the extremes' texts."""
    columns = pq.read_table(file, columns=["score", "num_prompt_tokens"])
    values, lengths = (columns[name].to_numpy() for name in columns.column_names)
    summary: dict[str, Any] = {
        "min_score": float(values.min()),
        "max_score": float(values.max()),
    }
    if values.min() < values.max() and lengths.min() < lengths.max():
        correlation = spearman(lengths, values)
        image = draw_score_against_length(lengths, values, correlation)
        summary["score_length_spearman"] = correlation
        summary["score_against_length_md"] = to_markdown_image(image, "score against length")
    ranked = read_extremes(file, NUM_EXAMPLES)
    texts = texts_of(row["sample_id"] for row in ranked.values())
    summary["highest_and_lowest_md"] = format_samples_table(
        [
            (
                i + 1,
                row["sample_id"],
                row["score"],
                row["num_prompt_tokens"],
                texts[row["sample_id"]],
            )
            for i, row in ranked.items()
        ]
    )
    return summary


def _shards(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    remaining = iter(items)
    while shard := list(itertools.islice(remaining, size)):
        yield shard
