"""A pool's scores: what is missing, what equal prompts share, and what is told of all left out."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from circuitseer_assets.assets.pool_scorer import PoolScorer
from circuitseer_assets.method.corpus import prompt_id_of, sample_id_of
from circuitseer_assets.records import (
    Artifact,
    Message,
    Sample,
    SampleLength,
    SampleScore,
    TokenizedText,
    UnscoredSample,
)
from circuitseer_assets.settings import PROJECT_ROOT, ExecutionSettings, load_settings
from resources import paced_commits
from resources.home import Home
from resources.language_model import LanguageModel
from resources.paced_commits import length_commits
from resources.pool_scores import (
    Rows,
    commit_shard,
    length_rows,
    missing_rows,
    read_pool_scores,
    share_scores,
    unmeasured_rows,
)
from resources.sample_files import write_samples
from resources.warehouse import Warehouse

# Two twins of each of two prompts, and one sample that is alone with its prompt.
PROMPTS = {"a1": "a", "a2": "a", "b1": "b", "b2": "b", "c1": "c"}


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    warehouse = Warehouse(tmp_path / "warehouse.duckdb", wait_s=5)
    record_corpus(warehouse, PROMPTS)
    return warehouse


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_pool(tmp_path / "pool.parquet", PROMPTS)


def record_corpus(
    warehouse: Warehouse, prompts: dict[str, str], quarantined: pa.Table | None = None
) -> None:
    samples = pa.table(
        {
            "sample_id": list(prompts),
            "prompt_id": list(prompts.values()),
            "corpus_id": ["corpus-1"] * len(prompts),
            "source": ["rows.jsonl"] * len(prompts),
            "position": list(range(len(prompts))),
        }
    )
    rows = {"samples": samples}
    if quarantined is not None:
        rows["quarantined_samples"] = quarantined
    artifact = Artifact(
        artifact_id="corpus-1",
        stage="corpus",
        data_version="v1",
        parents=(),
        settings={},
        code_version="1",
    )
    warehouse.record(artifact, rows)


def write_pool(path: Path, prompts: dict[str, str]) -> Path:
    columns = {"sample_id": list(prompts), "prompt_id": list(prompts.values())}
    pq.write_table(pa.table(columns), path)
    return path


def scores_of(warehouse: Warehouse, scorer_id: str) -> dict[str, float]:
    sql = "from sample_scores where scorer_id = $id order by sample_id"
    rows = warehouse.query(sql, {"id": scorer_id}).to_pylist()
    assert len(rows) == len({row["sample_id"] for row in rows})
    return {row["sample_id"]: row["score"] for row in rows}


def reasons_of(warehouse: Warehouse, scorer_id: str) -> dict[str, tuple[str, str]]:
    sql = "from unscored_samples where scorer_id = $id order by sample_id"
    rows = warehouse.query(sql, {"id": scorer_id}).to_pylist()
    assert len(rows) == len({row["sample_id"] for row in rows})
    return {row["sample_id"]: (row["reason"], row["detail"]) for row in rows}


# what is missing ----------------------------------------------------------------------------------


def write_corpus(folder: Path, prompts: dict[str, str]) -> list[Sample]:
    """Writes samples of these prompts where they are not yet, in an order that is not the ids'."""
    samples = [
        Sample(i, prompt, "rows.jsonl", 0, (Message("user", prompt),), "r")
        for i, prompt in reversed(prompts.items())
    ]
    if not folder.exists():
        write_samples(samples, folder)
    return samples


def ids_at(rows: Rows, samples: list[Sample]) -> set[str]:
    assert len(rows) == len(samples)
    return {sample.sample_id for sample, is_meant in zip(samples, rows, strict=True) if is_meant}


def missing_ids(warehouse: Warehouse, scorer_id: str, pool: Path) -> set[str]:
    folder = pool.parent / "corpus"
    samples = write_corpus(folder, {"z0": "z", **PROMPTS})
    return ids_at(missing_rows(warehouse, scorer_id, pool, folder), samples)


def unmeasured_ids(warehouse: Warehouse, tokenizer_id: str, pool: Path) -> set[str]:
    folder = pool.parent / "corpus"
    samples = write_corpus(folder, {"z0": "z", **PROMPTS})
    return ids_at(unmeasured_rows(warehouse, tokenizer_id, pool, folder), samples)


def test_missing_is_what_has_neither_score_nor_reason(warehouse: Warehouse, pool: Path) -> None:
    assert missing_ids(warehouse, "scorer", pool) == set(PROMPTS)
    shard = [SampleScore("a1", 0.5, 9), UnscoredSample("b1", "too_long", "99 tokens")]
    commit_shard(warehouse, "scorer", shard)
    assert missing_ids(warehouse, "scorer", pool) == {"a2", "b2", "c1"}
    assert missing_ids(warehouse, "another", pool) == set(PROMPTS)


def test_missing_is_of_the_pool_alone(warehouse: Warehouse, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "part.parquet", {"a2": "a", "c1": "c"})
    commit_shard(warehouse, "scorer", [SampleScore("c1", 0.5, 9)])
    assert missing_ids(warehouse, "scorer", pool) == {"a2"}


def test_a_shard_of_nothing_changes_nothing(warehouse: Warehouse, pool: Path) -> None:
    commit_shard(warehouse, "scorer", [])
    assert missing_ids(warehouse, "scorer", pool) == set(PROMPTS)


# what equal prompts share -------------------------------------------------------------------------


def test_equal_prompts_share_score_and_reason(warehouse: Warehouse, pool: Path) -> None:
    shard = [SampleScore("a1", 0.5, 9), UnscoredSample("b2", "too_long", "99 tokens")]
    commit_shard(warehouse, "scorer", shard)
    assert share_scores(warehouse, "scorer", pool) == 1
    assert scores_of(warehouse, "scorer") == {"a1": 0.5, "a2": 0.5}
    reason = ("too_long", "99 tokens")
    assert reasons_of(warehouse, "scorer") == {"b1": reason, "b2": reason}
    assert missing_ids(warehouse, "scorer", pool) == {"c1"}


def test_sharing_again_adds_nothing(warehouse: Warehouse, pool: Path) -> None:
    shard = [SampleScore("a1", 0.5, 9), UnscoredSample("b1", "too_long", "99 tokens")]
    commit_shard(warehouse, "scorer", shard)
    share_scores(warehouse, "scorer", pool)
    before = scores_of(warehouse, "scorer"), reasons_of(warehouse, "scorer")
    assert share_scores(warehouse, "scorer", pool) == 0
    assert (scores_of(warehouse, "scorer"), reasons_of(warehouse, "scorer")) == before


def test_nothing_is_shared_across_scorers(warehouse: Warehouse, pool: Path) -> None:
    shard = [SampleScore("a1", 0.5, 9), UnscoredSample("b1", "too_long", "99 tokens")]
    commit_shard(warehouse, "scorer", shard)
    assert share_scores(warehouse, "another", pool) == 0
    assert scores_of(warehouse, "another") == {}
    assert reasons_of(warehouse, "another") == {}


def test_a_score_is_shared_before_a_reason_and_no_sample_has_both(tmp_path: Path) -> None:
    triplets = {"d1": "d", "d2": "d", "d3": "d"}
    warehouse = Warehouse(tmp_path / "warehouse.duckdb", wait_s=5)
    record_corpus(warehouse, triplets)
    shard = [UnscoredSample("d1", "too_long", "99 tokens"), SampleScore("d2", 0.5, 9)]
    commit_shard(warehouse, "scorer", shard)
    pool = write_pool(tmp_path / "pool.parquet", triplets)
    assert share_scores(warehouse, "scorer", pool) == 1
    assert scores_of(warehouse, "scorer") == {"d2": 0.5, "d3": 0.5}
    assert reasons_of(warehouse, "scorer") == {"d1": ("too_long", "99 tokens")}


def test_a_twin_outside_the_pool_shares_too(warehouse: Warehouse, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "part.parquet", {"a2": "a", "b2": "b"})
    shard = [SampleScore("a1", 0.5, 9), UnscoredSample("b1", "too_few_tokens", "3 tokens")]
    commit_shard(warehouse, "scorer", shard)
    assert share_scores(warehouse, "scorer", pool) == 1
    assert missing_ids(warehouse, "scorer", pool) == set()


# lengths and the pool's scores --------------------------------------------------------------------


def test_lengths_are_measured_once_a_tokenizer(warehouse: Warehouse, pool: Path) -> None:
    assert unmeasured_ids(warehouse, "tokenizer", pool) == set(PROMPTS)
    rows = length_rows("tokenizer", [SampleLength("a1", 7, 3), SampleLength("c1", 5, 2)])
    assert warehouse.append_lengths(rows) == 2
    assert warehouse.append_lengths(rows) == 0
    assert unmeasured_ids(warehouse, "tokenizer", pool) == {"a2", "b1", "b2"}
    assert unmeasured_ids(warehouse, "another", pool) == set(PROMPTS)


def test_no_lengths_are_rows_of_the_right_types() -> None:
    rows = length_rows("tokenizer", [])
    assert rows.num_rows == 0
    assert rows.schema == length_rows("tokenizer", [SampleLength("a", 1, 2)]).schema


def test_pool_scores_lie_by_sample_id_with_their_lengths(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    pool = write_pool(tmp_path / "pool.parquet", {"c1": "c", "a2": "a", "b1": "b"})
    shard = [SampleScore("c1", 0.25, 4), SampleScore("a2", 0.5, 6), SampleScore("a1", 1.0, 6)]
    commit_shard(warehouse, "scorer", shard)
    lengths = {"a1": (7, 1), "a2": (7, 3), "b1": (6, 2), "c1": (5, 2)}
    rows = [SampleLength(sample_id, *pair) for sample_id, pair in lengths.items()]
    warehouse.append_lengths(length_rows("tokenizer", rows))
    warehouse.append_lengths(length_rows("another", [SampleLength("a2", 70, 30)]))
    found = read_pool_scores(warehouse, "scorer", "tokenizer", pool)
    assert found.column_names == [
        "sample_id",
        "score",
        "num_scored_tokens",
        "num_prompt_tokens",
        "num_tokens",
    ]
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        ("a2", 0.5, 6, 7, 10),
        ("c1", 0.25, 4, 5, 7),
    ]


# all that was left out ----------------------------------------------------------------------------


def test_one_view_tells_all_that_was_left_out_and_why(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path / "warehouse.duckdb", wait_s=5)
    broken = pa.table(
        {
            "corpus_id": ["corpus-1"],
            "source": ["rows.jsonl"],
            "position": [9],
            "reason": ["no_response"],
            "detail": ["the column is empty"],
        }
    )
    record_corpus(warehouse, PROMPTS, broken)
    commit_shard(warehouse, "scorer-1", [UnscoredSample("b1", "too_long", "99 tokens")])
    shard = [UnscoredSample("b1", "too_few_tokens", "3 tokens"), SampleScore("a1", 0.5, 9)]
    commit_shard(warehouse, "scorer-2", shard)
    found = warehouse.query("from all_quarantined_samples order by scorer_id nulls first")
    assert found.column_names == [
        "corpus_id",
        "source",
        "position",
        "reason",
        "detail",
        "scorer_id",
    ]
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        ("corpus-1", "rows.jsonl", 9, "no_response", "the column is empty", None),
        ("corpus-1", "rows.jsonl", 2, "too_long", "99 tokens", "scorer-1"),
        ("corpus-1", "rows.jsonl", 2, "too_few_tokens", "3 tokens", "scorer-2"),
    ]


# the whole stage, with the embedded model ---------------------------------------------------------

SHORT, LONG = "Ann has 3 pens and buys 4. How many?", "Ann has 3 pens. " * 12
MakeScorer = Callable[..., PoolScorer]


def sample_of(prompt: str, response: str, position: int) -> Sample:
    messages = (Message("user", prompt),)
    prompt_id = prompt_id_of(messages)
    return Sample(
        sample_id=sample_id_of(prompt_id, response),
        prompt_id=prompt_id,
        source="rows.jsonl",
        position=position,
        messages=messages,
        response=response,
    )


TWINS = [sample_of(SHORT, "Ann has 3 + 4 = 7 pens.", 0), sample_of(SHORT, "It is seven pens.", 1)]
LONG_TWINS = [sample_of(LONG, "36 pens in all.", 2), sample_of(LONG, "It is 36 pens.", 3)]


@pytest.fixture
def make_scorer(tmp_path: Path) -> MakeScorer:
    """Makes a scorer for a pool of the first samples of one corpus."""
    corpus = [*TWINS, *LONG_TWINS]
    write_samples(corpus, tmp_path / "samples")
    prompts = {sample.sample_id: sample.prompt_id for sample in corpus}
    home = Home(path=str(tmp_path))
    record_corpus(home.warehouse, prompts)
    heads = [{"head": {"layer": 1, "head": h}, "is_reasoning_head": h < 2} for h in range(8)]
    ranking = {"importance": heads, "num_layers": 6, "num_heads": 8}
    (tmp_path / "head_ranking.json").write_text(json.dumps(ranking))
    settings = load_settings(PROJECT_ROOT / "presets" / "tiny.yaml")

    def make(samples: list[Sample], **scoring: object) -> PoolScorer:
        pool = write_pool(
            tmp_path / f"pool-{len(samples)}.parquet", {s.sample_id: s.prompt_id for s in samples}
        )
        slice_ = settings.scoring.model_copy(update=scoring)
        return PoolScorer(
            settings=settings.model_copy(update={"scoring": slice_}),
            home=home,
            scorer_id=f"scorer-{slice_.span}",
            tokenizer_id="tokenizer",
            ranking=tmp_path,
            pool=pool,
            corpus=tmp_path / "samples",
            work=tmp_path / "work",
            report_progress=lambda done, total: None,
        )

    return make


def test_a_second_response_takes_over_the_score_of_its_prompt(
    make_scorer: MakeScorer, tmp_path: Path
) -> None:
    make_scorer(TWINS[:1]).score_pool(tmp_path)
    made = make_scorer(TWINS).score_pool(tmp_path)
    scores = pq.read_table(tmp_path / "scores.parquet")["score"].to_pylist()
    assert len(scores) == 2
    assert scores[0] == scores[1]
    assert made.summary["num_scored_anew"] == 0


def test_a_second_response_is_scored_by_itself_where_the_response_is_read(
    make_scorer: MakeScorer, tmp_path: Path
) -> None:
    make_scorer(TWINS[:1], span="response").score_pool(tmp_path)
    made = make_scorer(TWINS, span="response").score_pool(tmp_path)
    rows = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    scores = {row["sample_id"]: row["score"] for row in rows}
    assert made.summary["num_scored_anew"] == 1
    assert scores.keys() == {sample.sample_id for sample in TWINS}
    assert len(set(scores.values())) == 2


def test_twins_too_long_for_the_model_have_the_reason_each(
    make_scorer: MakeScorer, tmp_path: Path
) -> None:
    scorer = make_scorer([*TWINS, *LONG_TWINS], max_tokens=80)
    made = scorer.score_pool(tmp_path)
    assert (made.summary["num_scored"], made.summary["num_unscored"]) == (2, 2)
    reasons = reasons_of(scorer.home.warehouse, scorer.scorer_id)
    assert reasons.keys() == {sample.sample_id for sample in LONG_TWINS}
    assert {reason for reason, _ in reasons.values()} == {"too_long"}
    left_out = scorer.home.warehouse.query("from all_quarantined_samples order by position")
    assert left_out["position"].to_pylist() == [2, 3]
    assert left_out["scorer_id"].to_pylist() == [scorer.scorer_id] * 2


def test_a_kill_while_lengths_are_measured_loses_at_most_one_shard_of_them(
    make_scorer: MakeScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [*TWINS, *LONG_TWINS]
    scorer = make_scorer(samples)
    settings = scorer.settings.model_copy(update={"execution": ExecutionSettings(shard_samples=1)})
    scorer = replace(scorer, settings=settings)
    measured: list[str] = []
    tokenize = LanguageModel.tokenize

    def die_at_the_last(model: LanguageModel, sample_id: str, *args: Any) -> TokenizedText:
        if any(args[1:]):  # with the response: its length is measured
            measured.append(sample_id)
            if len(measured) == len(samples):
                raise KeyboardInterrupt
        return tokenize(model, sample_id, *args)

    monkeypatch.setattr(LanguageModel, "tokenize", die_at_the_last)
    monkeypatch.setattr(paced_commits, "_WORK_A_COMMIT", 1e9)  # no commit is due but the first
    with pytest.raises(KeyboardInterrupt):
        scorer.score_pool(tmp_path)
    lengths = "select sample_id from sample_lengths"
    assert scorer.home.warehouse.query(lengths)["sample_id"].to_pylist() == measured[:1]
    scorer.score_pool(tmp_path)
    assert measured[len(samples) :] == [samples[-1].sample_id]
    found = scorer.home.warehouse.query(lengths)["sample_id"].to_pylist()
    assert sorted(found) == sorted(sample.sample_id for sample in samples)
    assert not list(scorer.work.glob("*"))


def test_many_rows_that_wait_are_committed_before_they_are_due(
    warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paced_commits, "_WORK_A_COMMIT", 1e9)
    monkeypatch.setattr(paced_commits, "_MAX_WAITING_ROWS", 2)
    commits = length_commits(warehouse, "tokenizer", tmp_path / "waiting.jsonl")
    for sample_id, num_committed in (("a1", 1), ("a2", 1), ("b1", 3), ("b2", 3)):
        commits.add([SampleLength(sample_id, 7, 3)])
        assert len(warehouse.query("from sample_lengths")) == num_committed
