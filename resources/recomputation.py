"""Checks that run the model once more: some samples are scored again, some heads ablated again."""

import random
from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq

from circuitseer_assets.errors import CircuitSeerError
from circuitseer_assets.method.scorers import find_scorer
from circuitseer_assets.method.verification import NotCheckedError, is_close
from circuitseer_assets.records import Artifact, HeadImportance, HeadRanking, SampleScore
from circuitseer_assets.settings import BaseModelSettings
from resources.language_model import LanguageModel, load_language_model
from resources.recorded_model import ModelIdentities, find_base_model
from resources.row_checks import ranking_contradictions
from resources.sample_files import read_samples
from resources.stored_checks import Store
from resources.subset_chain import load_head_ranking
from resources.token_reader import heads_read

# Other batches round otherwise: measured at 1e-6 of a score and 4e-6 nats in float32.
_SCORE_TOLERANCE = {"float32": 1e-4}
_DELTA_TOLERANCE_NATS = {"float32": 1e-4}
_SHORT_TYPES_TOLERANCE = 1e-2


class Recomputation:
    """The base model that the artifacts were made with, loaded on first use."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.seed = seed
        self._model: tuple[BaseModelSettings, LanguageModel] | None = None
        self._identities = ModelIdentities()

    def rescore(self, num_samples: int) -> Iterator[str]:
        """Returns the samples, of so many drawn by lot, whose score comes out another."""
        for scores in self.store.of_stage("sample_scores"):
            yield from self._rescore(scores, num_samples)

    def _rescore(self, scores: Artifact, num_samples: int) -> Iterator[str]:
        store = self.store
        settings = store.home.changed(scoring=scores.settings["scoring"]).settings()
        scorer = find_scorer(settings.scoring)
        if scorer.compares_samples:
            raise NotCheckedError(f"a score by {settings.scoring.scorer} depends on the whole pool")
        ranking = self._ranking_of(store.parent(scores, "head_ranking"))
        pool = store.parent(scores, "pool")
        corpus = store.folder(store.parent(pool, "corpus")) / "samples"
        table = pq.read_table(store.folder(scores) / "scores.parquet")
        stored = dict(zip(table["sample_id"].to_pylist(), table["score"].to_pylist(), strict=True))
        drawn = _draw(sorted(stored), num_samples, self.seed)
        model = self._model_of(scores)
        heads = heads_read(ranking, settings.scoring, model) if scorer.uses_heads else ()
        reader = model.reader(heads, max_batch_tokens=settings.execution.max_batch_tokens)
        samples = read_samples(corpus, sample_ids=drawn)
        tolerance = _SCORE_TOLERANCE.get(scores.settings["dtype"], _SHORT_TYPES_TOLERANCE)
        for row in scorer.load()(reader, samples, settings.scoring):
            was = stored[row.sample_id]
            now = row.score if isinstance(row, SampleScore) else None
            if now is None or not is_close(was, now, relative=tolerance, absolute=1e-9):
                yield (
                    f"the score of {row.sample_id} comes out as {now} and is {was} in "
                    f"{scores.artifact_id}: it was edited, or another code made it; restore it "
                    f"from a backup, or make it anew"
                )

    def reablate(self, num_heads: int) -> Iterator[str]:
        """Returns the heads, of so many chosen ones drawn by lot, that now cost something else."""
        for ranking in self.store.of_stage("head_ranking"):
            yield from self._reablate(ranking, num_heads)

    def _reablate(self, ranking: Artifact, num_heads: int) -> Iterator[str]:
        from circuitseer_assets.method.head_effects import Progress, make_laboratory

        store = self.store
        settings = store.home.changed(head_ranking=ranking.settings["head_ranking"]).settings()
        stored = self._ranking_of(ranking).importance
        drawn = _draw_heads(stored, num_heads, self.seed)
        probes = store.folder(store.parent(ranking, "probe_set")) / "ranking"
        model = self._model_of(ranking)
        texts = [
            model.tokenize(sample.sample_id, sample.messages, sample.response)
            for sample in read_samples(probes)
        ]
        lab = make_laboratory(
            model.model,
            texts,
            settings.head_ranking,
            max_batch_tokens=settings.execution.max_batch_tokens,
            max_cached_layers=settings.execution.max_cached_layers,
        )
        which = np.isin(np.arange(len(lab.heads)), [lab.heads.index(row.head) for row in drawn])
        nobody = Progress(lambda done, total: None, int(which.sum()) * len(texts))
        effects = lab.measure(texts, which, nobody).effects
        tolerance = _DELTA_TOLERANCE_NATS.get(ranking.settings["dtype"], _SHORT_TYPES_TOLERANCE)
        for row in drawn:
            now = float(effects[lab.heads.index(row.head)].mean())
            if not is_close(row.delta_loss_nats, now, relative=0, absolute=tolerance):
                yield (
                    f"ablating head {row.head} costs {now:.5f} nats a token and "
                    f"{row.delta_loss_nats:.5f} in {ranking.artifact_id}: that was edited, or made "
                    f"by other code; restore it from a backup, or make it anew"
                )

    def _ranking_of(self, artifact: Artifact) -> HeadRanking:
        """Returns a stored ranking, whose files agree on which heads it is of.

        Raises:
            NotCheckedError: they do not, and what follows from it would be blamed on the rest.
        """
        folder = self.store.folder(artifact)
        if any(ranking_contradictions(folder)):
            raise NotCheckedError(f"the files of {artifact.artifact_id} contradict each other")
        return load_head_ranking(folder)

    def _model_of(self, artifact: Artifact) -> LanguageModel:
        """Returns the model that an artifact was made with.

        Raises:
            NotCheckedError: it is not there, or cannot be loaded.
        """
        home = self.store.home
        settings = find_base_model(home, artifact, self._identities)
        if self._model is None or self._model[0] != settings:
            try:
                self._model = settings, load_language_model(settings, cache=home.models)
            except CircuitSeerError as error:
                raise NotCheckedError(str(error)) from error
        return self._model[1]


def _draw(names: list[str], count: int, seed: int) -> set[str]:
    return set(random.Random(seed).sample(names, min(count, len(names))))


def _draw_heads(
    importance: tuple[HeadImportance, ...], count: int, seed: int
) -> list[HeadImportance]:
    """Returns heads that every ranking probe was measured with, chosen ones before others."""
    measured = [row for row in importance if row.measured_on_all]
    lots = random.Random(seed)
    order = sorted(measured, key=lambda row: (not row.is_reasoning_head, lots.random()))
    return order[:count]
