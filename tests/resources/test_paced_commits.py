"""Scores on their way into the warehouse: at a pace, and none lost on the way."""

import time
from pathlib import Path

import pytest

from circuitseer_assets.records import SampleScore, UnscoredSample
from resources import paced_commits
from resources.paced_commits import Pace, score_commits
from resources.warehouse import Warehouse

FIRST = [SampleScore("a", 0.1 + 0.2, 9), UnscoredSample("b", "too_long", 'so "long"\n')]
SECOND = [SampleScore("c", 1e-300, 7, True)]
THIRD = [SampleScore("d", 4.0, 8)]


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path / "warehouse.duckdb", wait_s=5)


def committed(warehouse: Warehouse) -> set[str]:
    return {*warehouse.scored_sample_ids("scorer"), *warehouse.unscored_sample_ids("scorer")}


def test_what_a_killed_run_left_waiting_is_committed_by_the_next(
    warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = tmp_path / "work" / "waiting.jsonl"
    monkeypatch.setattr(paced_commits, "_WORK_A_COMMIT", 1e9)
    killed = score_commits(warehouse, "scorer", waiting)
    for shard in (FIRST, SECOND, THIRD):
        killed.add(shard)
    # The first commit is due at once; that it took long puts off all others.
    assert committed(warehouse) == {"a", "b"}
    torn = waiting.read_text()
    waiting.write_text(torn[: torn.rindex("4.0")])
    score_commits(warehouse, "scorer", waiting)
    assert committed(warehouse) == {"a", "b", "c"}
    assert not waiting.exists()
    scores = warehouse.query("select score from sample_scores order by sample_id")
    assert scores["score"].to_pylist() == [0.1 + 0.2, 1e-300]
    [reason] = warehouse.query("select reason, detail from unscored_samples").to_pylist()
    assert reason == {"reason": "too_long", "detail": 'so "long"\n'}


def test_shards_that_wait_together_are_committed_together(
    warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paced_commits, "_WORK_A_COMMIT", 1e9)
    commits = score_commits(warehouse, "scorer", tmp_path / "waiting.jsonl")
    for shard in (FIRST, SECOND, THIRD):
        commits.add(shard)
    commits.commit()
    assert committed(warehouse) == {"a", "b", "c", "d"}
    assert not (tmp_path / "waiting.jsonl").exists()


def test_commits_take_a_tenth_of_the_time() -> None:
    pace, started, in_commits = Pace(), time.monotonic(), 0
    while time.monotonic() - started < 1:
        if pace.is_due:
            in_commits += 1
            with pace.committing():
                time.sleep(0.01)
    assert 4 <= in_commits <= 11
