"""Shards of samples on their way to workers, and of scores on their way back.

Each lies in a folder of its own with a manifest of digests, is there whole or not at all, and is
checked when it is read. Workers and whoever hands them work need to share nothing but these files.
"""

import json
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from circuitseer_assets.records import ModelUse, Sample, SampleScore, UnscoredSample
from resources.artifacts import ArtifactStore
from resources.sample_files import read_samples, write_samples

_SAMPLES, _SCORES = "samples", "scores"
_SCORES_FILE, _USE_FILE = "scores.parquet", "model_use.json"
_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        ("score", pa.float64()),
        ("num_tokens", pa.int64()),
        ("is_truncated", pa.bool_()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class ScoredShard:
    """What scoring one shard gave, and what it asked of the model."""

    results: Sequence[SampleScore | UnscoredSample]
    model_use: ModelUse


class ScoreShards:
    """The shards under one folder, by their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # A shard has its own parent: what a dead writer has left is then nobody's but the shard's.
        self._store = ArtifactStore(folder)

    def write_samples(self, shards: Iterable[Sequence[Sample]]) -> list[str]:
        """Returns the names of the shards, after writing one after the other.

        No name was ever given before: what a worker of a run that died writes late, to a shard of
        that run, is never taken for this run's.
        """
        token, names = uuid.uuid4().hex[:8], []
        for number, samples in enumerate(shards):
            names.append(f"shard-{token}-{number:06d}")
            with self._store.write(names[-1], _SAMPLES) as folder:
                write_samples(samples, folder)
        return names

    def read_samples(self, name: str) -> list[Sample]:
        """Returns the samples of a shard.

        Raises:
            ArtifactError: the shard is missing, or not what was written.
        """
        self._store.verify(name, _SAMPLES)
        return list(read_samples(self._store.folder(name, _SAMPLES)))

    def write_scores(self, name: str, shard: ScoredShard) -> None:
        """Returns when the scores are written; those that are there and whole stay."""
        rows = [asdict(result) for result in shard.results]
        with self._store.write(name, _SCORES) as folder:
            pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), folder / _SCORES_FILE)
            (folder / _USE_FILE).write_text(json.dumps(asdict(shard.model_use)))

    def read_scores(self, name: str) -> ScoredShard:
        """Returns the scores of a shard.

        Raises:
            ArtifactError: the scores are missing, or not what was written.
        """
        self._store.verify(name, _SCORES)
        folder = self._store.folder(name, _SCORES)
        rows = pq.read_table(folder / _SCORES_FILE).to_pylist()
        use = ModelUse(**json.loads((folder / _USE_FILE).read_text()))
        return ScoredShard([_result_of(row) for row in rows], use)

    def scored(self) -> Iterator[str]:
        """Returns the names of the shards whose scores are there and whole."""
        for path in sorted(self.folder.glob(f"*/{_SCORES}")):
            if self._store.is_whole(path.parent.name, _SCORES):
                yield path.parent.name

    def clear(self) -> None:
        """Returns when no shard is left."""
        if self.folder.exists():
            shutil.rmtree(self.folder)


def _result_of(row: dict[str, object]) -> SampleScore | UnscoredSample:
    kind = SampleScore if row["reason"] is None else UnscoredSample
    return kind(**{name: row[name] for name in kind.__slots__})  # type: ignore[arg-type]
