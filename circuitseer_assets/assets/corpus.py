"""Stage corpus: the rows as read, each usable one a sample, every other one quarantined."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
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
from resources.parquet_batches import RowWriter
from resources.sample_files import write_samples
from resources.warehouse_rows import FileRows

CODE_VERSION = "1"
QUARANTINE_FILE = "quarantined_samples.parquet"
SAMPLE_FILES = "samples/samples-*.parquet"
_QUARANTINE_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("position", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


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
    by_source: Counter[str] = Counter()
    by_reason: Counter[str] = Counter()
    with RowWriter(folder / QUARANTINE_FILE, _QUARANTINE_SCHEMA) as quarantine:

        def usable() -> Iterator[Sample]:
            for row in curate_rows(read_rows(settings.corpus), columns_of(settings.corpus)):
                if isinstance(row, QuarantinedRow):
                    by_reason[row.reason] += 1
                    quarantine.add(asdict(row))
                else:
                    by_source[row.source] += 1
                    yield row

        num_samples = write_samples(usable(), folder / "samples")
    of_corpus = {"corpus_id": corpus_id}
    samples = ("sample_id", "prompt_id", "source", "position")
    return Made(
        data=["samples"],
        summary={
            "num_samples": num_samples,
            "num_quarantined": by_reason.total(),
            "samples_by_source": dict(by_source.most_common(20)),
            "quarantined_by_reason": dict(by_reason),
        },
        rows={
            "samples": FileRows(SAMPLE_FILES, samples, of_corpus),
            "corpus_members": FileRows(SAMPLE_FILES, ("sample_id",), of_corpus),
            "quarantined_samples": FileRows(QUARANTINE_FILE, _QUARANTINE_SCHEMA.names, of_corpus),
        },
    )
