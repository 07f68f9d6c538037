"""New data: what a changed corpus tokenises and scores, what it keeps, and what the subset says."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import huggingface_hub.constants
import pyarrow.parquet as pq
import pytest

from circuitseer_assets import checks, definitions
from circuitseer_assets.assets import slices
from circuitseer_assets.method import head_ranking, sample_scores
from circuitseer_assets.method.word_problems import generate_problems
from jobs.full_pipeline import curate
from jobs.run import PipelineRun, run_job
from resources import language_model
from resources.home import Home
from tests.conftest import small_settings, write_settings

pytestmark = pytest.mark.long

COLUMNS = {"prompt": "prompt", "response": "response"}
Row = dict[str, str]


def problems(count: int, seed: int) -> list[Row]:
    generated = generate_problems(count, seed=seed, split="train")
    return [{"prompt": p.prompt, "response": p.response} for p in generated]


class Corpus:
    """A folder of JSONL files in a home of its own, and the job `curate` on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "corpus"
        self.folder.mkdir()
        self.home = Home.prepared(folder / "home")
        self.tokenised: list[str] = []
        self.scored: list[str] = []
        self.rankings = 0
        self.set_corpus(source="files", paths=[str(self.folder / "*.jsonl")], columns=COLUMNS)
        self.defs = dg.Definitions(
            assets=dg.load_assets_from_modules([slices, *definitions._STAGES]),
            asset_checks=dg.load_asset_checks_from_modules([checks]),
            jobs=[curate],
            resources={"home": self.home},
            executor=dg.in_process_executor,
        )

    def set_corpus(self, **corpus: Any) -> None:
        # One problem to be like: what is new in the corpus is then new in the pool.
        benchmarks = {"benchmarks": [{"task": "word_problems", "num_problems": 1}]}
        changes = {"corpus": corpus, "decontamination": benchmarks}
        write_settings(self.home.folder, {**small_settings(), **changes})

    def write(self, name: str, rows: list[Row]) -> None:
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def curate(self) -> PipelineRun:
        self.tokenised, self.scored, self.rankings = [], [], 0
        return run_job(self.defs, self.home, "curate")

    def version(self, run: PipelineRun, asset: str) -> str:
        artifact = self.home.warehouse.find_artifact(run.of(asset, "artifact_id"))
        assert artifact is not None
        return artifact.data_version

    def ids(self, sql: str, **params: str) -> set[str]:
        return set(self.home.warehouse.query(sql, params)["sample_id"].to_pylist())

    def members(self, run: PipelineRun) -> set[str]:
        sql = "select sample_id from subset_members where subset_id = $id"
        return self.ids(sql, id=run.of("subset", "artifact_id"))

    def without(self, sample_id: str, rows: list[Row]) -> list[Row]:
        """The rows of the one file there is, but for one sample's."""
        sql = "select position from samples where sample_id = $id"
        [position] = self.home.warehouse.query(sql, {"id": sample_id})["position"].to_pylist()
        return rows[:position] + rows[position + 1 :]

    def corpus_ids(self, run: PipelineRun) -> set[str]:
        sql = "select sample_id from corpus_members where corpus_id = $id"
        return self.ids(sql, id=run.of("corpus", "artifact_id"))

    def scores(self) -> set[str]:
        return self.ids("select sample_id from sample_scores")

    def probes(self, run: PipelineRun) -> set[str]:
        sql = "select sample_id from probe_members where probe_set_id = $id and kind != 'control'"
        return self.ids(sql, id=run.of("probe_set", "artifact_id"))


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    for name in ("CIRCUITSEER_HOME", "DAGSTER_HOME"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # to be put back
    made = Corpus(tmp_path)
    rank_heads, score_samples = head_ranking.rank_heads, sample_scores.score_samples
    tokenize = language_model.LanguageModel.tokenize

    def count_ranking(*args: Any, **kwargs: Any) -> Any:
        made.rankings += 1
        return rank_heads(*args, **kwargs)

    def count_scores(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for result in score_samples(*args, **kwargs):
            made.scored.append(result.sample_id)
            yield result

    def count_tokens(self: Any, sample_id: str, *args: Any, **kwargs: Any) -> Any:
        made.tokenised.append(sample_id)
        return tokenize(self, sample_id, *args, **kwargs)

    monkeypatch.setattr(head_ranking, "rank_heads", count_ranking)
    monkeypatch.setattr(sample_scores, "score_samples", count_scores)
    monkeypatch.setattr(language_model.LanguageModel, "tokenize", count_tokens)
    return made


def assert_only_these_are_new(corpus: Corpus, run: PipelineRun, new: set[str]) -> None:
    assert set(corpus.scored) == new
    assert len(corpus.scored) == len(new)
    assert set(corpus.tokenised) == new
    assert corpus.rankings == 0


def test_files_that_grow_shrink_change_and_move(corpus: Corpus) -> None:
    rows, more = problems(150, seed=3), problems(40, seed=4)
    corpus.write("a.jsonl", rows[:100])
    corpus.write("b.jsonl", rows[100:])
    first = corpus.curate()
    assert corpus.rankings == 1
    probes = first.of("probe_set", "artifact_id")
    everyone = corpus.corpus_ids(first)
    assert set(corpus.scored) == everyone - corpus.probes(first)

    # appended, and a new file in the glob
    corpus.write("b.jsonl", rows[100:] + more[:2])
    corpus.write("c.jsonl", more[2:5])
    grown = corpus.curate()
    new = corpus.corpus_ids(grown) - everyone
    assert 0 < len(new) <= 5
    assert_only_these_are_new(corpus, grown, new)
    assert grown.of("probe_set", "artifact_id") == probes
    assert grown.of("subset", "since_subset") == first.of("subset", "artifact_id")

    # reordered: nothing to score, the same members
    random.Random(0).shuffle(rows)
    corpus.write("a.jsonl", rows[:100])
    corpus.write("b.jsonl", rows[100:] + more[:2])
    moved = corpus.curate()
    assert_only_these_are_new(corpus, moved, set())
    assert moved.of("probe_set", "artifact_id") == probes
    assert corpus.members(moved) == corpus.members(grown)
    # Their content is what it was: a reconciliation goes no further than the pool.
    for asset in ("pool", "sample_scores", "subset"):
        assert corpus.version(moved, asset) == corpus.version(grown, asset)

    # edited: the old text's score stays, the new text's is added
    pool_rows = [r for r in rows[:100] if r["prompt"] not in _prompts_of_probes(corpus)]
    edited = {**pool_rows[0], "prompt": pool_rows[0]["prompt"] + " Show your work."}
    corpus.write("a.jsonl", [edited if row is pool_rows[0] else row for row in rows[:100]])
    changed = corpus.curate()
    new = corpus.corpus_ids(changed) - corpus.corpus_ids(moved)
    gone = corpus.corpus_ids(moved) - corpus.corpus_ids(changed)
    assert len(new) == len(gone) == 1
    assert_only_these_are_new(corpus, changed, new)
    assert gone <= corpus.scores()
    assert gone.isdisjoint(corpus.members(changed))

    # back: everything is there already
    corpus.write("a.jsonl", rows[:100])
    back = corpus.curate()
    assert_only_these_are_new(corpus, back, set())
    assert back.of("corpus", "artifact_id") == moved.of("corpus", "artifact_id")
    assert back.of("subset", "artifact_id") == moved.of("subset", "artifact_id")


def _prompts_of_probes(corpus: Corpus) -> set[str]:
    found = set()
    for path in (corpus.home.folder / "artifacts" / "probe_set").rglob("*.parquet"):
        table = pq.read_table(path)
        found |= {m[0]["content"] for m in table["messages"].to_pylist()}
    return found


def test_removed_rows_leave_the_subset_and_keep_their_scores(corpus: Corpus) -> None:
    rows = problems(150, seed=5)
    corpus.write("a.jsonl", rows)
    first = corpus.curate()
    member = sorted(corpus.members(first))[0]
    corpus.write("a.jsonl", corpus.without(member, rows))
    without = corpus.curate()
    assert_only_these_are_new(corpus, without, set())
    assert member not in corpus.members(without)
    assert member in corpus.scores()
    assert without.of("probe_set", "artifact_id") == first.of("probe_set", "artifact_id")
    assert without.of("subset", "removed") == {"row": 1}
    kept = corpus.members(first) & corpus.members(without)
    assert without.of("subset", "num_kept") == len(kept)
    assert without.of("subset", "num_added") == len(corpus.members(without) - kept)


def test_a_probe_that_vanishes_is_replaced_alone(corpus: Corpus) -> None:
    rows = problems(150, seed=6)
    corpus.write("a.jsonl", rows)
    first = corpus.curate()
    probe = sorted(corpus.probes(first))[0]
    corpus.write("a.jsonl", corpus.without(probe, rows))
    second = corpus.curate()
    before, after = corpus.probes(first), corpus.probes(second)
    assert before - after == {probe}
    assert len(after - before) == 1
    drawn_anew = corpus.home.warehouse.find_artifact(second.of("probe_set", "artifact_id"))
    assert drawn_anew is not None
    assert first.of("probe_set", "artifact_id") in drawn_anew.parents
    assert corpus.rankings == 1


def test_one_percent_of_new_rows_displaces_about_as_much(corpus: Corpus) -> None:
    rows = problems(800, seed=7)
    corpus.write("a.jsonl", rows[:-8])
    first = corpus.curate()
    corpus.write("b.jsonl", rows[-8:])
    second = corpus.curate()
    new = corpus.corpus_ids(second) - corpus.corpus_ids(first)
    assert_only_these_are_new(corpus, second, new)
    gone = corpus.members(first) - corpus.members(second)
    # Of 80 members about one; four would be more than three standard deviations away.
    assert len(gone) <= 3
    assert sum(second.of("subset", "removed").values()) == len(gone)
    assert set(second.of("subset", "removed")) <= {"competition"}


def test_a_new_revision_on_the_hub_scores_its_new_rows(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = problems(120, seed=8)

    def publish(commit: str, published: list[Row]) -> None:
        snapshot = hub / "datasets--someone--problems" / "snapshots" / commit
        snapshot.mkdir(parents=True)
        text = "".join(json.dumps(row) + "\n" for row in published)
        (snapshot / "train.jsonl").write_text(text)

    def pin(commit: str) -> PipelineRun:
        corpus.set_corpus(
            source="hub", repo_id="someone/problems", revision=commit, columns=COLUMNS
        )
        return corpus.curate()

    publish("1" * 40, rows[:-3])
    publish("2" * 40, rows)
    first = pin("1" * 40)
    second = pin("2" * 40)
    new = corpus.corpus_ids(second) - corpus.corpus_ids(first)
    assert 0 < len(new) <= 3
    assert_only_these_are_new(corpus, second, new)
    pin("1" * 40)
    assert corpus.scored == corpus.tokenised == []
