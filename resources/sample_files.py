"""Samples as Parquet shards: written and read as a stream, in corpus order.

The folder is the caller's to commit: a shard gets its name when it is whole, but the folder is
whole only when `write_samples` has returned.
"""

import itertools
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from circuitseer_assets.errors import ArtifactError
from circuitseer_assets.records import Message, Sample

ROW_GROUP_SAMPLES = 1_024
SHARD_SAMPLES = 65_536
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field(
            "messages",
            pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
            nullable=False,
        ),
        pa.field("response", pa.string(), nullable=False),
        pa.field("answer", pa.string()),
        pa.field("original", pa.string(), nullable=False),
    ]
)


def write_samples(samples: Iterable[Sample], folder: Path) -> int:
    """Returns how many samples were written to `folder`, in shards of `SHARD_SAMPLES`.

    The same samples give the same bytes. No samples give one empty shard.

    Raises:
        ArtifactError: the folder already holds samples.
    """
    if folder.is_dir() and any(folder.glob("samples-*")):
        raise ArtifactError(
            f"{folder} must hold no samples before they are written, got some; "
            "write to a new folder, for nothing is overwritten"
        )
    folder.mkdir(parents=True, exist_ok=True)
    stream = iter(samples)
    num_written = 0
    for shard_number in itertools.count():
        path = folder / f"samples-{shard_number:05d}.parquet"
        num_in_shard = _write_shard(itertools.islice(stream, SHARD_SAMPLES), path)
        num_written += num_in_shard
        if num_in_shard < SHARD_SAMPLES:
            if num_in_shard == 0 and shard_number > 0:
                path.unlink()
            return num_written
    raise AssertionError("unreachable")


def read_samples(
    folder: Path,
    *,
    sample_ids: Collection[str] | None = None,
    rows: NDArray[np.bool_] | None = None,
) -> Iterator[Sample]:
    """Returns a stream of the folder's samples in corpus order.

    Args:
        folder: where the samples are.
        sample_ids: the few that are wanted, by id; all if left out.
        rows: those that are wanted, by their place in the corpus; all if left out.

    Raises:
        ArtifactError: the folder holds no samples, or a shard cannot be read.
    """
    wanted = None if sample_ids is None else frozenset(sample_ids)
    first = 0
    for path in shards_of(folder):
        with _open_shard(path) as file:
            for number in range(file.num_row_groups):
                num_rows = file.metadata.row_group(number).num_rows
                mask = None if rows is None else rows[first : first + num_rows]
                first += num_rows
                if wanted is not None:
                    ids = file.read_row_group(number, columns=["sample_id"]).column(0).to_pylist()
                    mask = np.array([sample_id in wanted for sample_id in ids], bool)
                if mask is None:
                    yield from _samples_of(file.read_row_group(number))
                elif mask.any():
                    yield from _samples_of(file.read_row_group(number).filter(pa.array(mask)))


def first_rows_of(folder: Path) -> dict[Path, int]:
    """Returns the place in the corpus of each shard's first sample, and under the folder their end.

    Raises:
        ArtifactError: the folder holds no samples, or a shard cannot be read.
    """
    first, places = 0, {}
    for path in shards_of(folder):
        places[path] = first
        with _open_shard(path) as file:
            first += file.metadata.num_rows
    return {**places, folder: first}


def read_sample_ids(folder: Path) -> Iterator[str]:
    """Returns a stream of the folder's sample ids in corpus order.

    Raises:
        ArtifactError: the folder holds no samples, or a shard cannot be read.
    """
    for path in shards_of(folder):
        with _open_shard(path) as file:
            for batch in file.iter_batches(ROW_GROUP_SAMPLES, columns=["sample_id"]):
                yield from batch.column(0).to_pylist()


def _write_shard(samples: Iterator[Sample], path: Path) -> int:
    partial = path.with_name(f"{path.name}.partial")
    num_written = 0
    with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
        while rows := [_row_of(s) for s in itertools.islice(samples, ROW_GROUP_SAMPLES)]:
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
            num_written += len(rows)
    partial.replace(path)
    return num_written


def _row_of(sample: Sample) -> dict[str, Any]:
    return {
        "sample_id": sample.sample_id,
        "prompt_id": sample.prompt_id,
        "source": sample.source,
        "position": sample.position,
        "messages": [{"role": turn.role, "content": turn.content} for turn in sample.messages],
        "response": sample.response,
        "answer": sample.answer,
        "original": _JSON.encode(sample.original),
    }


def _samples_of(table: pa.Table) -> Iterator[Sample]:
    # By column: rows of nested values take several times as long to become Python's.
    chats = table["messages"].combine_chunks()
    roles, contents = (chats.values.field(name).to_pylist() for name in ("role", "content"))
    turns = [Message(*turn) for turn in zip(roles, contents, strict=True)]
    bounds = itertools.pairwise(chats.offsets.to_pylist())
    names = ("sample_id", "prompt_id", "source", "position", "response", "answer", "original")
    columns = (table[name].to_pylist() for name in names)
    for (start, stop), *one in zip(bounds, *columns, strict=True):
        sample_id, prompt_id, source, position, response, answer, original = one
        yield Sample(
            sample_id,
            prompt_id,
            source,
            position,
            tuple(turns[start:stop]),
            response,
            answer,
            json.loads(original),
        )


def shards_of(folder: Path) -> list[Path]:
    """Returns the folder's files, in corpus order.

    Raises:
        ArtifactError: the folder holds no samples.
    """
    paths = sorted(folder.glob("samples-*.parquet"))
    if not paths:
        raise ArtifactError(
            f"{folder} must hold samples, got none; materialise the asset that writes them again"
        )
    return paths


def _open_shard(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(
            f"{path} must be a whole Parquet file, got: {' '.join(str(error).split())}; "
            "materialise the asset that writes it again"
        ) from error
