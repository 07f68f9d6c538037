"""Rows on their way into a large table: committed at a pace, and on disk before they are.

A commit sees to it that a row is there once, so it takes the longer the larger the table is. Were
every shard committed, a pool of millions would take hours of that; paced, it takes a share of the
time.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path

from circuitseer_assets.records import SampleScore, UnscoredSample
from resources.pool_scores import commit_shard
from resources.warehouse import Warehouse

# Commits take at most a tenth of the time.
_WORK_A_COMMIT = 9


class Pace:
    """Says when the next commit is due: after so many times as long as the last one took."""

    def __init__(self) -> None:
        self._ended_at = time.monotonic()
        self._took_s = 0.0

    @property
    def is_due(self) -> bool:
        """Whether to commit now."""
        return time.monotonic() - self._ended_at >= _WORK_A_COMMIT * self._took_s

    @contextlib.contextmanager
    def committing(self) -> Iterator[None]:
        """Returns a context in which something is committed."""
        started = time.monotonic()
        yield
        self._ended_at = time.monotonic()
        self._took_s = self._ended_at - started


class ScoreCommits:
    """Shards of scores that wait in a file for their commit, so that a killed run loses none.

    Args:
        warehouse: where they go.
        scorer_id: the identity of model, heads and formula.
        path: where they wait; what a killed run left there is committed first. One process at a
            time may use it.
    """

    def __init__(self, warehouse: Warehouse, scorer_id: str, path: Path) -> None:
        self._warehouse, self._scorer_id, self._path = warehouse, scorer_id, path
        self._pace = Pace()
        self._waiting = _read_whole_lines(path)
        self.commit()

    def add(self, shard: Sequence[SampleScore | UnscoredSample]) -> None:
        """Takes one shard, and commits it with those that wait where a commit is due."""
        self._waiting += shard
        if self._pace.is_due:
            self.commit()
        else:
            self._keep(shard)

    def commit(self) -> None:
        """Commits what waits."""
        if self._waiting:
            with self._pace.committing():
                commit_shard(self._warehouse, self._scorer_id, self._waiting)
            self._waiting = []
        self._path.unlink(missing_ok=True)

    def _keep(self, shard: Sequence[SampleScore | UnscoredSample]) -> None:
        parts = [[astuple(row) for row in shard if isinstance(row, kind)] for kind in _KINDS]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(parts) + "\n")


_KINDS = (SampleScore, UnscoredSample)


def _read_whole_lines(path: Path) -> list[SampleScore | UnscoredSample]:
    """Returns what the file holds, up to a line that a kill left torn."""
    rows: list[SampleScore | UnscoredSample] = []
    if not path.exists():
        return rows
    with path.open() as file:
        for line in file:
            if not line.endswith("\n"):
                break
            scored, unscored = json.loads(line)
            rows += (SampleScore(*values) for values in scored)
            rows += (UnscoredSample(*values) for values in unscored)
    return rows
