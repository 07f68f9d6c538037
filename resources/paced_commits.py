"""Rows on their way into a large table: committed at a pace, and on disk before they are.

A commit sees to it that a row is there once, so it takes the longer the larger the table is. Were
every shard committed, a pool of millions would take hours of that; paced, it takes a share of the
time.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from circuitseer_assets.records import SampleLength, SampleScore, UnscoredSample
from resources.pool_scores import commit_shard, length_rows
from resources.warehouse import Warehouse

# Commits take at most a tenth of the time, unless so many rows wait that they take memory.
_WORK_A_COMMIT = 9
_MAX_WAITING_ROWS = 500_000


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


class PacedCommits:
    """Shards of rows that wait in a file for their commit, so that a killed run loses none.

    What a kill loses is at most the shard that was not yet added.

    Args:
        path: where they wait; what a killed run left there is committed first. One process at a
            time may use it.
        kinds: the records that the rows are.
        write: commits rows.
    """

    def __init__(
        self, path: Path, kinds: Sequence[type], write: Callable[[Sequence[Any]], object]
    ) -> None:
        self._path, self._kinds, self._write = path, kinds, write
        self._pace = Pace()
        self._waiting = list(self._read_whole_lines())
        self.commit()

    def add(self, shard: Sequence[Any]) -> None:
        """Takes one shard, and commits it with those that wait where a commit is due."""
        self._waiting += shard
        if self._pace.is_due or len(self._waiting) >= _MAX_WAITING_ROWS:
            self.commit()
        else:
            self._keep(shard)

    def commit(self) -> None:
        """Commits what waits."""
        if self._waiting:
            with self._pace.committing():
                self._write(self._waiting)
            self._waiting = []
        self._path.unlink(missing_ok=True)

    def _keep(self, shard: Sequence[Any]) -> None:
        parts = []
        for kind in self._kinds:
            values_of = attrgetter(*kind.__slots__)  # type: ignore[attr-defined]
            parts.append([values_of(row) for row in shard if isinstance(row, kind)])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(parts) + "\n")

    def _read_whole_lines(self) -> Iterator[Any]:
        """Returns the rows in the file, up to a line that a kill left torn."""
        if not self._path.exists():
            return
        with self._path.open() as file:
            for line in file:
                if not line.endswith("\n"):
                    break
                for kind, rows in zip(self._kinds, json.loads(line), strict=True):
                    yield from (kind(*values) for values in rows)


def score_commits(warehouse: Warehouse, scorer_id: str, path: Path) -> PacedCommits:
    """Returns the commits of a scorer's `SampleScore` and `UnscoredSample`."""
    kinds = (SampleScore, UnscoredSample)
    return PacedCommits(path, kinds, lambda rows: commit_shard(warehouse, scorer_id, rows))


def length_commits(warehouse: Warehouse, tokenizer_id: str, path: Path) -> PacedCommits:
    """Returns the commits of a tokenizer's `SampleLength`."""

    def write(rows: Sequence[SampleLength]) -> None:
        warehouse.append_lengths(length_rows(tokenizer_id, rows))

    return PacedCommits(path, (SampleLength,), write)
