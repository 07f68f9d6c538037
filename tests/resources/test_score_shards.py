"""Shards on the store alone: whose scores are taken for whose."""

from pathlib import Path

import pytest

from circuitseer_assets.errors import ArtifactError
from circuitseer_assets.records import ModelUse, SampleScore
from resources.score_shards import ScoredShard, ScoreShards
from tests.resources.test_pool_scores import LONG_TWINS, TWINS


def test_what_a_late_worker_of_a_dead_run_writes_is_not_taken_for_the_next_runs(
    tmp_path: Path,
) -> None:
    shards = ScoreShards(tmp_path / "shards")
    [of_the_dead] = shards.write_samples([TWINS])
    shards.clear()
    [name] = shards.write_samples([LONG_TWINS])
    late = ScoredShard([SampleScore(one.sample_id, 1e9, 1) for one in TWINS], ModelUse())
    shards.write_scores(of_the_dead, late)
    with pytest.raises(ArtifactError, match=r"manifest\.json is missing"):
        shards.read_scores(name)

    own = ScoredShard([SampleScore(one.sample_id, 0.5, 1) for one in LONG_TWINS], ModelUse())
    shards.write_scores(name, own)
    assert shards.read_scores(name) == own
    # To the run after that the late ones are scores as well: of the samples that they name.
    assert set(shards.scored()) == {of_the_dead, name}
    assert shards.read_scores(of_the_dead) == late
    shards.clear()
    assert list(shards.scored()) == []
