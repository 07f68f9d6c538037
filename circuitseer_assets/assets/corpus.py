"""Stage corpus: the rows as read, each usable one a sample, every other one quarantined."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from circuitseer_assets.assets.slices import settings_key
from circuitseer_assets.assets.stage import Made, Materialised, StageRun
from circuitseer_assets.method.corpus import curate_rows
from circuitseer_assets.records import QuarantinedRow, Sample, artifact_id_of
from circuitseer_assets.settings import Settings
from resources.corpora import columns_of, read_rows
from resources.home import Home
from resources.sample_files import write_samples

CODE_VERSION = "1"


@dg.asset(
    group_name="corpus",
    kinds={"parquet", "duckdb"},
    deps=[settings_key("corpus")],
    code_version=CODE_VERSION,
    description="Every usable row of the corpus as a sample; the others are quarantined.",
)
def corpus(context: dg.AssetExecutionContext, home: Home) -> dg.MaterializeResult[Any]:
    """Reads the corpus named in the settings."""
    run = StageRun.of(context, home, "corpus")
    return run.result(make_corpus(run))


def make_corpus(run: StageRun) -> Materialised:
    """Returns the corpus of the settings."""
    identity = {
        "corpus": run.settings.slice("corpus"),
        "version": run.home.slice_version("corpus"),
    }
    corpus_id = artifact_id_of("corpus", identity, [], CODE_VERSION)
    return run.reuse_or_make(
        "corpus",
        identity,
        [],
        lambda folder: _read_corpus(run.settings, corpus_id, folder),
        code_version=CODE_VERSION,
    )


def _read_corpus(settings: Settings, corpus_id: str, folder: Path) -> Made:
    columns = columns_of(settings.corpus)
    samples: list[tuple[str, str, str, int]] = []
    quarantined: list[QuarantinedRow] = []

    def usable() -> Iterator[Sample]:
        for row in curate_rows(read_rows(settings.corpus), columns):
            if isinstance(row, QuarantinedRow):
                quarantined.append(row)
            else:
                samples.append((row.sample_id, row.prompt_id, row.source, row.position))
                yield row

    write_samples(usable(), folder / "samples")
    return Made(
        data=["samples"],
        summary={
            "num_samples": len(samples),
            "num_quarantined": len(quarantined),
            "samples_by_source": dict(Counter(s[2] for s in samples).most_common(20)),
            "quarantined_by_reason": dict(Counter(row.reason for row in quarantined)),
        },
        rows={
            "samples": _sample_rows(corpus_id, samples),
            "corpus_members": pa.table(
                {
                    "corpus_id": [corpus_id] * len(samples),
                    "sample_id": [sample[0] for sample in samples],
                }
            ),
            "quarantined_samples": quarantined_rows(corpus_id, quarantined),
        },
    )


def _sample_rows(corpus_id: str, samples: list[tuple[str, str, str, int]]) -> pa.Table:
    sample_ids, prompt_ids, sources, positions = zip(*samples, strict=True)
    return pa.table(
        {
            "sample_id": list(sample_ids),
            "prompt_id": list(prompt_ids),
            "corpus_id": [corpus_id] * len(samples),
            "source": list(sources),
            "position": pa.array(positions, pa.int64()),
        }
    )


def quarantined_rows(corpus_id: str, rows: list[QuarantinedRow]) -> pa.Table:
    """Returns the warehouse's rows for what was quarantined from one corpus."""
    return pa.table(
        {
            "corpus_id": pa.array([corpus_id] * len(rows), pa.string()),
            "source": pa.array([row.source for row in rows], pa.string()),
            "position": pa.array([row.position for row in rows], pa.int64()),
            "reason": pa.array([row.reason for row in rows], pa.string()),
            "detail": pa.array([row.detail for row in rows], pa.string()),
        }
    )
