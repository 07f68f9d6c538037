"""Exporting a subset: its rows with their original columns, plus score and id."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from circuitseer_assets.errors import ArtifactError
from resources.home import Home
from resources.sample_files import read_samples


def export_subset(
    home: Home, subset_id: str, file_format: Literal["jsonl", "parquet"], output: Path | None
) -> tuple[Path, int]:
    """Returns the file written and its number of rows, in the corpus's order.

    The columns are the original ones, then `circuitseer_score` and `circuitseer_sample_id`.

    Raises:
        ArtifactError: there is no such subset, or its corpus is not whole.
    """
    warehouse = home.warehouse
    subset = warehouse.find_artifact(subset_id)
    if subset is None or subset.stage != "subset":
        known = ", ".join(a.artifact_id for a in warehouse.latest_artifacts("subset", 5)) or "none"
        raise ArtifactError(
            f"SUBSET must be a subset's id, got {subset_id!r}; the latest are: {known}"
        )
    corpus = next(a for a in warehouse.lineage(subset.artifact_id) if a.stage == "corpus")
    home.artifacts.verify("subset", subset.artifact_id)
    home.artifacts.verify("corpus", corpus.artifact_id)
    members = pq.read_table(
        home.artifacts.folder("subset", subset.artifact_id) / "subset_members.parquet"
    )
    scores = dict(zip(members["sample_id"].to_pylist(), members["score"].to_pylist(), strict=True))
    rows = _rows(home.artifacts.folder("corpus", corpus.artifact_id) / "samples", scores)
    path = output or home.folder / "exports" / f"{subset.artifact_id}.{file_format}"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        num_rows = (
            _write_jsonl(rows, part) if file_format == "jsonl" else _write_parquet(rows, part)
        )
        if num_rows != len(scores):
            raise ArtifactError(
                f"{subset.artifact_id} must have its {len(scores)} rows in {corpus.artifact_id}, "
                f"got {num_rows}; run `make run`, then export again"
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path.resolve(), num_rows


def _rows(samples: Path, scores: dict[str, float]) -> Iterator[dict[str, Any]]:
    for sample in read_samples(samples, sample_ids=scores.keys()):
        yield {
            **sample.original,
            "circuitseer_score": scores[sample.sample_id],
            "circuitseer_sample_id": sample.sample_id,
        }


def _write_jsonl(rows: Iterator[dict[str, Any]], path: Path) -> int:
    num_rows = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            num_rows += 1
    return num_rows


def _write_parquet(rows: Iterator[dict[str, Any]], path: Path) -> int:
    # A subset is small beside its corpus, and only all its rows together tell columns and types.
    held = list(rows)
    names = list(dict.fromkeys(name for row in held for name in row))
    try:
        table = pa.table({name: [row.get(name) for row in held] for name in names})
    except pa.ArrowException as error:
        raise ArtifactError(
            f"--format must be jsonl where a column holds values of several types, got parquet "
            f"({' '.join(str(error).split())}); export as jsonl"
        ) from error
    pq.write_table(table, path, compression="zstd")
    return int(table.num_rows)
