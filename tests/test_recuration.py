"""New data: what a changed corpus tokenises and scores, what it keeps, and what the subset says."""

import json
import random
from pathlib import Path

import huggingface_hub.constants
import pyarrow.parquet as pq
import pytest

from circuitseer_assets.method.word_problems import generate_problems
from jobs.run import PipelineRun
from tests.conftest import CORPUS_COLUMNS, Corpus

pytestmark = pytest.mark.long

Row = dict[str, str]


def problems(count: int, seed: int) -> list[Row]:
    generated = generate_problems(count, seed=seed, split="train")
    return [{"prompt": p.prompt, "response": p.response} for p in generated]


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

    # a whole file deleted: its rows leave, their scores stay
    (corpus.folder / "c.jsonl").unlink()
    fewer = corpus.curate()
    gone = corpus.ids("select sample_id from samples where source = 'c.jsonl'")
    assert 0 < len(gone) <= 3
    assert corpus.corpus_ids(fewer) == corpus.corpus_ids(back) - gone
    assert_only_these_are_new(corpus, fewer, set())
    assert gone <= corpus.scores()
    assert gone.isdisjoint(corpus.members(fewer))
    assert fewer.of("probe_set", "artifact_id") == probes


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


@pytest.mark.parametrize("budget", [{"fraction": 0.1}, {"samples": 80}], ids=["share", "number"])
def test_one_percent_of_new_rows_displaces_about_as_much(
    corpus: Corpus, budget: dict[str, float]
) -> None:
    corpus.configure(selection={"budget": budget})
    rows = problems(800, seed=7)
    corpus.write("a.jsonl", rows[:-8])
    first = corpus.curate()
    corpus.write("b.jsonl", rows[-8:])
    second = corpus.curate()
    new = corpus.corpus_ids(second) - corpus.corpus_ids(first)
    assert_only_these_are_new(corpus, second, new)
    gone = corpus.members(first) - corpus.members(second)
    joined = corpus.members(second) - corpus.members(first)
    if "samples" in budget:  # a new row takes an old one's place
        assert joined <= new
        assert len(joined) == len(gone)
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
        columns, repo_id = CORPUS_COLUMNS, "someone/problems"
        corpus.configure(
            corpus={"source": "hub", "repo_id": repo_id, "revision": commit, "columns": columns}
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
