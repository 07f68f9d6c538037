"""Scores what a pool lacks, here or by workers on Ray, and writes the pool's scores."""

import contextlib
import gc
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq

from circuitseer_assets.assets.head_ranking import load_heads
from circuitseer_assets.assets.stage import Made
from circuitseer_assets.errors import CorpusError
from circuitseer_assets.method.figures import (
    draw_score_against_length,
    spearman,
    to_markdown_image,
)
from circuitseer_assets.method.head_sets import choose_heads
from circuitseer_assets.method.scorers import find_scorer, reads_response
from circuitseer_assets.method.tables import format_samples_table
from circuitseer_assets.records import (
    HeadId,
    ModelUse,
    Sample,
    SampleLength,
    SampleScore,
    UnscoredSample,
)
from circuitseer_assets.settings import Settings
from resources.home import Home
from resources.language_model import (
    LanguageModel,
    identify_model,
    load_language_model,
    resolve_dtype,
)
from resources.paced_commits import PacedCommits, length_commits, score_commits
from resources.pool_scores import (
    Rows,
    first_of_each_prompt,
    missing_rows,
    pool_rows,
    read_extremes,
    share_scores,
    unmeasured_rows,
    write_pool_scores,
)
from resources.sample_files import read_samples
from resources.score_shards import ScoredShard, ScoreShards

log = logging.getLogger("circuitseer")
_Item = TypeVar("_Item")
NUM_EXAMPLES = 5
WAITING_FILE, WAITING_LENGTHS_FILE = "waiting_scores.jsonl", "waiting_lengths.jsonl"


@dataclass(frozen=True)
class _Anew:
    """What was computed for a pool: by which heads, how many texts were cut, and at what cost."""

    heads: Sequence[HeadId]
    num_truncated: int
    model_use: ModelUse


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
        commits = score_commits(warehouse, self.scorer_id, self.work / WAITING_FILE)
        self._length_commits()  # of a killed run: before what is unmeasured is asked
        self._take_over_shards(commits)
        self._share_scores()
        missing = missing_rows(warehouse, self.scorer_id, self.pool, self.corpus)
        unmeasured = unmeasured_rows(warehouse, self.tokenizer_id, self.pool, self.corpus)
        if missing.any() or unmeasured.any():
            anew = self._score_missing(missing, unmeasured, commits)
        else:
            anew = _Anew(self._choose_heads(None), 0, ModelUse())
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
            "num_truncated_anew": anew.num_truncated,
            "num_unscored": num_pool - num_scored,
            "scorer_id": self.scorer_id,
            **({"heads_read": [str(head) for head in anew.heads]} if anew.heads else {}),
            **summarise_scores(file, self._texts_of),
        }
        return Made(data=["scores.parquet"], summary=summary, model_use=anew.model_use)

    @property
    def shards(self) -> ScoreShards:
        """Those of workers elsewhere, which know them by the same path."""
        return ScoreShards((self.work / "shards").resolve())

    def _take_over_shards(self, commits: PacedCommits) -> None:
        """Commits the shards that workers of a run that died had finished; torn ones are lost."""
        for name in self.shards.scored():
            commits.add(self.shards.read_scores(name).results)
        commits.commit()
        self.shards.clear()

    def _share_scores(self) -> None:
        if not self._reads_response:  # else equal prompts have scores of their own
            share_scores(self.home.warehouse, self.scorer_id, self.pool)

    @property
    def _reads_response(self) -> bool:
        return reads_response(self.settings.scoring)

    def _score_missing(self, missing: Rows, unmeasured: Rows, commits: PacedCommits) -> _Anew:
        """Returns what was computed, after every sample has a score and a length."""
        if self.settings.execution.scoring.backend == "local":
            return self._compute_here(missing, unmeasured, commits)
        if find_scorer(self.settings.scoring).compares_samples:
            name = self.settings.scoring.scorer
            log.info(
                "the scorer %s compares samples with each other: it runs here, not on Ray", name
            )
            return self._compute_here(missing, unmeasured, commits)
        if unmeasured.any() or self.settings.scoring.heads == "retrieval":
            prepared = self._compute_here(np.zeros_like(missing), unmeasured, commits)
            gc.collect()  # the workers need the memory, and a model's modules refer to each other
        else:
            prepared = _Anew(self._choose_heads(None), 0, ModelUse())
        return self._score_on_ray(missing, prepared, commits) if missing.any() else prepared

    def _compute_here(self, missing: Rows, unmeasured: Rows, commits: PacedCommits) -> _Anew:
        from circuitseer_assets.method.forwards import count_forwards

        base_model = load_language_model(self.settings.base_model, cache=self.home.models)
        self._measure_lengths(base_model, unmeasured)
        with count_forwards(base_model.model) as counted:
            heads = self._choose_heads(base_model)
            num_truncated = (
                self._score_here(base_model, missing, heads, commits) if missing.any() else 0
            )
        return _Anew(heads, num_truncated, counted.use)

    def _measure_lengths(self, base_model: LanguageModel, rows: Rows) -> None:
        """Measures shard by shard: what a kill loses is one shard's lengths, and no more."""
        commits = self._length_commits()
        for shard in self._sample_shards(rows):
            commits.add([_measure(base_model, sample) for sample in shard])
        commits.commit()

    def _length_commits(self) -> PacedCommits:
        path = self.work / WAITING_LENGTHS_FILE
        return length_commits(self.home.warehouse, self.tokenizer_id, path)

    def _score_here(
        self,
        base_model: LanguageModel,
        missing: Rows,
        heads: Sequence[HeadId],
        commits: PacedCommits,
    ) -> int:
        """Returns how many of the samples were cut to what is read, after scoring them all."""
        execution, settings = self.settings.execution, self.settings.scoring
        reader = base_model.reader(heads, max_batch_tokens=execution.max_batch_tokens)
        scorer = find_scorer(settings)
        score = scorer.load()
        if scorer.compares_samples:
            # It needs them all, also those a killed run has committed.
            wanted = self._without_twins(pool_rows(self.home.warehouse, self.pool, self.corpus))
            samples = read_samples(self.corpus, rows=wanted)
            shards = _shards(score(reader, samples, settings), execution.shard_samples)
        else:
            # A shard's samples are read together and by themselves: a run that was killed forms the
            # same batches again behind the last shard, and gives the same scores to the last digit.
            wanted = self._without_twins(missing)
            shards = (list(score(reader, shard, settings)) for shard in self._sample_shards(wanted))
        return self._commit(shards, int(wanted.sum()), commits)

    def _score_on_ray(self, missing: Rows, prepared: _Anew, commits: PacedCommits) -> _Anew:
        from resources.ray_scoring import ScoringJob, method_version, score_on_ray

        execution, base_model = self.settings.execution, self.settings.base_model
        job = ScoringJob(
            # The number format of this machine: that of a worker's may be another.
            base_model=base_model.model_copy(update={"dtype": resolve_dtype(base_model)}),
            scoring=self.settings.scoring,
            heads=tuple(prepared.heads),
            max_batch_tokens=execution.max_batch_tokens,
            models=self.home.models,
            shards=self.shards.folder,
            identity=identify_model(base_model, cache=self.home.models),
            method_version=method_version(),
            gpus_per_worker=execution.scoring.gpus_per_worker,
        )
        wanted = self._without_twins(missing)
        names = self.shards.write_samples(self._sample_shards(wanted))
        uses = [prepared.model_use]

        def results_of(shard: ScoredShard) -> Sequence[SampleScore | UnscoredSample]:
            uses.append(shard.model_use)
            return shard.results

        # Closed, whatever a commit raises: Ray's processes end with it.
        with contextlib.closing(score_on_ray(job, names, execution)) as scored:
            num_truncated = self._commit(map(results_of, scored), int(wanted.sum()), commits)
        self.shards.clear()
        return _Anew(prepared.heads, num_truncated, _total(uses))

    def _commit(
        self,
        shards: Iterable[Sequence[SampleScore | UnscoredSample]],
        num_wanted: int,
        commits: PacedCommits,
    ) -> int:
        """Returns how many samples were cut, after committing one shard after the other."""
        done = num_truncated = 0
        for shard in shards:
            commits.add(shard)
            done += len(shard)
            num_truncated += sum(isinstance(r, SampleScore) and r.is_truncated for r in shard)
            self.report_progress(done, num_wanted)
        commits.commit()
        return num_truncated

    def _without_twins(self, rows: Rows) -> Rows:
        """Returns the rows, of samples with equal prompts one, where the prompt alone is read."""
        if self._reads_response:
            return rows
        return first_of_each_prompt(self.home.warehouse, self.corpus, rows)

    def _sample_shards(self, rows: Rows) -> Iterator[list[Sample]]:
        samples = read_samples(self.corpus, rows=rows)
        return _shards(samples, self.settings.execution.shard_samples)

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


def _measure(base_model: LanguageModel, sample: Sample) -> SampleLength:
    text = base_model.tokenize(sample.sample_id, sample.messages, sample.response)
    num_response = len(text.input_ids) - text.response_start
    return SampleLength(sample.sample_id, text.response_start, num_response)


def _total(uses: Iterable[ModelUse]) -> ModelUse:
    forwards, tokens = zip(*((use.num_forwards, use.num_tokens) for use in uses), strict=True)
    return ModelUse(math.fsum(forwards), sum(tokens))


def _shards(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    remaining = iter(items)
    while shard := list(itertools.islice(remaining, size)):
        yield shard
