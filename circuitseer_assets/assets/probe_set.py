"""Stage probe_set: the clean corpus is cut into probes and the pool that selection draws from."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from circuitseer_assets.assets.slices import settings_key
from circuitseer_assets.assets.stage import Made, Materialised, StageRun
from circuitseer_assets.errors import CorpusError
from circuitseer_assets.method.decontamination import ContaminatedSample, find_contaminated
from circuitseer_assets.method.probe_set import (
    ProbeSet,
    candidate_of,
    draw_probe_set,
)
from circuitseer_assets.records import Artifact, Problem, Sample, artifact_id_of
from resources.benchmarks import load_problems
from resources.control_texts import read_control_texts
from resources.home import Home
from resources.pool_files import write_pool
from resources.sample_files import read_samples, write_samples
from resources.warehouse_rows import FileRows

CODE_VERSION = "4"
PROBE_KINDS = ("ranking", "confirmation", "control")
_DEPS: list[dg.AssetKey | str] = [
    "corpus",
    settings_key("probe_set"),
    settings_key("decontamination"),
]


@dg.multi_asset(
    name="probe_set",
    group_name="probe_set",
    specs=[
        dg.AssetSpec(
            "probe_set",
            deps=_DEPS,
            code_version=CODE_VERSION,
            kinds={"parquet", "duckdb"},
            description="Ranking, confirmation and control probes; kept while their rows exist.",
        ),
        dg.AssetSpec(
            "pool",
            deps=[*_DEPS, "probe_set"],
            code_version=CODE_VERSION,
            kinds={"parquet"},
            description="The samples selection may draw: the clean corpus without the probes.",
        ),
    ],
)
def probe_set_and_pool(
    context: dg.AssetExecutionContext, home: Home
) -> Iterator[dg.MaterializeResult[Any]]:
    """Draws the probes, or keeps them, and leaves the rest as the pool."""
    run = StageRun.of(context, home, "probe_set", "decontamination")
    probes, pool = make_probe_set_and_pool(run)
    yield run.result(probes, key="probe_set")
    yield run.result(pool, key="pool")


def make_probe_set_and_pool(run: StageRun) -> tuple[Materialised, Materialised]:
    """Returns the probe set and the pool of the latest corpus."""
    corpus = run.parent("corpus")
    identity = {
        "decontamination": run.settings.slice("decontamination"),
        "decontamination_version": run.home.slice_version("decontamination"),
        **_probe_set_identity(run),
    }
    pool_id = artifact_id_of("pool", identity, [corpus.artifact_id], CODE_VERSION)
    pool = run.reuse(pool_id, "pool")
    probes = run.reuse(pool.artifact.parents[1], "probe_set") if pool else None
    if pool is None or probes is None:
        run.stop_if_planned(pool_id)
        contaminated = _find_contaminated(run, corpus)
        probes = _draw_or_keep(run, corpus, {row.sample_id for row in contaminated})
        pool = run.reuse_or_make(
            "pool",
            identity,
            [corpus],
            lambda folder: _write_pool(run, corpus, probes.folder, contaminated, pool_id, folder),
            code_version=CODE_VERSION,
            also_from=[probes.artifact],
        )
    return probes, pool


def _probe_set_identity(run: StageRun) -> dict[str, Any]:
    return {
        "probe_set": run.settings.slice("probe_set"),
        "probe_set_version": run.home.slice_version("probe_set"),
    }


def _problems(run: StageRun) -> list[Problem]:
    folder = run.home.folder / "benchmarks"
    benchmarks = run.settings.decontamination.benchmarks
    return [p for benchmark in benchmarks for p in load_problems(benchmark, folder=folder)]


def _find_contaminated(run: StageRun, corpus: Artifact) -> list[ContaminatedSample]:
    return list(find_contaminated(_corpus_samples(run, corpus), _problems(run)))


def _corpus_samples(run: StageRun, corpus: Artifact) -> Iterator[Sample]:
    return read_samples(run.folder(corpus) / "samples")


def _draw_or_keep(run: StageRun, corpus: Artifact, contaminated: set[str]) -> Materialised:
    """Returns the previous probe set while all its members are there and clean, else a new one."""
    settings, identity = run.settings.probe_set, _probe_set_identity(run)
    previous = next(
        (
            found
            for artifact in run.home.warehouse.find_probe_sets(identity, CODE_VERSION)
            if (found := run.reuse(artifact.artifact_id, "probe_set"))
        ),
        None,
    )
    keep = load_probe_set(previous.folder) if previous else None
    control = read_control_texts(settings)
    clean = (s for s in _corpus_samples(run, corpus) if s.sample_id not in contaminated)
    drawn = draw_probe_set((candidate_of(s) for s in clean), settings, control=control, keep=keep)
    if previous is not None and drawn == keep:
        return previous
    parents = [corpus, previous.artifact] if previous else [corpus]
    ids = [parent.artifact_id for parent in parents]
    probe_set_id = artifact_id_of("probe_set", identity, ids, CODE_VERSION)
    return run.reuse_or_make(
        "probe_set",
        identity,
        parents,
        lambda folder: _write_probes(run, corpus, drawn, control, probe_set_id, folder),
        code_version=CODE_VERSION,
    )


def _write_probes(
    run: StageRun,
    corpus: Artifact,
    drawn: ProbeSet,
    control: list[Sample],
    probe_set_id: str,
    folder: Path,
) -> Made:
    members = {*drawn.ranking, *drawn.confirmation}
    samples = {
        sample.sample_id: sample
        for sample in read_samples(run.folder(corpus) / "samples", sample_ids=members)
    }
    # Each kind in the order drawn, which is the order a race over the probes takes them in.
    write_samples((samples[i] for i in drawn.ranking), folder / "ranking")
    write_samples((samples[i] for i in drawn.confirmation), folder / "confirmation")
    if control:
        write_samples(control, folder / "control")
    (folder / "probe_set.json").write_text(json.dumps(asdict(drawn)))
    ids = {kind: getattr(drawn, kind) for kind in PROBE_KINDS}
    rows = [
        {"probe_set_id": probe_set_id, "sample_id": sample_id, "kind": kind}
        for kind, members_of_kind in ids.items()
        for sample_id in members_of_kind
    ]
    return Made(
        data=["ranking", "confirmation", *(["control"] if control else [])],
        summary={f"num_{kind}": len(members_of_kind) for kind, members_of_kind in ids.items()},
        rows={"probe_members": pa.Table.from_pylist(rows)},
    )


def load_probe_set(folder: Path) -> ProbeSet:
    """Returns the stored probe set."""
    stored = json.loads((folder / "probe_set.json").read_text())
    return ProbeSet(**{name: tuple(values) for name, values in stored.items()})


def _write_pool(
    run: StageRun,
    corpus: Artifact,
    probes: Path,
    contaminated: list[ContaminatedSample],
    pool_id: str,
    folder: Path,
) -> Made:
    dirty = {row.sample_id for row in contaminated}
    num_samples = write_pool(
        run.folder(corpus) / "samples",
        folder / "pool.parquet",
        sample_ids_taken=dirty,
        prompt_ids_taken=load_probe_set(probes).prompt_ids,
    )
    if not num_samples:
        raise CorpusError(
            f"the pool must hold at least one sample, got none ({len(dirty)} were contaminated); "
            f"ask for fewer probes or give a larger corpus"
        )
    report = pa.Table.from_pylist(
        [asdict(row) for row in contaminated],
        schema=pa.schema([(name, pa.string()) for name in ("sample_id", "task", "doc_id", "rule")]),
    )
    pq.write_table(report, folder / "contaminated_samples.parquet")
    return Made(
        data=["pool.parquet"],
        summary={
            "num_samples": num_samples,
            "num_contaminated": len(dirty),
            # A sample too like several problems is one sample removed.
            "contaminated_by_rule": dict(
                Counter(
                    rule for _, rule in sorted({(row.sample_id, row.rule) for row in contaminated})
                )
            ),
            "benchmarks": [b.task for b in run.settings.decontamination.benchmarks],
        },
        rows={"pool_members": FileRows("pool.parquet", ("sample_id",), {"pool_id": pool_id})},
    )
