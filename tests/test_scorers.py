"""Every scorer of the registry in the real graph: what it selects, and when it is asked again."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from circuitseer_assets.method.scorers import SCORERS
from jobs.run import PipelineFailedError, PipelineRun
from resources.export import export_subset
from resources.report_data import read_scores
from resources.subset_chain import SubsetChain
from resources.token_reader import open_token_reader
from tests.conftest import Corpus

pytestmark = pytest.mark.long

NOISY = {"source": "word_problems", "num_samples": 160, "seed": 1, "wrong_share": 0.4}


def select(corpus: Corpus, **scoring: Any) -> PipelineRun:
    selection = {"budget": {"fraction": 0.2}, "sampling": "top"}
    corpus.configure(corpus=NOISY, scoring=scoring, selection=selection)
    return corpus.curate()


def test_every_scorer_selects_its_highest_scores(corpus: Corpus, tmp_path: Path) -> None:
    scorer_ids = set()
    for name in SCORERS:
        if name == "quality":
            continue
        run = select(corpus, scorer=name)
        scorer_ids.add(run.of("sample_scores", "scorer_id"))
        scores = pq.read_table(Path(run.of("sample_scores", "folder")) / "scores.parquet")
        ranked = sorted(
            zip(scores["score"].to_pylist(), scores["sample_id"].to_pylist(), strict=True),
            key=lambda pair: (-pair[0], pair[1]),
        )
        members = corpus.members(run)
        if name == "oracle":
            path, _ = export_subset(
                corpus.home, run.of("subset", "artifact_id"), "jsonl", tmp_path / "oracle.jsonl"
            )
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            assert {row["is_planted_noise"] for row in rows} == {False}
        assert members == {sample_id for _, sample_id in ranked[: len(members)]}
        assert len(members) == round(0.2 * scores.num_rows)
    assert len(scorer_ids) == len(SCORERS) - 1

    with pytest.raises(PipelineFailedError, match=r"'quality' needs a base model that can be aske"):
        select(corpus, scorer="quality")
    with pytest.raises(PipelineFailedError, match=r"scoring\.scorer must be one of attention, "):
        select(corpus, scorer="rendom")

    # Back again: every score is there.
    before = corpus.scores()
    select(corpus, scorer="diversity")
    assert corpus.tokenised == []
    assert corpus.scores() == before


def test_a_scorer_is_known_by_the_heads_it_reads(corpus: Corpus) -> None:
    def told(run: PipelineRun) -> tuple[str, ...]:
        """Returns the heads that the audit's page would name."""
        chain = SubsetChain.of(corpus.home, run.of("subset", "artifact_id"))
        with open_token_reader(chain) as reader:
            return read_scores(chain, reader).heads

    first = select(corpus)
    assert told(select(corpus, scorer="length")) == ()
    ranked = set(first.of("head_ranking", "reasoning_heads"))
    assert set(first.of("sample_scores", "heads_read")) == ranked
    ids = {first.of("sample_scores", "scorer_id")}
    drawn = []
    for seed in (0, 1):
        run = select(corpus, heads="random", seed=seed)
        drawn.append(set(run.of("sample_scores", "heads_read")))
        assert len(drawn[-1]) == len(ranked)
        assert not drawn[-1] & ranked
        assert set(told(run)) == drawn[-1]
        ids.add(run.of("sample_scores", "scorer_id"))
    assert drawn[0] != drawn[1]
    every = select(corpus, heads="all")
    assert set(told(every)) == set(every.of("sample_scores", "heads_read"))
    assert ranked | drawn[0] | drawn[1] <= set(every.of("sample_scores", "heads_read"))
    assert len(ids | {every.of("sample_scores", "scorer_id")}) == 4
